"""Group commit: calls that wait at the same time run together, in one transaction."""

from collections.abc import Callable, Sequence
from threading import Lock, get_ident
from typing import Any, Generic, TypeVar

from llm_auction_chain.errors import LedgerUnavailableError

C = TypeVar("C")
T = TypeVar("T")
Outcome = tuple[Any, Exception | None]  # what a call returns, or what it raises
_MOST = 128  # calls of one group: other processes wait until its transaction ends


class _Call(Generic[C]):
    """A call, and what becomes of it."""

    def __init__(self, work: C) -> None:
        self.work = work
        self.outcome: Outcome | None = None
        self.woken = Lock()
        self.woken.acquire()


class Groups(Generic[C]):
    """Runs calls of many threads in groups, one group after the other.

    The first call leads: it runs in its own thread, with all that wait by then. Calls that arrive meanwhile form the
    next group, which one of them leads. A single call does not wait, and concurrent calls share a transaction. If the
    thread that leads is interrupted, as by Ctrl-C, the others of its group run again with the next.

    >>> groups = Groups()
    >>> groups.call(lambda group: [(work + 1, None) for work in group], 1)
    2
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: list[_Call[C]] = []
        self._group: list[_Call[C]] = []
        self._leader: _Call[C] | None = None
        self._threads: set[int] = set()  # in which a call is under way

    def call(self, run: Callable[[list[C]], Sequence[Outcome]], work: C) -> Any:
        """Return or raise the outcome of `work`, which `run` returns for each of a group.

        Raises:
            LedgerUnavailableError: a signal handler or a finalizer calls, in a thread that is within a call already.
        """
        call, thread = _Call(work), get_ident()
        if thread in self._threads:  # it would wait for itself
            raise LedgerUnavailableError(
                "This thread is booking already, and a signal handler or a finalizer asked for another booking. Ask "
                "from another thread, or later."
            )
        try:
            self._threads.add(thread)
            with self._lock:
                self._waiting.append(call)
                if self._leader is None:
                    self._leader = call
            while call.outcome is None:
                with self._lock:
                    leads = self._leader is call
                if leads:
                    self._lead(run)
                else:
                    call.woken.acquire()
        finally:
            try:
                self._leave(call)
            except BaseException:  # interrupted: all of it again
                self._leave(call)
                raise
            finally:
                self._threads.discard(thread)
        value, error = call.outcome
        if error is not None:
            raise error
        return value

    def _lead(self, run: Callable[[list[C]], Sequence[Outcome]]) -> None:
        with self._lock:
            self._group = self._waiting[:_MOST]  # first: interrupted here, no call must be in neither
            self._waiting = self._waiting[_MOST:]
            group = self._group.copy()  # with those that are interrupted meanwhile
        outcomes = run([call.work for call in group])
        for call, outcome in zip(group, outcomes, strict=True):
            call.outcome = outcome

    def _leave(self, call: _Call[C]) -> None:
        """Forget a call that is over or interrupted. Where it leads, wake its group, and let the next lead.

        It may be interrupted anywhere: until another leads, a repetition does all of it.
        """
        with self._lock:
            for calls in (self._waiting, self._group):
                if call in calls:
                    calls.remove(call)
            if self._leader is not call:
                return
            self._waiting = [one for one in dict.fromkeys((*self._group, *self._waiting)) if one.outcome is None]
            over = [one for one in self._group if one.outcome is not None]
            for one in (*self._waiting[:1], *over):  # the next leader first: all others wait for its transaction
                if one.woken.locked():
                    one.woken.release()
            self._group = []
            self._leader = self._waiting[0] if self._waiting else None
