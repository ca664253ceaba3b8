"""Bookings of one auction: a hold, then a charge or nothing; and deliveries, which take charges back."""

import math
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest

from llm_auction_chain import Agent, ConfigurationError, Ledger
from llm_auction_chain.auction.billing import Delivery, Tab, check_ledger, most_owed
from llm_auction_chain.errors import AuctionWarning, ChargeConflictError, LedgerError, LedgerUnavailableError
from llm_auction_chain.mechanism import PAYMENT_RULES, settle
from llm_auction_chain.money import charges_of
from llm_auction_chain.receipts import verify
from llm_auction_chain.rewards import ClickReward, MentionReward
from llm_auction_chain.waiting import AWAITING, BLOCKING, run
from tests.unit.auction.auctions import LIKES_B, LIKES_C, auction

WAITERS = pytest.mark.parametrize("waiter", [BLOCKING, AWAITING])
MOST = {"B": Decimal(4)}


class Books:
    """A ledger that keeps its bookings, and raises the errors that it has for their verbs."""

    def __init__(self, **errors):
        self.booked, self.errors = [], errors

    def _book(self, verb, **booking):
        self.booked.append((verb, booking))
        if error := self.errors.get(verb):
            raise error

    def hold(self, auction_id, most, *, currency=""):
        self._book("hold", most=dict(most), currency=currency)
        return SimpleNamespace(without_cover=("poor",), nonce="secret")

    def charge(self, auction_id, amounts, *, currency="", reply=None, receipt=None):
        self._book("charge", amounts=dict(amounts), currency=currency)
        return SimpleNamespace(auction_id=auction_id)

    def void(self, auction_id, *, reason=""):
        self._book("void", reason=reason)

    def cancel(self, auction_id, *, reason="", receipt=None):
        self._book("cancel", reason=reason)

    @property
    def verbs(self):
        return [verb for verb, _ in self.booked]


@pytest.fixture(scope="module")
def result():
    return auction(agents=[LIKES_B]).run("x")


def tab(books, waiter, *, most=MOST, on_error="reference"):
    return Tab(books, "id", most, waiter, currency="EUR", on_error=on_error)


async def under(waiter, work):
    """Return the result of a coroutine, in the loop or, where the caller blocks, without one."""
    return run(work) if waiter is BLOCKING else await work


async def charged(opened, result):
    async with opened:
        return await opened.charge(result)


@WAITERS
async def test_an_auction_holds_the_most_and_charges_what_is_owed(waiter, result):
    books = Books()
    opened = tab(books, waiter)
    charge = await under(waiter, charged(opened, result))
    assert charge.auction_id == "id"
    assert books.booked == [
        ("hold", {"most": MOST, "currency": "EUR"}),
        ("charge", {"amounts": {"B": result.charges[0]}, "currency": "EUR"}),
    ]
    assert (opened.without_cover, opened.nonce, opened.failure) == ({"poor"}, "secret", None)


@WAITERS
@pytest.mark.parametrize("books", [None, Books()])
async def test_without_a_ledger_or_agents_that_pay_nothing_is_booked(waiter, books, result):
    opened = tab(books, waiter, most={} if books else MOST)
    assert await under(waiter, charged(opened, result)) is None
    assert (opened.nonce, opened.without_cover) == (None, frozenset())
    assert books is None or books.booked == []


@WAITERS
async def test_an_auction_that_fails_after_its_hold_releases_it(waiter):
    books = Books()

    async def fails():
        async with tab(books, waiter):
            raise KeyError

    with pytest.raises(KeyError):
        await under(waiter, fails())
    assert books.booked[1:] == [("void", {"reason": "not delivered: KeyError"})]


@WAITERS
async def test_an_auction_that_fails_after_its_charge_takes_it_back(waiter, result):
    books = Books()

    async def fails():
        async with tab(books, waiter) as opened:
            await opened.charge(result)
            raise KeyError

    with pytest.raises(KeyError):
        await under(waiter, fails())
    assert books.booked[2:] == [("cancel", {"reason": "not delivered: KeyError"})]


