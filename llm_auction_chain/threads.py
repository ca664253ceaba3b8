"""Threads for calls that may never return. They delay neither each other, nor the caller, nor an exit.

A thread cannot be stopped. These are daemons, so the interpreter exits without them, and after the deadline nothing
waits for them. Quick calls share a few threads; calls that wait get one each.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

__all__ = ["attempt", "in_thread", "outcomes_of", "running"]

Call = Callable[[], Any]

_TICK = 0.002  # seconds without a result after which the running calls are assumed to wait for something


class _Workers:
    """Runs calls in threads, and delivers (place, outcome) of each from its thread.

    It begins with one thread, because more do not speed up quick calls in Python. `grow` doubles the threads if no call
    has returned since the last `grow`, so calls that wait soon all run at once.
    """

    def __init__(self, calls: Sequence[Call], deliver: Callable[[int, Any], None], most: int | None = None) -> None:
        self._left = deque(enumerate(calls))
        self._deliver = deliver
        self._most = len(calls) if most is None else most
        self._threads = self._returned = self._returned_before = 0
        self._growing = self._closed = False
        self._futures: list[Future[Any]] = []
        if self._left:
            self._begin()

    @property
    def waiting(self) -> bool:
        """Whether a call has not begun."""
        return bool(self._left)

    def grow(self) -> None:
        """Double the threads if the running calls seem to wait for something."""
        if self._returned == self._returned_before and not self._growing:
            more = min(self._threads, len(self._left), self._most - self._threads)
            self._growing = more > 1
            if more > 0 and not self._begin(more - 1):
                self._growing = False
        self._returned_before = self._returned

    def _begin(self, others: int = 0) -> bool:
        """Start a thread that starts `others` more, because each start takes time and the caller may be a loop.

        Returns:
            False if the system allows no more threads. The running ones then take all calls.
        """
        self._threads += 1
        try:
            threading.Thread(target=self._work, args=(others,), name="auction-agent", daemon=True).start()
        except RuntimeError:
            self._threads -= 1
            if not self._threads:
                raise
            return False
        return True

    def close(self) -> None:
        """Begin no further call, and cancel the futures that are not done."""
        self._closed = True
        self._left.clear()
        for future in self._futures:
            future.cancel()

    def _work(self, others: int) -> None:
        if others:
            while others and self._left and self._begin():
                others -= 1
            self._growing = False
        while self._left:
            try:
                place, call = self._left.popleft()
            except IndexError:  # another thread took the last call
                return
            outcome = call()
            self._returned += 1  # not exact with several threads, but any change will do
            if isinstance(outcome, Future):
                self._futures.append(outcome)
                outcome.add_done_callback(partial(self._deliver_future, place))
            else:
                self._deliver(place, outcome)

    def _deliver_future(self, place: int, future: Future[Any]) -> None:
        if not (self._closed and future.cancelled()):
            self._deliver(place, future)


def outcomes_of(
    calls: Sequence[Call], timeout: float | None, *, most: int | None = None
) -> Generator[tuple[int, Any], None, None]:
    """Yield (place, outcome) of the calls as they finish, until all have or the time is up.

    The outcome of a call that returns a `Future` is that future, once it is done.

    Args:
        calls: must not raise; see `attempt`.
        timeout: seconds; None waits for ever.
        most: calls that may run at once; None is all.

    >>> sorted(outcomes_of([lambda: "a", lambda: "b"], timeout=None))
    [(0, 'a'), (1, 'b')]
    """
    done: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    deadline = None if timeout is None else monotonic() + timeout
    workers = _Workers(calls, lambda place, outcome: done.put((place, outcome)), most)
    left, tick = len(calls), monotonic() + _TICK
    try:
        while left:
            rest = None if deadline is None else max(0.0, deadline - monotonic())
            if rest == 0.0:
                workers.close()
            try:
                yield done.get(timeout=min(_TICK, _TICK if rest is None else rest) if workers.waiting else rest)
                left -= 1
            except Empty:
                if rest == 0.0:
                    return
            if monotonic() >= tick:
                workers.grow()
                tick = monotonic() + _TICK
    finally:
        workers.close()


@contextlib.asynccontextmanager
async def running(calls: Sequence[Call], deliver: Callable[[int, Any], None]) -> AsyncIterator[None]:
    """Run the calls while the block lasts, and call `deliver(place, outcome)` for each in the running loop."""
    loop = asyncio.get_running_loop()
    arrived: deque[tuple[int, Any]] = deque()
    woken = threading.Event()

    def deliver_all() -> None:
        woken.clear()
        while arrived:
            deliver(*arrived.popleft())

    def wake(place: int, outcome: Any) -> None:
        arrived.append((place, outcome))
        if not woken.is_set():  # one wake-up serves many outcomes: it may take longer than a call
            woken.set()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(deliver_all)

    workers = _Workers(calls, wake)
    timer: asyncio.TimerHandle | None = None

    def grow() -> None:
        nonlocal timer
        workers.grow()
        timer = loop.call_later(_TICK, grow) if workers.waiting else None

    timer = loop.call_later(_TICK, grow)
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        workers.close()


def attempt(call: Call) -> tuple[Any, BaseException | None]:
    """Return what a call returns, and None; or None, and what it raises.

    >>> attempt(lambda: 1 / 0)
    (None, ZeroDivisionError('division by zero'))
    """
    try:
        return call(), None
    except BaseException as error:  # noqa: BLE001 - the caller decides where to raise it
        return None, error


async def in_thread(call: Call) -> Any:
    """Return what a call returns, or raise what it raises. A call that hangs delays no exit, unlike `to_thread`'s."""
    result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def deliver(_: int, outcome: tuple[Any, BaseException | None]) -> None:
        if not result.done():
            result.set_result(outcome)

    async with running([partial(copy_context().run, attempt, call)], deliver):
        value, error = await result
    if error is not None:
        raise error
    return value
