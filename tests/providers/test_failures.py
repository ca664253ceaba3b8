"""What becomes of an auction when a provider fails, and of an agent's middleware that mends it."""

import json

import pytest
from deepagents import create_deep_agent
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware, ModelRetryMiddleware, SummarizationMiddleware
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.exceptions import ModelError

from llm_auction_chain import AuctionMiddleware, CandidatesError, ChatAuction, Sampling
from tests.providers.servers import MODELS, READ, TEXTS, WRITTEN, BrokenOff, Failed, Said
from tests.providers.test_replies import AGENTS, INTERFACES, M, auction

SINGLE = {"sampling": Sampling(native_n=False)}
LATER = {"Retry_After": "1"}
FAILURES = {"busy": Failed(429, headers=LATER), "refused": Failed(401, "bad key"), "broken": Failed(503, "overloaded")}


def said(k):
    return Said(TEXTS[k % 4])


def raised(call):
    with pytest.raises(Exception) as error:  # noqa: PT011 - any provider's
        call()
    return error.value


@INTERFACES
@pytest.mark.parametrize("kind", FAILURES)
async def test_where_all_draws_fail_the_error_is_of_the_providers_class(server, provider, interface, kind):
    server.restart(lambda k, body: FAILURES[kind])
    model = MODELS[provider](server.url)
    own = raised(lambda: model.invoke("Hi"))
    error = raised(lambda: auction(interface, model).invoke("Hi"))
    assert isinstance(error, CandidatesError)
    assert isinstance(error, type(own))
    assert isinstance(error, ModelError) is isinstance(own, ModelError)
    assert getattr(error, "is_retryable", None) == getattr(own, "is_retryable", None)
    assert str(own) in str(error.__cause__)
    if (response := getattr(own, "response", None)) is not None and kind == "busy":
        assert response.headers["retry-after"] == error.response.headers["retry-after"] == "1"
    with pytest.raises(type(own)):
        await auction(interface, model).ainvoke("Hi")


@INTERFACES
async def test_draws_that_fail_leave_the_others_to_the_auction(server, provider, interface):
    server.restart(lambda k, body: Failed(429) if k % 2 else said(k))
    model = MODELS[provider](server.url)
    for result in (auction(interface, model, **SINGLE).run("Hi"), await auction(interface, model, **SINGLE).arun("Hi")):
        assert (result.draws, len(result.failures)) == (M // 2, M // 2)
        assert result.reply.text in TEXTS


@INTERFACES
async def test_a_stream_that_breaks_off_is_a_draw_that_failed(server, provider, interface):
    server.restart(lambda k, body: BrokenOff(said(k)) if k % 2 else said(k))
    streaming = {} if provider == "ollama" else {"streaming": True}
    model = MODELS[provider](server.url, **streaming)
    for result in (auction(interface, model, **SINGLE).run("Hi"), await auction(interface, model, **SINGLE).arun("Hi")):
        assert (result.draws, len(result.failures)) == (M // 2, M // 2)
        assert result.reply.text in TEXTS


def agent(model, *middleware):
    return create_agent(model, tools=[], middleware=[*middleware, AuctionMiddleware(AGENTS, n_candidates=M, seed=7)])


RETRY = ModelRetryMiddleware(max_retries=2, initial_delay=0.01, jitter=False, on_failure="error")


async def test_the_retry_middleware_holds_the_auction_again(server, provider):
    draws = 1 if provider == "openai" else M
    model = MODELS[provider](server.url)

    def busy_at_first(k, body):
        return Failed(503) if len(server.asked) <= draws else said(k)

    for run in (agent(model, RETRY).invoke, agent(model, RETRY).ainvoke):
        server.restart(busy_at_first)
        state = run({"messages": ["Hi"]})
        state = state if isinstance(state, dict) else await state
        assert state["messages"][-1].text in TEXTS
        assert len(state["auctions"]) == 1


async def test_the_fallback_middleware_auctions_the_other_model(server, provider):
    other = "anthropic" if provider == "openai" else "openai"
    server.restart(lambda k, body: Failed(503) if body.get("model") != name_of(other) else said(k))
    fallback = ModelFallbackMiddleware(MODELS[other](server.url))
    state = await agent(MODELS[provider](server.url), fallback).ainvoke({"messages": ["Hi"]})
    assert state["messages"][-1].response_metadata["model_name"] == name_of(other)
    assert len(state["auctions"]) == 1


def name_of(provider):
    return {"openai": "gpt-4o-mini", "anthropic": "claude-sonnet-4-5"}[provider]


async def test_the_summarisation_middleware_asks_the_model_itself(server, provider):
    server.restart(lambda k, body: said(k))
    model = MODELS[provider](server.url)
    summary = SummarizationMiddleware(model=model, trigger=("messages", 4), keep=("messages", 1))
    state = await agent(model, summary).ainvoke({"messages": ["Hi", ("ai", "Ho"), "Hi", ("ai", "Ho"), "Hi"]})
    assert len(state["messages"]) == 3  # the summary, the last question, the reply
    assert len(state["auctions"]) == 1


@pytest.mark.parametrize("settings", [{}, {"on_tool_calls": "auction"}])
def test_a_deep_agent_summarises_when_the_prompt_is_too_long(server, settings):
    def short_of_room(k, body):
        too_long = body.get("tools") and len(json.dumps(body["messages"])) > 70_000
        return Failed(400, "prompt is too long: 300000 tokens > 200000 maximum") if too_long else said(k)

    server.restart(short_of_room)
    model = auction(ChatAuction, MODELS["anthropic"](server.url), **settings)
    turns = [(role, f"turn {k} " + "words " * 300) for k, role in enumerate(["human", "ai"] * 20 + ["human"])]
    state = create_deep_agent(model=model).invoke({"messages": turns})
    assert state["messages"][-1].text in TEXTS


@INTERFACES
async def test_usage_is_booked_under_each_provider_that_was_billed(server, interface):
    def busy_every_other_time(k, body):
        return Failed(429) if k % 2 and "gpt" in body["model"] else said(k)

    for call in ("invoke", "ainvoke"):
        server.restart(busy_every_other_time)
        model = MODELS["openai"](server.url).with_fallbacks([MODELS["anthropic"](server.url)])
        usage = UsageMetadataCallbackHandler()
        reply = getattr(auction(interface, model, **SINGLE), call)("Hi", {"callbacks": [usage]})
        reply = await reply if call == "ainvoke" else reply
        counts = {name: used["total_tokens"] for name, used in usage.usage_metadata.items()}
        assert set(counts) == {"gpt-4o-mini", "claude-sonnet-4-5"}
        assert sum(counts.values()) == reply.usage_metadata["total_tokens"] == M * (READ + WRITTEN)
