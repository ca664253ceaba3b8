"""What both wire formats share: a request for replies, an answer in its format, errors, usage."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage

__all__ = ["Answer", "ReplyRequest", "WireError", "server_sent_event"]

Status = Literal[400, 401, 403, 404, 409, 413, 429, 500, 503]
_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


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
        extra: the request's own field `auction`, which only an operator may send.
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
    extra: Mapping[str, Any] | None = None


class Answer(ABC):
    """The answer to one request in its wire format.

    Args:
        request: what the client asks for.
        identifier: 32 hexadecimal digits, the same for a repeated request with one idempotency key.
        created: seconds since 1970.
    """

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
