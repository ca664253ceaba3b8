"""How a bidder is reached that nobody should trust: only where it may be, for no longer and for no more than asked.

One event loop in a daemon thread holds the connections of all callers, sync and async, so that the next auction finds
them open. It is written on httpcore, the layer below httpx. There a connection goes to exactly the address that was
checked, under the host's own name; there are no cookies, redirects, proxies or decompression to switch off; and whether
a connection is a used one is known. Every request has a connection of its own, so that no bidder waits for another.

A request is sent once, with one exception. A used connection may have been closed by the bidder in the moment of
sending; if it breaks off before the first byte of an answer, the same request, with the same key, is sent once more,
over a new one. A connection that cannot be made has sent nothing; it is tried once more.
"""

import asyncio
import ipaddress
import os
import socket
import ssl
import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

import httpcore
from typing_extensions import override

from llm_auction_chain.errors import RewardError

__all__ = ["Desk", "Endpoint", "Post", "desk", "is_public"]

T = TypeVar("T")

_IDLE = 30.0  # seconds that a connection is kept for the next auction
_PAUSE = 0.1  # seconds before a connection is tried once more
_PIECE = 4096  # bytes that are read at once: the loop is shared, and every read lets the others go on
_MOST_ADDRESSES = 4
_OK, _REDIRECTS = 200, range(300, 400)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_WITH_IPV4_AT_THE_END = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96"))


class Endpoint(NamedTuple):
    """What a connection belongs to: two names at one address share none, nor do two rewards at one name.

    What a bidder sends unasked may be read as its next answer; it must not be read as another's.

    Attributes:
        owner: whose connection it is.
        host: as in the URL, without brackets.
        port: as in the URL.
        tls: whom to trust; None speaks plain HTTP.
        allow_private: it may be at an address that is not public.
    """

    owner: Hashable
    host: str
    port: int
    tls: ssl.SSLContext | None
    allow_private: bool


class Post(NamedTuple):
    """One request, and how much patience it has.

    Attributes:
        endpoint: where to.
        target: the URL's path and query.
        headers: all of them.
        body: the bytes that were signed.
        timeout: seconds, from the address's look-up to the answer's last byte.
        max_bytes: of the whole answer, its head included.
    """

    endpoint: Endpoint
    target: bytes
    headers: Mapping[str, str]
    body: bytes
    timeout: float
    max_bytes: int

    @property
    def who(self) -> str:
        """The bidder, in messages; neither the path, which may hold a token, nor an address, which is not public."""
        return f"The bidder at {self.endpoint.host}"


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet, and so is the IPv4 address that it may carry.

    >>> [is_public(address) for address in ("8.8.8.8", "169.254.169.254", "::ffff:127.0.0.1", "64:ff9b::7f00:1")]
    [True, False, False, False]
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast
    if any(ip in network for network in _WITH_IPV4_AT_THE_END):
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    if ip.sixtofour is not None and not is_public(str(ip.sixtofour)):
        return False
    return ip in _GLOBAL_UNICAST and ip.is_global and ip.scope_id is None


