"""AuctionMiddleware in real agents: whose agents bid, what the state keeps, what other middleware sees."""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelFallbackMiddleware, ModelRetryMiddleware
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.exceptions import ModelAPIError, ModelAuthenticationError
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from llm_auction_chain import Agent, AuctionMiddleware, AuctionWarning, ChatAuction, ConfigurationError, Disclosure
from tests.unit.interfaces.caller import Caller, Spy, both, calling

M = 4
GIVEN = {"messages": [("human", "Hi")]}
EVENTS = ["auction.started", "auction.candidates", "auction.scored", "auction.settled"]


def bidder(name):
    return Agent(name, lambda prompt, reply: 1.0)


def agent(middleware=None, model=None, **settings):
    own = AuctionMiddleware([bidder("own")], n_candidates=M) if middleware is None else middleware
    return create_agent(model or Caller(), middleware=own if isinstance(own, list) else [own], **settings)


def bidders(state):
    """Return who paid in every auction of a state."""
    return [[payment["agent"] for payment in held["payments"]] for held in state["auctions"]]


async def test_the_final_state_says_who_paid_what_in_every_turn():
    graph = agent()
    for state in await both(graph, GIVEN):
        (held,) = state["auctions"]
        assert held == state["messages"][-1].response_metadata["auction"]
        assert bidders(state) == [["own"]]
        assert held["diagnostics"]["candidates"] == M
        assert json.loads(json.dumps(state["auctions"], allow_nan=False)) == state["auctions"]


@dataclass
class Attribute:
    auction_agents: Any = None


class Key(TypedDict, total=False):
    auction_agents: Any


@pytest.mark.parametrize("context", [Attribute, Key])
async def test_agents_of_the_call_go_before_those_of_context_state_and_constructor(context):
    graph = agent(context_schema=context)
    stated = {**GIVEN, "auction_agents": [bidder("state")]}
    contextual = {"context": context(auction_agents=[bidder("context")])}
    config = {"configurable": {"auction_agents": [bidder("config")]}}
    for given, told, keywords, who in (
        (GIVEN, None, {"context": context()}, "own"),
        (stated, None, {}, "state"),
        (stated, None, contextual, "context"),
        (GIVEN, None, contextual, "context"),
        (stated, config, contextual, "config"),
        (GIVEN, config, {}, "config"),
    ):
        for state in await both(graph, given, told, **keywords):
            assert bidders(state) == [[who]]
            assert "auction_agents" not in state


def sees(request):
    assert isinstance(request.model, Caller)
    return [bidder(f"{request.messages[-1].text} {request.state['messages'][-1].text}")]


async def asees(request):
    return sees(request)


@pytest.mark.parametrize("place", ["constructor", "state", "context"])
async def test_a_callable_chooses_the_agents_by_the_request(place):
    for source in (sees, asees):
        graph = agent(AuctionMiddleware(source if place == "constructor" else (), n_candidates=M))
        given = {**GIVEN, "auction_agents": source} if place == "state" else GIVEN
        keywords = {"context": {"auction_agents": source}} if place == "context" else {}
        assert bidders(await graph.ainvoke(given, **keywords)) == [["Hi Hi"]]
        if source is sees:
            assert bidders(graph.invoke(given, **keywords)) == [["Hi Hi"]]
        else:
            with pytest.raises(ConfigurationError, match="ainvoke"):
                graph.invoke(given, **keywords)


class Directory(AgentMiddleware):
    """Puts the agents of a turn into the state."""

    def before_model(self, state, runtime):
        return {"auction_agents": [bidder("state")]} if len(state["messages"]) == 1 else None


