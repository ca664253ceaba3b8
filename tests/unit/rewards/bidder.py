"""A server on loopback whose every byte the test chooses."""

import contextlib
import hashlib
import hmac
import json
import socket
import socketserver
import threading
import time
from typing import NamedTuple

SECRET = "a long shared secret"  # noqa: S105


class Request(NamedTuple):
    """What came in, and over which connection."""

    line: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def json(self):
        return json.loads(self.body)


def http(body, status="200 OK", head=""):
    """Return an answer, as bytes."""
    body = body if isinstance(body, bytes) else body.encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body


def says(body, **settings):
    """Return a bidder that answers everybody the same."""

    def answer(request, connection):
        connection.sendall(http(body, **settings))
        return True

    return answer


def sends(*pieces):
    """Return a bidder that sends these bytes and hangs up."""

    def answer(request, connection):
        for piece in pieces:
            connection.sendall(piece)

    return answer


def honest(request, connection):
    """Bid the length of every reply, to who can sign."""
    if is_signed(request, SECRET):
        rewards = [len(reply["text"]) for reply in request.json["replies"]]
        connection.sendall(http(json.dumps({"rewards": rewards})))
    else:
        connection.sendall(http("", status="401 Unauthorized"))
    return True


def is_signed(request, secret):
    """Verify a signature as the documents say."""
    stamp = request.headers.get("x-auction-timestamp", "")
    if not stamp.isdecimal() or abs(time.time() - int(stamp)) > 300:
        return False
    signed = hmac.new(secret.encode(), stamp.encode() + b"." + request.body, hashlib.sha256)
    return hmac.compare_digest("v1=" + signed.hexdigest(), request.headers.get("x-auction-signature", ""))


class Bidder:
    """Answers every request by `answer(request, connection)`, and hangs up unless that is true.

    Attributes:
        requests: what came in, in order.
        connections: how many were accepted.
        over: set when the test is, for those who hang.
    """

    def __init__(self, answer, *, tls=None, port=0):
        self.requests = []
        self.connections = 0
        self.over = threading.Event()
        self._open = set()
        self._lock = threading.Lock()
        bidder = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with contextlib.suppress(OSError):
                    bidder._serve(self.request, answer, tls)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            request_queue_size = 512

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/bid"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self._server.shutdown()
        self.hang_up()
        self._server.server_close()

    def hang_up(self):
        """End every connection, as a restart does."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, connection, answer, tls):
        with self._lock:
            self.connections += 1
            number = self.connections
        with tls.wrap_socket(connection, server_side=True) if tls else connection as plain:
            with self._lock:
                self._open.add(plain)
            try:
                self._converse(plain, number, answer)
            finally:
                with self._lock:
                    self._open.discard(plain)

    def _converse(self, connection, number, answer):
        with connection.makefile("rb") as incoming:
            while (request := _read(incoming, number)) is not None:
                self.requests.append(request)
                if not answer(request, connection):
                    return


def _read(incoming, number):
    line = incoming.readline().decode().strip()
    if not line:
        return None
    headers = {}
    while text := incoming.readline().decode().strip():
        name, _, value = text.partition(":")
        headers[name.lower()] = value.strip()
    return Request(line, headers, incoming.read(int(headers["content-length"])), number)
