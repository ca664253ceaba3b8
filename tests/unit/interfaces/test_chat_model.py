"""ChatAuction as a chat model: its cache, limits, names, serialisation, and how a call's config reaches it."""

import inspect
import json
import math
from typing import Self

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.exceptions import ContextOverflowError, ModelRateLimitError
from langchain_core.globals import set_llm_cache
from langchain_core.load import dumpd, dumps, loads
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import ConfigurableField, RunnableBinding, RunnableLambda
from langchain_openai import ChatOpenAI
from pydantic import model_validator

from llm_auction_chain import Agent, AuctionRunnable, Billing, CandidatesError, ChatAuction, ConfigurationError
from tests.unit.interfaces.caller import COST, Caller, Plain, Spy, both

M = 4
SECRET = "worth-31415"  # noqa: S105 - what no tracer may read


def bidder(name):
    return Agent(name, lambda prompt, reply: 1.0)


def auction(model=None, **settings):
    return ChatAuction(**{"model": model or Caller(), "agents": [bidder("own")], "n_candidates": M, **settings})


def failing(error, times=math.inf):
    """Return what a model says that fails so many times."""

    def say(messages, number):
        if number <= times:
            raise error
        return AIMessage(f"reply {number}")

    return say


def bidders(reply):
    return [payment["agent"] for payment in reply.response_metadata["auction"]["payments"]]


async def test_neither_the_auction_nor_its_draws_are_cached():
    set_llm_cache(InMemoryCache())
    try:
        for wrap in (lambda model: model, lambda model: model.bind(stop=["x"]).with_retry()):
            caller = Caller()
            chat = auction(wrap(caller))
            replies = [*await both(chat), *await both(chat)]
            assert len({reply.response_metadata["auction"]["auction_id"] for reply in replies}) == 4
            assert len(caller.asked) == 4 * M
            assert {reply.response_metadata["auction"]["diagnostics"]["distinct_replies"] for reply in replies} == {M}
    finally:
        set_llm_cache(None)


@pytest.mark.parametrize("cache", [True, None, InMemoryCache()])
def test_a_cache_is_refused(cache):
    with pytest.raises(ConfigurationError, match="cache"):
        auction(cache=cache)


class Counting(BaseRateLimiter):
    def __init__(self):
        self.acquired = 0

    def acquire(self, *, blocking=True):
        self.acquired += 1
        return True

    async def aacquire(self, *, blocking=True):
        return self.acquire()


async def test_the_models_rate_limiter_is_asked_once_a_draw_and_the_auctions_once_an_auction():
    inner, outer = Counting(), Counting()
    chat = auction(Caller(rate_limiter=inner).with_retry(), rate_limiter=outer)
    await both(chat)
    assert (inner.acquired, outer.acquired) == (2 * M, 2)
    list(chat.stream("Hi"))
    assert [chunk async for chunk in chat.astream("Hi")]
    assert (inner.acquired, outer.acquired) == (4 * M, 4)
    with_cache = inner.acquired
    chat.batch(["a", "b"])
    assert (inner.acquired - with_cache, outer.acquired) == (2 * M, 6)


WRAPS = [
    lambda model: model,
    lambda model: model.bind(stop=["END"]).with_retry(),
    lambda model: model.with_config(tags=["mine"]).with_fallbacks([Caller()]),
    lambda model: model.configurable_fields(temperature=ConfigurableField(id="t")),
]


def test_settings_are_validated_once_over_a_model_without_a_profile():
    validated = []

    class Counting(ChatAuction):
        @model_validator(mode="after")
        def _count(self) -> Self:
            validated.append(self)
            return self

    chat = Counting(model=Caller())
    assert (chat.profile, len(validated)) == (None, 1)
    chat.n_candidates = 3
    assert len(validated) == 2