async def test_every_turn_of_a_thread_is_counted_once_and_no_checkpoint_keeps_the_agents():
    saver = InMemorySaver()
    graph = agent([Directory(), AuctionMiddleware([bidder("own")], n_candidates=M)], checkpointer=saver)
    config = {"configurable": {"thread_id": "1"}}
    graph.invoke(GIVEN, config)
    await graph.ainvoke(GIVEN, config)
    await graph.ainvoke(GIVEN, config, context={"auction_agents": [bidder("context")]})
    state = graph.invoke(GIVEN, {"configurable": {"thread_id": "1", "auction_agents": [bidder("config")]}})
    assert bidders(state) == [["state"], ["own"], ["context"], ["config"]]
    assert "auction_agents" not in state
    replies = [message for message in state["messages"] if isinstance(message, AIMessage)]
    assert state["auctions"] == [reply.response_metadata["auction"] for reply in replies]
    graph.update_state(config, {"auctions": state["auctions"]})
    assert graph.get_state(config).values["auctions"] == state["auctions"]
    for kept in saver.list(config):
        assert "auction_agents" not in kept.checkpoint["channel_values"]
        assert "auction_agents" not in {channel for _, channel, _ in kept.pending_writes}
        assert "agents" not in kept.metadata


def test_agents_in_an_input_that_a_checkpoint_would_keep_are_an_error_and_not_a_silent_loss():
    graph = agent(checkpointer=InMemorySaver())
    with pytest.raises(TypeError, match="Agent"):
        graph.invoke({**GIVEN, "auction_agents": [bidder("state")]}, {"configurable": {"thread_id": "1"}})


async def test_a_caller_cannot_put_auctions_into_the_state():
    assert bidders(agent().invoke({**GIVEN, "auctions": [{"auction_id": "mine"}]})) == [["own"]]


async def test_the_stream_writer_gets_the_events_and_no_text():
    heard = []
    graph = agent(AuctionMiddleware([bidder("own")], n_candidates=M, on_event=heard.append))
    shown = list(graph.stream(GIVEN, stream_mode="custom"))
    ashown = [event async for event in graph.astream(GIVEN, stream_mode="custom")]
    for events in (shown, ashown):
        assert [event["event"] for event in events] == EVENTS
        assert "reply " not in json.dumps(events, allow_nan=False)
    assert [event.name for event in heard] == 2 * EVENTS


class Around(AgentMiddleware):
    """Sees the model that a request brings, and may replace it."""

    def __init__(self, replaced=None):
        super().__init__()
        self.seen, self.replaced = [], replaced

    def wrap_model_call(self, request, handler):
        self.seen.append(request.model)
        return handler(request.override(model=self.replaced) if self.replaced else request)

    async def awrap_model_call(self, request, handler):
        self.seen.append(request.model)
        return await handler(request.override(model=self.replaced) if self.replaced else request)


async def test_middleware_before_it_sees_the_true_model_and_what_it_puts_in_place_is_auctioned():
    model, other = Caller(), Caller()
    around = Around(replaced=other)
    for state in await both(agent([around, AuctionMiddleware([bidder("own")], n_candidates=M)], model), GIVEN):
        assert bidders(state) == [["own"]]
    assert all(seen is model for seen in around.seen)
    assert (len(around.seen), len(model.asked), len(other.asked)) == (2, 0, 2 * M)


async def test_a_middleware_behind_it_that_replaces_the_model_is_warned_about():
    graph = agent([AuctionMiddleware([bidder("own")], n_candidates=M), Around(replaced=Caller())])
    with pytest.warns(AuctionWarning, match="Put AuctionMiddleware last"):
        state = graph.invoke(GIVEN)
    assert state["auctions"] == []
    with pytest.warns(AuctionWarning, match="Put AuctionMiddleware last"):
        assert (await graph.ainvoke(GIVEN))["auctions"] == []


def fails_at_first(messages, number):
    if number <= M:
        raise ConnectionError("down")
    return AIMessage(f"reply {number}")


async def test_what_a_retry_or_a_fallback_around_it_calls_is_auctioned():
    for style in ("sync", "async"):
        retry = ModelRetryMiddleware(max_retries=1, initial_delay=0.0, jitter=False, on_failure="error")
        model, other = Caller(say=fails_at_first), Caller()
        for outer, asked in ((retry, model), (ModelFallbackMiddleware(other), other)):
            model.numbers = iter(range(1, 99))
            model.asked.clear()
            graph = agent([outer, AuctionMiddleware([bidder("own")], n_candidates=M)], model)
            state = graph.invoke(GIVEN) if style == "sync" else await graph.ainvoke(GIVEN)
            assert bidders(state) == [["own"]]
            assert (
                state["auctions"][0]["diagnostics"] | {"candidates": M, "failed_calls": 0}
                == (state["auctions"][0]["diagnostics"])
            )
            assert len(asked.asked) == (2 * M if asked is model else M)


