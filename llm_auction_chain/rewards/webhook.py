"""A bidder elsewhere, asked over HTTP: what is sent and signed, and what is accepted as an answer."""

import asyncio
import hmac
import json
import ssl
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cache, cached_property, lru_cache
from types import ModuleType
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

from llm_auction_chain.errors import ConfigurationError, MissingDependencyError, RewardError
from llm_auction_chain.rewards.base import Prompt, Replies, WaitingReward, asked_by
from llm_auction_chain.validators import number
from llm_auction_chain.waiting import Waiter

if TYPE_CHECKING:
    from concurrent.futures import Future

    from httpx import URL

__all__ = ["WebhookReward"]

_SCHEMA = "llm_auction_chain.bid_request/1"
_LEAST_SECONDS = 0.001
_HIGHEST_PORT = 65535
_PORTS = {"http": 80, "https": 443}
_ROLES = (
    (AIMessage, "assistant"),
    (HumanMessage, "user"),
    (SystemMessage, "system"),
    (ToolMessage, "tool"),
    (FunctionMessage, "tool"),
)


class _Answer(BaseModel):
    """What a bidder may answer; other fields are ignored, so that it may add what this version does not know."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")

    rewards: list[float]


@dataclass(frozen=True)
class WebhookReward(WaitingReward):
    """Worth what a bidder elsewhere answers to one signed POST per auction: `{"rewards": [...]}`, one per reply.

    It is told the prompt, the replies, the auction's id and currency, and nothing about other agents. The header
    `X-Auction-Signature` is `v1=` and the hex HMAC-SHA256, under the secret, of the header `X-Auction-Timestamp` (Unix
    seconds), a dot, and the body. `Idempotency-Key` is the body's `request_id`; a request that comes twice with one key
    is one request. Connections stay open for the next auction. A bidder to copy: cookbook/webhook_bidder.md.

    Attributes:
        url: where to ask. Its host must be at public addresses only; redirects and proxies are not followed.
        secret: shared with the bidder alone; in no message and no repr.
        timeout: seconds, from the look-up of the address to the last byte of the answer.
        max_bytes: of the answer, its head included; no more are read.
        allow_http: the URL may be `http://`: everybody on the way can read the prompt.
        allow_private: the host may be at addresses that are not public: whoever chooses the URL then chooses whom in
            your own network this process talks to.
        tls: whom to trust, instead of the usual authorities.

    Raises:
        ConfigurationError: a URL that is none, or not allowed; no secret; a limit that is no positive number.
        RewardError: from `score`, an answer that is not one finite number per reply.
        TimeoutError: from `score`, none in time.
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
        """Refuse what cannot be asked safely."""
        if not isinstance(self.secret, str) or not self.secret or not _is_text(self.secret):
            raise ConfigurationError("WebhookReward needs a secret: a non-empty string that the bidder has too.")
        number("WebhookReward.timeout", self.timeout, least=_LEAST_SECONDS)
        if isinstance(self.max_bytes, bool) or not isinstance(self.max_bytes, int) or self.max_bytes < 1:
            raise ConfigurationError(f"WebhookReward has max_bytes={self.max_bytes!r}; give a positive whole number.")
        if self.tls is not None and not isinstance(self.tls, ssl.SSLContext):
            raise ConfigurationError(f"WebhookReward has tls={self.tls!r}; give an ssl.SSLContext or None.")
        self._check_url()

    def _check_url(self) -> None:
        url = self._address
        if url.scheme not in _PORTS or not url.host:
            raise ConfigurationError("WebhookReward needs a whole URL: https://host/path.")
        if url.scheme == "http" and not self.allow_http:
            raise ConfigurationError(
                f"WebhookReward would send the prompt to {url.host} for everybody on the way to read; use https://, "
                "or set allow_http=True."
            )
        if url.userinfo or url.fragment:
            raise ConfigurationError(
                "WebhookReward has a URL with a name, password or fragment; the signature says who asks, so leave "
                "them out."
            )
        if url.port is not None and not 0 < url.port <= _HIGHEST_PORT:
            raise ConfigurationError(f"WebhookReward has a URL with port {url.port}; give one from 1 to 65535.")

    @override
    async def _score(self, prompt: Prompt, replies: Replies, waiter: Waiter) -> list[float]:
        answer = self.submit(prompt, replies)
        try:
            return await waiter.either(answer.result, lambda: asyncio.wrap_future(answer))
        finally:
            answer.cancel()  # if Ctrl-C or a cancellation ended the wait

    def submit(self, prompt: Prompt, replies: Replies) -> "Future[list[float]]":
        """Send the request, and return the amounts in future; cancelling that ends the request."""
        from llm_auction_chain.rewards.webhook_client import Endpoint, Post, desk

        url = self._address
        tls = None if url.scheme == "http" else self.tls or _tls()
        endpoint = Endpoint(self, url.raw_host.decode(), url.port or _PORTS[url.scheme], tls, self.allow_private)
        request_id = str(uuid7())
        body = _body(request_id, prompt, replies)
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
        post = Post(endpoint, url.raw_path, headers, body, self.timeout, self.max_bytes)
        return desk().send(post, lambda answer: self._read(answer, len(replies)))

    @cached_property
    def _address(self) -> "URL":
        return _parsed(self.url)

    def _read(self, body: bytes, n_replies: int) -> list[float]:
        """Return the amounts that an answer holds. Nothing that the bidder said is repeated in a message."""
        who = f"The bidder at {self._address.host}"
        try:
            rewards = _Answer.model_validate_json(body).rewards
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = "".join(f"[{part}]" for part in first["loc"] if part != "rewards")
            raise RewardError(
                f'{who} must answer {{"rewards": [one finite number per reply]}}; rewards{where}: {first["msg"]}.'
            ) from None
        if len(rewards) != n_replies:
            raise RewardError(f"{who} answered {len(rewards)} rewards for {n_replies} replies; it must be one each.")
        return rewards


