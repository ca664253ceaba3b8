"""`welfare`: what sponsors gain, what the platform earns and what the user loses, beside the rules of others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from llm_auction_chain.experiments.baselines import (
    BASELINES,
    CONTEXT_PROMPT,
    REFERENCE,
    Rule,
    kl_to_reference,
    largest_gain,
    mosaic,
    on_subsets,
    soft_best_of_n,
)
from llm_auction_chain.experiments.config import QUICK, ExperimentConfig
from llm_auction_chain.experiments.exact import SmallBed, divergence
from llm_auction_chain.experiments.pools import OWN_POLICIES, Pool
from llm_auction_chain.experiments.results import Cell, Estimate, Figure, Findings, Series, Table, mean, of_means
from llm_auction_chain.experiments.study import Experiment, Study
from llm_auction_chain.mechanism import settle

__all__ = ["EXPERIMENTS", "PROPOSAL_OF", "Measured", "at_loss", "measured"]

Floats = npt.NDArray[np.float64]
_SUBSETS = 4  # auctions of a pool for each of its draws; they add up to 1/8 nat to the loss
_ROUNDING = 1e-9
PROPOSAL_OF = {
    "sponsors in the prompt": "context prompt",
    "segment auction": OWN_POLICIES,
    "after-policy": OWN_POLICIES,
}
"""What the candidates of a rule are drawn from, where it is not the reference."""
_VALUE, _REVENUE, _LOSS, _SPREAD, _GAIN = range(5)  # the fields of Measured
_MONEY = ("value to sponsors (money)", "revenue (money)", "user's loss: KL to the reference (nats)")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a rule gives in the mean of a pool's auctions.

    Attributes:
        value: sum of what the returned reply is worth to sponsors, money.
        revenue: sum of the payments, money.
        loss: KL to the reference, nats; nan where the model does not say how likely replies are.
        spread: standard deviation of an auction's revenue over the returned reply, money.
        gain: the largest expected gain from a lie, money, of all agents and lies tried.
    """

    value: float
    revenue: float
    loss: float
    spread: float
    gain: float


def measured(pool: Pool, rule: Rule, *, proposal: str, m: int, draws: int, family: str) -> Measured:
    """Apply a rule to random sets of M candidates out of `draws` of a proposal."""
    (_, one), *_ = pool.sets(proposal, m, family)
    (_, whole), *_ = pool.sets(proposal, draws, family)
    sources, counts = np.unique(one.sources, return_counts=True)
    of_sources = dict(zip(sources.tolist(), counts.tolist(), strict=True))
    outcome = on_subsets(rule, of_sources, repeats=_SUBSETS * draws)(whole, whole.rewards)
    known = proposal == "reference" or not np.isnan(whole.log_reference).any()
    charged, revenue = outcome.payments.sum(axis=0), outcome.revenue()
    return Measured(
        value=outcome.welfare(whole.rewards),
        revenue=revenue,
        loss=kl_to_reference(outcome, whole) if known else np.nan,
        spread=float(np.sqrt(max(0.0, outcome.probabilities @ charged**2 - revenue**2))),
        gain=max(largest_gain(rule, one, i, _lies(report)) for i, report in enumerate(one.rewards)),
    )


def _lies(report: Floats) -> Floats:
    """Return misreports: scaled, shifted where the report is high, silent, and exaggerated for the best reply."""
    best = np.zeros(len(report))
    best[np.argmax(report)] = np.ptp(report)
    high = np.where(report > np.median(report), 0.3 * np.ptp(report), 0.0)
    return np.array([0.7 * report, 1.3 * report, 0.0 * report, report + high, report - high, report + best])


