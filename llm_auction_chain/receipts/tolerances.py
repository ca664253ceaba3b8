"""How far amounts may lie from those computed again: no further than rounding takes them on another processor."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_auction_chain.mechanism.allocation import FloatArray
from llm_auction_chain.receipts.recompute import Figures, alone_of, matrix_of
from llm_auction_chain.receipts.records import AgentView, Receipt

__all__ = ["RELATIVE", "Margin", "margins_of"]

RELATIVE = 1e-9
_EPS = 2.0**-52
_WIDE = 512.0  # exponentials of more tau may overflow: the payment is then from sums over others, with their digits


@dataclass(frozen=True, kw_only=True)
class Margin:
    """How far one owner's amounts may lie off, money. Nobody else's report is in it but by what log p shows.

    Attributes:
        agents: positions of its agents.
        spread: `max_j - min_j` of their reports together: no rule charges more.
        contribution: of each agent's contribution.
        expected: of the owner's expected payment.
        payment: of its payment for this draw.
        split: share of either by which its division among the agents may be off; 0 for a single agent.
    """

    agents: Sequence[int]
    spread: float
    contribution: float
    expected: float
    payment: float
    split: float


def margins_of(read: Receipt | AgentView, figures: Figures) -> list[Margin]:
    """Return the margin of each owner.

    Args:
        read: the receipt.
        figures: what was computed again from it.
    """
    alive = np.flatnonzero(figures.log_probabilities > -np.inf)
    reports = matrix_of(read.agents, len(figures.log_probabilities))[:, alive]
    law, noise = figures.log_probabilities[alive], figures.noise[alive]
    winner = int(np.searchsorted(alive, figures.winner))
    owners: dict[str, list[int]] = {}
    for k, bid in enumerate(read.agents):
        owners.setdefault(bid.owner, []).append(k)
    with np.errstate(all="ignore"):
        return [_margin(read, agents, reports[agents], law, noise, winner) for agents in owners.values()]


def _margin(
    read: Receipt | AgentView, agents: list[int], own: FloatArray, law: FloatArray, noise: FloatArray, winner: int
) -> Margin:
    tau, together = read.tau, own.sum(axis=0)
    spread = float(np.ptp(together))
    expected = payment = float(_rounding(np.array(spread), law, tau))
    each = float(_rounding(np.ptp(own, axis=1), law, tau).sum())
    split = 0.0
    if len(agents) > 1:
        alone = float(alone_of(own, law, tau).sum())
        split = min(1.0, each / alone) if alone > 0.0 else 1.0
    if read.payment_rule == "pivot":
        payment += _wobble(together, law, noise, winner, tau)
    paying = read.agents[agents[0]].pays
    return Margin(
        agents=agents,
        spread=spread,
        contribution=each + expected + split * spread + 1e-12 * float(np.abs(own).max()),
        expected=expected if paying else 0.0,
        payment=payment if paying else 0.0,
        split=split,
    )


def _rounding(spreads: FloatArray, law: FloatArray, tau: float) -> FloatArray:
    """Return what rounding makes of payments for reports of such spreads, at most all."""
    rounding = spreads * (RELATIVE * np.minimum(1.0, spreads / tau) + 16 * _EPS)
    rounding += np.where(spreads > _WIDE * tau, 4 * _EPS * tau * np.abs(law).max(), 0.0)
    return np.minimum(rounding, spreads)


def _wobble(report: FloatArray, law: FloatArray, noise: FloatArray, winner: int, tau: float) -> float:
    """Return how far apart the pivot payments of the least and the most log p and noise are: 0 where none came near."""
    lost = report[winner] - report
    gap = tau * ((law - law[winner]) + (noise - noise[winner]))
    error = 8 * _EPS * tau * (np.abs(law) + np.abs(noise) + abs(law[winner]) + abs(noise[winner]))
    error[winner] = 0.0
    least, most = (float(np.clip((lost + gap + each).max(), 0.0, lost.max())) for each in (-error, error))
    return most - least
