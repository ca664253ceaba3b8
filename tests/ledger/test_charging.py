"""Auctions that charge: what is held, charged, given up, and what the reply says of it."""

import asyncio
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from decimal import Decimal

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.config import ensure_config

import llm_auction_chain.auction.result
from llm_auction_chain import Agent, AuctionMiddleware, AuctionRunnable, ChatAuction, Ledger, Policy
from llm_auction_chain.auction.billing import most_owed
from llm_auction_chain.errors import (
    AuctionWarning,
    CandidatesError,
    ConfigurationError,
    DeliveredError,
    LedgerUnavailableError,
    PromptError,
    RewardError,
)
from llm_auction_chain.ledger import operations
from llm_auction_chain.mechanism import PAYMENT_RULES
from llm_auction_chain.money import as_decimal
from llm_auction_chain.receipts import verify
from llm_auction_chain.rewards import ClickReward
from llm_auction_chain.testing import MarkovChatModel

KINDS = pytest.mark.parametrize("kind", [AuctionRunnable, ChatAuction])
STYLES = pytest.mark.parametrize("style", ["invoke", "ainvoke", "batch", "abatch", "stream", "astream"])


def likes(letter, name=None, **settings):
    return Agent(name or letter.upper(), lambda prompt, reply: 2.0 * reply.text.count(letter), **settings)


AGENTS = [likes("b", owner="b-group"), likes("c"), likes("a", "House", pays=False)]


@pytest.fixture
def ledger(tmp_path):
    with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        for owner in ("b-group", "C"):
            ledger.deposit(owner, 100)
        yield ledger


HELD = most_owed([likes("c")], 5.0, "expected", 1.0)[0]["C"]


def auction(kind, ledger, agents=AGENTS, *, currency="", on_error="reference", **settings):
    settings = {"model": MarkovChatModel(), "n_candidates": 8, "report_cap": 5.0, **settings}
    billing = {"ledger": ledger, "currency": currency, "on_error": on_error}
    return kind(agents=agents, billing=billing, **settings)


async def reply_of(auction, style, config=None):
    if style == "invoke":
        return auction.invoke("x", config)
    if style == "ainvoke":
        return await auction.ainvoke("x", config)
    if style == "batch":
        return auction.batch(["x"], config)[0]
    if style == "abatch":
        return (await auction.abatch(["x"], config))[0]
    parts = list(auction.stream("x", config)) if style == "stream" else [p async for p in auction.astream("x", config)]
    return next(part for part in parts if "auction" in part.response_metadata)


def kinds_of(ledger):
    return [entry.kind for entry in ledger.entries() if entry.kind != "deposit"]


def sound(ledger):
    assert ledger.verify().differences == []
    assert all(total.cash == total.revenue + total.balances for total in ledger.totals())
    assert all(account.held == 0 for account in ledger.accounts())
    return True


async def test_the_receipt_of_a_charged_auction_is_made_once(ledger, monkeypatch):
    made, issue = [], llm_auction_chain.auction.result.issue
    monkeypatch.setattr(llm_auction_chain.auction.result, "issue", lambda *a, **k: made.append(1) or issue(*a, **k))
    held = await auction(AuctionRunnable, ledger).arun("x")
    assert ledger.receipt_of(held.auction_id) == held.receipt.as_dict()
    assert made == [1]


@KINDS
@STYLES
async def test_a_reply_that_is_delivered_has_been_charged_once(kind, style, ledger):
    reply = await reply_of(auction(kind, ledger), style)
    told = reply.response_metadata["auction"]
    charge = ledger.charge_of(told["auction_id"])
    assert (charge.seq, charge.hash, charge.receipt) == tuple(told["charge"].values())
    amounts = {line.owner: line.amount for line in charge.lines}
    assert amounts == {
        payment["owner"]: Decimal(payment["amount_decimal"]) for payment in told["payments"] if payment["pays"]
    }
    assert verify(ledger.receipt_of(told["auction_id"])).ok
    assert charge.total == Decimal(told["revenue_decimal"]) == 200 - sum(a.balance for a in ledger.accounts())
    assert sound(ledger)


@KINDS
@STYLES
async def test_the_same_call_again_is_charged_once(kind, style, ledger):
    config = {"configurable": {"idempotency_key": "order 7"}}
    first, again = [await reply_of(auction(kind, ledger), style, config) for _ in range(2)]
    assert first.response_metadata["auction"]["charge"] == again.response_metadata["auction"]["charge"] is not None
    assert first.text == again.text
    assert kinds_of(ledger).count("charge") == 2  # one booking, an entry for each owner
    assert sound(ledger)


