"""A remote bidder gets one request, safely, and none of its answers is trusted."""

import asyncio
import hmac
import itertools
import json
import math
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme
from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from llm_auction_chain import Agent, http_client
from llm_auction_chain.errors import ConfigurationError, RewardError
from llm_auction_chain.reports import collect
from llm_auction_chain.rewards.base import AskedBy, asked_by
from llm_auction_chain.rewards.webhook import WebhookReward
from llm_auction_chain.waiting import BLOCKING
from llm_auction_chain.waiting import run as run_blocking
from tests.unit.rewards.bidder import SECRET, Bidder, honest, http, is_signed, says, sends

PROMPT = [HumanMessage("x")]
REPLIES = [AIMessage("a"), AIMessage("bcd")]
GOOD = '{"rewards": [1, 2.5]}'
HUNG = 20.0  # seconds after which something hangs


def webhook(url, **settings):
    return WebhookReward(url, SECRET, **{"timeout": HUNG, "allow_http": True, "allow_private": True} | settings)


@pytest.fixture(params=["sync", "async"])
def score(request):
    """Call `score`, then `ascore`."""
    if request.param == "sync":
        return lambda reward, replies=REPLIES: reward.score(PROMPT, replies)
    return lambda reward, replies=REPLIES: asyncio.run(reward.ascore(PROMPT, replies))


@pytest.fixture
def named(monkeypatch):
    """Give names addresses; each look-up takes the next of the host's answers, and is noted."""
    answers, asked, real = {}, [], socket.getaddrinfo

    def getaddrinfo(host, port, *args, **kwargs):
        if host not in answers:
            return real(host, port, *args, **kwargs)
        asked.append(host)
        addresses = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    def name(host, *rounds):
        answers[host] = list(rounds)
        return asked

    return name


@pytest.fixture
def connects(monkeypatch):
    """Note every address that is connected to, and connect to loopback instead: it stands in for the internet."""
    connected, real = [], http_client._dial

    async def dial(connection, host, port):
        connected.append(host)
        return await real(connection, "127.0.0.1", port)

    monkeypatch.setattr(http_client, "_dial", dial)
    return connected


def failure(score, reward, kind):
    """Return the error, after a look at what is never in one."""
    with pytest.raises(kind) as caught:
        score(reward)
    sent = "".join(traceback.format_exception(caught.value))
    assert SECRET not in sent + repr(caught.value)
    assert "leak" not in str(caught.value)
    assert len(str(caught.value)) < 250
    return str(caught.value)


def test_a_bidder_that_verifies_the_signature_is_believed(score):
    with Bidder(honest) as bidder:
        reward = webhook(bidder.url)
        assert list(score(reward)) == [1.0, 3.0]
        (request,) = bidder.requests
    assert is_signed(request, SECRET)
    assert not is_signed(request, "another secret")
    assert not is_signed(request._replace(body=request.body + b" "), SECRET)
    old = str(int(request.headers["x-auction-timestamp"]) - 10)
    assert not is_signed(request._replace(headers=request.headers | {"x-auction-timestamp": old}), SECRET)
    assert request.line == "POST /bid HTTP/1.1"
    assert request.headers["host"] == f"127.0.0.1:{bidder.port}"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["idempotency-key"] == request.json["request_id"]


def test_a_request_holds_what_a_conversation_has_become():
    with Bidder(honest) as bidder:
        conversation = [*PROMPT]
        for _ in range(2):
            webhook(bidder.url).start(conversation, REPLIES).result(HUNG)
            conversation.append(AIMessage("y"))
    prompts = [[message["content"] for message in request.json["prompt"]] for request in bidder.requests]
    assert prompts == [["x"], ["x", "y"]]


def test_another_secret_is_another_bidder(score):
    with Bidder(honest) as bidder:
        reward = WebhookReward(bidder.url, "not the secret", allow_http=True, allow_private=True, timeout=HUNG)
        assert "status 401" in failure(score, reward, ConnectionError)


@pytest.fixture
def recipe():
    """Run the bidder of the cookbook, and stop it."""
    text = (Path(__file__).parents[3] / "cookbook/webhook_bidder.md").read_text(encoding="utf-8")
    names = {}
    exec(text.split("```python\n")[1].split("```")[0], names)  # noqa: S102
    yield SimpleNamespace(**names)
    names["server"].shutdown()
    names["server"].server_close()


