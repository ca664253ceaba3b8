"""Holds: cover that is kept, released once, and asked for again without harm."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from llm_auction_chain.errors import ChargeConflictError, ConfigurationError, CoverError
from llm_auction_chain.ledger import Ledger

MOST = {"A": Decimal(30), "B": Decimal(200)}


def test_a_hold_keeps_cover_and_tells_who_has_none(funded, clock):
    hold = funded.hold("x", MOST)
    assert (hold.amounts, hold.without_cover) == ({"A": Decimal(30)}, ("B",))
    assert hold.expires_at == clock.now + timedelta(minutes=15)
    account = funded.balance("A")
    assert (account.balance, account.held, account.available) == (100, 30, 70)
    assert funded.balance("B").held == 0
    assert funded.hold("y", {"A": Decimal(71)}).without_cover == ("A",)
    assert funded.hold("z", {"A": Decimal(70)}).without_cover == ()
    assert funded.verify().ok


def test_a_hold_repeated_is_the_first_one_before_and_after_the_charge(funded):
    first = funded.hold("x", MOST)
    assert funded.hold("x", {"B": Decimal("200.0"), "A": "30"}) == first
    funded.charge("x", {"A": Decimal(1)})
    assert funded.hold("x", MOST) == first
    assert funded.balance("A").held == 0
    assert funded.head().seq == 5


def test_a_hold_that_would_end_after_the_last_year_is_refused(new_url):
    with Ledger(new_url, clock=lambda: datetime(9999, 12, 31, 23, 55, tzinfo=UTC)) as ledger:
        ledger.deposit("A", 1)
        with pytest.raises(ConfigurationError, match=r"end of the hold must be a datetime .* years 1 to 9999"):
            ledger.hold("x", {"A": Decimal(1)})
        assert ledger.balance("A").held == 0
        assert ledger.verify().ok


def test_a_hold_of_something_else_is_refused(funded):
    funded.hold("x", MOST)
    for other in ({"A": Decimal(31), "B": Decimal(200)}, {"A": Decimal(30)}, {}):
        with pytest.raises(ChargeConflictError, match="something else"):
            funded.hold("x", other)
    with pytest.raises(ChargeConflictError):
        funded.hold("x", MOST, currency="EUR")
    funded.charge("y", {"A": Decimal(1)})
    with pytest.raises(ChargeConflictError):
        funded.hold("y", {"A": Decimal(1)})


@pytest.mark.parametrize("end", ["void", "expire"])
def test_what_was_voided_or_expired_is_held_afresh_for_the_same_request_only(funded, clock, end):
    for round_ in range(1, 4):
        hold = funded.hold("x", MOST)
        assert hold.expires_at == clock.now + timedelta(minutes=15)
        assert funded.balance("A").held == 30
        if end == "void":
            funded.void("x")
        else:
            clock.move(minutes=15)
            assert funded.expire_holds() == ["x"]
        assert funded.balance("A").held == 0
        with pytest.raises(ChargeConflictError, match="was voided" if end == "void" else "has expired"):
            funded.hold("x", {"A": Decimal(1)})
        assert funded.head().seq == 3 + 2 * round_
    assert funded.hold("x", MOST).seq == 10
    assert funded.charge("x", {"A": Decimal(30)}).total == 30
    assert funded.verify().ok


def test_what_was_cancelled_stays_closed(funded):
    funded.hold("held", MOST)
    funded.hold("voided", MOST)
    funded.void("voided")
    funded.charge("charged", {"A": Decimal(5)})
    for _ in range(2):
        for auction in ("held", "voided", "charged", "unknown"):
            funded.cancel(auction, reason="the reply was withdrawn")
    account = funded.balance("A")
    assert (account.balance, account.held) == (100, 0)
    for auction in ("held", "voided", "unknown"):
        for again in (funded.hold, funded.charge):
            with pytest.raises(ChargeConflictError, match="was cancelled"):
                again(auction, MOST)
    with pytest.raises(ChargeConflictError, match="charged and reversed"):
        funded.charge("charged", {"A": Decimal(5)})
    assert funded.head().seq == 3 + 4 + 4
    assert funded.verify().ok


def test_holds_expire_at_their_time_and_no_sooner(funded, clock):
    funded.hold("first", {"A": Decimal(1)})
    clock.move(minutes=10)
    funded.hold("second", {"A": Decimal(2)})
    assert funded.expire_holds() == []
    clock.move(minutes=5)
    assert funded.expire_holds() == ["first"]
    assert funded.expire_holds() == []
    assert funded.expire_holds(now=clock.now + timedelta(minutes=10)) == ["second"]
    assert funded.balance("A").held == 0
    assert funded.verify().ok


def test_many_holds_expire_at_once(funded, clock, monkeypatch):
    monkeypatch.setattr("llm_auction_chain.ledger.queries.PAGE", 3)
    auctions = [f"{number:02}" for number in range(8)]
    for auction in auctions:
        funded.hold(auction, {"A": Decimal(1), "B": Decimal(1)})
    clock.move(hours=1)
    assert funded.expire_holds() == auctions
    assert [account.held for account in funded.accounts()] == [0, 0, 0]
    assert funded.verify().ok


def test_after_expiry_a_charge_needs_cover(funded, clock):
    funded.hold("x", {"A": Decimal(100)})
    funded.hold("y", {"B": Decimal(100)})
    clock.move(hours=1)
    funded.expire_holds()
    funded.withdraw("A", 50)
    assert funded.charge("y", {"B": Decimal(100)}).total == 100
    for amount in (100, 1, 0):  # what was held must be covered, whatever the reports came to
        with pytest.raises(CoverError, match="'A'"):
            funded.charge("x", {"A": Decimal(amount)})
    with pytest.raises(CoverError, match="holds nothing of"):
        funded.charge("x", {"B": Decimal(1)})
    funded.deposit("A", 50)
    assert funded.charge("x", {"A": Decimal(1)}).total == 1
    assert funded.verify().ok


def test_a_late_hold_is_charged_while_nobody_has_expired_it(funded, clock):
    funded.hold("x", {"A": Decimal(100)})
    clock.move(hours=1)
    assert funded.charge("x", {"A": Decimal(100)}).total == 100


def test_credit_covers_what_the_balance_does_not(url):
    with Ledger(url, credit="10.5") as ledger:
        assert ledger.balance("A").available == Decimal("10.5")
        assert ledger.hold("x", {"A": Decimal("10.5")}).without_cover == ()
        assert ledger.hold("y", {"A": Decimal("0.000001")}).without_cover == ("A",)
        ledger.charge("x", {"A": Decimal("10.5")})
        assert ledger.balance("A").available == 0
        with pytest.raises(CoverError):
            ledger.withdraw("B", 1)


@pytest.mark.parametrize(
    "most", [{"A": -1}, {"A": 0.1}, {"A": "x"}, {"A": True}, {"": 1}, {1: 1}, {"A": None}, [], None]
)
def test_a_bad_hold_is_refused_before_anything_is_booked(funded, most):
    with pytest.raises(ConfigurationError):
        funded.hold("x", most)
    assert funded.head().seq == 3


def test_zeros_and_nobody_may_be_held(funded):
    assert funded.hold("x", {}).amounts == {}
    assert funded.hold("y", {"A": 0, "new": 0}).amounts == {"A": 0, "new": 0}
    funded.void("x")
    funded.charge("y", {})
    assert funded.verify().ok


def test_every_hold_of_an_auction_has_one_nonce_that_no_entry_tells(funded, clock):
    first = funded.hold("x", MOST)
    funded.void("x")
    again = funded.hold("x", MOST)
    funded.charge("x", {"A": 1})
    assert first.nonce == again.nonce == funded.hold("x", MOST).nonce
    assert len(bytes.fromhex(first.nonce)) == 32
    assert funded.hold("y", MOST).nonce != first.nonce
    assert first.nonce not in repr(list(funded.entries())) + repr(first)
    assert funded.verify().ok
