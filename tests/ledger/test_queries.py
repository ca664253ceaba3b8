"""Money that comes and goes, and what accounts, statements and totals say of it."""

import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Context, Decimal, Inexact, localcontext

import pytest
from sqlalchemy.exc import OperationalError

from llm_auction_chain.errors import (
    ChargeConflictError,
    ConfigurationError,
    CoverError,
    LedgerError,
    LedgerUnavailableError,
)
from llm_auction_chain.ledger import Account, Ledger, Totals
from llm_auction_chain.ledger.statements import Transaction


def test_a_deposit_with_a_key_is_booked_once_and_without_one_each_time(ledger):
    first = ledger.deposit("A", "10", key="bank-1", note="wire")
    assert ledger.deposit("A", Decimal("10.0"), key="bank-1") == first
    assert (first.key, first.kind, first.note, first.auction_id) == ("deposit:bank-1", "deposit", "wire", None)
    for other in (("A", 11), ("B", 10)):
        with pytest.raises(ChargeConflictError, match="bank-1"):
            ledger.deposit(*other, key="bank-1")
    ledger.deposit("A", 1)
    ledger.deposit("A", 1)
    assert ledger.balance("A").balance == 12
    ledger.withdraw("A", 2, key="bank-1")
    ledger.withdraw("A", 2, key="bank-1")
    assert ledger.balance("A").balance == 10
    assert ledger.verify().ok


def test_a_withdrawal_takes_only_what_is_neither_held_nor_owed(funded):
    funded.hold("x", {"A": 60})
    with pytest.raises(CoverError, match="'A'"):
        funded.withdraw("A", "40.000001")
    assert funded.withdraw("A", 40, key="out").entries[0].amount == -40
    funded.withdraw("A", 40, key="out")
    assert funded.balance("A") == Account(
        owner="A", currency="", balance=Decimal(60), held=Decimal(60), available=Decimal(0)
    )


@pytest.mark.parametrize(("currency", "amount"), [("EUR", "0.001"), ("JPY", "1.5"), ("", "-1"), ("EUR", -1)])
def test_money_that_the_currency_cannot_count_is_refused(ledger, currency, amount):
    for operation in (ledger.deposit, ledger.withdraw):
        with pytest.raises(ConfigurationError):
            operation("A", amount, currency=currency)


def test_the_first_booking_sets_the_decimals_of_a_currency(url):
    with Ledger(url, scales={"EUR": 2}) as ledger:
        ledger.deposit("A", 1, currency="EUR")
    with Ledger(url, scales={"EUR": 3}) as other:
        with pytest.raises(ConfigurationError, match="2"):
            other.deposit("A", 1, currency="EUR")
        assert other.balance("A", currency="EUR").balance == 1
    with Ledger(url) as silent:
        with pytest.raises(ConfigurationError, match="2 decimals"):
            silent.deposit("A", "0.001", currency="EUR")
        assert silent.verify().ok


def test_a_balance_beyond_64_bits_is_refused_and_sums_beyond_are_exact(ledger):
    most = Decimal("9223372036854.775807")
    for owner in "ABC":
        ledger.deposit(owner, most)
    with pytest.raises(LedgerError, match="64 bits"):
        ledger.deposit("A", "0.000001")
    assert ledger.totals()[0].cash == ledger.totals()[0].balances == 3 * most
    assert ledger.verify().ok


def test_totals_balance_in_every_currency(funded):
    funded.deposit("A", 10, currency="EUR")
    funded.charge("x", {"A": Decimal("0.125")}, currency="EUR")
    funded.hold("y", {"B": 7})
    funded.charge("z", {"C": "2.5"})
    funded.withdraw("C", 1)
    none, euro = funded.totals()
    assert none == Totals(
        currency="",
        cash=Decimal(299),
        revenue=Decimal("2.5"),
        balances=Decimal("296.5"),
        held=Decimal(7),
        residual=Decimal(0),
    )
    assert (euro.cash, euro.revenue, euro.balances) == (10, Decimal("0.12"), Decimal("9.88"))
    assert euro.residual == Decimal("0.005")


def test_a_statement_opens_where_the_one_before_it_closed(funded, clock):
    first = clock.now + timedelta(days=1)
    clock.move(days=1)
    funded.charge("x", {"A": 3, "B": 1})
    clock.move(hours=1)
    funded.reverse("x", owner="A")
    funded.withdraw("A", 10)
    second = first + timedelta(days=1)
    clock.move(days=1)
    funded.charge("y", {"A": 5})
    before = funded.statement("A", until=first)
    day = funded.statement("A", since=first, until=second)
    after = funded.statement("A", since=second)
    assert (before.opening, before.closing, before.deposited) == (0, 100, 100)
    assert (day.opening, day.charged, day.deposited, day.closing) == (100, 0, -10, 90)
    assert [entry.kind for entry in day.entries] == ["charge", "reversal", "withdrawal"]
    assert (after.opening, after.closing, after.charged) == (90, 85, 5)
    whole = funded.statement("A")
    assert whole.entries == before.entries + day.entries + after.entries
    assert whole.closing == funded.balance("A").balance
    assert funded.statement("nobody").closing == 0


def test_an_account_is_one_however_its_owner_and_its_currency_are_spelled(ledger, clock):
    ledger.deposit("Caf\u00e9", 5, currency="EUR")
    clock.move(hours=1)
    one, other = (
        ledger.statement(owner, currency=currency, since=clock.now)
        for owner, currency in (("Caf\u00e9", "EUR"), ("Cafe\u0301", "\uff25\uff35\uff32"))
    )
    assert one == other
    assert (other.owner, other.currency, other.opening) == ("Caf\u00e9", "EUR", 5)


