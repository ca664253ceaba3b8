"""What is streamed while an auction runs: the winner, once, and counts. Never a loser, never what a reward says.

Every reply has tokens that no other has; all that a stream ever showed is searched for those of the losers.
"""

import itertools
from typing import TypedDict
from uuid import UUID

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import PrivateAttr

from llm_auction_chain import Agent, AuctionMiddleware, AuctionRunnable, ChatAuction, Sampling
from llm_auction_chain.testing import MarkovChatModel
from tests.integration.asks import Asks

GIVEN = {"messages": [("human", "Speak")]}
STAGES = ["auction.started", "auction.candidates", "auction.scored", "auction.settled"]
MODES = ["messages", "updates", "custom", "values"]


class Tokens(BaseChatModel):
    """Streams two tokens that no other reply has, whether it is asked to stream or not."""

    streaming: bool = True
    word: str = "spoken"
    _numbers: object = PrivateAttr(default_factory=itertools.count)

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        number = next(self._numbers)
        for token in (f"{self.word}-{number}-", f"{number}-{self.word}"):
            chunk = ChatGenerationChunk(message=AIMessageChunk(token))
            if run_manager:
                run_manager.on_llm_new_token(token, chunk=chunk)
            yield chunk

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        text = "".join(chunk.text for chunk in self._stream(messages, stop, run_manager))
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])

    @property
    def _llm_type(self):
        return "tokens"


MODELS = {
    "native": lambda: MarkovChatModel(length=24, vocabulary="XYZ"),
    "repeats": lambda: GenericFakeChatModel(
        messages=map(AIMessage, map("{0}<said>{0}<told>".format, itertools.count()))
    ),
    "streams": Tokens,
    "asks another": lambda: Asks(asked=Tokens()),
}


