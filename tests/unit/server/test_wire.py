"""What both wire formats share."""

import json
from typing import Annotated, ClassVar, Literal

import pytest
from langchain_core.messages import AIMessage
from pydantic import Field

from llm_auction_chain.server.wire import (
    RequestBody,
    WireError,
    WireModel,
    finish_reason,
    read_json,
    server_sent_event,
    tool_calls,
)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_an_error_has_the_four_fields_that_clients_read(status, kind):
    error = WireError(status, "No.", param="n", code="too_many")
    assert error.envelope() == {"error": {"message": "No.", "type": kind, "param": "n", "code": "too_many"}}


def test_a_text_with_line_breaks_stays_one_event():
    event = server_sent_event({"text": "one\n\ndata: two\r\n"})
    assert event.count(b"\n") == 2
    assert json.loads(event.removeprefix(b"data: ")) == {"text": "one\n\ndata: two\r\n"}


class Text(WireModel):
    type: Literal["text"]
    text: str


class Link(WireModel):
    type: Literal["link"]
    url: str


class Body(RequestBody):
    ignored: ClassVar = {"user": "It changes no reply."}
    refused: ClassVar = {"audio": (None, "Replies are text."), "store": (False, "Nothing is stored.")}
    unions: ClassVar = frozenset({"parts"})

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    stop: Annotated[list[str], Field(max_length=4)] | None = None
    parts: list[Annotated[Text | Link, Field(discriminator="type")]] | None = None
    tool: Text | None = None


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"temperature": 3}, "temperature", "temperature must be less than or equal to 2, got 3."),
        ({"temperature": True}, "temperature", "temperature must be a valid number, got true."),
        ({"temperature": 10**30}, "temperature", "temperature must be less than or equal to 2, got a large number."),
        ({"temperature": "SECRET"}, "temperature", "temperature must be a valid number, got a text."),
        ({"temprature": 1}, "temprature", "There is no field temprature. Did you mean temperature?"),
        ({"zzz": "SECRET"}, "zzz", "There is no field zzz."),
        ({"stop": ["a"] * 5}, "stop", "stop must have at most 4 items, got 5."),
        ({"stop": ["a", ["SECRET"]]}, "stop[1]", "stop[1] must be a valid string, got a list."),
        ({"parts": [{"type": "text", "text": 5}]}, "parts[0].text", "parts[0].text must be a valid string, got 5."),
        ({"parts": [{"text": "SECRET"}]}, "parts[0].type", "parts[0].type is missing."),
        (
            {"parts": [{"type": "SECRET"}]},
            "parts[0].type",
            "parts[0].type must be one of 'text', 'link', got another.",
        ),
        ({"tool": {"type": "text"}}, "tool.text", "tool.text is missing."),
        ({"audio": {"voice": "SECRET"}}, "audio", "audio is not supported. Replies are text."),
        ({"store": True}, "store", "store is not supported. Nothing is stored."),
        ({"store": 0}, "store", "store is not supported. Nothing is stored."),
        (["SECRET"], None, "The body must be a JSON object, got a list."),
    ],
)
def test_an_error_names_the_field_and_repeats_no_text(body, param, message):
    with pytest.raises(WireError) as error:
        Body.read(body)
    assert (error.value.status, error.value.param, error.value.message) == (400, param, message)


def test_values_that_change_nothing_are_accepted():
    assert Body.read({"user": 7, "audio": None, "store": False}) == Body()


def test_a_field_with_a_long_or_strange_name_gives_a_short_ascii_error():
    with pytest.raises(WireError) as error:
        Body.read({"\u00e4" * 10_000: 1})
    assert error.value.message.isascii()
    assert len(error.value.message) < 100


@pytest.mark.parametrize("data", [b"[" + b"1," * 20_000 + b"1]", b"[" + b'{"a":[1]},' * 10_000 + b"{}]"])
def test_a_body_of_more_values_than_an_event_loop_can_check_is_refused(data):
    with pytest.raises(WireError) as caught:
        read_json(data)
    assert (caught.value.status, caught.value.code) == (413, "body_too_large")
    assert len(read_json(b"[" + b"1," * 19_999 + b"1]")) == 20_000
    assert read_json(b'"' + b"," * 100_000 + b'"')


@pytest.mark.parametrize("data", [b"", b"{", b'{"a": NaN}', b'"\\ud800"', b"\xff", b"[" * 100_000, b"1" * 10_000])
def test_what_is_no_json_is_refused(data):
    with pytest.raises(WireError, match="valid JSON"):
        read_json(data)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, "stop"),
        ({"finish_reason": "stop"}, "stop"),
        ({"finish_reason": "length"}, "length"),
        ({"finish_reason": "MAX_TOKENS"}, "length"),
        ({"finish_reason": "SAFETY"}, "content_filter"),
        ({"finish_reason": "stop", "stop_reason": "length"}, "stop"),
        ({"stop_reason": "end_turn"}, "stop"),
        ({"stop_reason": "max_tokens"}, "length"),
        ({"stopReason": "guardrail_intervened"}, "content_filter"),
        ({"done_reason": "length"}, "length"),
        ({"status": "completed"}, "stop"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, "content_filter"),
    ],
)
def test_the_end_of_a_reply_is_told_in_openais_words(metadata, expected):
    assert finish_reason(AIMessage("Hi", response_metadata=metadata)) == expected


def test_calls_end_a_reply_unless_it_is_cut_off():
    calls = [{"name": "add", "args": {}, "id": "1"}]
    assert finish_reason(AIMessage("", tool_calls=calls, response_metadata={"finish_reason": "stop"})) == "tool_calls"
    assert finish_reason(AIMessage("", tool_calls=calls, response_metadata={"finish_reason": "length"})) == "length"


def test_calls_keep_their_ids_and_unparsed_arguments():
    invalid = {"name": "add", "args": '{"a": ', "id": "2", "error": None}
    reply = AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1}, "id": "1"}], invalid_tool_calls=[invalid])
    assert [(call["id"], call["function"]["arguments"]) for call in tool_calls(reply, "x")] == [
        ("1", '{"a": 1}'),
        ("2", '{"a": '),
    ]
