"""The clock goes backwards and jumps forwards, and holds expire under auctions that are under way."""

import warnings
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random

from llm_auction_chain import AuctionWarning
from llm_auction_chain.ledger import Ledger
from tests.ledger.faults.worker import CURRENCY, OWNERS, auction_of, config_of, delivery_of

AUCTIONS, HOLD_FOR = 80, timedelta(minutes=1)
FUNDS = Decimal(20)


class Life:
    """What happens on a ledger while auctions are held: the clock jumps, holds expire, money is taken out.

    Attributes:
        ledger: goes by this clock.
        expired: auctions whose hold expired under them.
        closed: moments at which an account's statement was made, with the statements.
        deposited: money that came, less what went.
    """

    def __init__(self, url, rng):
        self._rng, self._now = rng, datetime(2030, 6, 1, tzinfo=UTC)
        self.ledger = Ledger(url, clock=lambda: self._now, hold_for=HOLD_FOR)
        self.expired, self.closed, self.deposited = set(), [], Decimal(0)

    def go_on(self, event):
        """Let something happen at a stage of an auction: the clock goes an hour forward or backward at most."""
        if event.name == "auction.settled":
            return
        self._now += timedelta(seconds=self._rng.uniform(-3600, 3600))
        if self._rng.random() < 0.6:
            self.expired |= set(self.ledger.expire_holds())
        if self._rng.random() < 0.2:
            self._drain(self._rng.choice("AB"))
        if self._rng.random() < 0.2:
            self._close_a_period(self._rng.choice("AB"))

    def refill(self):
        for owner in OWNERS[:-1]:
            lacks = FUNDS - self.ledger.balance(owner, currency=CURRENCY).balance
            if lacks > 0:
                self.ledger.deposit(owner, lacks, currency=CURRENCY)
                self.deposited += lacks

    def _drain(self, owner):
        free = self.ledger.balance(owner, currency=CURRENCY).available
        self.ledger.withdraw(owner, free, currency=CURRENCY)
        self.deposited -= free

    def _close_a_period(self, owner):
        until = self.ledger.deposit(owner, 1, currency=CURRENCY).at
        self.deposited += 1
        self.closed.append((until, self.ledger.statement(owner, currency=CURRENCY, until=until)))


def hold(key, life):
    """Return the delivery of one auction; some have no sponsors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AuctionWarning)
        reply = auction_of(key, life.ledger, on_event=life.go_on, reward_timeout=30.0).invoke(
            "Say something", config_of(key)
        )
    return delivery_of(key, reply)


def test_a_hold_that_expires_under_an_auction_is_charged_once_or_not_at_all(url, settle):
    life, delivered = Life(url, Random(23)), []
    with life.ledger as ledger:
        for n in range(AUCTIONS):
            life.refill()
            delivered.append(hold(f"clock-{n}", life))
        assert life.closed
        for until, statement in life.closed:
            assert ledger.statement(statement.owner, currency=CURRENCY, until=until) == statement
    outcomes = {revenue is not None for _, auction, revenue in delivered if auction in life.expired}
    assert outcomes == {True, False}
    found = settle("clock jumps, holds expire", url, len(life.expired), delivered, deposited=life.deposited)
    assert found.delivered == AUCTIONS


def test_no_booking_is_before_the_one_before_it(url):
    with Ledger(url, clock=iter_clock([3, 1, 2, 5, 4, 0])) as ledger:
        times = [ledger.deposit("A", 1).at.hour for _ in range(6)]
        assert times == [3, 3, 3, 5, 5, 5]
        assert ledger.verify().ok


def iter_clock(hours):
    moments = iter([datetime(2030, 6, 1, hour, tzinfo=UTC) for hour in hours])
    return lambda: next(moments)
