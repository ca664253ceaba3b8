"""An auction in a real LangGraph: nobody sees a losing reply, or what a reward says."""

import itertools

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph

from llm_auction_chain import Agent, AuctionRunnable
from llm_auction_chain.testing import MarkovChatModel


def judged(prompt, reply):
    return float(GenericFakeChatModel(messages=iter([AIMessage("31415")])).invoke(prompt).text) / 1e4


def graph(model):
    auction = AuctionRunnable(model=model, agents=[Agent("J", judged)], n_candidates=4, seed=2)

    def speak(state):
        return {"messages": [auction.invoke(state["messages"])]}

    async def aspeak(state):
        return {"messages": [await auction.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("speak", RunnableLambda(speak, aspeak))
    builder.add_edge(START, "speak")
    return builder.compile()


MODELS = [
    lambda: MarkovChatModel(length=6),
    lambda: GenericFakeChatModel(messages=(AIMessage(f"reply number {k}") for k in itertools.count())),
]


@pytest.mark.parametrize("model", MODELS)
async def test_a_message_stream_shows_the_winner_alone(model):
    given = {"messages": [("human", "Speak")]}
    shown = [chunk.text for chunk, _ in graph(model()).stream(given, stream_mode="messages")]
    assert len(shown) == 1
    ashown = [chunk.text async for chunk, _ in graph(model()).astream(given, stream_mode="messages")]
    assert len(ashown) == 1
    assert "31415" not in shown + ashown