@pytest.mark.parametrize("on_error", ["reference", "raise"])
def test_a_repeated_call_that_meets_an_outage_leaves_the_first_charge_and_may_be_made_to_raise(
    on_error, ledger, monkeypatch
):
    def unavailable(*_):
        raise LedgerUnavailableError("down")

    chain, config = (
        auction(AuctionRunnable, ledger, on_error=on_error),
        {"configurable": {"idempotency_key": "order 7"}},
    )
    first = chain.invoke("x", config)
    with monkeypatch.context() as patch:
        patch.setattr(ledger._database, "book", unavailable)
        if on_error == "raise":
            with pytest.raises(LedgerUnavailableError, match="down"):
                chain.invoke("x", config)
        else:
            with pytest.warns(AuctionWarning, match="no sponsors"):
                unsponsored = chain.invoke("x", config)
            assert unsponsored.response_metadata["auction"]["charge"] is None
    again = chain.invoke("x", config)
    assert again.text == first.text
    assert again.response_metadata["auction"]["charge"] == first.response_metadata["auction"]["charge"] is not None
    assert sound(ledger)


@KINDS
async def test_other_keys_other_prompts_and_calls_without_a_key_are_other_auctions(kind, ledger):
    chain = auction(kind, ledger)
    keyed = {"configurable": {"idempotency_key": "1"}}
    replies = [chain.invoke("x"), chain.invoke("x"), chain.invoke("x", keyed), chain.invoke("y", keyed)]
    assert len({reply.response_metadata["auction"]["charge"]["seq"] for reply in replies}) == 4


@KINDS
async def test_the_run_id_is_a_key(kind, ledger):
    config = {"run_id": "0198d1f0-0000-7000-8000-000000000000"}
    charges = [auction(kind, ledger).invoke("x", config).response_metadata["auction"] for _ in range(2)]
    assert charges[0]["auction_id"] == config["run_id"]
    assert charges[0]["charge"] == charges[1]["charge"]


@KINDS
@STYLES
async def test_no_agent_is_told_the_key_under_which_it_is_charged(kind, style, ledger):
    told = []

    def spies(prompt, reply):
        told.append(ensure_config())
        return 1.0

    def asked(pair, config):
        told.append({**config, "callbacks": vars(config["callbacks"])})
        return 1.0

    agents = [Agent("C", spies), Agent("R", RunnableLambda(asked), owner="b-group")]
    config = {"configurable": {"idempotency_key": "order 7", "user": "u"}}
    reply = await reply_of(auction(kind, ledger, agents), style, config)
    assert reply.response_metadata["auction"]["charge"]
    assert {one["configurable"]["user"] for one in told} == {"u"}
    assert "order 7" not in repr(told)


async def test_a_key_that_is_no_text_is_refused(ledger):
    for key in (7, " ", "\ud800"):
        with pytest.raises(ConfigurationError, match="idempotency_key"):
            auction(AuctionRunnable, ledger).invoke("x", {"configurable": {"idempotency_key": key}})


def test_the_most_an_owner_may_owe_is_held_before_anybody_is_asked(ledger):
    seen = []

    def looks(prompt, reply):
        seen.append((ledger.balance("C").held, ledger.balance("b-group").held))
        return 1.0

    two = [Agent("C", looks, report_cap=3.0), likes("b", owner="b-group"), likes("a", "A", owner="b-group")]
    auction(AuctionRunnable, ledger, two).invoke("x")
    most, _ = most_owed(two, 5.0, "expected", 1.0)
    assert set(seen) == {(most["C"], most["b-group"])}
    assert most["C"] < 6 < most["b-group"] < 20
    assert sound(ledger)


def test_less_is_held_where_reports_cannot_be_negative(ledger):
    held = []
    agent = Agent("C", lambda prompt, reply: held.append(ledger.balance("C").held) or 1.0)
    auction(AuctionRunnable, ledger, [agent], payment_rule="proportional").invoke("x")
    assert set(held) == {most_owed([agent], 5.0, "proportional", 1.0)[0]["C"]}
    assert max(held) < 5


@KINDS
@STYLES
async def test_an_owner_without_cover_is_left_out_before_reports_are_asked(kind, style, ledger):
    def never(prompt, reply):
        raise AssertionError

    poor = Agent("Poor", never, context="Poor sells nothing.", categories=["cars"])
    rival = likes("c", categories=["cars"])
    chain = auction(kind, ledger, [poor, rival], on_agent_error="raise", policy=Policy(exclusive_categories=["cars"]))
    with pytest.warns(AuctionWarning, match=r"Poor took no part: the accounts do not cover"):
        told = (await reply_of(chain, style)).response_metadata["auction"]
    assert told["left_out"] == [{"agent": "Poor", "reason": "cover", "category": ""}]
    assert "Deposit with ledger.deposit" in told["warnings"][0]
    assert [payment["agent"] for payment in told["payments"]] == ["C"]
    assert ledger.balance("Poor").balance == 0
    assert sound(ledger)


