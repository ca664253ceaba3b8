"""`convergence`: how soon replies follow the optimally fine-tuned model, and which proposal gets there first."""

from collections.abc import Callable
from functools import partial
from operator import attrgetter

import numpy as np

from llm_auction_chain.candidates.proposals import log_weights, stratify
from llm_auction_chain.experiments.config import QUICK, ExperimentConfig
from llm_auction_chain.experiments.exact import ExactBed, Point
from llm_auction_chain.experiments.pools import Pool
from llm_auction_chain.experiments.results import Figure, Findings, Series, Table, mean
from llm_auction_chain.experiments.study import Experiment, Study
from llm_auction_chain.mechanism import settle

__all__ = ["EXPERIMENTS"]

_SIZES = (1, 2, 4, 8, 16, 32, 64)
_SHARES = {"reference": (1.0, 0.0), "context prompt": (0.0, 1.0), "mixture, 1/4 + 3/4": (0.25, 0.75)}
_AT = 16  # M of the ratios
_AUCTIONS = 4000
_M = "candidates M"


def analyse(study: Study[Pool]) -> Findings:
    """Return the curves of the solvable bed and of the model, against M."""
    bed = ExactBed.make()
    curves = {
        name: {m: _simulate(bed, shares, m, seed=1000 * k + m) for m in _SIZES}
        for k, (name, shares) in enumerate(_SHARES.items())
    }
    at = {name: curve[_AT].distance for name, curve in curves.items()}
    parts = [_of_family(study, family) for family in study.config.families]
    broken = sum(point.slack[0] + 3 * point.slack[1] < 0 for curve in curves.values() for point in curve.values())
    return Findings(
        tables=(_exact_table(bed, curves), *(table for table, _ in parts)),
        figures=(*_exact_figures(bed, curves), *(figure for _, figures in parts for figure in figures)),
        ratios={
            "mixture_vs_context": at["mixture, 1/4 + 3/4"] / at["context prompt"],
            "mixture_vs_reference": at["mixture, 1/4 + 3/4"] / at["reference"],
        },
        notes=(
            f"The ratios are of the total variation to pi* on the solvable bed, M = {_AT}.",
            f"KL <= (J* - E[G_M]) / tau fails by three standard errors in {broken} of {len(_SHARES) * len(_SIZES)}.",
        ),
    )


def _simulate(bed: ExactBed, shares: tuple[float, float], m: int, *, seed: int) -> Point:
    return bed.simulate(stratify(shares, m), auctions=_AUCTIONS, seed=seed)


