"""The candidates of one auction settled again: at another tau, and with an owner that lies. It calls no model."""

import math
from dataclasses import dataclass, replace

import numpy as np

from llm_auction_chain.auction.result import AuctionResult
from llm_auction_chain.auction.tau_sweep import TauPoint, tau_sweep
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.experiments.strategies import utilities
from llm_auction_chain.mechanism.allocation import FloatArray

__all__ = ["FACTORS", "WhatIf", "liars_of", "what_if"]

FACTORS = tuple(step / 10 for step in range(-10, 31))
"""By which a liar's reports are multiplied in its curve; 1 is the truth."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WhatIf:
    """One auction at another tau, where one owner multiplies its reports.

    The reports that were made are taken for the truth. Utilities are true: the expected true value less the expected
    payment, which is the same under every payment rule.

    Attributes:
        point: probabilities, draw and payments of the changed reports; the noise of the draw is that of the auction.
        welfare: what the replies are truly worth to all agents together, in the mean, money.
        liar: name of the agent whose owner lies; empty where none does.
        owner: the liar's owner. All agents of an owner lie together, as they are one payer.
        factor: by which the owner's reports are multiplied, 1 for the truth.
        utility: of the owner with these reports, money.
        factors: (K,), those of the curve.
        curve: (K,), the owner's utility at each of them, money. For an owner that pays it is largest at 1.
    """

    point: TauPoint
    welfare: float
    liar: str
    owner: str
    factor: float
    utility: float
    factors: tuple[float, ...]
    curve: tuple[float, ...]

    @property
    def truthful(self) -> float:
        """The owner's utility with the truth, money."""
        return self.curve[self.factors.index(1.0)] if self.liar else 0.0


def liars_of(result: AuctionResult) -> list[str]:
    """Return the agents that may lie: those that pay. The others have no reason to be honest."""
    return [agent.name for agent in result.agents if agent.pays]


def what_if(result: AuctionResult, *, tau: float, liar: str = "", factor: float = 1.0) -> WhatIf:
    """Settle an auction's candidates again.

    Args:
        result: of the auction.
        tau: weight of the reference model, money per nat, above 0.
        liar: an agent that pays, whose owner lies; empty for none.
        factor: of the owner's reports. A report cap still holds.

    Raises:
        ConfigurationError: tau is not a number above 0, or the liar did not take part.
        RewardError: the payment rule is `proportional`, and the lie is negative.

    >>> from llm_auction_chain import Agent, AuctionRunnable
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> agent = Agent("B", lambda prompt, reply: 2.0 * reply.text.count("b"))
    >>> result = AuctionRunnable(model=MarkovChatModel(), agents=[agent], seed=7).run("Say something")
    >>> lie = what_if(result, tau=1.0, liar="B", factor=2.0)
    >>> lie.utility < lie.truthful == max(lie.curve)
    True
    """
    if liar and liar not in liars_of(result):
        raise ConfigurationError(f"{liar!r} is not an agent of this auction that pays.")
    owners = [agent.payer for agent in result.agents]
    i = next((i for i, agent in enumerate(result.agents) if agent.name == liar), -1)
    owner = owners[i] if liar else ""
    rewards = _scale(result, owner, factor)
    reports = tuple(
        replace(report, rewards=tuple(row)) for report, row in zip(result.reports, rewards.tolist(), strict=True)
    )
    [point] = tau_sweep(replace(result, reports=reports), [tau])

    def utility(reports: FloatArray) -> float:
        pays = [agent.pays for agent in result.agents]
        return float(utilities(result.rewards, reports, result.log_weights, tau, "expected", owners, pays)[i])

    factors = FACTORS if result.settlement.payment_rule != "proportional" else [x for x in FACTORS if x >= 0]
    return WhatIf(
        point=point,
        welfare=float(point.settlement.probabilities @ result.rewards.sum(axis=0)),
        liar=liar,
        owner=owner,
        factor=factor,
        utility=utility(rewards) if liar else 0.0,
        factors=tuple(factors),
        curve=tuple(utility(_scale(result, owner, each)) for each in factors) if liar else (),
    )


def _scale(result: AuctionResult, owner: str, factor: float) -> FloatArray:
    """Return the reports (N, M) with those of an owner multiplied, each within its agent's cap."""
    factors = [[factor if agent.payer == owner else 1.0] for agent in result.agents]
    scaled = result.rewards * np.reshape(factors, (len(result.agents), 1))
    caps = [math.inf if bid.report_cap is None else float(bid.report_cap) for bid in result.receipt.agents]
    limits = np.reshape(caps, (len(caps), 1))
    return np.asarray(np.clip(scaled, -limits, limits))
