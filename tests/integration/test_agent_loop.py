"""Whole agent loops with tools that run: only what was drawn is executed, shown and billed."""

import httpx
import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from llm_auction_chain import Agent, AuctionMiddleware, AuctionRunnable, ChatAuction
from tests.integration.provider import provider
from tests.unit.interfaces.caller import COST, Caller, Spy, calling, numbered

M = 4
GIVEN = {"messages": [("human", "Note something")]}


def calls_then_says(messages, number):
    return numbered(messages, number) if isinstance(messages[-1], ToolMessage) else calling(number)


def calls_or_says(messages, number):
    return calling(number) if number % 2 else calls_then_says([*messages, ToolMessage("", tool_call_id="x")], number)


MODELS = {
    "AuctionRunnable": lambda model, **settings: (AuctionRunnable(model=model, **settings), []),
    "ChatAuction": lambda model, **settings: (ChatAuction(model=model, **settings), []),
    "AuctionMiddleware": lambda model, **settings: (model, [AuctionMiddleware(**settings)]),
}


class Loop:
    """An agent whose only tool keeps what it is called with."""

    def __init__(self, kind, say, *, auctioned=True, worth=lambda reply: 1.0, **settings):
        self.executed, self.spy, self.caller = [], Spy(worth), Caller(say=say)
        agents = [self.spy.agent(), Agent("B", lambda prompt, reply: 0.5)]
        policy = {"on_tool_calls": "auction"} if auctioned else {}
        settings = {"agents": agents, "n_candidates": M, **policy, **settings}
        model, middleware = MODELS[kind](self.caller, **settings)
        tool = StructuredTool.from_function(self.note, self.anote, name="note", description="Notes a text.")
        self.graph = create_agent(model, [tool], middleware=middleware)
        self.usage = UsageMetadataCallbackHandler()

    def note(self, text: str) -> str:
        self.executed.append(text)
        return "noted"

    async def anote(self, text: str) -> str:
        return self.note(text)

    async def run(self, style):
        config = {"callbacks": [self.usage]}
        return self.graph.invoke(GIVEN, config) if style == "sync" else await self.graph.ainvoke(GIVEN, config)


def spoken(state):
    return [message for message in state["messages"] if isinstance(message, AIMessage)]


@pytest.mark.parametrize("style", ["sync", "async"])
@pytest.mark.parametrize("kind", MODELS)
async def test_only_the_winners_calls_are_executed_and_every_draw_is_billed_once(kind, style):
    loop = Loop(kind, calls_then_says)
    state = await loop.run(style)
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
    first, last = spoken(state)
    assert loop.executed == [first.tool_calls[0]["args"]["text"]]
    shown, then = loop.spy.shown
    assert loop.executed[0] in {reply.tool_calls[0]["args"]["text"] for reply in shown}
    assert last.text in {reply.text for reply in then}
    assert len({reply.tool_calls[0]["id"] for reply in shown}) == len({reply.text for reply in then}) == M
    assert len(loop.caller.asked) == 2 * M
    assert all(call["tools"] for call in loop.caller.asked)
    assert loop.usage.usage_metadata["caller"]["total_tokens"] == 2 * M * COST
    assert [message.usage_metadata["total_tokens"] for message in (first, last)] == [M * COST] * 2
    for message in (first, last):
        held = message.response_metadata["auction"]
        assert [payment["agent"] for payment in held["payments"]] == ["spy", "B"]
        assert held["bypassed"] is False


@pytest.mark.parametrize("style", ["sync", "async"])
@pytest.mark.parametrize("kind", MODELS)
async def test_a_turn_that_offers_tools_is_the_references_own_unless_told_otherwise(kind, style):
    loop = Loop(kind, calls_then_says, auctioned=False)
    state = await loop.run(style)
    assert loop.executed == ["call 1"]
    assert loop.spy.shown == []
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert loop.usage.usage_metadata["caller"]["total_tokens"] == 2 * COST
    for message in spoken(state):
        held = message.response_metadata["auction"]
        assert (held["bypassed"], held["payments"], held["diagnostics"]["candidates"]) == (True, [], 1)


