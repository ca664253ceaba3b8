"""Every way to call an auction, over every provider's package."""

import pytest

from llm_auction_chain import Agent, AuctionRunnable, ChatAuction, Disclosure
from tests.providers.servers import MODELS, READ, TEXTS, THINKING, WRITTEN, Said

INTERFACES = pytest.mark.parametrize("interface", [AuctionRunnable, ChatAuction])
AGENTS = [
    Agent("TuneTown", lambda prompt, reply: 3.0 * ("TuneTown" in reply.text)),
    Agent("StringSchool", lambda prompt, reply: 2.0 * ("StringSchool" in reply.text)),
]
M = 4


def auction(interface, model, **settings):
    return interface(model=model, **{"agents": AGENTS, "n_candidates": M, "seed": 7, **settings})


def merged(chunks):
    first, *rest = chunks
    for chunk in rest:
        first += chunk
    return first


async def by_every_way(runnable):
    """Yield the reply of each way to call it."""
    yield runnable.invoke("Hi")
    yield await runnable.ainvoke("Hi")
    for reply in (*runnable.batch(["Hi", "Ho"]), *await runnable.abatch(["Hi", "Ho"])):
        yield reply
    yield merged(list(runnable.stream("Hi")))
    yield merged([chunk async for chunk in runnable.astream("Hi")])


@INTERFACES
async def test_every_way_to_call_returns_a_reply_that_was_auctioned_and_counted(server, provider, interface):
    requests = 1 if provider == "openai" else M  # which draws all replies in one request
    async for reply in by_every_way(auction(interface, MODELS[provider](server.url))):
        held = reply.response_metadata["auction"]
        assert reply.text in TEXTS
        assert [payment["agent"] for payment in held["payments"]] == ["TuneTown", "StringSchool"]
        assert (held["diagnostics"]["candidates"], held["bypassed"]) == (M, False)
        used = reply.usage_metadata
        assert (used["input_tokens"], used["output_tokens"]) == (READ * requests, WRITTEN * M)
    assert len(server.asked) == requests * 8


@INTERFACES
async def test_usage_that_a_provider_does_not_tell_costs_no_reply(server, provider, interface):
    server.restart(lambda k, body: Said(TEXTS[k % 4], counted=k % 2 == 0))
    async for reply in by_every_way(auction(interface, MODELS[provider](server.url))):
        assert reply.text in TEXTS
        assert reply.response_metadata["auction"]["diagnostics"]["candidates"] == M


@pytest.mark.filterwarnings("ignore:All 4 draws are the same reply")  # where auctions of a batch take turns
@pytest.mark.parametrize("provider", THINKING)
@pytest.mark.parametrize("place", ["start", "end"])
@INTERFACES
async def test_a_reply_that_was_thought_about_says_its_text_and_the_disclosure(server, provider, interface, place):
    server.restart(lambda k, body: Said(TEXTS[k % 4], thinking="Hm."))
    model = MODELS[provider](server.url, **THINKING[provider])
    told = Disclosure(text="Ad: {sponsors}.", place=place)
    async for reply in by_every_way(auction(interface, model, disclosure=told)):
        held = reply.response_metadata["auction"]
        ad, said = held["disclosure"], TEXTS
        assert ad == (f"Ad: {', '.join(held['sponsors'])}." if held["sponsored"] else "")
        if ad:
            said = [f"{ad}\n\n{text}" if place == "start" else f"{text}\n\n{ad}" for text in said]
        assert str(reply.text) in said
        first = reply.content[0] if isinstance(reply.content, list) else {"type": "thinking"}
        assert first["type"] in ("thinking", "reasoning")


@pytest.mark.filterwarnings("ignore:All 4 draws are the same reply")
@pytest.mark.parametrize("streaming", [False, True])
def test_equal_replies_are_one_candidate_whatever_ids_and_signatures_they_have(server, provider, streaming):
    settings = dict(THINKING.get(provider, {}))
    if streaming and provider != "ollama":
        settings["streaming"] = True
    server.restart(lambda k, body: Said("Hi", thinking="", calls=(("f", {"a": 1, "b": 2}),)))
    result = auction(AuctionRunnable, MODELS[provider](server.url, **settings), on_tool_calls="auction").run("Hi")
    assert (result.draws, result.distinct_replies) == (M, 1)
    if provider in THINKING:
        server.restart(lambda k, body: Said("Hi", thinking="So."))
        model = MODELS[provider](server.url, **settings)
        assert auction(AuctionRunnable, model).run("Hi").distinct_replies == 1


@pytest.mark.parametrize("kinds", [
    (Said("Hi"), Said("Hi", cut=True)),
    (Said("Hi"), Said("Hi", filtered=True)),
    (Said(thinking="So.", text="Hi"), Said(thinking="Hm.", text="Hi")),
    (Said(refusal="I may not."), Said(refusal="I cannot.")),
    (Said(extra={"function_call": {"name": "f", "arguments": '{"a": 1}'}}),
     Said(extra={"function_call": {"name": "f", "arguments": '{"a": 2}'}})),
    (Said(extra={"audio": {"id": "a", "data": "eA==", "expires_at": 1, "transcript": "x"}}),
     Said(extra={"audio": {"id": "a", "data": "eQ==", "expires_at": 1, "transcript": "x"}})),
], ids=["cut", "filtered", "thought", "refused", "legacy call", "audio"])  # fmt: skip
def test_replies_that_user_or_agents_can_tell_apart_are_candidates_of_their_own(server, provider, kinds, request):
    kind = request.node.callspec.id.split("-")[-1]
    able = {
        "filtered": {"openai", "responses", "mistral", "groq", "gemini", "anthropic"}, "thought": {*THINKING},
        "refused": {"openai", "responses"}, "legacy call": {"openai"}, "audio": {"openai"},
    }  # fmt: skip
    if provider not in able.get(kind, MODELS):
        pytest.skip("its wire format has no such thing")
    server.restart(lambda k, body: kinds[k % 2])
    model = MODELS[provider](server.url, **THINKING.get(provider, {}))
    result = auction(AuctionRunnable, model, on_tool_calls="auction").run("Hi")
    assert (result.draws, result.distinct_replies) == (M, 2)