def _body(request_id: str, prompt: Sequence[BaseMessage], replies: Sequence[AIMessage]) -> bytes:
    """Return what the bidder is told, as JSON that every parser can read, whatever a model has written."""
    asking = asked_by.get()
    told = {
        "schema": _SCHEMA,
        "request_id": request_id,
        "auction_id": asking.auction_id if asking else None,
        "currency": asking.currency if asking else "",
        "commitment": asking.commitment if asking else "",
    }
    shared = _told_to_all(
        tuple((_role(message), str(message.text)) for message in prompt),
        tuple((str(reply.text), _tool_calls(reply)) for reply in replies),
    )
    return _json(told)[:-1] + b", " + shared[1:]


@lru_cache(maxsize=8)
def _told_to_all(prompt: tuple[tuple[str, str], ...], replies: tuple[tuple[str, str], ...]) -> bytes:
    """Return the part that all bidders of an auction are told alike, and the most of it: written once."""
    return _json(
        {
            "prompt": [{"role": role, "content": content} for role, content in prompt],
            "replies": [{"text": text, "tool_calls": json.loads(calls)} for text, calls in replies],
        }
    )


def _json(told: Any) -> bytes:
    return json.dumps(told, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def _tool_calls(reply: AIMessage) -> str:
    """Return the calls of a reply as JSON: arguments may be anything."""
    if not reply.tool_calls:
        return "[]"
    calls = [{"name": call["name"], "args": call["args"]} for call in reply.tool_calls]
    return json.dumps(to_jsonable_python(calls, inf_nan_mode="null", serialize_unknown=True))


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage) and message.role in dict(_ROLES).values():
        return message.role
    return next((role for kind, role in _ROLES if isinstance(message, kind)), "user")


def _is_text(value: str) -> bool:
    """Whether it can be encoded: half a surrogate pair cannot."""
    return value == value.encode("utf-8", "replace").decode()


def _parsed(url: str) -> "URL":
    httpx = _httpx()
    try:
        parsed: URL = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ConfigurationError(f"WebhookReward cannot read its URL: {error}") from error
    return parsed


def _httpx() -> ModuleType:
    """Return httpx, which nothing else here needs."""
    try:
        import httpx
    except ImportError as error:
        raise MissingDependencyError("httpx not installed; run: pip install 'llm-auction-chain[rewards]'") from error
    return httpx


@cache
def _tls() -> ssl.SSLContext:
    """Return the certificates to trust, read once: they take longer to read than a connection to open."""
    context: ssl.SSLContext = _httpx().create_ssl_context()
    return context
