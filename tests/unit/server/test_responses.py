"""The wire format of `POST /v1/responses`: what it reads and writes, checked by its clients' and its own schema."""

import json
from contextlib import suppress
from pathlib import Path

import jsonschema
import llm_comply
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from llm_auction_chain.server import responses
from llm_auction_chain.server.responses import ModelResponse, read_request
from llm_auction_chain.server.wire import WireError, read_json

SPEC = json.loads(Path(llm_comply.__file__).with_name("specs").joinpath("openresponses.json").read_text("utf-8"))
EVENTS = TypeAdapter(ResponseStreamEvent)
USAGE = {"input_tokens": 5, "output_tokens": 3, "total_tokens": 8}
AUCTION = {"id": "a1", "sponsored": True, "sponsors": ["B"], "disclosure": "Ad: B."}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = {"name": "get_weather", "args": {"city": "Bern"}, "id": "call_1"}
SHAPE = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}, "strict": True}


def violations(value, schema):
    """Return where a value is not of the Open Responses schema."""
    validator = jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{schema}", **SPEC})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def request(**fields):
    return read_request({"model": "ads", "input": "Hi", **fields})


def answer(**fields):
    return ModelResponse(request(**fields), identifier="0" * 32, created=1_700_000_000)


def body(reply, **fields):
    """Return the answer with a reply, after both schemas have passed it."""
    whole = answer(**fields).body([reply], [AUCTION])
    assert violations(whole, "ResponseResource") == []
    Response.model_validate(whole)
    return whole


def stream(reply, **fields):
    """Return the events of an answer, after both schemas have passed each."""
    one = answer(stream=True, **fields)
    return decoded(b"".join([*one.opening(), *one.events([reply], [AUCTION])]))


def decoded(data):
    *blocks, end, rest = data.decode().split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    events = []
    for block in blocks:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENTS.validate_python(event)
        words = event["type"].replace("_", ".").split(".")
        assert violations(event, "".join(word.capitalize() for word in words) + "StreamingEvent") == []
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def refusal(**fields):
    with pytest.raises(WireError) as caught:
        request(**fields)
    assert caught.value.status == 400
    return caught.value.message, caught.value.param


# What it reads


def test_a_text_is_one_message_of_the_user():
    assert request().messages == (HumanMessage("Hi"),)


def test_instructions_come_first_as_a_system_message():
    assert request(instructions="Be brief.").messages == (SystemMessage("Be brief."), HumanMessage("Hi"))


def test_a_message_needs_no_type_and_no_list_of_parts():
    item = {"role": "user", "content": "Hi"}
    assert request(input=[item]).messages == request(input=[{"type": "message", **item}]).messages


def test_messages_keep_their_roles_and_order():
    roles = ("system", "developer", "user", "assistant", "user")
    messages = request(input=[{"role": role, "content": role} for role in roles]).messages
    assert [(message.type, message.text) for message in messages] == [
        ("system", "system"), ("system", "developer"), ("human", "user"), ("ai", "assistant"), ("human", "user"),
    ]  # fmt: skip
    assert messages[1].additional_kwargs == {"__openai_role__": "developer"}


def test_an_image_reaches_the_model_with_its_detail():
    parts = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"},
    ]
    (message,) = request(input=[{"role": "user", "content": parts}]).messages
    assert message.content == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
    ]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://10.0.0.1/", "data:text/html,x"])
def test_an_image_from_elsewhere_than_https_is_refused(url):
    item = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
    message, param = refusal(input=[item])
    assert param == "input[0].content[0].image_url"
    assert url not in message


def test_an_image_of_the_system_is_refused():
    part = {"type": "input_image", "image_url": "https://example.com/a.png"}
    assert refusal(input=[{"role": "system", "content": [part]}])[1] == "input[0]"


def test_calls_belong_to_the_message_before_them_and_outputs_to_their_call():
    items = [
        {"role": "user", "content": "Weather in Bern and Rome?"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        {"type": "function_call", "call_id": "1", "name": "get_weather", "arguments": '{"city": "Bern"}'},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {"type": "function_call", "call_id": "2", "name": "get_weather", "arguments": "Rome"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "rain"}]},
        {"type": "function_call_output", "call_id": "1", "output": "sun"},
    ]
    _, reply, rome, bern = request(input=items).messages
    assert reply.text == "I look."
    assert [(call["id"], call["args"]) for call in reply.tool_calls] == [("1", {"city": "Bern"})]
    assert [(call["id"], call["args"]) for call in reply.invalid_tool_calls] == [("2", "Rome")]
    assert (rome, bern) == (ToolMessage("rain", tool_call_id="2"), ToolMessage("sun", tool_call_id="1"))