def test_an_explanation_says_who_was_left_out_and_why(ledger):
    agents = [likes("a", "Poor"), likes("c", categories=["cars"]), likes("b", owner="b-group", categories=["cars"])]
    with pytest.warns(AuctionWarning, match="Poor took no part"):
        result = auction(AuctionRunnable, ledger, agents, policy=Policy(exclusive_categories=["cars"])).run("x")
    assert "Poor took no part: its owner's account does not cover the most that it may owe." in str(result.explain())
    assert "B took no part: another owner holds the category cars." in str(result.explain())
    assert [out["agent"] for out in result.explain().as_dict()["left_out"]] == ["Poor", "B"]


def test_a_rival_that_is_left_out_has_nothing_held_after_it(ledger):
    agents = [likes("b", "B", owner="b-group", categories=["x"]), likes("c", categories=["x"])]
    auction(AuctionRunnable, ledger, agents, policy=Policy(exclusive_categories=["x"])).invoke("x")
    assert ledger.balance("C").balance == 100
    assert sound(ledger)


def test_a_ledger_needs_to_know_the_most_an_agent_may_owe(ledger):
    with pytest.raises(ConfigurationError, match="report_cap"):
        auction(AuctionRunnable, ledger, report_cap=None)
    with pytest.warns(AuctionWarning, match="B, C took no part: they have no report_cap"):
        reply = auction(AuctionRunnable, ledger, lambda prompt: AGENTS, report_cap=None).invoke("x")
    assert {out["reason"] for out in reply.response_metadata["auction"]["left_out"]} == {"cap"}
    auction(AuctionRunnable, ledger, [likes("a", pays=False)], report_cap=None).invoke("x")
    assert kinds_of(ledger) == []


FAILURES = {
    "agent": {"agents": [*AGENTS, Agent("D", lambda prompt, reply: 1 / 0, owner="C")], "on_agent_error": "raise"},
    "filter": {"policy": lambda prompt, reply: False},
    "started": {"on_event": lambda event: event.data["max_candidates"] / 0},
    "scored": {"on_event": lambda event: 1 / 0 if event.name == "auction.scored" else None},
}


@KINDS
@STYLES
@pytest.mark.parametrize("settings", FAILURES.values(), ids=FAILURES)
async def test_an_auction_that_fails_holds_nothing_and_charges_nothing(kind, style, settings, ledger):
    with pytest.raises((CandidatesError, RewardError, ZeroDivisionError)):
        await reply_of(auction(kind, ledger, **settings), style)
    assert set(kinds_of(ledger)) == {"hold", "void"}
    assert sound(ledger)


@KINDS
async def test_what_fails_after_the_charge_takes_it_back(kind, ledger):
    def fails(event):
        if event.name == "auction.settled":
            assert event.data["charged"]
            raise OSError("a listener")

    for style in ("invoke", "ainvoke"):
        with pytest.raises(OSError, match="a listener"):
            await reply_of(auction(kind, ledger, on_event=fails), style)
    assert kinds_of(ledger).count("reversal") == kinds_of(ledger).count("charge") == 4
    assert [account.balance for account in ledger.accounts()] == [100, 100]
    assert sound(ledger)


@KINDS
async def test_a_stream_that_is_left_before_its_first_chunk_is_not_charged(kind, ledger):
    asked = asyncio.Event()

    async def waits(prompt, reply):
        asked.set()
        await asyncio.sleep(60)

    chain = auction(kind, ledger, [Agent("C", waits)])
    stream = chain.astream("x")
    task = asyncio.ensure_future(anext(stream))
    await asked.wait()
    assert ledger.balance("C").held == HELD
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stream.aclose()
    chain.stream("x").close()
    assert "charge" not in kinds_of(ledger)
    assert sound(ledger)


def deaf(kind):
    """Return a tracer that fails when it hears of the reply, and ends the call with it."""

    def fails(self, *args, **kwargs):
        raise OSError("a tracer")

    verb = "on_chain_end" if kind is AuctionRunnable else "on_llm_end"
    return type("Deaf", (BaseCallbackHandler,), {"raise_error": True, verb: fails})()


@KINDS
@STYLES
async def test_what_fails_between_the_charge_and_the_caller_takes_it_back(kind, style, ledger):
    config = {"callbacks": [deaf(kind)]}
    if "stream" in style:  # its reply is the caller's before the run ends
        with pytest.raises(OSError, match="a tracer"):
            await reply_of(auction(kind, ledger), style, config)
        assert "reversal" not in kinds_of(ledger)
        return
    with pytest.raises(OSError, match="a tracer"):
        await reply_of(auction(kind, ledger), style, config)
    assert kinds_of(ledger).count("reversal") == kinds_of(ledger).count("charge") == 2
    assert sound(ledger)


