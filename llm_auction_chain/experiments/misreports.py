"""`misreports`: what an agent gains by a report other than the truth, under our payment rules and those of others."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from llm_auction_chain.experiments.baselines import Candidates, Rule, mosaic, rules_at, utility_of
from llm_auction_chain.experiments.config import QUICK, ExperimentConfig
from llm_auction_chain.experiments.pools import Pool
from llm_auction_chain.experiments.results import Cell, Figure, Findings, Series, Table, mean
from llm_auction_chain.experiments.strategic_agents import auction_size, auctions
from llm_auction_chain.experiments.study import Experiment, Study
from llm_auction_chain.experiments.welfare import PROPOSAL_OF
from llm_auction_chain.mechanism import PaymentRule, settle

__all__ = ["EXPERIMENTS", "KINDS", "ascend", "lies"]

Floats = npt.NDArray[np.float64]
KINDS = (
    "scaled", "shifted by 30 %", "good replies shifted by 30 %", "silent", "one reply exaggerated", "random",
    "gradient ascent",
)  # fmt: skip
"""What a liar does to its report."""
_DRAWS = 4  # of the noise, the same for truth and lie
_ROUNDING = 1e-9
_STEPS = 4
_HALVINGS = 8
_NEAR = 1e-4  # distance of the reports that a slope is measured between, in spreads
_FAINT = 1e-3  # the slope at a less likely reply says little
_MEAN, _LARGEST, _PER_DRAW = range(3)


def lies(truth: Floats, spread: float, rng: np.random.Generator) -> dict[str, Floats]:
    """Return misreports (K, M) by their kind, all but the gradient ascent.

    Args:
        truth: (M,), money.
        spread: what the truth spans, money, above 0.
        rng: of the random ones.
    """
    shift, good = 0.3 * spread, truth > np.median(truth)
    replies = np.eye(len(truth))[[int(np.argmax(truth)), int(np.argmin(truth)), int(rng.integers(len(truth)))]]
    return {
        "scaled": np.outer((0.5, 0.7, 1.3, 2.0), truth),
        "shifted by 30 %": truth + np.array([[shift], [-shift]]),
        "good replies shifted by 30 %": truth + np.outer((shift, -shift), good),
        "silent": 0.0 * truth[None],
        "one reply exaggerated": truth + 2.0 * spread * replies,
        "random": truth + spread * rng.normal(size=(4, len(truth))),
    }


def ascend(rule: Rule, candidates: Candidates, agent: int, start: Floats, spread: float) -> Floats:
    """Climb from a report along the measured slope of an agent's utility, and return the report (M,) at the end.

    It assumes nothing about the rule. Each step is the longest of some that gain, along the slope as it is or divided
    by the probabilities of the replies.
    """
    utility = partial(utility_of, rule, candidates, agent)
    report, best, ends = start, utility(start), _NEAR * spread * np.eye(len(start))
    for _ in range(_STEPS):
        slope = np.array([utility(report + end) - utility(report - end) for end in ends])
        if not slope.any():
            break
        reports = candidates.rewards.copy()
        reports[agent] = report
        likely = np.maximum(rule(candidates, reports).probabilities, _FAINT)
        directions = [spread * way / np.abs(way).max() for way in (slope, slope / likely)]
        tries = [report + way / 2.0**k for way in directions for k in range(_HALVINGS)]
        gained = [utility(each) for each in tries]
        if max(gained) <= best:
            break
        report, best = tries[int(np.argmax(gained))], max(gained)
    return report


def analyse(study: Study[Pool]) -> Findings:
    """Return the largest gains under our payment rules, and what each kind of lie gains under every rule."""
    config, m = study.config, auction_size(study.config)
    tables: list[Table] = []
    figures: list[Figure] = []
    largest, first_price = -np.inf, list[float]()
    for family in config.families:
        ours = study.values(
            partial(_ours, proposals=config.proposals, rules=config.payment_rules, m=m, family=family, tau=config.tau)
        )
        theirs = study.values(partial(_theirs, m=m, family=family, tau=config.tau))
        top = ours.max(axis=(0, 1))
        tables += [
            _ours_table(config, top, m, family), _theirs_table(config, theirs, m, family),
            _kinds_table(config, theirs, m, family),
        ]  # fmt: skip
        figures.append(_figure(config, theirs, m, family))
        pivot = [top[:, k, :, _PER_DRAW].max() for k, rule in enumerate(config.payment_rules) if rule == "pivot"]
        largest = max(largest, top[..., _LARGEST].max(), *pivot)
        first_price.append(theirs[:, :, list(rules_at(1.0)).index("best of n, first price"), -1, _MEAN].mean())
    return Findings(
        tables=tuple(tables),
        figures=tuple(figures),
        ratios={"largest_gain": float(largest), "gain_under_first_price": float(np.mean(first_price))},
        notes=_NOTES,
    )


def _ours(
    pool: Pool, *, proposals: Sequence[str], rules: Sequence[PaymentRule], m: int, family: str, tau: float
) -> Floats:
    """Return the gains of one auction of each proposal, in spreads: (proposals, payment rules, kinds, 3).

    The last axis is the mean over agents and their maximum in expectation, and the maximum for draws with equal noise.
    """
    results = np.empty((len(proposals), len(rules), len(KINDS), 3))
    for a, proposal in enumerate(proposals):
        one = next(auctions(pool, proposal, m, family))
        misreports = [
            _lies_with_ascent(mosaic(tau=tau), one, i, tau, pool.seed, climb_from="random") for i in _agents(one)
        ]
        for b, name in enumerate(rules):
            least = 0.0 if name == "proportional" else -np.inf
            allowed = [{kind: np.maximum(each, least) for kind, each in of_agent.items()} for of_agent in misreports]
            gains = np.array([_of_liar(one, i, of_agent, name, tau) for i, of_agent in enumerate(allowed)])
            results[a, b] = np.column_stack([gains[..., 0].mean(axis=0), gains.max(axis=0)])
    return results


def _theirs(pool: Pool, *, m: int, family: str, tau: float) -> Floats:
    """Return the gains under every rule, in spreads: (rules, kinds and the best of them, 2).

    The last axis is the mean over agents and their maximum.
    """
    results = []
    for name, rule in rules_at(tau).items():
        one = next(auctions(pool, PROPOSAL_OF.get(name, "reference"), m, family, centred=False))
        climbing = mosaic(tau=tau) if name == "MOSAIC, pivot" else rule  # of the same mean, and much faster
        misreports = [_lies_with_ascent(climbing, one, i, tau, pool.seed, climb_from=None) for i in _agents(one)]
        gains = _gains(rule, one, misreports, tau)
        gains = np.column_stack([gains, gains.max(axis=1)])
        results.append(np.stack([gains.mean(axis=0), gains.max(axis=0)], axis=-1))
    return np.array(results)


def _agents(candidates: Candidates) -> range:
    return range(len(candidates.rewards))


def _spread(candidates: Candidates, agent: int, tau: float) -> float:
    """Return what the agent's truth spans, money; tau where all replies are worth the same to it."""
    return float(np.ptp(candidates.rewards[agent])) or tau


