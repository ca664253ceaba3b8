"""The base class of ready-made rewards: an amount of money for each reply, combined with + and *."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Literal, Union

from langchain_core.messages import AIMessage, BaseMessage
from typing_extensions import override

from llm_auction_chain.validators import refuse
from llm_auction_chain.waiting import AWAITING, BLOCKING, Waiter, run

__all__ = ["AskedBy", "Combined", "Prompt", "Replies", "Reward", "WaitingReward", "amounts_of_part", "asked_by"]

Prompt = Sequence[BaseMessage]
Replies = Sequence[AIMessage]
Part = Union["Reward", float, Callable[[list[BaseMessage], AIMessage], float]]
"""What a reward is added to or multiplied with: a reward, a number, or a plain function `(prompt, reply) -> float`."""


@dataclass(frozen=True, kw_only=True)
class AskedBy:
    """The auction that asks: what is public of it before any report.

    Attributes:
        auction_id: the id in the result.
        currency: the unit that reports are in, as the platform calls it; empty where it has no name.
        commitment: binds the auction to its terms, seed, candidates and weights: the receipt's `opening`.
    """

    auction_id: str
    currency: str = ""
    commitment: str = ""


asked_by: ContextVar[AskedBy | None] = ContextVar("asked_by", default=None)
"""The auction that asks a reward; None outside of an auction."""


class Reward(ABC):
    """Says what each reply is worth to an agent, in money. One call scores all replies of an auction.

    `a + b`, `a + 1.5`, `a * b` and `a * 0.5` are rewards too, reply by reply. A part may be a plain function
    `(prompt, reply) -> float`.

    >>> class Words(Reward):
    ...     def score(self, prompt, replies):
    ...         return [float(len(reply.text.split())) for reply in replies]
    >>> (Words() * 2 + 1).score([], [AIMessage("one two")])
    [5.0]
    """

    @property
    def awaits(self) -> bool:
        """Whether an async auction awaits `ascore` in its own loop. Else it calls `score` in a thread."""
        return False

    @abstractmethod
    def score(self, prompt: Prompt, replies: Replies) -> Sequence[float]:
        """Return one amount per reply.

        Raises:
            RewardError: there is no amount for a reply.
            TimeoutError: there is none in time.
        """

    async def ascore(self, prompt: Prompt, replies: Replies) -> Sequence[float]:
        """Return what `score` returns, from a thread that delays no exit if it hangs."""
        return await self._score(prompt, replies, AWAITING)

    async def _score(self, prompt: Prompt, replies: Replies, waiter: Waiter) -> Sequence[float]:
        return await waiter.in_thread(partial(self.score, prompt, replies))

    def start(self, prompt: Prompt, replies: Replies) -> Future[Any] | None:  # noqa: ARG002
        """Start work that goes on elsewhere and return its future, for which no thread waits; None: call `score`."""
        return None

    def __add__(self, other: Part) -> "Reward":
        return Combined("+", (self, other))

    def __radd__(self, other: Part) -> "Reward":
        return Combined("+", (other, self))

    def __mul__(self, other: Part) -> "Reward":
        return Combined("*", (self, other))

    def __rmul__(self, other: Part) -> "Reward":
        return Combined("*", (other, self))


class WaitingReward(Reward):
    """A reward that waits for a model or a server. Its work is written once, in `_score`."""

    @property
    @override
    def awaits(self) -> bool:
        return True

    @override
    @abstractmethod
    async def _score(self, prompt: Prompt, replies: Replies, waiter: Waiter) -> Sequence[float]:
        """Return one amount per reply."""

    @override
    def score(self, prompt: Prompt, replies: Replies) -> Sequence[float]:
        return run(self._score(prompt, replies, BLOCKING))


@dataclass(frozen=True)
class Combined(WaitingReward):
    """The sum or the product of its parts, reply by reply.

    Attributes:
        verb: `+` or `*`.
        parts: rewards, numbers, or plain functions `(prompt, reply) -> float`.

    Raises:
        ConfigurationError: a part is none of these.
    """

    verb: Literal["+", "*"]
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        """Check the parts."""
        for part in self.parts:
            number = isinstance(part, Real) and not isinstance(part, bool)
            function = callable(part) and not inspect.iscoroutinefunction(part)
            if not (number or function or isinstance(part, Reward)):
                raise refuse(
                    f"A part of a reward with {self.verb}",
                    "a reward, a number, or a function (prompt, reply) -> float that is not async",
                    part,
                )

    @property
    @override
    def awaits(self) -> bool:
        return any(isinstance(part, Reward) and part.awaits for part in self.parts)

    @override
    async def _score(self, prompt: Prompt, replies: Replies, waiter: Waiter) -> list[float]:
        calls = [partial(amounts_of_part, part, prompt, replies, waiter) for part in self.parts]
        rows = await waiter.together(calls) if self.awaits else [await call() for call in calls]
        combine = sum if self.verb == "+" else math.prod
        return [combine(amounts) for amounts in zip(*rows, strict=True)]


async def amounts_of_part(part: Part, prompt: Prompt, replies: Replies, waiter: Waiter) -> Sequence[float]:
    """Return the amounts that a part of a reward gives the replies: a reward, a number or a plain function."""
    if isinstance(part, Reward):
        return await waiter.either(lambda: part.score(prompt, replies), lambda: part.ascore(prompt, replies))
    if callable(part):
        return await waiter.in_thread(lambda: [part(list(prompt), reply) for reply in replies])
    return [float(part)] * len(replies)