CALLS = [(AuctionRunnable, call) for call in ("batch", "abatch")]
CALLS += [(ChatAuction, call) for call in ("batch", "abatch", "generate", "agenerate")]


@pytest.mark.parametrize(("kind", "call"), CALLS)
async def test_what_is_lost_with_another_input_is_taken_back(kind, call, ledger):
    chain, inputs = auction(kind, ledger), ["x", "y", ""]
    given = [[HumanMessage(text)] for text in inputs] if "generate" in call else inputs
    with pytest.raises(PromptError):
        _ = getattr(chain, call)(given) if call in ("batch", "generate") else await getattr(chain, call)(given)

    def nothing_left():
        kinds = kinds_of(ledger)
        held = any(account.held for account in ledger.accounts())
        return kinds.count("reversal") == kinds.count("charge") and not held

    await until(nothing_left, "hold or charge is left")
    assert [account.balance for account in ledger.accounts()] == [100, 100]
    assert sound(ledger)


async def until(condition, what):
    """Wait for a condition that threads bring about after their call has failed, once no such thread is left."""
    limit = time.monotonic() + 60
    while any(thread.name == "auction-agent" for thread in threading.enumerate()) or not condition():
        assert time.monotonic() < limit, f"After 60 s a {what}."
        await asyncio.sleep(0.02)


@KINDS
@pytest.mark.parametrize("call", ["batch", "abatch"])
async def test_inputs_whose_failures_are_returned_are_each_delivered(kind, call, ledger):
    chain = auction(kind, ledger)
    told = chain.batch if call == "batch" else chain.abatch
    replies = told(["x", "", "y"], return_exceptions=True)
    first, failed, last = replies if call == "batch" else await replies
    assert isinstance(failed, PromptError)
    assert all(ledger.charge_of(reply.response_metadata["auction"]["auction_id"]) for reply in (first, last))
    assert "reversal" not in kinds_of(ledger)


@KINDS
def test_a_reply_that_was_delivered_on_anothers_charge_stays_charged(kind, ledger):
    """Two calls under one key: the first has charged and fails, after the second was delivered on its charge."""
    config, told = {"configurable": {"idempotency_key": "1"}}, []

    def fails(event):
        if event.name == "auction.settled":
            told.append(auction(kind, ledger).invoke("x", config).response_metadata["auction"])
            raise OSError("a listener")

    with pytest.raises(OSError, match="a listener"):
        auction(kind, ledger, on_event=fails).invoke("x", config)
    assert told[0]["charge"]
    assert ledger.charge_of(told[0]["auction_id"]).seq == told[0]["charge"]["seq"]
    assert set(kinds_of(ledger)) == {"hold", "charge"}
    assert sound(ledger)


@KINDS
def test_another_reply_under_the_same_key_is_not_delivered_on_the_charge(kind, ledger):
    config = {"configurable": {"idempotency_key": "1"}}
    quiet = [Agent("C", lambda prompt, reply: 0.0)]
    replies, refused = set(), []
    for seed in range(6):
        try:
            replies.add(auction(kind, ledger, quiet, seed=seed).invoke("x", config).text)
        except DeliveredError as error:
            refused.append(error)
    assert len(replies) == 1
    assert refused
    assert all(error.charge == ledger.charge_of(error.charge.auction_id) and error.reply is None for error in refused)
    assert sound(ledger)


def wobbling(kind, ledger):
    """Return an auction one of whose reports differs from call to call."""
    amounts = iter(range(1, 10**6))
    wobble = Agent("b-group", lambda prompt, reply: 1e-3 * next(amounts) ** 2)
    return auction(kind, ledger, [likes("c"), wobble])


@KINDS
def test_a_report_that_wobbles_makes_no_rival_pay_for_a_reply_that_the_user_never_sees(kind, ledger):
    config, chain = {"configurable": {"idempotency_key": "1"}}, wobbling(kind, ledger)
    first = chain.invoke("x", config).response_metadata["auction"]
    with pytest.raises(DeliveredError, match=r"delivered; this call came to another outcome\. Ask under a new key"):
        chain.invoke("x", config)
    assert ledger.charge_of(first["auction_id"]).seq == first["charge"]["seq"]
    assert set(kinds_of(ledger)) == {"hold", "charge"}
    assert sound(ledger)