def _lies_with_ascent(
    rule: Rule, candidates: Candidates, agent: int, tau: float, seed: int, *, climb_from: str | None
) -> dict[str, Floats]:
    """Return the misreports of all kinds. The ascent begins at a lie of this kind, or at the truth."""
    truth, spread = candidates.rewards[agent], _spread(candidates, agent, tau)
    results = lies(truth, spread, np.random.default_rng([seed, agent]))
    start = truth if climb_from is None else results[climb_from][0]
    results["gradient ascent"] = ascend(rule, candidates, agent, start, spread)[None]
    return results


def _gains(rule: Rule, candidates: Candidates, misreports: Sequence[Mapping[str, Floats]], tau: float) -> Floats:
    """Return the largest gain in expectation of each agent by each kind of lie, (N, kinds), in spreads."""
    results = []
    for i, of_agent in enumerate(misreports):
        utility = partial(utility_of, rule, candidates, i)
        honest = utility(candidates.rewards[i])
        gains = [max(map(utility, of_agent[kind])) - honest for kind in KINDS]
        results.append(np.array(gains) / _spread(candidates, i, tau))
    return np.array(results)


def _of_liar(
    candidates: Candidates, agent: int, of_agent: Mapping[str, Floats], name: PaymentRule, tau: float
) -> Floats:
    """Return an agent's largest gains by each kind of lie under a payment rule of ours, in spreads: (kinds, 2).

    The last axis is the gain in expectation, and the gain for a draw with the same noise.
    """
    rule, weights, values = mosaic(name, tau=tau), candidates.log_weights, candidates.rewards[agent]
    noises = [-np.log(np.random.default_rng(seed).standard_exponential(len(values))) for seed in range(_DRAWS)]

    def utilities(report: Floats) -> Floats:
        reports = candidates.rewards.copy()
        reports[agent] = report
        outcome = rule(candidates, reports)
        results = [float((values - outcome.payments[agent]) @ outcome.probabilities)]
        for seed, noise in enumerate(noises):
            if name == "pivot":
                one = settle(reports, weights, tau=tau, payment_rule=name, seed=seed)
                results.append(values[one.winner] - one.payments[agent])
            else:  # the payment depends on the reply alone
                winner = int(np.argmax(weights + reports.sum(axis=0) / tau + noise))
                results.append(values[winner] - outcome.payments[agent, winner])
        return np.array(results)

    honest = utilities(values)
    gains = [np.max([utilities(lie) - honest for lie in of_agent[kind]], axis=0) for kind in KINDS]
    return np.array([(each[0], each[1:].max()) for each in gains]) / _spread(candidates, agent, tau)


