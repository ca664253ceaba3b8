"""Chat completions: the wire format of OpenAI that nearly every client speaks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from langchain_core.messages import AIMessage, convert_to_messages
from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from llm_auction_chain.messages import total_usage
from llm_auction_chain.server.wire import (
    Answer,
    Echo,
    Effort,
    Function,
    ImageUrl,
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

__all__ = ["ChatCompletion", "read_request"]

_SEEDS = 2**64  # OpenAI's seeds have a sign, an auction's have none


def _parts(value: Any) -> Any:
    """Return content as a list of parts."""
    if not isinstance(value, str | list):
        raise PydanticCustomError("content_type", "Input should be a text or a list of parts")
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class _Text(WireModel):
    type: Literal["text"]
    text: str


class _Refusal(WireModel):
    type: Literal["refusal"]
    refusal: str


class _ImageUrl(WireModel):
    url: ImageUrl
    detail: Literal["auto", "low", "high", "original"] | None = None


class _Image(WireModel):
    type: Literal["image_url"]
    image_url: _ImageUrl


_Content = Annotated[
    list[Annotated[_Text | _Image | _Refusal, Field(discriminator="type")]],
    BeforeValidator(_parts),
    Field(min_length=1),
]


class _Message(WireModel):
    kinds: ClassVar[tuple[str, ...]] = ("text",)

    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    content: _Content | None

    @field_validator("content")
    @classmethod
    def _check_kinds(cls, content: list[Any] | None) -> list[Any] | None:
        if any(part.type not in cls.kinds for part in content or ()):
            expected = {"kinds": " or ".join(cls.kinds)}
            raise PydanticCustomError("part_type", "Input should have only parts of type {kinds}", expected)
        return content

    def as_input(self) -> Any:
        """Return the message as `convert_to_messages` takes it."""
        message = self.model_dump(exclude_none=True)
        return {**message, "content": content_of(message["content"])}


class _SystemMessage(_Message):
    role: Literal["system", "developer"]
    content: _Content


class _UserMessage(_Message):
    kinds = ("text", "image_url")

    role: Literal["user"]
    content: _Content


class _ToolMessage(_Message):
    role: Literal["tool"]
    content: _Content
    tool_call_id: str


class _CalledFunction(Echo):
    name: str
    arguments: str


class _Call(Echo):
    id: str
    type: Literal["function"]
    function: _CalledFunction


class _AssistantMessage(_Message, Echo):
    kinds = ("text", "refusal")

    role: Literal["assistant"]
    content: _Content | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[_Call], Field(min_length=1)] | None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _says_something(self) -> "_AssistantMessage":
        if self.content is None and self.refusal is None and self.tool_calls is None:
            raise PydanticCustomError("empty_message", "Input should have content, tool_calls or a refusal")
        return self

    def as_input(self) -> AIMessage:
        """Return the message. `convert_to_messages` fails at calls whose arguments are no JSON object."""
        parts = [*(self.content or ()), *([_Refusal(type="refusal", refusal=self.refusal)] if self.refusal else ())]
        texts = [part.refusal if isinstance(part, _Refusal) else part.text for part in parts]
        calls = [(call.id, call.function.name, call.function.arguments) for call in self.tool_calls or ()]
        return assistant_message([{"type": "text", "text": text} for text in texts], calls, self.name)


class _Tool(WireModel):
    type: Literal["function"]
    function: Function


class _ToolChoice(WireModel):
    type: Literal["auto", "none", "required", "function"]
    function: Named | None = None


class _Schema(Named):
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class _ResponseFormat(WireModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None


class _StreamOptions(WireModel):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # streams have none


_AnyMessage = Annotated[
    _SystemMessage | _UserMessage | _AssistantMessage | _ToolMessage,
    Field(discriminator="role"),
]
_Tokens = Annotated[int, Field(ge=1)]


class _Body(ReplyBody):
    ignored: ClassVar[Mapping[str, str]] = {
        "metadata": "Labels of stored completions. Nothing is stored.",
        "prompt_cache_key": "Chooses a cache. It changes speed, no reply.",
        "prompt_cache_options": "As `prompt_cache_key`.",
        "prompt_cache_retention": "As `prompt_cache_key`.",
        "safety_identifier": "Names the end user for OpenAI's checks. It is read by no agent.",
        "service_tier": "Chooses OpenAI's price and speed.",
        "user": "As `safety_identifier` and `prompt_cache_key`.",
    }
    refused: ClassVar[Mapping[str, tuple[Any, str]]] = {
        "audio": (None, "Replies are text."),
        "function_call": (None, "Use tool_choice."),
        "functions": (None, "Use tools."),
        "logit_bias": ({}, "Agents change how likely replies are, a request does not."),
        "logprobs": (False, "The reply is drawn among candidates, so its tokens have no probabilities of their own."),
        "modalities": (["text"], "Replies are text."),
        "moderation": (None, "The server's configuration chooses its filter."),
        "prediction": (None, "Candidates are drawn, not predicted."),
        "store": (False, "Nothing is stored."),
        "top_logprobs": (None, "The reply is drawn among candidates; see logprobs."),
        "web_search_options": (None, "Pass a search function in tools."),
    }
    unions: ClassVar[frozenset[str]] = frozenset({"content", "messages"})

    messages: Annotated[list[_AnyMessage], Field(min_length=1)]
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    stop: (
        Annotated[
            list[Annotated[str, Field(min_length=1)]],
            BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
            Field(max_length=4),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-_SEEDS // 2, lt=_SEEDS // 2)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    reasoning_effort: Effort | None = None
    verbosity: Verbosity | None = None
    tools: Annotated[list[_Tool], Field(max_length=128)] | None = None
    tool_choice: (
        Annotated[_ToolChoice, BeforeValidator(lambda value: {"type": value} if isinstance(value, str) else value)]
        | None
    ) = None
    response_format: _ResponseFormat | None = None
    stream_options: _StreamOptions | None = None


def read_request(body: Mapping[str, Any]) -> ReplyRequest:
    """Return what the body of a request for a chat completion asks for.

    Raises:
        WireError: the body is invalid, or has a field that is unknown or not supported.

    >>> request = read_request({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9})
    >>> request.messages[0].text, request.keywords
    ('Hi', {'max_tokens': 9})
    """
    request = _Body.read(body)
    _check_calls(request.messages)
    tools, choice = _tools(request)
    if request.stream_options and not request.stream:
        raise invalid("stream_options", "needs stream to be true.")
    tokens = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(tokens) > 1:
        raise invalid("max_tokens", "must be the same as max_completion_tokens. Give one of them.")
    keywords = request.keywords(
        tools=bool(tools),
        max_tokens=next(iter(tokens), None),
        stop=request.stop or None,
        reasoning_effort=request.reasoning_effort,
        verbosity=request.verbosity,
    )
    return ReplyRequest(
        model=request.model,
        messages=tuple(convert_to_messages([message.as_input() for message in request.messages])),
        keywords=keywords,
        tools=tools,
        tool_choice=choice,
        response_format=_response_format(request.response_format),
        seed=None if request.seed is None else request.seed % _SEEDS,
        n=request.n or 1,
        stream=bool(request.stream),
        stream_usage=bool(request.stream_options and request.stream_options.include_usage),
        extra=request.auction,
    )


def _check_calls(messages: Sequence[_Message]) -> None:
    """Refuse results of tools without their calls, and calls without results, which models refuse with no clear error.

    Raises:
        WireError: there is one.
    """
    waiting: set[str] = set()
    for place, message in enumerate(messages):
        if isinstance(message, _ToolMessage):
            if message.tool_call_id not in waiting:
                raise invalid(f"messages[{place}].tool_call_id", "must be the id of a call that has no result yet.")
            waiting.remove(message.tool_call_id)
        elif waiting:
            break
        elif isinstance(message, _AssistantMessage):
            waiting = {call.id for call in message.tool_calls or ()}
    if waiting:
        raise invalid("messages", "must have a tool message for each call, right after the assistant message.")


def _response_format(response_format: _ResponseFormat | None) -> Mapping[str, Any] | None:
    """Return the format of a reply, None for text.

    Raises:
        WireError: it has no schema where it needs one, or the other way round.
    """
    if response_format is None:
        return None
    if (response_format.type == "json_schema") != (response_format.json_schema is not None):
        raise invalid("response_format.json_schema", 'belongs to type "json_schema", which needs it.')
    return None if response_format.type == "text" else response_format.model_dump(by_alias=True, exclude_none=True)


def _tools(request: _Body) -> tuple[tuple[Mapping[str, Any], ...], str | None]:
    """Return the tools that the model may call, and its choice among them.

    Raises:
        WireError: two tools have one name, or the choice is no tool.
    """
    tools = request.tools or []
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise invalid("tools", "must have different names.")
    choice = request.tool_choice
    kind = choice.type if choice else None
    if choice and (kind == "function") != (choice.function is not None):
        raise invalid("tool_choice.function", 'belongs to type "function", which needs it.')
    if kind == "required" and not tools:
        raise invalid("tool_choice", "must not be required without tools.")
    name = choice.function.name if choice and choice.function else None
    if name is not None and name not in names:
        raise invalid("tool_choice.function.name", "must be the name of one of the tools.")
    if kind == "none" or not tools:
        return (), None
    return tuple(tool.model_dump(exclude_none=True) for tool in tools), name or kind


class ChatCompletion(Answer):
    """The answer to a request for a chat completion."""

    def body(self, replies: Sequence[AIMessage], auctions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a `chat.completion`."""
        choices = []
        for index, reply in enumerate(replies):
            message = self._message(index, reply)
            choices.append(
                {"index": index, "message": message, "logprobs": None, "finish_reason": finish_reason(reply)}
            )
        body = {**self._base("chat.completion", choices), "usage": _usage(replies)}
        for place, auction in zip([body] if self.request.n == 1 else choices, auctions, strict=True):
            place["auction"] = auction
        return body

    def opening(self) -> Iterator[bytes]:
        """Yield who speaks."""
        for index in range(self.request.n):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def events(self, replies: Sequence[AIMessage], auctions: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
        """Yield each reply in one piece, as it is drawn in one, its calls of tools, and how it ended."""
        for index, (reply, auction) in enumerate(zip(replies, auctions, strict=True)):
            message = self._message(index, reply)
            for name in ("content", "refusal"):
                if message[name]:
                    yield self._chunk(index, {name: message[name]})
            for place, call in enumerate(message.get("tool_calls", ())):
                yield self._chunk(index, {"tool_calls": [{"index": place, **call}]})
            yield self._chunk(index, {}, finish_reason(reply), auction)
        if self.request.stream_usage:
            yield server_sent_event({**self._base("chat.completion.chunk", []), "usage": _usage(replies)})
        yield server_sent_event("[DONE]")

    def failure(self, error: WireError) -> Iterator[bytes]:
        """Yield the error, at which OpenAI's clients raise one. No `[DONE]` follows: the answer is not whole."""
        yield server_sent_event(error.envelope())

    def _base(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        identifier, model = f"chatcmpl-{self.identifier}", self.request.model
        return {"id": identifier, "object": kind, "created": self.created, "model": model, "choices": choices}

    def _message(self, index: int, reply: AIMessage) -> dict[str, Any]:
        calls = tool_calls(reply, f"{self.identifier}_{index}")
        refusal = reply.additional_kwargs.get("refusal")
        empty = None if calls or refusal else ""
        content = str(reply.text) or empty
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": refusal, "annotations": []}
        return {**message, "tool_calls": calls} if calls else message

    def _chunk(
        self,
        index: int,
        delta: Mapping[str, Any],
        reason: str | None = None,
        auction: Mapping[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        chunk = self._base("chat.completion.chunk", [choice])
        if self.request.stream_usage:
            chunk["usage"] = None
        if auction is not None:
            (chunk if self.request.n == 1 else choice)["auction"] = auction
        return server_sent_event(chunk)


def _usage(replies: Sequence[AIMessage]) -> dict[str, Any] | None:
    """Return the token counts of all auctions, in the words of chat completions; None where no model counts."""
    usage = total_usage(reply.usage_metadata for reply in replies)
    if usage is None:
        return None
    counts: dict[str, Any] = {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
    }
    prompt, completion = usage.get("input_token_details", {}), usage.get("output_token_details", {})
    details = {
        "prompt_tokens_details": {
            "cached_tokens": prompt.get("cache_read"),
            "cache_write_tokens": prompt.get("cache_creation"),
            "audio_tokens": prompt.get("audio"),
        },
        "completion_tokens_details": {
            "reasoning_tokens": completion.get("reasoning"),
            "audio_tokens": completion.get("audio"),
        },
    }
    for name, all_counts in details.items():
        if reported := {word: count for word, count in all_counts.items() if count is not None}:
            counts[name] = reported
    return counts
