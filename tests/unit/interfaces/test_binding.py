"""Tools and schemas over an auction: what is bound where, and which replies are auctioned at all."""

import json

import httpx
import pytest
from langchain.chat_models import init_chat_model
from langchain_core.messages import AIMessage
from langchain_core.runnables import ConfigurableField, RouterRunnable, RunnableBranch, RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from llm_auction_chain import Agent, AuctionRunnable, ChatAuction, ConfigurationError, Disclosure
from llm_auction_chain.testing import MarkovChatModel
from tests.integration.provider import complete, provider, refuse
from tests.unit.interfaces.caller import Caller, Replies, Spy, both, calling, numbered

M = 4
INTERFACES = [AuctionRunnable, ChatAuction]
parsed = []


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int

    def model_post_init(self, context):
        parsed.append(self.name)


@tool
def note(text: str) -> str:
    """Note a text."""
    return text


NOTE = {"type": "function", "function": {"name": "note", "parameters": {}}}


def in_shape(body):
    """Answer with people, as content or as calls, under ids and names that no other answer has."""
    status, answer = complete(body)
    for k, choice in enumerate(answer["choices"]):
        said = json.dumps({"name": f"{body['number']}-{k}", "age": 30 + k})
        if "tools" in body:
            function = {"name": body["tools"][0]["function"]["name"], "arguments": said}
            call = {"id": f"call-{body['number']}-{k}", "type": "function", "function": function}
            choice["message"] = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
        else:
            choice["message"]["content"] = said
    return status, answer


@pytest.fixture
def server():
    with provider() as served:
        served.answer = in_shape
        yield served


@pytest.fixture
def model(server):
    with httpx.Client() as client:
        yield ChatOpenAI(model="m", api_key="sk", base_url=server.url, http_client=client, max_retries=0)


def shaped(reply):
    """Return what a schema-shaped reply says, as a mapping."""
    return reply.tool_calls[0]["args"] if reply.tool_calls else json.loads(reply.text)


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("include_raw", [False, True])
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_every_candidate_has_the_schemas_shape_and_the_winner_alone_is_parsed(model, interface, include_raw, method):
    spy, heard = Spy(lambda reply: float(shaped(reply)["age"])), Replies()
    auction = interface(model=model, agents=[spy.agent(), Agent("B", lambda prompt, reply: 1.0)], n_candidates=M)
    chain = auction.with_structured_output(Person, method=method, include_raw=include_raw)
    parsed.clear()
    said = chain.invoke("Reply in JSON", {"callbacks": [heard]})
    held, drawn = heard.only
    person = said["parsed"] if include_raw else said
    assert isinstance(person, Person)
    assert shaped(drawn) == person.model_dump()
    assert [payment["agent"] for payment in held["payments"]] == ["spy", "B"]
    assert not held["bypassed"]
    (candidates,) = spy.shown
    names = sorted(shaped(reply)["name"] for reply in candidates)
    assert len(set(names)) == held["diagnostics"]["candidates"] == M
    # With json_schema the provider's package parses every reply of a request itself; the pipeline adds nothing to it.
    assert sorted(parsed) == (names if method == "json_schema" else [person.name])
    if include_raw:
        assert said["raw"].response_metadata["auction"]["auction_id"] == held["auction_id"]
        assert said["parsing_error"] is None


@pytest.mark.parametrize("interface", INTERFACES)
async def test_the_async_pipeline_is_auctioned_too(server, interface):
    heard = Replies()
    async with httpx.AsyncClient() as client:
        model = ChatOpenAI(model="m", api_key="sk", base_url=server.url, http_async_client=client, max_retries=0)
        auction = interface(model=model, agents=[Spy().agent()], n_candidates=M)
        said = await auction.with_structured_output(Person).ainvoke("Who?", {"callbacks": [heard]})
    held, drawn = heard.only
    assert shaped(drawn) == said.model_dump()
    assert (len(held["payments"]), held["diagnostics"]["candidates"]) == (1, M)


TOLD = {"disclosure": Disclosure(text="Ad: {sponsors}", place="end")}


def check_parsed_as_drawn(reply):
    """Check that the disclosure is in the metadata of a reply and not in its text."""
    assert reply.response_metadata["auction"]["disclosure"] == "Ad: spy"
    assert "Ad" not in str(reply.content)


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_no_disclosure_is_put_into_what_a_schema_parses(model, interface, method):
    agents = [Spy(lambda reply: 100.0 * int(shaped(reply)["name"].replace("-", ""))).agent()]
    auction = interface(model=model, agents=agents, n_candidates=M, **TOLD)
    said = auction.with_structured_output(Person, method=method, include_raw=True).invoke("Reply in JSON")
    assert isinstance(said["parsed"], Person)
    check_parsed_as_drawn(said["raw"])


