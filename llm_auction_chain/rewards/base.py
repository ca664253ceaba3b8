"""The base class of ready-made rewards: an amount of money for each reply, combined with + and *."""

import inspect
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial, reduce
from numbers import Real
from typing import Any, ClassVar, Literal, Union

from langchain_core.messages import AIMessage, BaseMessage
from typing_extensions import override

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.validators import number, refuse, takes
from llm_auction_chain.waiting import AWAITING, BLOCKING, Waiter, run

__all__ = ["AskedBy", "Combined", "Prompt", "Replies", "Reward", "WaitingReward", "amounts_of_part", "asked_by"]

Prompt = Sequence[BaseMessage]
Replies = Sequence[AIMessage]
Part = Union["Reward", float, Callable[[list[BaseMessage], AIMessage], float]]
"""What a reward is added to or multiplied with: a reward, a number, or a plain function `(prompt, reply) -> float`."""
Bounds = tuple[float, float]

LONGEST_TEXT = 20_000
"""The most characters of a text that a model reads for an agent: instructions, a rubric, a description."""
_MOST_PARTS = 100
_DEEPEST = 20
_OPERATORS: dict[str, Callable[[float, float], float]] = {"+": operator.add, "*": operator.mul}


@dataclass(frozen=True, kw_only=True)
class AskedBy:
    """What is public, before any report, about the auction that asks.

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

    _size: ClassVar[tuple[int, int]] = (1, 0)  # parts that are no sums or products, and how deep they are nested

    @property
    def awaits(self) -> bool:
        """Whether an async auction awaits `ascore` in its own loop. Else it calls `score` in a thread."""
        return False

    @property
    def bounds(self) -> Bounds | None:
        """The least and the most that any reply can be worth, money; None where there is no bound.

        They are public. Reports are cut to them, so a ledger holds no more than they allow an agent to owe.
        """
        return None

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
        """Start work that goes on elsewhere and return its future, for which no thread waits; None: call `score`.

        It may only read the messages, because it shares them with other agents. `score` has copies of its own.
        """
        return None

    def __add__(self, other: Part) -> "Reward":
        return Combined("+", (*self._terms("+"), other))

    def __radd__(self, other: Part) -> "Reward":
        return Combined("+", (other, self))

    def __mul__(self, other: Part) -> "Reward":
        return Combined("*", (*self._terms("*"), other))

    def __rmul__(self, other: Part) -> "Reward":
        return Combined("*", (other, self))

    @staticmethod
    def _between(value: float, times: float = 1) -> Bounds:
        """Return the bounds of `value` times something from 0 to `times`."""
        try:
            most = float(value * times)
        except OverflowError:  # of whole numbers; an amount this large is no report
            most = math.copysign(math.inf, value)
        return min(0.0, most), max(0.0, most)

    def _note_size(self, parts: Sequence[Part]) -> None:
        """Refuse too many parts, or too deep ones: strangers' data may make rewards."""
        sizes = [part._size if isinstance(part, Reward) else (1, 0) for part in parts]  # noqa: SLF001 - its own
        count, depth = sum(count for count, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
        if count > _MOST_PARTS or depth > _DEEPEST:
            limits = f"at most {_MOST_PARTS} parts, nested at most {_DEEPEST} deep"
            raise ConfigurationError(f"A reward must have {limits}; got {count} parts, {depth} deep.")
        object.__setattr__(self, "_size", (count, depth))  # it may be frozen

    def _terms(self, verb: str) -> tuple[Part, ...]:  # noqa: ARG002
        """Return what a sum or product goes on from, so that a long one is not a deep one."""
        return (self,)


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
    """The sum or the product of its parts, reply by reply, from left to right.

    Attributes:
        verb: `+` or `*`.
        parts: rewards, finite numbers, or plain functions `(prompt, reply) -> float`.

    Raises:
        ConfigurationError: a part is none of these, or there are over 100 or they are nested over 20 deep.
    """

    verb: Literal["+", "*"]
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        """Check the parts."""
        for part in self.parts:
            name = f"A part of a reward with {self.verb}"
            if isinstance(part, Real) and not isinstance(part, bool):
                number(name, part)
            elif not isinstance(part, Reward):
                expected = "a reward, a number, or a function (prompt, reply) -> float that is not async"
                if not callable(part) or inspect.iscoroutinefunction(part):
                    raise refuse(name, expected, part)
                takes(name, part, "(prompt, reply)")
        self._note_size(self.parts)

    @property
    @override
    def awaits(self) -> bool:
        return any(isinstance(part, Reward) and part.awaits for part in self.parts)

    @property
    @override
    def bounds(self) -> Bounds | None:
        # Rounding keeps the order of numbers, so sums and products within the bounds round to within the result.
        combine, total = _OPERATORS[self.verb], None
        for part in self.parts:
            if (own := _bounds_of_part(part)) is None:
                return None
            corners = own if total is None else [combine(a, b) for a in total for b in own]
            total = min(corners), max(corners)
        return total if total is not None and math.isfinite(total[1] - total[0]) else None

    @override
    def _terms(self, verb: str) -> tuple[Part, ...]:
        return self.parts if verb == self.verb else (self,)

    @override
    async def _score(self, prompt: Prompt, replies: Replies, waiter: Waiter) -> list[float]:
        calls = [partial(amounts_of_part, part, prompt, replies, waiter) for part in self.parts]
        rows = await waiter.together(calls) if self.awaits else [await call() for call in calls]
        return [reduce(_OPERATORS[self.verb], amounts) for amounts in zip(*rows, strict=True)]


async def amounts_of_part(part: Part, prompt: Prompt, replies: Replies, waiter: Waiter) -> Sequence[float]:
    """Return the amounts that a part of a reward gives the replies: a reward, a number or a plain function."""
    if isinstance(part, Reward):
        return await waiter.either(lambda: part.score(prompt, replies), lambda: part.ascore(prompt, replies))
    if callable(part):
        return await waiter.in_thread(lambda: [part(list(prompt), reply) for reply in replies])
    return [float(part)] * len(replies)


def _bounds_of_part(part: Part) -> Bounds | None:
    if isinstance(part, Reward):
        return part.bounds
    return None if callable(part) else (float(part), float(part))
