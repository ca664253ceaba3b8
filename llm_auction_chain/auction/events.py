"""What is told while an auction runs: counts and numbers, never a text, a report or a candidate.

`Progress` counts within a stage, for a bar; an `AuctionEvent` says that a stage is done, for a stream.
"""

import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llm_auction_chain.candidates import Drawn
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.mechanism import Settlement
from llm_auction_chain.reports import Report

__all__ = [
    "AuctionEvent",
    "EventHook",
    "Progress",
    "ProgressHook",
    "atell",
    "candidates",
    "scored",
    "settled",
    "started",
    "tell",
]

Stage = Literal["candidates", "weights", "rewards"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an auction has come: counts only, never a text or a report.

    Attributes:
        stage: `candidates` while replies are drawn, `weights` while they are scored under the proposal's components,
            `rewards` while agents are asked.
        done: how many have come in.
        total: how many were asked for.
        tokens_per_second: of all candidates together, while a model that counts draws them; else None.
    """

    stage: Stage
    done: int
    total: int
    tokens_per_second: float | None = None

    @staticmethod
    def of_candidates(hook: "ProgressHook | None") -> Callable[[Stage, int, int, float | None], None] | None:
        """Return what the drawing of candidates reports to."""
        if hook is None:
            return None
        return lambda stage, done, total, rate: hook(
            Progress(stage=stage, done=done, total=total, tokens_per_second=rate)
        )

    @staticmethod
    def of_rewards(hook: "ProgressHook | None", total: int) -> Callable[[int], None] | None:
        """Return what the asking of agents reports to."""
        if hook is None:
            return None
        return lambda done: hook(Progress(stage="rewards", done=done, total=total))


ProgressHook = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class AuctionEvent:
    """A stage of an auction is done.

    Attributes:
        name: `auction.started`, `auction.candidates`, `auction.scored` or `auction.settled`, in this order, once each.
        data: plain JSON: `auction_id`, counts and numbers.
    """

    name: str
    data: Mapping[str, Any]


EventHook = Callable[[AuctionEvent], Awaitable[None] | None]


def tell(hook: EventHook | None, event: AuctionEvent) -> None:
    """Tell a hook, if there is one.

    Raises:
        ConfigurationError: it is async, and nobody awaits it here.
    """
    said = hook(event) if hook else None
    if inspect.isawaitable(said):
        if inspect.iscoroutine(said):
            said.close()
        raise ConfigurationError("on_event is async; use ainvoke, abatch, astream or arun.")


async def atell(hook: EventHook | None, event: AuctionEvent) -> None:
    """Do as `tell`, awaiting."""
    said = hook(event) if hook else None
    if inspect.isawaitable(said):
        await said


def started(auction_id: str, *, agents: int, left_out: int, bypassed: bool, most: int) -> AuctionEvent:
    """Return the event that opens an auction: how many agents take part, and how many candidates it may draw."""
    data = {"agents": agents, "left_out": left_out, "bypassed": bypassed, "max_candidates": most}
    return AuctionEvent(name="auction.started", data={"auction_id": auction_id, **data})


def candidates(auction_id: str, drawn: Drawn, commitment: str) -> AuctionEvent:
    """Return the event that follows the drawing: how many replies there are, how many differ, how many calls failed.

    Tokens are those of all draws together; None where the model does not count them. The commitment binds the auction
    to them, and to its terms, before anybody reports.
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
    """Return the event that follows the asking: how many agents reported, and how many abstained in which way."""
    statuses = Counter(report.status for report in reports)
    reported = statuses["reported"]
    data = {"reported": reported, "abstained": len(reports) - reported, "statuses": dict(statuses)}
    return AuctionEvent(name="auction.scored", data={"auction_id": auction_id, **data})


def settled(auction_id: str, settlement: Settlement, *, sponsored: bool, charged: bool) -> AuctionEvent:
    """Return the event that closes an auction: revenue, whether it is booked, and what the law is worth."""
    data = {
        "revenue": settlement.revenue,
        "sponsored": sponsored,
        "charged": charged,
        "ess_probabilities": settlement.diagnostics.ess_probabilities,
    }
    return AuctionEvent(name="auction.settled", data={"auction_id": auction_id, **data})
