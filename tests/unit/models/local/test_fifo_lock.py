"""Turns come in the order in which they were asked for, and whoever is no longer waited for leaves."""

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from llm_auction_chain.models.local.fifo_lock import Queue


def wait_until(true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.001)


def line_up(pool, queue, done, *names, cancel=None):
    """Let threads ask for a turn, one surely after the other."""
    futures = []
    for name in names:
        before = len(queue._waiting)

        def take(name=name):
            with queue.turn(cancel):
                done.append(name)

        futures.append(pool.submit(take))
        wait_until(lambda before=before: len(queue._waiting) > before)
    return futures


def test_turns_come_in_the_order_in_which_they_were_asked_for():
    queue, done = Queue(), []
    with ThreadPoolExecutor(5) as pool:
        with queue.turn():
            futures = line_up(pool, queue, done, *range(5))
            assert not done
        for future in futures:
            future.result()
    assert done == list(range(5))


def test_an_abandoned_thread_leaves_and_the_next_one_goes_on():
    queue, done, cancel = Queue(), [], threading.Event()
    with ThreadPoolExecutor(2) as pool:
        with queue.turn():
            (abandoned,) = line_up(pool, queue, done, "abandoned", cancel=cancel)
            (next_one,) = line_up(pool, queue, done, "next")
            cancel.set()
            with pytest.raises(CancelledError):
                abandoned.result()
        next_one.result()
    assert done == ["next"]
    assert not queue._waiting


def test_a_turn_that_fails_is_handed_on():
    queue = Queue()
    with pytest.raises(ValueError, match="mine"), queue.turn():
        raise ValueError("mine")
    with queue.turn():
        assert len(queue._waiting) == 1
