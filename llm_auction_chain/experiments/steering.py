"""`steering`: how far one agent can move a reply and what that can cost it, beside what happened."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from llm_auction_chain.experiments.baselines import Candidates
from llm_auction_chain.experiments.config import QUICK, ExperimentConfig
from llm_auction_chain.experiments.pools import Pool
from llm_auction_chain.experiments.results import Cell, Figure, Findings, Series, Table, mean
from llm_auction_chain.experiments.strategic_agents import auction_size, auctions
from llm_auction_chain.experiments.study import Experiment, Study
from llm_auction_chain.mechanism import PaymentRule, settle
from llm_auction_chain.mechanism.payments import most_charged
from llm_auction_chain.receipts.figures import limits_of

__all__ = ["EXPERIMENTS"]

Floats = npt.NDArray[np.float64]
_DRAWS = 4  # of each auction
_SHOWN = 1e-3  # of its bound: figures leave out what is less
_NATS, _MOST_NATS, _PAID, _MOST_PAID, _SQUARE = range(5)


def analyse(study: Study[Pool]) -> Findings:
    """Return the bounds and what happened, by proposal and tau, and by payment rule for single draws."""
    config, m = study.config, auction_size(study.config)
    tables: list[Table] = []
    figures: list[Figure] = []
    largest = 0.0
    for family in config.families:
        measurements = {
            (proposal, tau): [[_of_pool(pool, proposal, family, tau, m) for pool in row] for row in study.units]
            for proposal in config.proposals
            for tau in config.taus
        }
        draws = study.values(partial(_of_draws, rules=config.payment_rules, family=family, tau=config.tau, m=m))
        tables += [_table(measurements, m, family), _draws_table(config, draws, m, family)]
        figures += _figures(config, measurements, family)
        shares = [_shares(agents).max() for rows in measurements.values() for row in rows for agents in row]
        largest = max(largest, *shares, draws[..., 1].max())
    return Findings(
        tables=tuple(tables), figures=tuple(figures), ratios={"largest_share_of_bound": float(largest)}, notes=_NOTES
    )


Measurements = Mapping[tuple[str, float], Sequence[Sequence[Floats]]]
"""By proposal and tau, for each question and seed: what `_of_auction` returns, for all auctions of the pool."""


def _of_pool(pool: Pool, proposal: str, family: str, tau: float, m: int) -> Floats:
    return np.concatenate([_of_auction(one, tau) for one in auctions(pool, proposal, m, family)])


def _of_auction(one: Candidates, tau: float) -> Floats:
    """Return each agent's steering and its bound, nats, and its expected payment and two bounds, money: (N, 5)."""
    settled = settle(one.rewards, one.log_weights, tau=tau, seed=0)
    spans = np.ptp(one.rewards, axis=1)
    limits = limits_of([(str(k), True, (0.0, span)) for k, span in enumerate(spans.tolist())], "expected", tau)
    bounds = np.array([(each.steering, each.expected) for each in limits], dtype=np.float64).T
    return np.column_stack([settled.steering, bounds[0], settled.expected_payments, bounds[1], spans**2 / (8.0 * tau)])


def _shares(measurements: Floats) -> Floats:
    """Return which shares of the bounds were reached: of steering, and of the expected payment, (K, 2)."""
    happened, bounds = measurements[:, [_NATS, _PAID]], measurements[:, [_MOST_NATS, _MOST_PAID]]
    return np.divide(happened, bounds, out=np.where(happened > 0.0, np.inf, 0.0), where=bounds > 0.0)


def _of_draws(pool: Pool, *, rules: Sequence[PaymentRule], family: str, tau: float, m: int) -> Floats:
    """Return the mean and the largest share that charges for one draw have of the most that a rule charges, (rules, 2).

    Candidates are draws of the reference.
    """
    shares: list[list[float]] = [[] for _ in rules]
    for one in auctions(pool, "reference", m, family):
        for k, rule in enumerate(rules):
            most = [most_charged(rule, span, tau) for span in np.ptp(one.rewards, axis=1).tolist()]
            for seed in range(_DRAWS):
                paid = settle(one.rewards, one.log_weights, tau=tau, payment_rule=rule, seed=seed).payments
                shares[k] += [amount / limit for amount, limit in zip(paid.tolist(), most, strict=True) if limit]
    return np.array([(np.mean(each), np.max(each)) if each else (0.0, 0.0) for each in shares])


