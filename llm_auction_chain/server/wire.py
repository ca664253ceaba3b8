"""What both wire formats share: a request for replies, an answer in its format, errors, how a reply ended."""

import difflib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.tool import invalid_tool_call, tool_call
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError, from_json

from llm_auction_chain.messages import ENDS, calls_of, json_of, parsed

__all__ = [
    "Answer",
    "Echo",
    "Effort",
    "Function",
    "ImageUrl",
    "Name",
    "Named",
    "ReplyBody",
    "ReplyRequest",
    "RequestBody",
    "Verbosity",
    "WireError",
    "WireModel",
    "assistant_message",
    "content_of",
    "finish_reason",
    "invalid",
    "read_json",
    "server_sent_event",
    "tool_calls",
]

Status = Literal[400, 401, 403, 404, 408, 409, 413, 429, 500, 503]
_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
_MOST_VALUES = 20_000  # in a body; checking more holds up the event loop
# What models of LangChain say where a reply is cut off, or withheld, in lower case.
_CUT = frozenset({"length", "max_output_tokens", "max_tokens", "model_context_window_exceeded", "model_length"})
_WITHHELD = frozenset(
    {"blocklist", "content_filter", "content_filtered", "guardrail_intervened", "image_safety", "prohibited_content"}
    | {"recitation", "refusal", "safety", "spii"}
)


