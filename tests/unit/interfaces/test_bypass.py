"""Tools that an auction cannot see being offered: a turn whose replies call them is sold to nobody."""

from decimal import Decimal

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda

from llm_auction_chain import Agent, AuctionRunnable, ChatAuction, Ledger
from llm_auction_chain.receipts import verify
from tests.unit.interfaces.caller import COST, Caller, Spy, both, calling, numbered

M = 4


class Asks(BaseChatModel):
    """Asks a model that has tools bound."""

    asked: BaseChatModel

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        reply = self.asked.bind_tools([{"name": "note", "parameters": {}}]).invoke(messages)
        return ChatResult(generations=[ChatGeneration(message=reply)])

    @property
    def _llm_type(self):
        return "asks"


def returned(model):
    """Return what chooses a model with tools in every call."""
    return RunnableLambda(lambda _: model.bind_tools([{"name": "note", "parameters": {}}]))


UNSEEN = pytest.mark.parametrize(("interface", "wrap"), [
    (AuctionRunnable, returned), (AuctionRunnable, lambda model: Asks(asked=model)),
    (ChatAuction, lambda model: Asks(asked=model)),
])  # fmt: skip


def once(messages, number):
    """Call a tool in the second reply of every four, and speak in the others."""
    return calling(number) if number % M == 2 else numbered(messages, number)


def unreadable(messages, number):
    return AIMessage("", invalid_tool_calls=[{"name": "note", "args": f"{{{number}", "id": str(number), "error": None}])


def legacy(messages, number):
    called = {"name": "note", "arguments": f'{{"text": "{number}"}}'}
    return AIMessage("", additional_kwargs={"function_call": called})


@UNSEEN
@pytest.mark.parametrize("say", [once, unreadable, legacy])
async def test_a_turn_whose_replies_call_tools_unseen_asks_nobody_and_follows_the_reference(interface, wrap, say):
    spy = Spy(lambda reply: 100.0 * bool(reply.tool_calls))
    auction = interface(model=wrap(Caller(say=say)), agents=[spy.agent()], n_candidates=M)
    for result in (auction.run("Hi"), await auction.arun("Hi")):
        held = result.reply.response_metadata["auction"]
        assert held["bypassed"] is True
        assert (held["payments"], held["agents"], held["left_out"]) == ([], [], [])
        assert [float(p) for p in result.settlement.probabilities] == [
            candidate.draws / M for candidate in result.candidates
        ]
        assert result.receipt.bypassed is True
        assert verify(result.receipt).ok
        assert result.reply.usage_metadata["total_tokens"] == M * COST
    assert spy.shown == []


@UNSEEN
async def test_a_turn_whose_replies_call_nothing_is_auctioned(interface, wrap):
    for reply in await both(interface(model=wrap(Caller()), agents=[Spy().agent()], n_candidates=M)):
        held = reply.response_metadata["auction"]
        assert (held["bypassed"], len(held["payments"])) == (False, 1)


@UNSEEN
async def test_calls_that_are_auctioned_may_come_from_tools_unseen(interface, wrap):
    spy = Spy(lambda reply: 100.0 * bool(reply.tool_calls))
    auction = interface(model=wrap(Caller(say=once)), agents=[spy.agent()], n_candidates=M, on_tool_calls="auction")
    for reply in await both(auction):
        assert reply.tool_calls
        assert reply.response_metadata["auction"]["bypassed"] is False


@UNSEEN
async def test_what_was_held_for_a_turn_that_calls_tools_unseen_is_released(interface, wrap, tmp_path):
    agent = Agent("A", lambda prompt, reply: 1.0 * bool(reply.tool_calls), report_cap=4.0)
    with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.deposit("A", 100)
        auction = interface(model=wrap(Caller(say=once)), agents=[agent], n_candidates=M, billing=ledger)
        for reply in await both(auction):
            assert reply.response_metadata["auction"]["charge"] is None
            assert (ledger.balance("A").balance, ledger.balance("A").held) == (Decimal(100), Decimal(0))
        assert ledger.verify().differences == []
