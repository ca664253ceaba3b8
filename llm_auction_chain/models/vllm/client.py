"""How a vLLM server is spoken to: connections, retries, and what its refusals mean. httpx is imported on first use.

What is asked, and what is made of the answers, is written once, as steps: a generator that yields requests, receives
their answers and returns a result. `Server.run` sends from threads, `Server.arun` awaits.
"""

import asyncio
from collections.abc import Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tenacity import AsyncRetrying, Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from llm_auction_chain.errors import (
    AuctionError,
    CandidatesError,
    ContextWindowError,
    MissingDependencyError,
    ScoringError,
)

if TYPE_CHECKING:
    import ssl

    import httpx

__all__ = ["Request", "Server", "Steps"]

_T = TypeVar("_T")

_TOO_LONG = ("context length", "max_model_len", "model length")
_CONNECT = 10.0  # seconds; no server takes longer to say that it is there
_BAD_REQUEST, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 400, 401, 403, 404
# Not 504, nor no answer in time: the reply was too long, and the next would be drawn from the shorter ones alone.
_PASSING = (429, 500, 502, 503)


class Request(NamedTuple):
    """One request: a path below the server's root, and what is posted there; None only asks."""

    path: str
    body: dict[str, Any] | None = None


Steps = Generator[list[Request], list[Any], _T]


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where a server is, and how patiently it is asked.

    Attributes:
        base_url: its URL, with or without `/v1`.
        api_key: sent as a bearer token; in no message and no repr.
        timeout: seconds; None waits for ever.
        max_retries: how often a request is repeated that lost its connection, or found status 429, 500, 502 or 503.
        max_concurrency: requests of one run that are under way at the same time.
    """

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    timeout: float | None
    max_retries: int
    max_concurrency: int

    def run(self, steps: Steps[_T], *, drawing: bool) -> _T:
        """Send what the steps ask for until they return.

        Raises:
            CandidatesError: the server failed while `drawing`; `__cause__` is httpx's own error.
            ScoringError: it failed otherwise.
            ContextWindowError: it refused a prompt as too long.
        """
        httpx = _httpx()
        try:
            with httpx.Client(**self._connection()) as client, ThreadPoolExecutor(self.max_concurrency) as pool:

                def send(request: Request) -> Any:
                    return Retrying(**self._retries())(lambda: _read(client.request(**_as_http(request))))

                requests = next(steps)
                while True:
                    requests = steps.send(list(pool.map(send, requests)))
        except StopIteration as done:
            result: _T = done.value
            return result
        except httpx.HTTPError as error:
            raise self._explain(error, drawing=drawing) from error

    async def arun(self, steps: Steps[_T], *, drawing: bool) -> _T:
        """Do as `run`, awaiting. Connections live as long as the run, so that each event loop has its own."""
        httpx = _httpx()
        try:
            async with httpx.AsyncClient(**self._connection()) as client:

                async def attempt(request: Request) -> Any:
                    return _read(await client.request(**_as_http(request)))

                async def send(request: Request) -> Any:
                    return await AsyncRetrying(**self._retries())(attempt, request)

                requests = next(steps)
                while True:
                    requests = steps.send(await _together([send(request) for request in requests]))
        except StopIteration as done:
            result: _T = done.value
            return result
        except httpx.HTTPError as error:
            raise self._explain(error, drawing=drawing) from error

    def _connection(self) -> dict[str, Any]:
        httpx = _httpx()
        return {
            "base_url": self.base_url.rstrip("/").removesuffix("/v1"),
            "headers": {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {},
            # A request waits for a free connection as long as it takes.
            "timeout": httpx.Timeout(self.timeout, pool=None, connect=min(self.timeout or _CONNECT, _CONNECT)),
            "limits": httpx.Limits(max_connections=self.max_concurrency),
            "verify": _tls(),
        }

    def _retries(self) -> dict[str, Any]:
        return {
            "retry": retry_if_exception(_may_pass),
            "stop": stop_after_attempt(self.max_retries + 1),
            "wait": wait_exponential(multiplier=0.25, max=8) + wait_random(0, 0.25),
            "reraise": True,
        }

    def _explain(self, error: "httpx.HTTPError", *, drawing: bool) -> AuctionError:
        """Return the error of ours for what httpx or the server says."""
        httpx = _httpx()
        if isinstance(error, httpx.HTTPStatusError):
            said = error.response.text[:500].replace(self.api_key or "\0", "***")
            if error.response.status_code == _BAD_REQUEST and any(words in said for words in _TOO_LONG):
                return ContextWindowError(f"{self.base_url} says: {said} Shorten the prompt or lower max_tokens.")
            message = _refusal(error.response.status_code, error.request.url.path, said)
        elif isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout)):
            message = f"did not answer within {self.timeout} s. Raise timeout or lower max_tokens or max_concurrency."
        elif isinstance(error, httpx.DecodingError):
            message = "answered something other than JSON. Is it a vLLM server?"
        else:
            message = f"cannot be reached ({error}). Start a server: vllm serve MODEL --port 8000, or set base_url."
        message = f"{self.base_url} {message}"
        return CandidatesError(message) if drawing else ScoringError(message)


def _refusal(status: int, path: str, said: str) -> str:
    """Return what a status means and what to do."""
    if status in (_UNAUTHORIZED, _FORBIDDEN):
        return f"refuses the API key (status {status}). Set api_key to what the server was given as --api-key."
    if status == _NOT_FOUND and path.endswith("/tokenize"):
        return "has no /tokenize. Score with a vLLM server; a proxy in front must pass on /tokenize beside /v1."
    return f"answered {path} with status {status}: {said}"


def _as_http(request: Request) -> dict[str, Any]:
    return {"method": "GET" if request.body is None else "POST", "url": request.path, "json": request.body}


def _read(response: "httpx.Response") -> Any:
    """Return an answer's JSON, or raise what httpx calls its failure."""
    response.raise_for_status()
    try:
        return response.json()
    except ValueError as error:
        raise _httpx().DecodingError(str(error), request=response.request) from error


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    httpx = _httpx()
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _PASSING
    return isinstance(error, (httpx.ConnectTimeout, httpx.NetworkError, httpx.RemoteProtocolError))


async def _together(sending: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Await all; the first failure ends the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in sending]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _httpx() -> ModuleType:
    """Return httpx, which nothing else here needs."""
    try:
        import httpx
    except ImportError as error:
        raise MissingDependencyError("httpx not installed; run: pip install 'llm-auction-chain[vllm]'") from error
    return httpx


@cache
def _tls() -> "ssl.SSLContext":
    """Return the certificates to trust, read once: they take longer to read than a connection to open."""
    context: ssl.SSLContext = _httpx().create_ssl_context()
    return context