@WAITERS
async def test_an_auction_that_gave_up_charges_nothing_and_gives_up_once(waiter, result):
    books = Books()

    async def gives_up():
        async with tab(books, waiter) as opened:
            await opened.give_up("the model calls tools")
            await opened.give_up("again")
            return await opened.charge(result)

    assert await under(waiter, gives_up()) is None
    assert books.booked[1:] == [("void", {"reason": "the model calls tools"})]


@WAITERS
async def test_a_hold_that_fails_leaves_out_every_owner_and_charges_nothing(waiter, result):
    error = LedgerUnavailableError("down")
    books = Books(hold=error)
    opened = tab(books, waiter)
    assert await under(waiter, charged(opened, result)) is None
    assert (opened.without_cover, opened.failure, opened.nonce) == ({"B"}, error, None)
    assert books.verbs == ["hold", "void"]


@WAITERS
async def test_a_charge_that_fails_is_taken_back_and_named(waiter, result):
    error = LedgerUnavailableError("down")
    books = Books(charge=error)
    opened = tab(books, waiter)
    assert await under(waiter, charged(opened, result)) is None
    assert opened.failure is error
    assert books.verbs == ["hold", "charge", "cancel"]


@WAITERS
@pytest.mark.parametrize("verb", ["hold", "charge"])
async def test_a_ledger_that_fails_raises_where_the_setting_says_so(waiter, verb, result):
    books = Books(**{verb: LedgerUnavailableError("down")})
    told = {"hold": "down", "charge": "down Auction .* is cancelled: ask for a reply under a new key"}[verb]
    with pytest.raises(LedgerUnavailableError, match=told):
        await under(waiter, charged(tab(books, waiter, on_error="raise"), result))
    assert books.verbs[-1] == {"hold": "void", "charge": "cancel"}[verb]


@WAITERS
async def test_a_hold_that_another_call_has_booked_is_left_alone(waiter, result):
    books = Books(hold=ChargeConflictError("taken"))
    assert await under(waiter, charged(tab(books, waiter), result)) is None
    assert books.verbs == ["hold"]


def owed(result):
    """Return what is delivered of an auction with a charge: its id, the receipt's digest and the result."""
    return result.auction_id, "digest", result


def test_a_delivery_that_fails_takes_back_the_charges_that_were_under_way(result):
    books = Books()
    delivered = Delivery(books)

    def fails():
        with delivered:
            delivered.add(*owed(result))
            delivered.complete()
            delivered.add(*owed(result))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert books.booked == [("cancel", {"reason": "not delivered: KeyError"})]
    assert len(delivered.results) == 2
    delivered.add(*owed(result))
    assert books.verbs == ["cancel", "cancel"]


def test_a_call_around_another_takes_back_what_the_other_delivered(result):
    books = Books()
    outer = Delivery(books)

    def fails():
        with outer:
            with Delivery(books, outer) as inner:
                inner.add(*owed(result))
            assert books.booked == []
            assert len(outer.results) == 1
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert books.verbs == ["cancel"]


def test_a_charge_that_cannot_be_taken_back_is_logged_and_hides_no_error(result, caplog):
    delivery = Delivery(Books(cancel=LedgerError("down")))

    def fails():
        with delivery:
            delivery.add(*owed(result))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert f"The charge of auction {result.auction_id} was not taken back: down" in caplog.text


async def test_a_delivery_in_an_event_loop_takes_charges_back_too(result):
    books = Books()

    async def fails():
        async with Delivery(books) as delivery:
            delivery.add(*owed(result))
            raise KeyError

    with pytest.raises(KeyError):
        await fails()
    assert books.verbs == ["cancel"]


def test_agents_of_one_owner_may_owe_the_sum_of_their_ranges_and_those_that_never_pay_owe_nothing():
    house = Agent("House", max, pays=False)
    most = {"B": Decimal("4.000001"), "C": Decimal("4.000001")}
    assert most_owed([LIKES_B, LIKES_C, house], 2.0, "pivot", 1.0) == (most, frozenset())
    assert most_owed([house], None, "pivot", 1.0) == ({}, frozenset())