@KINDS
@STYLES
async def test_a_ledger_that_keeps_replies_returns_the_first_reply_again_whatever_agents_report(kind, style, url):
    with Ledger(url, keep_replies=True) as ledger:
        config, chain = {"configurable": {"idempotency_key": "1"}}, wobbling(kind, ledger)
        for owner in ("C", "b-group"):
            ledger.deposit(owner, 100)
        first = await reply_of(chain, style, config)
        paid = ledger.balance("C").balance
        again = await reply_of(chain, style, config)
        other = await reply_of(auction(kind, ledger, [likes("b", owner="b-group")]), style, config)  # other agents
        assert again.text == other.text == first.text
        assert again.response_metadata["auction"] == first.response_metadata["auction"]
        assert again.usage_metadata == first.usage_metadata
        assert ledger.balance("C").balance == paid
        with pytest.raises(DeliveredError, match="delivered its reply already") as caught:
            chain.run("x", config)
        assert caught.value.reply.text == first.text
        assert sound(ledger)


@KINDS
def test_a_kept_reply_may_call_tools_with_anything(kind, url):
    args = {"day": date(2026, 5, 1), "data": b"\xff", "tags": {1}, "half": "\ud800"}
    call = {"name": "book", "args": args, "id": "1", "type": "tool_call"}
    with Ledger(url, keep_replies=True) as ledger:
        ledger.deposit("C", 100)
        model = GenericFakeChatModel(messages=iter([AIMessage(word, tool_calls=[call]) for word in "abcd"]))
        config = {"configurable": {"idempotency_key": "1"}}
        chain = auction(kind, ledger, [likes("c")], n_candidates=4, on_tool_calls="auction", model=model)
        first, again = chain.invoke("x", config), chain.invoke("x", config)
        assert again.text == first.text
        assert again.tool_calls == [
            {**call, "args": {"day": "2026-05-01", "data": "_w==", "tags": [1], "half": "\ud800"}}
        ]
        assert sound(ledger)


@KINDS
def test_a_reply_that_another_call_delivered_meanwhile_is_the_reply_of_both(kind, url):
    with Ledger(url, keep_replies=True) as ledger:
        ledger.deposit("C", 100)
        config, delivered = {"configurable": {"idempotency_key": "1"}}, []

        def meanwhile(event):
            if event.name == "auction.scored":
                delivered.append(auction(kind, ledger, [likes("c")], seed=1).invoke("x", config))

        agents = [Agent("C", lambda prompt, reply: 3.0 * reply.text.count("a"))]
        reply = auction(kind, ledger, agents, on_event=meanwhile, seed=2).invoke("x", config)
        assert reply.text == delivered[0].text
        assert reply.response_metadata["auction"] == delivered[0].response_metadata["auction"]
        assert kinds_of(ledger).count("charge") == 1
        assert sound(ledger)


@KINDS
def test_a_kept_reply_that_a_repeated_call_delivers_stays_charged_though_the_first_call_fails(kind, url):
    with Ledger(url, keep_replies=True) as ledger:
        ledger.deposit("C", 100)
        config, delivered = {"configurable": {"idempotency_key": "1"}}, []

        def meanwhile(event):
            if event.name == "auction.settled":
                delivered.append(auction(kind, ledger, [likes("c")]).invoke("x", config))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            auction(kind, ledger, [likes("c")], on_event=meanwhile).invoke("x", config)
        charge = ledger.charge_of(delivered[0].response_metadata["auction"]["auction_id"])
        assert charge.seq == delivered[0].response_metadata["auction"]["charge"]["seq"]
        assert kinds_of(ledger).count("reversal") == 0
        assert ledger.balance("C").balance == 100 - charge.total
        assert sound(ledger)


class Halting(Ledger):
    """Waits once it has read a kept reply."""

    read, go_on = threading.Event(), threading.Event()

    def hold(self, *args, **keywords):
        held = super().hold(*args, **keywords)
        if held.delivered:
            self.read.set()
            self.go_on.wait(10)
        return held


async def test_a_repeated_call_that_is_cancelled_while_it_reads_the_kept_reply_delivers_nothing(url):
    with Halting(url, keep_replies=True) as ledger:
        ledger.deposit("C", 100)
        config = {"configurable": {"idempotency_key": "1"}}

        async def repeat(event):
            if event.name == "auction.settled":
                repeated = asyncio.ensure_future(auction(AuctionRunnable, ledger, [likes("c")]).ainvoke("x", config))
                await asyncio.to_thread(ledger.read.wait, 10)
                repeated.cancel()
                ledger.go_on.set()
                await asyncio.wait([repeated])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await auction(AuctionRunnable, ledger, [likes("c")], on_event=repeat).ainvoke("x", config)
        assert {"charge", "reversal"} < set(kinds_of(ledger))
        assert ledger.balance("C").balance == 100
        assert sound(ledger)


class Forgetful(Ledger):
    """Books a repeated hold, and its answer is lost."""

    def _write(self, operation, *arguments):
        outcome = super()._write(operation, *arguments)
        if operation is operations.hold and outcome[2] is not None:
            raise LedgerUnavailableError("The connection is lost.")
        return outcome


