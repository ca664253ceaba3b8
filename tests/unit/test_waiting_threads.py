"""Threads for calls that may never return: none of them holds up another call, the caller or an exit."""

import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextvars import ContextVar

import pytest

from llm_auction_chain import waiting
from llm_auction_chain.waiting import attempt, in_thread, outcomes_of, running

LONG = 60.0  # seconds that no working machine needs


@pytest.fixture
def gate():
    gate = threading.Event()
    yield gate
    gate.set()


def test_outcomes_come_as_calls_finish_and_none_is_lost(gate):
    def last():
        assert gate.wait(LONG)
        return "last"

    outcomes = []
    for place, outcome in outcomes_of([last, lambda: "first"], timeout=None):
        outcomes.append((place, outcome))
        gate.set()
    assert outcomes == [(1, "first"), (0, "last")]
    assert list(outcomes_of([], timeout=None)) == []


def test_after_the_timeout_no_call_is_waited_for_and_none_begins(gate):
    began = []

    def hangs():
        began.append(1)
        gate.wait()

    assert list(outcomes_of([hangs] * 5, timeout=0.1, most=1)) == []
    assert len(began) == 1


def test_no_more_calls_are_under_way_at_once_than_allowed():
    lock, three = threading.Lock(), threading.Barrier(3)
    under_way = most = 0

    def call():
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        three.wait(LONG)
        with lock:
            under_way -= 1

    assert len(list(outcomes_of([call] * 9, timeout=None, most=3))) == 9
    assert most == 3


def test_a_future_is_an_outcome_once_it_is_done_and_keeps_no_thread():
    futures = [Future() for _ in range(50)]

    def set_all():
        for future in futures:
            future.set_result(1.0)

    threading.Timer(0.05, set_all).start()
    outcomes = dict(outcomes_of([lambda future=future: future for future in futures], timeout=LONG))
    assert [outcomes[k] for k in range(50)] == futures
    assert all(future.done() for future in futures)


def test_a_future_that_is_late_is_cancelled():
    future = Future()
    assert list(outcomes_of([lambda: future], timeout=0.05)) == []
    assert future.cancelled()


async def test_a_loop_hears_of_every_outcome_and_of_none_after_the_block(gate):
    heard, both = [], asyncio.Event()

    def deliver(place, outcome):
        heard.append((place, outcome))
        if len(heard) == 2:
            both.set()

    async with running([lambda: "a", lambda: "b", gate.wait], deliver):
        await asyncio.wait_for(both.wait(), LONG)
    assert sorted(heard) == [(0, "a"), (1, "b")]


async def test_a_call_in_a_thread_returns_or_raises():
    assert await in_thread(lambda: 7) == 7
    with pytest.raises(LookupError, match="no"):
        await in_thread(lambda: (_ for _ in ()).throw(LookupError("no")))


def test_an_attempt_returns_what_a_call_raises():
    assert attempt(lambda: 7) == (7, None)
    value, error = attempt(lambda: {}["a"])
    assert value is None
    assert isinstance(error, KeyError)


def test_a_thread_takes_one_call_after_another_and_ends_without_any(monkeypatch):
    monkeypatch.setattr(waiting, "_inboxes", [])
    monkeypatch.setattr(waiting, "_IDLE", 0.2)

    def thread_of_a_call():
        ((_, thread),) = outcomes_of([threading.current_thread], timeout=LONG)
        while not waiting._inboxes:  # it has delivered, and is not back yet
            time.sleep(0.001)
        return thread

    first, second = thread_of_a_call(), thread_of_a_call()
    assert first is second
    first.join(LONG)
    assert not first.is_alive()
    assert waiting._inboxes == []
    third = thread_of_a_call()
    assert third is not first
    third.join(LONG)  # or it would wait in a list that is gone after this test


def test_a_thread_whose_start_is_interrupted_ends_too(monkeypatch):
    monkeypatch.setattr(waiting, "_inboxes", [])
    monkeypatch.setattr(waiting, "_IDLE", 0.01)
    started, start = [], threading.Thread.start

    def interrupted(self):
        started.append(self)
        start(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(outcomes_of([int], timeout=LONG))
    started[0].join(LONG)
    assert not started[0].is_alive()


def test_no_call_is_lost_to_a_thread_that_is_about_to_end(monkeypatch):
    monkeypatch.setattr(waiting, "_IDLE", 1e-5)
    for k in range(2000):
        assert list(outcomes_of([lambda k=k: k], timeout=LONG)) == [(0, k)]
        time.sleep(k % 3 * 1e-5)


async def test_a_call_that_hangs_keeps_no_other_from_a_thread(gate):
    hanging = [asyncio.ensure_future(in_thread(gate.wait)) for _ in range(5)]
    await asyncio.sleep(0)
    assert await asyncio.wait_for(in_thread(lambda: "answer"), LONG) == "answer"
    gate.set()
    assert await asyncio.gather(*hanging) == [True] * 5


FORK = """
import asyncio, os, sys
from llm_auction_chain import waiting
async def forks():
    await waiting.in_thread(int)
    while not waiting._inboxes:
        await asyncio.sleep(0)
    return os.fork()
child = asyncio.run(forks())
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
sys.exit(list(waiting.outcomes_of([int], timeout=60)) != [(0, 0)])
"""


def test_a_forked_process_starts_threads_of_its_own():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=2 * LONG)  # noqa: S603 - our own code


async def test_what_a_call_leaves_in_its_context_is_gone_for_the_next():
    name = ContextVar("name", default="nothing")
    for _ in range(3):
        assert await in_thread(lambda: (name.get(), name.set("left"))[0]) == "nothing"