def test_a_hold_is_the_proven_maximum_of_the_rule_and_of_what_the_reward_can_report():
    def held(rule, reward, tau=1.0):
        return float(most_owed([Agent("A", reward)], 2.0, rule, tau)[0]["A"])

    assert held("expected", max, tau=100.0) == pytest.approx(4.0**2 / (8 * 100.0), abs=2e-5)
    assert held("pivot", max, tau=100.0) == pytest.approx(4.0, abs=2e-6)
    assert held("proportional", max) == pytest.approx(2.0 - 1.0 + math.exp(-2.0), abs=2e-6)  # from 0 to 2
    within = type("Within", (), {"score": lambda *_: [], "bounds": (0.0, 0.5)})()
    beyond = type("Beyond", (), {"score": lambda *_: [], "bounds": (-9.0, 9.0)})()
    assert held("pivot", within) == pytest.approx(0.5, abs=2e-6)
    assert held("pivot", beyond) == pytest.approx(4.0, abs=2e-6)
    assert held("pivot", MentionReward(["a"], 0.25, at_most=3)) == pytest.approx(0.75, abs=2e-6)
    assert held("pivot", ClickReward(0.5, max)) == pytest.approx(0.5, abs=2e-6)
    assert most_owed([Agent("A", MentionReward(["a"]))], None, "pivot", 1.0)[0]["A"] == Decimal("1.000001")  # no cap


@pytest.mark.parametrize("rule", PAYMENT_RULES)
def test_no_rounding_takes_a_charge_above_its_hold(rule):
    rng, owners = np.random.default_rng(5), ["O"] * 9
    for _ in range(100):
        caps = rng.uniform(1e10, 5e10, size=9)
        agents = [Agent(f"A{k}", max, owner="O", report_cap=float(cap)) for k, cap in enumerate(caps)]
        (most,) = most_owed(agents, None, rule, tau=1e-6)[0].values()
        reports = caps[:, None] * [0.0 if rule == "proportional" else -1.0, 1.0]
        log_weights = [0.0, -np.ptp(reports.sum(axis=0)) / 1e-6]  # the payment is nearly all of the span
        settlement = settle(reports, log_weights, tau=1e-6, owners=owners, payment_rule=rule, seed=1)
        assert sum(charges_of(settlement.payments.tolist(), owners)) <= most


def test_the_most_that_an_agent_may_owe_is_not_known_without_a_cap():
    huge = Agent("C", LIKES_C.reward, report_cap=1e15)
    assert most_owed([LIKES_B, huge], None, "expected", 1.0) == ({}, {"B", "C"})
    for agents in ([LIKES_B], [huge]):
        with pytest.raises(ConfigurationError, match=f"'{agents[0].name}' has no report_cap, or one that no ledger"):
            auction(agents, billing=Books())


@pytest.mark.parametrize("cap", [None, 1e15, 1e30, 1e308])
def test_an_agent_whose_debt_no_ledger_can_hold_is_left_out_and_the_others_are_auctioned(cap):
    ledger, other = Ledger("sqlite://"), Agent("C", LIKES_C.reward, report_cap=1.0)
    ledger.deposit("C", 100)
    chain = auction(lambda _: [other, Agent("B", LIKES_B.reward, report_cap=cap)], billing=ledger)
    with pytest.warns(AuctionWarning, match="B took no part: they have no report_cap, or one that no ledger can hold"):
        result = chain.run("x")
    assert [agent.name for agent in result.agents] == ["C"]
    assert [out.reason for out in result.left_out] == ["cap"]
    assert verify(result.receipt).ok


@pytest.mark.parametrize("timeout", [60.0, 61.0, None])
def test_a_ledger_whose_holds_expire_while_agents_are_asked_is_refused(timeout):
    books = Books()
    books.hold_for = SimpleNamespace(total_seconds=lambda: 60.0)
    check_ledger(books, 59.0)
    with pytest.raises(ConfigurationError) as caught:
        check_ledger(books, timeout)
    assert str(caught.value) == (
        f"reward_timeout must be below hold_for of the ledger, which is 60 seconds, got {timeout}. Otherwise a hold "
        "could expire while agents are asked."
    )