def at_loss(losses: Floats, values: Floats, loss: float) -> float:
    """Return the largest value at an expected loss of the user, where a platform may use one rule or another by lot.

    Args:
        losses: (K,), of rules, nats.
        values: (K,), of the same, money.
        loss: not above the largest of them.

    >>> at_loss(np.array([0.0, 1.0, 3.0]), np.array([0.0, 1.0, 1.5]), 2.0)
    1.25
    """
    mixed = [values[losses <= loss].max(initial=-np.inf)]
    for low in np.flatnonzero(losses <= loss):
        for high in np.flatnonzero(losses > loss):
            share = (loss - losses[low]) / (losses[high] - losses[low])
            mixed.append(values[low] + share * (values[high] - values[low]))
    return float(max(mixed))


Points = dict[tuple[str, float | None], Floats]
"""(Q, S, 5) for each rule and tau: the fields of `Measured`. The tau of a rule that has none is None."""


def analyse(study: Study[Pool]) -> Findings:
    """Return what every rule gives on the same questions with the same number of candidates."""
    config = study.config
    m = max((size for size in config.n_candidates if 2 * size <= config.draws), default=min(config.n_candidates))
    tables = [_small_bed_table(config)]
    figures: list[Figure] = []
    ratios: dict[str, float] = {}
    distance = 0.0
    for family in config.families:
        points = _points(study, m, family)
        scatter, off = _equity(study, m, family)
        frontier = _at_after_policys_loss(config, points, family)
        tables += [_rules_table(config, points, m, family), frontier, _sizes_table(study, family)]
        figures += [_frontier_figure(config, points, family), _taus_figure(config, points, family), scatter]
        distance = max(distance, off)
        if not ratios:
            ratios = {
                "revenue_vs_sponsors_in_prompt": _revenue_over_fees(study, points, family).value,
                "welfare_vs_after_policy": _over_after_policy(config, points, config.main_proposal, _VALUE).value,
            }
    notes = (f"Utilities and contributions differ by {distance:.2g} money at most.", *_NOTES)
    return Findings(tables=tuple(tables), figures=tuple(figures), ratios=ratios, notes=notes)


def _points(study: Study[Pool], m: int, family: str) -> Points:
    config, points = study.config, Points()
    for name, tau, rule, proposal in _rules(config.proposals, config.taus):
        of_pool = partial(measured, rule=rule, proposal=proposal, m=m, draws=config.draws, family=family)
        points[name, tau] = study.values(partial(_figures, of_pool))
    return points


def _figures(of_pool: Callable[[Pool], Measured], pool: Pool) -> tuple[float, ...]:
    return tuple(vars(of_pool(pool)).values())


def _rules(proposals: Sequence[str], taus: Sequence[float]) -> Iterator[tuple[str, float | None, Rule, str]]:
    """Yield every rule with its name, its tau and the proposal that its candidates come from."""
    for name, rule in BASELINES.items():
        yield name, None, rule, PROPOSAL_OF.get(name, "reference")
    for tau in taus:
        yield "soft best of n, first price", tau, soft_best_of_n(tau=tau), "reference"
        for proposal in proposals:
            yield _ours(proposal), tau, mosaic(tau=tau), proposal


def _ours(proposal: str) -> str:
    return f"MOSAIC, {proposal}"


def _rules_table(config: ExperimentConfig, points: Points, m: int, family: str) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (name, "" if tau is None else tau, *(mean(values[..., k]) for k in range(4)), float(values[..., _GAIN].max()))
        for (name, tau), values in points.items()
        if tau in (None, config.tau)
    ]
    return Table(
        title=f"Rules on the same questions with {m} candidates ({family})",
        columns=("rule", "tau", *_MONEY, "spread of revenue (money)", "largest gain from a lie (money)"),
        rows=tuple(rows),
    )


def _at_after_policys_loss(config: ExperimentConfig, points: Points, family: str) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (_ours(proposal), *(_over_after_policy(config, points, proposal, k) for k in (_VALUE, _REVENUE)))
        for proposal in config.proposals
    ]
    return Table(
        title=f"MOSAIC over after-policy at the same loss of the user ({family})",
        columns=("rule", "ratio of values", "ratio of revenues"),
        rows=tuple(rows),
    )