def test_an_output_without_its_call_and_a_call_without_its_output_are_refused():
    call = {"type": "function_call", "call_id": "1", "name": "get_weather", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "1", "output": "sun"}
    user = {"role": "user", "content": "Hi"}
    assert refusal(input=[output])[1] == "input[0].call_id"
    assert refusal(input=[call, output, output])[1] == "input[2].call_id"
    assert refusal(input=[user, call])[1] == "input[1].call_id"
    assert refusal(input=[call, user, output])[1] == "input[0].call_id"


def test_the_answer_can_be_sent_back_as_input():
    reply = AIMessage("I look.", tool_calls=[CALL])
    whole = body(reply, tools=[WEATHER])
    dumped = [item.model_dump() for item in Response.model_validate(whole).output]
    result = {"type": "function_call_output", "call_id": "call_1", "output": "sun"}
    for items in (whole["output"], dumped):
        _, again, _ = request(input=[{"role": "user", "content": "Hi"}, *items, result]).messages
        assert (again.text, again.tool_calls) == (reply.text, reply.tool_calls)


def test_a_refusal_can_be_sent_back_as_input():
    output = body(AIMessage("", additional_kwargs={"refusal": "No."}))["output"]
    assert [message.text for message in request(input=output).messages] == ["No."]


def test_settings_become_keywords_of_a_chat_model():
    keywords = request(
        temperature=0, top_p=0.5, presence_penalty=1, frequency_penalty=-1, max_output_tokens=20,
        text={"verbosity": "low"}, reasoning={"effort": "low"}, parallel_tool_calls=False, tools=[WEATHER],
    ).keywords  # fmt: skip
    assert keywords == {
        "temperature": 0, "top_p": 0.5, "presence_penalty": 1, "frequency_penalty": -1, "max_tokens": 20,
        "verbosity": "low", "reasoning_effort": "low", "parallel_tool_calls": False,
    }  # fmt: skip


def test_what_changes_nothing_is_no_keyword():
    fields = {"temperature": None, "presence_penalty": 0, "text": {"format": {"type": "text"}}}
    assert request(tools=[WEATHER], parallel_tool_calls=True, **fields).keywords == {}


def test_a_function_without_parameters_takes_none():
    (tool,) = request(tools=[{"type": "function", "name": "now", "parameters": None}]).tools
    assert tool["function"] == {"name": "now", "parameters": {"type": "object", "properties": {}}}


def test_tools_get_the_nested_form():
    function = {name: value for name, value in WEATHER.items() if name != "type"}
    assert request(tools=[WEATHER]).tools == ({"type": "function", "function": function},)


@pytest.mark.parametrize(
    ("choice", "tools", "expected"),
    [
        (None, ["get_weather", "add"], None),
        ("auto", ["get_weather", "add"], "auto"),
        ("none", [], None),
        ("required", ["get_weather", "add"], "required"),
        ({"type": "function", "name": "add"}, ["get_weather", "add"], "add"),
        ({"type": "allowed_tools", "tools": [{"type": "function", "name": "add"}]}, ["add"], "auto"),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}]},
            ["add"],
            "required",
        ),
    ],
)
def test_the_model_has_only_the_tools_that_the_client_allows(choice, tools, expected):
    fields = {"tools": [WEATHER, {"type": "function", "name": "add"}], "tool_choice": choice}
    wanted = request(**fields)
    assert [tool["function"]["name"] for tool in wanted.tools] == tools
    assert wanted.tool_choice == expected
    assert [tool["name"] for tool in body(AIMessage("Hi"), **fields)["tools"]] == ["get_weather", "add"]


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "subtract"},
        {"type": "function"},
        {"type": "allowed_tools", "tools": []},
        {"type": "allowed_tools", "tools": [{"type": "function", "name": "subtract"}]},
    ],
)
def test_a_choice_that_is_among_no_tools_is_refused(choice):
    tools = [] if choice == "required" else [WEATHER]
    assert refusal(tools=tools, tool_choice=choice)[1] == "tool_choice"