@pytest.mark.parametrize("wrap", WRAPS)
def test_what_the_model_is_called_and_can_do_is_seen_through_its_wrappers(wrap):
    model = ChatOpenAI(model="gpt-4.1", api_key="sk", temperature=0.5)
    chat = auction(wrap(model))
    assert chat.profile == model.profile
    assert chat.profile["structured_output"]
    told = chat._get_ls_params()
    assert {**told, "ls_stop": None} == {**model._get_ls_params(), "ls_stop": None}
    assert (told["ls_model_name"], told["ls_temperature"]) == (chat.model_name, 0.5) == ("gpt-4.1", 0.5)
    assert chat._get_ls_params(stop=["x"])["ls_stop"] == ["x"]
    assert ChatAuction(model=Caller()).model_name == "caller"


def test_a_bound_stop_is_named_to_tracers():
    assert auction(Caller().bind(stop=["END"]))._get_ls_params()["ls_stop"] == ["END"]


@pytest.mark.parametrize("wrap", WRAPS)
def test_tokens_are_counted_as_the_model_counts_them(wrap):
    class Counts(Caller):
        def get_token_ids(self, text):
            return [ord(letter) for letter in text]

        def get_num_tokens_from_messages(self, messages, tools=None):
            return 10 * len(messages) + len(tools or [])

    chat = auction(wrap(Counts()))
    assert (chat.get_num_tokens("abc"), chat.get_token_ids("ab")) == (3, [97, 98])
    assert chat.get_num_tokens_from_messages([HumanMessage("a")], [{}]) == 11


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")  # LangChain's own note
@pytest.mark.parametrize("interface", [ChatAuction, AuctionRunnable])
def test_an_auction_of_serialisable_parts_comes_back_equal(interface):
    allowed = {
        "valid_namespaces": ["llm_auction_chain", "tests"],
        "allowed_objects": [interface, Plain, RunnableBinding],
    }
    settings = {
        "n_candidates": 3,
        "tau": 0.5,
        "seed": 7,
        "billing": Billing(currency="EUR"),
        "on_tool_calls": "auction",
    }
    own = interface(model=Plain(said="y"), **settings)
    assert loads(dumps(own), **allowed) == own != interface(model=Plain(said="z"), **settings)
    over = interface(model=Plain(said="y").bind(stop=["x"]), **settings)
    back = loads(dumps(over), **allowed)
    assert dumpd(back) == dumpd(over)
    assert back.invoke("Hi").response_metadata["auction"]["seed"] == 7
    assert back.invoke("Hi").text == "y"
    bound = own.bind(seed=8)
    allowed["allowed_objects"].append(type(bound))
    assert loads(dumps(bound), **allowed).run("Hi").seed == 8


def test_an_auction_with_agents_can_be_written_down():
    written = json.loads(dumps(auction(agents=[Spy().agent()])))
    assert written["id"] == ["llm_auction_chain", "interfaces", "chat_model", "ChatAuction"]
    assert written["kwargs"]["n_candidates"] == M


class Hears(BaseCallbackHandler):
    """Keeps all that a tracer is told when a run starts."""

    def __init__(self):
        self.told = []

    def on_chat_model_start(self, serialized, messages, **kwargs):
        self.told.append(("model", serialized, kwargs))

    def on_chain_start(self, serialized, inputs, **kwargs):
        self.told.append(("chain", serialized, kwargs))


class Worth:
    def __repr__(self):
        return SECRET

    def __call__(self, prompt, reply):
        return math.pi


@pytest.mark.parametrize("interface", [ChatAuction, AuctionRunnable])
async def test_no_tracer_is_told_of_an_agents_reward(interface):
    hears = Hears()
    secret = Agent("A", Worth())
    assert SECRET in repr(secret.reward)
    assert SECRET not in repr(secret)
    own = interface(model=Caller(), agents=[secret], n_candidates=M)
    called = interface(model=Caller(), n_candidates=M)
    config = {"callbacks": [hears]}
    await both(own | StrOutputParser(), config=config)
    await both(called, config={**config, "configurable": {"auction_agents": [secret]}})
    list(own.stream("Hi", config))
    starts = [told for told in hears.told if told[0] == ("model" if interface is ChatAuction else "chain")]
    assert len(starts) >= 5
    assert SECRET not in repr(hears.told)


