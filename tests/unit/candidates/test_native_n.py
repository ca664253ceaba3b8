"""Many replies in one request: the real ChatOpenAI against a real HTTP server on the loopback."""

import asyncio
import subprocess
import sys
from collections import Counter

import httpx
import openai
import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler, get_usage_metadata_callback
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from pydantic import BaseModel

from llm_auction_chain import ChatTransformers
from llm_auction_chain.candidates.native_n import ManyReplies
from llm_auction_chain.candidates.source import native
from llm_auction_chain.errors import CandidatesError, ConfigurationError
from tests.integration.provider import MODEL, READ, WRITTEN, complete, few, provider, refuse, refuse_n

PROMPT = [HumanMessage("How do I learn the guitar?")]
KEY = "sk-very-secret"


class Answer(BaseModel):
    key: str
    choice: int


@pytest.fixture
def server():
    with provider() as served:
        yield served


@pytest.fixture
def model(server):
    """Return a function that makes the model; its clients are closed in the end."""
    client = httpx.Client()

    def make(kind=ChatOpenAI, **settings):
        common = {"model": "some-model", "api_key": KEY, "http_client": client, "max_retries": 0}
        return kind(**{**common, "base_url": server.url, **settings})

    yield make
    client.close()


def draw(chat, n=1, **kwargs):
    """Return the replies in sync."""
    return [generation.message for generation in native(chat).generate([PROMPT], n=n, **kwargs).generations[0]]


def adraw(server, n=1, *, settings=None, **kwargs):
    """Return the replies of the async twin, whose client lives as long as its event loop."""

    async def run():
        async with httpx.AsyncClient() as client:
            chat = ChatOpenAI(
                model="some-model", api_key=KEY, base_url=server.url, http_async_client=client,
                **{"max_retries": 0, **(settings or {})},
            )  # fmt: skip
            result = await native(chat).agenerate([PROMPT], n=n, **kwargs)
        return [generation.message for generation in result.generations[0]]

    return asyncio.run(run())


@pytest.fixture(params=["sync", "async"])
def both(request, server, model):
    """Return a function that draws, in sync or not."""

    def run(n=1, *, settings=None, **kwargs):
        if request.param == "sync":
            return draw(model(**(settings or {})), n, **kwargs)
        return adraw(server, n, settings=settings, **kwargs)

    return run


def billed(replies):
    """Return (read, written) of the first reply, and see that no other has any."""
    first, *others = replies
    assert [reply.usage_metadata for reply in others] == [None] * len(others)
    return first.usage_metadata["input_tokens"], first.usage_metadata["output_tokens"]


class Limiter(BaseRateLimiter):
    """Counts."""

    def __init__(self):
        self.acquired = 0

    def acquire(self, *, blocking=True):
        self.acquired += 1
        return True

    async def aacquire(self, *, blocking=True):
        self.acquired += 1
        return True


class Listener(BaseCallbackHandler):
    """Keeps what it hears."""

    def __init__(self):
        self.started, self.ended = [], []

    def on_chat_model_start(self, serialized, messages, **kwargs):
        self.started.append((serialized, kwargs))

    def on_llm_end(self, response, **kwargs):
        self.ended.append(response)


# Which models.


def test_our_own_models_are_their_own_many_replies():
    ours = ChatTransformers()
    assert native(ours) is ours


def test_chat_completions_of_openai_and_azure_are_known(model):
    assert isinstance(native(model()), ManyReplies)
    azure = AzureChatOpenAI(azure_endpoint="https://x.openai.azure.com", api_key=KEY, api_version="2024-10-21")
    assert isinstance(native(azure), ManyReplies)


def test_a_subclass_is_known_and_a_namesake_is_not(model):
    class MyChat(ChatOpenAI):
        pass

    class Namesake(FakeListChatModel):
        pass

    Namesake.__name__ = "ChatOpenAI"
    assert isinstance(native(model(MyChat)), ManyReplies)
    assert native(Namesake(responses=["Hi"])) is None


@pytest.mark.parametrize(
    "settings", [{"use_responses_api": True}, {"reasoning": {"effort": "low"}}, {"output_version": "responses/v1"}]
)
def test_the_responses_api_has_no_n(model, settings):
    assert native(model(**settings)) is None


def test_anything_else_is_not_known(model):
    assert native(FakeListChatModel(responses=["Hi"])) is None
    assert native(model().bind(stop=["."])) is None
    assert native(model() | str) is None