SHAPE = {"type": "json_schema", "json_schema": {"name": "Person", "schema": Person.model_json_schema()}}
SHAPED = {"response_format": SHAPE}
FORMATS = {
    "in the model": (lambda model: model.bind(**SHAPED), lambda auction: auction, {}),
    "deep in it": (lambda model: model.bind(**SHAPED).with_retry(), lambda auction: auction, {}),
    "in a fallback": (lambda model: model.with_fallbacks([model.bind(**SHAPED)]), lambda auction: auction, {}),
    "with the call": (lambda model: model, lambda auction: auction, SHAPED),
    "by bind": (lambda model: model, lambda auction: auction.bind(**SHAPED), {}),
    "by bind_tools": (lambda model: model, lambda auction: auction.bind_tools([], **SHAPED), {}),
    "by bind_tools around fallbacks": (
        lambda model: model.with_fallbacks([Caller()]), lambda auction: auction.bind_tools([], **SHAPED), {}
    ),
}  # fmt: skip


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("asked", FORMATS)
async def test_no_disclosure_is_put_into_a_reply_in_a_format_that_was_asked_for(interface, asked):
    wrap, bind, given = FORMATS[asked]
    caller = Caller(say=lambda messages, number: AIMessage(json.dumps({"name": "x", "age": number})))
    spy = Spy(lambda reply: 100.0 * json.loads(reply.text)["age"])
    auction = interface(model=caller, agents=[spy.agent()], n_candidates=M, **TOLD)
    for reply in await both(auction):
        assert reply.text.endswith("Ad: spy")
    auction = interface(model=wrap(caller), agents=[spy.agent()], n_candidates=M, **TOLD)
    for reply in await both(bind(auction), **given):
        check_parsed_as_drawn(reply)
        assert Person.model_validate_json(reply.text)


WRAPS = {
    "bind": lambda model: model.bind(stop=["END"]),
    "retry": lambda model: model.bind(stop=["END"]).with_retry(),
    "config": lambda model: model.bind(stop=["END"]).with_config(tags=["mine"]),
    "fallbacks": lambda model: model.bind(stop=["END"]).with_fallbacks([model.bind(stop=["END"])]),
    "fields": lambda model: model.bind(stop=["END"]).configurable_fields(kwargs=ConfigurableField(id="kept")),
    "inner fields": lambda model: model.configurable_fields(temperature=ConfigurableField(id="t")).bind(stop=["END"]),
}


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("wrap", WRAPS)
async def test_what_was_bound_before_survives_bind_tools_and_a_schema(interface, wrap):
    caller = Caller(say=lambda messages, number: calling(number, "Person", name="x", age=number))
    auction = interface(model=WRAPS[wrap](caller), agents=[Spy().agent()], n_candidates=M)
    await both(auction.bind_tools([note]), on_tool_calls="auction")
    await both(auction.with_structured_output(Person))
    assert [call["stop"] for call in caller.asked] == [["END"]] * 4 * M
    named = [call["tools"][0]["function"]["name"] for call in caller.asked]
    assert named == ["note"] * 2 * M + ["Person"] * 2 * M


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("wrap", WRAPS)
async def test_tools_that_are_bound_later_replace_earlier_ones(interface, wrap):
    caller = Caller(say=lambda messages, number: calling(number, "note", text="x"))
    earlier = {"type": "function", "function": {"name": "earlier", "parameters": {}}}
    auction = interface(model=WRAPS[wrap](caller), agents=[Spy().agent()], n_candidates=M)
    await both(auction.bind_tools([earlier]).bind_tools([note]))
    assert [call["tools"][0]["function"]["name"] for call in caller.asked] == ["note"] * 2
    assert [call["stop"] for call in caller.asked] == [["END"]] * 2


@pytest.mark.parametrize("interface", INTERFACES)
async def test_a_fallback_is_given_the_tools_too(server, model, interface):
    server.answer = lambda body: refuse(500)(body) if body["model"] == "m" else in_shape(body)
    other = model.model_copy(update={"model_name": "other"})
    auction = interface(model=model.with_fallbacks([other]), agents=[Spy().agent()], n_candidates=M)
    reply = auction.bind_tools([note]).invoke("Hi", on_tool_calls="auction")
    assert reply.tool_calls[0]["name"] == "note"
    assert {body["model"] for body in server.asked} == {"m", "other"}
    assert all(body["tools"][0]["function"]["name"] == "note" for body in server.asked)


