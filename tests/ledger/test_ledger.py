"""`Ledger` obeys the laws of every ledger, on both databases."""

import pickle
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from llm_auction_chain.errors import ChargeConflictError, ConfigurationError, CoverError
from llm_auction_chain.ledger import Account, Ledger
from llm_auction_chain.testing import LedgerConformance
from tests.ledger.faults.worker import Crowded


class TestLedger(LedgerConformance):
    kind = Ledger

    @pytest.fixture(autouse=True)
    def _opened(self, url):
        with self.kind(url) as self._ledger:
            yield

    def ledger(self):
        for owner, amount in self.deposits.items():
            self._ledger.deposit(owner, amount)
        return self._ledger

    def account(self, ledger, owner):
        account = ledger.balance(owner)
        return account.balance, account.held


class TestLedgerOfGroups(TestLedger):
    kind = Crowded


BAD_ARGUMENTS = [
    ("auction_id", lambda ledger: ledger.hold(1, {})),
    ("most", lambda ledger: ledger.hold("x", [])),
    (r"most\['A'\]", lambda ledger: ledger.hold("x", {"A": -1})),
    ("An owner", lambda ledger: ledger.hold("x", {1: 1})),
    ("currency", lambda ledger: ledger.hold("x", {}, currency=1)),
    ("auction_id", lambda ledger: ledger.charge(1, {})),
    ("amounts", lambda ledger: ledger.charge("x", [])),
    (r"amounts\['A'\]", lambda ledger: ledger.charge("x", {"A": 0.5})),
    ("currency", lambda ledger: ledger.charge("x", {}, currency=1)),
    ("reply", lambda ledger: ledger.charge("x", {}, reply=1)),
    ("receipt", lambda ledger: ledger.charge("x", {}, receipt=1)),
    (r"receipt\['digest'\]", lambda ledger: ledger.charge("x", {}, receipt={})),
    ("receipt", lambda ledger: ledger.charge("x", {}, receipt={"digest": "d", "time": datetime.now(UTC)})),
    ("auction_id", lambda ledger: ledger.void(1)),
    ("reason", lambda ledger: ledger.void("x", reason=1)),
    ("auction_id", lambda ledger: ledger.cancel(1)),
    ("reason", lambda ledger: ledger.cancel("x", reason=1)),
    ("receipt", lambda ledger: ledger.cancel("x", receipt=1)),
    ("auction_id", lambda ledger: ledger.reverse(1)),
    ("owner", lambda ledger: ledger.reverse("x", owner=1)),
    ("reason", lambda ledger: ledger.reverse("x", reason=1)),
    ("owner", lambda ledger: ledger.deposit(1, 1)),
    ("amount", lambda ledger: ledger.deposit("A", -1)),
    ("currency", lambda ledger: ledger.deposit("A", 1, currency=1)),
    ("key", lambda ledger: ledger.deposit("A", 1, key=1)),
    ("note", lambda ledger: ledger.withdraw("A", 1, note=1)),
    ("now", lambda ledger: ledger.expire_holds(now=1)),
    ("before", lambda ledger: ledger.erase_receipts(1)),
    ("owner", lambda ledger: ledger.balance(1)),
    ("currency", lambda ledger: ledger.balance("A", currency=1)),
    ("owner", lambda ledger: ledger.entries(owner=1)),
    ("currency", lambda ledger: ledger.entries(currency=1)),
    ("since", lambda ledger: ledger.entries(since=1)),
    ("until", lambda ledger: ledger.entries(until=1)),
    ("owner", lambda ledger: ledger.statement(1)),
    ("since", lambda ledger: ledger.statement("A", since=1)),
    ("until", lambda ledger: ledger.statement("A", until=1)),
    ("auction_id", lambda ledger: ledger.charge_of(1)),
    ("auction_id", lambda ledger: ledger.receipt_of(1)),
    ("clock", lambda _: Ledger("sqlite://", clock=1)),
    ("credit", lambda _: Ledger("sqlite://", credit=-1)),
    ("hold_for", lambda _: Ledger("sqlite://", hold_for=1)),
    ("scales", lambda _: Ledger("sqlite://", scales=1)),
    (r"scales\['EUR'\]", lambda _: Ledger("sqlite://", scales={"EUR": 7})),
    ("A currency", lambda _: Ledger("sqlite://", scales={1: 2})),
    ("The clock's time", lambda _: Ledger("sqlite://", clock=lambda: 1).void("x")),
]


def test_an_error_begins_with_the_name_of_the_argument():
    with Ledger("sqlite://") as ledger:
        for name, call in BAD_ARGUMENTS:
            with pytest.raises(ConfigurationError, match=f"^{name} must be "):
                call(ledger)


def test_an_account_without_bookings_has_the_credit_alone():
    with Ledger("sqlite://", credit=5) as ledger:
        zero = Decimal(0)
        empty = Account(owner="A", currency="EUR", balance=zero, held=zero, available=Decimal(5))
        assert ledger.balance("A", currency="EUR") == empty


def test_entries_are_those_of_the_bookings(funded):
    deposits = [funded.deposit("A", "0.25", note="bank"), funded.withdraw("B", 3, note="paid out")]
    assert list(funded.entries())[-2:] == [entry for booking in deposits for entry in booking.entries]


def test_the_smallest_charge_needs_cover(ledger):
    with pytest.raises(CoverError, match="'A'"):
        ledger.charge("x", {"A": "0.000001"})


def test_receipts_of_charges_after_a_time_are_kept_though_the_hold_was_before_it(funded, clock):
    receipt = {"digest": "sha256:00"}
    funded.hold("x", {"A": 1})
    clock.move(minutes=1)
    between = clock.now
    clock.move(minutes=1)
    funded.charge("x", {"A": 1}, receipt=receipt)
    assert funded.erase_receipts(between) == 0
    assert funded.receipt_of("x") == receipt


def test_erasing_receipts_leaves_the_nonce_of_a_hold_that_stands(funded, clock):
    first = funded.hold("x", {"A": 1})
    clock.move(minutes=1)
    assert funded.erase_receipts(clock.now) == 0
    assert funded.hold("x", {"A": 1}) == first
    assert funded.verify().ok


def test_an_auction_that_is_still_open_when_it_could_be_cancelled_again_is_named_in_a_warning(
    funded, monkeypatch, caplog
):
    """The cancellation that could not be booked in time meets a refusal at the next hold."""
    funded._uncancelled["x", None] = "lost"
    monkeypatch.setattr(
        "llm_auction_chain.ledger.operations.cancel", lambda *_: (_ for _ in ()).throw(ChargeConflictError("refused"))
    )
    funded.hold("y", {"A": 1})
    assert caplog.messages == ["Auction x, which was not delivered, could not be cancelled: refused"]


def test_a_copy_keeps_clock_hold_and_receipts(tmp_path):
    settings = {"credit": 5, "hold_for": timedelta(minutes=1), "keep_receipts": False}
    with Ledger(f"sqlite:///{tmp_path / 'a.db'}", **settings) as ledger, pickle.loads(pickle.dumps(ledger)) as copy:  # noqa: S301
        hold = copy.hold("x", {"A": 5})
        assert hold.expires_at - hold.at == copy.hold_for == timedelta(minutes=1)
        copy.charge("x", {"A": 5}, receipt={"digest": "d"})
        assert ledger.receipt_of("x") is None
        assert ledger.charge_of("x").receipt == "d"
