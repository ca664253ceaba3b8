"""OpenTelemetry: a span per auction, with its numbers and without texts; no span stays open."""

import asyncio
import subprocess
import sys

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from llm_auction_chain import Agent, AuctionRunnable, CandidatesError, ChatAuction, MissingDependencyError
from llm_auction_chain.interfaces.telemetry import OpenTelemetryHandler
from llm_auction_chain.testing import MarkovChatModel

STAGES = ["auction.started", "auction.candidates", "auction.scored", "auction.settled"]


class Named(BaseChatModel):
    """Says something new in every call; or fails."""

    model: str = "some-model"
    temperature: float = 0.5
    numbers: list = []  # noqa: RUF012 - pydantic copies it
    fails: bool = False

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        if self.fails:
            raise ConnectionError("secret")
        self.numbers.append(1)
        usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
        message = AIMessage(f"secret {len(self.numbers)}", usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])

    @property
    def _llm_type(self):
        return "named"


class Telemetry:
    def __init__(self):
        self.exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("test")
        self.handler = OpenTelemetryHandler(self.tracer)
        self.config = {"callbacks": [self.handler]}

    def take(self):
        """Return the spans of auctions so far. None is still open, and none holds a text."""
        spans = self.exporter.get_finished_spans()
        self.exporter.clear()
        assert "secret" not in "".join(span.to_json() for span in spans)
        assert not self.handler._auctions
        return [span for span in spans if span.name == "auction"]


@pytest.fixture
def telemetry():
    return Telemetry()


AGENTS = [Agent("A", lambda prompt, reply: float(len(reply.text))), Agent("secret", lambda prompt, reply: 1 / 0)]
TERMS = {"agents": AGENTS, "n_candidates": 4, "seed": 3}
KINDS = pytest.mark.parametrize("kind", [AuctionRunnable, ChatAuction])


@KINDS
@pytest.mark.parametrize("native", [True, False])
async def test_an_auction_is_a_span_with_its_numbers_and_its_stages(telemetry, kind, native):
    model = MarkovChatModel(length=9) if native else Named()
    auction = kind(model=model, **TERMS)
    for call in ("invoke", "ainvoke", "stream", "astream"):
        if call == "invoke":
            reply = auction.invoke("secret", telemetry.config)
        elif call == "ainvoke":
            reply = await auction.ainvoke("secret", telemetry.config)
        elif call == "stream":
            reply = next(reply for reply in list(auction.stream("secret", telemetry.config)) if reply.text)
        else:
            replies = [reply async for reply in auction.astream("secret", telemetry.config)]
            reply = next(reply for reply in replies if reply.text)
        (span,) = telemetry.take()
        outcome = reply.response_metadata["auction"]
        numbers = {name.removeprefix("auction."): value for name, value in span.attributes.items()}
        assert numbers == {
            "id": outcome["auction_id"], "agents": 2, "left_out": 0, "bypassed": False, "max_candidates": 4,
            "candidates": 4, "distinct_replies": 4, "excluded_replies": 0, "failed_calls": 0,
            "input_tokens": reply.usage_metadata["input_tokens"],
            "output_tokens": reply.usage_metadata["output_tokens"],
            "commitment": outcome["commitment"],
            "reported": 1, "abstained": 1, "statuses.reported": 1, "statuses.error": 1,
            "revenue": outcome["revenue"], "sponsored": outcome["sponsored"], "charged": False,
            "ess_probabilities": outcome["diagnostics"]["ess_probabilities"],
        }  # fmt: skip
        assert [event.name for event in span.events] == STAGES
        assert span.status.status_code == StatusCode.UNSET


@KINDS
async def test_the_span_that_is_current_is_the_parent(telemetry, kind):
    auction = kind(model=Named(), **TERMS)
    with telemetry.tracer.start_as_current_span("mine") as mine:
        auction.batch(["x", "x"], telemetry.config)
        await auction.abatch(["x", "x"], telemetry.config)
    auctions = telemetry.take()
    assert [span.parent.span_id for span in auctions] == [mine.get_span_context().span_id] * 4


async def test_a_chat_auctions_own_handler_makes_a_span_of_each_auction(telemetry):
    auction = ChatAuction(model=Named(), callbacks=[telemetry.handler], **TERMS)
    replies = [auction.invoke("x"), await auction.ainvoke("x"), next(auction.stream("x"))]
    replies += [chunk async for chunk in auction.astream("x")]
    auctions = telemetry.take()
    held = [reply.response_metadata["auction"]["auction_id"] for reply in replies]
    assert [span.attributes["auction.id"] for span in auctions] == held


@KINDS
async def test_auctions_under_way_together_do_not_mix(telemetry, kind):
    auction = kind(model=Named(), n_candidates=4, seed=3)
    sizes = [1, 2, 3] * 5
    configs = [
        {**telemetry.config, "configurable": {"auction_agents": [*AGENTS[:1], *more(size - 1)]}} for size in sizes
    ]
    await auction.abatch(["x"] * len(sizes), configs)
    auction.batch(["x"] * len(sizes), configs)
    auctions = telemetry.take()
    assert sorted(span.attributes["auction.reported"] for span in auctions) == sorted(sizes * 2)
    assert all(span.attributes["auction.agents"] == span.attributes["auction.reported"] for span in auctions)


def more(count):
    return [Agent(str(k), lambda prompt, reply: 1.0) for k in range(count)]


@KINDS
async def test_a_failing_model_is_an_error_of_a_class_without_a_text(telemetry, kind):
    auction = kind(model=Named(fails=True), **TERMS)
    with pytest.raises(CandidatesError):
        auction.invoke("x", telemetry.config)
    with pytest.raises(CandidatesError):
        [chunk async for chunk in auction.astream("x", telemetry.config)]
    auctions = telemetry.take()
    assert [span.attributes["error.type"] for span in auctions] == ["CandidatesError"] * 2
    assert {span.status.status_code for span in auctions} == {StatusCode.ERROR}
    assert all(span.status.description is None for span in auctions)


@KINDS
async def test_a_cancelled_auction_ends_its_span(telemetry, kind):
    asked = asyncio.Event()

    async def endless(prompt, reply):
        asked.set()
        await asyncio.Event().wait()

    auction = kind(model=Named(), agents=[Agent("E", endless)], n_candidates=2)
    task = asyncio.create_task(auction.ainvoke("x", telemetry.config))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    (span,) = telemetry.take()
    assert span.attributes["error.type"] == "CancelledError"


@KINDS
def test_an_auction_that_is_bypassed_is_a_span_too(telemetry, kind):
    auction = kind(model=Named(), **TERMS)
    auction.invoke("x", telemetry.config, tools=[{"name": "t"}])
    (span,) = telemetry.take()
    assert (span.attributes["auction.bypassed"], span.attributes["auction.candidates"]) == (True, 1)


def test_an_auction_that_an_agent_holds_is_a_span_of_its_own(telemetry):
    second_hand = ChatAuction(model=Named(), **TERMS)
    judged = Agent("broker", lambda prompt, reply: float(len(second_hand.invoke(prompt).text)))
    AuctionRunnable(model=Named(), agents=[judged], n_candidates=2, seed=1).invoke("x", telemetry.config)
    assert sorted(span.attributes["auction.agents"] for span in telemetry.take()) == [1, 2, 2]


def test_without_opentelemetry_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llm-auction-chain\[otel\]'"):
        OpenTelemetryHandler()


def test_the_module_alone_imports_no_opentelemetry():
    code = "import sys, llm_auction_chain.interfaces.telemetry; print('opentelemetry.trace' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "False"