@KINDS
def test_a_repeated_call_whose_answer_is_lost_leaves_no_charge_that_nobody_delivers(kind, url):
    with Forgetful(url, keep_replies=True) as ledger:
        ledger.deposit("C", 100)
        config = {"configurable": {"idempotency_key": "1"}}

        def repeat(event):
            if event.name == "auction.settled":
                with pytest.warns(AuctionWarning, match="LedgerUnavailableError"):
                    auction(kind, ledger, [likes("c")]).invoke("x", config)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            auction(kind, ledger, [likes("c")], on_event=repeat).invoke("x", config)
        ledger.hold("another", {"C": 1})
        ledger.void("another")
        assert {"charge", "reversal"} < set(kinds_of(ledger))
        assert ledger.balance("C").balance == 100
        assert sound(ledger)


@pytest.mark.parametrize("currency", ["", "EUR"])
@KINDS
def test_a_key_under_which_nothing_could_be_held_may_be_asked_for_again(kind, currency, ledger, tmp_path):
    config = {"configurable": {"idempotency_key": "1"}}
    down = Down(f"sqlite:///{tmp_path}/ledger.db", scales={"EUR": 2})
    for owner in ("C", "b-group"):
        down.deposit(owner, 100, currency="EUR")
    down.down = ("hold",)
    with pytest.warns(AuctionWarning, match="LedgerUnavailableError"):
        auction(kind, down, currency=currency).invoke("x", config)
    down.down = ()
    assert auction(kind, down, currency=currency).invoke("x", config).response_metadata["auction"]["charge"]
    down.close()
    assert sound(ledger)


@KINDS
def test_two_calls_that_deliver_on_one_charge_and_both_fail_are_charged_nothing(kind, ledger):
    both = threading.Barrier(2)

    def fails(event):
        if event.name == "auction.settled":
            both.wait(60)
            raise ZeroDivisionError

    def call(_):
        with pytest.raises(ZeroDivisionError):
            auction(kind, ledger, on_event=fails, seed=5).invoke("x", {"configurable": {"idempotency_key": "1"}})

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(call, range(2)))
    booked = kinds_of(ledger)
    assert booked.count("charge") == booked.count("reversal") == 2  # a line for each owner
    assert [ledger.balance(owner).balance for owner in ("b-group", "C")] == [100, 100]
    assert sound(ledger)


@KINDS
def test_a_call_under_anothers_key_leaves_its_hold_alone(kind, ledger):
    config = {"configurable": {"idempotency_key": "1"}}

    def meanwhile(event):
        if event.name == "auction.candidates":
            with pytest.warns(AuctionWarning, match="ChargeConflictError"):
                auction(kind, ledger, AGENTS[:1]).invoke("x", config)
            assert ledger.balance("C").held == HELD

    told = auction(kind, ledger, on_event=meanwhile).invoke("x", config).response_metadata["auction"]
    assert told["charge"]
    assert "void" not in kinds_of(ledger)
    assert sound(ledger)


def test_agents_cannot_let_a_hold_expire(tmp_path):
    with Ledger(f"sqlite:///{tmp_path}/short.db", hold_for=timedelta(seconds=60)) as short:
        for timeout in (60.0, None):
            with pytest.raises(ConfigurationError, match="hold could expire"):
                auction(AuctionRunnable, short, reward_timeout=timeout)
        auction(AuctionRunnable, short, reward_timeout=59.0)


@KINDS
async def test_a_retry_that_fails_leaves_the_charge_of_the_call_that_was_delivered(kind, ledger):
    config = {"configurable": {"idempotency_key": "1"}}
    chain = auction(kind, ledger)
    first = chain.invoke("x", config).response_metadata["auction"]
    for style in ("invoke", "ainvoke"):
        with pytest.raises(OSError, match="a tracer"):
            await reply_of(chain, style, {**config, "callbacks": [deaf(kind)]})
        with pytest.raises(ZeroDivisionError):
            await reply_of(auction(kind, ledger, **FAILURES["scored"]), style, config)
    assert set(kinds_of(ledger)) == {"hold", "charge"}
    assert chain.invoke("x", config).response_metadata["auction"]["charge"] == first["charge"]
    assert sound(ledger)


@KINDS
def test_two_calls_at_once_under_one_key_charge_once_though_one_of_them_fails(kind, ledger):
    config = {"configurable": {"idempotency_key": "1"}}
    other = auction(kind, ledger, **FAILURES["scored"])

    def meanwhile(event):
        if event.name == "auction.candidates":
            with pytest.raises(ZeroDivisionError):
                other.invoke("x", config)

    told = auction(kind, ledger, on_event=meanwhile, seed=5).invoke("x", config).response_metadata["auction"]
    assert ledger.charge_of(told["auction_id"]).total == Decimal(told["revenue_decimal"]) > 0
    assert kinds_of(ledger) == ["hold"] * 2 + ["void"] * 2 + ["hold"] * 2 + ["charge"] * 2
    assert sound(ledger)


