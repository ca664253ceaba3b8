"""Rewards and models that are LangGraph graphs themselves: the graph around neither shows nor saves what loses."""

import itertools

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_store, get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.runtime import get_runtime
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

from llm_auction_chain import Agent, AuctionMiddleware, AuctionRunnable, ChatAuction
from llm_auction_chain.testing import MarkovChatModel

M = 4
GIVEN = {"messages": [("human", "Speak")]}
THREAD = {"configurable": {"thread_id": "t"}}
MODES = ["values", "updates", "custom", "messages", "debug", "tasks", "checkpoints"]


class Seen(TypedDict):
    text: str
    worth: float


def judging(state):
    get_stream_writer()({"saw": state["text"]})
    return {"worth": float(len(state["text"]))}


async def ajudging(state):
    return judging(state)


def judge(**settings):
    builder = StateGraph(Seen).add_node("judge", RunnableLambda(judging, ajudging)).add_edge(START, "judge")
    return builder.compile(**settings)


class Writes:
    """A reward that a graph computes, and that writes to the stream beside."""

    def __init__(self, **settings):
        self.graph = judge(**settings)

    def score(self, prompt, replies):
        for reply in replies:
            get_stream_writer()({"saw": reply.text})
        return [self.graph.invoke({"text": reply.text})["worth"] for reply in replies]


REWARDS = {
    "a function": Writes,
    "a Runnable": lambda **settings: (
        RunnableLambda(lambda pair: {"text": pair["reply"].text}) | judge(**settings) | (lambda state: state["worth"])
    ),
}


def node(auction, **settings):
    def speak(state):
        return {"messages": [auction.invoke(state["messages"])]}

    async def aspeak(state):
        return {"messages": [await auction.ainvoke(state["messages"])]}

    speaking = RunnableLambda(speak, aspeak)
    return StateGraph(MessagesState).add_node("speak", speaking).add_edge(START, "speak").compile(**settings)


def model():
    return MarkovChatModel(length=24, vocabulary="XYZ")


def placed(place, agents, **settings):
    terms = {"agents": agents, "n_candidates": M, "seed": 2}
    if place == "AuctionMiddleware":
        return create_agent(model(), middleware=[AuctionMiddleware(**terms)], **settings)
    kind = {"AuctionRunnable": AuctionRunnable, "ChatAuction": ChatAuction}[place]
    return node(kind(model=model(), **terms), **settings)


def losers_in(shown, state):
    """Return the losing replies in what was shown or saved."""
    (winner,) = [message.text for message in state["messages"] if message.type == "ai"]
    texts = {candidate.message.text for candidate in LAST.run("Speak").candidates}
    assert winner in texts
    assert len(texts) == M
    return [text for text in texts - {winner} if text in repr(shown)]


LAST = AuctionRunnable(model=model(), agents=[Agent("A", lambda prompt, reply: 1.0)], n_candidates=M, seed=2)
everywhere = pytest.mark.parametrize("place", ["AuctionRunnable", "ChatAuction", "AuctionMiddleware"])
every_reward = pytest.mark.parametrize("reward", REWARDS)
# LangGraph's own note on v3
experimental = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")


@experimental
@everywhere
@every_reward
async def test_a_reward_that_is_a_graph_shows_no_losing_reply_in_any_stream(reward, place):
    def graph():
        return placed(place, [Agent("A", REWARDS[reward]())], checkpointer=InMemorySaver())

    shown = list(graph().stream(GIVEN, THREAD, stream_mode=MODES, subgraphs=True))
    state = [part for _, mode, part in shown if mode == "values"][-1]
    assert state["messages"][-1].response_metadata["auction"]["agents"][0]["status"] == "reported"
    ashown = [part async for part in graph().astream(GIVEN, THREAD, stream_mode=MODES, subgraphs=True)]
    events = list(graph().stream_events(GIVEN, THREAD, version="v3"))
    aevents = [event async for event in await graph().astream_events(GIVEN, THREAD, version="v3")]
    assert losers_in([shown, ashown, events, aevents], state) == []


@everywhere
@every_reward
@pytest.mark.parametrize("own", [False, True, "shared"])
async def test_a_reward_that_is_a_graph_saves_no_losing_reply(reward, place, own):
    outer, inner = InMemorySaver(), InMemorySaver()
    saver = {False: None, True: inner, "shared": outer}[own]
    graph = placed(place, [Agent("A", REWARDS[reward](checkpointer=saver))], checkpointer=outer)
    graph.invoke(GIVEN, THREAD)
    state = graph.get_state(THREAD).values
    assert [message.type for message in state["messages"]] == ["human", "ai"]
    assert state["messages"][-1].response_metadata["auction"]["agents"][0]["status"] == "reported"
    saved = [[saver.storage, saver.blobs, saver.writes] for saver in (outer, inner)]
    assert losers_in(saved, state) == []


@everywhere
def test_a_reward_that_is_a_graph_saves_in_the_threads_that_it_names(place):
    saver = InMemorySaver()
    graph = judge(checkpointer=saver)

    def reward(prompt, reply):
        return graph.invoke({"text": reply.text}, {"configurable": {"thread_id": reply.text}})["worth"]

    placed(place, [Agent("A", reward)], checkpointer=InMemorySaver()).invoke(GIVEN, THREAD)
    assert set(saver.storage) == {candidate.message.text for candidate in LAST.run("Speak").candidates}


@pytest.mark.parametrize("saver", [None, InMemorySaver()])
def test_a_model_that_is_a_graph_shows_and_remembers_no_other_draw(saver):
    draws = itertools.count(1)

    def answer(state):
        return {"messages": [AIMessage(f"<reply {next(draws)} to {len(state['messages'])}>")]}

    within = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile(checkpointer=saver)
    asked = RunnableLambda(lambda messages: within.invoke({"messages": messages})["messages"][-1])
    auction = AuctionRunnable(model=asked, agents=[Agent("A", lambda prompt, reply: 1.0)], n_candidates=M, seed=2)
    graph = node(auction, checkpointer=InMemorySaver())
    shown = list(graph.stream(GIVEN, THREAD, stream_mode=MODES, subgraphs=True))
    winner = graph.get_state(THREAD).values["messages"][-1].text
    others = {f"<reply {k} to 1>" for k in range(1, M + 1)} - {winner}
    assert len(others) == M - 1
    assert [text for text in others if text in repr(shown)] == []


@everywhere
def test_context_and_store_of_the_graph_around_reach_a_reward(place):
    found = []

    def reward(prompt, reply):
        found.append((get_runtime().context, get_store().get(("shop",), "open").value))
        return 1.0

    store = InMemoryStore()
    store.put(("shop",), "open", {"today": True})
    placed(place, [Agent("A", reward)], store=store).invoke(GIVEN, context={"user": "u"})
    assert found == [({"user": "u"}, {"today": True})] * M


@pytest.mark.parametrize("kind", [AuctionRunnable, ChatAuction])
def test_who_takes_part_may_be_asked_of_a_human(kind):
    def directory(prompt):
        return [Agent(interrupt("Who?"), lambda prompt, reply: 1.0)]

    graph = node(kind(model=model(), agents=directory, n_candidates=M), checkpointer=InMemorySaver())
    assert graph.invoke(GIVEN, THREAD)["__interrupt__"][0].value == "Who?"
    reply = graph.invoke(Command(resume="Ann"), THREAD)["messages"][-1]
    assert [payment["agent"] for payment in reply.response_metadata["auction"]["payments"]] == ["Ann"]
