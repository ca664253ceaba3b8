"""Chat completions: from a request's body to messages and settings, and from replies to an answer."""

import json
import re
from copy import deepcopy
from pathlib import Path

import httpx
import llm_comply
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_openai import ChatOpenAI
from llm_comply.schema import SpecLoader
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import chat
from pydantic import BaseModel

from llm_auction_chain.server.chat_completions import ChatCompletion, _Body, read_request
from llm_auction_chain.server.wire import ReplyRequest, WireError

IDENTIFIER = "0123456789abcdef" * 2
ASK = {"role": "user", "content": "Which bank?"}
NUMBERS = {"type": "object", "properties": {"a": {"type": "integer", "default": None}}}
ADD = {"type": "function", "function": {"name": "add", "parameters": NUMBERS}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "2"}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "bank", "schema": {"type": "object"}, "strict": True}}
WHOLE = {
    "model": "ads",
    "messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "What is this?"}, IMAGE]},
        CALLS,
        RESULT,
        ASK,
    ],
    "temperature": 0.5,
    "top_p": 0.9,
    "max_completion_tokens": 20,
    "stop": ["a", "b"],
    "seed": 7,
    "n": 2,
    "frequency_penalty": 0.5,
    "presence_penalty": 0,
    "reasoning_effort": "low",
    "verbosity": "low",
    "tools": [ADD],
    "tool_choice": {"type": "function", "function": {"name": "add"}},
    "parallel_tool_calls": False,
    "response_format": SCHEMA,
    "stream": True,
    "stream_options": {"include_usage": True},
    "user": "ann",
    "store": False,
    "auction": {"agents": []},
}
WHOLE_WITHOUT_STREAM = {
    name: value
    for name, value in WHOLE.items()
    if name not in ("model", "messages", "stream", "stream_options", "auction")
}


def asking(**fields):
    return {"model": "ads", "messages": [ASK], **fields}


def error_of(body):
    with pytest.raises(WireError) as error:
        read_request(body)
    assert error.value.status == 400
    return error.value


def test_all_fields_reach_the_request():
    request = read_request(WHOLE)
    assert request == ReplyRequest(
        model="ads",
        messages=request.messages,
        keywords={
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 20,
            "stop": ["a", "b"],
            "frequency_penalty": 0.5,
            "reasoning_effort": "low",
            "verbosity": "low",
            "parallel_tool_calls": False,
        },
        tools=(ADD,),
        tool_choice="add",
        response_format=SCHEMA,
        seed=7,
        n=2,
        stream=True,
        stream_usage=True,
        extra={"agents": []},
    )
    assert list(request.messages) == [
        SystemMessage("Be brief.", additional_kwargs={"__openai_role__": "developer"}),
        HumanMessage([{"type": "text", "text": "What is this?"}, IMAGE], name="Ann"),
        AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1}, "id": "call_1"}]),
        ToolMessage("2", tool_call_id="call_1"),
        HumanMessage("Which bank?"),
    ]


def test_a_request_of_two_fields_sets_nothing_else():
    assert read_request(asking()) == ReplyRequest(model="ads", messages=(HumanMessage("Which bank?"),))


@pytest.mark.parametrize(
    "fields",
    [
        dict.fromkeys(sorted({*WHOLE} - {"model", "messages"})),
        {"frequency_penalty": 0, "presence_penalty": 0.0, "parallel_tool_calls": True, "tools": [], "stop": []},
        {"logprobs": False, "logit_bias": {}, "modalities": ["text"], "store": False, "tool_choice": "auto"},
        {"user": "u", "metadata": {"a": "b"}, "service_tier": "auto", "safety_identifier": "s"},
        {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "response_format": {"type": "text"}},
        {"n": 1, "stream": False, "tools": [ADD], "tool_choice": "none"},
    ],
)
def test_values_that_change_nothing_change_nothing(fields):
    assert read_request(asking(**fields)) == read_request(asking())


def test_one_text_part_is_a_text():
    message = {"role": "user", "content": [{"type": "text", "text": "Which bank?"}]}
    assert read_request({"model": "ads", "messages": [message]}) == read_request(asking())