@pytest.mark.parametrize("interface", INTERFACES)
async def test_fields_and_alternatives_are_still_chosen_by_the_call_after_bind_tools(interface):
    one, other = Caller(), Caller()
    warm = one.configurable_fields(temperature=ConfigurableField(id="t"))
    chosen = warm.configurable_alternatives(ConfigurableField(id="llm"), other=other)
    for model, config in (
        (warm, {"t": 0.25}),
        (warm.with_fallbacks([Caller()]), {"t": 0.25}),
        (chosen, {"t": 0.25}),
        (chosen, {"llm": "other"}),
    ):
        auction = interface(model=model, agents=[Spy().agent()], n_candidates=M)
        one.asked.clear()
        other.asked.clear()
        await both(auction.bind_tools([note]), config={"configurable": config}, on_tool_calls="auction")
        asked = other.asked if "llm" in config else one.asked
        assert len(asked) == 2 * M
        assert all(call["tools"] for call in asked)
        assert {call["temperature"] for call in asked} == {config.get("t", 1.0)}


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_model_that_each_call_makes_is_seen_through_and_still_made_by_the_call_after_bind_tools(server, interface):
    with httpx.Client() as client:
        client_of = {"api_key": "sk", "base_url": server.url, "http_client": client, "max_retries": 0}
        model = init_chat_model("m", model_provider="openai", configurable_fields=("temperature",), **client_of)
        told = {"configurable": {"temperature": 0.25, "auction_agents": [Spy().agent()]}}
        for auction, offered in (
            (interface(model=model, n_candidates=M), False),
            (interface(model=model.bind_tools([note]), n_candidates=M), True),
            (interface(model=model, n_candidates=M).bind_tools([note]), True),
            (interface(model=model.with_retry(), n_candidates=M).bind_tools([note]), True),
        ):
            server.asked.clear()
            held = auction.invoke("Hi", told).response_metadata["auction"]
            assert held["bypassed"] is offered
            assert held["diagnostics"]["candidates"] == (1 if offered else M)
            assert {(body["temperature"], "tools" in body) for body in server.asked} == {(0.25, offered)}


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_model_that_only_the_call_names_is_auctioned(server, interface):
    with httpx.Client() as client:
        client_of = {"api_key": "sk", "base_url": server.url, "http_client": client, "max_retries": 0}
        model = init_chat_model(configurable_fields=("model", "model_provider"), **client_of)
        told = {"configurable": {"model": "m", "model_provider": "openai", "auction_agents": [Spy().agent()]}}
        for auction, offered in (
            (interface(model=model, n_candidates=M), False),
            (interface(model=model.with_retry(), n_candidates=M), False),
            (interface(model=model, n_candidates=M).bind_tools([note]), True),
        ):
            server.asked.clear()
            for reply in (auction.invoke("Hi", told), *auction.stream("Hi", told)):
                held = reply.response_metadata["auction"]
                assert held["bypassed"] is offered
                assert held["diagnostics"]["candidates"] == (1 if offered else M)
                assert reply.usage_metadata["input_tokens"] > 0
            assert {(body["model"], "tools" in body) for body in server.asked} == {("m", offered)}


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_model_without_tools_says_so(interface):
    auction = interface(model=MarkovChatModel(), n_candidates=M)
    with pytest.raises(NotImplementedError, match="MarkovChatModel"):
        auction.bind_tools([note])
    with pytest.raises(NotImplementedError, match="MarkovChatModel"):
        auction.with_structured_output(Person)
    with pytest.raises(NotImplementedError, match="MarkovChatModel"):
        interface(model=Caller().with_fallbacks([MarkovChatModel()]), n_candidates=M).bind_tools([note])


def test_a_pipeline_that_does_not_begin_with_the_model_is_refused():
    class Odd(Caller):
        def with_structured_output(self, schema, **kwargs):
            return RunnableLambda(lambda given: given) | self

    with pytest.raises(ConfigurationError, match="Odd must begin with the model"):
        ChatAuction(model=Odd(), n_candidates=M).with_structured_output(Person)


