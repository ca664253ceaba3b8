"""The figures of an auction, recomputed from a receipt or a view, and how far rounding may move them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.mechanism import settle
from llm_auction_chain.mechanism.allocation import FloatArray, draw, log_softmax
from llm_auction_chain.mechanism.payments import (
    PaymentRule,
    charge,
    leave_one_out,
    most_charged,
    owner_shares,
    span_within,
)
from llm_auction_chain.mechanism.settlement import sum_by
from llm_auction_chain.receipts.records import AgentView, Bid, Receipt

RELATIVE = 1e-9  # relative tolerance of amounts
_EPS = 2.0**-52
_WIDE = 512.0  # reports of more tau may overflow exp: settle then sums over the other agents, with their digits


@dataclass(frozen=True, kw_only=True, eq=False)
class Figures:
    """What follows from the reports, weights, terms and seed of a receipt: fields of `Settlement` by their names."""

    log_probabilities: FloatArray  # (M,), nats
    noise: FloatArray  # (M,), the Gumbel noise of the draw
    winner: int
    contributions: FloatArray
    expected_payments: FloatArray
    payments: FloatArray
    steering: FloatArray  # nats, of the agent's owner


@dataclass(frozen=True, kw_only=True)
class Margin:
    """How far the stated amounts of one owner may be off, money. Other owners' reports matter only through log p."""

    agents: Sequence[int]  # positions of the owner's agents
    spread: float  # `max_j - min_j` of the sum of their reports: an upper bound of the payment under every rule
    contribution: float  # tolerance of each agent's contribution
    expected: float  # tolerance of the owner's expected payment
    payment: float  # tolerance of the owner's payment for this draw
    steering: float  # tolerance of the owner's steering, nats


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an owner cannot exceed, whatever its agents report within their bounds; None without bounds."""

    steering: float | None  # of `|log p_j - log p_-i,j|`, nats
    expected: float | None  # of the expected payment, money


def limits_of(
    agents: Iterable[tuple[str, bool, Sequence[float] | None]], rule: PaymentRule, tau: float
) -> list[Limits]:
    """Return the limits of each agent's owner, from public numbers alone: they are proven before any report is made.

    Args:
        agents: each one's owner, whether it pays, and the bounds of its report, money.
        rule: the payment rule.
        tau: above 0.

    >>> limits_of([("A", True, (0.0, 1.0)), ("A", True, (-1.0, 0.0)), ("B", True, None)], "expected", 1.0)[1:]
    [Limits(steering=2.0, expected=0.4744...), Limits(steering=None, expected=None)]
    """
    agents, spans = list(agents), dict[str, float]()
    for owner, pays, bounds in agents:
        span = math.inf if bounds is None else span_within(bounds[0], bounds[1], rule, pays=pays)
        spans[owner] = spans.get(owner, 0.0) + span
    limits = []
    for owner, pays, _ in agents:
        most = most_charged("expected", spans[owner], tau) if pays else 0.0
        limits.append(Limits(steering=_finite(spans[owner] / tau), expected=_finite(most)))
    return limits


def _finite(number: float) -> float | None:
    return number if number < math.inf else None


def figures_of(record: Receipt | AgentView) -> Figures:
    """Recompute the figures of a receipt or a view; an error says why no auction can have its terms or reports."""
    with np.errstate(all="ignore"):
        return _figures_of_view(record) if isinstance(record, AgentView) else _figures_of_receipt(record)


def _figures_of_receipt(receipt: Receipt) -> Figures:
    weights = zip(_nats(receipt.log_weights), receipt.candidates, strict=True)
    merged = [weight + math.log(candidate.draws) for weight, candidate in weights]
    settlement = settle(
        _matrix(receipt.agents, len(merged)),
        merged,
        tau=receipt.tau,
        payment_rule=receipt.payment_rule,
        owners=[bid.owner for bid in receipt.agents],
        pays=[bid.pays for bid in receipt.agents],
        seed=int(receipt.draw_seed),
    )
    return Figures(**{field.name: getattr(settlement, field.name) for field in fields(Figures)})


def _figures_of_view(view: AgentView) -> Figures:
    """Divide the owner's reports out of p: the weights `log p - sum of own reports / tau` contain all other agents.

    The draw uses log p itself: where reports are many tau, these weights lack the digits that decide it.
    """
    stated = np.array(_nats(view.log_probabilities))
    possible = np.flatnonzero(stated > -np.inf)
    if not possible.size:
        raise ConfigurationError("No candidate can be drawn.")
    log_p = stated.copy()
    log_p[possible] = log_softmax(stated[possible])
    winner, noise = draw(log_p, np.random.default_rng(int(view.draw_seed)))
    own = _matrix(view.agents, len(stated))[:, possible]
    scores, tau, p = log_p[possible], view.tau, np.exp(log_p[possible])
    mode, groups = int(np.argmax(scores)), np.zeros(len(own), dtype=np.int64)
    paying = sum_by(groups, own - own[:, mode, None])
    without = leave_one_out(paying, _weights_of_others(paying, scores, tau), tau, scores)
    shares = owner_shares(groups, np.ptp(own, axis=1))
    expected, payments = without.expected * shares, np.zeros(len(own))
    contributions = np.einsum("ij,j->i", own, p) - expected
    if not view.agents[0].pays:
        expected = payments
    else:
        payments = shares * charge(
            view.payment_rule,
            sum_by(groups, own) if view.payment_rule == "proportional" else paying,
            p=p,
            scores=scores,
            noise=noise[possible],
            winner=int(np.searchsorted(possible, winner)),
            tau=tau,
            mode=mode,
            without=without,
        )
    return Figures(
        log_probabilities=log_p, noise=noise, winner=winner, contributions=contributions, expected_payments=expected,
        payments=payments, steering=np.repeat(without.steering, len(own)),
    )  # fmt: skip


def margins_of(record: Receipt | AgentView, figures: Figures) -> list[Margin]:
    """Return the margin of each owner: as far as rounding on another processor can move its amounts."""
    possible = np.flatnonzero(figures.log_probabilities > -np.inf)
    reports = _matrix(record.agents, len(figures.log_probabilities))[:, possible]
    log_p, noise = figures.log_probabilities[possible], figures.noise[possible]
    winner = int(np.searchsorted(possible, figures.winner))
    owners: dict[str, list[int]] = {}
    for k, bid in enumerate(record.agents):
        owners.setdefault(bid.owner, []).append(k)
    with np.errstate(all="ignore"):
        return [_margin(record, agents, reports[agents], log_p, noise, winner) for agents in owners.values()]


def _margin(
    record: Receipt | AgentView, agents: list[int], own: FloatArray, log_p: FloatArray, noise: FloatArray, winner: int
) -> Margin:
    tau, total = record.tau, (own - own[:, np.argmax(log_p), None]).sum(axis=0)
    spread = float(np.ptp(total))
    rounding = expected = payment = float(_rounding(np.array(spread), log_p, tau))
    each = float(_rounding(np.ptp(own, axis=1), log_p, tau).sum())
    if record.payment_rule == "pivot":
        payment += _pivot_rounding(total, log_p, noise, winner, tau)
    pays = record.agents[agents[0]].pays
    return Margin(
        agents=agents,
        spread=spread,
        contribution=each + expected + 1e-12 * float(np.abs(own).max()),
        expected=expected if pays else 0.0,
        payment=payment if pays else 0.0,
        steering=rounding / tau,
    )


def _rounding(spreads: FloatArray, log_p: FloatArray, tau: float) -> FloatArray:
    """Return how far rounding can move the payments for reports of these spreads: at most by the whole spread."""
    rounding = spreads * (RELATIVE * np.minimum(1.0, spreads / tau) + 16 * _EPS)
    rounding += np.where(spreads > _WIDE * tau, 4 * _EPS * tau * np.abs(log_p).max(), 0.0)
    return np.minimum(rounding, spreads)


def _pivot_rounding(report: FloatArray, log_p: FloatArray, noise: FloatArray, winner: int, tau: float) -> float:
    """Return how far rounding of log p and noise can move a pivot payment: 0 unless two candidates nearly tie."""
    lost = report[winner] - report
    gap = tau * ((log_p - log_p[winner]) + (noise - noise[winner]))
    error = 8 * _EPS * tau * (np.abs(log_p) + np.abs(noise) + abs(log_p[winner]) + abs(noise[winner]))
    error[winner] = 0.0
    least, most = (float(np.clip((lost + gap + each).max(), 0.0, lost.max())) for each in (-error, error))
    return most - least


def _weights_of_others(own: FloatArray, log_p: FloatArray, tau: float) -> FloatArray:
    weights = log_p - own.sum(axis=0) / tau
    return np.asarray(weights - weights.max())


def _nats(values: Sequence[float | None]) -> list[float]:
    return [-math.inf if value is None else value for value in values]


def _matrix(bids: Sequence[Bid], m: int) -> FloatArray:
    """Return the reports, (N, M)."""
    return np.array([bid.report for bid in bids], dtype=np.float64).reshape(len(bids), m)
