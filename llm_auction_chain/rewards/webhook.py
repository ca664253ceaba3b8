"""A reward that a bidder elsewhere works out: the request, its signature, and the answers that are accepted."""

import asyncio
import hmac
import json
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.utils.uuid import uuid7
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_jsonable_python
from typing_extensions import override

from llm_auction_chain.errors import ConfigurationError, RewardError
from llm_auction_chain.rewards.base import Prompt, Replies, WaitingReward, asked_by
from llm_auction_chain.validators import number, refuse, whole_number
from llm_auction_chain.waiting import Waiter

if TYPE_CHECKING:
    from concurrent.futures import Future

    from httpx import URL

__all__ = ["WebhookReward"]

_SCHEMA = "llm_auction_chain.bid_request/1"
_LEAST_SECONDS = 0.001
_HIGHEST_PORT = 65535
_ROLES = (
    (AIMessage, "assistant"),
    (HumanMessage, "user"),
    (SystemMessage, "system"),
    ((ToolMessage, FunctionMessage), "tool"),
)


class _Answer(BaseModel):
    """The answer of a bidder. Other fields are ignored, so that it may add some that this version does not know."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")

    rewards: list[float]


@dataclass(frozen=True)
class WebhookReward(WaitingReward):
    """Asks a bidder elsewhere for its amounts, with one signed POST per auction.

    The request holds the prompt, the replies, the auction's id and currency, and nothing about other agents. The answer
    is `{"rewards": [...]}`, one finite number per reply. The header `X-Auction-Signature` is `v1=` and the hex
    HMAC-SHA256, under the secret, of the header `X-Auction-Timestamp` (Unix seconds), a dot, and the body.
    `Idempotency-Key` is the body's `request_id`: a request that comes twice with one key is one request. Connections
    stay open for the next auction. A bidder to copy: cookbook/webhook_bidder.md.

    Attributes:
        url: where to ask. All addresses of its host must be public. Redirects and proxies are not followed.
        secret: a text that only the bidder has too; in no message and no repr.
        timeout: seconds, from the look-up of the address to the last byte of the answer.
        max_bytes: the most bytes of an answer, its head included. No more are read.
        allow_http: whether the URL may be `http://`, so that the network between can read the prompt.
        allow_private: whether the host may be at an address that is not public. The URL then decides what this
            process talks to in your own network.
        tls: the certificate authorities to trust, instead of the usual ones.

    Raises:
        ConfigurationError: the URL, the secret or a limit is not allowed.
        RewardError: from `score`, an answer that is not one finite number per reply.
        TimeoutError: from `score`, no answer in time.
        ConnectionError: from `score`, no connection, or a status other than 200.
        MissingDependencyError: httpx is not installed.

    >>> WebhookReward("https://songbook.example/bid", "a long shared secret", timeout=0.5)
    WebhookReward(url='https://songbook.example/bid', timeout=0.5, max_bytes=65536)
    """

    url: str
    secret: str = field(repr=False)
    _: KW_ONLY
    timeout: float = 2.0
    max_bytes: int = 65536
    allow_http: bool = field(default=False, repr=False)
    allow_private: bool = field(default=False, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the settings. No message shows the secret, nor a URL that may hold one."""
        if not isinstance(self.secret, str) or not self.secret or not _can_be_encoded(self.secret):
            raise ConfigurationError("secret must be a text that is not empty, which the bidder has too.")
        number("timeout", self.timeout, least=_LEAST_SECONDS)
        whole_number("max_bytes", self.max_bytes, least=1)
        if self.tls is not None and not isinstance(self.tls, ssl.SSLContext):
            raise refuse("tls", "an ssl.SSLContext or None", self.tls)
        url = self._url
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigurationError("The URL must be a whole one: https://host/path.")
        if url.scheme == "http" and not self.allow_http:
            raise ConfigurationError(
                f"The URL must begin with https://, or everybody on the way to {url.host} can read the prompt. "
                "Set allow_http=True to allow that."
            )
        if url.userinfo or url.fragment:
            raise ConfigurationError("The URL must have no user name, password or fragment. The signature is enough.")
        if url.port is not None and not 0 < url.port <= _HIGHEST_PORT:
            raise ConfigurationError(f"The port in the URL must be from 1 to {_HIGHEST_PORT}, got {url.port}.")

    @override
    async def _score(self, prompt: Prompt, replies: Replies, waiter: Waiter) -> Sequence[float]:
        amounts = self._post(_messages(prompt, replies), len(replies))
        try:
            return await waiter.either(amounts.result, lambda: asyncio.wrap_future(amounts))
        finally:
            amounts.cancel()  # if Ctrl-C or a cancellation ended the wait

    @override
    def start(self, prompt: Prompt, replies: Replies) -> "Future[list[float]] | None":
        if type(self) is not WebhookReward:  # a subclass may override `score`
            return None
        ids = [*map(id, prompt)], [*map(id, replies)]
        last = getattr(_round, "last", None)
        if last is None or last[0] != ids:
            last = _round.last = (ids, (*prompt, *replies), _messages(prompt, replies))  # ids of messages that stay
        return self._post(last[2], len(replies))

    def _post(self, messages: bytes, n_replies: int) -> "Future[list[float]]":
        """Send the request and return the amounts in future. Cancelling the future ends the request."""
        from llm_auction_chain.http_client import Bidder, certificates, post

        url = self._url
        tls = None if url.scheme == "http" else self.tls or certificates()
        bidder = Bidder(self, url, tls, self.allow_private, self.timeout, self.max_bytes)
        request_id = str(uuid7())
        body = _body(request_id, messages)
        timestamp = str(int(time.time()))
        signature = hmac.digest(self.secret.encode(), f"{timestamp}.".encode() + body, "sha256").hex()
        headers = {
            "Host": url.netloc.decode(),
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "llm-auction-chain",
            "Idempotency-Key": request_id,
            "X-Auction-Timestamp": timestamp,
            "X-Auction-Signature": f"v1={signature}",
        }
        return post(bidder, list(headers.items()), body, partial(self._amounts, n_replies))

    @cached_property
    def _url(self) -> "URL":
        from llm_auction_chain.http_client import parse_url

        return parse_url(self.url)

    def _amounts(self, n_replies: int, body: bytes) -> list[float]:
        """Return the amounts in an answer. No message repeats what the bidder wrote."""
        name = f"The bidder at {self._url.host}"
        try:
            rewards = _Answer.model_validate_json(body).rewards
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = "".join(f"[{part}]" for part in first["loc"] if part != "rewards")
            raise RewardError(
                f'{name} must answer {{"rewards": [one finite number per reply]}}; rewards{where}: {first["msg"]}.'
            ) from None
        if len(rewards) != n_replies:
            raise RewardError(f"{name} must answer {n_replies} rewards, one per reply, got {len(rewards)}.")
        return rewards