def status_of(recipe, headers, body=b""):
    """Send a request and return the status of its answer, which must come though the body does not."""
    lines = [
        b"POST / HTTP/1.1",
        b"Connection: close",
        *(f"{name}: {value}".encode("latin-1") for name, value in headers.items()),
        b"",
        body,
    ]
    with socket.create_connection(("127.0.0.1", recipe.server.server_port), timeout=HUNG) as stream:
        stream.sendall(b"\r\n".join(lines))
        return int(stream.makefile("rb").read().split()[1])


def request_to(recipe, at, body=b'{"replies": []}'):
    signed = hmac.digest(recipe.SECRET.encode(), f"{at}.".encode() + body, "sha256").hex()
    headers = {"X-Auction-Timestamp": at, "X-Auction-Signature": f"v1={signed}", "Content-Length": len(body)}
    return headers, body


def test_the_bidder_to_copy_answers_a_request_once_and_forgets_it_when_it_is_too_old(recipe):
    now = int(time.time())
    first, ahead = request_to(recipe, now), request_to(recipe, now + 200)
    for request in (first, ahead):
        assert [status_of(recipe, *request) for _ in range(3)] == [200, 401, 401]
    other_key = {**first[0], "Idempotency-Key": "another"}
    assert status_of(recipe, other_key, first[1]) == 401
    assert status_of(recipe, *request_to(recipe, now - 400)) == 401
    recipe.seen.update(dict.fromkeys(recipe.seen, now - 1))
    assert status_of(recipe, *request_to(recipe, now, b'{"replies": [] }')) == 200
    assert len(recipe.seen) == 1


@pytest.mark.parametrize("length", [None, "100000000000", "4000001", "-1", "+3", "0x3", "9" * 5000, "", "\xb2"])
def test_the_bidder_to_copy_reads_no_body_whose_length_it_does_not_like(recipe, length):
    assert status_of(recipe, {} if length is None else {"Content-Length": length}) == 413


@pytest.mark.parametrize("headers", [
    {"X-Auction-Signature": "v1=\xe9"}, {"X-Auction-Signature": ""}, {"X-Auction-Timestamp": "9" * 5000},
    {"X-Auction-Timestamp": "\xb2"}, {"X-Auction-Timestamp": "-1"},
])  # fmt: skip
def test_the_bidder_to_copy_refuses_headers_of_any_kind(recipe, headers):
    signed, body = request_to(recipe, int(time.time()))
    assert status_of(recipe, signed | headers, body) == 401
    assert status_of(recipe, signed, body) == 200


def test_a_request_holds_the_auction_and_nothing_else(score):
    call = {"name": "play", "args": {"song": "x", "gain": math.nan, "data": b"\xff"}, "id": "1"}
    token = asked_by.set(AskedBy(auction_id="auction 1", currency="EUR", commitment="sha256:1"))
    try:
        with Bidder(says(GOOD)) as bidder:
            score(webhook(bidder.url), [AIMessage([{"type": "text", "text": "ä"}], tool_calls=[call]), AIMessage("")])
    finally:
        asked_by.reset(token)
    sent = bidder.requests[0].json
    assert sent.pop("request_id")[14] == "7"
    assert sent == {
        "schema": "llm_auction_chain.bid_request/1",
        "auction_id": "auction 1",
        "currency": "EUR",
        "commitment": "sha256:1",
        "prompt": [{"role": "user", "content": "x"}],
        "replies": [
            {"text": "ä", "tool_calls": [{"name": "play", "args": {"song": "x", "gain": None, "data": "_w=="}}]},
            {"text": "", "tool_calls": []},
        ],
    }


def test_every_message_is_sent_as_text_with_one_of_four_roles():
    prompt = [
        SystemMessage("s"),
        HumanMessage([{"type": "text", "text": "h"}, {"type": "image_url", "image_url": {"url": "https://x"}}]),
        AIMessageChunk("a"),
        ToolMessage("t", tool_call_id="1"),
        ChatMessage("c", role="assistant"),
        ChatMessage("d", role="narrator"),
        HumanMessage("half a pair: \ud800"),
    ]
    with Bidder(says(GOOD)) as bidder:
        webhook(bidder.url).score(prompt, REPLIES)
    sent = bidder.requests[0].json
    assert [(message["role"], message["content"]) for message in sent["prompt"]] == [
        ("system", "s"), ("user", "h"), ("assistant", "a"), ("tool", "t"), ("assistant", "c"), ("user", "d"),
        ("user", "half a pair: ?"),
    ]  # fmt: skip
    assert (sent["auction_id"], sent["currency"]) == (None, "")