def test_no_provider_package_is_imported():
    code = (
        "import sys\n"
        "from langchain_core.language_models import FakeListChatModel\n"
        "from llm_auction_chain.candidates.source import native\n"
        "assert native(FakeListChatModel(responses=['Hi'])) is None\n"
        "sys.exit('langchain_openai' in sys.modules or 'openai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603


# What is asked.


def test_one_request_draws_all_replies(server, both):
    replies = both(5)
    assert server.counts == [5]
    assert len({reply.text for reply in replies}) == 5


def test_a_single_reply_is_asked_for_as_ever(server, model, both):
    (reply,) = both(1)
    plain = model().invoke(PROMPT)
    ours, theirs = server.asked
    assert ours == theirs
    kept = reply.model_dump(exclude={"id", "content", "response_metadata"})
    assert kept == plain.model_dump(exclude={"id", "content", "response_metadata"})
    assert reply.response_metadata.keys() == plain.response_metadata.keys()


def test_bound_keywords_reach_the_provider(server, both):
    tool = {"type": "function", "function": {"name": "tune", "parameters": {"type": "object", "properties": {}}}}
    both(3, tools=[tool], stop=["\n"], temperature=0.5)
    (body,) = server.asked
    assert body["tools"] == [tool]
    assert (body["stop"], body["temperature"], body["n"]) == (["\n"], 0.5, 3)


def test_more_than_128_are_asked_for_in_parts(server, both):
    replies = both(300)
    assert sorted(server.counts) == [44, 128, 128]
    assert len({reply.text for reply in replies}) == 300
    assert billed(replies) == (3 * READ, 300 * WRITTEN)


def test_the_auctions_seed_does_not_reach_the_provider(server, both):
    both(3, seed=7)
    assert "seed" not in server.asked[0]


def test_the_users_seed_does_and_is_another_for_every_request(server, both):
    server.answer = few(2)
    replies = both(6, settings={"seed": 7}, seed=1)
    assert sorted(body["seed"] for body in server.asked) == [7, 13, 15]
    assert len({reply.text for reply in replies}) == 6


def test_a_seed_that_the_user_bound_is_told_apart(server, model):
    native(model(), seed=3).generate([PROMPT], n=2, seed=99)
    assert server.asked[0]["seed"] == 3


def test_the_models_own_n_does_not_multiply_requests(server, both):
    server.answer = few(1)
    assert len(both(3, settings={"n": 4})) == 3
    assert server.counts == [3, None, None]


def test_a_streaming_model_does_not_stream_many_replies(server, model):
    assert len(draw(model(streaming=True), 3)) == 3
    (body,) = server.asked
    assert (body["n"], body["stream"]) == (3, False)


def test_a_streaming_model_streams_the_repeats(server, model):
    server.answer = refuse_n(400)
    replies = draw(model(streaming=True), 3)
    assert len({reply.text for reply in replies}) == 3
    assert [body["stream"] for body in server.asked] == [False, True, True, True]
    assert {reply.response_metadata["model_name"] for reply in replies} == {MODEL}


def test_no_cache_makes_copies_of_a_draw(server, model):
    set_llm_cache(InMemoryCache())
    try:
        chat = model(cache=True)
        replies = [*draw(chat, 3), *draw(chat, 3)]
    finally:
        set_llm_cache(None)
    assert len({reply.text for reply in replies}) == 6


def test_the_rate_limiter_counts_requests(server, both):
    limiter = Limiter()
    server.answer = few(2)
    both(6, settings={"rate_limiter": limiter})
    assert limiter.acquired == len(server.asked) == 3


def test_a_response_format_is_asked_for_one_by_one(server, both):
    """The provider's package keeps what it parsed on the first of many replies alone."""
    replies = both(3, response_format=Answer)
    assert server.counts == [None, None, None]
    assert all(isinstance(reply.additional_kwargs["parsed"], Answer) for reply in replies)


def test_keywords_of_the_responses_api_are_asked_for_one_by_one(server, model):
    server.answer = refuse(400)
    with pytest.raises(CandidatesError):
        draw(model(), 2, reasoning={"effort": "low"})
    assert server.counts == [None, None]


# What comes back.


def test_usage_is_counted_once(both):
    assert billed(both(3)) == (READ, 3 * WRITTEN)


def test_every_reply_names_its_model_and_how_it_ended(both):
    replies = both(3)
    for reply in replies:
        kept = {name: reply.response_metadata[name] for name in ("model_name", "model_provider", "finish_reason", "id")}
        assert kept == {
            "model_name": MODEL, "model_provider": "openai", "finish_reason": "stop", "id": "chatcmpl-1",
        }  # fmt: skip
        assert "token_usage" not in reply.response_metadata
    assert len({reply.id for reply in replies}) == 3


def test_every_reply_has_its_own_ending_and_log_probs(server, both):
    def mixed(body):
        status, answer = complete(body)
        answer["choices"][0]["finish_reason"] = "length"
        answer["choices"][1]["logprobs"]["content"][0]["logprob"] = -3.0
        return status, answer

    server.answer = mixed
    first, second = both(2, logprobs=True)
    assert [reply.response_metadata["finish_reason"] for reply in (first, second)] == ["length", "stop"]
    figures = [reply.response_metadata["logprobs"]["content"][0]["logprob"] for reply in (first, second)]
    assert figures == [-0.5, -3.0]


@pytest.mark.parametrize("most", [1, 3, 100])
def test_a_provider_that_sends_fewer_is_asked_for_the_rest(server, both, most):
    heard = []
    server.answer = few(most)
    replies = both(8, progress=lambda done, total: heard.append((done, total)))
    assert len({reply.text for reply in replies}) == 8
    assert (
        Counter(server.counts)
        == {
            1: Counter([8, *[None] * 7]),
            3: Counter([8, 3, 2]),
            100: Counter([8]),
        }[most]
    )
    assert billed(replies) == (len(server.asked) * READ, 8 * WRITTEN)
    assert heard == ([(8, 8)] if most == 100 else [(most, 8), (8, 8)])


def test_what_is_sent_beyond_is_paid_for_and_left_out(server, both):
    server.answer = lambda body: complete(body, n=5)
    replies = both(3)
    assert len(replies) == 3
    assert billed(replies) == (READ, 5 * WRITTEN)


@pytest.mark.parametrize("most", [1, 2])
def test_repeats_are_concurrent_up_to_the_limit(server, model, most):
    server.answer, server.delay = few(1), 0.05
    native(model(), max_concurrency=most).generate([PROMPT], n=7)
    assert server.busiest == most


def test_repeats_are_concurrent(server, both):
    server.answer, server.delay = few(1), 0.2
    both(4)
    assert server.busiest == 3


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_provider_that_refuses_n_is_asked_for_single_replies(server, both, status):
    server.answer = refuse_n(status)
    failures = []
    replies = both(5, failed=failures.append)
    assert len({reply.text for reply in replies}) == 5
    assert server.counts == [5, *[None] * 5]
    assert billed(replies) == (5 * READ, 5 * WRITTEN)
    assert failures == []


def test_a_refusal_of_something_else_is_found_out_by_one_more_request(server, both):
    server.answer = refuse(400, "no such parameter")
    with pytest.raises(CandidatesError, match=r"None of 8 replies .* ChatOpenAI.*no such parameter") as failed:
        both(8)
    assert server.counts == [8, None]
    (cause,) = failed.value.causes
    assert isinstance(cause, openai.BadRequestError)


# What fails.


def test_a_passing_failure_is_repeated_by_the_model_itself(server, both):
    server.script = [refuse(429)]
    replies = both(3, settings={"max_retries": 2})
    assert server.counts == [3, 3]
    assert billed(replies) == (READ, 3 * WRITTEN)


@pytest.mark.parametrize("status", [500, 401, 429])
def test_a_failure_of_everything_is_an_error_with_its_causes(server, both, status):
    server.answer = refuse(status, "out of order")
    with pytest.raises(
        CandidatesError, match=r"None of 200 replies .* failed with: \w+Error: .*out of order"
    ) as failed:
        both(200)
    assert [cause.status_code for cause in failed.value.causes] == [status, status]
    assert len(server.asked) == 2


def test_survivors_are_kept_and_the_failures_told(server, both):
    server.answer = lambda body: refuse(500)(body) if body["n"] == 128 else complete(body)
    failures = []
    replies = both(140, failed=failures.append)
    assert len(replies) == 12
    assert billed(replies) == (READ, 12 * WRITTEN)
    assert [failure.status_code for failure in failures] == [500]
    assert len(server.asked) == 2
    assert len(both(140)) == 12


def test_a_sole_survivor_carries_no_exception_in_its_metadata(server, both):
    server.script = [few(1), refuse(500), refuse(500)]
    failures = []
    (reply,) = both(3, failed=failures.append)
    assert len(failures) == 2
    assert reply.model_dump_json()


def test_a_provider_that_sends_no_reply_ends_in_an_error(server, both):
    server.answer = few(0)
    with pytest.raises(CandidatesError, match="answered without a reply"):
        both(3)
    assert server.counts == [3]


@pytest.mark.parametrize("n", [0, -1])
def test_less_than_one_reply_is_no_question(server, model, n):
    with pytest.raises(ConfigurationError, match="at least 1"):
        draw(model(), n)
    assert server.asked == []


# In LangChain.


def test_it_is_traced_as_one_run_of_the_inner_model(server, model):
    server.answer = few(2)
    listener, plain = Listener(), Listener()
    chat = model(callbacks=[listener], tags=["mine"], metadata={"team": "a"}, temperature=0.5)
    draw(chat, 5, seed=3, progress=lambda *_: None)
    chat.model_copy(update={"callbacks": [plain]}).invoke(PROMPT)
    ((serialized, heard),), ((expected, theirs),) = listener.started, plain.started
    assert serialized == expected
    assert serialized["name"] == "ChatOpenAI"
    assert (heard["tags"], heard["metadata"]) == (theirs["tags"], theirs["metadata"])
    ours = dict(heard["invocation_params"])
    assert ours.pop("n") == 5
    theirs["invocation_params"].pop("n", None)
    assert ours == theirs["invocation_params"]
    (ended,) = listener.ended
    assert len(ended.generations[0]) == 5


def test_its_run_has_the_inner_models_names(model):
    chat = model()
    many = native(chat)
    assert many._llm_type == chat._llm_type
    assert many._get_ls_params(stop=["."], temperature=0.3) == chat._get_ls_params(stop=["."], temperature=0.3)
    assert many.get_name() == chat.get_name() == "ChatOpenAI"
    assert many._identifying_params == chat._identifying_params
    assert KEY not in repr(many) + str(many._serialized)


def test_a_usage_handler_counts_what_was_billed(server, model):
    server.answer = few(2)
    handler = UsageMetadataCallbackHandler()
    with get_usage_metadata_callback() as context:
        native(model()).generate([PROMPT], n=5, callbacks=[handler])
    for counted in (handler.usage_metadata, context.usage_metadata):
        assert counted.keys() == {MODEL}
        assert counted[MODEL]["input_tokens"] == 3 * READ
        assert counted[MODEL]["output_tokens"] == 5 * WRITTEN


def test_the_llm_output_is_the_whole_bill(server, model):
    server.answer = few(2)
    output = native(model()).generate([PROMPT], n=5).llm_output
    assert output["token_usage"] == {
        "prompt_tokens": 3 * READ, "completion_tokens": 5 * WRITTEN, "total_tokens": 3 * READ + 5 * WRITTEN,
    }  # fmt: skip


def counted(reasoning=0, **changes):
    details = {"completion_tokens_details": {"reasoning_tokens": reasoning}}
    return {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, **details, **changes}


USAGES = [
    counted(1), counted(None), counted(completion_tokens_details=None, cost=None), counted(total_tokens=None, cost=1),
    None, counted(1.0, prompt_tokens=1.0, completion_tokens=2.0, total_tokens=3.0, cost=0.25),
]  # fmt: skip


@pytest.mark.parametrize("order", range(len(USAGES)))
def test_usage_of_any_shape_costs_no_reply(server, both, order):
    def one(usage):
        return lambda body: (200, {**complete(body, n=1)[1], "usage": usage})

    server.script = [one(usage) for usage in (*USAGES[order:], *USAGES[:order])]
    server.answer = one(USAGES[0])
    replies = both(8)
    assert len(replies) == 8
    assert billed(replies) == (7, 14)
    assert replies[0].usage_metadata["total_tokens"] == 21
    assert replies[0].usage_metadata["output_token_details"]["reasoning"] == 4


def test_the_model_is_not_changed(model):
    chat = model(n=2, cache=True)
    draw_from = native(chat, seed=4)
    assert (chat.n, chat.cache, chat.seed) == (2, True, None)
    assert (draw_from.inner.n, draw_from.inner.cache, draw_from.inner.seed) == (None, False, 4)