def _table(measurements: Measurements, m: int, family: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for (proposal, tau), units in measurements.items():
        means = np.array([[agents.mean(axis=0) for agents in row] for row in units])
        shares = np.array([[_shares(agents).mean(axis=0) for agents in row] for row in units])
        largest = np.max([_shares(agents).max(axis=0) for row in units for agents in row], axis=0)
        nats, most_nats, paid, most_paid, square = (mean(means[..., k]) for k in range(5))
        rows.append(
            (
                proposal, tau, nats, most_nats, mean(shares[..., 0]), float(largest[0]), paid, most_paid, square,
                mean(shares[..., 1]), float(largest[1]),
            )
        )  # fmt: skip
    return Table(
        title=f"One agent's influence and its bounds (M = {m}, {family})",
        columns=(
            "proposal", "tau", "largest |log p - log p without it| (nats)", "bound s / tau", "share of it",
            "largest share", "expected payment (money)", "bound (money)", "s^2 / (8 tau)", "share of the bound",
            "largest share of it",
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _draws_table(config: ExperimentConfig, draws: Floats, m: int, family: str) -> Table:
    rows = [
        (rule, mean(draws[:, :, k, 0]), float(draws[:, :, k, 1].max())) for k, rule in enumerate(config.payment_rules)
    ]
    return Table(
        title=f"Charges for one draw over the most possible, tau = {config.tau:g} (M = {m}, {family}, reference)",
        columns=("payment rule", "share in the mean", "largest share"),
        rows=tuple(rows),
    )


def _figures(config: ExperimentConfig, measurements: Measurements, family: str) -> list[Figure]:
    def figure(name: str, title: str, unit: str, happened: int, bound: int) -> Figure:
        series = []
        for tau in config.taus:
            points = np.concatenate(
                [agents for proposal in config.proposals for row in measurements[proposal, tau] for agents in row]
            )
            points = points[points[:, happened] > _SHOWN * points[:, bound]]
            if len(points):
                x, y = points[:, bound].tolist(), points[:, happened].tolist()
                series.append(Series(label=f"tau = {tau:g}", x=x, y=y))
        return Figure(
            name=f"steering_{family}_{name}", title=f"{title} ({family})", x_label=f"bound ({unit})",
            y_label=f"what happened ({unit})", series=tuple(series), kind="points", x_log=True, y_log=True,
            diagonal=True,
        )  # fmt: skip

    figures = (
        figure("probabilities", "No agent moves a reply by more than e^(s/tau)", "nats", _NATS, _MOST_NATS),
        figure("payments", "No agent pays more than its bound in expectation", "money", _PAID, _MOST_PAID),
    )
    return [each for each in figures if each.series]


_NOTES = tuple(
    " ".join(note.split())
    for note in (
        """s is what an agent's report spans over the candidates: the tightest bound. Receipts state the bound for what
        its cap allows, which is known before any report, and is wider. The figures leave out what is below a thousandth
        of its bound.""",
        """No reply becomes likelier or less likely by a factor beyond e^(s/tau). The bound of the expected payment is
        tau * (u - 1 - log u) with u = (s/tau) / (1 - e^(-s/tau)), at most s^2 / (8 tau) and at most s.""",
        """largest_share_of_bound is the largest of all, of steering, of expected payments, and of charges for single
        draws over what a payment rule can charge at most. Above 1 it would refute a bound.""",
        """The bounds hold for any model and any candidates. How much of them is used depends on both: the shares here
        are those of this model and these rewards.""",
    )
)

EXPERIMENTS = {
    "steering": Experiment(
        claim="How far an agent moves a reply, and what it pays for that, stays within bounds known beforehand.",
        config=ExperimentConfig(experiment="steering"),
        quick=QUICK,
        analyse=analyse,
    )
}
