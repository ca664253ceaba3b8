"""Who computes next: threads take turns in the order in which they asked."""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError

__all__ = ["Queue"]

_LOOKS = 0.05  # seconds between two looks at whether a waiting thread was abandoned


class Queue:
    """A lock that is handed on first come, first served; an abandoned thread leaves the queue."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    @contextlib.contextmanager
    def turn(self, cancel: threading.Event | None = None) -> Iterator[None]:
        """Wait for this thread's turn, and hold it for the block.

        Raises:
            CancelledError: `cancel` was set before the turn came.
        """
        mine = threading.Event()
        with self._lock:
            self._waiting.append(mine)
            self._waiting[0].set()
        try:
            while not mine.wait(None if cancel is None else _LOOKS):
                _check(cancel)
            _check(cancel)
            yield
        finally:
            with self._lock:
                self._waiting.remove(mine)
                if self._waiting:
                    self._waiting[0].set()


def _check(cancel: threading.Event | None) -> None:
    """Raise CancelledError where the event was set."""
    if cancel is not None and cancel.is_set():
        raise CancelledError("nobody waits for this any more")
