"""`AuctionRunnable`: every call style, every input, every source of agents."""

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda

from llm_auction_chain import Agent, ConfigurationError
from tests.unit.auction.auctions import LIKES_B, LIKES_C, auction

TWO = [LIKES_B, LIKES_C]


async def test_every_call_style_gives_the_same_reply():
    runnable = auction(agents=TWO)
    text = runnable.invoke("x").text
    assert (await runnable.ainvoke("x")).text == text
    assert [reply.text for reply in runnable.batch(["x", "x"])] == [text] * 2
    assert [reply.text for reply in await runnable.abatch(["x"])] == [text]
    assert [chunk.text for chunk in runnable.stream("x")] == [text]
    assert [chunk.text async for chunk in runnable.astream("x")] == [text]
    assert runnable.run("x").reply.text == (await runnable.arun("x")).reply.text == text


@pytest.mark.parametrize(
    "given",
    ["hi", [HumanMessage("hi")], [("human", "hi")], ChatPromptTemplate.from_template("{x}").invoke({"x": "hi"})],
)
def test_the_input_may_be_whatever_a_chat_model_takes(given):
    seen = []
    auction(agents=[Agent("A", lambda prompt, reply: seen.append(prompt) or 1.0)]).invoke(given)
    assert seen[0][0].content == "hi"


def test_agents_may_be_a_callable_a_runnable_or_given_per_call():
    for source in (lambda given: TWO, RunnableLambda(lambda given: TWO)):
        assert len(auction(agents=source).invoke("x").response_metadata["auction"]["payments"]) == 2
    given = auction(agents=TWO).invoke("x", config={"configurable": {"auction_agents": TWO[:1]}})
    assert [payment["agent"] for payment in given.response_metadata["auction"]["payments"]] == ["B"]


async def test_async_sources_of_agents_are_awaited():
    async def source(given):
        return TWO

    for agents in (source, RunnableLambda(lambda given: TWO), lambda given: TWO):
        result = await auction(agents=agents).arun("x")
        assert len(result.agents) == 2


def test_agents_may_come_from_a_generator():
    runnable = auction(agents=(agent for agent in TWO))
    assert len(runnable.run("x").agents) == len(runnable.run("x").agents) == 2


def test_an_async_source_of_agents_needs_an_async_call():
    async def source(given):
        return TWO

    with pytest.raises(ConfigurationError, match="ainvoke"):
        auction(agents=source).invoke("x")


def test_a_call_may_bring_its_own_seed_and_nothing_else_of_the_auctions():
    assert auction(agents=TWO).run("x", seed=3).seed == 3
    with pytest.raises(ConfigurationError, match="n: the auction"):
        auction(agents=TWO).invoke("x", n=2)
