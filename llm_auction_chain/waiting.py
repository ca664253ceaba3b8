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

Threads run calls that may never return. A thread cannot be stopped, so these are daemons: the interpreter exits without
them, and after a deadline nothing waits for them. Quick calls share a few threads; calls that wait get one each. A
thread that has nothing to do waits half a second for further calls, of any auction, and ends. Only for a block of
compiled code, which would abort the process, the exit waits: `exit_waits`.
"""

import asyncio
import atexit
import contextlib
import itertools
import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextvars import Context, copy_context
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import Any, TypeVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from typing_extensions import override

__all__ = [
    "AWAITING",
    "BLOCKING",
    "Waiter",
    "WaitingChatModel",
    "attempt",
    "exit_waits",
    "in_thread",
    "outcomes_of",
    "run",
    "running",
]

Call = Callable[[], Any]
T = TypeVar("T")
Calls = Sequence[Callable[[], Coroutine[Any, Any, T]]]
Progress = Callable[[int], None] | None
_PATIENCE = 60.0  # seconds that the interpreter's exit waits for threads in compiled code
_TICK = 0.002  # seconds without a result after which the running calls are assumed to wait for something
_IDLE = 0.5  # seconds without work after which a thread ends


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
        gate = asyncio.Semaphore(most) if most else contextlib.nullcontext()
        returned = itertools.count(1)

        async def one(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
            async with gate:
                result = await call()
            if progress is not None:
                progress(next(returned))
            return result

        begin = (lambda call: call()) if most is None and progress is None else one
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(begin(call)) for call in calls]
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


class WaitingChatModel(BaseChatModel):
    """A chat model that waits for a server or for other models. Its work is written once, in `_reply`."""

    @abstractmethod
    async def _reply(
        self, messages: list[BaseMessage], stop: list[str] | None, run_manager: Any, waiter: Waiter, /, **kwargs: Any
    ) -> ChatResult:
        """Return the replies to one prompt."""

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return run(self._reply(messages, stop, run_manager, BLOCKING, **kwargs))

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await self._reply(messages, stop, run_manager, AWAITING, **kwargs)


def _finish(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return run(call())


_inboxes: list[SimpleQueue[Callable[[], None]]] = []  # of idle threads, the latest at the end
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inboxes.clear)  # the threads stay in the parent


def _dispatch(work: Callable[[], None]) -> None:
    """Run work, which must not raise, in an idle thread; start one if there is none.

    Raises:
        RuntimeError: the system allows no more threads.
    """
    try:
        _inboxes.pop().put(work)
    except IndexError:
        inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        inbox.put(work)  # first, or a thread whose start Ctrl-C interrupts would wait for ever
        threading.Thread(target=_run_calls, args=(inbox,), name="auction-agent", daemon=True).start()


def _run_calls(inbox: "SimpleQueue[Callable[[], None]]") -> None:
    while True:
        try:
            work = inbox.get(timeout=_IDLE)
        except Empty:
            try:
                _inboxes.remove(inbox)
            except ValueError:  # a call has just taken it
                work = inbox.get()
            else:
                return
        work()
        del work  # keeps nothing of an auction alive
        _inboxes.append(inbox)


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
            _dispatch(partial(self._work, others))
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

    if workers.waiting:
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
    loop = asyncio.get_running_loop()
    result: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
    context = copy_context()

    def deliver(outcome: tuple[Any, BaseException | None]) -> None:
        if not result.done():
            result.set_result(outcome)

    def work() -> None:
        outcome = context.run(attempt, call)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(deliver, outcome)

    _dispatch(work)
    value, error = await result
    if error is not None:
        raise error
    return value


_computing: list[threading.Thread] = []
_entering, _exiting = threading.Lock(), threading.Event()


@contextlib.contextmanager
def exit_waits() -> Iterator[None]:
    """Make the interpreter's exit wait for the block, which calls long into C++ or Rust.

    A daemon thread that comes back from there while the interpreter exits is unwound, and their code then aborts the
    process.

    Raises:
        CancelledError: the interpreter exits already.
    """
    thread = threading.current_thread()
    with _entering:
        if _exiting.is_set():
            raise CancelledError("The interpreter exits.")
        _computing.append(thread)
    try:
        yield
    finally:
        _computing.remove(thread)


@atexit.register
def _wait_for_compiled_code() -> None:
    with _entering:
        _exiting.set()
    end, own = monotonic() + _PATIENCE, threading.current_thread()
    # In a forked process, the threads of its parent are not alive.
    while any(thread is not own and thread.is_alive() for thread in list(_computing)) and monotonic() < end:
        sleep(_TICK)