_to_one = RunnableLambda(lambda messages: {"key": "one", "input": messages})
OFFERS = {
    "in the model": (lambda model: model.bind(tools=[NOTE]), lambda auction: auction, {}),
    "deep in it": (lambda model: model.bind(tools=[NOTE]).with_retry().bind(stop=["x"]), lambda auction: auction, {}),
    "in a fallback": (lambda model: model.with_fallbacks([model.bind(tools=[NOTE])]), lambda auction: auction, {}),
    "in a branch": (
        lambda model: RunnableBranch((lambda given: False, model.bind(tools=[NOTE])), model),
        lambda auction: auction, {},
    ),
    "in a router": (
        lambda model: _to_one | RouterRunnable({"one": model, "two": model.bind(tools=[NOTE])}),
        lambda auction: auction, {},
    ),
    "with the call": (lambda model: model, lambda auction: auction, {"tools": [NOTE]}),
    "as functions": (lambda model: model, lambda auction: auction, {"functions": [NOTE["function"]]}),
    "by bind_tools": (lambda model: model, lambda auction: auction.bind_tools([note]), {}),
    "by bind_tools around fallbacks": (
        lambda model: model.with_fallbacks([Caller()]), lambda auction: auction.bind_tools([note]), {}
    ),
}  # fmt: skip


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("offer", OFFERS)
async def test_where_tools_are_offered_the_reference_answers_with_one_draw_and_asks_nobody(interface, offer):
    wrap, bind, given = OFFERS[offer]
    asked = []

    def directory(prompt):
        asked.append(prompt)
        return [Spy().agent()]

    caller = Caller()
    auction = bind(interface(model=wrap(caller), agents=directory, n_candidates=M))
    for reply in await both(auction, config={"configurable": {"auction_agents": directory}}, **given):
        held = reply.response_metadata["auction"]
        assert held["bypassed"] is True
        assert (held["payments"], held["agents"], held["diagnostics"]["candidates"]) == ([], [], 1)
        assert reply.usage_metadata["total_tokens"] == 5
    assert asked == []
    assert len(caller.asked) == 2
    for reply in await both(auction, on_tool_calls="auction", **given):
        held = reply.response_metadata["auction"]
        assert held["bypassed"] is False
        assert (len(held["payments"]), held["diagnostics"]["candidates"]) == (1, M)
    assert len(asked) == 2


@pytest.mark.parametrize("interface", INTERFACES)
async def test_a_call_that_takes_the_tools_away_is_auctioned(interface):
    model = Caller().bind(tools=[NOTE])
    for reply in await both(interface(model=model, agents=[Spy().agent()], n_candidates=M), tools=[]):
        assert reply.response_metadata["auction"]["bypassed"] is False


def mixed(messages, number):
    return calling(number) if number % 2 else numbered(messages, number)


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("calls", [True, False])
async def test_texts_and_calls_bid_against_each_other(interface, calls):
    spy = Spy(lambda reply: 100.0 * (bool(reply.tool_calls) is calls))
    auction = interface(
        model=Caller(say=mixed), agents=[spy.agent()], n_candidates=M, on_tool_calls="auction",
        disclosure=Disclosure(text="Ad", place="end") )  # fmt: skip
    for reply in await both(auction.bind_tools([note])):
        assert bool(reply.tool_calls) is calls
        assert reply.content == "" if calls else reply.text.startswith("reply")
        assert reply.text.endswith("Ad") is not calls
    for shown in spy.shown:
        assert sorted(bool(reply.tool_calls) for reply in shown) == [False, False, True, True]


SAME = [
    AIMessage("", tool_calls=[{"name": "note", "args": {"a": 1, "b": {"c": 2, "d": 3}}, "id": "1"}]),
    AIMessage("", tool_calls=[{"name": "note", "args": {"b": {"d": 3, "c": 2}, "a": 1}, "id": "2"}]),
]
IN_BLOCKS = [
    AIMessage(
        [
            {"type": "text", "text": "So", "id": f"m{k}"},
            {"type": "tool_use", "name": "note", "input": {}, "id": f"{k}"},
        ],
        tool_calls=[{"name": "note", "args": {}, "id": f"{k}"}],
    )
    for k in range(2)
]
UNREADABLE = [
    AIMessage("", invalid_tool_calls=[{"name": "note", "args": args, "id": str(k), "error": None}])
    for k, args in enumerate(["{", "{", "["])
]


@pytest.mark.parametrize(("replies", "distinct"), [
    (SAME, 1), (IN_BLOCKS, 1), (UNREADABLE, 2), ([*SAME, *IN_BLOCKS, *UNREADABLE], 4),
    ([calling(1, "note", a=1), calling(2, "note", a=2)], 2), ([calling(1, "note", a=1), calling(2, "other", a=1)], 2),
    ([calling(1, "note", a=1), calling(2, "note", a="1")], 2),
    ([calling(1), AIMessage("So", tool_calls=calling(1).tool_calls)], 2),
])  # fmt: skip
async def test_replies_that_say_and_call_the_same_are_one_candidate_whatever_their_ids(replies, distinct):
    model = Caller(say=lambda messages, number: replies[number - 1])
    result = AuctionRunnable(model=model, agents=[Spy().agent()], n_candidates=len(replies)).run("Hi")
    assert (result.draws, result.distinct_replies) == (len(replies), distinct)
