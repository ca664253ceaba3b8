"""Whole auctions over the real ChatOpenAI, against a real HTTP server that answers as the provider does."""

import httpx
import pytest
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_openai import ChatOpenAI

from llm_auction_chain import Agent, AuctionRunnable, AuctionWarning, CandidatesError, ChatAuction, Sampling
from tests.integration.provider import MODEL, READ, WRITTEN, complete, few, provider, refuse, refuse_n

M = 8
AGENTS = [Agent("A", lambda prompt, reply: float(reply.text.endswith("1"))), Agent("B", lambda prompt, reply: 0.5)]


@pytest.fixture
def server():
    with provider() as served:
        yield served


@pytest.fixture
def model(server):
    with httpx.Client() as client:
        yield ChatOpenAI(model="m", api_key="sk", base_url=server.url, http_client=client, max_retries=0)


def auction(model, **settings):
    return AuctionRunnable(model=model, **{"agents": AGENTS, "n_candidates": M, "seed": 3, **settings})


class Runs(BaseCallbackHandler):
    def __init__(self):
        self.models = []

    def on_chat_model_start(self, *args, tags=None, **kwargs):
        self.models.append(tags)


def test_one_request_draws_all_candidates_and_is_billed_once(server, model):
    usage, runs = UsageMetadataCallbackHandler(), Runs()
    result = auction(model).run("Hi", {"callbacks": [usage, runs]})
    assert server.counts == [M]
    assert result.draws == result.distinct_replies == M
    total = READ + M * WRITTEN
    assert result.reply.usage_metadata["total_tokens"] == result.usage["total_tokens"] == total
    assert usage.usage_metadata[MODEL]["total_tokens"] == total
    assert result.reply.response_metadata["model_name"] == MODEL
    assert len(runs.models) == 1
    assert "nostream" in runs.models[0]


def test_repeats_are_drawn_where_they_are_asked_for_no_more_at_once_than_allowed(server, model):
    server.delay = 0.05
    usage = UsageMetadataCallbackHandler()
    result = auction(model, sampling=Sampling(native_n=False)).run("Hi", {"callbacks": [usage], "max_concurrency": 2})
    assert server.counts == [None] * M
    assert server.busiest <= 2
    assert result.usage["total_tokens"] == usage.usage_metadata[MODEL]["total_tokens"] == M * (READ + WRITTEN)


@pytest.mark.parametrize("answer", [few(3), few(1), refuse_n(400)])
def test_a_provider_that_gives_fewer_is_topped_up(server, model, answer):
    server.answer = answer
    result = auction(model).run("Hi")
    assert result.draws == result.distinct_replies == M
    assert result.failures == ()


def test_what_was_bound_to_the_model_reaches_the_provider_and_the_auctions_seed_does_not(server, model):
    auction(model.bind(stop=["\n"]).with_config(tags=["mine"]).with_retry()).run("Hi")
    (body,) = server.asked
    assert body["stop"] == ["\n"]
    assert "seed" not in body


@pytest.mark.parametrize("native_n", [True, False])
def test_a_provider_seed_makes_no_copies_of_a_draw(server, model, native_n):
    server.answer = few(1)
    result = auction(model.bind(seed=4), sampling=Sampling(native_n=native_n)).run("Hi")
    assert result.draws == result.distinct_replies == M


def test_draws_that_are_all_the_same_are_warned_about(server, model):
    server.answer = lambda body: complete({**body, "number": 1}, n=1)
    with pytest.warns(AuctionWarning, match="All 8 draws are the same reply"):
        auction(model, sampling=Sampling(native_n=False)).run("Hi")


@pytest.mark.parametrize("model_kwargs", [{}, {"stop": ["x"]}])
def test_an_n_of_the_models_own_bills_no_reply_that_nobody_draws(server, model, model_kwargs):
    several = model.model_copy(update={"n": 3, "model_kwargs": model_kwargs})
    for chat in (several, several.bind(n=3), several.with_fallbacks([model])):
        server.asked.clear()
        result = auction(chat, sampling=Sampling(native_n=False)).run("Hi")
        assert {body.get("n") or 1 for body in server.asked} == {1}
        assert result.usage["output_tokens"] == M * WRITTEN
        assert [body.get("stop") for body in server.asked] == [model_kwargs.get("stop")] * M


def test_failed_requests_leave_survivors_and_keep_their_causes(server, model):
    server.script = [few(1), complete, refuse(500), complete]
    result = auction(model, sampling=Sampling(min_candidates=6)).run("Hi")
    assert (result.draws, len(result.failures)) == (M - 1, 1)
    server.answer = refuse(500)
    with pytest.raises(CandidatesError) as caught:
        auction(model).run("Hi")
    assert caught.value.causes


@pytest.mark.parametrize("interface", [AuctionRunnable, ChatAuction])
@pytest.mark.parametrize("native_n", [True, False])
def test_usage_of_any_shape_costs_no_reply(server, model, interface, native_n):
    def answer(body):
        status, answer = few(1)(body)
        reasoning = (None, 1, 0.5)[body["number"] % 3]
        details = {"completion_tokens_details": {"reasoning_tokens": reasoning}}
        return status, {**answer, "usage": {**answer["usage"], **details} if body["number"] % 4 else None}

    server.answer = answer
    settings = {"agents": AGENTS, "n_candidates": M, "sampling": Sampling(native_n=native_n), "seed": 3}
    held = interface(model=model, **settings)
    for reply in (held.invoke("Hi"), *held.stream("Hi")):
        assert reply.usage_metadata["input_tokens"] == 6 * READ
        assert reply.response_metadata["auction"]["diagnostics"]["candidates"] == M


async def test_the_async_twin_is_billed_once_too(server):
    async with httpx.AsyncClient() as client:
        model = ChatOpenAI(model="m", api_key="sk", base_url=server.url, http_async_client=client, max_retries=0)
        result = await auction(model).arun("Hi")
    assert server.counts == [M]
    assert result.usage["total_tokens"] == READ + M * WRITTEN
