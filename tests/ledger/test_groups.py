"""Bookings that share a transaction: each caller is told of its own outcome, and of nobody else's."""

import asyncio
import contextlib
import itertools
import linecache
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

import pytest
from sqlalchemy.exc import OperationalError

from llm_auction_chain import Agent, AuctionRunnable
from llm_auction_chain.errors import ChargeConflictError, CoverError, LedgerError, LedgerUnavailableError
from llm_auction_chain.ledger import Ledger
from llm_auction_chain.ledger import groups as module
from llm_auction_chain.ledger.groups import Groups
from llm_auction_chain.ledger.statements import Transaction
from llm_auction_chain.testing import MarkovChatModel


class Gate:
    """A clock that lets the first transaction wait until it is opened, so that all others arrive meanwhile."""

    def __init__(self):
        self.shut, self.reached, self.asked = False, threading.Event(), 0
        self._opened = threading.Event()

    def __call__(self):
        self.asked += 1
        if self.shut:
            self.shut = False
            self.reached.set()
            assert self._opened.wait(60)
        return datetime.now(UTC)

    def open(self):
        self._opened.set()


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture(autouse=True)
def ctrl_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def ledger(url, gate):
    with Ledger(url, clock=gate) as made:
        for owner in ("A", "B"):
            made.deposit(owner, 100, key=f"bank {owner}")
        yield made


def together(ledger, gate, *calls):
    """Return the outcomes of calls that share one transaction, and how often the clock was asked for it."""
    gate.shut = True
    with ThreadPoolExecutor(len(calls) + 1) as pool:
        first = pool.submit(ledger.deposit, "first", 1)
        assert gate.reached.wait(60)
        asked = gate.asked
        futures = []
        for count, call in enumerate(calls, 1):
            futures.append(pool.submit(call))
            wait_for(ledger, count)
        gate.open()
        first.result()
        outcomes = [future.exception() or future.result() for future in futures]
    return outcomes, gate.asked - asked


def wait_for(ledger, count):
    until = time.monotonic() + 60
    while len(ledger._database.groups._waiting) < count:
        assert time.monotonic() < until
        time.sleep(0.001)


def test_those_who_wait_at_the_same_time_share_one_transaction(ledger, gate):
    outcomes, transactions = together(
        ledger, gate, *(lambda n=n: ledger.hold(f"auction {n}", {"A": 1}) for n in range(20))
    )
    assert transactions == 1
    assert [hold.seq for hold in outcomes] == list(range(4, 24))
    assert ledger.balance("A").held == 20
    assert ledger.verify().ok


def test_a_bad_booking_does_not_fail_its_neighbours(ledger, gate):
    ledger.hold("held", {"A": 10})
    calls = [
        lambda: ledger.hold("mine", {"A": 90, "B": 1}),
        lambda: ledger.withdraw("A", 1),  # all of it is held by then
        lambda: ledger.hold("mine", {"A": 1}),  # another request under the same id
        lambda: ledger.charge("held", {"A": 11}),
        lambda: ledger.charge("held", {"A": 4}),
        lambda: ledger.charge("held", {"A": 4}),
        lambda: ledger.charge("held", {"A": 5}),
        lambda: ledger.deposit("B", 7, key="bank B, again"),
        lambda: ledger.deposit("B", 8, key="bank B, again"),
        lambda: ledger.charge("uncovered", {"C": 1}, currency="EUR"),
    ]
    (mine, withdrawn, other, above, charged, again, differs, deposit, conflict, uncovered), transactions = together(
        ledger, gate, *calls
    )
    assert transactions == 1
    assert (mine.amounts, mine.without_cover) == ({"A": 90, "B": 1}, ())
    assert type(withdrawn) is type(above) is type(uncovered) is CoverError
    assert type(other) is type(conflict) is ChargeConflictError
    assert charged == again
    assert differs.charge == charged
    assert deposit.entries[0].amount == 7
    assert {account.owner: (account.balance, account.held) for account in ledger.accounts()} == {
        "A": (96, 90),
        "B": (107, 1),
        "first": (1, 0),
    }
    assert [total.currency for total in ledger.totals()] == [""]
    assert ledger.verify().differences == []


def test_cover_is_counted_in_the_order_of_the_callers(ledger, gate):
    calls = [lambda n=n: ledger.hold(f"auction {n}", {"A": 60}) for n in range(3)]
    holds, _ = together(ledger, gate, *calls)
    assert [hold.without_cover for hold in holds] == [(), ("A",), ("A",)]