def test_a_tracer_is_told_the_auctions_name_and_its_models_parameters():
    hears = Hears()
    auction(Caller(temperature=0.5)).invoke("Hi", {"callbacks": [hears]}, stop=["x"])
    ((_, serialized, told),) = hears.told
    assert serialized["name"] == "ChatAuction"
    assert serialized["id"][-1] == "ChatAuction"
    parameters = told["invocation_params"]
    assert (parameters["stop"], parameters["auction"]["n_candidates"]) == (["x"], M)
    assert told["metadata"]["ls_temperature"] == 0.5


@pytest.mark.parametrize("model", [RunnableLambda(lambda given: AIMessage("x")), StrOutputParser()])
def test_a_model_that_is_no_chat_model_is_refused(model):
    with pytest.raises(ConfigurationError, match=f"no chat model in {type(model).__name__}"):
        ChatAuction(model=model)


CALLS = {
    "invoke": lambda chat, config: chat.invoke("Hi", config),
    "batch": lambda chat, config: chat.batch(["Hi"], config)[0],
    "batch_as_completed": lambda chat, config: next(iter(chat.batch_as_completed(["Hi"], config)))[1],
    "stream": lambda chat, config: next(chat.stream("Hi", config)),
    "transform": lambda chat, config: next(chat.transform(iter(["Hi"]), config)),
    "v3": lambda chat, config: chat.stream_events("Hi", config, version="v3").output,
}


@pytest.mark.filterwarnings("ignore:The method `BaseChatModel._a?chat_model_stream_v3` is in beta")  # LangChain's own
@pytest.mark.parametrize("style", CALLS)
def test_the_calls_own_agents_reach_every_sync_call(style):
    told = {"configurable": {"auction_agents": [bidder("call")]}}
    for chat in (auction(), auction().bind(stop=["x"])):
        assert bidders(CALLS[style](chat, told)) == ["call"]
        assert bidders(CALLS[style](chat, None)) == ["own"]


async def _first(events):
    async for event in events:
        return event
    return None


async def _v2(events):
    (end,) = [event async for event in events if event["event"] == "on_chat_model_end"]
    return end["data"]["output"]


async def _output(pending):
    stream = await pending
    return await stream.output


async def _one(pending):
    return (await pending)[0]


ACALLS = {
    "ainvoke": lambda chat, config: chat.ainvoke("Hi", config),
    "abatch": lambda chat, config: _one(chat.abatch(["Hi"], config)),
    "astream": lambda chat, config: _first(chat.astream("Hi", config)),
    "v2": lambda chat, config: _v2(chat.astream_events("Hi", config, version="v2")),
    "v3": lambda chat, config: _output(chat.astream_events("Hi", config, version="v3")),
}


@pytest.mark.filterwarnings("ignore:The method `BaseChatModel._a?chat_model_stream_v3` is in beta")  # LangChain's own
@pytest.mark.parametrize("style", ACALLS)
async def test_the_calls_own_agents_reach_every_async_call(style):
    told = {"configurable": {"auction_agents": [bidder("call")]}}
    for chat in (auction(), auction().bind(stop=["x"])):
        assert bidders(await ACALLS[style](chat, told)) == ["call"]
        assert bidders(await ACALLS[style](chat, None)) == ["own"]


class Runs(Hears):
    """Keeps the names of events, and which runs they belong to, beside what runs are begun with."""

    def on_custom_event(self, name, data, *, run_id, **kwargs):
        self.told.append((name, run_id))


@pytest.mark.filterwarnings("ignore:The method `BaseChatModel._a?chat_model_stream_v3` is in beta")  # LangChain's own
@pytest.mark.parametrize("style", [*CALLS, *ACALLS])
async def test_the_models_own_handlers_hear_its_run_and_its_events_and_nothing_below(style):
    own, passed = Runs(), Runs()
    judge = Agent("J", RunnableLambda(lambda pair: 1.0) | RunnableLambda(float))
    chat = auction(Caller(), agents=[judge], callbacks=[own])
    config = {"callbacks": [passed]}
    _ = CALLS[style](chat, config) if style in CALLS else await ACALLS[style](chat, config)
    (begun, *_), *heard = own.told
    assert begun == "model"
    names, runs = zip(*heard, strict=True)
    assert names == ("auction.started", "auction.candidates", "auction.scored", "auction.settled")
    assert len(set(runs)) == 1
    below = [told for told in passed.told if told[0] == "chain"]
    assert len(below) == 3 * M
    assert [told for told in passed.told if told[0] != "chain"][1:] == heard


