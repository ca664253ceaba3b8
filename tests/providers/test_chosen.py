"""Models that the call chooses: tools and schemas are put into the words of the provider that is chosen."""

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain.chat_models import init_chat_model
from langchain_core.runnables import ConfigurableField

from llm_auction_chain import AuctionMiddleware, AuctionRunnable, ConfigurationError
from tests.providers.servers import MODELS, TEXTS, Failed, Said, offered
from tests.providers.test_replies import AGENTS, INTERFACES, M, auction
from tests.providers.test_tools import Lesson, book, in_shape

OF_LANGCHAIN = {
    "openai": "openai",
    "anthropic": "anthropic",
    "ollama": "ollama",
    "groq": "groq",
    "gemini": "google_genai",
}


def alternatives(server):
    """Return a model that each call chooses by provider, and the config of a call."""
    made = {name: model(server.url) for name, model in MODELS.items()}
    first = made.pop("openai")
    chosen = first.configurable_alternatives(ConfigurableField(id="by"), default_key="openai", **made)
    return chosen.with_retry(stop_after_attempt=2), lambda provider: {"configurable": {"by": provider}}


def unchosen(server):
    """Return a model without a default, and the config of a call."""
    paths = {"openai": "/openai/v1"}

    def config(provider):
        name = MODELS[provider](server.url)._get_ls_params()["ls_model_name"]
        key = {} if provider == "ollama" else {"api_key": "none"}
        url = f"{server.url}{paths.get(provider, f'/{provider}')}"
        return {"configurable": {"model": name, "model_provider": OF_LANGCHAIN[provider], "base_url": url, **key}}

    return init_chat_model(configurable_fields=("model", "model_provider", "base_url", "api_key")), config


CHOICES = pytest.mark.parametrize(("choose", "provider"), [
    *((alternatives, provider) for provider in MODELS), *((unchosen, provider) for provider in OF_LANGCHAIN),
], ids=lambda value: getattr(value, "__name__", value))  # fmt: skip


@INTERFACES
@CHOICES
async def test_tools_are_in_the_words_of_the_model_that_the_call_chooses(server, interface, choose, provider):
    server.restart(lambda k, body: Said(calls=(("book", {"school": TEXTS[k % 4]}),)))
    MODELS[provider](server.url).bind_tools([book]).invoke("Hi")
    (alone,) = server.bodies
    server.restart(lambda k, body: Said(calls=(("book", {"school": TEXTS[k % 4]}),)))
    model, config = choose(server)
    bound = auction(interface, model).bind_tools([book])
    for reply in (bound.invoke("Hi", config(provider)), await bound.ainvoke("Hi", config(provider))):
        assert reply.response_metadata["auction"]["bypassed"]
    assert [body["tools"] for body in server.bodies] == [alone["tools"]] * 2
    held = bound.invoke("Hi", config(provider), on_tool_calls="auction").response_metadata["auction"]
    assert held["diagnostics"]["candidates"] == M


@INTERFACES
@CHOICES
async def test_structured_output_is_that_of_the_model_that_the_call_chooses(server, interface, choose, provider):
    server.restart(in_shape)
    MODELS[provider](server.url).with_structured_output(Lesson).invoke("Hi")
    ((path, alone, _),) = server.asked
    server.restart(in_shape)
    model, config = choose(server)
    chain = auction(interface, model).with_structured_output(Lesson)
    for lesson in (chain.invoke("Hi", config(provider)), await chain.ainvoke("Hi", config(provider))):
        assert lesson.school in TEXTS
    assert [lesson.school in TEXTS for lesson in chain.batch(["Hi", "Ho"], config(provider))] == [True, True]
    assert [lesson.school in TEXTS for lesson in chain.stream("Hi", config(provider))] == [True]
    own = {"n", "seed", "max_tokens", "messages", "contents", "input"}
    assert {name: body for name, body in server.bodies[0].items() if name not in own} == {
        name: body for name, body in alone.items() if name not in own
    }
    assert {asked for asked, _, _ in server.asked} == {path}
    raw = auction(interface, model).with_structured_output(Lesson, include_raw=True).invoke("Hi", config(provider))
    assert raw["parsed"].school in TEXTS
    assert raw["raw"].response_metadata["auction"]["diagnostics"]["candidates"] == M


@INTERFACES
async def test_each_model_parses_the_replies_that_it_made(server, provider, interface):
    def in_turns(k, body):
        return Failed(503) if body.get("model") == "gpt-4o-mini" else in_shape(k, body)

    first = MODELS["openai"](server.url)
    other = MODELS[provider](server.url, **({"model": "gpt-4o"} if provider == "openai" else {}))
    server.restart(in_turns)
    chain = auction(interface, first.with_fallbacks([other])).with_structured_output(Lesson, include_raw=True)
    for said in (chain.invoke("Which?"), await chain.ainvoke("Which?")):
        assert said["parsed"].school in TEXTS
        assert not [name for name in said["raw"].response_metadata if name.startswith("llm_auction_chain")]


@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
def test_an_agent_answers_in_the_shape_that_it_was_given(server, provider, strategy):
    server.restart(in_shape)
    middleware = AuctionMiddleware(AGENTS, n_candidates=M, seed=7)
    agent = create_agent(
        MODELS[provider](server.url), tools=[], middleware=[middleware], response_format=strategy(Lesson)
    )
    assert agent.invoke({"messages": ["Hi"]})["structured_response"].school in TEXTS
    assert bool(offered(server.bodies[0])) is (strategy is ToolStrategy)


def test_a_call_that_chooses_no_model_says_so(server):
    model, _ = unchosen(server)
    for runnable in (auction(AuctionRunnable, model), auction(AuctionRunnable, model).with_structured_output(Lesson)):
        with pytest.raises(ConfigurationError, match="The config of a call chooses this model"):
            runnable.invoke("Hi")