class WireError(Exception):
    """A request that gets no reply: the status and the error that the client sees.

    Args:
        status: of the HTTP response.
        message: what was wrong, what is allowed, what to do. It holds nothing private.
        param: the field of the request that was wrong.
        code: a word for programs, such as `model_not_found`.
        retry_after: seconds after which a repeated request may succeed.

    >>> WireError(404, "There is no model 'x'.", param="model", code="model_not_found").envelope()["error"]["type"]
    'invalid_request_error'
    """

    def __init__(
        self,
        status: Status,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def envelope(self) -> dict[str, Any]:
        """Return the body of the response, in the shape that OpenAI's clients read."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(param: str, problem: str) -> WireError:
    """Return the error of a field whose value is not possible.

    >>> invalid("n", "must be 1.").message
    'n must be 1.'
    """
    return WireError(400, f"{param} {problem}", param=param, code="invalid_value")


def read_json(data: bytes) -> Any:
    """Return a request's body as JSON, without NaN, lone surrogates and nesting that no format needs.

    Raises:
        WireError: it is not JSON, or has so many values that checking them would hold up other requests.
    """
    try:
        content = from_json(data, allow_inf_nan=False)
    except (RecursionError, ValueError):
        raise WireError(400, "The body must be valid JSON in UTF-8.", code="invalid_json") from None
    count, containers = 0, [content] if isinstance(content, dict | list) else []
    while containers:
        container = containers.pop()
        values = container.values() if isinstance(container, dict) else container
        count += len(values)
        if count > _MOST_VALUES:
            raise WireError(413, f"The body must have at most {_MOST_VALUES} values.", code="body_too_large")
        containers += [value for value in values if isinstance(value, dict | list)]
    return content


class WireModel(BaseModel):
    """A part of a request: types are strict, numbers are finite, unknown fields are refused."""

    model_config = ConfigDict(allow_inf_nan=False, extra="forbid", strict=True)


class Echo(WireModel):
    """A part of an earlier reply, to which clients' libraries add fields of their own. They are not read."""

    model_config = ConfigDict(extra="ignore")


def _safe_url(url: str) -> str:
    """Refuse a URL with which a model's server would read its own files, or call a service without TLS."""
    if not url.lower().startswith(("https://", "data:image/")):
        raise PydanticCustomError("url_scheme", "Input should be an https: URL or the data: URL of an image")
    return url


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Verbosity = Literal["low", "medium", "high"]
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
ImageUrl = Annotated[str, AfterValidator(_safe_url)]


class Named(WireModel):
    """A part with a name that models can write."""

    name: Name


class Function(Named):
    """A tool that the client runs."""

    description: str | None = None
    parameters: Annotated[dict[str, Any], BeforeValidator(lambda value: _NO_PARAMETERS if value is None else value)] = (
        _NO_PARAMETERS
    )
    strict: bool | None = None


class RequestBody(WireModel):
    """The body of a request. Errors are `WireError`s that name the field and repeat no text of the client."""

    ignored: ClassVar[Mapping[str, str]] = {}
    """Fields that change no reply, each with the reason. Their values are not read."""
    refused: ClassVar[Mapping[str, tuple[Any, str]]] = {}
    """Fields that are not supported, each with the value that changes nothing, and the reason."""
    unions: ClassVar[frozenset[str]] = frozenset()
    """Lists whose items have a class for each `type` or `role`, which pydantic adds to the place of an error."""

    @classmethod
    def read(cls, body: Any) -> Self:
        """Return the body of a request, checked.

        Raises:
            WireError: it is not a JSON object, or a field of it is unknown, not supported or invalid.
        """
        if not isinstance(body, Mapping):
            raise WireError(400, f"The body must be a JSON object, got {_kind(body)}.")
        for name, (neutral, reason) in cls.refused.items():
            value = body.get(name)
            if value is not None and not (type(value) is type(neutral) and value == neutral):
                raise WireError(400, f"{name} is not supported. {reason}", param=name, code="unsupported_parameter")
        try:
            return cls.model_validate({n: v for n, v in body.items() if n not in cls.ignored and n not in cls.refused})
        except ValidationError as error:
            raise cls._wire_error(error.errors(include_url=False)[0]) from None

    @classmethod
    def _wire_error(cls, details: ErrorDetails) -> WireError:
        """Return the error of a request for one of pydantic's, whose texts say that an input should be something."""
        kind, context = details["type"], details.get("ctx", {})
        param = cls._param(details["loc"])
        if kind.startswith("union_tag"):
            param += "." + context["discriminator"].strip("'")
        if kind in ("missing", "union_tag_not_found"):
            return WireError(400, f"{param} is missing.", param=param, code="missing_required_parameter")
        if kind == "extra_forbidden":
            close = difflib.get_close_matches(param, cls.model_fields, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            return WireError(400, f"There is no field {param}.{hint}", param=param, code="unknown_parameter")
        expected, value = details["msg"].partition(" should ")[2], _kind(details["input"])
        if kind == "union_tag_invalid":  # pydantic's text repeats the tag
            expected, value = f"be one of {context['expected_tags']}", "another"
        elif kind in ("too_long", "too_short"):
            expected, value = expected.partition(" after ")[0], context["actual_length"]
        code = "invalid_type" if kind.endswith("_type") else "invalid_value"
        return WireError(400, f"{param} must {expected or 'be valid'}, got {value}.", param=param, code=code)

    @classmethod
    def _param(cls, place: tuple[int | str, ...]) -> str:
        """Return the place of an error as in `messages[2].content`. Names that a client chose are cut and escaped."""
        text, before = "", ("", "")
        for part in place:
            if isinstance(part, int):
                text += f"[{part}]"
            elif not (before[1] == "[]" and before[0] in cls.unions):
                text += "." * bool(text) + part.encode("ascii", "backslashreplace").decode()[:64]
            before = (before[1], "[]" if isinstance(part, int) else part)
        return text


class ReplyBody(RequestBody):
    """The fields that both formats share."""

    model: Annotated[str, Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    auction: dict[str, Any] | None = None

    def keywords(self, *, tools: bool, **further: Any) -> dict[str, Any]:
        """Return what the client sets and the model has to know: the shared settings, and further ones.

        Args:
            tools: whether the model may call tools.
            **further: settings; None is left out.
        """
        keywords = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "frequency_penalty": self.frequency_penalty or None,
            "presence_penalty": self.presence_penalty or None,
            "parallel_tool_calls": False if tools and self.parallel_tool_calls is False else None,
            **further,
        }
        return {name: value for name, value in keywords.items() if value is not None}


def _kind(value: object) -> str:
    """Return a number as it is, and of other values what they are."""
    if isinstance(value, str | list | Mapping):
        return "a text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"
    return "a large number" if isinstance(value, int) and abs(value) > 10**20 else json.dumps(value)


@dataclass(frozen=True, kw_only=True)
class ReplyRequest:
    """What a client asks for, in neither wire format.

    Attributes:
        model: id of an auction on this server.
        messages: the conversation.
        keywords: for the chat model: `temperature`, `top_p`, `max_tokens`, `stop` and what else the client set.
        tools: functions that the model may call, in the nested form of chat completions.
        tool_choice: `auto`, `required`, or the name of a tool; None where the client leaves it to the model. With
            `none` there are no `tools`.
        response_format: in the form of chat completions; None for text.
        seed: repeats the auction; None draws a fresh one.
        n: how many replies, each from an auction of its own.
        stream: whether the answer is a stream of events.
        stream_usage: whether a stream of chat completions ends with the token counts.
        extra: the request's own field `auction`, which only an operator may send.
        echo: fields of the answer that repeat the request, such as `metadata`.
    """

    model: str
    messages: tuple[BaseMessage, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str | None = None
    response_format: Mapping[str, Any] | None = None
    seed: int | None = None
    n: int = 1
    stream: bool = False
    stream_usage: bool = False
    extra: Mapping[str, Any] | None = None
    echo: Mapping[str, Any] = field(default_factory=dict)


class Answer(ABC):
    """The answer to one request in its wire format.

    Args:
        request: what the client asks for.
        identifier: 32 hexadecimal digits, the same for a repeated request with one idempotency key.
        created: seconds since 1970.
    """

    fields: ClassVar[Mapping[str, str]] = {}
    """What the format calls `messages`, `max_tokens` and `response_format`, where it has other names for them."""

    def __init__(self, request: ReplyRequest, *, identifier: str, created: int) -> None:
        self.request, self.identifier, self.created = request, identifier, created

    @abstractmethod
    def body(self, replies: Sequence[AIMessage], auctions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the whole answer as plain JSON.

        Args:
            replies: (n,), one of each auction.
            auctions: (n,), what the client may see of each auction.
        """

    def opening(self) -> Iterator[bytes]:
        """Yield the events of a stream that need no reply; they are sent while the auction runs."""
        yield from ()

    @abstractmethod
    def events(self, replies: Sequence[AIMessage], auctions: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
        """Yield the events of a stream that carry the replies, up to its end."""

    @abstractmethod
    def failure(self, error: WireError) -> Iterator[bytes]:
        """Yield the events that end a stream whose auction failed after the stream had begun."""


def server_sent_event(data: Mapping[str, Any] | str, *, event: str | None = None) -> bytes:
    r"""Return an event of a stream.

    >>> server_sent_event({"a": 1}, event="b")
    b'event: b\ndata: {"a":1}\n\n'
    """
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"), allow_nan=False)
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {text}\n\n".encode()


def finish_reason(reply: AIMessage) -> Literal["stop", "length", "tool_calls", "content_filter"]:
    """Return how a reply ended, in OpenAI's words, from what the model of any provider says.

    >>> finish_reason(AIMessage("Hi", response_metadata={"stop_reason": "max_tokens"}))
    'length'
    """
    ends = [reply.response_metadata[name] for name in ENDS if reply.response_metadata.get(name)]
    if "finish_reason" in reply.response_metadata:
        ends = ends[:1]  # beside it, vLLM's `stop_reason` is a text that the client chose
    words = {str(value.get("reason") if isinstance(value, Mapping) else value).lower() for value in ends}
    if words & _CUT:
        return "length"
    if calls_of(reply):
        return "tool_calls"
    return "content_filter" if words & _WITHHELD else "stop"


def tool_calls(reply: AIMessage, identifier: str) -> list[dict[str, Any]]:
    """Return a reply's calls of tools as chat completions have them.

    Args:
        reply: from the model.
        identifier: from which a call without an id gets one.

    >>> call = {"name": "add", "args": {"a": 1}, "id": None}
    >>> tool_calls(AIMessage("", tool_calls=[call]), "7")
    [{'id': 'call_7_0', 'type': 'function', 'function': {'name': 'add', 'arguments': '{"a": 1}'}}]
    """
    identifiers = [call["id"] for call in (*reply.tool_calls, *reply.invalid_tool_calls)]
    calls = []
    for place, (name, arguments) in enumerate(calls_of(reply)):
        text = arguments if isinstance(arguments, str) else json_of(arguments)
        own = identifiers[place] if identifiers else None
        function = {"name": name, "arguments": text}
        calls.append({"id": own or f"call_{identifier}_{place}", "type": "function", "function": function})
    return calls


def content_of(parts: Sequence[Mapping[str, Any]]) -> Any:
    """Return parts as models know them best: a text where that is all there is.

    >>> content_of([{"type": "text", "text": "Hi"}])
    'Hi'
    """
    if not parts:
        return ""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else list(parts)


def assistant_message(
    parts: Sequence[Mapping[str, Any]], calls: Iterable[tuple[str, str, str]] = (), name: str | None = None
) -> AIMessage:
    """Return an earlier reply.

    Args:
        parts: what it says.
        calls: of tools: id, name and arguments, which need not be JSON.
        name: of who says it.

    >>> assistant_message([], [("1", "add", "{")]).invalid_tool_calls[0]["args"]
    '{'
    """
    message = AIMessage(content_of(parts), name=name)
    for identifier, function, text in calls:
        arguments = parsed(text or "{}")
        if isinstance(arguments, dict):
            message.tool_calls.append(tool_call(name=function, args=arguments, id=identifier))
        else:
            call = invalid_tool_call(name=function, args=arguments, id=identifier, error=None)
            message.invalid_tool_calls.append(call)
    return message
