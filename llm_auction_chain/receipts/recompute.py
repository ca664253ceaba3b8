"""The figures of an auction, computed again: from a receipt, or from what an agent's view shows of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.mechanism import settle
from llm_auction_chain.mechanism.allocation import FloatArray, draw, log_softmax
from llm_auction_chain.mechanism.payments import charge, leave_one_out, owner_shares
from llm_auction_chain.receipts.fields import Bid
from llm_auction_chain.receipts.records import AgentView, Receipt

__all__ = ["Figures", "alone_of", "figures_of", "matrix_of", "nats_of"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Figures:
    """What follows from a receipt's reports, weights, terms and seed.

    Attributes:
        log_probabilities: (M,), log p, nats.
        noise: (M,), the Gumbel noise of the draw.
        winner: index of the drawn candidate.
        contributions: of each of the receipt's agents, money.
        expected: of each, money.
        payments: of each, money.
    """

    log_probabilities: FloatArray
    noise: FloatArray
    winner: int
    contributions: FloatArray
    expected: FloatArray
    payments: FloatArray


def figures_of(read: Receipt | AgentView) -> Figures:
    """Return the figures, computed again.

    Raises:
        AuctionError: no auction is held on such terms, or with such reports.
        ValueError: lists differ in length.
        ArithmeticError: a figure is beyond all bounds.
    """
    with np.errstate(all="ignore"):
        return _of_view(read) if isinstance(read, AgentView) else _of_receipt(read)


def _of_receipt(read: Receipt) -> Figures:
    draws = [candidate.draws for candidate in read.candidates]
    merged = [weight + math.log(n) for weight, n in zip(nats_of(read.log_weights), draws, strict=True)]
    settled = settle(
        matrix_of(read.agents, len(draws)),
        merged,
        tau=read.tau,
        payment_rule=read.payment_rule,
        owners=[bid.owner for bid in read.agents],
        pays=[bid.pays for bid in read.agents],
        draws=draws,
        seed=int(read.draw_seed),
    )
    return Figures(
        log_probabilities=settled.log_probabilities,
        noise=settled.noise,
        winner=settled.winner,
        contributions=settled.contributions,
        expected=settled.expected_payments,
        payments=settled.payments,
    )


def _of_view(read: AgentView) -> Figures:
    """Divide the own reports out of p: all that others did is in the weights `log p - sum of own reports / tau`.

    The draw is taken from log p itself: where reports are many tau, the weights lose the digits that decide it.
    """
    stated = np.array(nats_of(read.log_probabilities))
    alive = np.flatnonzero(stated > -np.inf)
    if not alive.size:
        raise ConfigurationError("no candidate can be drawn")
    log_p = stated.copy()
    log_p[alive] = log_softmax(stated[alive])
    winner, noise = draw(log_p, np.random.default_rng(int(read.draw_seed)))
    own = matrix_of(read.agents, len(stated))[:, alive]
    together, law, tau = own.sum(axis=0, keepdims=True), log_p[alive], read.tau
    without = leave_one_out(together, _others(own, law, tau), tau, law)
    groups = np.zeros(len(own), dtype=np.int64)
    shares = owner_shares(groups, alone_of(own, law, tau), np.ptp(own, axis=1), tau)
    expected, payments = without.expected * shares, np.zeros(len(own))
    contributions = np.einsum("ij,j->i", own, np.exp(law)) - expected
    if not read.agents[0].pays:
        expected = payments
    else:
        at = int(np.searchsorted(alive, winner))
        mode = int(np.argmax(law))
        payments = shares * charge(
            read.payment_rule, together, scores=law, noise=noise[alive], winner=at, tau=tau, mode=mode, without=without
        )
    return Figures(
        log_probabilities=log_p,
        noise=noise,
        winner=winner,
        contributions=contributions,
        expected=expected,
        payments=payments,
    )


def alone_of(own: FloatArray, law: FloatArray, tau: float) -> FloatArray:
    """Return what each of one owner's agents would pay as its own owner, money, from the law with everybody.

    Args:
        own: (N, M), their reports of what can be drawn.
        law: (M,), log p, finite.
        tau: above 0.
    """
    return leave_one_out(own, _others(own, law, tau), tau, law).expected


def _others(own: FloatArray, law: FloatArray, tau: float) -> FloatArray:
    weights = law - own.sum(axis=0) / tau
    return np.asarray(weights - weights.max())


def nats_of(values: Sequence[float | None]) -> list[float]:
    """Return log-probabilities or log-weights, `-inf` for null."""
    return [-math.inf if value is None else value for value in values]


def matrix_of(bids: Sequence[Bid], m: int) -> FloatArray:
    """Return the reports, (N, M)."""
    return np.array([bid.report for bid in bids], dtype=np.float64).reshape(len(bids), m)
