"""Limits of the server, and the queue in front of its auctions."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from math import ceil
from time import monotonic
from typing import ClassVar

import anyio

from llm_auction_chain.checked_model import CheckedModel
from llm_auction_chain.server.wire import WireError
from llm_auction_chain.validators import Check, number, whole_number

__all__ = ["Capacity", "Limits"]

_LATEST_WEIGHT = 0.2  # of the latest auction in the mean duration, from which Retry-After is estimated
_LONGEST = 86_400.0  # seconds


class Limits(CheckedModel, frozen=True):
    """What the server accepts at most.

    >>> Limits(auctions=2, queue=0).timeout
    120.0
    """

    checks: ClassVar[Mapping[str, Check]] = {
        "auctions": partial(whole_number, least=1),
        "queue": whole_number,
        "timeout": partial(number, above=0, most=_LONGEST),
        "keep_alive": partial(number, above=0, most=_LONGEST),
        "body_bytes": partial(whole_number, least=1),
        "messages": partial(whole_number, least=1),
        "max_tokens": partial(whole_number, least=1),
        "n": partial(whole_number, least=1),
        "receipts": whole_number,
    }

    auctions: int = 16
    """Auctions that run at once in one worker process."""
    queue: int = 64
    """Auctions that wait for their turn; beyond, the answer is 429."""
    timeout: float = 120.0
    """Seconds for a request, its wait in the queue included. The auctions' `reward_timeout` must be shorter, and agents
    get at most half of what is left when the auction begins."""
    keep_alive: float = 10.0
    """Seconds after which a stream that waits for its auction gets a comment, so that proxies keep it open."""
    body_bytes: int = 4 * 1024 * 1024
    """Size of a request's body."""
    messages: int = 256
    """Messages, or items, of one request."""
    max_tokens: int = 4096
    """The largest `max_tokens` that a client may ask for."""
    n: int = 8
    """Replies of one request, each from an auction of its own; never more than `auctions` and `queue` together."""
    receipts: int = 256
    """The latest auctions whose receipts each worker keeps in memory, for those that no ledger keeps."""


class Capacity:
    """Bounds the auctions that run and those that wait, in the order of their arrival.

    Attributes:
        admitted: auctions that run or wait.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._slots = anyio.CapacityLimiter(limits.auctions)
        self._seconds = 1.0  # of an auction, on average
        self.admitted = 0

    @property
    def running(self) -> int:
        """Auctions that run."""
        return self._slots.borrowed_tokens

    @asynccontextmanager
    async def admit(self, n: int) -> AsyncIterator[None]:
        """Admit a request of n auctions, each of which then enters a `slot`.

        Raises:
            WireError: 429, there are too many.
        """
        limits = self._limits
        if self.admitted + n > limits.auctions + limits.queue:
            wait = ceil(self._seconds * (self.admitted + n - limits.auctions) / limits.auctions)
            raise WireError(
                429, "Too many requests wait for this server. Retry later.", code="queue_full", retry_after=max(1, wait)
            )
        self.admitted += n
        try:
            yield
        finally:
            self.admitted -= n

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for the turn of one auction, and keep the slot while it runs."""
        async with self._slots:
            start = monotonic()
            try:
                yield
            finally:
                self._seconds += _LATEST_WEIGHT * (monotonic() - start - self._seconds)