@pytest.mark.parametrize("kind", MODELS)
async def test_a_text_that_wins_against_calls_ends_the_loop_and_nothing_is_executed(kind):
    for style in ("sync", "async"):
        loop = Loop(kind, calls_or_says, worth=lambda reply: 100.0 * (not reply.tool_calls))
        state = await loop.run(style)
        assert [message.type for message in state["messages"]] == ["human", "ai"]
        assert loop.executed == []
        assert sum(bool(reply.tool_calls) for reply in loop.spy.shown[0]) == M // 2


@pytest.mark.parametrize("kind", MODELS)
async def test_several_calls_of_the_winner_are_all_executed_and_none_of_a_loser(kind):
    def calls_twice(messages, number):
        if isinstance(messages[-1], ToolMessage):
            return numbered(messages, number)
        calls = calling(number).tool_calls + calling(f"{number}b").tool_calls
        return AIMessage("", tool_calls=calls)

    for style in ("sync", "async"):
        loop = Loop(kind, calls_twice)
        state = await loop.run(style)
        drawn = [call["args"]["text"] for call in spoken(state)[0].tool_calls]
        assert sorted(loop.executed) == sorted(drawn)
        assert drawn[1] == f"{drawn[0]}b"


@pytest.mark.parametrize("kind", MODELS)
async def test_a_message_stream_of_a_loop_shows_one_reply_a_turn(kind):
    loop = Loop(kind, calls_then_says)
    shown = [message for message, _ in loop.graph.stream(GIVEN, stream_mode="messages")]
    loop_a = Loop(kind, calls_then_says)
    ashown = [message async for message, _ in loop_a.graph.astream(GIVEN, stream_mode="messages")]
    for one, messages in ((loop, shown), (loop_a, ashown)):
        assert [message.type.removesuffix("MessageChunk").lower() for message in messages] == ["ai", "tool", "ai"]
        assert [call["args"]["text"] for call in messages[0].tool_calls] == one.executed


@pytest.mark.parametrize("kind", MODELS)
async def test_equal_calls_under_fresh_ids_are_one_candidate_and_the_drawn_id_is_answered(kind):
    def same(messages, number):
        return numbered(messages, number) if isinstance(messages[-1], ToolMessage) else calling(number, text="same")

    loop = Loop(kind, lambda messages, number: calling(number) if number == 1 else same(messages, number))
    state = await loop.run("async")
    assert len(loop.spy.shown[0]) == 2
    call, answer = state["messages"][1].tool_calls[0], state["messages"][2]
    assert answer.tool_call_id == call["id"]
    assert loop.executed == [call["args"]["text"]]


class Said(BaseModel):
    key: str
    choice: int


@pytest.mark.parametrize("kind", ["ChatAuction", "AuctionMiddleware"])
def test_a_schema_that_the_provider_keeps_to_itself_offers_no_tools_and_is_auctioned(kind):
    with provider() as server, httpx.Client() as client:
        model = ChatOpenAI(model="gpt-4.1", api_key="sk", base_url=server.url, http_client=client, max_retries=0)
        auction, middleware = MODELS[kind](model, agents=[Spy().agent()], n_candidates=M)
        state = create_agent(auction, middleware=middleware, response_format=Said).invoke(GIVEN)
    (reply,) = spoken(state)
    assert state["structured_response"] == Said.model_validate_json(reply.text)
    held = reply.response_metadata["auction"]
    assert (held["bypassed"], len(held["payments"]), held["diagnostics"]["candidates"]) == (False, 1, M)
    assert [(body["response_format"]["type"], body["tools"]) for body in server.asked] == [("json_schema", [])] * M
