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
import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context, copy_context
from functools import partial
from typing import Any, TypeVar

from typing_extensions import override

from llm_auction_chain.threads import attempt, in_thread, outcomes_of

__all__ = ["AWAITING", "BLOCKING", "Waiter", "run"]

T = TypeVar("T")
Calls = Sequence[Callable[[], Coroutine[Any, Any, T]]]
Progress = Callable[[int], None] | None


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
    async def together(self, calls: Calls[T], *, most: int | None = None, progress: Progress = None) -> list[T]:
        """Return the results of calls that run side by side: each in a thread, or all in the loop.

        Raises the first error as soon as it occurs. No further call begins then, and a loop cancels those under way.

        Args:
            calls: what to call.
            most: calls that may be under way at once; None is all.
            progress: called with the number of calls that have returned, where the caller runs.
        """

    @abstractmethod
    async def within(self, context: Context, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return the result of a coroutine that runs in a context of its own."""


class _Blocking(Waiter):
    @override
    async def either(self, blocking: Callable[[], T], awaiting: Callable[[], Awaitable[T]]) -> T:
        return blocking()

    @override
    async def in_thread(self, call: Callable[[], T], *, shield: bool = False) -> T:
        return call()

    @override
    async def together(self, calls: Calls[T], *, most: int | None = None, progress: Progress = None) -> list[T]:
        if len(calls) == 1:  # needs no thread
            only = _finish(calls[0])
            if progress is not None:
                progress(1)
            return [only]
        results: dict[int, T] = {}
        tasks = [partial(copy_context().run, attempt, partial(_finish, call)) for call in calls]
        with contextlib.closing(outcomes_of(tasks, timeout=None, most=most)) as outcomes:
            for place, (result, error) in outcomes:
                if error is not None:
                    raise error
                results[place] = result
                if progress is not None:
                    progress(len(results))
        return [results[place] for place in range(len(calls))]

    @override
    async def within(self, context: Context, coroutine: Coroutine[Any, Any, T]) -> T:
        return context.run(run, coroutine)


class _Awaiting(Waiter):
    @override
    async def either(self, blocking: Callable[[], T], awaiting: Callable[[], Awaitable[T]]) -> T:
        return await awaiting()

    @override
    async def in_thread(self, call: Callable[[], T], *, shield: bool = False) -> T:
        waiting: Awaitable[T] = in_thread(call)
        return await (asyncio.shield(waiting) if shield else waiting)

    @override
    async def together(self, calls: Calls[T], *, most: int | None = None, progress: Progress = None) -> list[T]:
        gate = asyncio.Semaphore(most or len(calls) or 1)
        returned = itertools.count(1)

        async def one(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
            async with gate:
                result = await call()
            if progress is not None:
                progress(next(returned))
            return result

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(call)) for call in calls]
        except BaseExceptionGroup as failures:
            error = failures.exceptions[0]
            raise error from error.__cause__
        return [task.result() for task in tasks]

    @override
    async def within(self, context: Context, coroutine: Coroutine[Any, Any, T]) -> T:
        return await asyncio.create_task(coroutine, context=context)


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