def _body(request_id: str, messages: bytes) -> bytes:
    """Return the request as JSON."""
    asking = asked_by.get()
    of_auction = asdict(asking) if asking else {"auction_id": None, "currency": "", "commitment": ""}
    return _json({"schema": _SCHEMA, "request_id": request_id, **of_auction})[:-1] + b", " + messages[1:]


# The messages that this thread asked about last, and their JSON: one round asks many bidders.
_round = threading.local()


def _messages(prompt: Prompt, replies: Replies) -> bytes:
    """Return the part that is the same for all bidders of an auction, as JSON that every parser can read."""
    return _shared_body(
        tuple((_role(message), str(message.text)) for message in prompt),
        tuple((str(reply.text), _tool_calls(reply)) for reply in replies),
    )


@lru_cache(maxsize=8)
def _shared_body(prompt: tuple[tuple[str, str], ...], replies: tuple[tuple[str, str], ...]) -> bytes:
    """Return the messages as JSON, encoded once for all bidders of an auction."""
    return _json(
        {
            "prompt": [{"role": role, "content": content} for role, content in prompt],
            "replies": [{"text": text, "tool_calls": json.loads(calls)} for text, calls in replies],
        }
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def _tool_calls(reply: AIMessage) -> str:
    """Return the tool calls of a reply as JSON. Their arguments may be anything."""
    if not reply.tool_calls:
        return "[]"
    calls = [{"name": call["name"], "args": call["args"]} for call in reply.tool_calls]
    return json.dumps(to_jsonable_python(calls, inf_nan_mode="null", bytes_mode="base64", serialize_unknown=True))


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage) and message.role in (role for _, role in _ROLES):
        return message.role
    return next((role for kind, role in _ROLES if isinstance(message, kind)), "user")


def _can_be_encoded(value: str) -> bool:
    return value == value.encode("utf-8", "replace").decode()  # half a surrogate pair cannot
