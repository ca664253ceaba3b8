"""Runs and usage: what tracers see of an auction, for every interface, call style and way of drawing.

Usage is compared to what the models say they spent, counted where they spent it. LangSmith's tracer is real, and posts
to a server on the loopback; what LangSmith sums up is the usage of its model runs.
"""

import inspect
import itertools
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import UsageMetadataCallbackHandler, get_usage_metadata_callback
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tracers import LangChainTracer
from langchain_openai import ChatOpenAI
from langsmith import Client, tracing_context
from pydantic import PrivateAttr

from llm_auction_chain import Agent, AuctionMiddleware, AuctionRunnable, ChatAuction, Sampling
from llm_auction_chain.testing import MarkovChatModel
from tests.integration.asks import Asks
from tests.integration.provider import MODEL, READ, WRITTEN, provider

M = 3
KINDS = ("input_tokens", "output_tokens", "total_tokens")


class Smith(ThreadingHTTPServer):
    """Keeps the runs that are posted to it, and what they are patched with."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), SmithHandler)
        self.runs = {}


class SmithHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.runs.setdefault(body.get("id") or self.path.split("/")[-1], {}).update(body)
        self.send_response(202)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_PATCH = do_POST  # noqa: N815 - http.server's own

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def smith():
    with Smith() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def tracer(smith):
    smith.runs.clear()
    client = Client(api_url=f"http://127.0.0.1:{smith.server_port}", api_key="key", auto_batch_tracing=False)
    yield LangChainTracer(client=client, project_name="auctions")
    client.session.close()


class Spends(BaseChatModel):
    """Says something new in every call, and counts what it spent."""

    said: str = "reply"
    streaming: bool = False
    # private, for LangSmith writes out all fields of an agent's model, and this one has no end
    _numbers: object = PrivateAttr(default_factory=lambda: itertools.count(1))
    _spent: object = PrivateAttr(default_factory=Counter)

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        number = next(self._numbers)
        usage = {"input_tokens": number, "output_tokens": 7, "total_tokens": number + 7}
        self._spent.update(usage)
        told = {"usage_metadata": usage, "response_metadata": {"model_name": self.said}}
        return ChatResult(generations=[ChatGeneration(message=AIMessage(f"{self.said} {number}", **told))])

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        message = self._generate(messages).generations[0].message
        whole = {"usage_metadata": message.usage_metadata, "response_metadata": message.response_metadata}
        for chunk in (AIMessageChunk(f"{message.text} "), AIMessageChunk("done", **whole)):
            yield ChatGenerationChunk(message=chunk)

    @property
    def _llm_type(self):
        return "spends"


class Native(MarkovChatModel):
    """Draws many replies in one call, and counts what it spent."""

    length: int = 12
    _spent: object = PrivateAttr(default_factory=Counter)

    def _generate(self, *args, **kwargs):
        result = super()._generate(*args, **kwargs)
        self._spent.update(result.generations[0].message.usage_metadata)
        return result


class Judge:
    """A reward that asks a model once about all replies."""

    def __init__(self):
        self.model = Spends(said="judge")

    def score(self, prompt, replies):
        said = self.model.invoke(prompt).text
        return [float(len(reply.text) + len(said)) for reply in replies]


class OpenAI:
    """ChatOpenAI on the loopback, and what its server was asked for."""

    def __init__(self, server):
        self.server, self.before = server, len(server.asked)

    @property
    def _spent(self):
        spent = Counter()
        for body in self.server.asked[self.before :]:
            written = WRITTEN * (body.get("n") or 1)
            spent.update(input_tokens=READ, output_tokens=written, total_tokens=READ + written)
        return spent


def counted(usages):
    total = Counter()
    for usage in usages:
        total.update({kind: usage[kind] for kind in KINDS})
    return total


async def every_style(runnable, given, config):
    """Yield the replies that each call style gives, each under its name."""
    yield "invoke", [runnable.invoke(given, config)]
    yield "ainvoke", [await runnable.ainvoke(given, config)]
    yield "batch", runnable.batch([given] * 2, config)
    yield "abatch", await runnable.abatch([given] * 2, config)
    yield "stream", [added(list(runnable.stream(given, config)))]
    yield "astream", [added([chunk async for chunk in runnable.astream(given, config)])]
    events = [event async for event in runnable.astream_events(given, config, version="v2")]
    yield "astream_events", [events[-1]["data"]["output"]]


async def version_3(chat, given, config):
    yield "stream_events v3", [chat.stream_events(given, config, version="v3").output]
    stream = await chat.astream_events(given, config, version="v3")
    yield "astream_events v3", [await stream]


def added(chunks):
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk if isinstance(whole, AIMessageChunk) else chunk
    return whole


def replies_of(output):
    """Return the auctioned reply in a message, in a state, or in what a node did to it."""
    while isinstance(output, dict):
        output = output.get("messages") or output["model"]
    return output[-1] if isinstance(output, list) else output


def placed(place, model, judge, **settings):
    terms = {"agents": [Agent("J", judge)], "n_candidates": M, "seed": 4, **settings}
    if place == "AuctionMiddleware":
        return create_agent(model, middleware=[AuctionMiddleware(**terms)]), {"messages": [("human", "Hi")]}
    return {"AuctionRunnable": AuctionRunnable, "ChatAuction": ChatAuction}[place](model=model, **terms), "Hi"


@pytest.fixture
async def models():
    """Return each way of drawing: the model, settings, who knows what was spent, its name, and its runs per auction."""
    with provider() as server, httpx.Client() as client:
        async with httpx.AsyncClient() as async_client:
            how = {"base_url": server.url, "http_client": client, "http_async_client": async_client}
            chat = ChatOpenAI(model="m", api_key="sk", max_retries=0, **how)
            native, repeats, streams = Native(), Spends(), Spends(streaming=True)
            yield {
                "native": (native, {}, native, "markov", 1),
                "repeats": (repeats, {}, repeats, "reply", M),
                "repeats that stream": (streams, {}, streams, "reply", M),
                "OpenAI, native": (chat, {}, OpenAI(server), MODEL, 1),
                "OpenAI, repeats": (chat, {"sampling": Sampling(native_n=False)}, OpenAI(server), MODEL, M),
            }


WAYS = ["native", "repeats", "repeats that stream", "OpenAI, native", "OpenAI, repeats"]


def check_runs(runs, place, auctions, calls):
    """Check that each auction is a run, above its model's calls and its judge's, and return all model runs' usage."""
    assert all(run["end_time"] and not run.get("error") for run in runs.values())
    llm = [run for run in runs.values() if run["run_type"] == "llm"]
    judges = [run for run in llm if run["parent_run_id"] and run["outputs"]["generations"][0][0]["text"][:5] == "judge"]
    own = [run for run in llm if run not in judges]
    if place == "AuctionRunnable":
        above = {name for name, run in runs.items() if run["run_type"] == "chain"}
        assert {run["parent_run_id"] for run in own} == above
        assert len(own) == auctions * calls
    else:
        above = {run["id"] for run in own}
        assert {run["name"] for run in own} == {"ChatAuction"}
        assert len(own) == auctions
    assert len(above) == auctions
    assert Counter(run["parent_run_id"] for run in judges) == dict.fromkeys(above, 1)
    used = [run["extra"]["metadata"].get("usage_metadata") for run in runs.values() if run["run_type"] != "llm"]
    assert not any(used)
    return counted(run["extra"]["metadata"]["usage_metadata"] for run in llm)


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")  # v3 says so of itself
@pytest.mark.parametrize("place", ["AuctionRunnable", "ChatAuction", "AuctionMiddleware"])
@pytest.mark.parametrize("way", WAYS)
async def test_what_was_spent_is_what_every_tracer_counts(smith, tracer, models, way, place):
    model, settings, truth, name, calls = models[way]
    judge = Judge()
    runnable, given = placed(place, model, judge, **settings)
    usage = UsageMetadataCallbackHandler()
    config = {"callbacks": [usage, tracer]}
    spent, judged = truth._spent.copy(), Counter()
    styles = [every_style(runnable, given, config)]
    if place == "ChatAuction":
        styles.append(version_3(runnable, given, config))
    for style in styles:
        async for called, outputs in style:
            drawn, asked = truth._spent - spent, judge.model._spent - judged
            spent, judged = truth._spent.copy(), judge.model._spent.copy()
            replies = [replies_of(output) for output in outputs]
            assert counted(reply.usage_metadata for reply in replies) == drawn, called
            assert counted([usage.usage_metadata.pop(name)]) == drawn, called
            assert counted([usage.usage_metadata.pop("judge")]) == asked, called
            assert not usage.usage_metadata, called
            assert check_runs(smith.runs, place, len(replies), calls) == drawn + asked, called
            smith.runs.clear()


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: RunnablePassthrough() | model.with_retry()])
@pytest.mark.parametrize("place", ["ChatAuction", "AuctionMiddleware"])
async def test_what_a_model_asks_of_another_is_counted_once_by_every_tracer(smith, tracer, place, wrap):
    model, judge = Asks(asked=Spends()), Judge()
    runnable, given = placed(place, wrap(model), judge)
    handed = UsageMetadataCallbackHandler()
    with tracing_context(enabled=True, client=tracer.client), get_usage_metadata_callback() as around:
        for invoke in (runnable.invoke, runnable.ainvoke):
            replied = invoke(given, {"callbacks": [handed]})
            reply = replies_of(await replied if inspect.isawaitable(replied) else replied)
            assert counted([reply.usage_metadata]) == model.asked._spent
            assert counted([handed.usage_metadata.pop("reply")]) == model.asked._spent
            assert counted([around.usage_metadata.pop("reply")]) == model.asked._spent
            assert check_runs(smith.runs, place, 1, M) == model.asked._spent + judge.model._spent
            for counts in (model.asked._spent, judge.model._spent, smith.runs):
                counts.clear()


async def test_a_failed_auction_is_one_failed_run(smith, tracer):
    class Fails(Spends):
        def _generate(self, *args, **kwargs):
            raise ConnectionError("broken")

    for place, failed in (("AuctionRunnable", ["chain", *["llm"] * M]), ("ChatAuction", ["llm"])):
        runnable, given = placed(place, Fails(), Judge())
        for call in (runnable.invoke, runnable.stream):
            with pytest.raises(Exception, match="broken"):
                list(call(given, {"callbacks": [tracer]}))
            assert sorted(run["run_type"] for run in smith.runs.values()) == failed
            assert all("broken" in run["error"] for run in smith.runs.values())
            smith.runs.clear()