def _over_after_policy(config: ExperimentConfig, points: Points, proposal: str, figure: int) -> Estimate:
    """Return the ratio of a figure under MOSAIC, tau traced, to that under after-policy, at the same loss."""
    ours = [points["no auction", None], *(points[_ours(proposal), tau] for tau in config.taus)]
    theirs = [points["no auction", None], points["after-policy", None]]
    samples = [each[..., k] for each in (*ours, *theirs) for k in (_LOSS, figure)]

    def ratios(means: Floats) -> Floats:
        losses, values = np.maximum(means[:, ::2], 0.0), means[:, 1::2]
        n, pairs = len(ours), []
        for loss, value in zip(losses, values, strict=True):
            common = min(loss[:n].max(), loss[n:].max())
            pairs.append((at_loss(loss[:n], value[:n], common), at_loss(loss[n:], value[n:], common)))
        return _over(*np.array(pairs).T)

    return of_means(ratios, *samples)


def _revenue_over_fees(study: Study[Pool], points: Points, family: str) -> Estimate:
    """Return MOSAIC's revenue over the largest flat fee that sponsors in the prompt would pay."""
    fees = study.values(lambda pool: _fees(pool, family))
    revenue = points[_ours(study.config.main_proposal), study.config.tau][..., _REVENUE]
    return of_means(lambda means: _over(means[:, 0], means[:, 1]), revenue, fees)


def _over(above: Floats, below: Floats) -> Floats:
    """Return the quotients; nan where one of both is unknown or the denominator is 0 up to rounding."""
    defined = np.isfinite(above) & np.isfinite(below) & (np.abs(below) > _ROUNDING)
    return np.asarray(np.divide(above, below, out=np.full_like(above, np.nan), where=defined))


def _fees(pool: Pool, family: str) -> float:
    """Return the sum of what each sponsor gains by the context prompt over the reference, in the mean; money."""
    worth = [
        pool.rewards[family][:, pool.sources == int(np.flatnonzero(pool.shares[name])[0])].mean(axis=1)
        for name in ("context prompt", "reference")
    ]
    return float(np.maximum(worth[0] - worth[1], 0.0).sum())


def _small_bed_table(config: ExperimentConfig) -> Table:
    """Return every rule on the small bed, where the loss is exact."""
    bed, rows = SmallBed.make(), []
    counts = {"reference": {REFERENCE: 4}, "context prompt": {CONTEXT_PROMPT: 4}, OWN_POLICIES: {0: 2, 1: 2}}
    counts["half and half"] = {REFERENCE: 2, CONTEXT_PROMPT: 2}
    for name, tau, rule, proposal in _rules(("reference", "context prompt", "half and half"), config.taus):
        law, revenue = bed.hold(rule, counts[proposal])
        value = float(law @ bed.rewards.sum(axis=0))
        rows.append((name, "" if tau is None else tau, value, revenue, divergence(law, bed.laws[REFERENCE])))
    return Table(
        title="The small solvable bed, 4 candidates, enumerated", columns=("rule", "tau", *_MONEY), rows=tuple(rows)
    )


def _frontier_figure(config: ExperimentConfig, points: Points, family: str) -> Figure:
    def series(name: str, keys: Sequence[tuple[str, float | None]]) -> Series:
        means = [points[key].mean(axis=(0, 1)) for key in keys]
        return Series(label=name, x=[float(each[_LOSS]) for each in means], y=[float(each[_VALUE]) for each in means])

    lines = [series(_ours(each), [(_ours(each), tau) for tau in config.taus]) for each in config.proposals]
    lines += [series(name, [(name, None)]) for name in BASELINES]
    return Figure(
        name=f"welfare_{family}_frontier", title=f"Value to sponsors against the user's loss ({family})",
        x_label=_MONEY[_LOSS], y_label=_MONEY[_VALUE], series=tuple(lines),
    )  # fmt: skip


