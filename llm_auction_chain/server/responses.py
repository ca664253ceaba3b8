"""Responses: OpenAI's newer wire format, which the Open Responses specification makes one for all providers."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Annotated, Any, ClassVar, Literal, Self

from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, ToolMessage, convert_to_messages
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import override

from llm_auction_chain.server.wire import (
    Answer,
    Echo,
    Effort,
    Function,
    ImageUrl,
    Name,
    Named,
    ReplyBody,
    ReplyRequest,
    Verbosity,
    WireError,
    WireModel,
    assistant_message,
    content_of,
    finish_reason,
    invalid,
    server_sent_event,
    tool_calls,
)

__all__ = ["ModelResponse", "read_request"]

_ITEMS = ("message", "function_call", "function_call_output", "reasoning")
_STATELESS = "This server keeps no conversation. Send all of it as input."
_NO_LOGPROBS = "The reply is drawn among candidates, so its tokens have no probabilities of their own."
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_OPENING = ("response.created", "response.in_progress")
_CODES = {429: "rate_limit_exceeded", 500: "server_error", 503: "server_error"}
_NUMBERS = {"temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_NO_FORMAT: Mapping[str, Any] = {"type": "text"}
_FIXED: Mapping[str, Any] = {
    "background": False, "completed_at": None, "error": None, "incomplete_details": None, "max_tool_calls": None,
    "output": [], "usage": None, "previous_response_id": None, "prompt_cache_key": None,
    "safety_identifier": None, "service_tier": "default", "store": False, "top_logprobs": 0, "truncation": "disabled",
}  # fmt: skip


def _unsupported(subject: str, param: str, reason: str) -> WireError:
    return WireError(400, f"{subject} is not supported. {reason}", param=param, code="unsupported_parameter")


def _parts(value: Any) -> Any:
    """Return content as a list of parts."""
    if not isinstance(value, str | list):
        raise PydanticCustomError("content_type", "Input should be a text or a list of parts")
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


def _items(value: Any) -> Any:
    """Return the input as a list of items, each with its type."""
    if not isinstance(value, str | list):
        raise PydanticCustomError("input_type", "Input should be a text or a list of items")
    items = [{"role": "user", "content": value}] if isinstance(value, str) else value
    items = [{"type": "message", **item} if isinstance(item, Mapping) else item for item in items]
    return _of_types("input", items, _ITEMS, _STATELESS)


def _functions(value: Any) -> Any:
    return _of_types("tools", value, ("function",), "This server runs no tools of its own.")


def _of_types(field: str, values: Any, types: Sequence[str], reason: str) -> Any:
    """Refuse a list with a value of another type, by its name."""
    for place, value in enumerate(values if isinstance(values, list) else ()):
        kind = value.get("type") if isinstance(value, Mapping) else None
        if isinstance(kind, str) and re.fullmatch(r"\w{1,64}", kind, re.ASCII) and kind not in types:
            param = f"{field}[{place}].type"
            raise _unsupported(f"{param} {kind}", param, reason)
    return values


def _no_logprobs(value: list[str]) -> list[str]:
    if "message.output_text.logprobs" in value:
        raise _unsupported("include of message.output_text.logprobs", "include", _NO_LOGPROBS)
    return value


def _no_summary(value: str | None) -> str | None:
    if value is not None:
        reason = "Reasoning may quote what agents say to the model."
        raise _unsupported("reasoning.summary", "reasoning.summary", reason)
    return value


class _InputText(WireModel):
    type: Literal["input_text"]
    text: str

    def as_block(self) -> dict[str, Any]:
        return {"type": "text", "text": self.text}


class _OutputText(Echo):
    type: Literal["output_text"]
    text: str

    def as_block(self) -> dict[str, Any]:
        return {"type": "text", "text": self.text}


class _Refusal(WireModel):
    type: Literal["refusal"]
    refusal: str

    def as_block(self) -> dict[str, Any]:
        return {"type": "text", "text": self.refusal}


class _Image(WireModel):
    type: Literal["input_image"]
    image_url: ImageUrl
    detail: Literal["auto", "low", "high", "original"] | None = None

    def as_block(self) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": self.image_url, "detail": self.detail or "auto"}}


_Content = Annotated[
    list[Annotated[_InputText | _OutputText | _Refusal | _Image, Field(discriminator="type")]], BeforeValidator(_parts)
]


class _Item(WireModel):
    id: str | None = None
    status: str | None = None


class _Message(_Item):
    type: Literal["message"]
    role: Literal["user", "assistant", "system", "developer"]
    content: _Content
    phase: Literal["commentary", "final_answer"] | None = None

    @model_validator(mode="after")
    def _only_users_send_images(self) -> Self:
        if self.role != "user" and any(isinstance(part, _Image) for part in self.content):
            raise PydanticCustomError("image", "Input should be a message of the user to have images")
        return self


class _FunctionCall(Named, Echo):
    type: Literal["function_call"]
    call_id: str
    arguments: str


class _FunctionCallOutput(_Item):
    type: Literal["function_call_output"]
    call_id: str
    output: _Content


class _Reasoning(Echo):
    type: Literal["reasoning"]


class _Function(Function):
    type: Literal["function"]


class _FunctionReference(WireModel):
    type: Literal["function"]
    name: str


class _ToolChoice(WireModel):
    type: Literal["auto", "none", "required", "function", "allowed_tools"]
    name: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: Sequence[_FunctionReference] = ()

    def echo(self) -> Any:
        names = {"function": {"type", "name"}, "allowed_tools": {"type", "mode", "tools"}}
        return self.model_dump(include=names[self.type]) if self.type in names else self.type


class _Format(WireModel):
    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_a_schema(self) -> Self:
        if self.type == "json_schema" and (self.name is None or self.schema_ is None):
            raise PydanticCustomError("schema", "Input should have a name and a schema")
        return self


class _TextSettings(WireModel):
    format: _Format | None = None
    verbosity: Verbosity | None = None

    def echo(self) -> dict[str, Any]:
        sent = self.model_dump(by_alias=True, exclude_none=True)
        if self.format and self.format.type == "json_schema":  # of this one, the schema demands all fields
            sent["format"] |= {"description": self.format.description, "strict": bool(self.format.strict)}
        return sent

    def chat_format(self) -> dict[str, Any] | None:
        """Return the format as chat completions have it."""
        if self.format is None or self.format.type == "text":
            return None
        if self.format.type == "json_object":
            return {"type": "json_object"}
        details = self.format.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
        return {"type": "json_schema", "json_schema": details}


class _ReasoningSettings(WireModel):
    effort: Effort | None = None
    summary: Annotated[str | None, AfterValidator(_no_summary)] = None
    generate_summary: Annotated[str | None, AfterValidator(_no_summary)] = None


class _Body(ReplyBody):
    ignored: ClassVar[Mapping[str, str]] = {
        "prompt_cache_key": "Chooses a cache. It changes speed, no reply.",
        "prompt_cache_options": "As `prompt_cache_key`.",
        "prompt_cache_retention": "As `prompt_cache_key`.",
        "safety_identifier": "Names the end user for OpenAI's checks. It is read by no agent.",
        "service_tier": "Chooses OpenAI's price and speed.",
        "store": "Nothing is stored, and the answer says so.",
        "stream_options": "Streams are not obfuscated.",
        "user": "As `safety_identifier` and `prompt_cache_key`.",
    }
    refused: ClassVar[Mapping[str, tuple[Any, str]]] = {
        "background": (False, "The reply is the answer to this request."),
        "context_management": (None, _STATELESS),
        "conversation": (None, _STATELESS),
        "max_tool_calls": (None, "The client runs the tools, and can count the calls."),
        "moderation": (None, "The server's configuration chooses its filter."),
        "previous_response_id": (None, _STATELESS),
        "prompt": (None, "This server stores no prompts."),
        "top_logprobs": (0, _NO_LOGPROBS),
        "truncation": ("disabled", "Send as much as the model can read."),
    }
    unions: ClassVar[frozenset[str]] = frozenset({"content", "input", "output"})

    input: Annotated[
        list[Annotated[_Message | _FunctionCall | _FunctionCallOutput | _Reasoning, Field(discriminator="type")]],
        BeforeValidator(_items),
        Field(min_length=1),
    ]
    instructions: str | None = None
    tools: Annotated[list[_Function], BeforeValidator(_functions)] | None = None
    tool_choice: Annotated[
        _ToolChoice | None, BeforeValidator(lambda value: {"type": value} if isinstance(value, str) else value)
    ] = None
    text: _TextSettings | None = None
    reasoning: _ReasoningSettings | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    include: Annotated[list[str], AfterValidator(_no_logprobs)] | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=16
    )

    def request(self) -> ReplyRequest:
        """Return what the client asks for."""
        tools, tool_choice = self._allowed_tools()
        text = self.text or _TextSettings()
        functions = [tool.model_dump(exclude={"type"}, exclude_none=True) for tool in tools]
        return ReplyRequest(
            model=self.model,
            messages=tuple(self._messages()),
            keywords=self.keywords(
                tools=bool(tools),
                max_tokens=self.max_output_tokens,
                reasoning_effort=self.reasoning.effort if self.reasoning else None,
                verbosity=text.verbosity,
            ),
            tools=tuple({"type": "function", "function": function} for function in functions),
            tool_choice=tool_choice,
            response_format=text.chat_format(),
            stream=bool(self.stream),
            extra=self.auction,
            echo=self._echo(),
        )

    def _messages(self) -> Iterator[BaseMessage]:
        """Yield the conversation. A call belongs to the message before it, and its output follows, as models want it.

        Raises:
            WireError: an output has no call, or a call no output.
        """
        reply: list[_Message] = []
        calls: list[_FunctionCall] = []
        waiting: dict[str, int] = {}
        if self.instructions is not None:
            yield SystemMessage(self.instructions)
        for place, item in enumerate(self.input):
            if isinstance(item, _Reasoning):
                continue
            if isinstance(item, _FunctionCall):
                calls.append(item)
                waiting[item.call_id] = place
                continue
            yield from _assistant(reply, calls)
            reply, calls = [], []
            if isinstance(item, _FunctionCallOutput):
                if waiting.pop(item.call_id, None) is None:
                    raise invalid(f"input[{place}].call_id", "must be that of a function_call that has no output yet.")
                yield ToolMessage(content_of(_blocks(item.output)), tool_call_id=item.call_id)
            elif waiting:
                break
            elif item.role == "assistant":
                reply = [item]
            else:
                yield from convert_to_messages([{"role": item.role, "content": content_of(_blocks(item.content))}])
        if waiting:
            raise invalid(f"input[{min(waiting.values())}].call_id", "must have its function_call_output right after.")
        yield from _assistant(reply, calls)

    def _allowed_tools(self) -> tuple[list[_Function], str | None]:
        """Return the tools that the model may call, and `auto`, `required` or the one that it must call."""
        tools, choice = self.tools or [], self.tool_choice
        names = {tool.name for tool in tools}
        if len(names) < len(tools):
            raise invalid("tools", "must have different names.")
        if choice is None or choice.type == "none" or (choice.type == "auto" and not tools):
            return (tools if choice is None else []), None
        mode: str
        if choice.type in ("auto", "required"):
            chosen, mode = [tool.name for tool in tools], choice.type
        elif choice.type == "function":
            chosen, mode = [choice.name or ""], choice.name or ""
        else:
            chosen, mode = [tool.name for tool in choice.tools], choice.mode
        if not chosen or not names.issuperset(chosen):
            raise invalid("tool_choice", "must be of functions that are among the tools.")
        return [tool for tool in tools if choice.type == "function" or tool.name in chosen], mode

    def _echo(self) -> dict[str, Any]:
        """Return what the answer repeats. Its schema demands numbers where the request leaves them to the model."""
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        return {
            **{name: _NUMBERS[name] if value is None else value for name, value in numbers.items()},
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "reasoning": None if self.reasoning is None else {"effort": self.reasoning.effort, "summary": None},
            "text": {"format": _NO_FORMAT, **(self.text.echo() if self.text else {})},
            "tool_choice": self.tool_choice.echo() if self.tool_choice else "auto",
            "tools": [tool.model_dump() for tool in self.tools or ()],
        }


def read_request(body: Mapping[str, Any]) -> ReplyRequest:
    """Return what the body of `POST /v1/responses` asks for.

    Raises:
        WireError: a field is unknown, not supported or invalid.

    >>> read_request({"model": "ads", "input": "Hi"}).messages[0].text
    'Hi'
    """
    return _Body.read(body).request()


def _blocks(parts: Sequence[_InputText | _OutputText | _Refusal | _Image]) -> list[dict[str, Any]]:
    return [part.as_block() for part in parts]


def _assistant(reply: Sequence[_Message], calls: Sequence[_FunctionCall]) -> Iterator[AIMessage]:
    """Yield an earlier reply of a message and calls, if there is one."""
    if reply or calls:
        blocks = [block for message in reply for block in _blocks(message.content)]
        yield assistant_message(blocks, [(call.call_id, call.name, call.arguments) for call in calls])


class ModelResponse(Answer):
    """The answer to `POST /v1/responses`. Its one reply is known at once, so each part of it is one delta."""

    fields: ClassVar[Mapping[str, str]] = {
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "response_format": "text.format",
    }

    @override
    def __init__(self, request: ReplyRequest, *, identifier: str, created: int) -> None:
        super().__init__(request, identifier=identifier, created=created)
        self._numbers = count(len(_OPENING))

    @override
    def body(self, replies: Sequence[AIMessage], auctions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        reply = replies[0]
        reason = _INCOMPLETE.get(finish_reason(reply))
        return self._resource(
            "incomplete" if reason else "completed",
            completed_at=None if reason else max(self.created, int(time.time())),
            incomplete_details={"reason": reason} if reason else None,
            output=self._output(reply, "incomplete" if reason else "completed"),
            usage=_usage(reply),
            auction=auctions[0],
        )

    @override
    def opening(self) -> Iterator[bytes]:
        for number, kind in enumerate(_OPENING):
            yield self._event(kind, number, response=self._resource("in_progress"))

    @override
    def events(self, replies: Sequence[AIMessage], auctions: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
        response = self.body(replies, auctions)
        for index, item in enumerate(response["output"]):
            place = {"item_id": item["id"], "output_index": index}
            blank: dict[str, Any] = {"content": []} if item["type"] == "message" else {"arguments": ""}
            added = {**item, **blank, "status": "in_progress"}
            yield self._event("response.output_item.added", output_index=index, item=added)
            if item["type"] == "message":
                yield from self._part(item["content"][0], {**place, "content_index": 0})
            else:
                name = "response.function_call_arguments"
                yield self._event(f"{name}.delta", **place, delta=item["arguments"])
                yield self._event(f"{name}.done", **place, name=item["name"], arguments=item["arguments"])
            yield self._event("response.output_item.done", output_index=index, item=item)
        yield self._event(f"response.{response['status']}", response=response)
        yield server_sent_event("[DONE]")

    @override
    def failure(self, error: WireError) -> Iterator[bytes]:
        details = {"code": _CODES.get(error.status, "invalid_prompt"), "message": error.message}
        yield self._event("response.failed", response=self._resource("failed", error=details))
        yield server_sent_event("[DONE]")

    def _part(self, part: Mapping[str, Any], place: Mapping[str, Any]) -> Iterator[bytes]:
        """Yield the events of a text or a refusal."""
        extra: dict[str, Any]
        field, extra = ("refusal", {}) if part["type"] == "refusal" else ("text", {"logprobs": []})
        name = f"response.{part['type']}"
        yield self._event("response.content_part.added", **place, part={**part, field: ""})
        yield self._event(f"{name}.delta", **place, delta=part[field], **extra)
        yield self._event(f"{name}.done", **place, **{field: part[field]}, **extra)
        yield self._event("response.content_part.done", **place, part=part)

    def _output(self, reply: AIMessage, status: str) -> list[dict[str, Any]]:
        """Return the items of a reply. Of a reply that is cut off, only the last item is incomplete."""
        calls = [
            {"type": "function_call", "id": f"fc_{self.identifier}_{place}", "call_id": call["id"], **call["function"]}
            for place, call in enumerate(tool_calls(reply, self.identifier))
        ]
        text, refusal = str(reply.text), reply.additional_kwargs.get("refusal")
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        if refusal and not text:
            part = {"type": "refusal", "refusal": str(refusal)}
        message = {"type": "message", "id": f"msg_{self.identifier}", "role": "assistant", "content": [part]}
        items = [*([message] if text or refusal or not calls else []), *calls]
        return [{**item, "status": status if item is items[-1] else "completed"} for item in items]

    def _resource(self, status: str, **fields: Any) -> dict[str, Any]:
        return {
            "id": f"resp_{self.identifier}",
            "object": "response",
            "created_at": self.created,
            "model": self.request.model,
            "status": status,
            **_FIXED,
            **self.request.echo,
            **fields,
        }

    def _event(self, kind: str, number: int | None = None, /, **fields: Any) -> bytes:
        number = next(self._numbers) if number is None else number
        return server_sent_event({"type": kind, "sequence_number": number, **fields}, event=kind)


def _usage(reply: AIMessage) -> dict[str, Any] | None:
    if (usage := reply.usage_metadata) is None:
        return None
    inputs, outputs = usage.get("input_token_details", {}), usage.get("output_token_details", {})
    return {
        "input_tokens": usage["input_tokens"],
        "input_tokens_details": {
            "cached_tokens": inputs.get("cache_read") or 0,
            "cache_write_tokens": inputs.get("cache_creation") or 0,
        },
        "output_tokens": usage["output_tokens"],
        "output_tokens_details": {"reasoning_tokens": outputs.get("reasoning") or 0},
        "total_tokens": usage["total_tokens"],
    }