def test_a_hold_is_released_once_however_often_its_auction_is_in_the_group(ledger, gate):
    ledger.hold("auction", {"A": 40})
    charge = partial(ledger.charge, "auction", {"A": 1})
    _, *refused = together(ledger, gate, lambda: ledger.void("auction"), charge, charge)[0]
    assert {type(error) for error in refused} == {ChargeConflictError}
    assert ledger.balance("A").held == 0
    assert ledger.verify().differences == []


def test_a_fault_of_the_database_fails_the_group_with_one_error_and_a_repetition_books_once(ledger, gate, monkeypatch):
    attempts, commit = [], Transaction.commit

    def lose(transaction):
        commit(transaction)
        if ledger._database.groups._group[1:]:
            attempts.append(True)
            raise OperationalError("COMMIT", None, Exception("the answer was lost"))

    calls = [lambda n=n: ledger.charge(f"auction {n}", {"A": 1}) for n in range(5)]
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "commit", lose)
        outcomes, _ = together(ledger, gate, *calls)
    assert len(attempts) == 3
    assert {type(error) for error in outcomes} == {LedgerUnavailableError}
    assert len({str(error) for error in outcomes}) == 1
    assert len({id(error) for error in outcomes}) == 5
    assert "the answer was lost" in str(outcomes[0].__cause__)
    for call in calls:
        call()
    assert ledger.balance("A").balance == 95
    assert ledger.verify().differences == []


def test_what_the_database_refuses_of_one_fails_that_one_alone(ledger, gate, edit):
    edit("INSERT INTO receipts (auction_id, digest, body, reply) VALUES ('auction 2', '', '', '')")
    calls = [lambda n=n: ledger.charge(f"auction {n}", {"A": 1}, receipt={"digest": "d"}) for n in range(4)]
    outcomes, transactions = together(ledger, gate, *calls)
    assert [isinstance(outcome, LedgerError) for outcome in outcomes] == [False, False, True, False]
    assert transactions == 5
    assert ledger.balance("A").balance == 97


def test_a_clock_that_fails_is_told_to_everybody(ledger, gate, monkeypatch):
    monkeypatch.setattr(gate, "open", lambda: (setattr(ledger, "_clock", lambda: 1 / 0), Gate.open(gate)))
    outcomes, _ = together(ledger, gate, lambda: ledger.deposit("A", 1), lambda: ledger.deposit("B", 1))
    assert [type(outcome) for outcome in outcomes] == [LedgerError, LedgerError]


def test_a_leader_that_is_interrupted_leaves_its_group_to_the_next():
    groups, started = Groups(), threading.Event()

    def run(group):
        if "interrupted" in group:
            started.set()
            time.sleep(60)
        return [(work, None) for work in group]

    def arrive():
        assert started.wait(60)
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(groups.call, run, n) for n in range(3)]
            until = time.monotonic() + 60
            while len(groups._waiting) < 3:
                assert time.monotonic() < until
                time.sleep(0.001)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            found.extend(future.result(60) for future in futures)

    found = []
    others = threading.Thread(target=arrive)
    others.start()
    with pytest.raises(KeyboardInterrupt):
        groups.call(run, "interrupted")
    others.join()
    assert found == [0, 1, 2]
    assert groups.call(run, 3) == 3


def test_one_that_is_interrupted_while_it_waits_is_not_booked():
    groups, started, go_on, ran = Groups(), threading.Event(), threading.Event(), []

    def run(group):
        started.set()
        assert go_on.wait(60)
        ran.extend(group)
        return [(work, None) for work in group]

    def interrupt():
        while not groups._waiting:
            time.sleep(0.001)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(groups.call, run, "first")
        assert started.wait(60)
        interrupting = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            groups.call(run, "interrupted")
        interrupting.result()
        go_on.set()
        assert first.result() == "first"
    assert groups.call(run, "next") == "next"
    assert ran == ["first", "next"]