LIES = {
    "too few": '{"rewards": [1]}',
    "too many": '{"rewards": [1, 2, 3]}',
    "none": '{"rewards": []}',
    "null": '{"rewards": null}',
    "strings": '{"rewards": ["1", "leak"]}',
    "bools": '{"rewards": [true, 1]}',
    "nested": '{"rewards": [[1], [2]]}',
    "a mapping": '{"rewards": {"0": 1, "1": 2}}',
    "NaN": '{"rewards": [NaN, 1]}',
    "Infinity": '{"rewards": [Infinity, 1]}',
    "-Infinity": '{"rewards": [1, -Infinity]}',
    "1e999": '{"rewards": [1e999, 1]}',
    "a huge integer": f'{{"rewards": [{"9" * 400}, 1]}}',
    "an integer that nobody reads": f'{{"rewards": [{"9" * 50000}, 1]}}',
    "deep lists": "[" * 60000,
    "deep mappings": '{"leak":' * 7000,
    "a list": "[1, 2]",
    "a number": "1",
    "another name": '{"leak": [1, 2]}',
    "no JSON": "<html>leak</html>",
    "JSON and more": GOOD + "leak",
    "nothing": "",
    "bytes": b"\xff\xfeleak",
}


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_is_no_finite_number_per_reply_is_refused(score, lie):
    with Bidder(says(LIES[lie])) as bidder:
        message = failure(score, webhook(bidder.url), RewardError)
    assert "127.0.0.1" in message
    assert "rewards" in message


def test_a_bidder_may_answer_more_than_it_must(score):
    with Bidder(says('{"rewards": [-1, 2e-3], "model": "v2"}')) as bidder:
        assert list(score(webhook(bidder.url))) == [-1.0, 0.002]


def test_an_answer_of_unknown_length_is_read_to_its_end(score):
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD.encode())
    until_closed = b"HTTP/1.0 200 OK\r\n\r\n" + GOOD.encode()
    for answer in (chunked, until_closed):
        with Bidder(sends(answer)) as bidder:
            assert list(score(webhook(bidder.url))) == [1.0, 2.5]