class Down(Ledger):
    """A ledger that cannot be reached for some of its verbs."""

    down = ()

    def __getattribute__(self, name):
        if name in object.__getattribute__(self, "down"):

            def refuse(*args, **kwargs):
                raise LedgerUnavailableError("The ledger is down.")

            return refuse
        return object.__getattribute__(self, name)


@KINDS
@STYLES
@pytest.mark.parametrize("verb", ["hold", "charge"])
async def test_no_sponsored_reply_goes_out_uncharged(kind, style, verb, ledger, tmp_path):
    down = Down(f"sqlite:///{tmp_path}/ledger.db")
    down.down = (verb,)
    with pytest.warns(AuctionWarning, match="The ledger failed, so the reply has no sponsors"):
        told = (await reply_of(auction(kind, down), style)).response_metadata["auction"]
    assert (told["charge"], told["revenue"], told["sponsored"]) == (None, 0.0, False)
    assert [payment["agent"] for payment in told["payments"]] == ["House"]
    assert [(out["agent"], out["reason"]) for out in told["left_out"]] == [("B", "ledger"), ("C", "ledger")]
    assert "The ledger is down" not in str(told)
    with pytest.raises(LedgerUnavailableError, match="is down"):
        await reply_of(auction(kind, down, on_error="raise"), style)
    down.close()
    assert "charge" not in kinds_of(ledger)
    assert sound(ledger)


def test_a_reply_without_sponsors_is_drawn_from_the_reference(tmp_path):
    """The same seed with no agents gives the same reply: no agent had a say in it."""
    down = Down(f"sqlite:///{tmp_path}/ledger.db", credit=100)
    down.down = ("charge",)
    with pytest.warns(AuctionWarning, match="ledger"):
        alone = auction(AuctionRunnable, down, AGENTS[:2], seed=5).run("x")
    down.close()
    p = alone.settlement.probabilities
    assert p == pytest.approx([candidate.draws / 8 for candidate in alone.candidates])


def test_nothing_that_is_no_ledger_is_taken_for_one():
    with pytest.raises(ConfigurationError, match=r"ledger must be a Ledger, .* got 'x'"):
        auction(AuctionRunnable, "x")
    with pytest.raises(ConfigurationError, match="on_error"):
        auction(AuctionRunnable, None, on_error="retry")


def test_a_reply_from_a_cache_charges_nothing(ledger):
    kept = {}
    chain = auction(ChatAuction, ledger)
    cached = RunnableLambda(lambda text: kept[text] if text in kept else kept.setdefault(text, chain.invoke(text)))
    first, again = cached.invoke("x"), cached.invoke("x")
    assert first is again
    assert isinstance(first, AIMessage)
    assert kinds_of(ledger).count("charge") == 2


@KINDS
def test_a_repr_tells_no_password(kind):
    chain = kind(model=MarkovChatModel(), billing=Ledger("postgresql://user:hidden@nowhere/x?sslpassword=hidden"))
    assert "hidden" not in repr(chain) + str(chain) + repr(chain.billing.ledger)
    with pytest.raises(ConfigurationError) as refused:
        Ledger("postgresql://user:hidden@nowhere:port/x")
    assert "hidden" not in str(refused.value) + repr(refused.value.__cause__)


def test_an_agent_that_pays_per_click_owes_nothing_before_the_click(ledger):
    clicks = Agent("C", ClickReward(10.0, lambda prompt, reply: 0.1 + 0.1 * ("c" in reply.text)))
    result = auction(AuctionRunnable, ledger, [clicks, AGENTS[0]], currency="", seed=5).run("x")
    assert [(line.owner, line.amount > 0) for line in result.charge.lines] == [("b-group", True), ("C", False)]
    price = {"C": as_decimal(result.prices_per_click[0])}
    click = f"{result.auction_id}:click:C"
    assert ledger.charge(click, price) == ledger.charge(click, price)
    assert ledger.balance("C").balance == 100 - price["C"]
    assert sound(ledger)


def test_clicks_alone_are_charged_nothing_and_the_auction_is_closed(ledger):
    result = auction(AuctionRunnable, ledger, [Agent("C", ClickReward(10.0, lambda *_: 0.1))]).run("x")
    assert (result.charge.total, result.charge.receipt) == (0, result.receipt.digest)
    assert kinds_of(ledger) == ["hold", "charge"]
    assert sound(ledger)


