"""Tools and formats, in every provider's words."""

import json
from typing import Any

import pytest
from langchain.agents import create_agent
from pydantic import BaseModel

from llm_auction_chain import AuctionMiddleware, ChatAuction, Disclosure
from tests.providers.servers import MODELS, TEXTS, THINKING, Said, offered
from tests.providers.test_replies import AGENTS, INTERFACES, M, auction, by_every_way

SHAPE = {"type": "object", "properties": {"school": {"type": "string"}}, "required": ["school"]}
TOLD = Disclosure(text="Ad: {sponsors}.", place="end")
JSON = {"response_format": {"type": "json_object"}}
OPENAI = {"format": {"type": "json_object"}}
ANTHROPIC = {"format": {"type": "json_schema", "schema": SHAPE}}
GEMINI = {"response_mime_type": "application/json"}
FORMATS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [  # provider, of the constructor, of a call
    *((name, {"model_kwargs": JSON}, {}) for name in ("openai", "mistral", "groq")),
    *((name, {}, JSON) for name in ("openai", "responses", "mistral", "groq", "ollama")),
    ("openai", {"extra_body": {"guided_json": SHAPE}}, {}),
    ("responses", {"model_kwargs": {"text": OPENAI}}, {}),
    ("responses", {}, {"text": OPENAI}),
    ("anthropic", {"output_config": ANTHROPIC}, {}),
    ("anthropic", {"output_config": ANTHROPIC}, {"output_config": {"effort": "low"}}),
    ("anthropic", {"model_kwargs": {"output_config": ANTHROPIC}}, {}),
    ("anthropic", {}, {"output_config": ANTHROPIC}),
    ("anthropic", {}, {"response_format": {"type": "json_schema", "json_schema": {"name": "S", "schema": SHAPE}}}),
    ("ollama", {"format": "json"}, {}),
    ("ollama", {"format": SHAPE}, {}),
    ("ollama", {}, {"format": "json"}),
    ("gemini", GEMINI, {}),
    ("gemini", {**GEMINI, "response_schema": SHAPE}, {}),
    ("gemini", {}, GEMINI),
    ("gemini", {}, {"generation_config": GEMINI}),
]
PLAIN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("openai", {}, {"response_format": {"type": "text"}}),
    ("responses", {"verbosity": "low"}, {"text": {"format": {"type": "text"}}}),
    ("anthropic", {"output_config": {"effort": "low"}}, {}),
    ("ollama", {"format": ""}, {}),
    ("gemini", {"response_mime_type": "text/plain"}, {}),
    ("openai", {"model_kwargs": JSON}, {"response_format": {"type": "text"}}),
]
AS_ASKED = (*FORMATS, *PLAIN)


class Lesson(BaseModel):
    """A lesson."""

    school: str


def book(school: str) -> str:
    """Book a lesson."""
    return f"Booked {school}."


def in_shape(k, body):
    """Answer with a lesson, as a call of the first tool or as text."""
    lesson = {"school": TEXTS[k % 4]}
    return Said(calls=((offered(body)[0], lesson),)) if offered(body) else Said(json.dumps(lesson))


@pytest.mark.filterwarnings("ignore:Parameters .* should be specified explicitly:UserWarning")
@pytest.mark.parametrize("asked", AS_ASKED, ids=[f"{name}-{[*own, *bound]}" for name, own, bound in AS_ASKED])
def test_a_disclosure_stays_out_of_a_reply_in_a_format_that_was_asked_for(server, asked):
    provider, own, bound = asked
    server.restart(lambda k, body: Said(json.dumps({"school": TEXTS[k % 4]})))
    model = MODELS[provider](server.url, **own)
    for auctioned in (
        auction(ChatAuction, model.bind(**bound), disclosure=TOLD),
        auction(ChatAuction, model, disclosure=TOLD).bind(**bound),
    ):
        reply = auctioned.invoke("Reply in JSON")
        assert reply.response_metadata["auction"]["disclosure"]
        if asked in FORMATS:
            assert json.loads(reply.text)["school"] in TEXTS
        else:
            assert reply.text.endswith("Ad: TuneTown.")


@INTERFACES
async def test_structured_output_is_auctioned_and_parsed(server, provider, interface):
    server.restart(in_shape)
    chain = auction(interface, MODELS[provider](server.url), disclosure=TOLD).with_structured_output(Lesson)
    for lesson in (chain.invoke("Which?"), await chain.ainvoke("Which?"), *chain.batch(["Which?", "Where?"])):
        assert lesson.school in TEXTS
    raw = auction(interface, MODELS[provider](server.url)).with_structured_output(Lesson, include_raw=True)
    said = raw.invoke("Which?")
    assert (said["parsing_error"], said["parsed"].school in TEXTS) == (None, True)
    assert said["raw"].response_metadata["auction"]["diagnostics"]["candidates"] == M


@INTERFACES
async def test_where_tools_are_offered_the_model_alone_answers(server, provider, interface):
    server.restart(lambda k, body: Said(calls=(("book", {"school": TEXTS[k % 4]}),)))
    async for reply in by_every_way(auction(interface, MODELS[provider](server.url)).bind_tools([book])):
        held = reply.response_metadata["auction"]
        assert (held["bypassed"], held["diagnostics"]["candidates"], held["payments"]) == (True, 1, [])
        assert reply.tool_calls[0]["name"] == "book"


def test_tools_in_the_constructor_are_offered_too(server):
    search = {"model_kwargs": {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}}
    functions = {"model_kwargs": {"functions": [{"name": "f", "parameters": {}}]}}
    for provider, settings in (("anthropic", search), ("openai", functions)):
        held = auction(ChatAuction, MODELS[provider](server.url, **settings)).invoke("Hi").response_metadata["auction"]
        assert held["bypassed"]


def test_a_legacy_function_call_is_not_sold(server):
    called = {"function_call": {"name": "f", "arguments": "{}"}}
    server.restart(lambda k, body: Said(extra=called) if k % 2 else Said(TEXTS[k % 4]))
    held = auction(ChatAuction, MODELS["openai"](server.url)).invoke("Hi").response_metadata["auction"]
    assert (held["bypassed"], held["payments"]) == (True, [])


@pytest.mark.parametrize("settings", [{}, {"on_tool_calls": "auction"}])
@pytest.mark.parametrize("thinks", [False, True])
async def test_an_agent_calls_its_tools_and_ends_with_an_auctioned_reply(server, provider, settings, thinks):
    if thinks and provider not in THINKING:
        pytest.skip("its wire format has no thinking")

    def turns(k, body):
        thinking = "Hm." if thinks else None
        if "Booked" in json.dumps(body):
            return Said(TEXTS[k % 4], thinking=thinking)
        return Said(TEXTS[k % 4], thinking=thinking, calls=(("book", {"school": "TuneTown"}),))

    server.restart(turns)
    model = MODELS[provider](server.url, **(THINKING[provider] if thinks else {}))
    middleware = AuctionMiddleware(AGENTS, n_candidates=M, seed=7, disclosure=TOLD, **settings)
    agent = create_agent(model, tools=[book], middleware=[middleware])
    for state in (agent.invoke({"messages": ["Hi"]}), await agent.ainvoke({"messages": ["Hi"]})):
        _, called, result, last = state["messages"]
        assert called.tool_calls[0]["args"] == {"school": "TuneTown"}
        assert result.content == "Booked TuneTown."
        assert last.text.split("\n")[0] in TEXTS
        assert [held["bypassed"] for held in state["auctions"]] == [not settings] * 2
