"""What an auction came to: all of it for the platform, and the part that travels with the reply."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata

from llm_auction_chain.agents import Agent
from llm_auction_chain.candidates import Candidate, Drawn, Plan
from llm_auction_chain.mechanism import Settlement
from llm_auction_chain.rewards import Report

__all__ = ["AuctionResult", "matrix_of", "metadata_of"]

FloatArray = npt.NDArray[np.float64]
_SCHEMA = "llm_auction_chain.auction/1"


@dataclass(frozen=True, kw_only=True, eq=False)
class AuctionResult:
    """Everything about one auction.

    Attributes:
        auction_id: unique, sorted by time (UUID version 7).
        prompt: the user's messages.
        candidates: the distinct replies, how often each was drawn, and their log-weights.
        components: name and number of draws of every component of the proposal.
        agents: the N agents, in the order of the matrices.
        reports: (N,), each agent's rewards, status and reason. Private values: not in the metadata.
        settlement: law, draw and payments.
        reply: the drawn message, with `response_metadata["auction"]` and the usage of all hidden calls.
        usage: tokens of all hidden calls; None where the model reports none.
        failures: what made model calls fail, if some did.
        warnings: what deserves a look: contexts that could not be used, draws that are all the same.
        seed: gives the same auction again (the same draw, where the model takes no seed).
    """

    auction_id: str
    prompt: tuple[BaseMessage, ...]
    candidates: tuple[Candidate, ...]
    components: tuple[tuple[str, int], ...]
    agents: tuple[Agent, ...]
    reports: tuple[Report, ...]
    settlement: Settlement
    reply: AIMessage
    usage: UsageMetadata | None
    failures: tuple[BaseException, ...]
    warnings: tuple[str, ...]
    seed: int

    @property
    def distinct_replies(self) -> int:
        """How many different replies were drawn; each is one candidate."""
        return len(self.candidates)

    @property
    def draws(self) -> int:
        """How many replies were drawn, M."""
        return sum(candidate.draws for candidate in self.candidates)

    @property
    def rewards(self) -> FloatArray:
        """(N, candidates), what every agent reported, money. Private values."""
        return matrix_of(self.reports, self.candidates)

    @property
    def log_weights(self) -> FloatArray:
        """(candidates,), `log pi_ref - log pi_gen` of all draws of each, by log-add-exp, nats."""
        return np.array([candidate.merged_log_weight for candidate in self.candidates])


def matrix_of(reports: Sequence[Report], candidates: Sequence[Candidate]) -> FloatArray:
    """Return what every agent reported for every candidate, (N, candidates), money."""
    return np.array([report.rewards for report in reports], dtype=np.float64).reshape(len(reports), len(candidates))


def metadata_of(
    auction_id: str,
    agents: tuple[Agent, ...],
    reports: Sequence[Report],
    plan: Plan,
    drawn: Drawn,
    settlement: Settlement,
    noticed: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Return the outcome as plain JSON: Python numbers only, finite, and nobody's rewards."""
    diagnostics = settlement.diagnostics
    return {
        "schema": _SCHEMA,
        "auction_id": auction_id,
        "winner": settlement.winner,
        "probabilities": settlement.probabilities.tolist(),
        "payments": [
            {
                "agent": agent.name,
                "owner": agent.payer,
                "amount": float(settlement.payments[i]),
                "expected": float(settlement.expected_payments[i]),
                "contribution": float(settlement.contributions[i]),
            }
            for i, agent in enumerate(agents)
        ],
        "agents": [
            {"agent": agent.name, "status": report.status, "reason": report.reason}
            for agent, report in zip(agents, reports, strict=True)
        ],
        "revenue": settlement.revenue,
        "diagnostics": {
            "candidates": sum(candidate.draws for candidate in drawn.candidates),
            "failed_calls": len(drawn.causes),
            "distinct_replies": len(drawn.candidates),
            "ess_weights": diagnostics.ess_weights,
            "ess_probabilities": diagnostics.ess_probabilities,
            "largest_share": diagnostics.largest_share,
            "log_normaliser": diagnostics.log_normaliser,
            "k_hat": diagnostics.k_hat,
        },
        "proposal": {
            "contexts": plan.contexts,
            "components": [{"component": name, "draws": count} for name, count in drawn.components],
        },
        "warnings": list(noticed),
        "tau": settlement.tau,
        "payment_rule": settlement.payment_rule,
        "seed": seed,
    }