def test_a_schema_for_the_text_gets_the_nested_form():
    details = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert request(text={"format": SHAPE}).response_format == {"type": "json_schema", "json_schema": details}
    assert request(text={"format": {"type": "json_object"}}).response_format == {"type": "json_object"}
    assert request(text={"format": {"type": "text"}}).response_format is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "a b", "arguments": ""}]}, "input[0].name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"auction": 3}, "auction"),
        ({"stop": ["x"]}, "stop"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_its_place(fields, param):
    assert refusal(**fields)[1] == param


def test_a_built_in_tool_and_a_stored_item_are_refused_by_name():
    assert "web_search" in refusal(tools=[WEATHER, {"type": "web_search"}])[0]
    assert "item_reference" in refusal(input=[{"type": "item_reference", "id": "msg_1"}])[0]


def test_the_page_gives_the_reason_for_every_field_that_is_refused_or_ignored():
    page = Path(__file__).parents[3].joinpath("docs", "reference", "open_responses.md").read_text("utf-8")
    for name, (_, reason) in responses._Body.refused.items():
        assert f"| `{name}` | refused | {reason} |" in page
    for name, reason in responses._Body.ignored.items():
        assert f"| `{name}` | ignored | {reason} |" in page


def test_a_misspelt_field_gets_a_suggestion():
    assert refusal(temprature=1) == ("There is no field temprature. Did you mean temperature?", "temprature")


def test_errors_repeat_nothing_of_the_prompt():
    words = "what I ask"
    for item in ({"role": words, "content": words}, {"role": "user", "content": [{"type": words}]}, words):
        assert words not in refusal(input=[item])[0]
    assert words not in refusal(tools=[{"type": words}])[0]


def test_fields_without_effect_are_accepted():
    fields = {
        "store": True, "user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "service_tier": "auto",
        "stream_options": {"include_obfuscation": False}, "include": ["reasoning.encrypted_content"],
        "truncation": "disabled", "top_logprobs": 0, "background": False, "previous_response_id": None,
    }  # fmt: skip
    assert request(**fields) == request()


def test_only_the_field_auction_is_for_operators():
    assert request(auction={"seed": 7}).extra == {"seed": 7}
    assert request().extra is None


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["message", "function"])
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
WHOLE = {
    "model": "ads",
    "instructions": "Be brief.",
    "input": [
        {"role": "user", "content": [{"type": "input_image", "image_url": "https://example.com/a.png"}]},
        {"type": "function_call", "call_id": "1", "name": "get_weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "sun"},
        {"type": "reasoning", "summary": []},
    ],
    "tools": [WEATHER],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_weather"}]},
    "text": {"format": SHAPE, "verbosity": "low"},
    "reasoning": {"effort": "low"},
    "metadata": {"a": "b"},
    "include": [],
    "temperature": 1,
    "stream": True,
}  # fmt: skip


def places(value, path=()):
    """Return the path to each value within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


@given(data=st.data(), value=JSON)
def test_any_json_gives_a_request_or_an_error_for_the_client(data, value):
    path = data.draw(st.sampled_from(places(WHOLE)))
    whole = json.loads(json.dumps(WHOLE))
    spot = whole
    for key in path[:-1]:
        spot = spot[key]
    if path:
        spot[path[-1]] = value
    else:
        whole = value
    with suppress(WireError):  # anything else fails
        wanted = read_request(read_json(json.dumps(whole).encode()))
        answer = ModelResponse(wanted, identifier="0", created=0).body([AIMessage("Hi")], [AUCTION])
        json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()


# What it writes


def test_an_answer_has_the_text_the_usage_and_the_auction():
    whole = body(AIMessage("Hello!", usage_metadata=USAGE))
    parsed = Response.model_validate(whole)
    assert (parsed.id, parsed.object, parsed.status) == ("resp_" + "0" * 32, "response", "completed")
    assert parsed.output_text == "Hello!"
    assert (parsed.usage.input_tokens, parsed.usage.output_tokens, parsed.usage.total_tokens) == (5, 3, 8)
    assert whole["auction"] == AUCTION
    assert whole["store"] is False
    assert whole["completed_at"] >= whole["created_at"]


def test_usage_has_its_details_and_is_null_where_the_model_counts_nothing():
    details = {"input_token_details": {"cache_read": 2}, "output_token_details": {"reasoning": 1}}
    usage = body(AIMessage("Hi", usage_metadata={**USAGE, **details}))["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] == 2
    assert usage["output_tokens_details"]["reasoning_tokens"] == 1
    assert body(AIMessage("Hi"))["usage"] is None


def test_an_answer_repeats_the_settings():
    fields = {
        "instructions": "Be brief.", "metadata": {"chat": "7"}, "temperature": 0.5, "max_output_tokens": 20,
        "parallel_tool_calls": False, "tool_choice": {"type": "function", "name": "get_weather"},
        "text": {"format": {"type": "json_object"}, "verbosity": "low"},
    }  # fmt: skip
    whole = body(AIMessage("{}"), tools=[WEATHER], reasoning={"effort": "low"}, **fields)
    assert {name: whole[name] for name in fields} == fields
    assert whole["tools"] == [{**WEATHER, "strict": None}]
    assert whole["reasoning"] == {"effort": "low", "summary": None}


def test_an_answer_repeats_the_schema_of_its_text_as_openais_clients_read_it():
    whole = answer(text={"format": SHAPE}).body([AIMessage("{}")], [AUCTION])
    assert Response.model_validate(whole).text.format.schema_ == SHAPE["schema"]
    # The specification's schema allows nothing but null for this field.
    assert [error.split(":")[0] for error in violations(whole, "ResponseResource")] == ["$.text.format"]


def test_a_call_is_an_item_with_its_arguments_as_json():
    (item,) = body(AIMessage("", tool_calls=[CALL]), tools=[WEATHER])["output"]
    assert (item["type"], item["call_id"], item["name"]) == ("function_call", "call_1", "get_weather")
    assert json.loads(item["arguments"]) == {"city": "Bern"}


def test_items_have_ids_of_their_own():
    calls = [CALL, {**CALL, "id": None}]
    output = body(AIMessage("I look.", tool_calls=calls), tools=[WEATHER])["output"]
    assert len({item["id"] for item in output}) == 3
    assert len({item["call_id"] for item in output[1:]}) == 2


@pytest.mark.parametrize(("word", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_a_reply_that_is_cut_off_is_incomplete_and_says_why(word, reason):
    reply = AIMessage("Once upon", response_metadata={"finish_reason": word})
    whole = body(reply)
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": reason})
    assert whole["completed_at"] is None
    assert stream(reply)[-1]["type"] == "response.incomplete"


def test_only_the_last_item_of_a_reply_that_is_cut_off_is_incomplete():
    reply = AIMessage("I look.", tool_calls=[CALL], response_metadata={"finish_reason": "length"})
    assert [item["status"] for item in body(reply, tools=[WEATHER])["output"]] == ["completed", "incomplete"]


def test_a_reply_without_text_still_is_a_message():
    (item,) = body(AIMessage(""))["output"]
    assert item["content"][0]["text"] == ""


def test_a_stream_tells_the_life_of_a_text():
    events = stream(AIMessage("Hello!", usage_metadata=USAGE))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[0]["response"]["status"] == "in_progress"
    assert events[-1]["response"]["usage"]["total_tokens"] == 8
    assert events[-1]["response"]["auction"] == AUCTION


def test_a_stream_tells_the_life_of_calls():
    events = stream(AIMessage("", tool_calls=[CALL]), tools=[WEATHER])
    assert [event["type"].removeprefix("response.") for event in events[2:]] == [
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert events[2]["item"]["arguments"] == ""


def test_a_refusal_of_the_model_is_streamed_as_one():
    events = stream(AIMessage("", additional_kwargs={"refusal": "No."}))
    assert [event["delta"] for event in events if event["type"] == "response.refusal.delta"] == ["No."]


def test_a_stream_ends_in_what_the_whole_answer_says():
    reply = AIMessage("Hello!", usage_metadata=USAGE)
    (last,) = (event["response"] for event in stream(reply) if event["type"] == "response.completed")
    whole = body(reply)
    assert {**last, "completed_at": None} == {**whole, "completed_at": None}


def test_events_are_numbered_in_the_order_of_the_stream_whenever_they_are_made():
    one = answer(stream=True)
    rest = [*one.events([AIMessage("Hello!")], [AUCTION])]
    decoded(b"".join([*one.opening(), *rest]))


@pytest.mark.parametrize(
    ("status", "code"), [(400, "invalid_prompt"), (429, "rate_limit_exceeded"), (500, "server_error")]
)
def test_a_stream_that_fails_ends_with_the_error(status, code):
    one = answer(stream=True)
    events = decoded(b"".join([*one.opening(), *one.failure(WireError(status, "No reply."))]))
    assert [event["type"] for event in events] == ["response.created", "response.in_progress", "response.failed"]
    assert events[-1]["response"]["error"] == {"code": code, "message": "No reply."}