def _ours_table(config: ExperimentConfig, top: Floats, m: int, family: str) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (rule, proposal, float(top[a, b, :, _LARGEST].max()), float(top[a, b, :, _PER_DRAW].max()))
        for b, rule in enumerate(config.payment_rules)
        for a, proposal in enumerate(config.proposals)
    ]
    return Table(
        title=f"Our payment rules: the largest gain from a lie, in spreads of the truth{_settings(config, m, family)}",
        columns=("payment rule", "proposal", "in expectation", "for one draw with the same noise"),
        rows=tuple(rows),
    )


def _theirs_table(config: ExperimentConfig, theirs: Floats, m: int, family: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for k, name in enumerate(rules_at(config.tau)):
        kinds = theirs[:, :, k, :-1, _MEAN].mean(axis=(0, 1))
        best, largest = theirs[:, :, k, -1, _MEAN], float(theirs[:, :, k, -1, _LARGEST].max())
        gains = kinds.max() > _ROUNDING
        rows.append((name, mean(best), largest, KINDS[int(np.argmax(kinds))] if gains else "none"))
    return Table(
        title=f"All rules: what the best lie gains, in spreads of the truth{_settings(config, m, family)}",
        columns=("rule", "mean over agents", "largest", "the kind that gains most"),
        rows=tuple(rows),
    )


def _kinds_table(config: ExperimentConfig, theirs: Floats, m: int, family: str) -> Table:
    names = list(rules_at(config.tau))
    shown = ("MOSAIC", "soft best of n, first price", "best of n, first price", "best of n, pay your bid")
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (kind, *(mean(theirs[:, :, names.index(name), k, _MEAN]) for name in shown)) for k, kind in enumerate(KINDS)
    )
    return Table(
        title=f"What each kind of lie gains in the mean, in spreads of the truth{_settings(config, m, family)}",
        columns=("lie", *shown),
        rows=rows,
    )


def _settings(config: ExperimentConfig, m: int, family: str) -> str:
    return f" ({family}, M = {m}, tau = {config.tau:g})"


def _figure(config: ExperimentConfig, theirs: Floats, m: int, family: str) -> Figure:
    names = tuple(rules_at(config.tau))
    gains = [mean(theirs[:, :, k, -1, _MEAN]) for k in range(len(names))]
    return Figure(
        name=f"misreports_{family}", title=f"What the best lie gains (M = {m}, {family})",
        x_label="gain in expectation (spreads of the truth)", y_label="",
        series=(Series(label="mean over agents", x=names, y=gains),), kind="bars",
    )  # fmt: skip


_NOTES = tuple(
    " ".join(note.split())
    for note in (
        """Amounts are in spreads of the agent's truth over the candidates (tau where it spans nothing). The other
        agents report the truth; under our rules it is a best report whatever they do.""",
        """largest_gain is the largest under our payment rules: in expectation, and under pivot for every draw with the
        same noise. Under the other three a lie may pay for a draw whose noise is known, so the last column is above 0
        there: keep the draw's seed secret until reports are in.""",
        """gain_under_first_price is the mean over agents and families of the best lie's gain under best of n with first
        price.""",
        """A rule whose gain is 0 among these lies is not thereby truthful: the lies are a search. Rules that are free,
        or ignore reports, gain a liar nothing where its report changes no reply.""",
    )
)

EXPERIMENTS = {
    "misreports": Experiment(
        claim="No lie gains under our payment rules, whatever the proposal; under the rules of others some do.",
        config=ExperimentConfig(experiment="misreports"),
        quick=QUICK,
        analyse=analyse,
    )
}
