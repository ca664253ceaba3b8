"""What every ready-made reward is: money for each reply, composed with + and *."""

import asyncio
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage
from typing_extensions import override

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.threads import in_thread

__all__ = ["AskedBy", "Combined", "Prompt", "Replies", "Reward", "ascored", "asked_by", "check_number", "scored"]

Prompt = Sequence[BaseMessage]
Replies = Sequence[AIMessage]


@dataclass(frozen=True, kw_only=True)
class AskedBy:
    """The auction that asks: what is public of it before any report.

    Attributes:
        auction_id: the one in the result.
        currency: the unit that reports are in, as the platform calls it; empty where it has no name.
        commitment: what terms, seed, candidates and weights the auction is bound to: the receipt's `opening`.
    """

    auction_id: str
    currency: str = ""
    commitment: str = ""


asked_by: ContextVar[AskedBy | None] = ContextVar("asked_by", default=None)
"""The auction on whose behalf a reward is being asked; None outside of one."""


class Reward(ABC):
    """What each reply is worth to an agent, in money; all replies of an auction are scored in one call.

    `a + b`, `a + 1.5`, `a * b` and `a * 0.5` are rewards too, reply by reply; a part may be a plain function
    `(prompt, reply) -> float`.

    >>> class Words(Reward):
    ...     def score(self, prompt, replies):
    ...         return [float(len(reply.text.split())) for reply in replies]
    >>> (Words() * 2 + 1).score([], [AIMessage("one two")])
    [5.0]
    """

    @property
    def awaits(self) -> bool:
        """Whether `ascore` awaits what happens elsewhere, so that it needs no thread of its own."""
        return False

    @abstractmethod
    def score(self, prompt: Prompt, replies: Replies) -> Sequence[float]:
        """Return one amount per reply.

        Raises:
            RewardError: the amounts cannot be told.
            TimeoutError: not in time.
        """

    async def ascore(self, prompt: Prompt, replies: Replies) -> Sequence[float]:
        """Do as `score`, awaiting: what happens elsewhere, or else a thread, which delays no exit if it hangs."""
        scored: Sequence[float] = await in_thread(partial(self.score, prompt, replies))
        return scored

    def __add__(self, other: Any) -> "Reward":
        return Combined("+", (self, other))

    def __radd__(self, other: Any) -> "Reward":
        return Combined("+", (other, self))

    def __mul__(self, other: Any) -> "Reward":
        return Combined("*", (self, other))

    def __rmul__(self, other: Any) -> "Reward":
        return Combined("*", (other, self))


@dataclass(frozen=True)
class Combined(Reward):
    """Parts added or multiplied, reply by reply.

    Attributes:
        verb: `+` or `*`.
        parts: rewards, numbers, or plain functions `(prompt, reply) -> float`.

    Raises:
        ConfigurationError: a part is none of these.
    """

    verb: Literal["+", "*"]
    parts: tuple[Any, ...]

    def __post_init__(self) -> None:
        """Refuse what scores nothing."""
        for part in self.parts:
            number = isinstance(part, Real) and not isinstance(part, bool)
            function = callable(part) and not inspect.iscoroutinefunction(part)
            if not (number or function or isinstance(part, Reward)):
                raise ConfigurationError(
                    f"A reward {self.verb} {part!r} is no reward; give a reward, a number, or a function "
                    "(prompt, reply) -> float that is not async."
                )

    @property
    @override
    def awaits(self) -> bool:
        return any(isinstance(part, Reward) and part.awaits for part in self.parts)

    @override
    def score(self, prompt: Prompt, replies: Replies) -> list[float]:
        return self._combined([scored(part, prompt, replies) for part in self.parts])

    @override
    async def ascore(self, prompt: Prompt, replies: Replies) -> list[float]:
        return self._combined(await asyncio.gather(*(ascored(part, prompt, replies) for part in self.parts)))

    def _combined(self, rows: list[Sequence[float]]) -> list[float]:
        together = sum if self.verb == "+" else math.prod
        return [together(values) for values in zip(*rows, strict=True)]


def scored(part: Any, prompt: Prompt, replies: Replies) -> Sequence[float]:
    """Return what a reward, a number or a plain function says of every reply."""
    if isinstance(part, Reward):
        return part.score(prompt, replies)
    return [part(prompt, reply) if callable(part) else float(part) for reply in replies]


async def ascored(part: Any, prompt: Prompt, replies: Replies) -> Sequence[float]:
    """Do as `scored`, awaiting; a plain function gets a thread, for it may hang."""
    if isinstance(part, Reward):
        return await part.ascore(prompt, replies)
    plain: Sequence[float] = await in_thread(partial(scored, part, prompt, replies))
    return plain


def check_number(owner: object, name: str, value: object, *, least: float = -math.inf, most: float = math.inf) -> None:
    """Raise `ConfigurationError` unless the setting is a finite number from `least` to `most`."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and least <= number <= most):
        between = "" if (least, most) == (-math.inf, math.inf) else f", from {least:g} to {most:g}"
        raise ConfigurationError(f"{type(owner).__name__} has {name}={value!r}; give a finite number{between}.")