def _exact_table(bed: ExactBed, curves: dict[str, dict[int, Point]]) -> Table:
    rows: list[tuple[str | int | float, ...]] = [
        (name, m, p.distance, p.noise, p.log_probability, p.welfare, p.gap, p.divergence, p.ess)
        for name, curve in curves.items()
        for m, p in curve.items()
    ]
    optimum = (bed.under_optimum(bed.log_optimum), bed.under_optimum(bed.total))
    rows.append(("fine-tuned optimum", "", 0.0, "", *optimum, 0.0, 0.0, ""))
    return Table(
        title=f"Solvable bed: {_AUCTIONS} auctions each, total variation and KL of the reward vector's distribution",
        columns=(
            "proposal", "M", "TV to pi*", "noise of TV", "log pi*(reply) (nats)", "welfare (money)",
            "(J* - E[G]) / tau (nats)", "KL (nats)", "ESS of weights",
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _exact_figures(bed: ExactBed, curves: dict[str, dict[int, Point]]) -> tuple[Figure, ...]:
    def lines(value: Callable[[Point], float]) -> tuple[Series, ...]:
        return tuple(
            Series(label=name, x=tuple(curve), y=tuple(map(value, curve.values()))) for name, curve in curves.items()
        )

    optimum = bed.under_optimum(bed.log_optimum)
    goal = Series(label="fine-tuned optimum", x=_SIZES, y=(optimum,) * len(_SIZES))
    return (
        Figure(
            name="convergence_distance", title="Replies approach the fine-tuned optimum (solvable bed)", x_label=_M,
            y_label="total variation to pi*", series=lines(attrgetter("distance")), x_log=True, y_log=True,
        ),
        Figure(
            name="convergence_exact", title="The reply under the optimal policy (solvable bed)", x_label=_M,
            y_label="mean log pi*(reply) (nats)", series=(*lines(attrgetter("log_probability")), goal), x_log=True,
        ),
    )  # fmt: skip


def _of_family(study: Study[Pool], family: str) -> tuple[Table, tuple[Figure, ...]]:
    """Return the log-normaliser and the returned reply's log-probability on the model, by proposal and M."""
    tau, sizes = study.config.tau, [m for m in study.config.n_candidates if m <= study.config.draws]
    rows, lines = [], []
    for name in study.config.proposals:
        measured = [study.values(partial(_statistics, proposal=name, m=m, family=family, tau=tau)) for m in sizes]
        estimates = [[mean(values[..., k]) for values in measured] for k in range(3)]
        rows += [(name, m, *figures) for m, *figures in zip(sizes, *estimates, strict=True)]
        lines.append([Series(label=name, x=sizes, y=each) for each in estimates])
    best = study.mean(lambda pool: _best(pool, family, tau))
    goal = Series(label="estimate of J* / tau", x=sizes, y=[best] * len(sizes))
    table = Table(
        title=f"The model's replies: {family}, tau = {tau:g}; J* / tau is about {best}",
        columns=("proposal", "M", "E[G_M] / tau (nats)", "log pi*(reply) (nats)", "ESS of weights"),
        rows=tuple(rows),
    )
    return table, (
        Figure(
            name=f"convergence_{family}_normaliser", title=f"E[G_M] rises to J* ({family}, tau = {tau:g})",
            x_label=_M, y_label="E[G_M] / tau (nats)", series=(*(line[0] for line in lines), goal), x_log=True,
        ),
        Figure(
            name=f"convergence_{family}", title=f"The reply under the optimal policy ({family})",
            x_label=_M, y_label="mean log pi*(reply) (nats)", series=tuple(line[1] for line in lines), x_log=True,
        ),
    )  # fmt: skip


def _statistics(pool: Pool, *, proposal: str, m: int, family: str, tau: float) -> tuple[float, float, float]:
    """Return E[G_M] / tau, the mean log pi* of the returned reply and the mean ESS, over the auctions of a pool."""
    best, statistics = _best(pool, family, tau), []
    for _, candidates in pool.sets(proposal, m, family):
        settled = settle(candidates.rewards, candidates.log_weights, tau=tau, seed=0)
        likely = candidates.log_reference + candidates.rewards.sum(axis=0) / tau - best
        diagnostics = settled.diagnostics
        statistics.append((diagnostics.log_normaliser / tau, settled.probabilities @ likely, diagnostics.ess_weights))
    normaliser, chance, ess = np.mean(statistics, axis=0)
    return float(normaliser), float(chance), float(ess)


def _best(pool: Pool, family: str, tau: float) -> float:
    """Return an estimate of J* / tau from all draws of a pool; its mean is at most J* / tau."""
    known = not np.isnan(pool.log_probs).any()
    rewards = pool.rewards[family] if known else pool.rewards[family][:, pool.sources == 0]
    weights = log_weights(pool.log_probs, pool.counts) if known else None
    return settle(rewards, weights, tau=tau, seed=0).diagnostics.log_normaliser / tau


EXPERIMENTS = {
    "convergence": Experiment(
        claim="Replies approach the optimally fine-tuned model as M grows, sooner where proposals know the agents.",
        config=ExperimentConfig(experiment="convergence"),
        quick=QUICK,
        analyse=analyse,
    )
}