STALLS = {
    "says nothing": (b"", b""),
    "drips its head": (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "drips its body": (b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n", b" "),
    "drips heads": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("stall", STALLS)
def test_a_late_answer_times_out_however_the_bidder_spends_the_time(score, stall):
    def answer(request, connection):
        head, drop = STALLS[stall]
        connection.sendall(head)
        while not bidder.over.wait(0.02):
            connection.sendall(drop)

    with Bidder(answer) as bidder:
        started = time.monotonic()
        message = failure(score, webhook(bidder.url, timeout=0.2), TimeoutError)
        assert time.monotonic() - started < HUNG
    assert "did not answer within 0.2 s" in message
    assert len(bidder.requests) == 1


def test_a_slow_name_server_delays_only_the_bidder_it_speaks_for(score, monkeypatch):
    over, slow_names, real = threading.Event(), [], socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if host.endswith(".slow.example"):
            slow_names.append(host)
            over.wait(HUNG)
        return real("127.0.0.1" if host.endswith(".example") else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        with Bidder(says(GOOD)) as bidder:
            slow = [webhook(f"http://{k % 25}.slow.example:{bidder.port}", timeout=0.2) for k in range(50)]

            async def together():
                late = [asyncio.ensure_future(reward.ascore(PROMPT, REPLIES)) for reward in slow]
                answer = await webhook(f"http://fast.example:{bidder.port}").ascore(PROMPT, REPLIES)
                return answer, await asyncio.gather(*late, return_exceptions=True)

            answer, late = asyncio.run(together())
            assert list(answer) == [1.0, 2.5]
            assert {type(error) for error in late} == {TimeoutError}
            assert len(slow_names) == 25  # one look-up per name, whoever waits for it
    finally:
        over.set()


ENDLESS = {
    "a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 10485760\r\n\r\n", b" " * 65536),
    "a body that lies about its length": (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", b"1" * 65536),
    "a body of no length": (b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65536),
    "chunks of one byte": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 8192),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 8192),
    "one header": (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65536),
    "heads": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2048),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_no_more_is_read_than_an_answer_may_have(score, what):
    head, piece = ENDLESS[what]
    accepted = []

    def answer(request, connection):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        connection.sendall(head)
        accepted.extend(connection.send(piece) for _ in range(160))  # 10 MB, at most

    with Bidder(answer) as bidder:
        message = failure(score, webhook(bidder.url), RewardError)
    assert "more than 65536 bytes" in message or "more than 1000 parts" in message
    assert sum(accepted) < 5_000_000  # what the kernel holds for a reader that never comes
    assert len(bidder.requests) == 1


def test_a_head_has_a_limit_where_answers_have_none(score):
    def answer(request, connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for _ in range(160):
            connection.sendall(b"X: y\r\n" * 8192)

    with Bidder(answer) as bidder:
        failure(score, webhook(bidder.url, max_bytes=10**9), ConnectionError)
        assert len(bidder.requests) == 1


@pytest.mark.parametrize("answer", [
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 9999,
    b"HTTP/1.1 103 Early Hints\r\n\r\n" * 2000 + http(GOOD),
], ids=["chunks", "interim answers"])  # fmt: skip
def test_an_answer_in_very_many_parts_keeps_no_other_bidder_waiting(score, answer):
    with Bidder(sends(answer)) as bidder:
        assert "more than 1000 parts" in failure(score, webhook(bidder.url), RewardError)


def test_an_answer_of_just_the_length_allowed_is_read(score):
    answer = http(GOOD)
    with Bidder(sends(answer)) as bidder:
        assert list(score(webhook(bidder.url, max_bytes=len(answer)))) == [1.0, 2.5]
        failure(score, webhook(bidder.url, max_bytes=len(answer) - 1), RewardError)


BROKEN = {
    "hangs up": [],
    "hangs up in its head": [b"HTTP/1.1 200 OK\r\nContent-"],
    "hangs up in its body": [b"HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n", b'{"rewards"'],
    "hangs up in a chunk": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n15\r\n{"],
    "speaks something else": [b"220 leak ESMTP\r\n"],
    "speaks in pipes": [b"\x00leak" * 100],
    "has two lengths": [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12"],
    "changes protocol": [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: leak\r\n\r\n"],
    "fails": [http("leak", "500 leak")],
    "has nothing": [http("", "204 No Content")],
    "has part": [http(GOOD, "206 Partial Content")],
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_request_that_failed_is_not_repeated(score, case):
    with Bidder(sends(*BROKEN[case])) as bidder:
        failure(score, webhook(bidder.url), ConnectionError)
    assert len(bidder.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(score, status):
    with Bidder(says(GOOD)) as target:
        head = f"Location: {target.url}\r\n"
        with Bidder(says(GOOD, status=f"{status} Moved", head=head)) as bidder:
            message = failure(score, webhook(bidder.url), ConnectionError)
        assert target.connections == 0
    assert "redirects are not followed" in message


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_a_compressed_answer_is_refused(score, encoding):
    with Bidder(says(GOOD, head=f"Content-Encoding: {encoding}\r\n")) as bidder:
        assert "compressed" in failure(score, webhook(bidder.url), RewardError)


def test_a_bidder_that_is_not_there_cannot_be_reached(score):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "cannot be reached" in failure(score, webhook(f"http://127.0.0.1:{port}"), ConnectionError)


def test_a_connection_that_cannot_be_made_is_tried_once_more(score, monkeypatch):
    tried, real = [], http_client._dial

    async def dial(connection, host, port):
        tried.append(host)
        if len(tried) == 1:
            raise ConnectionRefusedError
        return await real(connection, host, port)

    monkeypatch.setattr(http_client, "_dial", dial)
    with Bidder(says(GOOD)) as bidder:
        assert list(score(webhook(bidder.url))) == [1.0, 2.5]
    assert len(tried) == 2


def test_a_proxy_of_the_environment_is_not_used(score, monkeypatch):
    with Bidder(says(GOOD)) as proxy, Bidder(says(GOOD)) as bidder:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        score(webhook(bidder.url))
        assert (proxy.connections, bidder.connections) == (0, 1)


def test_no_cookie_is_kept(score):
    with Bidder(says(GOOD, head="Set-Cookie: a=b\r\n")) as bidder:
        for _ in range(2):
            score(webhook(bidder.url))
    assert [request.headers.get("cookie") for request in bidder.requests] == [None, None]


@pytest.mark.parametrize("host", [
    "127.0.0.1", "localhost", "169.254.169.254", "10.0.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "2130706433",  # noqa: S104
    "0x7f.1", "224.0.0.1", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]", "[fe80::1]", "[fd00::1]", "[fec0::1]", "[ff0e::1]",
])  # fmt: skip
def test_an_address_that_is_not_public_is_not_connected_to(score, connects, host):
    with Bidder(says(GOOD)) as bidder:
        reward = webhook(f"http://{host}:{bidder.port}", allow_private=False)
        assert "not public" in failure(score, reward, ConnectionError)
        assert (connects, bidder.connections) == ([], 0)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["169.254.169.254", "8.8.8.8"]])
def test_a_name_is_refused_for_any_of_its_addresses(score, named, connects, addresses):
    named("bidder.example", addresses)
    with Bidder(says(GOOD)) as bidder:
        reward = webhook(f"http://bidder.example:{bidder.port}", allow_private=False)
        message = failure(score, reward, ConnectionError)
        assert (connects, bidder.connections) == ([], 0)
    assert not any(address in message for address in addresses)


def test_a_name_whose_addresses_change_is_connected_to_only_where_it_was_checked(score, named, connects):
    asked = named("bidder.example", ["8.8.8.8"], ["127.0.0.1"])
    with Bidder(says(GOOD)) as bidder:
        reward = webhook(f"http://bidder.example:{bidder.port}", allow_private=False)
        assert list(score(reward)) == [1.0, 2.5]
        assert list(score(reward)) == [1.0, 2.5]
        assert (asked, connects) == (["bidder.example"], ["8.8.8.8"])
        assert bidder.requests[0].headers["host"] == f"bidder.example:{bidder.port}"
        bidder.hang_up()
        assert "not public" in failure(score, reward, ConnectionError)
        assert connects == ["8.8.8.8"]


def test_a_trusting_rewards_connection_is_not_lent_to_a_distrustful_one(score, connects):
    with Bidder(says(GOOD)) as bidder:
        score(webhook(bidder.url))
        failure(score, webhook(bidder.url, allow_private=False), ConnectionError)
        assert len(bidder.requests) == 1


def test_the_next_address_is_tried_where_one_makes_no_connection(score, named):
    named("bidder.example", ["127.0.0.2", "127.0.0.1"])  # nobody listens at the first
    with Bidder(says(GOOD)) as bidder:
        assert list(score(webhook(f"http://bidder.example:{bidder.port}"))) == [1.0, 2.5]


@pytest.mark.parametrize("addresses", [["8.8.8.8", "8.8.4.4"], ["8.8.8.8", "1.1.1.1", "9.9.9.9", "8.8.4.4"]])
def test_each_address_of_a_bidder_gets_its_share_of_the_time(score, named, monkeypatch, addresses):
    """All addresses but the last one accept no connection, ever."""
    tried, real = [], http_client._dial

    async def dial(connection, host, port):
        tried.append(host)
        if host != "8.8.4.4":
            await asyncio.sleep(HUNG)
        return await real(connection, "127.0.0.1", port)

    monkeypatch.setattr(http_client, "_dial", dial)
    named("bidder.example", addresses)
    with Bidder(says(GOOD)) as bidder:
        reward = webhook(f"http://bidder.example:{bidder.port}", timeout=1.0)
        assert list(score(reward)) == [1.0, 2.5]
    assert tried == addresses


def test_no_more_than_four_addresses_are_tried(score, named, monkeypatch):
    tried = []

    async def dial(connection, host, port):
        tried.append(host)
        raise ConnectionRefusedError

    monkeypatch.setattr(http_client, "_dial", dial)
    named("bidder.example", [f"8.8.8.{k}" for k in range(9)])
    failure(score, webhook("http://bidder.example"), ConnectionError)
    assert tried == [f"8.8.8.{k}" for k in range(4)] * 2


@pytest.mark.parametrize("host", ["a b", "a" * 64, ".example", "[fe80::1%25nowhere]"])
def test_a_name_without_an_address_is_no_connection(score, monkeypatch, host):
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *args, **kwargs: real(*args, flags=socket.AI_NUMERICHOST, **kwargs)
    )
    assert "has no address" in failure(score, webhook(f"http://{host}"), ConnectionError)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def tls_of(authority, host):
    """Return what a server needs to be `host`, and the names that it was called by."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    called = []
    context.sni_callback = lambda connection, name, context: called.append(name)
    return context, called


@pytest.fixture
def trusting(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_a_certificate_is_verified_by_the_hosts_name(score, named, authority, trusting):
    named("bidder.example", ["127.0.0.1"])
    context, called = tls_of(authority, "bidder.example")
    with Bidder(honest, tls=context) as bidder:
        reward = webhook(f"https://bidder.example:{bidder.port}/bid", tls=trusting)
        assert list(score(reward)) == [1.0, 3.0]
        assert list(score(reward)) == [1.0, 3.0]
        assert (called, bidder.connections) == (["bidder.example"], 1)
        assert bidder.requests[0].headers["host"] == f"bidder.example:{bidder.port}"


def test_many_slow_bidders_over_tls_do_not_wait_for_one_another(authority, trusting):
    """Each answers only when all have been asked, and another one accepts connections and never shakes hands."""
    context, _ = tls_of(authority, "127.0.0.1")
    everybody = threading.Barrier(40)

    def answer(request, connection):
        everybody.wait(HUNG)
        connection.sendall(http(GOOD))

    with Bidder(answer, tls=context) as bidder, socket.create_server(("127.0.0.1", 0)) as silent:
        mute = webhook(f"https://127.0.0.1:{silent.getsockname()[1]}", tls=trusting, timeout=0.5)
        agents = [Agent("mute", mute)]
        agents += [Agent(str(k), webhook(f"{bidder.url}/{k}", tls=trusting)) for k in range(40)]
        reports = run_blocking(collect(agents, PROMPT, REPLIES, waiter=BLOCKING))
    assert [report.status for report in reports] == ["timeout"] + ["reported"] * 40


def test_a_certificate_of_another_host_is_refused_though_a_connection_to_its_address_is_open(
    score, named, authority, trusting
):
    named("bidder.example", ["127.0.0.1"])
    named("victim.example", ["127.0.0.1"])
    context, called = tls_of(authority, "bidder.example")
    with Bidder(honest, tls=context) as bidder:
        score(webhook(f"https://bidder.example:{bidder.port}", tls=trusting))
        message = failure(score, webhook(f"https://victim.example:{bidder.port}", tls=trusting), ConnectionError)
        assert "certificate" in message
        assert called[:2] == ["bidder.example", "victim.example"]
        assert len(bidder.requests) == 1


def test_a_certificate_of_an_unknown_authority_is_refused(score, authority):
    context, _ = tls_of(authority, "127.0.0.1")
    with Bidder(honest, tls=context) as bidder:
        assert "certificate" in failure(score, webhook(bidder.url), ConnectionError)
        assert bidder.requests == []


def test_a_server_without_tls_is_no_https(score, trusting):
    with Bidder(says(GOOD)) as bidder, pytest.raises(ConnectionError):
        score(webhook(bidder.url.replace("http:", "https:"), tls=trusting))


def test_one_connection_serves_sync_and_async_auctions_of_every_loop():
    with Bidder(honest) as bidder:
        reward = webhook(bidder.url)
        reward.score(PROMPT, REPLIES)
        asyncio.run(reward.ascore(PROMPT, REPLIES))
        asyncio.run(reward.ascore(PROMPT, REPLIES))
        webhook(bidder.url).score(PROMPT, REPLIES)
        assert bidder.connections == 1
        assert len({request.json["request_id"] for request in bidder.requests}) == 4


def test_a_bidder_that_restarts_loses_no_auction(score):
    with Bidder(honest) as bidder:
        reward = webhook(bidder.url)
        score(reward)
        bidder.hang_up()
        assert list(score(reward)) == [1.0, 3.0]
    with Bidder(honest, port=bidder.port) as again:
        assert list(score(reward)) == [1.0, 3.0]
        assert again.connections == 1


def answers_once(rest=b""):
    """Return a bidder that answers one request per connection and breaks off the next, saying `rest`."""
    answered = set()

    def answer(request, connection):
        if request.connection in answered:
            connection.sendall(rest)
            return False
        answered.add(request.connection)
        return honest(request, connection)

    return answer


def test_a_kept_connection_that_breaks_off_before_any_answer_is_replaced_once_for_the_same_request(score):
    with Bidder(answers_once()) as bidder:
        reward = webhook(bidder.url)
        score(reward)
        assert list(score(reward)) == [1.0, 3.0]
        _, broken, repeated = bidder.requests
        assert (broken.body, broken.headers) == (repeated.body, repeated.headers)
        assert (broken.connection, repeated.connection) == (1, 2)


def test_a_kept_connection_that_breaks_off_in_an_answer_is_the_bidders_fault(score):
    with Bidder(answers_once(b"HTTP/1.1 200")) as bidder:
        reward = webhook(bidder.url)
        score(reward)
        failure(score, reward, ConnectionError)
        assert len(bidder.requests) == 2


def test_what_was_sent_unasked_is_no_answer_to_the_next_auction(score):
    read, sent = threading.Event(), threading.Event()

    def answer(request, connection):
        connection.sendall(http(GOOD))
        if request.connection == 1:
            read.wait(HUNG)
            connection.sendall(http('{"rewards": [9, 9]}'))
            sent.set()
        return True

    with Bidder(answer) as bidder:
        reward = webhook(bidder.url)
        score(reward)
        read.set()
        assert sent.wait(HUNG)
        assert list(score(reward)) == [1.0, 2.5]
        assert bidder.connections == 2


def test_an_answer_too_many_is_never_read_as_that_of_another_bidder(score):
    def answer(request, connection):
        connection.sendall(http(GOOD) + http('{"rewards": [9, 9]}'))
        return True

    with Bidder(answer) as bidder:
        one, other = webhook(bidder.url), WebhookReward(bidder.url, "another", allow_http=True, allow_private=True)
        assert [list(score(reward)) for reward in (one, other)] == [[1.0, 2.5]] * 2
        assert bidder.connections == 2


def test_a_connection_is_closed_when_no_auction_uses_it_for_long(score, monkeypatch):
    monkeypatch.setattr(http_client, "_IDLE", 0.05)
    gone = threading.Event()

    def answer(request, connection):
        connection.sendall(http(GOOD))
        connection.settimeout(HUNG)
        if connection.recv(1) == b"":
            gone.set()

    with Bidder(answer) as bidder:
        score(webhook(bidder.url))
        assert gone.wait(HUNG)


def test_nothing_stays_of_a_bidder_that_no_connection_leads_to(score):
    """It has hung up at once, or in place of a later answer: then no timer of its connection is left."""

    def answer(request, connection):
        connection.sendall(http(GOOD, head="Connection: close\r\n" * (len(bidder.requests) == 2)))
        return True

    with Bidder(answer) as bidder:
        reward = webhook(bidder.url)
        assert [list(score(reward)) for _ in range(2)] == [[1.0, 2.5]] * 2
    assert reward not in {kept.owner for kept in http_client._post_office()._idle}


def test_a_request_that_lasts_longer_than_a_connection_is_kept_is_answered(score, monkeypatch):
    monkeypatch.setattr(http_client, "_IDLE", 0.1)

    def answer(request, connection):
        if len(bidder.requests) == 2:
            bidder.over.wait(0.3)
        connection.sendall(http(GOOD))
        return True

    with Bidder(answer) as bidder:
        assert [list(score(webhook(bidder.url))) for _ in range(2)] == [[1.0, 2.5]] * 2


async def test_a_cancelled_auction_cancels_its_request():
    arrived, gone = threading.Event(), threading.Event()

    def answer(request, connection):
        arrived.set()
        connection.settimeout(HUNG)
        if connection.recv(1) == b"":
            gone.set()

    with Bidder(answer) as bidder:
        task = asyncio.create_task(webhook(bidder.url, timeout=600.0).ascore(PROMPT, REPLIES))
        assert await asyncio.to_thread(arrived.wait, HUNG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(gone.wait, HUNG)


async def test_no_bidder_waits_for_another():
    everybody = threading.Barrier(200)

    def answer(request, connection):
        everybody.wait(HUNG)
        return honest(request, connection)

    with Bidder(answer) as bidder:
        rewards = [webhook(bidder.url) for _ in range(200)]
        answers = await asyncio.gather(*(reward.ascore(PROMPT, REPLIES) for reward in rewards))
        assert all(list(answer) == [1.0, 3.0] for answer in answers)
        assert bidder.connections == 200


def test_threads_that_ask_at_once_get_each_their_own_answer():
    replies = [[AIMessage("x" * k)] for k in range(1, 41)]
    answers = {}
    with Bidder(honest) as bidder:
        reward = webhook(bidder.url)

        def ask(k):
            answers[k] = list(reward.score(PROMPT, replies[k]))

        threads = [threading.Thread(target=ask, args=(k,)) for k in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HUNG)
    assert answers == {k: [k + 1.0] for k in range(40)}


def run(code, *arguments):
    return subprocess.run(  # noqa: S603
        [sys.executable, "-X", "dev", "-W", "error", "-c", code, *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


ASKS = f"""
import asyncio, logging, os, sys, threading
logging.getLogger("asyncio").setLevel(logging.ERROR)  # a slow machine's steps are warned of
from langchain_core.messages import AIMessage
from llm_auction_chain.rewards.webhook import WebhookReward

reward = WebhookReward(sys.argv[1], {SECRET!r}, timeout=600, allow_http=True, allow_private=True)
replies = [AIMessage("a"), AIMessage("bcd")]
"""


def test_a_process_ends_though_a_bidder_hangs():
    hang = """
threading.Thread(target=reward.score, args=([], replies), daemon=True).start()
sys.stdin.readline()
print("ends")
"""
    with Bidder(lambda request, connection: bidder.over.wait(HUNG * 2)) as bidder:
        child = subprocess.Popen(  # noqa: S603
            [sys.executable, "-X", "dev", "-W", "error", "-c", ASKS + hang, bidder.url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        for _ in itertools.takewhile(lambda _: not bidder.requests, range(int(HUNG / 0.02) * 2)):
            time.sleep(0.02)
        assert bidder.requests
        assert child.communicate("\n", timeout=HUNG) == ("ends\n", "")


def test_a_forked_process_asks_for_itself():
    fork = """
print(reward.score([], replies), flush=True)
child = os.fork()
print(reward.score([], replies), asyncio.run(reward.ascore([], replies)), flush=True)
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    with Bidder(honest) as bidder:
        done = run(ASKS + fork, bidder.url)
        assert (done.stdout, done.stderr) == ("[1.0, 3.0]\n" + "[1.0, 3.0] [1.0, 3.0]\n" * 2, "")
        assert bidder.connections == 2


@pytest.mark.parametrize("url", [
    "ftp://bidder.example/", "bidder.example/bid", "https://", "https:///bid", "", None, 7, "file:///etc/passwd",
    "https://bidder\n.example", "https://bidder.example:0", "https://bidder.example:65536", "https://[::1",
    "https://me:leak@bidder.example", "https://me@bidder.example", "https://bidder.example/#x",
])  # fmt: skip
def test_a_url_that_cannot_be_asked_is_refused(url):
    with pytest.raises(ConfigurationError, match="URL"):
        webhook(url)


@pytest.mark.parametrize("settings", [
    {"timeout": 0}, {"timeout": -1.0}, {"timeout": math.inf}, {"timeout": "2"}, {"timeout": None}, {"max_bytes": 0},
    {"max_bytes": 1.5}, {"max_bytes": True}, {"tls": True},
])  # fmt: skip
def test_a_limit_that_is_none_is_refused(settings):
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        webhook("https://bidder.example", **settings)


@pytest.mark.parametrize("secret", ["", None, b"bytes", "\ud800"])
def test_a_secret_that_cannot_sign_is_refused(secret):
    with pytest.raises(ConfigurationError, match="secret"):
        WebhookReward("https://bidder.example", secret)


def test_plain_http_must_be_asked_for():
    with pytest.raises(ConfigurationError, match="allow_http=True"):
        WebhookReward("http://bidder.example", SECRET)


def test_the_secret_is_in_no_repr():
    reward = webhook("https://bidder.example")
    assert SECRET not in f"{reward!r} {reward} {reward * 2 + 1!r}"
    assert reward == webhook("https://bidder.example")
    assert hash(reward) == hash(webhook("https://bidder.example"))


def test_a_subclass_may_score_in_its_own_way():
    class Halved(WebhookReward):
        def score(self, prompt, replies):
            return [amount / 2 for amount in super().score(prompt, replies)]

    with Bidder(says(GOOD)) as bidder:
        agent = Agent("halves", Halved(bidder.url, SECRET, timeout=HUNG, allow_http=True, allow_private=True))
        (report,) = run_blocking(collect([agent], PROMPT, REPLIES, waiter=BLOCKING))
    assert report.rewards == (0.5, 1.25)


def test_it_composes_like_any_other_reward(score):
    with Bidder(honest) as bidder:
        both = webhook(bidder.url) * 2 + 1
        assert both.awaits
        assert score(both) == [3.0, 7.0]
        assert json.loads(bidder.requests[0].body)["replies"][0]["text"] == "a"
