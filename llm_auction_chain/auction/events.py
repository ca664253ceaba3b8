"""What listeners hear while an auction runs: counts and numbers, without texts, reports or candidates.

`Progress` counts within a stage, for a progress bar. An `AuctionEvent` ends a stage, for a stream.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llm_auction_chain.candidates import Drawn
from llm_auction_chain.reports import Report

if TYPE_CHECKING:
    from llm_auction_chain.auction.admission import Admitted
    from llm_auction_chain.auction.result import AuctionResult

__all__ = ["AuctionEvent", "EventHook", "Progress", "ProgressHook", "candidates", "scored", "settled", "started"]

Stage = Literal["candidates", "weights", "rewards"]
_LABELS: Mapping[Stage, str] = {
    "candidates": "drawing candidates",
    "weights": "weighing them",
    "rewards": "asking agents",
}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an auction is: counts only.

    Attributes:
        stage: `candidates` while replies are drawn, `weights` while they are scored under the proposal's components,
            `rewards` while agents are asked.
        done: how many are done.
        total: how many there will be.
        tokens_per_second: of all candidates together, while a model draws them that counts; else None.
    """

    stage: Stage
    done: int
    total: int
    tokens_per_second: float | None = None

    @property
    def label(self) -> str:
        """The stage in words, for a bar."""
        return _LABELS[self.stage]

    @property
    def note(self) -> str:
        """What a bar shows beside the counts: tokens per second, where the model counts them."""
        return f"{self.tokens_per_second:,.0f} tokens/s" if self.tokens_per_second else ""

    @staticmethod
    def of_candidates(hook: "ProgressHook", total: int) -> Callable[[Stage, int, int, float | None], None]:
        """Report that no candidate is drawn yet, and return the callback that counts them."""
        hook(Progress(stage="candidates", done=0, total=total))
        return lambda stage, done, total, rate: hook(
            Progress(stage=stage, done=done, total=total, tokens_per_second=rate)
        )

    @staticmethod
    def of_rewards(hook: "ProgressHook", total: int) -> Callable[[int], None]:
        """Report that no agent has answered yet, and return the callback that counts them."""
        if total:
            hook(Progress(stage="rewards", done=0, total=total))
        return lambda done: hook(Progress(stage="rewards", done=done, total=total))


ProgressHook = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class AuctionEvent:
    """The end of a stage of an auction.

    Attributes:
        name: `auction.started`, `auction.candidates`, `auction.scored` or `auction.settled`, in this order, once each.
        data: plain JSON: `auction_id`, counts and numbers.
    """

    name: str
    data: Mapping[str, Any]


EventHook = Callable[[AuctionEvent], Awaitable[None] | None]


def started(admitted: "Admitted") -> AuctionEvent:
    """Return the event of the beginning: how many agents take part, and how many candidates may be drawn."""
    data = {
        "agents": len(admitted.agents),
        "left_out": len(admitted.left_out),
        "bypassed": admitted.bypassed,
        "max_candidates": admitted.size.most,
    }
    return AuctionEvent(name="auction.started", data={"auction_id": admitted.auction_id, **data})


def candidates(auction_id: str, drawn: Drawn, commitment: str) -> AuctionEvent:
    """Return the event of the candidates: how many replies there are, how many differ, how many calls failed.

    Tokens are those of all draws together; None where the model does not count them. The commitment binds the auction
    to its candidates and terms before any agent reports.
    """
    data = {
        "candidates": sum(count for _, count in drawn.components),
        "distinct_replies": len(drawn.candidates),
        "excluded_replies": sum(candidate.excluded for candidate in drawn.candidates),
        "failed_calls": len(drawn.causes),
        "input_tokens": drawn.usage["input_tokens"] if drawn.usage else None,
        "output_tokens": drawn.usage["output_tokens"] if drawn.usage else None,
        "commitment": commitment,
    }
    return AuctionEvent(name="auction.candidates", data={"auction_id": auction_id, **data})


def scored(auction_id: str, reports: Sequence[Report]) -> AuctionEvent:
    """Return the event of the reports: how many agents reported, and how many abstained for which reason."""
    statuses = Counter(report.status for report in reports)
    reported = statuses["reported"] + statuses["capped"]
    data = {"reported": reported, "abstained": len(reports) - reported, "statuses": dict(statuses)}
    return AuctionEvent(name="auction.scored", data={"auction_id": auction_id, **data})


def settled(result: "AuctionResult") -> AuctionEvent:
    """Return the event of the settlement: revenue, whether it is charged, and the effective number of candidates."""
    data = {
        "revenue": result.settlement.revenue,
        "sponsored": bool(result.sponsors),
        "charged": result.charge is not None,
        "ess_probabilities": result.settlement.diagnostics.ess_probabilities,
    }
    return AuctionEvent(name="auction.settled", data={"auction_id": result.auction_id, **data})
