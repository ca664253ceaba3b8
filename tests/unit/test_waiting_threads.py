"""Threads for calls that may never return: none of them holds up another call, the caller or an exit."""

import asyncio
import threading
from concurrent.futures import Future

import pytest

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