async def test_each_input_of_a_batch_has_its_own_config():
    told = [{"configurable": {"auction_agents": [bidder(name)]}} for name in "ab"]
    replies = [*auction().batch(["Hi", "Hi"], told), *await auction().abatch(["Hi", "Hi"], told)]
    assert [bidders(reply) for reply in replies] == [["a"], ["b"]] * 2
    assert {reply.usage_metadata["total_tokens"] for reply in replies} == {M * COST}


@pytest.mark.parametrize("interface", [ChatAuction, AuctionRunnable])
async def test_model_is_a_keyword_of_the_call_and_reaches_the_model(interface):
    caller = Caller()
    own = interface(model=caller, agents=[bidder("own")], n_candidates=M)
    await both(own, model="other")
    await both(own.bind(model="other"))
    assert [call["model"] for call in caller.asked] == ["other"] * 4 * M


@pytest.mark.parametrize("interface", [AuctionRunnable, ChatAuction])
@pytest.mark.parametrize("tools", [[], [{"type": "function", "function": {"name": "note"}}]])
async def test_a_model_error_passes_an_auction_with_its_class_under_bypass_too(interface, tools):
    held = interface(
        model=Caller(say=failing(ContextOverflowError("too long"))), agents=[bidder("own")], n_candidates=M
    )
    for ask in (held.invoke, held.ainvoke, held.run, held.arun, lambda *a, **k: list(held.stream(*a, **k))):
        with pytest.raises(ContextOverflowError) as failed:
            inspect.isawaitable(reply := ask("Hi", tools=tools)) and await reply
        assert isinstance(failed.value, CandidatesError)
        assert isinstance(failed.value.__cause__, ContextOverflowError)
        assert not failed.value.is_retryable


def test_a_retry_that_waits_for_one_class_of_errors_asks_an_auction_again():
    held = auction(Caller(say=failing(ModelRateLimitError("slow down"), times=M)))
    assert held.with_retry(retry_if_exception_type=(ModelRateLimitError,), wait_exponential_jitter=False).invoke("Hi")


def test_langchain_sees_the_provider_of_the_model():
    assert auction(Caller().bind(stop=["x"]))._llm_type == "caller"


class Several(Caller):
    """Answers under the names of two models in turns, as fallbacks across providers do."""

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        result = super()._generate(messages, stop, run_manager, **kwargs)
        name = f"model {int(result.generations[0].message.text.split()[-1]) % 2}"
        result.generations[0].message.response_metadata["model_name"] = name
        return result


@pytest.mark.parametrize("at", ["call", "constructor"])
async def test_usage_is_booked_under_each_model_that_was_used_and_the_reply_has_all_of_it(at):
    async def streamed(chat, config):
        (chunk,) = [chunk async for chunk in chat.astream("Hi", config)]
        return chunk

    ways = [
        lambda chat, config: chat.invoke("Hi", config),
        lambda chat, config: chat.ainvoke("Hi", config),
        lambda chat, config: chat.batch(["Hi"], config)[0],
        lambda chat, config: list(chat.stream("Hi", config)).pop(),
        streamed,
    ]
    for way in ways:
        usage = UsageMetadataCallbackHandler()
        own, config = ({}, {"callbacks": [usage]}) if at == "call" else ({"callbacks": [usage]}, None)
        reply = way(ChatAuction(model=Several(), agents=[Spy().agent()], n_candidates=4, **own), config)
        reply = await reply if inspect.isawaitable(reply) else reply
        assert reply.usage_metadata["total_tokens"] == 4 * COST
        assert {name: used["total_tokens"] for name, used in usage.usage_metadata.items()} == {
            "model 0": 2 * COST, "model 1": 2 * COST,
        }  # fmt: skip
