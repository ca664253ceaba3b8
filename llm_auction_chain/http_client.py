"""HTTP clients: for a server that the user runs, and for remote bidders, which may be hostile.

`JsonSession` talks to the user's own server (vLLM) with httpx, and repeats a request whose failure may pass.

`post` reaches a remote bidder. It speaks HTTP by h11, the layer below httpx and httpcore, which has no redirects,
cookies, proxies or decompression to switch off, and takes a third of httpcore's time for a request. A connection leads
only to an address that was checked (no second look-up, so no DNS rebinding), and counts the bytes of an answer. One
event loop in a daemon thread serves all callers, so that a connection outlives the loop of the auction that opened it.
"""

import asyncio
import ipaddress
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple, Self, TypeVar

from typing_extensions import override

from llm_auction_chain.errors import ConfigurationError, MissingDependencyError, RewardError
from llm_auction_chain.waiting import BLOCKING, Waiter, in_thread

try:
    import h11
    import httpx
    from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random
except ImportError as error:
    raise MissingDependencyError(
        f"{error.name} is not installed. For a vLLM server run: pip install 'llm-auction-chain[vllm]'. "
        "For webhooks run: pip install 'llm-auction-chain[rewards]'."
    ) from error

__all__ = ["NOT_PUBLIC", "Bidder", "HTTPError", "JsonSession", "certificates", "is_public", "parse_url", "post"]

T = TypeVar("T")
Headers = Sequence[tuple[str, str]]


@cache
def certificates() -> ssl.SSLContext:
    """Return the usual certificate authorities. Reading them takes longer than opening a connection, so: once."""
    return httpx.create_ssl_context()


def parse_url(url: str) -> httpx.URL:
    """Return a URL in its parts, or raise a ConfigurationError if it is none."""
    try:
        return httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ConfigurationError(f"The URL cannot be read: {error}") from error


# A server that the user runs.

HTTPError = httpx.HTTPError  # for callers that import httpx only through this module
_CONNECT = 10.0  # seconds; a server that is there accepts a connection sooner
# 504 and a timeout are not repeated: the reply was too long, and the next would be drawn from shorter ones alone.
_PASSING = (429, 500, 502, 503)


