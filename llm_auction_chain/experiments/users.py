"""`users`: what the user of a sponsored reply loses or gains, and how much of it a tau buys."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_auction_chain.candidates.proposals import stratify
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.experiments.baselines import Candidates, Outcome, kl_to_reference
from llm_auction_chain.experiments.config import QUICK, ExperimentConfig
from llm_auction_chain.experiments.pools import RUBRICS, Pool
from llm_auction_chain.experiments.results import Estimate, Figure, Findings, Series, Table, mean
from llm_auction_chain.experiments.study import Experiment, Study
from llm_auction_chain.mechanism.allocation import log_softmax
from llm_auction_chain.validators import choice, number

__all__ = ["EXPERIMENTS", "TauPoint", "choose_tau", "frontier"]

Floats = npt.NDArray[np.float64]
_DEALS = 256  # times that the draws of a pool are dealt to auctions
_BUDGET = 1.0  # nats, of the ratios
_TAU = "tau (money per nat)"
_LOSS = "KL to the reference (nats)"
_WELFARE = "welfare (money)"
_LIKELY, _RELEVANT = "log pi_ref(reply) (nats)", "relevance (cosine)"
_MEASURES = (_LOSS, _WELFARE, _LIKELY, "length (tokens)", "distinct-2", _RELEVANT, *RUBRICS)
_ALWAYS = 2  # of them, which every model has


@dataclass(frozen=True, kw_only=True)
class TauPoint:
    """One point of the frontier between the user and the sponsors.

    Attributes:
        tau: weight of the reference, money per nat.
        loss: KL of the returned reply's distribution to the reference's, nats.
        welfare: what the reply is worth to all sponsors together, money.
    """

    tau: float
    loss: Estimate
    welfare: Estimate


def frontier(study: Study[Pool], *, proposal: str | None = None, family: str | None = None) -> tuple[TauPoint, ...]:
    """Return the user's loss and the sponsors' welfare at each of the study's taus, from the smallest.

    Args:
        study: of any experiment that measures pools.
        proposal: what candidates are drawn from; None is the default, or the first of the study.
        family: of the rewards; None is the first of the study.

    Raises:
        ConfigurationError: the study has no such proposal or family.
    """
    config = study.config
    proposal = config.main_proposal if proposal is None else choice("proposal", proposal, config.proposals)
    family = config.families[0] if family is None else choice("family", family, config.families)
    taus = sorted(config.taus)
    values = study.values(lambda pool: _measures(pool, proposal, family, _size(config), taus)[:, :_ALWAYS])
    return tuple(
        TauPoint(tau=tau, loss=mean(values[..., k, 0]), welfare=mean(values[..., k, 1])) for k, tau in enumerate(taus)
    )


def choose_tau(
    source: Study[Pool] | Sequence[TauPoint], budget: float, *, proposal: str | None = None, family: str | None = None
) -> TauPoint:
    """Return the smallest tau at which, and above which, users lose at most a budget.

    The upper end of the interval of the loss counts, so the choice gets less careful as more is measured. Only the taus
    of the source are looked at.

    Args:
        source: a study that measured pools, or points of `frontier`.
        budget: the most KL to the reference, nats, at least 0.
        proposal: as for `frontier`.
        family: as for `frontier`.

    Raises:
        ConfigurationError: no tau keeps within the budget, or a loss has no interval.

    >>> point = lambda tau, low, high: TauPoint(
    ...     tau=tau, loss=Estimate(value=(low + high) / 2, low=low, high=high), welfare=Estimate(value=1 / tau)
    ... )
    >>> choose_tau([point(1.0, 0.8, 1.2), point(2.0, 0.3, 0.5), point(4.0, 0.1, 0.2)], budget=1.0).tau
    2.0
    """
    number("budget", budget, least=0)
    points = frontier(source, proposal=proposal, family=family) if isinstance(source, Study) else source
    points = sorted(points, key=lambda point: -point.tau)
    if not points:
        raise ConfigurationError("choose_tau needs at least one point.")
    if any(math.isnan(point.loss.high) for point in points):
        raise ConfigurationError("A loss has no interval. Measure more than one question or seed.")
    chosen = None
    for point in points:
        if point.loss.high > budget:
            break
        chosen = point
    if chosen is None:
        largest = points[0]
        raise ConfigurationError(
            f"No tau keeps the user's loss within {budget:g} nats: at the largest, {largest.tau:g}, it is "
            f"{largest.loss} nats. Add larger ones to `taus`, or raise the budget."
        )
    return chosen


def analyse(study: Study[Pool]) -> Findings:
    """Return what users get with and without auction, against tau, and the frontier."""
    config = study.config
    size, taus = _size(config), [*sorted(config.taus), math.inf]
    tables: list[Table] = []
    figures: list[Figure] = []
    shown: list[int] = []
    for family in config.families:
        values = {
            name: study.values(lambda pool, name=name, family=family: _measures(pool, name, family, size, taus))  # type: ignore[misc]
            for name in config.proposals
        }
        shown = [k for k in range(len(_MEASURES)) if all(np.isfinite(each[..., k]).all() for each in values.values())]
        tables += [
            _levels(values, taus, shown, family, size),
            _changes(values[config.main_proposal], taus, shown, family),
        ]
        figures += _figures(values, taus, shown, family)
    first = config.families[0]
    tau, gain, sentence = _at_budget(study, first)
    missing = [_MEASURES[k] for k in range(len(_MEASURES)) if k not in shown]
    draws = min(len(_union(pool, "reference", first, size)[0]) for row in study.units for pool in row)
    notes = [
        f"tau = inf is the same auction without reports: what users get without sponsors. M = {size}.",
        "Under proposals that know the sponsors its reply is near the reference only as M grows, so it has a KL, too.",
        f"Numbers are means over auctions that are dealt from the same {draws} or more draws of a question and seed.",
        f"The KL is estimated from them: it errs upwards, for the reference's draws up to {math.log(draws):.2f} nats.",
        "KL and log-probability say how far the reply is from the model's own; they do not say whether a user minds.",
        sentence,
    ]
    if missing:
        notes.append(f"Not measured here: {', '.join(missing)}. Relevance needs embeddings, grades need a judge.")
    return Findings(
        tables=tuple(tables),
        figures=tuple(figures),
        ratios={"tau_for_1_nat": tau, "welfare_at_1_nat_vs_no_auction": gain},
        notes=tuple(notes),
    )


def _size(config: ExperimentConfig) -> int:
    """Return M: the largest that leaves draws for two auctions, so that the KL errs less."""
    return max((m for m in config.n_candidates if 2 * m <= config.draws), default=min(config.n_candidates))


def _union(pool: Pool, proposal: str, family: str, m: int) -> tuple[npt.NDArray[np.int64], Candidates]:
    """Return the draws of all auctions that a pool has draws for, and their places: a set of the same proposal."""
    places, sets = zip(*pool.sets(proposal, m, family), strict=True)
    names = ("log_weights", "rewards", "log_reference", "sources")
    joined: dict[str, Any] = {name: np.concatenate([getattr(one, name) for one in sets], axis=-1) for name in names}
    return np.concatenate(places), Candidates(**joined)


def _measures(pool: Pool, proposal: str, family: str, m: int, taus: Sequence[float]) -> Floats:
    """Return `_MEASURES` of the returned reply (T, K), each its mean over auctions; nan for what is unknown."""
    places, candidates = _union(pool, proposal, family, m)
    laws = _laws(candidates, pool.sources[places], stratify(pool.shares[proposal].tolist(), m), taus)
    unknown = np.full(len(pool.texts), math.nan)
    of_draws = np.array(
        [
            pool.rewards[family].sum(axis=0),
            np.where(np.isneginf(pool.log_probs[0]), 0.0, pool.log_probs[0]),  # never returned
            pool.tokens,
            [distinctness(text) for text in pool.texts],
            pool.relevance,
            *(pool.grades.get(name, unknown) for name in RUBRICS),
        ]
    )
    paid = np.zeros_like(candidates.rewards)
    loss = [kl_to_reference(Outcome(probabilities=law, payments=paid), candidates) for law in laws]
    return np.column_stack([loss, laws @ of_draws[:, places].T])


def _laws(
    candidates: Candidates, conditions: npt.NDArray[np.int64], wanted: Sequence[int], taus: Sequence[float]
) -> Floats:
    """Return the distribution of the returned reply (T, R), the mean over auctions among random parts of the draws.

    Every deal divides all draws among auctions, so each draw takes part equally often.
    """
    rng = np.random.default_rng(0)
    auctions = len(conditions) // sum(wanted)
    parts = [
        rng.permuted(np.tile(np.flatnonzero(conditions == c), (_DEALS, 1)), axis=1).reshape(_DEALS * auctions, count)
        for c, count in enumerate(wanted)
        if count
    ]
    dealt = np.concatenate(parts, axis=1)
    total = candidates.rewards.sum(axis=0)
    laws = []
    for tau in taus:
        p = np.exp(log_softmax(candidates.log_weights[dealt] + total[dealt] / tau))
        laws.append(np.bincount(dealt.ravel(), p.ravel(), len(conditions)) / len(dealt))
    return np.array(laws)


def distinctness(text: str) -> float:
    """Return distinct-2: different pairs of neighbouring words over all such pairs; 1 where there is none.

    Source: Li et al., arXiv 1510.03055.

    >>> distinctness("the cat, the cat")
    0.6666666666666666
    """
    pairs = list(pairwise(re.findall(r"\w+", text.lower())))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def _levels(values: dict[str, Floats], taus: Sequence[float], shown: Sequence[int], family: str, size: int) -> Table:
    return Table(
        title=f"What users get: {family}, M = {size}",
        columns=("proposal", _TAU, *(_MEASURES[k] for k in shown)),
        rows=tuple(
            (name, tau, *(mean(each[..., t, k]) for k in shown))
            for name, each in values.items()
            for t, tau in enumerate(taus)
        ),
    )


def _changes(values: Floats, taus: Sequence[float], shown: Sequence[int], family: str) -> Table:
    kept = [k for k in shown if k != 0]
    changes = values - values[..., -1:, :]
    return Table(
        title=f"Change by the auction, of the same draws: {family}, default proposal",
        columns=(_TAU, *(_MEASURES[k] for k in kept)),
        rows=tuple((tau, *(mean(changes[..., t, k]) for k in kept)) for t, tau in enumerate(taus[:-1])),
    )


def _figures(values: dict[str, Floats], taus: Sequence[float], shown: Sequence[int], family: str) -> list[Figure]:
    finite = tuple(taus[:-1])

    def against_tau(k: int) -> tuple[Series, ...]:
        return tuple(
            Series(label=name, x=finite, y=[mean(each[..., t, k]) for t in range(len(finite))])
            for name, each in values.items()
        )

    losses, worths = against_tau(0), against_tau(1)
    sentences = [
        Figure(
            name=f"users_{family}_loss", title=f"A larger tau keeps the reply near the model's own ({family})",
            x_label=_TAU, y_label=_LOSS, series=losses, x_log=True,
        ),
        Figure(
            name=f"users_{family}_frontier", title=f"What sponsors gain for what users lose ({family})",
            x_label=_LOSS, y_label=_WELFARE,
            series=tuple(
                Series(label=loss.label, x=[_value(y) for y in loss.y], y=worth.y)
                for loss, worth in zip(losses, worths, strict=True)
            ),
        ),
    ]  # fmt: skip
    graded = [k for k, name in enumerate(_MEASURES) if k in shown and (name == _RELEVANT or name in RUBRICS)]
    return sentences + [
        Figure(
            name=f"users_{family}_{_MEASURES[k].split()[0]}", title=f"{_MEASURES[k]} against tau ({family})",
            x_label=_TAU, y_label=_MEASURES[k], series=against_tau(k), x_log=True,
        )
        for k in graded
    ]  # fmt: skip


def _value(y: float | Estimate) -> float:
    return y.value if isinstance(y, Estimate) else y


def _at_budget(study: Study[Pool], family: str) -> tuple[float, float, str]:
    """Return the tau for a loss of one nat, its welfare over that without auction, and a sentence."""
    name = study.config.main_proposal
    try:
        point = choose_tau(study, _BUDGET, proposal=name, family=family)
    except ConfigurationError as error:
        return math.nan, math.nan, str(error)
    size = _size(study.config)
    without = study.mean(lambda pool: float(_measures(pool, name, family, size, [math.inf])[0, 1])).value
    gain = point.welfare.value / without if without > 0 else math.nan
    return point.tau, gain, (
        f"The ratios are of the proposal {name!r}, {family}: at tau = {point.tau:g} users lose {point.loss} nats, and "
        f"sponsors get {point.welfare}, without auction {without:.3g}."
    )  # fmt: skip


EXPERIMENTS = {
    "users": Experiment(
        claim="Users stay served: tau bounds how far the reply moves from the model's own.",
        config=ExperimentConfig(
            experiment="users", n_candidates=(16,), taus=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
        ),
        quick={**QUICK, "n_candidates": (4,)},
        analyse=analyse,
    )
}