class Shape(BaseModel):
    text: str


async def test_an_agents_structured_response_is_the_winners():
    spy = Spy()
    model = Caller(say=lambda messages, number: calling(number, "Shape", text=f"shape {number}"))
    own = AuctionMiddleware([spy.agent()], n_candidates=M, on_tool_calls="auction")
    for state in await both(agent(own, model, response_format=Shape), GIVEN):
        drawn = next(message for message in state["messages"] if isinstance(message, AIMessage))
        assert state["structured_response"].text == drawn.tool_calls[0]["args"]["text"]
        assert len(state["auctions"]) == 1
    assert [len(shown) for shown in spy.shown] == [M, M]


async def test_what_an_agent_asks_the_provider_for_is_parsed_whatever_is_disclosed():
    model = Caller(say=lambda messages, number: AIMessage(json.dumps({"text": f"shape {number}"})))
    eager = Agent("eager", lambda prompt, reply: 100.0 * int(reply.text.split()[-1].strip('"}')))
    own = AuctionMiddleware([eager], n_candidates=M, disclosure=Disclosure(text="Ad", place="start"))
    for state in await both(agent(own, model, response_format=ProviderStrategy(Shape)), GIVEN):
        (held,) = state["auctions"]
        assert (held["sponsored"], held["disclosure"]) == (True, "Ad")
        assert state["structured_response"] == Shape.model_validate_json(state["messages"][-1].text)


@pytest.mark.parametrize("settings", [
    {"unknown": 1}, {"tau": 0.0}, {"agents": ["A"]}, {"model": Caller()}, {"n_candidates": 0}, {"on_tool_calls": "x"},
    {"agents": [bidder("A"), bidder("A")]}, {"seed": -1},
])  # fmt: skip
def test_settings_no_auction_can_run_with_are_refused_at_once(settings):
    with pytest.raises(ConfigurationError, match=next(iter(settings)) if "agents" not in settings else None):
        AuctionMiddleware(**settings)


async def test_a_model_that_is_an_auction_already_is_refused():
    for model in (ChatAuction(model=Caller()), ChatAuction(model=Caller()).bind(stop=["x"])):
        graph = agent(model=model)
        with pytest.raises(ConfigurationError, match="already"):
            graph.invoke(GIVEN)
        with pytest.raises(ConfigurationError, match="already"):
            await graph.ainvoke(GIVEN)


def test_without_the_agents_extra_the_middleware_says_what_to_install():
    code = """
import sys
class Blocked:
    missing = "langchain"
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == self.missing:
            raise ImportError(name)
blocked = Blocked()
sys.meta_path.insert(0, blocked)
from llm_auction_chain import AuctionRunnable, ChatAuction, MissingDependencyError
for blocked.missing in ("langchain", "langgraph"):
    try:
        from llm_auction_chain import AuctionMiddleware
    except MissingDependencyError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.count("pip install 'llm-auction-chain[agents]'") == 2


@pytest.mark.parametrize(("error", "asked"), [(ModelAuthenticationError("bad key"), M), (ModelAPIError("down"), 3 * M)])
def test_a_retry_asks_again_only_where_the_model_may_then_answer(error, asked):
    def say(messages, number):
        raise error

    caller = Caller(say=say)
    retry = ModelRetryMiddleware(max_retries=2, initial_delay=0, on_failure="error")
    with pytest.raises(type(error)):
        agent([retry, AuctionMiddleware([bidder("own")], n_candidates=M)], caller).invoke(GIVEN)
    assert next(caller.numbers) == asked + 1


@pytest.mark.parametrize("place", ["state", "context"])
@pytest.mark.parametrize("sent", [[], ["own"], "own", {}, 0])
async def test_what_a_client_sends_switches_no_auction_off(place, sent):
    given = {**GIVEN, "auction_agents": sent} if place == "state" else GIVEN
    keywords = {"context": {"auction_agents": sent}} if place == "context" else {}
    with pytest.raises(ConfigurationError, match="auction_agents must be a list of at least one Agent"):
        agent().invoke(given, **keywords)