class _Metered(httpcore.AsyncNetworkStream):
    """A connection's bytes, of which no more come in than an answer may have: head, body, and whatever else."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self.received = 0
        self.most = 0

    @override
    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        piece = await self._stream.read(min(max_bytes, _PIECE), timeout)
        self.received += len(piece)
        if self.received > self.most:
            raise RewardError(f"The bidder answered more than {self.most} bytes; raise max_bytes if it may.")
        return piece

    @override
    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    @override
    async def aclose(self) -> None:
        await self._stream.aclose()

    @override
    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Connection(NamedTuple):
    """An HTTP connection, and the stream below it."""

    http: httpcore.AsyncHTTP11Connection
    stream: _Metered


class Desk:
    """Sends requests from any thread and any event loop; its own loop ends with the process, whatever hangs."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._idle: dict[Endpoint, list[_Connection]] = {}
        self._lookups: dict[tuple[str, int], Future[list[str]]] = {}
        threading.Thread(target=self._work, name="auction-webhooks", daemon=True).start()

    def send(self, post: Post, read: Callable[[bytes], T]) -> Future[T]:
        """Return what is read from the answer's body, in future; cancelling it ends the request.

        Raises, in the future:
            TimeoutError: the answer was not complete in time.
            ConnectionError: there was none, or another status than 200.
            RewardError: it was too long, or compressed.
        """

        async def exchange() -> T:
            return read(await self._exchange(post))

        return asyncio.run_coroutine_threadsafe(exchange(), self._loop)

    def _work(self) -> None:
        sweeping = self._loop.create_task(self._sweep())
        self._loop.run_until_complete(sweeping)

    async def _sweep(self) -> None:
        """Close what waited too long for another auction, for ever."""
        while True:
            await asyncio.sleep(_IDLE / 2)
            for endpoint, waiting in list(self._idle.items()):
                stale = [connection for connection in waiting if connection.http.has_expired()]
                waiting[:] = [connection for connection in waiting if connection not in stale]
                if not waiting:
                    del self._idle[endpoint]
                for connection in stale:
                    await connection.http.aclose()

    async def _exchange(self, post: Post) -> bytes:
        try:
            async with asyncio.timeout(post.timeout):
                return await self._ask(post)
        except (TimeoutError, httpcore.TimeoutException) as error:
            raise TimeoutError(f"{post.who} did not answer within {post.timeout:g} s.") from error
        except httpcore.ConnectError as error:
            raise ConnectionError(f"{post.who} cannot be reached: {str(error)[:100]}") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError) as error:
            # The text of these may be what the bidder sent.
            raise ConnectionError(f"{post.who} broke off, or does not speak HTTP ({type(error).__name__}).") from error

    async def _ask(self, post: Post) -> bytes:
        used = await self._used(post.endpoint)
        if used is not None:
            try:
                return await self._answer(used, post)
            except (httpcore.NetworkError, httpcore.RemoteProtocolError):
                if used.stream.received:
                    raise
        return await self._answer(await self._connect(post), post)

    async def _used(self, endpoint: Endpoint) -> _Connection | None:
        """Return a connection that an earlier auction has left open."""
        waiting = self._idle.get(endpoint, [])
        while waiting:
            connection = waiting.pop()
            if not connection.http.has_expired():
                return connection
            await connection.http.aclose()
        return None

    async def _answer(self, connection: _Connection, post: Post) -> bytes:
        http, stream = connection
        stream.received, stream.most = 0, post.max_bytes
        try:
            response = await http.handle_async_request(_as_http(post))
            _check(response, post)
            body = b"".join([piece async for piece in response.aiter_stream()])
            await response.aclose()
        except BaseException:
            await http.aclose()
            raise
        if http.is_idle():
            self._idle.setdefault(post.endpoint, []).append(connection)
        return body

    async def _connect(self, post: Post) -> _Connection:
        _, host, port, tls, _ = post.endpoint
        stream = await _open(await self._addresses(post), port, post.timeout)
        try:
            if tls is not None:
                stream = await stream.start_tls(tls, host)
        except BaseException:
            await stream.aclose()
            raise
        metered = _Metered(stream)
        origin = httpcore.Origin(b"https" if tls else b"http", host.encode(), port)
        return _Connection(httpcore.AsyncHTTP11Connection(origin, metered, keepalive_expiry=_IDLE), metered)

    async def _addresses(self, post: Post) -> list[str]:
        """Return where the host is, if all of that is public; what is checked here is what is connected to."""
        try:
            addresses = await self._lookup(post.endpoint.host, post.endpoint.port)
        except (OSError, UnicodeError) as error:
            raise ConnectionError(f"{post.who} cannot be found: its name has no address.") from error
        if not (post.endpoint.allow_private or all(map(is_public, addresses))):
            raise ConnectionError(
                f"{post.who} is at an address that is not public; set allow_private=True if it is your own."
            )
        return addresses[:_MOST_ADDRESSES]

    async def _lookup(self, host: str, port: int) -> list[str]:
        """Return all addresses of a host.

        A name server can be a bidder's own and slow: every name has a thread of its own, which no other name waits
        for, nor the end of the process.
        """
        found = self._lookups.get((host, port))
        if found is None:
            found = Future()
            found.set_running_or_notify_cancel()  # who stops waiting does not cancel it for the others
            threading.Thread(target=_look_up, args=(host, port, found), daemon=True).start()
            self._lookups[host, port] = found
            found.add_done_callback(lambda _: self._lookups.pop((host, port)))
        return await asyncio.wrap_future(found)


def _look_up(host: str, port: int, found: Future[list[str]]) -> None:
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found.set_result(list(dict.fromkeys(str(address[0]) for *_, address in entries)))
    except (OSError, UnicodeError) as error:
        found.set_exception(error)


async def _open(addresses: list[str], port: int, timeout: float) -> httpcore.AsyncNetworkStream:  # noqa: ASYNC109
    """Return a connection to the first address that makes one; each has an equal share of the time."""
    failures = []
    for pause in (0.0, _PAUSE):
        await asyncio.sleep(pause)
        for address in addresses:
            try:
                return await httpcore.AnyIOBackend().connect_tcp(address, port, timeout=timeout / len(addresses))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failures.append(error)
    raise failures[-1]


def _as_http(post: Post) -> httpcore.Request:
    _, host, port, tls, _ = post.endpoint
    url = httpcore.URL(scheme=b"https" if tls else b"http", host=host.encode(), port=port, target=post.target)
    return httpcore.Request("POST", url, headers=list(post.headers.items()), content=post.body)


def _check(response: httpcore.Response, post: Post) -> None:
    """Refuse an answer by its head."""
    if response.status in _REDIRECTS:
        raise ConnectionError(f"{post.who} answered with status {response.status}; redirects are not followed.")
    if response.status != _OK:
        raise ConnectionError(f"{post.who} answered with status {response.status}; it must be 200.")
    encodings = [value.strip().lower() for name, value in response.headers if name.lower() == b"content-encoding"]
    if any(encoding != b"identity" for encoding in encodings):
        raise RewardError(f"{post.who} compressed its answer; it must not.")


_desks: list[Desk] = []
_making = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_making.acquire, after_in_parent=_making.release, after_in_child=_making.release)


def desk() -> Desk:
    """Return this process's own desk. A forked child leaves its parent's as it is: they share its connections."""
    with _making:
        if not _desks or _desks[-1].pid != os.getpid():
            _desks.append(Desk())
        return _desks[-1]
