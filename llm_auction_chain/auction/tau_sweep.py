"""The same auction at other values of tau, from its stored candidates."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from llm_auction_chain.auction.result import AuctionResult
from llm_auction_chain.mechanism import Settlement, settle
from llm_auction_chain.mechanism.allocation import log_softmax

__all__ = ["TauPoint", "tau_sweep"]


@dataclass(frozen=True, kw_only=True)
class TauPoint:
    """One auction at one tau.

    Attributes:
        tau: weight of the reference model, money per nat.
        settlement: probabilities, draw, payments and diagnostics; the noise of the draw is that of the auction.
        welfare: `E_p[sum_i r_i]`, money.
        expected_revenue: `sum_i T_i`, money.
        distance: `KL(p || p_0)` with `p_0 = softmax(lw)`, nats: how far the agents move the distribution of the reply
            away from the reference model's.
    """

    tau: float
    settlement: Settlement
    welfare: float
    expected_revenue: float
    distance: float


def tau_sweep(result: AuctionResult, taus: Iterable[float]) -> tuple[TauPoint, ...]:
    """Settle an auction's stored candidates again at every tau, without calls of the model or the agents.

    Weights compare `pi_ref` with the proposal that was drawn from, so they hold at every tau. What changes is how well
    the proposal fits: see `settlement.diagnostics`.

    Args:
        result: of an auction with agents.
        taus: money per nat, above 0.

    Raises:
        ConfigurationError: a tau is not a finite number above 0.

    Source: arXiv 2405.05905, section 4: tau weighs welfare against the distance from the reference.

    >>> from llm_auction_chain import Agent, AuctionRunnable
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> agent = Agent("B", lambda prompt, reply: float(reply.text.count("b")))
    >>> held = AuctionRunnable(model=MarkovChatModel(), agents=[agent], seed=7).run("Say something")
    >>> points = tau_sweep(held, [0.1, 1.0, 10.0])
    >>> [round(point.welfare, 2) for point in points], [round(point.distance, 2) for point in points]
    ([2.0, 1.13, 0.55], [2.08, 0.33, 0.0])
    """
    return tuple(_point(result, tau) for tau in taus)


def _point(result: AuctionResult, tau: float) -> TauPoint:
    settlement = settle(
        result.rewards,
        result.log_weights,
        tau=tau,
        payment_rule=result.settlement.payment_rule,
        owners=[agent.payer for agent in result.agents],
        pays=[agent.pays for agent in result.agents],
        draws=[candidate.draws for candidate in result.candidates],
        seed=result.settlement.seed,
    )
    p = settlement.probabilities
    drawn = p > 0
    log_ratio = np.log(p[drawn]) - log_softmax(result.log_weights)[drawn]
    return TauPoint(
        tau=settlement.tau,
        settlement=settlement,
        welfare=float(p @ result.rewards.sum(axis=0)),
        expected_revenue=float(settlement.expected_payments.sum()),
        distance=max(0.0, float(p[drawn] @ log_ratio)),
    )
