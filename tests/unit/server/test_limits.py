"""The queue in front of the auctions."""

import asyncio
from pathlib import Path

import pytest

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.server.limits import Capacity, Limits
from llm_auction_chain.server.wire import WireError


async def occupy(capacity, n, started, end):
    async with capacity.admit(n), capacity.slot():
        started.append(n)
        await end.wait()


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_no_more_auctions_run_at_once_than_allowed_and_they_run_in_their_order():
    capacity, started, ends = Capacity(Limits(auctions=2, queue=8, n=1)), [], [asyncio.Event() for _ in range(5)]
    tasks = []
    for place in range(5):
        tasks.append(asyncio.create_task(occupy(capacity, 1, started, ends[place])))
        await settle()
    assert (len(started), capacity.running, capacity.admitted) == (2, 2, 5)
    ends[0].set()
    await settle()
    assert (len(started), capacity.running, capacity.admitted) == (3, 2, 4)
    for end in ends:
        end.set()
    await asyncio.gather(*tasks)
    assert (capacity.running, capacity.admitted) == (0, 0)


async def test_a_request_beyond_the_queue_gets_429_and_a_time_to_retry():
    capacity, end = Capacity(Limits(auctions=1, queue=1, n=1)), asyncio.Event()
    tasks = [asyncio.create_task(occupy(capacity, 1, [], end)) for _ in range(2)]
    await settle()
    with pytest.raises(WireError) as caught:
        async with capacity.admit(1):
            raise AssertionError("admitted")
    assert caught.value.status == 429
    assert caught.value.retry_after >= 1
    end.set()
    await asyncio.gather(*tasks)
    async with capacity.admit(1):
        assert capacity.admitted == 1


async def test_the_time_to_retry_follows_how_long_auctions_take(monkeypatch):
    now = 0.0
    monkeypatch.setattr("llm_auction_chain.server.limits.monotonic", lambda: now)
    capacity = Capacity(Limits(auctions=1, queue=0, n=1))
    for _ in range(50):
        async with capacity.admit(1), capacity.slot():
            now += 30.0
    async with capacity.admit(1):
        with pytest.raises(WireError) as caught:
            async with capacity.admit(1):
                raise AssertionError("admitted")
    assert caught.value.retry_after == 30


async def test_all_auctions_of_a_request_are_admitted_or_none():
    capacity = Capacity(Limits(auctions=2, queue=1, n=3))
    async with capacity.admit(1):
        with pytest.raises(WireError):
            async with capacity.admit(3):
                raise AssertionError("admitted")
        async with capacity.admit(2):
            assert capacity.admitted == 3
        assert capacity.admitted == 1


async def test_a_request_that_is_cancelled_while_it_waits_leaves_its_place():
    capacity, started, end = Capacity(Limits(auctions=1, queue=2, n=1)), [], asyncio.Event()
    first, second = (asyncio.create_task(occupy(capacity, 1, started, end)) for _ in range(2))
    await settle()
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert (capacity.running, capacity.admitted) == (1, 1)
    end.set()
    await first
    assert len(started) == 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"auctions": 0}, "auctions must be a whole number of at least 1, got 0."),
        ({"queue": -1}, "queue must be a whole number"),
        ({"timeout": 0}, "timeout must be a number above 0"),
        ({"seconds": 1}, "Limits has no setting 'seconds'."),
    ],
)
def test_limits_that_cannot_be_are_refused(settings, text):
    with pytest.raises(ConfigurationError) as caught:
        Limits(**settings)
    assert text in str(caught.value)


def test_the_page_about_the_server_has_the_default_of_each_limit():
    page = (Path(__file__).parents[3] / "docs" / "how_to" / "server.md").read_text(encoding="utf-8")
    for name, value in Limits():
        assert f"| `{name}` | {value:.0f} |" in page