@pytest.mark.parametrize("rule", PAYMENT_RULES)
def test_an_agent_whose_clicks_have_no_price_owes_the_payment_itself(rule, ledger):
    rarely = Agent("C", ClickReward(1e9, lambda prompt, reply: 4e-9 * reply.text.count("c")))
    result = auction(AuctionRunnable, ledger, [rarely, AGENTS[0]], payment_rule=rule, seed=8).run("x")
    assert result.prices_per_click[0] is None
    assert {line.owner: line.amount for line in result.charge.lines}["C"] == result.charges[0]
    assert result.settlement.expected_payments[0] > 0.1
    assert sound(ledger)


@pytest.mark.parametrize("clones", [1, 20, 400])
def test_clones_of_one_owner_are_charged_what_the_owner_owes(clones, ledger):
    few = [Agent(f"C{k}", lambda p, r: 0.0004 * r.text.count("c") / clones, owner="C") for k in range(clones)]
    rival = Agent("b-group", lambda prompt, reply: 0.0004 * reply.text.count("b"))
    result = auction(AuctionRunnable, ledger, [*few, rival], tau=0.0004, report_cap=0.01, seed=4).run("x")
    due = as_decimal(math.fsum(result.settlement.payments[:clones]))
    assert due > 0
    assert sum(result.charges[:clones]) == due == {line.owner: line.amount for line in result.charge.lines}["C"]


def test_a_click_that_nobody_expects_is_not_paid_for_at_once(ledger):
    never = Agent("C", ClickReward(10.0, lambda *_: 0.0))
    result = auction(AuctionRunnable, ledger, [never, AGENTS[0]], payment_rule="influence").run("x")
    assert {line.owner: line.amount for line in result.charge.lines}["C"] == 0


class Lost(Ledger):
    """A ledger whose answer to a charge is lost, and which then cannot be reached for a while."""

    lost = False

    def charge(self, *args, **kwargs):
        super().charge(*args, **kwargs)
        self.lost = True
        raise LedgerUnavailableError("The answer is lost.")

    def _write(self, *move):
        if self.lost:
            raise LedgerUnavailableError("Nobody answers.")
        return super()._write(*move)


def test_a_charge_whose_answer_was_lost_is_taken_back_before_the_next_hold(ledger, tmp_path):
    lost = Lost(f"sqlite:///{tmp_path}/ledger.db")
    chain = auction(AuctionRunnable, lost, seed=5)
    with pytest.warns(AuctionWarning, match="LedgerUnavailableError"):
        told = chain.invoke("x").response_metadata["auction"]
    assert told["charge"] is None
    assert ledger.charge_of(told["auction_id"]).total > 0
    with pytest.warns(AuctionWarning, match="LedgerUnavailableError"):
        chain.invoke("x")
    lost.lost = False
    lost.hold("another", {"C": 1})
    lost.void("another")
    lost.close()
    assert {entry.kind for entry in ledger.entries() if entry.auction_id == told["auction_id"]} >= {"reversal"}
    assert [account.balance for account in ledger.accounts()] == [100, 100]
    assert sound(ledger)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_agents_turns_are_each_charged_once_under_one_key(ledger, asynchronous):
    middleware = AuctionMiddleware(AGENTS, billing=ledger, n_candidates=8, report_cap=5.0)
    agent = create_agent(MarkovChatModel(), middleware=[middleware])
    config = {"configurable": {"idempotency_key": "1"}}

    async def state_after(*messages):
        given = {"messages": list(messages)}
        return await agent.ainvoke(given, config) if asynchronous else agent.invoke(given, config)

    states = [await state_after(("human", "x")) for _ in range(2)]
    first, again = (state["auctions"][-1]["charge"] for state in states)
    assert first == again is not None
    later = await state_after(*states[0]["messages"], ("human", "and then?"))
    assert later["auctions"][-1]["charge"]["seq"] > first["seq"]
    assert kinds_of(ledger).count("charge") == 4
    assert sound(ledger)


def test_what_cannot_be_taken_back_is_told_and_taken_back_before_the_next_hold(ledger, tmp_path, caplog):
    down = Down(f"sqlite:///{tmp_path}/ledger.db")
    write, failing = down._write, []

    def fails(*move):
        if failing:
            raise LedgerUnavailableError("Nobody answers.")
        return write(*move)

    down._write = fails
    config = {"callbacks": [BrokenTracer(failing)]}
    with pytest.raises(OSError, match="a tracer"):
        auction(AuctionRunnable, down).invoke("x", config)
    assert "was not taken back: Nobody answers." in caplog.text
    assert ledger.totals()[0].revenue > 0
    failing.clear()
    down.hold("another", {"C": 1})
    down.void("another")
    down.close()
    assert ledger.totals()[0].revenue == 0
    assert sound(ledger)


class BrokenTracer(BaseCallbackHandler):
    """Takes the ledger down, and fails, when it hears of the reply."""

    raise_error = True

    def __init__(self, failing):
        self._failing = failing

    def on_chain_end(self, *args, **kwargs):
        self._failing.append(True)
        raise OSError("a tracer")
