"""Replies from any chat model: through its wrappers, without a cache, with every failure kept."""

import time
from contextlib import nullcontext
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import (
    BaseCallbackHandler,
    CallbackManager,
    UsageMetadataCallbackHandler,
    get_usage_metadata_callback,
)
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.runnables import ConfigurableField, RouterRunnable, RunnableBranch, RunnableLambda
from langchain_core.tracers.log_stream import LogStreamCallbackHandler
from langchain_openai import ChatOpenAI

from llm_auction_chain import (
    Agent,
    AuctionRunnable,
    CandidatesError,
    ChatAuction,
    ConfigurationError,
    ContextPrompt,
    DefensiveMixture,
    Reference,
    Sampling,
)
from llm_auction_chain.candidates import ProposalInputs, Size, Source, draw, hidden, make_plan, quiet
from llm_auction_chain.testing import MarkovChatModel
from llm_auction_chain.waiting import AWAITING, BLOCKING, run
from tests.integration.provider import few, provider, refuse

PROMPT = [HumanMessage("x")]


class Scripted(BaseChatModel):
    """Counts its calls; every reply is its number, every `fails_every`-th call fails."""

    fails_every: int = 0
    calls: list = []  # noqa: RUF012 - pydantic copies it

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.calls.append(messages)
        number = len(self.calls)
        if self.fails_every and number % self.fails_every == 0:
            raise ConnectionError(f"call {number} broke")
        message = AIMessage(
            f"reply {number}",
            usage_metadata={"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
            response_metadata={"model_name": "scripted"},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    @property
    def _llm_type(self):
        return "scripted"


SHORT = MarkovChatModel()
WORDS = MarkovChatModel(length=9)  # so many replies that four draws differ
TWO = [
    Agent("B", lambda prompt, reply: 2.0 * reply.text.count("b")),
    Agent("C", lambda prompt, reply: reply.text.count("c"), owner="c-group"),
]


def auction(model=None, agents=(), **settings):
    return AuctionRunnable(model=model or WORDS, agents=agents, **{"n_candidates": 4, "seed": 7, **settings})


@pytest.mark.parametrize("wrap", [
    lambda model: model,
    lambda model: model.bind(stop=["x"]),
    lambda model: model.with_retry(),
    lambda model: model.with_fallbacks([WORDS]),
    lambda model: model.configurable_alternatives(ConfigurableField(id="llm"), other=Scripted()),
    lambda model: model.with_retry().bind(stop=["x"]).with_config(tags=["mine"]),
    lambda model: model.with_config(tags=["mine"]),
])  # fmt: skip
def test_any_runnable_chat_model_fits(wrap):
    for model in (Scripted(), WORDS):
        result = auction(wrap(model), TWO).run("x")
        assert result.draws == result.distinct_replies == 4


def test_usage_is_the_sum_of_all_hidden_calls():
    handler = UsageMetadataCallbackHandler()
    reply = auction(Scripted(), TWO).invoke("x", config={"callbacks": [handler]})
    assert reply.usage_metadata["total_tokens"] == 20
    assert handler.usage_metadata["scripted"]["total_tokens"] == 20
    handler = UsageMetadataCallbackHandler()
    reply = auction(agents=TWO).invoke("x", config={"callbacks": [handler]})
    assert reply.usage_metadata == handler.usage_metadata["markov"]


class Tracer(BaseCallbackHandler):
    def __init__(self):
        self.chains, self.models = [], []

    def on_chain_start(self, serialized, inputs, *, run_id, parent_run_id=None, **kwargs):
        self.chains.append(run_id)

    def on_chat_model_start(self, serialized, messages, *, run_id, parent_run_id=None, tags=None, **kwargs):
        self.models.append((parent_run_id, tags))


@pytest.mark.parametrize("model", [Scripted(), MarkovChatModel()])
async def test_model_calls_are_children_of_the_auction_and_hidden_from_streams(model):
    for call in ("sync", "async"):
        tracer = Tracer()
        config = {"callbacks": [tracer]}
        if call == "sync":
            auction(model, TWO).invoke("x", config)
        else:
            await auction(model, TWO).ainvoke("x", config)
        assert tracer.models
        for parent, tags in tracer.models:
            assert parent == tracer.chains[0]
            assert "nostream" in tags


def test_a_global_cache_does_not_make_the_candidates_one():
    set_llm_cache(InMemoryCache())
    try:
        for model in (
            Scripted(),
            Scripted().bind(stop=["x"]),
            Scripted().with_fallbacks([Scripted()]),
            RunnableBranch((lambda given: True, Scripted()), Scripted()),
            RunnableLambda(lambda given: {"key": "one", "input": given}) | RouterRunnable({"one": Scripted()}),
        ):
            assert auction(model, TWO).run("x").distinct_replies == 4
    finally:
        set_llm_cache(None)


class Uncounted(BaseChatModel):
    """Says the same always, and counts no tokens."""

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return ChatResult(generations=[ChatGeneration(message=AIMessage("So"))])

    @property
    def _llm_type(self):
        return "uncounted"


class AsksUncounted(Uncounted):
    """Asks a model, for which LangChain's global cache may answer."""

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return ChatResult(generations=[ChatGeneration(message=Uncounted().invoke(messages))])


@pytest.mark.parametrize("kind", [AuctionRunnable, ChatAuction])
async def test_a_usage_that_counts_costs_alone_is_one_of_no_tokens(kind):
    """Of a model without usage, LangChain's cache says nothing but that a hit cost nothing."""
    set_llm_cache(InMemoryCache())
    try:
        chain = kind(model=AsksUncounted(), agents=TWO, n_candidates=3)
        for reply in (chain.invoke("x"), await chain.ainvoke("x"), *chain.stream("x")):
            assert [reply.usage_metadata[kind] for kind in ("input_tokens", "output_tokens", "total_tokens")] == [0] * 3
    finally:
        set_llm_cache(None)


async def test_all_calls_failing_keeps_every_cause():
    for model in (Scripted(fails_every=1),):
        with pytest.raises(CandidatesError, match="call") as caught:
            auction(model, TWO).invoke("x")
        assert len(caught.value.causes) == 4
        with pytest.raises(CandidatesError):
            await auction(model, TWO).ainvoke("x")


class Broken(MarkovChatModel):
    def _generate(self, *args, **kwargs):
        raise ConnectionError("down")


async def test_a_failing_batched_call_is_kept_as_cause():
    with pytest.raises(CandidatesError, match="down") as caught:
        auction(Broken(), TWO).invoke("x")
    assert isinstance(caught.value.causes[0], ConnectionError)
    with pytest.raises(CandidatesError):
        await auction(Broken(), TWO).ainvoke("x")


def test_survivors_are_enough_when_there_are_min_candidates():
    result = auction(Scripted(fails_every=4), TWO, sampling=Sampling(min_candidates=3)).run("x")
    assert len(result.candidates) == 3
    diagnostics = result.reply.response_metadata["auction"]["diagnostics"]
    assert (diagnostics["candidates"], diagnostics["failed_calls"]) == (3, 1)
    with pytest.raises(CandidatesError):
        auction(Scripted(fails_every=2), TWO, sampling=Sampling(min_candidates=3)).run("x")


def test_a_model_that_returns_no_message_is_refused():
    with pytest.raises(ConfigurationError, match="AIMessage"):
        auction(RunnableLambda(lambda given: "text"), TWO).invoke("x")


def test_a_seed_reaches_a_model_of_ours_through_its_wrappers():
    for wrapped in (WORDS.bind(stop=["x"]), WORDS.with_retry(), WORDS.with_config(tags=["a"]).with_retry()):
        texts = [[c.message.text for c in auction(wrapped, TWO).run("x").candidates] for _ in range(2)]
        assert texts[0] == texts[1] == [c.message.text for c in auction(agents=TWO).run("x").candidates]


class Flaky(MarkovChatModel):
    length: int = 9
    failed: list = []  # noqa: RUF012 - pydantic copies it

    def _generate(self, *args, **kwargs):
        if not self.failed:
            self.failed.append(1)
            raise ConnectionError("once")
        return super()._generate(*args, **kwargs)


async def test_retries_around_a_batched_model_still_retry():
    assert auction(Flaky().with_retry(wait_exponential_jitter=False), TWO).run("x").draws == 4
    result = await auction(Flaky().with_retry(wait_exponential_jitter=False), TWO).arun("x")
    assert (result.draws, result.failures) == (4, ())


class Seeded(MarkovChatModel):
    """Keeps the seed of every request; one request draws under all conditions."""

    seeds: list = []  # noqa: RUF012 - pydantic copies it

    def _generate(self, *args, seed=None, **kwargs):
        self.seeds.append(seed)
        return super()._generate(*args, seed=seed, **kwargs)


class SeededPerCondition(BaseChatModel):
    """Keeps the seed of every request; each condition is a request of its own."""

    native_n: ClassVar[bool] = True
    seeds: list = []  # noqa: RUF012 - pydantic copies it

    def _generate(self, *args, seed=None, **kwargs):
        self.seeds.append(seed)
        return SHORT._generate(*args, seed=seed, **kwargs)

    @property
    def _llm_type(self):
        return "seeded"


@pytest.mark.parametrize(("kind", "requests"), [(Seeded, 3), (SeededPerCondition, 6)])
def test_neighbouring_seeds_rounds_and_conditions_share_no_stream_of_randomness(kind, requests):
    model = kind()
    for seed in range(40):
        plan = make_plan(
            Source(model, {}, native_n=True, kwargs={}),
            scorer=SHORT if kind is SeededPerCondition else None,
            proposal=DefensiveMixture([(Reference(), 1), (ContextPrompt(), 1)]),
            inputs=ProposalInputs(prompt=tuple(PROMPT), descriptions=("A shop.",), seed=seed),
            size=Size(n=4, most=12, min_ess=1e9, fewest=1),
        )
        run(draw(plan, BLOCKING))
    assert len(model.seeds) == len(set(model.seeds)) == 40 * requests
    assert 2**50 < max(model.seeds) < 2**53  # JSON holds them exactly
    # a seed that is the sum of auction, round and condition would move in equal steps
    assert len(set(np.diff(model.seeds).tolist())) == len(model.seeds) - 1


class Native(BaseChatModel):
    """Draws all replies of a condition in one request, reports each, and keeps how many requests ran at once."""

    native_n: ClassVar[bool] = True
    running: list = []  # noqa: RUF012 - pydantic copies it
    busiest: list = []  # noqa: RUF012 - pydantic copies it

    def _generate(self, messages, stop=None, run_manager=None, *, n=1, progress=None, **kwargs):
        self.running.append(1)
        self.busiest.append(len(self.running))
        for arrived in range(1, n + 1):
            if progress is not None:
                progress(arrived, n, 5.0)
        time.sleep(0.01)
        self.running.pop()
        return ChatResult(generations=[ChatGeneration(message=AIMessage(f"reply {k}")) for k in range(n)])

    @property
    def _llm_type(self):
        return "native"


class Single(Native):
    """The same, one reply a request."""

    native_n: ClassVar[bool] = False


def wanted(*counts):
    """Return so many draws from each of several prompts."""
    return [(Reference().condition(ProposalInputs(prompt=(HumanMessage(f"x{k}"),))), n) for k, n in enumerate(counts)]


async def sample(model, waiter, draws, *, config=None, **kwargs):
    """Return what a source draws, in sync or not."""
    source = Source(model, config or {}, native_n=True, kwargs={})
    sampling = source.sample(draws, waiter, seed=1, config=config, **{"tokens": False, **kwargs})
    return run(sampling) if waiter is BLOCKING else await sampling


@pytest.mark.parametrize("waiter", [BLOCKING, AWAITING])
@pytest.mark.parametrize("kind", [Native, Single])
async def test_a_callers_limit_of_concurrency_holds_for_the_draws(kind, waiter):
    model = kind()
    await sample(model, waiter, wanted(1, 1, 1), config={"max_concurrency": 1})
    assert model.busiest == [1, 1, 1]


@pytest.mark.parametrize("waiter", [BLOCKING, AWAITING])
async def test_progress_adds_up_replies_and_speeds_of_all_requests(waiter):
    seen, one_by_one = [], {"max_concurrency": 1}
    await sample(Native(), waiter, wanted(2, 1), config=one_by_one, progress=lambda *said: seen.append(said))
    assert seen == [(1, 5.0), (2, 5.0), (3, 10.0), (3, None)]
    seen.clear()
    await sample(Single(), waiter, wanted(2, 1), config=one_by_one, progress=lambda *said: seen.append(said))
    assert seen == [(1, None), (2, None), (3, None)]


class Heard(BaseCallbackHandler):
    """Keeps tags and metadata of a chat model's runs."""

    def __init__(self):
        self.runs = []

    def on_chat_model_start(self, serialized, messages, *, run_id, tags=None, metadata=None, **kwargs):
        self.runs.append((set(tags), {name: metadata.get(name) for name in ("model", "call", "both")}))


@pytest.mark.parametrize("waiter", [BLOCKING, AWAITING])
@pytest.mark.parametrize("model", [Native(), Single(), Native().with_retry()])
async def test_runs_have_the_tags_and_metadata_of_the_model_and_of_the_call(model, waiter):
    bound = model.with_config(tags=["bound"], metadata={"model": 1, "both": "model"})
    heard = Heard()
    config = {"callbacks": [heard], "tags": ["called"], "metadata": {"call": 2, "both": "call"}}
    await sample(bound, waiter, wanted(1, 1), config=config)
    assert heard.runs == [({"bound", "called"}, {"model": 1, "call": 2, "both": "call"})] * 2


@pytest.mark.parametrize("name", ["conditions", "n", "progress", "seed"])
def test_a_keyword_that_the_auction_sets_itself_is_refused(name):
    with pytest.raises(ConfigurationError, match=name):
        Source(WORDS, {}, native_n=True, kwargs={name: 1})


async def test_without_a_run_of_its_own_a_call_reaches_no_callback():
    for model in (WORDS, Scripted()):
        for waiter in (BLOCKING, AWAITING):
            handler = UsageMetadataCallbackHandler()
            heard = model.model_copy(update={"callbacks": [handler]})
            source = Source(heard, {}, native_n=True, traced=False, kwargs={})
            sampling = source.sample(
                [(Reference().condition(ProposalInputs(prompt=tuple(PROMPT))), 3)], waiter,
                seed=1, tokens=False, config={"callbacks": [handler]},
            )  # fmt: skip
            sample = run(sampling) if waiter is BLOCKING else await sampling
            assert len(sample.replies) == 3
            assert sum(reply.usage_metadata["total_tokens"] for _, reply in sample.replies if reply.usage_metadata) > 0
            assert handler.usage_metadata == {}


def test_a_quiet_config_keeps_tracers_and_drops_streams():
    tracer, stream = Tracer(), LogStreamCallbackHandler()
    child = quiet({"callbacks": [tracer, stream], "tags": ["mine", "nostream"], "metadata": {"a": 1}})
    assert child["metadata"] == {"a": 1}
    assert child["callbacks"] == [tracer]
    assert child["tags"] == ["mine", "nostream"]
    manager = CallbackManager([tracer, stream], inheritable_handlers=[tracer, stream])
    silent = quiet({"callbacks": manager})["callbacks"]
    assert silent.handlers == silent.inheritable_handlers == [tracer]
    assert manager.handlers == [tracer, stream]


def test_a_hidden_config_takes_no_part_in_the_graph_around():
    outer = {"thread_id": "1", "checkpoint_ns": "a", "__pregel_send": print, "__pregel_checkpointer": object()}
    assert hidden({"configurable": outer})["configurable"] == {"thread_id": "1", "__pregel_checkpointer": None}
    assert hidden({"configurable": {"thread_id": "1"}})["configurable"] == {"thread_id": "1"}
    assert hidden({})["configurable"] == {}


def test_a_hidden_config_keeps_the_runtime_of_the_graph_around_without_its_stream():
    class Runtime:
        def override(self, *, stream_writer):
            return ("silent", stream_writer)

    silent, write = hidden({"configurable": {"__pregel_runtime": Runtime()}})["configurable"]["__pregel_runtime"]
    assert (silent, write("chunk")) == ("silent", None)


@pytest.mark.parametrize("waiter", [BLOCKING, AWAITING])
@pytest.mark.parametrize("model", [Scripted(), WORDS])
async def test_the_keywords_of_a_call_reach_the_model(model, waiter):
    class Keeps(type(model)):
        def _generate(self, *args, temperature=None, **kwargs):
            seen.append(temperature)
            return super()._generate(*args, **kwargs)

    seen = []
    source = Source(Keeps(), {}, native_n=True, kwargs={"temperature": 0.5})
    sampling = source.sample(wanted(1), waiter, seed=1, tokens=False, config=None)
    assert len((run(sampling) if waiter is BLOCKING else await sampling).replies) == 1
    assert seen == [0.5]


class Failing(Native):
    """Raises this error."""

    error: Any

    def _generate(self, *args, **kwargs):
        raise self.error


@pytest.mark.parametrize("waiter", [BLOCKING, AWAITING])
async def test_a_model_that_is_set_up_wrongly_stops_the_draw_and_one_without_replies_gives_causes(waiter):
    with pytest.raises(ConfigurationError, match="set up wrongly"):
        await sample(Failing(error=ConfigurationError("set up wrongly")), waiter, wanted(2))
    lost = [ValueError("one"), ValueError("two")]
    assert (await sample(Failing(error=CandidatesError("none", lost)), waiter, wanted(2))).causes == tuple(lost)


def test_failures_among_the_requests_of_one_draw_are_causes():
    with provider() as server, httpx.Client() as client:
        server.script = [few(1), refuse(500), refuse(500)]
        chat = ChatOpenAI(model="some", api_key="x", base_url=server.url, http_client=client, max_retries=0)
        sampling = Source(chat, {}, native_n=True, kwargs={}).sample(
            wanted(3), BLOCKING, seed=1, tokens=False, config=None
        )
        sample = run(sampling)
    assert len(sample.replies) == 1
    assert [cause.status_code for cause in sample.causes] == [500, 500]


@pytest.mark.parametrize(("native_n", "counts"), [(True, [2]), (False, [None, None])])
@pytest.mark.parametrize(("place", "settings"), [
    ("bound", {"seed": 3}), ("of the model", {"seed": 3}),
    *((place, {"extra_body": {"seed": 3, "n": 3}}) for place in ("bound", "of the call", "of the model")),
])  # fmt: skip
def test_a_seed_of_the_models_own_is_never_repeated(native_n, counts, place, settings):
    with provider() as server, httpx.Client() as client:
        chat = ChatOpenAI(model="some", api_key="x", base_url=server.url, http_client=client)
        seeded = {"bound": chat.bind(**settings), "of the model": chat.model_copy(update=settings)}.get(place, chat)
        kwargs = settings if place == "of the call" else {}
        source = Source(seeded, {}, native_n=native_n, kwargs=kwargs)
        for _ in range(2):  # rounds
            sampling = source.sample(wanted(2), BLOCKING, seed=1, tokens=False, config=None)
            assert len(run(sampling).replies) == 2
        assert server.counts == counts * 2
        seeds = [body["seed"] for body in server.asked]
        assert min(seeds) == 3
        assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("settings", [{"random_seed": 3}, {"model_kwargs": {"seed": 3, "n": 2}}])
def test_a_seed_in_another_place_is_never_repeated_either(settings):
    asked = []

    class Seeded(MarkovChatModel):
        random_seed: int | None = None
        model_kwargs: dict = {}  # noqa: RUF012 - a field
        native_n: ClassVar[bool] = False

        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            asked.append((self.random_seed, self.model_kwargs))
            return super()._generate(messages, stop, run_manager, **kwargs)

    source = Source(Seeded(**settings).with_fallbacks([Seeded()]), {}, native_n=False, kwargs={})
    run(source.sample(wanted(2), BLOCKING, seed=1, tokens=False, config=None))
    expected = [(3, {}), (4, {})] if "random_seed" in settings else [(None, {"seed": 3}), (None, {"seed": 4})]
    assert sorted(asked, key=str) == expected


def test_a_source_knows_whether_the_call_asks_for_a_format():
    formatted = WORDS.bind(response_format={"type": "json_object"})
    model = WORDS.configurable_alternatives(ConfigurableField(id="which"), other=formatted)
    assert Source(model, {"configurable": {"which": "other"}}, native_n=True, kwargs={}).asked_for_format is True
    assert Source(model, {}, native_n=True, kwargs={}).asked_for_format is False


def test_a_model_that_holds_an_auction_of_its_own_is_refused():
    won = AIMessage("Hi", response_metadata={"auction": {"schema": "llm_auction_chain.auction/1"}})
    with pytest.raises(ConfigurationError, match="contains an auction already"):
        run(sample(RunnableLambda(lambda _: won), BLOCKING, wanted(1)))
    other = AIMessage("Hi", response_metadata={"auction": "of another kind"})
    assert len(run(sample(RunnableLambda(lambda _: other), BLOCKING, wanted(1))).replies) == 1


@pytest.mark.parametrize("waiter", [BLOCKING, AWAITING])
async def test_without_runs_progress_and_limit_of_concurrency_are_the_same(waiter):
    model, seen = Native(), []
    sampling = Source(model, {}, native_n=True, traced=False, kwargs={}).sample(
        wanted(1, 1), waiter, seed=1, tokens=False, config={"max_concurrency": 1},
        progress=lambda *said: seen.append(said),
    )  # fmt: skip
    await sampling if waiter is AWAITING else run(sampling)
    assert model.busiest == [1, 1]
    assert seen == [(1, 5.0), (2, 10.0), (2, None)]


class Nested(Scripted):
    """Every reply has the part that it is given; every other one has none."""

    part: Any
    always: bool = True

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        result = super()._generate(messages)
        if self.always or len(self.calls) % 2:
            result.generations[0].message = result.generations[0].message.model_copy(update=self.part)
        return result


def nested(levels):
    value = 1
    for _ in range(levels):
        value = {"a": [value]}
    return value


ROUND = {"a": []}
ROUND["a"] += [ROUND, ROUND]
DEEP = pytest.mark.parametrize("value", [nested(200), nested(5000), ROUND], ids=["deep", "deeper", "round"])
PARTS = pytest.mark.parametrize("part", [
    lambda value: {"tool_calls": [{"name": "f", "args": value, "id": "1"}]},
    lambda value: {"additional_kwargs": {"function_call": {"name": "f", "arguments": value}}},
    lambda value: {"content": [{"type": "text", "text": "Hi"}, {"type": "tool_use", "input": value}]},
    lambda value: {"response_metadata": {"status": value}},
])  # fmt: skip


@DEEP
@PARTS
@pytest.mark.parametrize("auction", [AuctionRunnable, ChatAuction])
async def test_a_reply_that_is_nested_too_deeply_is_a_call_that_failed(auction, part, value):
    model = Nested(part=part(value))
    held = auction(model=model, agents=[Agent("A", lambda prompt, reply: 1.0)], n_candidates=4)
    for ask in (lambda: held.invoke("x"), lambda: list(held.stream("x"))):
        with pytest.raises(CandidatesError, match="nested too deeply"):
            ask()
    with pytest.raises(CandidatesError, match="nested too deeply"):
        await held.ainvoke("x")
    model.always = False
    assert held.run("x").draws == 2


@PARTS
def test_a_reply_that_is_nested_as_deeply_as_code_can_walk_is_a_reply(part):
    held = ChatAuction(model=Nested(part=part(nested(95))), agents=[], n_candidates=2)
    assert list(held.stream("x"))


class Runs(BaseChatModel):
    """Keeps the run of every call, the keywords, and what a model that it calls in turn would inherit."""

    seen: list = []  # noqa: RUF012 - pydantic copies it
    tags: list = ["own"]  # noqa: RUF012
    broken: bool = False

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        inherited = (run_manager.inheritable_tags, run_manager.inheritable_metadata)
        run = (run_manager.parent_run_id is not None, run_manager.tags, run_manager.metadata)
        self.seen.append((run_manager.run_id, run, inherited, messages, stop, kwargs))
        if self.broken:
            raise ConnectionError("broken")
        message = AIMessage(f"reply {len(self.seen)}", response_metadata={"model_name": "runs"})
        generation = ChatGeneration(message=message, generation_info={"finish_reason": "stop"})
        return ChatResult(generations=[generation], llm_output={"token": "one"})

    @property
    def _llm_type(self):
        return "runs"


class Hears(BaseCallbackHandler):
    def __init__(self):
        self.starts = []

    def on_chat_model_start(self, *args, run_id, **kwargs):
        self.starts.append(run_id)


async def drawn(model, config, prompt, *, waits):
    """Return what four draws gave, and what the model saw in them."""
    model_of_all = model
    while not isinstance(model_of_all, BaseChatModel):
        model_of_all = model_of_all.bound
    held = AuctionRunnable(model=model, agents=TWO, n_candidates=4, seed=7)
    result = await held.arun(prompt, config) if waits else held.run(prompt, config)
    seen, model_of_all.seen[:] = sorted(model_of_all.seen, key=lambda one: one[0]), []
    ids = {candidate.message.id for candidate in result.candidates}
    assert ids == {f"lc_run--{run_id}-0" for run_id, *_ in seen}
    assert len(seen) == len(ids) == 4
    metadata = [candidate.message.response_metadata for candidate in result.candidates]
    return metadata, [one[1:] for one in seen]


BLOCKS = [HumanMessage([{"type": "file", "source_type": "base64", "mime_type": "application/pdf", "data": "YQ=="}])]


@pytest.mark.parametrize("prompt", [PROMPT, BLOCKS], ids=["text", "blocks"])
@pytest.mark.parametrize("wrap", [
    lambda model: model,
    lambda model: model.bind(stop=["."], temperature=0.5).bind(top_k=3),
    lambda model: model.with_config(tags=["bound"], metadata={"bound": 1}),
])  # fmt: skip
@pytest.mark.parametrize("waits", [False, True])
async def test_a_draw_is_the_same_whether_or_not_a_callback_listens(wrap, prompt, waits):
    config = {"tags": ["call"], "metadata": {"user": "u"}}
    unheard = await drawn(wrap(Runs()), config, prompt, waits=waits)
    hears = Hears()
    heard = await drawn(wrap(Runs()), {**config, "callbacks": [hears]}, prompt, waits=waits)
    assert len(set(hears.starts)) == 4

    def without_langchains_version(values):  # which names itself in what it tells tracers
        return (
            repr(values)
            .replace("'ls_integration': 'langchain_chat_model', ", "")
            .replace(", 'ls_integration': 'langchain_chat_model'", "")
        )

    assert without_langchains_version(unheard) == without_langchains_version(heard)


@pytest.mark.parametrize("place", ["call", "model", "binding", "ambient", "debug"])
@pytest.mark.parametrize("waits", [False, True])
async def test_wherever_a_callback_is_it_hears_every_draw(place, waits, monkeypatch, capsys):
    hears, model = Hears(), Runs()
    config = {"callbacks": [hears]} if place == "call" else {}
    if place == "model":
        model = Runs(callbacks=[hears])
    if place == "binding":
        model = Runs().with_config(callbacks=[hears]).bind(stop=["."])
    if place == "debug":
        monkeypatch.setattr("langchain_core.callbacks.manager._get_debug", lambda: True)
    hook = get_usage_metadata_callback() if place == "ambient" else nullcontext()
    with hook as counted:
        if counted is not None:
            counted.on_chat_model_start = hears.on_chat_model_start
        held = AuctionRunnable(model=model, agents=TWO, n_candidates=4)
        assert (await held.arun("x", config) if waits else held.run("x", config)).draws == 4
    if place == "debug":
        assert capsys.readouterr().out.count("[llm/start]") == 4
    else:
        assert len(set(hears.starts)) == 4


async def test_draws_that_fail_unheard_are_kept_as_causes():
    for waits in (False, True):
        held = AuctionRunnable(model=Runs(broken=True), agents=TWO, n_candidates=4)
        with pytest.raises(CandidatesError, match="broken") as caught:
            await held.ainvoke("x") if waits else held.invoke("x")
        assert [type(cause) for cause in caught.value.causes] == [ConnectionError] * 4


class Polite(Runs):
    """Overrides what a user calls."""

    def invoke(self, *args, **kwargs):
        return AIMessage(f"Please: {super().invoke(*args, **kwargs).text}")

    async def ainvoke(self, *args, **kwargs):
        return AIMessage(f"Please: {(await super().ainvoke(*args, **kwargs)).text}")


async def test_a_model_that_overrides_its_call_is_called_that_way():
    for wrapped in (Polite(), Polite().bind(stop=["."])):
        held = AuctionRunnable(model=wrapped, agents=TWO, n_candidates=4)
        for result in (held.run("x"), await held.arun("x")):
            assert all(candidate.message.text.startswith("Please: reply") for candidate in result.candidates)


class Prefaced(Runs):
    """Changes what a user gives it."""

    def _convert_input(self, model_input):
        return ChatPromptValue(messages=[HumanMessage("Hear, hear!"), *super()._convert_input(model_input).messages])


@pytest.mark.parametrize("callbacks", [[], [Hears()]], ids=["unheard", "heard"])
def test_a_model_that_overrides_how_it_reads_its_input_reads_it_that_way(callbacks):
    model = Prefaced()
    AuctionRunnable(model=model, agents=TWO, n_candidates=4).invoke("x", {"callbacks": callbacks})
    assert [[message.text for message in messages] for _, _, _, messages, _, _ in model.seen] == [
        ["Hear, hear!", "x"]
    ] * 4


@pytest.mark.parametrize("name", ["callbacks", "tags", "metadata", "run_name", "run_id"])
@pytest.mark.parametrize("callbacks", [[], [Hears()]], ids=["unheard", "heard"])
def test_a_bound_keyword_that_langchain_takes_from_the_config_is_refused(callbacks, name):
    held = AuctionRunnable(model=Runs().bind(**{name: None}), agents=TWO, n_candidates=4)
    with pytest.raises(CandidatesError, match=f"multiple values for keyword argument '{name}'"):
        held.invoke("x", {"callbacks": callbacks})