class Drawn:
    """Agents whose rewards ask a model, and note what they are shown."""

    def __init__(self):
        self.texts, self.judge = set(), Tokens(word="verdict")
        self.agents = [Agent("J", self.judged), Agent("A", self.ajudged)]

    def judged(self, prompt, reply):
        self.texts.add(reply.text)
        said = [self.judge.invoke(prompt).text, "".join(chunk.text for chunk in self.judge.stream(prompt))]
        return len(said[0]) / len(said[1])

    async def ajudged(self, prompt, reply):
        said = [(await self.judge.ainvoke(prompt)).text, *[chunk.text async for chunk in self.judge.astream(prompt)]]
        return float(len(said))

    def check(self, shown, winner):
        """Look for all but the winner in everything that was shown."""
        assert len(self.texts) == 4
        assert winner in self.texts
        losers = self.texts - {winner}
        tokens = {token for text in losers for token in (text, text[: len(text) // 2], text[len(text) // 2 :])}
        assert not [token for token in {*tokens, "verdict"} if token in repr(shown)]
        assert winner in repr(shown)


def node(auction):
    """Return a graph with the auction in a node."""

    def speak(state):
        return {"messages": [auction.invoke(state["messages"])]}

    async def aspeak(state):
        return {"messages": [await auction.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("speak", RunnableLambda(speak, aspeak))
    builder.add_edge(START, "speak")
    return builder.compile()


def subgraph(auction):
    """Return a graph whose node is a graph with the auction in a node."""
    builder = StateGraph(MessagesState)
    builder.add_node("below", node(auction))
    builder.add_edge(START, "below")
    return builder.compile()


def terms(drawn):
    return {"agents": drawn.agents, "n_candidates": 4, "seed": 2}


PLACES = {
    "AuctionRunnable in a node": lambda model, drawn: node(AuctionRunnable(model=model, **terms(drawn))),
    "AuctionRunnable in a subgraph": lambda model, drawn: subgraph(AuctionRunnable(model=model, **terms(drawn))),
    "ChatAuction in a node": lambda model, drawn: node(ChatAuction(model=model, **terms(drawn))),
    "ChatAuction as create_agent's model": lambda model, drawn: create_agent(ChatAuction(model=model, **terms(drawn))),
    "AuctionMiddleware": lambda model, drawn: create_agent(model, middleware=[AuctionMiddleware(**terms(drawn))]),
}
everywhere = pytest.mark.parametrize("place", PLACES)
for_every_model = pytest.mark.parametrize("model", MODELS)
experimental = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")  # v3 says so of itself


def check_modes(drawn, parts):
    """Check what all four modes showed of one run, and return what the mode `custom` did."""
    modes = {mode: [part for name, part in parts if name == mode] for mode in MODES}
    winner = modes["values"][-1]["messages"][-1].text
    drawn.check(parts, winner)
    assert [message.text for message, _ in modes["messages"] if message.text] == [winner]
    (update,) = modes["updates"]
    said = [message.text for made in update.values() for message in made["messages"] if message.type == "ai"]
    assert said == [winner]
    return modes["custom"]


@everywhere
@for_every_model
async def test_a_losing_reply_reaches_no_langgraph_stream(model, place):
    custom = []
    drawn = Drawn()
    custom.append(check_modes(drawn, list(PLACES[place](MODELS[model](), drawn).stream(GIVEN, stream_mode=MODES))))
    drawn = Drawn()
    streamed = PLACES[place](MODELS[model](), drawn).astream(GIVEN, stream_mode=MODES)
    custom.append(check_modes(drawn, [part async for part in streamed]))
    for said in custom:
        assert [event["event"] for event in said] == (STAGES if place == "AuctionMiddleware" else [])


@everywhere
@for_every_model
async def test_a_message_stream_alone_shows_the_winner_once(model, place):
    drawn, adrawn = Drawn(), Drawn()
    shown = list(PLACES[place](MODELS[model](), drawn).stream(GIVEN, stream_mode="messages", subgraphs=True))
    streamed = PLACES[place](MODELS[model](), adrawn).astream(GIVEN, stream_mode="messages", subgraphs=True)
    ashown = [part async for part in streamed]
    for noted, parts in ((drawn, shown), (adrawn, ashown)):
        (winner,) = [message.text for _, (message, _) in parts if message.text]
        noted.check(parts, winner)


class Noted(TypedDict):
    text: str


@for_every_model
@pytest.mark.parametrize("kind", [AuctionRunnable, ChatAuction])
async def test_a_message_stream_shows_a_reply_that_is_put_into_no_messages_of_a_chat_auction_alone(model, kind):
    for stream in (False, True):
        drawn = Drawn()
        auction = kind(model=MODELS[model](), **terms(drawn))

        def note(state, auction=auction, stream=stream):
            given = state["text"]
            return {"text": "".join(c.text for c in auction.stream(given)) if stream else auction.invoke(given).text}

        graph = StateGraph(Noted).add_node("note", note).add_edge(START, "note").compile()
        parts = list(graph.stream({"text": "Speak"}, stream_mode=["messages", "values"]))
        winner = parts[-1][1]["text"]
        drawn.check(parts, winner)
        shown = [message.text for message, _ in (part for mode, part in parts if mode == "messages")]
        assert shown == ([] if kind is AuctionRunnable else [winner])


@everywhere
@for_every_model
async def test_a_losing_reply_reaches_no_event_of_a_graph(model, place):
    drawn = Drawn()
    events = [event async for event in PLACES[place](MODELS[model](), drawn).astream_events(GIVEN, version="v2")]
    winner = events[-1]["data"]["output"]["messages"][-1].text
    drawn.check(events, winner)
    streamed = [event["data"]["chunk"].text for event in events if event["event"] == "on_chat_model_stream"]
    assert streamed == ([] if "Runnable" in place else [winner])
    assert [event["event"] for event in events].count("on_chat_model_start") == len(streamed)
    assert [event["name"] for event in events if event["event"] == "on_custom_event"] == STAGES


@experimental
@everywhere
@for_every_model
async def test_a_losing_reply_reaches_no_event_of_a_graph_in_version_3(model, place):
    drawn, adrawn = Drawn(), Drawn()
    shown = list(PLACES[place](MODELS[model](), drawn).stream_events(GIVEN, version="v3"))
    ashown = [e async for e in await PLACES[place](MODELS[model](), adrawn).astream_events(GIVEN, version="v3")]
    for noted, parts in ((drawn, shown), (adrawn, ashown)):
        values = [part["params"]["data"] for part in parts if part["method"] == "values"]
        winner = values[-1]["messages"][-1].text
        noted.check(parts, winner)
        said = [part["params"]["data"][0] for part in parts if part["method"] == "messages"]
        whole = [message.text for message in said if isinstance(message, AIMessage)]
        assert [*whole, *texts_of(event for event in said if isinstance(event, dict))] == [winner]


class Scores:
    """A scorer that asks a model."""

    def __init__(self):
        self.judge = Tokens(word="verdict")

    def score(self, prompt, replies):
        return [-1.0 for reply in replies if self.judge.invoke([reply]).text]

    async def ascore(self, prompt, replies):
        return [-1.0 for reply in replies if (await self.judge.ainvoke([reply])).text]


@pytest.mark.parametrize("kind", [AuctionRunnable, ChatAuction])
async def test_what_a_scorer_or_a_filter_asks_of_a_model_reaches_no_stream(kind):
    drawn, judge = Drawn(), Tokens(word="verdict")
    agents = [*drawn.agents, Agent("C", lambda prompt, reply: 1.0, context="We sell.")]
    auction = kind(
        model=Tokens(), agents=agents, n_candidates=4, seed=2, sampling=Sampling(scorer=Scores()),
        policy=lambda prompt, reply: bool(judge.invoke(prompt).text),
    )  # fmt: skip
    shown = list(node(auction).stream(GIVEN, stream_mode=MODES))
    drawn.check(shown, shown[-1][1]["messages"][-1].text)
    drawn.texts.clear()
    shown = [part async for part in node(auction).astream(GIVEN, stream_mode=MODES)]
    drawn.check(shown, shown[-1][1]["messages"][-1].text)


def texts_of(events):
    """Return the texts of content-block events."""
    return [event["delta"]["text"] for event in events if event["event"] == "content-block-delta"]


@experimental
@for_every_model
async def test_a_losing_reply_reaches_no_event_of_a_chat_auction_alone(model):
    drawn = [Drawn() for _ in range(5)]
    chats = [ChatAuction(model=MODELS[model](), **terms(noted)) for noted in drawn]
    events = [event async for event in chats[0].astream_events("Speak", version="v2")]
    winners = [event["data"]["chunk"].text for event in events if event["event"] == "on_chat_model_stream"]
    drawn[0].check(events, "".join(winners))
    assert [event["name"] for event in events if event["event"] == "on_custom_event"] == STAGES
    stream, astream = chats[1].stream_events("Speak", version="v3"), chats[2].astream_events("Speak", version="v3")
    for noted, shown in ((drawn[1], list(stream)), (drawn[2], [event async for event in await astream])):
        (text,) = texts_of(shown)
        noted.check(shown, text)
    (chunk,) = [chunk for chunk in chats[3].stream("Speak") if chunk.text]
    drawn[3].check(chunk, chunk.text)
    (chunk,) = [chunk async for chunk in chats[4].astream("Speak") if chunk.text]
    drawn[4].check(chunk, chunk.text)


@for_every_model
@pytest.mark.parametrize("kind", [AuctionRunnable, ChatAuction])
async def test_a_chain_streams_the_winner_from_its_head_to_its_end(model, kind):
    drawn = Drawn()
    chain = kind(model=MODELS[model](), **terms(drawn)) | StrOutputParser()
    events = [event async for event in chain.astream_events("Speak", version="v2")]
    of_auction = "on_chain_stream" if kind is AuctionRunnable else "on_chat_model_stream"
    winners = [event["data"]["chunk"].text for event in events
               if event["event"] == of_auction and event["name"] == kind.__name__]  # fmt: skip
    parsed = [event["data"]["chunk"] for event in events if event["event"] == "on_parser_stream"]
    assert len([text for text in winners if text]) == 1
    assert "".join(parsed) == "".join(winners)
    drawn.check(events, "".join(winners))


def numbers_of(data):
    """Return all that the data of an event holds but the auction's id."""
    for name, value in data.items():
        if name == "auction_id":
            assert str(UUID(value)) == value
        elif isinstance(value, dict):
            assert set(value) <= {"reported", "abstained", "error", "timeout", "invalid"}
            yield from value.values()
        else:
            yield value


@for_every_model
async def test_events_tell_of_each_stage_once_in_order_by_numbers(model):
    drawn, told = Drawn(), []
    auction = AuctionRunnable(model=MODELS[model](), on_event=told.append, **terms(drawn))
    events = [event async for event in auction.astream_events("Speak", version="v2")]
    custom = [(event["name"], event["data"]) for event in events if event["event"] == "on_custom_event"]
    assert [(event.name, dict(event.data)) for event in told] == custom
    assert [name for name, _ in custom] == STAGES
    assert len({data["auction_id"] for _, data in custom}) == 1
    assert [name for name, data in custom if "commitment" in data] == ["auction.candidates"]
    for _, data in custom:
        data.pop("commitment", None)
        assert all(value is None or isinstance(value, int | float) for value in numbers_of(data))
    agents, candidates, scored, settled = (data for _, data in custom)
    assert (agents["agents"], agents["max_candidates"], agents["bypassed"]) == (2, 4, False)
    assert (candidates["candidates"], candidates["distinct_replies"], candidates["failed_calls"]) == (4, 4, 0)
    assert (scored["reported"], scored["abstained"], scored["statuses"]) == (2, 0, {"reported": 2})
    assert 1 <= settled["ess_probabilities"] <= 4


async def test_a_run_under_the_auction_carries_the_tag_that_langgraph_hides():
    """LangGraph's own listeners are left out already; the tag is for whoever else goes by it."""

    class Heard(BaseCallbackHandler):
        def __init__(self):
            self.tags = []

        def on_chat_model_start(self, *args, tags=None, **kwargs):
            self.tags.append(tags)

    for kind, below in ((AuctionRunnable, 4), (ChatAuction, 0)):
        for style in ("invoke", "ainvoke"):
            heard, drawn = Heard(), Drawn()
            auction, config = kind(model=MODELS["repeats"](), **terms(drawn)), {"callbacks": [heard]}
            _ = auction.invoke("x", config) if style == "invoke" else await auction.ainvoke("x", config)
            hidden = [tags for tags in heard.tags if "nostream" in tags]
            assert len(hidden) == below + 4 * 4  # both judges are asked twice about every reply
            assert len(heard.tags) - len(hidden) == (kind is ChatAuction)