def _taus_figure(config: ExperimentConfig, points: Points, family: str) -> Figure:
    lines = [
        Series(
            label=f"{proposal}: {name}", x=config.taus,
            y=[mean(points[_ours(proposal), tau][..., k]) for tau in config.taus],
        )
        for proposal in config.proposals
        for k, name in ((_VALUE, "value"), (_REVENUE, "revenue"))
    ]  # fmt: skip
    return Figure(
        name=f"welfare_{family}", title=f"Value and revenue against tau ({family})", x_label="tau (money per nat)",
        y_label="money", series=tuple(lines), x_log=True,
    )  # fmt: skip


def _sizes_table(study: Study[Pool], family: str) -> Table:
    config = study.config
    rows: list[tuple[Cell, ...]] = []
    for proposal in config.proposals:
        for m in (size for size in config.n_candidates if size <= config.draws):
            values = study.values(partial(_of_size, proposal=proposal, m=m, family=family, tau=config.tau))
            rows.append((proposal, m, *(mean(values[..., k]) for k in range(3))))
    return Table(
        title=f"Against M, tau = {config.tau:g} ({family})",
        columns=("proposal", "M", *_MONEY[:2], "regularised welfare E[G_M] (money)"),
        rows=tuple(rows),
    )


def _of_size(pool: Pool, *, proposal: str, m: int, family: str, tau: float) -> Floats:
    """Return value, revenue and G_M of an auction, the mean over a pool's sets of M candidates."""
    rows = []
    for _, each in pool.sets(proposal, m, family):
        settled = settle(each.rewards, each.log_weights, tau=tau, seed=0)
        value = settled.probabilities @ each.rewards.sum(axis=0)
        rows.append((value, settled.expected_payments.sum(), settled.diagnostics.log_normaliser))
    return np.asarray(np.mean(rows, axis=0))


def _equity(study: Study[Pool], m: int, family: str) -> tuple[Figure, float]:
    """Return every agent's utility beside its contribution to welfare, and how far they are apart at most."""
    tau, points = study.config.tau, []
    for pool in (pool for row in study.units for pool in row):
        (_, each), *_ = pool.sets(study.config.main_proposal, m, family)
        utilities = mosaic(tau=tau)(each, each.rewards).utilities(each.rewards)
        whole = settle(each.rewards, each.log_weights, tau=tau, seed=0).diagnostics.log_normaliser
        for i, utility in enumerate(utilities):
            others = np.delete(each.rewards, i, axis=0)
            without = settle(others, each.log_weights, tau=tau, seed=0).diagnostics.log_normaliser
            points.append((whole - without, float(utility)))
    x, y = zip(*points, strict=True)
    figure = Figure(
        name=f"welfare_{family}_equity", title=f"A sponsor's utility is its contribution to welfare ({family})",
        x_label="contribution to regularised welfare (money)", y_label="expected utility (money)",
        series=(Series(label="one sponsor of one auction", x=x, y=y),), kind="points", diagonal=True,
    )  # fmt: skip
    return figure, float(np.abs(np.subtract(x, y)).max())


_NOTES = tuple(
    " ".join(note.split())
    for note in (
        """revenue_vs_sponsors_in_prompt is MOSAIC's revenue over the largest flat fees that sponsors in the prompt
        would pay: what each gains by the prompt over the reference. The prompt itself is free.""",
        """welfare_vs_after_policy is the sponsors' value under MOSAIC with the default proposal over that under
        after-policy, at after-policy's loss of the user, or at MOSAIC's own largest where it does not go so far. A loss
        below a rule's own is reached by using the rule for a share of the queries and no auction for the others.""",
        """The loss is estimated from the candidates, and is too high where p depends on them: for rules that take the
        best of M it is up to log M, in truth at most log M - (M - 1) / M. The small bed has the exact losses.""",
    )
)

EXPERIMENTS = {
    "welfare": Experiment(
        claim="The auction raises sponsors' value and the platform's revenue, at a loss of the user that tau sets.",
        config=ExperimentConfig(experiment="welfare"),
        quick=QUICK,
        analyse=analyse,
    )
}
