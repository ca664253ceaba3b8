"""Tools that an auction cannot see being offered: a turn whose replies call them is sold to nobody."""

from decimal import Decimal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain.agents.middleware.internal_call_transformer import internal_call_metadata
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import ConfigurableField, RunnableLambda

from llm_auction_chain import Agent, AuctionMiddleware, AuctionRunnable, ChatAuction, Ledger
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


def in_content(messages, number):
    return AIMessage([{"type": "tool_use", "id": "1", "name": "note", "input": {"text": str(number)}}])


@UNSEEN
@pytest.mark.parametrize("say", [once, unreadable, legacy, in_content])
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


class Keeps(Caller):
    """Keeps its tools where nothing shows them."""

    def bind_tools(self, tools, **kwargs):
        return self


@pytest.mark.parametrize("interface", [AuctionRunnable, ChatAuction])
@pytest.mark.parametrize("wrap", [
    lambda model: model, lambda model: model.with_retry(), lambda model: model.with_fallbacks([Caller()]),
    lambda model: model.bind(stop=["x"]),
])  # fmt: skip
@pytest.mark.parametrize("wrap_auction", [
    lambda auction: auction, lambda auction: auction.with_retry(), lambda auction: auction.with_config(tags=["a"]),
    lambda auction: auction.bind(stop=["y"]),
    lambda auction: auction.configurable_fields(tau=ConfigurableField(id="tau")).with_config(configurable={"tau": 2.0}),
])  # fmt: skip
async def test_an_auction_remembers_the_tools_that_its_model_keeps(interface, wrap, wrap_auction):
    spy = Spy()
    auction = interface(model=wrap(Keeps()), agents=[spy.agent()], n_candidates=M)
    offers = wrap_auction(auction.bind_tools([{"name": "note", "parameters": {}}]))
    assert all(reply.response_metadata["auction"]["bypassed"] for reply in await both(offers))
    assert spy.shown == []
    for neither in (auction, auction.bind_tools([])):
        assert not any(reply.response_metadata["auction"]["bypassed"] for reply in await both(neither))
    for taken in ({"tools": []}, {"tools": None}, {"on_tool_calls": "auction"}):
        assert not any(reply.response_metadata["auction"]["bypassed"] for reply in await both(offers, **taken))


@pytest.mark.parametrize("hold", [
    lambda model, **settings: {"model": model, "middleware": [AuctionMiddleware(**settings)]},
    lambda model, **settings: {"model": ChatAuction(model=model, **settings)},
])  # fmt: skip
async def test_an_agents_turn_offers_its_tools_though_the_model_keeps_them(hold):
    def note(text: str) -> str:
        """Note it."""
        return text

    for tools, bypassed in (([note], True), ([], False)):
        agent = create_agent(tools=tools, **hold(Keeps(), agents=[Spy().agent()], n_candidates=M))
        for state in await both(agent, {"messages": [("human", "Hi")]}):
            assert state["messages"][-1].response_metadata["auction"]["bypassed"] is bypassed


@pytest.mark.parametrize("of", [lambda auction: auction, lambda auction: auction.reference])
async def test_a_summary_of_an_agent_is_paid_by_nobody(of, tmp_path):
    with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.deposit("spy", 100)
        agents = [Agent("spy", Spy(lambda reply: float(reply.text[-1])), report_cap=9.0)]
        auction = ChatAuction(model=Caller(), agents=agents, n_candidates=M, billing=ledger)
        summary = SummarizationMiddleware(of(auction), trigger=("messages", 3), keep=("messages", 1))
        thread = {"messages": [("human", "q"), ("ai", "a"), ("human", "q2")]}
        for state in await both(create_agent(auction, middleware=[summary]), thread):
            assert "reply" in state["messages"][0].text
            assert state["messages"][-1].response_metadata["auction"]["charge"]
        assert [entry.kind for entry in ledger.entries()].count("charge") == 2


async def test_no_client_can_mark_a_call_as_an_agents_own():
    auction = ChatAuction(model=Caller(), agents=[Spy().agent()], n_candidates=M)
    forged = {"metadata": {"lc_internal_call": True, "lc_source": "summarization"}}
    for config, bypassed in (({"metadata": internal_call_metadata()}, True), (forged, False), ({}, False)):
        for reply in await both(auction, "Hi", config):
            assert reply.response_metadata["auction"]["bypassed"] is bypassed


@pytest.mark.parametrize("interface", [AuctionRunnable, ChatAuction])
async def test_the_reference_of_an_auction_is_its_model(interface):
    spy = Spy()
    auction = interface(model=Caller(), agents=[spy.agent()], n_candidates=M)
    for reply in [*await both(auction.reference), *await both(auction.bind(seed=1).reference)]:
        assert "auction" not in reply.response_metadata
    assert spy.shown == []
