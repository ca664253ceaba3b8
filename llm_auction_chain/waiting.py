"""Code that is written once and serves sync and async callers.

Such code is an `async def` that waits only through a `Waiter`. Under `BLOCKING` every wait is over when its call
returns, so `run` finishes the coroutine with one `send(None)`, without an event loop. Under `AWAITING` the caller
awaits the coroutine as usual.

    async def _reply(model, prompt, waiter):
        return await waiter.either(lambda: model.invoke(prompt), lambda: model.ainvoke(prompt))

    def reply(model, prompt):
        return run(_reply(model, prompt, BLOCKING))

    async def areply(model, prompt):
        return await _reply(model, prompt, AWAITING)
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from typing_extensions import override

from llm_auction_chain.threads import attempt, finished, in_thread

__all__ = ["AWAITING", "BLOCKING", "Waiter", "run"]

T = TypeVar("T")


class Waiter(ABC):
    """How the caller waits: by blocking its thread, or by awaiting in its event loop."""

    @abstractmethod
    async def either(self, blocking: Callable[[], T], awaiting: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `blocking()` or of `await awaiting()`, whichever suits the caller."""

    @abstractmethod
    async def in_thread(self, call: Callable[[], T], *, shield: bool = False) -> T:
        """Return the result of a call that blocks. In an event loop it runs in a thread that delays no exit.

        Args:
            call: what to call.
            shield: whether the call is waited for though the caller is cancelled.
        """

    @abstractmethod
    async def together(self, calls: Sequence[Callable[[], Coroutine[Any, Any, T]]]) -> list[T]:
        """Return the results of calls that run side by side: each in a thread, or all in the loop.

        Raises the first error, in the order of the calls.
        """


class _Blocking(Waiter):
    @override
    async def either(self, blocking: Callable[[], T], awaiting: Callable[[], Awaitable[T]]) -> T:
        return blocking()

    @override
    async def in_thread(self, call: Callable[[], T], *, shield: bool = False) -> T:
        return call()

    @override
    async def together(self, calls: Sequence[Callable[[], Coroutine[Any, Any, T]]]) -> list[T]:
        tasks = [partial(copy_context().run, attempt, partial(_finish, call)) for call in calls]
        outcomes = dict(finished(tasks, timeout=None))
        for k in range(len(calls)):
            if outcomes[k][1] is not None:
                raise outcomes[k][1]
        return [outcomes[k][0] for k in range(len(calls))]


class _Awaiting(Waiter):
    @override
    async def either(self, blocking: Callable[[], T], awaiting: Callable[[], Awaitable[T]]) -> T:
        return await awaiting()

    @override
    async def in_thread(self, call: Callable[[], T], *, shield: bool = False) -> T:
        waiting: Awaitable[T] = in_thread(call)
        return await (asyncio.shield(waiting) if shield else waiting)

    @override
    async def together(self, calls: Sequence[Callable[[], Coroutine[Any, Any, T]]]) -> list[T]:
        return await asyncio.gather(*(call() for call in calls))


BLOCKING: Waiter = _Blocking()
AWAITING: Waiter = _Awaiting()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that waits only through `BLOCKING`.

    Raises:
        RuntimeError: the coroutine awaited something else, which cannot finish without a loop.

    >>> async def double(waiter):
    ...     return 2 * await waiter.in_thread(lambda: 21)
    >>> run(double(BLOCKING))
    42
    """
    try:
        coroutine.send(None)
    except StopIteration as finished:
        result: T = finished.value
        return result
    coroutine.close()
    raise RuntimeError("Code that is run without an event loop may wait only through its Waiter.")


def _finish(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return run(call())