@pytest.mark.parametrize(("arguments", "expected"), [("", {}), ("{}", {}), ('{"a": 1}', {"a": 1})])
def test_arguments_of_calls_are_read(arguments, expected):
    call = {**CALL, "function": {"name": "add", "arguments": arguments}}
    _, message, _ = read_request({"model": "ads", "messages": [ASK, {**CALLS, "tool_calls": [call]}, RESULT]}).messages
    assert message.tool_calls[0]["args"] == expected


@pytest.mark.parametrize("arguments", ["{", "[1]", "7", "null", "[" * 100_000])
def test_a_call_that_a_model_botched_stays_in_the_conversation(arguments):
    call = {**CALL, "function": {"name": "add", "arguments": arguments}}
    _, message, _ = read_request({"model": "ads", "messages": [ASK, {**CALLS, "tool_calls": [call]}, RESULT]}).messages
    assert message.invalid_tool_calls[0]["args"] == arguments


def test_fields_that_libraries_add_to_an_earlier_reply_are_not_read():
    call = {**CALL, "index": 0, "function": {**CALL["function"], "parsed_arguments": {"a": 1}}}
    reply = {**CALLS, "tool_calls": [call], "parsed": None, "reasoning_content": "private"}
    request = {"model": "ads", "messages": [ASK, reply, RESULT]}
    assert read_request(request) == read_request({**request, "messages": [ASK, CALLS, RESULT]})


def test_a_reply_can_be_sent_back_as_it_came():
    answer = ChatCompletion(read_request(asking()), identifier=IDENTIFIER, created=1)
    for reply in (AIMessage("B Bank."), AIMessage("", additional_kwargs={"refusal": "No."})):
        message = answer.body([reply], [{}])["choices"][0]["message"]
        for sent in (message, chat.ChatCompletionMessage.model_validate(message).model_dump()):
            last = read_request({"model": "ads", "messages": [ASK, sent]}).messages[-1]
            assert last.text == (reply.text or "No.")


def test_seeds_with_a_sign_stay_different():
    seeds = [read_request(asking(seed=seed)).seed for seed in (-(2**63), -1, 0, 1, 2**63 - 1)]
    assert len(set(seeds)) == 5
    assert min(seeds) >= 0


