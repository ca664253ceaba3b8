"""What both interfaces share: whole results, keywords of a call, copies that serve it, chunks of a stream."""

import asyncio
import inspect
import json
import pickle
from datetime import date
from decimal import Decimal

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import (
    ConfigurableField,
    RouterRunnable,
    Runnable,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.tools import BaseTool
from pydantic import BaseModel

from llm_auction_chain import Agent, AuctionMiddleware, AuctionRunnable, ChatAuction, ConfigurationError
from llm_auction_chain.testing import MarkovChatModel
from tests.unit.interfaces.caller import Caller, Plain, calling

AGENT = Agent("B", lambda prompt, reply: 2.0 * reply.text.count("b"))
BOTH = pytest.mark.parametrize("interface", [AuctionRunnable, ChatAuction])
NOTE = {"type": "function", "function": {"name": "note", "description": "Note it.", "parameters": {}}}
SEED = 7_310_934_551


class Holds(BaseChatModel):
    """A chat model of one's own around another."""

    held: Runnable

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return ChatResult(generations=[ChatGeneration(message=self.held.invoke(messages))])

    @property
    def _llm_type(self):
        return "holds"


class Starts(BaseCallbackHandler):
    """Keeps all that a run is begun with."""

    def __init__(self):
        self.models, self.chains = [], []

    def on_chat_model_start(self, serialized, messages, **told):
        self.models.append((serialized, told))

    def on_chain_start(self, serialized, inputs, **told):
        self.chains.append((serialized, told))


@BOTH
async def test_run_returns_the_result_whose_reply_invoke_returns(interface):
    auction = interface(model=MarkovChatModel(length=6), agents=[AGENT], n_candidates=4, seed=7)
    counted = []
    for result in (auction.run("x", progress=counted.append), await auction.arun("x", progress=counted.append)):
        assert result.reply.text == auction.invoke("x").text
        assert [report.status for report in result.reports] == ["reported"]
        assert result.explain().agents[0].agent == "B"
    assert [step.done for step in counted if step.stage == "rewards"] == [0, 1, 0, 1]


@BOTH
def test_run_is_one_run_of_the_same_kind_as_invoke(interface):
    auction = interface(model=MarkovChatModel(), agents=[AGENT], n_candidates=4)
    invoked, run = Starts(), Starts()
    auction.invoke("x", {"callbacks": [invoked]})
    auction.run("x", {"callbacks": [run]})
    assert (len(run.models), len(run.chains)) == (len(invoked.models), len(invoked.chains)) == (1, len(run.chains))
    assert "results" not in repr(run.models)


@BOTH
async def test_run_is_given_what_is_bound_to_an_auction_as_invoke_is(interface):
    caller, hears = Caller(), Starts()
    own = interface(model=caller, agents=[AGENT], n_candidates=4, seed=7)
    told = {"callbacks": [hears], "configurable": {"auction_agents": [Agent("C", lambda prompt, reply: 1.0)]}}
    for bound in (
        own.bind(seed=8, stop=["END"], tools=[NOTE]).with_config(told),
        own.with_config(told).bind(seed=8, stop=["END"], tools=[NOTE]),
        own.bind(seed=1).with_config(told).bind(seed=8, stop=["END"], tools=[NOTE]),
        own.bind_tools([NOTE]).with_config(told).bind(seed=8, stop=["END"]),
    ):
        for result in (bound.run("x"), await bound.arun("x")):
            assert (result.bypassed, result.agents, result.seed) == (True, (), 8)
        for result in (bound.run("x", seed=9, tools=[]), await bound.arun("x", seed=9, tools=[])):
            assert (result.bypassed, [agent.name for agent in result.agents], result.seed) == (False, ["C"], 9)
        assert [bool(call["tools"]) for call in caller.asked] == [True] * 2 + [False] * 8
        assert {tuple(call["stop"]) for call in caller.asked} == {("END",)}
        assert len(hears.models if interface is ChatAuction else hears.chains) == 4
        for heard in (caller.asked, hears.models, hears.chains):
            heard.clear()


@BOTH
async def test_neither_a_tracer_nor_an_agents_runnable_is_told_the_seed_before_the_draw(interface):
    """Whoever knows the seed knows the draw, and can gain by a report that is not true."""
    asked, hears = [], Starts()

    def report(pair, config):
        asked.append({**config, "callbacks": config["callbacks"].inheritable_metadata})
        return 1.0

    auction = interface(model=MarkovChatModel(), agents=[Agent("R", RunnableLambda(report))], n_candidates=4, seed=SEED)
    auction.invoke("x", {"callbacks": [hears]})
    await auction.ainvoke("x", {"callbacks": [hears]}, seed=SEED)
    assert len(asked) == 2 * len(set(map(repr, auction.run("x").candidates)))
    assert len(hears.models) == 2
    assert str(SEED) not in repr(asked) + repr(hears.models)


@BOTH
def test_an_auction_over_an_auction_is_refused_however_it_is_wrapped(interface):
    plain, choice = MarkovChatModel(), ConfigurableField(id="which")
    for inner in (AuctionRunnable, ChatAuction):
        held = inner(model=plain, agents=[AGENT])
        for wrapped in (
            held,
            held.bind(stop=["x"]),
            held.with_retry(),
            RunnableLambda(lambda given: given) | held,
            (RunnablePassthrough() | held).with_retry(),
            plain.with_fallbacks([held]),
            RunnableBranch((lambda given: True, held), plain),
            RunnableBranch((lambda given: True, plain), held),
            RunnablePassthrough() | RouterRunnable({"one": plain, "other": held}),
            RunnableParallel(one=held) | (lambda replies: replies["one"]),
            plain.configurable_alternatives(choice, default_key="plain", other=held),
        ):
            with pytest.raises(ConfigurationError, match="auction already"):
                interface(model=wrapped)


@BOTH
async def test_an_auction_that_only_a_call_shows_ends_the_auction_around_it(interface):
    def refers():
        return held

    held, choice = AuctionRunnable(model=MarkovChatModel(), agents=[AGENT], n_candidates=2), ConfigurableField(id="m")
    model = MarkovChatModel().configurable_alternatives(choice, default_key="plain", other=refers)
    assert interface(model=model, agents=[AGENT], n_candidates=2).invoke("x").response_metadata["auction"]
    for unseen, config in ((model, {"configurable": {"m": "other"}}), (Holds(held=held), {})):
        auction = interface(model=unseen, agents=[AGENT], n_candidates=2)
        with pytest.raises(ConfigurationError, match="an auction already"):
            auction.invoke("x", config)
        with pytest.raises(ConfigurationError, match="an auction already"):
            await auction.ainvoke("x", config)


def test_a_tool_may_be_an_auction():
    within = ChatAuction(model=MarkovChatModel(), agents=[AGENT])

    class Writes(BaseTool):
        name: str = "writes"
        description: str = "Write a text."
        writer: BaseChatModel = within

        def _run(self, given):
            return self.writer.invoke(given).text

    assert AuctionRunnable(model=MarkovChatModel().bind(tools=[Writes()]))


async def _stream(runnable, kwargs):
    return list(runnable.stream("x", **kwargs))


async def _astream(runnable, kwargs):
    return [chunk async for chunk in runnable.astream("x", **kwargs)]


async def _sync(runnable, name, given, kwargs):
    return getattr(runnable, name)(given, **kwargs)


CALLS = {
    "invoke": lambda runnable, kwargs: _sync(runnable, "invoke", "x", kwargs),
    "ainvoke": lambda runnable, kwargs: runnable.ainvoke("x", **kwargs),
    "batch": lambda runnable, kwargs: _sync(runnable, "batch", ["x"], kwargs),
    "abatch": lambda runnable, kwargs: runnable.abatch(["x"], **kwargs),
    "stream": _stream,
    "astream": _astream,
    "run": lambda runnable, kwargs: _sync(runnable, "run", "x", kwargs),
    "arun": lambda runnable, kwargs: runnable.arun("x", **kwargs),
    "bind": lambda runnable, kwargs: _sync(runnable.bind(**kwargs), "invoke", "x", {}),
    "bind, ainvoke": lambda runnable, kwargs: runnable.bind(**kwargs).ainvoke("x"),
    "bind, run": lambda runnable, kwargs: _sync(runnable.bind(**kwargs), "run", "x", {}),
}
EVERY_CALL = pytest.mark.parametrize("call", CALLS)
MADE = "Set it where the auction is made: AuctionRunnable({})."
BELONGS = {
    "tau": MADE.format("tau=..."),
    "n_candidates": MADE.format("n_candidates=..."),
    "payment_rule": MADE.format("payment_rule=..."),
    "proposal": MADE.format("proposal=..."),
    "report_cap": MADE.format("report_cap=..."),
    "on_event": MADE.format("on_event=..."),
    "billing": MADE.format("billing=..."),
    "sampling": MADE.format("sampling=..."),
    "min_ess": MADE.format("sampling=Sampling(min_ess=...)"),
    "scorer": MADE.format("sampling=Sampling(scorer=...)"),
    "candidate_filter": MADE.format("policy=Policy(candidate_filter=...)"),
    "ledger": MADE.format("billing=Billing(ledger=...)"),
    "currency": MADE.format("billing=Billing(currency=...)"),
    "agents": "Give it as config={'configurable': {'auction_agents': [...]}}, or where the auction is made.",
    "auction_id": "Give config={'configurable': {'idempotency_key': ...}}; the same key and prompt have the same id.",
    "prompt": "The prompt is the input, the first argument.",
}


@BOTH
@EVERY_CALL
async def test_a_setting_is_no_keyword_of_a_call_and_the_refusal_says_where_it_belongs(interface, call):
    caller = Caller()
    auction = interface(model=caller, agents=[AGENT], n_candidates=2)
    for name, hint in BELONGS.items():
        with pytest.raises(ConfigurationError) as caught:
            await CALLS[call](auction, {name: None})
        assert str(caught.value) == f"{name} is not a keyword of a call. {hint}"
    assert caller.asked == []


@BOTH
@pytest.mark.parametrize("call", [call for call in CALLS if "run" not in call])
async def test_progress_is_a_keyword_of_run_and_arun_only(interface, call):
    with pytest.raises(ConfigurationError, match=r"progress is not a keyword of a call\. Give it to run or arun"):
        await CALLS[call](interface(model=Caller(), agents=[AGENT]), {"progress": print})


@BOTH
@EVERY_CALL
async def test_keywords_for_the_model_reach_it(interface, call):
    caller, keywords = Caller(), {"model": "other", "temperature": 0.5, "text": {"format": "plain"}, "place": "here"}
    await CALLS[call](interface(model=caller, agents=[AGENT], n_candidates=2), keywords)
    assert len(caller.asked) == 2
    assert all(keywords.items() <= asked.items() for asked in caller.asked)


@BOTH
@EVERY_CALL
async def test_the_seed_and_on_tool_calls_of_a_call_go_before_the_settings(interface, call):
    caller, seeds, bypassed = Caller(say=lambda messages, number: calling(number)), [], []
    auction = interface(
        model=caller,
        agents=[AGENT],
        n_candidates=2,
        on_event=lambda event: bypassed.append(event.data["bypassed"]) if event.name == "auction.started" else None,
    )
    for on_tool_calls in ("auction", "bypass"):
        outcome = await CALLS[call](auction, {"seed": 9, "on_tool_calls": on_tool_calls, "tools": [NOTE]})
        outcome = outcome[-1] if isinstance(outcome, list) else outcome
        reply = getattr(outcome, "reply", outcome)
        seeds.append(reply.response_metadata["auction"]["seed"])
    assert (seeds, bypassed) == ([9, 9], [False, True])
    assert all({"seed", "on_tool_calls"}.isdisjoint(asked) for asked in caller.asked)
    assert (auction.seed, auction.on_tool_calls) == (None, "bypass")


@BOTH
@EVERY_CALL
async def test_a_call_leaves_the_auction_as_its_user_made_it(interface, call):
    auction = interface(model=Caller(), agents=[AGENT], n_candidates=2)
    before = auction.model_copy()
    await CALLS[call](auction, {"seed": 9})
    assert auction == before
    assert auction._scope is None


@BOTH
async def test_concurrent_runs_count_their_own_progress_and_return_their_own_results(interface):
    auction = interface(model=Caller(), agents=[AGENT], n_candidates=2)
    counted = {seed: [] for seed in range(4)}
    results = await asyncio.gather(*(auction.arun("x", seed=seed, progress=counted[seed].append) for seed in counted))
    assert [result.seed for result in results] == list(counted)
    assert len({result.auction_id for result in results}) == 4
    for steps in counted.values():
        assert [(step.done, step.total) for step in steps if step.stage == "rewards"] == [(0, 1), (1, 1)]


async def _agents(given):
    return [AGENT]


async def _hears(event):
    """Hear nothing."""


@BOTH
@pytest.mark.parametrize(("name", "answer"), [("agents", _agents), ("on_event", _hears)])
@pytest.mark.parametrize("call", ["invoke", "batch", "stream", "run"])
async def test_what_is_async_needs_an_async_call_and_leaves_no_coroutine_behind(interface, name, answer, call):
    coroutines = []

    def begin(given):
        coroutines.append(answer(given))
        return coroutines[-1]

    auction = interface(**{"model": Caller(), "agents": [AGENT], "n_candidates": 2, name: begin})
    with pytest.raises(ConfigurationError) as caught:
        await CALLS[call](auction, {})
    assert str(caught.value) == f"{name} is async; use ainvoke, abatch, astream or arun."
    assert (await auction.arun("x")).agents[0].name == "B"
    assert {inspect.getcoroutinestate(coroutine) for coroutine in coroutines} == {"CORO_CLOSED"}


def likes_b(prompt, reply):
    return 2.0 * reply.text.count("b")


def allows(prompt, reply):
    return "a" in reply.text


GROUPED = {
    "sampling": {"min_candidates": 2, "native_n": False},
    "policy": {"fallback": "No reply.", "exclusive_categories": ["cars"]},
    "billing": {"currency": "EUR", "on_error": "raise"},
    "disclosure": {"text": "Sponsored by {sponsors}.", "place": "end"},
}


@BOTH
@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")  # LangChain's own note
def test_an_auction_that_is_written_down_comes_back_with_its_groups(interface):
    auction = interface(model=Plain(said="y"), n_candidates=3, **GROUPED)
    back = loads(dumps(auction), valid_namespaces=["llm_auction_chain", "tests"], allowed_objects=[interface, Plain])
    assert back == auction
    assert [getattr(back, group) for group in GROUPED] == [getattr(auction, group) for group in GROUPED]


@BOTH
def test_an_auction_can_be_pickled(interface):
    agents = [Agent("B", likes_b)]
    settings = {**GROUPED, "policy": {"candidate_filter": allows, "fallback": "None."}}
    auction = interface(model=MarkovChatModel(length=6), agents=agents, n_candidates=4, seed=7, **settings)
    back = pickle.loads(pickle.dumps(auction))  # noqa: S301 - its own
    assert [getattr(back, group) for group in GROUPED] == [getattr(auction, group) for group in GROUPED]
    assert back.run("x").reply.text == auction.run("x").reply.text


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


@BOTH
@pytest.mark.parametrize("said", SAID)
async def test_the_chunk_of_a_stream_says_what_invoke_says(interface, said):
    agents = [Agent("A", lambda prompt, reply: 1.0)]
    auction = interface(model=says(SAID[said]), agents=agents, n_candidates=2, seed=7)
    (chunk,) = auction.stream("Hi")
    (achunk,) = [chunk async for chunk in auction.astream("Hi")]
    assert told(auction.invoke("Hi")) == told(chunk) == told(achunk)


@BOTH
@pytest.mark.parametrize("args", [
    {"day": date(2026, 5, 1), "price": Decimal("1.5"), "data": b"\xff", "tags": {1}},
    {"by": {date(2026, 5, 1): 1, (1, 2): 3}, "what": Answer(x=1), "kind": int}, {"half": {"\ud800": "\udfff"}},
])  # fmt: skip
async def test_arguments_that_json_cannot_spell_pass_an_auction_and_its_streams(interface, args):
    call = {"name": "book", "args": args, "id": "1", "type": "tool_call"}
    auction = interface(model=says(AIMessage("", tool_calls=[call])), n_candidates=2, on_tool_calls="auction")
    shown = [auction.invoke("Hi"), await auction.ainvoke("Hi"), *auction.stream("Hi"), auction.run("Hi").reply]
    shown += [chunk async for chunk in auction.astream("Hi")]
    async for event in auction.astream_events("Hi", version="v2"):
        shown += [event["data"]["output"]] if event["event"] in ("on_chain_end", "on_chat_model_end") else []
    assert len(shown) == 6
    assert all(message.tool_calls == [call] for message in shown)


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


@BOTH
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


@BOTH
def test_a_setting_is_checked_when_it_is_assigned(interface):
    auction = interface(model=MarkovChatModel(), agents=[AGENT])
    auction.n_candidates = 5
    assert auction.run("x").draws == 5
    with pytest.raises(ConfigurationError, match=r"n_candidates must be a whole number of at least 1, got 'x'\."):
        auction.n_candidates = "x"
    with pytest.raises(ConfigurationError, match="agents must be a list of Agent"):
        auction.agents = [AGENT, "B"]
    with pytest.raises(ConfigurationError, match=rf"{interface.__name__} has no setting 'taux'\. Did you mean 'tau'\?"):
        auction.taux = 1.0
    assert auction.run("x").draws == 5


@BOTH
@pytest.mark.parametrize("sent", ["[]", '"sales,support"', '["B"]', "{}", '{"B": 1}', "0", "false", '""', "[[]]"])
async def test_what_a_client_sends_switches_no_auction_off(interface, sent):
    auction, value = interface(model=Caller(), agents=[AGENT], n_candidates=2), json.loads(sent)
    for call in (auction.invoke, auction.ainvoke):
        with pytest.raises(
            ConfigurationError, match=r"configurable\['auction_agents'\] must be a list of at least one"
        ):
            await _awaited(call("x", {"configurable": {"auction_agents": value}}))
        reply = await _awaited(call("x", {"configurable": {"agents": value, "auction_agents": None}}))
        assert [payment["agent"] for payment in reply.response_metadata["auction"]["payments"]] == ["B"]


@BOTH
def test_code_may_leave_a_call_without_agents_and_is_told_of_another_key(interface):
    auction = interface(model=Caller(), agents=[AGENT], n_candidates=2)
    reply = auction.invoke("x", {"configurable": {"auction_agents": lambda given: []}})
    assert reply.response_metadata["auction"]["payments"] == []
    with pytest.raises(ConfigurationError, match=r"belong under configurable\['auction_agents'\]"):
        auction.invoke("x", {"configurable": {"agents": [AGENT]}})


async def _awaited(value):
    return await value if inspect.isawaitable(value) else value


@BOTH
def test_no_agent_reads_of_the_last_auction_in_the_next_prompt(interface):
    seen = []

    def spy(prompt, reply):
        seen.extend([*prompt, reply])
        return 1.0

    auction = interface(model=MarkovChatModel(), agents=[Agent("Spy", spy), AGENT], n_candidates=4, seed=SEED)
    first = auction.invoke("x")
    seen.clear()
    auction.invoke([("human", "x"), first, ("human", "y")])
    assert first.response_metadata["auction"]["seed"] == SEED
    assert first.text in [message.text for message in seen]
    assert not any(str(SEED) in repr(message) or "auction" in message.response_metadata for message in seen)