def test_a_leader_that_is_interrupted_leaves_out_those_who_were_interrupted_before_it():
    groups, started, go_on, ran = Groups(), threading.Event(), threading.Event(), []

    def run(group):
        ran.extend(group)
        if "first" in group:
            until(lambda: len(groups._waiting) == 2)
        elif "leader" in group:
            started.set()
            assert go_on.wait(60)
            raise SystemExit
        return [(work, None) for work in group]

    def until(condition):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.001)

    def interrupt():
        assert started.wait(60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with ThreadPoolExecutor(3) as pool:
        pool.submit(groups.call, run, "first")
        until(lambda: ran)
        leader = pool.submit(groups.call, run, "leader")
        until(lambda: groups._waiting)
        pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            groups.call(run, "interrupted")
        last = pool.submit(groups.call, run, "last")
        until(lambda: groups._waiting)
        go_on.set()
        with pytest.raises(SystemExit):
            leader.result(60)
        assert last.result(60) == "last"
    assert ran == ["first", "leader", "interrupted", "last"]


def until_waiting(groups, calls):
    while len(groups._waiting) < calls:
        time.sleep(0.0001)


@pytest.mark.parametrize("early", [True, False], ids=["of its group", "of the next"])
def test_a_leader_that_is_interrupted_at_any_line_leaves_nobody_waiting(early):
    def attempt(place):
        """Interrupt a leader at a line of the module; return whether it has that many."""
        groups, passed, lines = Groups(), threading.Event(), itertools.count()

        def run(group):
            if "first" in group:
                leaders.append(pool.submit(lead))
                until_waiting(groups, 1)
            if ("first" if early else "leader") in group:
                others.extend(pool.submit(groups.call, run, n) for n in range(2))
                until_waiting(groups, 2 + early)
            return [(work, None) for work in group]

        def trace(frame, event, _):
            if frame.f_code not in (Groups._lead.__code__, Groups._leave.__code__):
                return None
            line = linecache.getline(module.__file__, frame.f_lineno).strip()
            if event == "line" and not line.startswith("with ") and next(lines) == place:  # Python enters those whole
                passed.set()
                raise KeyboardInterrupt
            return trace

        def lead():
            sys.settrace(trace)
            with contextlib.suppress(KeyboardInterrupt):
                groups.call(run, "leader")
            sys.settrace(None)

        leaders, others = [], []
        with ThreadPoolExecutor(4) as pool:
            assert pool.submit(groups.call, run, "first").result(60) == "first"
            leaders[0].result(60)
            assert [other.result(60) for other in others] == [0, 1][: len(others)]
            assert pool.submit(groups.call, run, "next").result(60) == "next"
        return passed.is_set()

    assert sum(itertools.takewhile(bool, map(attempt, itertools.count()))) > 15


def test_a_connection_that_was_interrupted_is_not_used_again(ledger, monkeypatch):
    interrupted = []

    def interrupt(*connection_and_what_it_waits_for):
        interrupted.extend(connection_and_what_it_waits_for[:1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("psycopg.Connection.wait", interrupt)  # before the answer is read to its end
        if ledger._database.url.get_backend_name() == "sqlite":
            patch.setattr(ledger, "_clock", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ledger.deposit("A", 1, key="interrupted")
    assert all(connection.closed for connection in interrupted)
    assert ledger.deposit("A", 1, key="interrupted").seq == 3
    assert ledger.verify().differences == []


def test_a_signal_handler_within_a_booking_is_refused_and_not_waited_for(ledger, monkeypatch):
    errors = []

    def clock():
        if not errors:
            with pytest.raises(LedgerUnavailableError) as refused:
                ledger.cancel("auction")
            errors.append(refused.value)
        return datetime.now(UTC)

    ledger.hold("auction", {"A": 40})
    monkeypatch.setattr(ledger, "_clock", clock)
    ledger.deposit("A", 1)
    assert [str(error)[:30] for error in errors] == ["This thread is booking already"]
    ledger.hold("next", {"A": 1})
    assert ledger.balance("A").held == 1


async def test_async_callers_share_transactions_and_one_that_is_cancelled_charges_nothing(ledger, gate):
    agents = [Agent(owner, lambda prompt, reply: float(reply.text.count("b"))) for owner in ("A", "B")]
    auction = AuctionRunnable(model=MarkovChatModel(), agents=agents, n_candidates=16, report_cap=1.0, billing=ledger)
    gate.shut = True
    first = asyncio.ensure_future(asyncio.to_thread(ledger.deposit, "first", 1))
    assert await asyncio.to_thread(gate.reached.wait, 60)
    asked = gate.asked
    calls = [asyncio.ensure_future(auction.ainvoke("x")) for _ in range(8)]
    await asyncio.to_thread(wait_for, ledger, 8)
    calls[3].cancel()
    await asyncio.sleep(0)
    gate.open()
    await first
    replies = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(replies.pop(3), asyncio.CancelledError)
    assert gate.asked - asked < 1 + 8 + 1
    charged = [reply.response_metadata["auction"]["charge"]["seq"] for reply in replies]
    assert len(set(charged)) == 7
    assert sum(entry.kind == "charge" for entry in ledger.entries(owner="A")) == 7
    assert all(account.held == 0 for account in ledger.accounts())
    assert ledger.verify().differences == []
