"""Asyncio tasks are cancelled: at random awaits, and at each turn of the loop after the charge."""

import asyncio
import contextlib
import threading
import time
import warnings
from random import Random

import pytest

from llm_auction_chain import AuctionWarning
from llm_auction_chain.auction.billing import Tab
from llm_auction_chain.ledger import Ledger
from tests.ledger.faults.driver import DEPOSIT
from tests.ledger.faults.worker import CURRENCY, OWNERS, auction_of, config_of, delivery_of

TASKS, AT_ONCE, TURNS = 160, 4, 12


@pytest.fixture
def ledger(url):
    with Ledger(url) as made:
        for owner in OWNERS[:-1]:
            made.deposit(owner, DEPOSIT, currency=CURRENCY, key=f"first {owner}")
        yield made


@pytest.fixture(autouse=True)
def quiet():
    """An auction whose key was given up is held again without sponsors, and says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AuctionWarning)
        yield


async def delivered_of(key, ledger, **settings):
    """Return the delivery of one auction."""
    return delivery_of(key, await auction_of(key, ledger, **settings).ainvoke("Say something", config_of(key)))


async def end_of_threads():
    """Wait for the threads that cancelled auctions have left behind."""
    limit = time.monotonic() + 60
    while left := [thread for thread in threading.enumerate() if thread.name == "auction-agent"]:
        if time.monotonic() > limit:
            pytest.fail(f"{len(left)} threads of cancelled auctions are still running after 60 s.")
        await asyncio.sleep(0.01)


async def test_cancelled_at_random_what_is_not_delivered_is_not_charged(url, ledger, settle):
    rng, delivered, cancelled = Random(29), [], []
    await asyncio.gather(*(delivered_of(f"first-{n}", ledger) for n in range(AT_ONCE)))
    begun = time.perf_counter()
    delivered += await asyncio.gather(*(delivered_of(f"second-{n}", ledger) for n in range(AT_ONCE)))
    longest = 2 * (time.perf_counter() - begun)
    delivered += [await delivered_of(f"first-{n}", ledger) for n in range(AT_ONCE)]

    async def client(share):
        for n in range(TASKS // AT_ONCE):
            key = f"{share}-{n}"
            try:
                async with asyncio.timeout(rng.uniform(0, longest)):
                    delivered.append(await delivered_of(key, ledger))
            except TimeoutError:
                cancelled.append(key)

    await asyncio.gather(*map(client, range(AT_ONCE)))
    await end_of_threads()
    assert 0 < len(cancelled) < TASKS
    settle("asyncio task cancelled at random", url, len(cancelled), delivered)
    delivered += [await delivered_of(key, ledger) for key in cancelled]
    settle("... and all of them asked for again", url, len(cancelled), delivered)


async def test_cancelled_at_each_turn_after_the_charge_it_is_taken_back(url, ledger, settle):
    delivered, cancelled = [], 0
    for turns in range(TURNS):
        tasks = []
        key, listener = f"turn-{turns}", cancelling(tasks, turns)
        tasks.append(asyncio.ensure_future(delivered_of(key, ledger, on_event=listener)))
        with contextlib.suppress(asyncio.CancelledError):
            delivered.append(await tasks[0])
        cancelled += tasks[0].cancelled()
    await end_of_threads()
    assert cancelled > 0
    settle("asyncio task cancelled after the charge", url, cancelled, delivered)


async def test_cancelled_while_the_charge_overtakes_the_void_it_is_taken_back(url, ledger, settle, monkeypatch):
    settled, voiding, charged = threading.Event(), threading.Event(), threading.Event()
    void, charge = Ledger.void, Tab.charge

    def late_void(self, *args, **keywords):
        voiding.set()
        charged.wait(1)
        return void(self, *args, **keywords)

    def late_charge(self, result):
        settled.set()
        voiding.wait(1)
        made = charge(self, result)
        charged.set()
        return made

    monkeypatch.setattr(Ledger, "void", late_void)
    monkeypatch.setattr(Tab, "charge", late_charge)
    task = asyncio.ensure_future(delivered_of("overtaken", ledger))
    await asyncio.to_thread(settled.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await end_of_threads()
    settle("charge overtakes the void", url, 1, [])


def cancelling(tasks, turns):
    """Return a listener that cancels the first task so many turns of the loop after the auction is settled."""

    def turn(left):
        if left:
            asyncio.get_running_loop().call_soon(turn, left - 1)
        else:
            tasks[0].cancel()

    return lambda event: turn(turns) if event.name == "auction.settled" else None