@dataclass
class JsonSession:
    """Requests to one server that speaks JSON, for a caller that blocks or awaits.

    Connections live as long as the `async with` block, so that each event loop has its own. Every request raises
    `HTTPError`: no connection, no answer in time, a status of failure, or no JSON.
    """

    url: str  # the server's root
    waiter: Waiter  # how the caller waits
    _: KW_ONLY
    timeout: float | None  # seconds that the server may keep silent; None waits for ever
    max_retries: int  # how often a request is repeated that lost its connection, or got a status of `_PASSING`
    max_concurrency: int  # the most requests that run at the same time
    api_key: str | None = field(default=None, repr=False)  # sent as a bearer token

    def __post_init__(self) -> None:
        connect = _CONNECT if self.timeout is None else min(self.timeout, _CONNECT)
        client: Any = httpx.Client if self.waiter is BLOCKING else httpx.AsyncClient
        self._client = client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.api_key}"} if self.api_key else {},
            # A request waits for a free connection as long as it takes.
            timeout=httpx.Timeout(self.timeout, pool=None, connect=connect),
            limits=httpx.Limits(max_connections=self.max_concurrency),
            verify=certificates(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.waiter.either(lambda: self._client.close(), lambda: self._client.aclose())  # noqa: PLW0108

    async def answers(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return the answers to several requests that run side by side; the first failure ends the others."""
        calls = [partial(self.answer, path, body) for body in bodies]
        return await self.waiter.together(calls, most=self.max_concurrency)

    async def answer(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the answer to a POST of the body, or to a GET where there is none."""

        async def attempt() -> Any:
            send = partial(self._client.request, "GET" if body is None else "POST", path, json=body)
            response = (await self.waiter.either(send, send)).raise_for_status()
            try:
                return response.json()
            except ValueError as error:
                raise httpx.DecodingError(str(error), request=response.request) from error

        async def pause(seconds: float) -> None:
            await self.waiter.either(lambda: time.sleep(seconds), lambda: asyncio.sleep(seconds))

        return await AsyncRetrying(
            sleep=pause,
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(self.max_retries + 1),
            wait=wait_exponential(multiplier=0.25, max=8) + wait_random(0, 0.25),
            reraise=True,
        )(attempt)


def _may_pass(error: BaseException) -> bool:
    """Return whether the same request may succeed a moment later."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _PASSING
    return isinstance(error, (httpx.ConnectTimeout, httpx.NetworkError, httpx.RemoteProtocolError))


# A remote bidder, which may be hostile.

_IDLE = 30.0  # seconds that a connection is kept for the next auction
_MOST_HEAD = 100 * 1024  # bytes
_MOST_PARTS = 1000  # chunks and interim answers; reading more of them would keep other bidders waiting
_MOST_ADDRESSES = 4
_OK, _MORE_FOLLOWS, _REDIRECTS = 200, (100, *range(102, 200)), range(300, 400)

NOT_PUBLIC = {
    "0.0.0.0/8": "this host on this network; many systems connect it to themselves (RFC 1122)",
    "10.0.0.0/8": "private networks (RFC 1918)",
    "100.64.0.0/10": "shared by a provider's customers, and Alibaba Cloud's metadata (RFC 6598)",
    "127.0.0.0/8": "loopback (RFC 1122)",
    "161.26.0.0/16": "IBM Cloud's infrastructure, reachable from its servers only",
    "166.8.0.0/14": "IBM Cloud's services, reachable from its servers only",
    "168.63.129.16/32": "Azure's platform services, reachable from its virtual machines only",
    "169.254.0.0/16": "link-local, and the metadata of AWS, Google Cloud, Azure and others (RFC 3927)",
    "172.16.0.0/12": "private networks (RFC 1918)",
    "192.0.0.0/24": "protocol assignments, and Oracle Cloud's metadata (RFC 6890)",
    "192.0.2.0/24": "documentation (RFC 5737)",
    "192.88.99.0/24": "relays from 6to4, withdrawn (RFC 7526)",
    "192.168.0.0/16": "private networks (RFC 1918)",
    "198.18.0.0/15": "benchmarks of network devices (RFC 2544)",
    "198.51.100.0/24": "documentation (RFC 5737)",
    "199.36.153.4/30": "Google Cloud's restricted.googleapis.com, reachable from its networks only",
    "199.36.153.8/30": "Google Cloud's private.googleapis.com, reachable from its networks only",
    "203.0.113.0/24": "documentation (RFC 5737)",
    "224.0.0.0/4": "multicast (RFC 5771)",
    "240.0.0.0/4": "reserved, and broadcast (RFC 1112, RFC 919)",
    "::/96": "the unspecified address, loopback, and IPv4 in a withdrawn form (RFC 4291)",
    "64:ff9b:1::/48": "translation to IPv4 inside one network (RFC 8215)",
    "100::/64": "discarded by routers (RFC 6666)",
    "100:0:0:1::/64": "a placeholder that leads nowhere (RFC 9780)",
    "2001::/23": "protocol assignments, and Teredo tunnels to an IPv4 address (RFC 2928, RFC 4380)",
    "2001:db8::/32": "documentation (RFC 3849)",
    "2002::/16": "6to4 tunnels to an IPv4 address (RFC 3056)",
    "2600:2d00:2:1000::/64": "the same as 199.36.153.4/30, of Google Cloud",
    "2600:2d00:2:2000::/64": "the same as 199.36.153.8/30, of Google Cloud",
    "3ffe::/16": "the former 6bone, withdrawn (RFC 3701)",
    "3fff::/20": "documentation (RFC 9637)",
    "5f00::/16": "segment routing inside one network (RFC 9602)",
    "fc00::/7": "private networks, and the metadata of AWS and Google Cloud (RFC 4193)",
    "fe80::/10": "link-local (RFC 4291)",
    "fec0::/10": "site-local, withdrawn (RFC 3879)",
    "ff00::/8": "multicast (RFC 4291)",
}
"""Networks that a bidder may not be in, and why. What `ipaddress` takes for global depends on Python's release."""

_NOT_PUBLIC = tuple(map(ipaddress.ip_network, NOT_PUBLIC))
# An address that carries an IPv4 address is as public as that one: IPv4-mapped (RFC 4291), and NAT64 (RFC 6052), by
# which a host without IPv4 reaches bidders that have nothing else.
_CARRY_IPV4 = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96"))
_ISATAP = 0x5EFE  # in an interface id, before the IPv4 address that a tunnel leads to (RFC 5214)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # the only IPv6 addresses in public use (RFC 4291)


def is_public(address: str) -> bool:
    """Return whether an address belongs to the public internet.

    >>> [is_public(address) for address in ("8.8.8.8", "169.254.169.254", "::ffff:127.0.0.1", "64:ff9b::7f00:1")]
    [True, False, False, False]
    """
    ip = ipaddress.ip_address(address)
    if any(ip in network for network in _CARRY_IPV4):
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    if isinstance(ip, ipaddress.IPv6Address):
        is_tunnel = int(ip) >> 32 & 0xFCFFFFFF == _ISATAP  # whatever its bits "universal" and "group" are
        if is_tunnel or ip.scope_id is not None or ip not in _GLOBAL_UNICAST:
            return False
    return not any(ip in network for network in _NOT_PUBLIC)


class Bidder(NamedTuple):
    """Where a bidder is, and what its answer may cost.

    Bidders that differ in anything share no connection: what one sends unasked is never read as another's answer.
    """

    owner: Hashable  # of the connections
    url: httpx.URL  # where requests go
    tls: ssl.SSLContext | None  # the certificate authorities to trust; None where the URL is `http://`
    allow_private: bool  # whether it may be at an address that is not public
    timeout: float  # seconds, from the look-up of the address to the last byte of the answer
    max_bytes: int  # of the answer, its head included

    @property
    def name(self) -> str:
        """The bidder in messages: no path, which may hold a token, and no address, which may be private."""
        return f"The bidder at {self.url.host}"


def post(bidder: Bidder, headers: Headers, body: bytes, read: Callable[[bytes], T]) -> Future[T]:
    """Send a request and return a future of what `read` makes of the answer's body. Cancelling it ends the request.

    The request is sent once, with one exception: if a connection of an earlier auction breaks before the first byte of
    an answer, the same request is sent once more over a new one. A connection that cannot be made is tried once more.

    Raises, from the future:
        TimeoutError: the answer was not complete in time.
        ConnectionError: there was no answer, or one with a status other than 200.
        RewardError: the answer was too long, compressed, or in too many parts.
    """

    async def exchange() -> T:
        return read(await office.exchange(bidder, headers, body))

    office = _post_office()
    return asyncio.run_coroutine_threadsafe(exchange(), office.loop)


class _StaleConnectionError(Exception):
    """The bidder closed a connection of an earlier auction before it answered."""


class _UnreachableError(Exception):
    """No connection could be made."""


class _LateError(TimeoutError):
    """No address of the bidder took a connection in its share of the time."""


class _BrokenError(Exception):
    """The connection broke while an answer was waited for."""


class _Connection(asyncio.Protocol):
    """A connection to a bidder, for one request after another. It is closed as soon as anything comes in unasked."""

    def __init__(self, bidder: Bidder) -> None:
        self._bidder = bidder
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD)
        self._transport: Any = None
        self._answer: asyncio.Future[bytes] | None = None  # that is waited for
        self._parts: list[bytes] = []
        self._received = self._n_parts = 0
        self._used = self._closed = False
        self.idle_since: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether the next request may use it: nothing has come in since the last one, not even an end."""
        if self._closed or self._transport.is_closing():
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket"), select.POLLIN)
        return not poll.poll(0)

    @property
    def is_busy(self) -> bool:
        """Whether an answer is waited for."""
        return self._answer is not None

    async def exchange(self, headers: Headers, body: bytes) -> bytes:
        """Send a request and return the answer's body."""
        self._parts, self._received, self._n_parts = [], 0, 0
        self._answer = asyncio.get_running_loop().create_future()
        request = h11.Request(method="POST", target=self._bidder.url.raw_path, headers=list(headers))
        events = (request, h11.Data(data=body), h11.EndOfMessage())
        try:
            self._transport.write(b"".join(self._http.send(event) or b"" for event in events))
            answer = await self._answer
        except BaseException:
            self.close()
            raise
        finally:
            self._answer = None
        if self._http.our_state is self._http.their_state is h11.DONE and not self._http.trailing_data[0]:
            self._http.start_next_cycle()
            self._used = True
        else:
            self.close()
        return answer

    async def start_tls(self, tls: ssl.SSLContext, host: str) -> None:
        """Go on encrypted, with the host that has a certificate for this name."""
        loop = asyncio.get_running_loop()
        self._transport = await loop.start_tls(self._transport, self, tls, server_hostname=host)

    def close(self) -> None:
        """Close the connection. Nothing waits until the bidder has read what was sent."""
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    @override
    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._answer is None or self._answer.done():
            self.close()
        elif self._received > self._bidder.max_bytes:
            most = self._bidder.max_bytes
            self._fail(RewardError(f"The bidder answered more than {most} bytes; raise max_bytes if it may."))
        else:
            self._read(data)

    @override
    def eof_received(self) -> None:
        self._end(None)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    def _end(self, error: Exception | None) -> None:
        self._closed = True
        if self._used and not self._received:
            self._fail(_StaleConnectionError())
        elif error is not None:
            broken = _BrokenError()
            broken.__cause__ = error
            self._fail(broken)
        elif self._http.their_state is h11.SEND_RESPONSE:
            self._fail(h11.RemoteProtocolError("There was no answer."))
        elif self._answer is not None and not self._answer.done():
            self._read(b"")

    def _read(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
            while (event := self._http.next_event()) is not h11.NEED_DATA:
                self._n_parts += 1
                if self._n_parts > _MOST_PARTS:
                    self._fail(RewardError(f"{self._bidder.name} answered in more than {_MOST_PARTS} parts."))
                    return
                if isinstance(event, h11.Data):
                    self._parts.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    if self._answer is not None:
                        self._answer.set_result(b"".join(self._parts))
                    return
                elif isinstance(event, h11.Response | h11.InformationalResponse):
                    _check_head(event, self._bidder)
                else:  # the end of the connection
                    self._fail(h11.RemoteProtocolError("There was no answer."))
                    return
        except (h11.RemoteProtocolError, ConnectionError, RewardError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


class _PostOffice:
    """The event loop of a process that all requests to bidders run in, and their connections."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._idle: dict[Bidder, deque[_Connection]] = {}  # the longest idle first
        self._lookups: dict[tuple[str, int], asyncio.Task[list[str]]] = {}
        threading.Thread(target=self.loop.run_forever, name="auction-webhooks", daemon=True).start()

    async def exchange(self, bidder: Bidder, headers: Headers, body: bytes) -> bytes:
        """Send a request and return the answer's body."""
        try:
            async with asyncio.timeout(bidder.timeout):
                connection = self._kept(bidder) or await self._connection(bidder)
                try:
                    answer = await connection.exchange(headers, body)
                except _StaleConnectionError:
                    connection = await self._connection(bidder)
                    answer = await connection.exchange(headers, body)
        except TimeoutError as error:
            raise TimeoutError(f"{bidder.name} did not answer within {bidder.timeout:g} s.") from error
        except _UnreachableError as error:
            raise ConnectionError(f"{bidder.name} cannot be reached: {str(error)[:100]}") from error
        except (_BrokenError, h11.ProtocolError) as error:
            # The text of these may be what the bidder sent.
            cause = error.__cause__ or error
            raise ConnectionError(
                f"{bidder.name} broke off, or does not speak HTTP ({type(cause).__name__})."
            ) from error
        self._keep(bidder, connection)
        return answer

    def _keep(self, bidder: Bidder, connection: _Connection) -> None:
        """Keep a connection that is open for the next auction."""
        if not connection.is_open:
            return
        first, connection.idle_since = connection.idle_since is None, self.loop.time()
        self._idle.setdefault(bidder, deque()).append(connection)
        if first:
            self.loop.call_later(_IDLE, self._close_idle, bidder, connection)

    def _kept(self, bidder: Bidder) -> _Connection | None:
        """Return the connection that an earlier auction used last, if it is still open."""
        idle = self._idle.pop(bidder, deque())
        while idle:
            connection = idle.pop()
            if connection.is_open:
                if idle:
                    self._idle[bidder] = idle
                return connection
            connection.close()
        return None

    def _close_idle(self, bidder: Bidder, connection: _Connection) -> None:
        """Close a connection that nothing has used for long, or look again when that may be."""
        idle = self._idle.get(bidder, deque())
        left = (connection.idle_since or 0.0) + _IDLE - self.loop.time()
        if connection.is_busy or (connection in idle and left > 0.0):
            self.loop.call_later(max(left, 0.1 * _IDLE), self._close_idle, bidder, connection)
        elif connection in idle:
            connection.close()
            idle.remove(connection)
            if not idle:
                del self._idle[bidder]

    async def _connection(self, bidder: Bidder) -> _Connection:
        try:
            return await self._connect(bidder)
        except (_UnreachableError, _LateError):
            return await self._connect(bidder)

    async def _connect(self, bidder: Bidder) -> _Connection:
        """Connect at an address that is checked first; each address gets an equal share of the time."""
        host = bidder.url.raw_host.decode()
        port = bidder.url.port or (80 if bidder.tls is None else 443)
        try:
            addresses = await self.addresses(host, port)
        except (OSError, UnicodeError) as error:
            raise ConnectionError(f"{bidder.name} cannot be found: its name has no address.") from error
        if not (bidder.allow_private or all(map(is_public, addresses))):
            raise ConnectionError(
                f"{bidder.name} is at an address that is not public; set allow_private=True if it is your own."
            )
        addresses = addresses[:_MOST_ADDRESSES]
        failure: Exception = _UnreachableError("its name has no address")
        for address in addresses:
            connection = _Connection(bidder)
            try:
                async with asyncio.timeout(bidder.timeout / len(addresses)):
                    await _dial(connection, address, port)
            except TimeoutError:
                failure = _LateError()
            except OSError as error:
                failure = _UnreachableError(str(error))
            else:
                break
        else:
            raise failure
        if bidder.tls is not None:
            try:
                await connection.start_tls(bidder.tls, host)
            except OSError as error:  # of TLS, too
                connection.close()
                raise _UnreachableError(str(error)) from error
            except BaseException:
                connection.close()
                raise
        return connection

    async def addresses(self, host: str, port: int) -> list[str]:
        """Return all addresses of a host.

        A name server can be a bidder's own and slow. So each name has a thread that no other name waits for, and no
        more than one, however many requests wait for it.
        """
        lookup = self._lookups.get((host, port))
        if lookup is None:
            lookup = self.loop.create_task(in_thread(partial(_look_up, host, port)))
            self._lookups[host, port] = lookup
            lookup.add_done_callback(lambda task: (self._lookups.pop((host, port)), task.exception()))
        return await asyncio.shield(lookup)  # a request that gives up does not end it for others


def _look_up(host: str, port: int) -> list[str]:
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in entries))


async def _dial(connection: _Connection, address: str, port: int) -> None:
    await asyncio.get_running_loop().create_connection(lambda: connection, address, port)


def _check_head(response: h11.Response | h11.InformationalResponse, bidder: Bidder) -> None:
    if response.status_code != _OK and response.status_code not in _MORE_FOLLOWS:
        hint = "redirects are not followed" if response.status_code in _REDIRECTS else "it must be 200"
        raise ConnectionError(f"{bidder.name} answered with status {response.status_code}; {hint}.")
    encodings = [value.strip().lower() for name, value in response.headers if name.lower() == b"content-encoding"]
    if any(encoding != b"identity" for encoding in encodings):
        raise RewardError(f"{bidder.name} compressed its answer; it must not.")


_post_offices: dict[int, _PostOffice] = {}
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def _post_office() -> _PostOffice:
    """Return this process's own. A forked child leaves its parent's as it is, because they share the connections."""
    with _lock:
        if os.getpid() not in _post_offices:
            _post_offices[os.getpid()] = _PostOffice()
        return _post_offices[os.getpid()]
