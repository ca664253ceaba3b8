"""Threads for code that may never return: few for quick calls, one each for those that wait, none that delays an exit.

A thread cannot be stopped. These are daemons, so the interpreter leaves without them, and after the deadline nobody
waits for one: not this auction, nor the pool of another.
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

__all__ = ["attempt", "finished", "hearing", "in_thread"]

Call = Callable[[], Any]

_TICK = 0.002  # seconds without an answer after which the calls under way are taken to be waiting for something


class _Workers:
    """Runs calls, and tells (place, outcome) of each in the thread that ran it.

    It begins with one thread: quick calls in Python gain nothing by more. `grow` doubles them where no call has
    returned since it was last asked, so that calls that wait are soon all under way.
    """

    def __init__(self, calls: Sequence[Call], tell: Callable[[int, Any], None], most: int | None = None) -> None:
        self._left = deque(enumerate(calls))
        self._tell = tell
        self._most = len(calls) if most is None else most
        self._threads = self._returned = self._seen = 0
        self._growing = self._closed = False
        self._futures: list[Future[Any]] = []
        if self._left:
            self._begin()

    @property
    def waiting(self) -> bool:
        """Whether a call has not begun."""
        return bool(self._left)

    def grow(self) -> None:
        """Begin more calls at once, where those under way seem to wait for something."""
        if self._returned == self._seen and not self._growing:
            more = min(self._threads, len(self._left), self._most - self._threads)
            self._growing = more > 1
            if more > 0 and not self._begin(more - 1):
                self._growing = False
        self._seen = self._returned

    def _begin(self, others: int = 0) -> bool:
        """Start a thread, which starts so many others: each start waits for its thread, and the caller may be a loop.

        Returns:
            Whether it was started; where the system allows no more, those that run will come to the rest.
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
            except IndexError:  # another thread took the last one
                return
            outcome = call()
            self._returned += 1  # by several threads at once, and any change will do
            if isinstance(outcome, Future):
                self._futures.append(outcome)
                outcome.add_done_callback(partial(self._tell_future, place))
            else:
                self._tell(place, outcome)

    def _tell_future(self, place: int, future: Future[Any]) -> None:
        if not (self._closed and future.cancelled()):
            self._tell(place, future)


def finished(
    calls: Sequence[Call], timeout: float | None, *, most: int | None = None
) -> Generator[tuple[int, Any], None, None]:
    """Yield (place, outcome) of the calls as they finish, until all have or the timeout, in seconds, is over.

    Args:
        calls: they raise nothing.
        timeout: None waits for ever.
        most: how many may be under way at once; None is all.

    >>> sorted(finished([lambda: "a", lambda: "b"], timeout=None))
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
async def hearing(calls: Sequence[Call], heard: Callable[[int, Any], None]) -> AsyncIterator[None]:
    """Run the calls while the block lasts, and tell (place, outcome) of each in the running loop."""
    loop = asyncio.get_running_loop()
    unheard: deque[tuple[int, Any]] = deque()
    woken = threading.Event()

    def hear() -> None:
        woken.clear()
        while unheard:
            heard(*unheard.popleft())

    def tell(place: int, outcome: Any) -> None:
        unheard.append((place, outcome))
        if not woken.is_set():  # waking the loop costs more than the call may have
            woken.set()
            with contextlib.suppress(RuntimeError):  # late, and the loop is closed
                loop.call_soon_threadsafe(hear)

    workers = _Workers(calls, tell)

    growing: asyncio.TimerHandle | None = None

    def grow() -> None:
        nonlocal growing
        workers.grow()
        growing = loop.call_later(_TICK, grow) if workers.waiting else None

    growing = loop.call_later(_TICK, grow)
    try:
        yield
    finally:
        if growing is not None:
            growing.cancel()
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

    async with hearing([partial(copy_context().run, attempt, call)], deliver):
        value, error = await result
    if error is not None:
        raise error
    return value