def test_a_clock_that_goes_back_books_nothing_into_a_time_that_is_closed(funded, clock):
    clock.move(days=1)
    late = funded.deposit("A", 1).at
    clock.move(days=-2)
    assert funded.deposit("A", 1).at == late
    assert funded.hold("x", {"A": 1}).expires_at == clock.now + timedelta(minutes=15)  # it can expire
    assert funded.statement("A", until=late).closing == 100
    assert funded.verify().ok


def test_entries_come_in_order_page_by_page(funded, monkeypatch):
    monkeypatch.setattr("llm_auction_chain.ledger.queries.PAGE", 2)
    funded.charge("x", {"A": 1, "B": 1, "C": 1})
    stream = funded.entries()
    places = [(next(stream).seq, 0)]
    funded.deposit("A", 1)
    places += [(entry.seq, entry.line) for entry in stream]
    assert places == [(1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (4, 2)]
    assert [entry.seq for entry in funded.entries(owner="A")] == [1, 4, 5]
    assert list(funded.entries(currency="EUR")) == []
    assert list(funded.entries(since=datetime(2027, 1, 1, tzinfo=UTC))) == []


def test_times_without_a_zone_are_refused(ledger):
    bare = datetime(2026, 1, 1)  # noqa: DTZ001
    with pytest.raises(ConfigurationError, match="time zone"):
        ledger.statement("A", since=bare)
    with pytest.raises(ConfigurationError, match="time zone"):
        ledger.expire_holds(now=bare)
    with Ledger("sqlite://", clock=lambda: bare) as other, pytest.raises(ConfigurationError, match="clock"):
        other.deposit("A", 1)


def test_money_is_exact_whatever_the_callers_decimal_context(ledger, clock):
    with localcontext(Context(prec=3, traps=[Inexact])):
        ledger.deposit("A", "100.16", key="bank")
        assert ledger.hold("more", {"A": "100.17"}).without_cover == ("A",)
        assert ledger.hold("all", {"A": "100.16"}).without_cover == ()
        ledger.charge("all", {"A": "12.345678"})
        clock.move(days=1)
        ledger.withdraw("A", "50.000001")
        for since in (None, clock.now):
            statement = ledger.statement("A", since=since)
            assert statement.closing == ledger.balance("A").available == Decimal("37.814321")
        assert ledger.totals()[0].revenue == Decimal("12.345678")
        assert ledger.verify().ok


def test_a_deposit_whose_answer_is_lost_tells_the_key_under_which_it_is_booked_once(ledger, monkeypatch):
    commit = Transaction.commit

    def lose(transaction):
        commit(transaction)
        raise OperationalError("COMMIT", None, Exception("the answer was lost"))

    monkeypatch.setattr(Transaction, "commit", lose)
    with pytest.raises(LedgerUnavailableError, match="booked once") as told:
        ledger.deposit("A", 5)
    monkeypatch.undo()
    ledger.deposit("A", 5, key=re.search("key '(.*)'", str(told.value))[1])
    assert ledger.balance("A").balance == 5


def test_a_clock_that_jumps_ahead_leaves_no_hold_that_cannot_expire(funded, clock):
    clock.move(days=3650)
    funded.deposit("A", 1)
    clock.move(days=-3650)
    funded.hold("x", {"A": 1})
    clock.move(minutes=15)
    assert funded.expire_holds() == ["x"]
    assert funded.balance("A").held == 0


@pytest.mark.parametrize("owner", ["\ud800", "a\0b", 5, ["A"], ""])
def test_entries_of_what_is_no_owner_are_refused(ledger, owner):
    with pytest.raises(ConfigurationError, match="owner"):
        ledger.entries(owner=owner)
    if owner != "":
        with pytest.raises(ConfigurationError, match="currency"):
            ledger.entries(currency=owner)


@pytest.mark.parametrize("year", [1, 9999])
def test_times_at_the_end_of_time_are_refused(ledger, year):
    zone = timezone(timedelta(hours=-14 if year == 9999 else 14))
    moment = datetime(year, 12 if year == 9999 else 1, 31 if year == 9999 else 1, 12, tzinfo=zone)
    with pytest.raises(ConfigurationError, match="years"):
        ledger.erase_receipts(moment)
    with pytest.raises(ConfigurationError, match="years"):
        ledger.entries(since=moment)
    with pytest.raises(ConfigurationError, match="years"):
        ledger.expire_holds(now=moment)


def test_an_account_that_was_never_booked_is_empty(ledger):
    assert ledger.balance("A", currency="EUR").balance == 0
    assert (ledger.accounts(), ledger.totals(), list(ledger.entries())) == ([], [], [])
    assert ledger.charge_of("x") is None
    assert ledger.verify().ok


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "mysql://x/y"},
        {"url": "nonsense"},
        {"scales": {"EUR": 7}},
        {"scales": {"EUR": True}},
        {"scales": 2},
        {"credit": -1},
        {"credit": 0.5},
        {"hold_for": timedelta(0)},
        {"hold_for": timedelta.max},
        {"url": "postgresql://me:se@cret@localhost/x"},
        {"hold_for": 900},
        {"clock": None},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigurationError):
        Ledger(**settings)