def test_equal_limits_of_tokens_are_one():
    assert read_request(asking(max_tokens=5, max_completion_tokens=5)).keywords == {"max_tokens": 5}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "SECRET"}, "messages"),
        ({"messages": [ASK, "SECRET"]}, "messages[1]"),
        ({"messages": [{"content": "SECRET"}]}, "messages[0].role"),
        ({"messages": [{"role": "SECRET", "content": "SECRET"}]}, "messages[0].role"),
        ({"messages": [{"role": "function", "name": "f", "content": "SECRET"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": {"SECRET": 1}}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["SECRET"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "SECRET"}]}]},
            "messages[0].content",
        ),
        ({"messages": [{"role": "system", "content": [IMAGE]}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": "SECRET", "response_metadata": {}}]},
            "messages[0].response_metadata",
        ),
        ({"messages": [{"role": "assistant"}]}, "messages[0]"),
        ({"messages": [{**CALLS, "function_call": {"name": "SECRET"}}]}, "messages[0].function_call"),
        ({"messages": [{**CALLS, "tool_calls": []}]}, "messages[0].tool_calls"),
        ({"messages": [{**CALLS, "tool_calls": [{**CALL, "type": "custom"}]}]}, "messages[0].tool_calls[0].type"),
        ({"messages": [ASK, RESULT]}, "messages[1].tool_call_id"),
        ({"messages": [ASK, CALLS]}, "messages"),
        ({"messages": [ASK, CALLS, ASK, RESULT]}, "messages"),
        ({"messages": [ASK, CALLS, RESULT, RESULT]}, "messages[3].tool_call_id"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop[0]"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"tools": [ADD, ADD]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "SECRET"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [ADD], "tool_choice": "SECRET"}, "tool_choice.type"),
        ({"tools": [ADD], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        (
            {"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
            "tool_choice.function.name",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {**SCHEMA, "type": "text"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": "yes"}, "stream"),
        ({"auction": "SECRET"}, "auction"),
        ({"audio": {"voice": "SECRET"}}, "audio"),
        ({"functions": [{"name": "SECRET"}]}, "functions"),
        ({"logit_bias": {"5": -100}}, "logit_bias"),
        ({"logprobs": True}, "logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"prediction": {"type": "content", "content": "SECRET"}}, "prediction"),
        ({"store": True}, "store"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"max_token": 5}, "max_token"),
    ],
)
def test_a_wrong_field_is_named_and_its_value_is_not_repeated(fields, param):
    error = error_of(asking(**fields))
    assert error.param == param
    assert error.message.startswith((param, "There is no field"))
    assert "SECRET" not in json.dumps(error.envelope())


def test_the_page_about_the_server_names_every_field():
    page = (Path(__file__).parents[3] / "docs" / "how_to" / "server.md").read_text(encoding="utf-8")
    fields = {*_Body.model_fields, *_Body.ignored, *_Body.refused}
    assert {name for name in fields if not re.search(rf"^\|.*`{name}\b", page, re.MULTILINE)} == set()


def test_a_deprecated_field_comes_with_its_successor():
    assert "Use tools." in error_of(asking(functions=[])).message
    assert "Did you mean max_tokens?" in error_of(asking(max_token=5)).message


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png",
        "file:///etc/passwd",
        "ftp://a",
        "/etc/passwd",
        "data:text/html,x",
        "javascript:1",
        "",
    ],
)
def test_images_come_only_from_https_and_the_request(url):
    image = {"type": "image_url", "image_url": {"url": url}}
    error = error_of({"model": "ads", "messages": [{"role": "user", "content": [image]}]})
    assert error.param == "messages[0].content[0].image_url.url"


@pytest.mark.parametrize("url", ["https://example.org/a.png", "data:image/png;base64,iVBORw0KGgo="])
def test_images_reach_the_model(url):
    image = {"type": "image_url", "image_url": {"url": url}}
    (message,) = read_request({"model": "ads", "messages": [{"role": "user", "content": [image]}]}).messages
    assert message.content == [image]


class Bank(BaseModel):
    """A bank."""

    name: str


def add(a: int) -> int:
    """Add one."""
    return a + 1


CONVERSATION = [
    SystemMessage("Be brief."),
    HumanMessage([{"type": "text", "text": "And this?"}, {"type": "image", "url": "https://example.org/a.png"}]),
    HumanMessage([{"type": "image", "base64": "iVBORw0KGgo=", "mime_type": "image/png"}]),
    AIMessage(
        [{"type": "text", "text": "One."}], name="bot", tool_calls=[{"name": "add", "args": {"a": 1}, "id": "1"}]
    ),
    ToolMessage("2", tool_call_id="1", name="add"),
]


@pytest.mark.parametrize(
    "send",
    [
        lambda client, _: client.chat.completions.create(model="ads", messages=[ASK], **WHOLE_WITHOUT_STREAM),
        lambda client, _: client.chat.completions.parse(model="ads", messages=[ASK], response_format=Bank),
        lambda client, _: client.chat.completions.parse(
            model="ads", messages=[ASK], tools=[openai.pydantic_function_tool(Bank)]
        ),
        lambda _, model: model.invoke(CONVERSATION, temperature=0.5, max_tokens=5, stop=["a"], seed=7),
        lambda _, model: model.bind_tools([add], tool_choice="add", parallel_tool_calls=False).invoke("Add."),
        lambda _, model: model.bind_tools([add], tool_choice="any", strict=True).invoke("Add."),
        lambda _, model: model.with_structured_output(Bank).invoke("Which bank?"),
        lambda _, model: model.with_structured_output(Bank, method="function_calling").invoke("Which bank?"),
        lambda _, model: model.with_structured_output(Bank, method="json_mode").invoke("Which bank?"),
        lambda _, model: [*model.stream("Which bank?", stream_usage=True)],
    ],
)
def test_what_real_clients_send_is_read(send):
    bodies = []

    def keep(request):
        bodies.append(json.loads(request.content))
        return httpx.Response(400, json=WireError(400, "Enough.").envelope())

    http = httpx.Client(transport=httpx.MockTransport(keep))
    client = openai.OpenAI(api_key="key", base_url="http://test", http_client=http)
    model = ChatOpenAI(model="ads", api_key="key", base_url="http://test", http_client=http, reasoning_effort="low")
    with pytest.raises(openai.BadRequestError):
        send(client, model)
    assert read_request(bodies[0]).messages


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def places(value, place=()):
    """Yield the place of each part of a JSON value."""
    yield place
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in parts:
        yield from places(inner, (*place, name))


@st.composite
def nearly_valid(draw):
    body = deepcopy(WHOLE)
    *way, last = draw(st.sampled_from([place for place in places(WHOLE) if place]))
    inner = body
    for part in way:
        inner = inner[part]
    inner[last] = draw(JSON | st.sampled_from([ASK, RESULT, CALLS, [ASK], IMAGE, "required", "none"]))
    return body


@given(JSON | nearly_valid())
@settings(max_examples=300, deadline=None)
def test_any_json_gives_a_request_or_an_error_of_the_client(body):
    try:
        request = read_request(body)
    except WireError as error:
        assert error.status == 400  # noqa: PT017 - both ends are right
        json.dumps(error.envelope()).encode()
    else:
        assert request.messages


# Answers

SPECIFICATION = SpecLoader(str(Path(llm_comply.__file__).parent / "specs" / "openai_chat.json"))
USAGE = UsageMetadata(
    input_tokens=10,
    output_tokens=4,
    total_tokens=14,
    input_token_details={"cache_read": 3},
    output_token_details={"reasoning": 2},
)
CALLING = AIMessage(
    "", tool_calls=[{"name": "add", "args": {"a": 1}, "id": "call_1"}, {"name": "b", "args": {}, "id": None}]
)
SPOKEN = AIMessage(
    [{"type": "reasoning", "reasoning": "SECRET"}, {"type": "text", "text": "B "}, {"type": "text", "text": "Bank."}],
    response_metadata={"stop_reason": "max_tokens", "auction": {"payments": "SECRET"}},
    usage_metadata=USAGE,
)
AUCTIONS = [{"id": "1", "sponsored": True}, {"id": "2", "sponsored": False}]


def answer_to(**fields):
    return ChatCompletion(read_request(asking(**fields)), identifier=IDENTIFIER, created=1_700_000_000)


def chunks_of(answer, replies):
    """Return the events of a whole stream, read by OpenAI's own decoder."""
    data = b"".join([*answer.opening(), *answer.events(replies, AUCTIONS[: len(replies)])])
    return read_stream(data)


def read_stream(data):
    transport = httpx.MockTransport(
        lambda _: httpx.Response(200, content=data, headers={"content-type": "text/event-stream"})
    )
    client = openai.OpenAI(api_key="key", base_url="http://test", http_client=httpx.Client(transport=transport))
    with client.chat.completions.create(model="ads", messages=[ASK], stream=True) as stream:
        return [*stream]


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver")
@pytest.mark.parametrize("reply", [SPOKEN, CALLING, AIMessage("Hi"), AIMessage("")])
def test_an_answer_has_the_format_that_clients_read(reply):
    body = answer_to().body([reply], AUCTIONS[:1])
    chat.ChatCompletion.model_validate(body, strict=True)
    nulls = {"usage"} if body["usage"] is None else set()  # the specification has no null here, OpenAI's types have
    without = {name: value for name, value in body.items() if name not in nulls}
    assert SPECIFICATION.validate(without, "CreateChatCompletionResponse") == []
    assert body["id"] == f"chatcmpl-{IDENTIFIER}"
    assert body["auction"] == AUCTIONS[0]


def test_an_answer_shows_the_text_and_neither_reasoning_nor_metadata():
    body = answer_to().body([SPOKEN], AUCTIONS[:1])
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "B Bank.", "refusal": None, "annotations": []}
    assert choice["finish_reason"] == "length"
    assert "SECRET" not in json.dumps(body)


def test_calls_of_tools_come_without_content():
    (choice,) = answer_to().body([CALLING], AUCTIONS[:1])["choices"]
    first, second = choice["message"]["tool_calls"]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"
    assert first == {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    assert second["id"]


def test_usage_is_that_of_all_auctions():
    usage = answer_to(n=2).body([SPOKEN, SPOKEN], AUCTIONS)["usage"]
    assert usage == {
        "prompt_tokens": 20,
        "completion_tokens": 8,
        "total_tokens": 28,
        "prompt_tokens_details": {"cached_tokens": 6},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }


def test_counts_that_no_model_reports_are_not_invented():
    assert answer_to().body([AIMessage("Hi")], AUCTIONS[:1])["usage"] is None
    reply = AIMessage("Hi", usage_metadata=UsageMetadata(input_tokens=1, output_tokens=1, total_tokens=2))
    usage = answer_to().body([reply], AUCTIONS[:1])["usage"]
    assert usage == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


def test_each_of_several_replies_has_its_own_auction():
    body = answer_to(n=2).body([SPOKEN, CALLING], AUCTIONS)
    assert [choice["auction"] for choice in body["choices"]] == AUCTIONS
    assert "auction" not in body


# Streams


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver")
@pytest.mark.parametrize("replies", [[SPOKEN], [CALLING], [SPOKEN, CALLING]])
@pytest.mark.parametrize("options", [None, {"include_usage": True}])
def test_every_chunk_has_the_format_that_clients_read(replies, options):
    answer = answer_to(n=len(replies), stream=True, stream_options=options)
    events = [*answer.opening(), *answer.events(replies, AUCTIONS[: len(replies)])]
    assert events.pop() == b"data: [DONE]\n\n"
    for event in events:
        chunk = json.loads(event.removeprefix(b"data: "))
        chat.ChatCompletionChunk.model_validate(chunk, strict=True)
        if chunk.get("usage", 1) is None:
            del chunk["usage"]
        for choice in chunk["choices"]:
            if choice["finish_reason"] is None:  # the specification calls it nullable, its schema does not
                choice["finish_reason"] = "stop"
        assert SPECIFICATION.validate(chunk, "CreateChatCompletionStreamResponse") == []


def test_a_stream_adds_up_to_the_answer():
    replies = [SPOKEN.model_copy(update={"response_metadata": {}}), CALLING]
    answer = answer_to(n=2, stream=True, stream_options={"include_usage": True})
    state = ChatCompletionStreamState()
    for chunk in chunks_of(answer, replies):
        state.handle_chunk(chunk)
    total = state.get_final_completion().model_dump(exclude_unset=True)
    whole = chat.ChatCompletion.model_validate(answer.body(replies, AUCTIONS))
    for choice, expected in zip(total["choices"], whole.choices, strict=True):
        assert choice["message"]["content"] == expected.message.content or not expected.message.content
        assert choice["finish_reason"] == expected.finish_reason
        calls = [(call["id"], call["function"]["arguments"]) for call in choice["message"].get("tool_calls") or ()]
        assert calls == [(call.id, call.function.arguments) for call in expected.message.tool_calls or ()]
    assert total["usage"] == whole.usage.model_dump(exclude_unset=True)


def test_a_stream_begins_with_the_role_and_ends_with_the_auction():
    first, text, last = chunks_of(answer_to(stream=True), [SPOKEN])
    assert first.choices[0].delta.role == "assistant"
    assert text.choices[0].delta.content == "B Bank."
    assert last.choices[0].finish_reason == "length"
    assert last.auction == AUCTIONS[0]
    assert "usage" not in last.model_fields_set


def test_the_usage_comes_last_where_the_client_wants_it():
    *chunks, last = chunks_of(answer_to(stream=True, stream_options={"include_usage": True}), [SPOKEN])
    assert last.choices == []
    assert last.usage.total_tokens == 14
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks)


def test_a_stream_of_several_replies_says_which_one_a_chunk_belongs_to():
    chunks = chunks_of(answer_to(n=2, stream=True), [SPOKEN, CALLING])
    assert [chunk.choices[0].index for chunk in chunks] == [0, 1, 0, 0, 1, 1, 1]
    ends = [chunk.choices[0].auction for chunk in chunks if chunk.choices[0].finish_reason]
    assert ends == AUCTIONS


def test_openais_client_raises_an_error_where_an_auction_fails_after_the_stream_began():
    answer = answer_to(stream=True)
    data = b"".join([*answer.opening(), *answer.failure(WireError(503, "The model is not available."))])
    with pytest.raises(openai.APIError, match="not available"):
        read_stream(data)
    assert b"[DONE]" not in data
