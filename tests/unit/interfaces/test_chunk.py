"""A stream's one chunk says what `invoke` says: its calls, those that could not be read, and its metadata."""

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputToolsParser, PydanticToolsParser
from pydantic import BaseModel

from llm_auction_chain import Agent, AuctionMiddleware, AuctionRunnable, ChatAuction
from tests.unit.interfaces.caller import Caller

INTERFACES = pytest.mark.parametrize("interface", [AuctionRunnable, ChatAuction])
CUT = {"name": "book", "args": '{"school": "TuneTo', "id": "cut", "error": "cut off", "type": "invalid_tool_call"}
WHOLE = {"name": "book", "args": {"school": "StringSchool", "hours": 1.5}, "id": "whole", "type": "tool_call"}
NONE = {"name": "book", "args": {}, "id": "none", "type": "tool_call"}
SAID = {
    "a cut call": AIMessage("", invalid_tool_calls=[CUT]),
    "a cut call beside whole ones": AIMessage("So", tool_calls=[WHOLE, NONE], invalid_tool_calls=[CUT]),
    "whole calls": AIMessage("", tool_calls=[WHOLE, NONE]),
    "a text": AIMessage("Hello", additional_kwargs={"refusal": None}, id="said-1", name="model"),
}
STYLES = ["invoke", "stream", "astream", "astream_events", "stream_events v3", "astream_events v3"]


class Answer(BaseModel):
    """An answer."""

    x: int


def says(message):
    return Caller(say=lambda messages, number: message)


def told(message):
    """Return all that a message says but when its auction was held."""
    fresh = ("auction_id", "commitment")
    held = {name: value for name, value in message.response_metadata["auction"].items() if name not in fresh}
    return (
        message.content, message.tool_calls, message.invalid_tool_calls, message.additional_kwargs,
        message.usage_metadata, message.name, {**message.response_metadata, "auction": held},
    )  # fmt: skip


@INTERFACES
@pytest.mark.parametrize("said", SAID)
async def test_the_chunk_of_a_stream_says_what_invoke_says(interface, said):
    agents = [Agent("A", lambda prompt, reply: 1.0)]
    auction = interface(model=says(SAID[said]), agents=agents, n_candidates=2, seed=7)
    (chunk,) = auction.stream("Hi")
    (achunk,) = [chunk async for chunk in auction.astream("Hi")]
    assert told(auction.invoke("Hi")) == told(chunk) == told(achunk)


async def executed(graph, style, ran):
    """Return which calls an agent executed, in any order: tools run side by side."""
    ran.clear()
    given = {"messages": [("human", "Book me a lesson")]}
    if style == "invoke":
        graph.invoke(given)
    elif style == "stream":
        list(graph.stream(given, stream_mode="messages"))
    elif style == "astream":
        _ = [part async for part in graph.astream(given, stream_mode="messages")]
    elif style == "astream_events":
        _ = [event async for event in graph.astream_events(given, version="v2")]
    elif style == "stream_events v3":
        list(graph.stream_events(given, version="v3"))
    else:
        _ = [event async for event in await graph.astream_events(given, version="v3")]
    return sorted(ran)


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")  # v3 says so of itself
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("said", SAID)
async def test_an_agent_executes_the_calls_that_it_executes_without_an_auction(said, style):
    ran = []

    def book(school: str = "any", hours: float = 1.0) -> str:
        """Book a lesson."""
        ran.append((school, hours))
        return "Booked."

    def model():
        return Caller(say=lambda messages, number: SAID[said] if messages[-1].type == "human" else AIMessage("Done."))

    plain = create_agent(model(), tools=[book])
    wanted = await executed(plain, style, ran)
    assert wanted == [("StringSchool", 1.5), ("any", 1.0)] * ("whole" in said)
    terms = {"agents": [Agent("A", lambda prompt, reply: 1.0)], "n_candidates": 2, "on_tool_calls": "auction"}
    for auctioned in (
        create_agent(model(), tools=[book], middleware=[AuctionMiddleware(**terms)]),
        create_agent(ChatAuction(model=model(), **terms), tools=[book]),
    ):
        assert await executed(auctioned, style, ran) == wanted


@INTERFACES
@pytest.mark.parametrize("include_raw", [False, True])
async def test_what_a_schemas_stream_parses_is_what_its_invoke_parses(interface, include_raw):
    call = {"name": "Answer", "args": {"x": 1}, "id": "1"}
    auction = interface(model=says(AIMessage("", tool_calls=[call])), n_candidates=2)
    chain = auction.with_structured_output(Answer, include_raw=include_raw)
    parts = [list(chain.stream("Hi")), [part async for part in chain.astream("Hi")]]
    said = [[part["parsed"] for part in shown if "parsed" in part] for shown in parts] if include_raw else parts
    assert said == [[Answer(x=1)], [Answer(x=1)]]
    for parser, wanted in (
        (PydanticToolsParser(tools=[Answer]), [[Answer(x=1)]]),
        (JsonOutputToolsParser(), [[{"args": {"x": 1}, "type": "Answer"}]]),
    ):
        assert list((auction | parser).stream("Hi")) == wanted
