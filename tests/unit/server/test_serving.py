"""One request from its place in the queue to the last byte of its answer: what is charged, and what is taken back."""

import asyncio
import itertools
import json
import logging
import threading

import httpx
import pytest
from fastapi.testclient import TestClient
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_openai import ChatOpenAI

from llm_auction_chain import Agent, AuctionRunnable, Billing, Ledger
from llm_auction_chain.rewards import MentionReward
from llm_auction_chain.server.access import Key
from llm_auction_chain.server.app import create_app
from llm_auction_chain.server.limits import Limits

BODY = {"model": "llm-auction", "messages": [{"role": "user", "content": "What is for breakfast?"}]}
SECRET = "shared by all workers"  # noqa: S105


class Gate:
    """Where a model waits until a test lets it go on."""

    def __init__(self, *, is_open=False):
        self.reached, self.opened, self.calls = asyncio.Event(), asyncio.Event(), itertools.count()
        if is_open:
            self.opened.set()


class GatedChatModel(BaseChatModel):
    """A model whose replies come when a gate is opened."""

    gate: object
    replies: tuple[str, ...] = ("Eggs.", "Oats.")

    @property
    def _llm_type(self):
        return "gated"

    def _generate(self, *_, **__):
        raise NotImplementedError

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        self.gate.reached.set()
        await self.gate.opened.wait()
        reply = AIMessage(self.replies[next(self.gate.calls) % len(self.replies)])
        return ChatResult(generations=[ChatGeneration(message=reply)])


class Connection:
    """A client's connection to an application, without sockets: what was sent, and a hang-up at any moment."""

    def __init__(self, app, body, *, headers=None, path="/v1/chat/completions"):
        self.messages, self.gone = [], asyncio.Event()
        self.sent = asyncio.Event()
        self._body = json.dumps(body).encode()
        names = {"host": "localhost", "content-type": "application/json", **(headers or {})}
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in names.items()],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
            "scheme": "http",
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self):
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        if not self.gone.is_set():
            self.messages.append(message)
        self.sent.set()
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.gone.set()  # as a server does once the response is complete

    async def hang_up(self):
        self.gone.set()
        await asyncio.gather(self.task, return_exceptions=True)

    @property
    def status(self):
        return self.messages[0]["status"] if self.messages else None

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.messages)

    async def answer(self):
        await self.task
        return json.loads(self.body)


@pytest.fixture
def ledger():
    with Ledger("sqlite://", keep_replies=True) as ledger:
        for owner in ("EggCo", "OatCo"):
            ledger.deposit(owner, 100, key=owner)
        yield ledger


def auction_of(model, ledger=None, **settings):
    agents = [
        Agent("EggCo", MentionReward(["eggs"], value=4.0)),
        Agent("OatCo", MentionReward(["oats"], value=3.0)),
    ]
    billing = Billing(ledger=ledger)
    return AuctionRunnable(model=model, agents=agents, n_candidates=4, reward_timeout=10.0, billing=billing, **settings)


def states(ledger):
    """Return what is held and charged in all accounts."""
    ledger_accounts = ledger.accounts()
    return sum(one.held for one in ledger_accounts), 200 - sum(one.balance for one in ledger_accounts)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_while_the_model_draws_is_not_charged(ledger, stream):
    gate = Gate()
    app = create_app(auction_of(GatedChatModel(gate=gate), ledger))
    connection = Connection(app, {**BODY, "stream": stream})
    await gate.reached.wait()
    assert states(ledger)[0] > 0
    await connection.hang_up()
    assert states(ledger) == (0, 0)
    assert connection.messages == []


async def test_a_reply_that_reached_an_open_connection_stays_charged(ledger):
    gate, auctions = Gate(is_open=True), set()
    app = create_app(auction_of(GatedChatModel(gate=gate), ledger))
    for _ in range(4):
        auctions.add((await Connection(app, BODY).answer())["auction"]["id"])
    kinds = {entry.kind for entry in ledger.entries()}
    assert {entry.auction_id for entry in ledger.entries() if entry.kind == "charge"} == auctions
    assert "reversal" not in kinds
    assert states(ledger)[0] == 0
    assert states(ledger)[1] > 0


async def test_a_client_that_hangs_up_when_the_reply_is_drawn_gets_its_charge_back(ledger):
    """The client goes in the moment in which the auction has been charged and nothing has been sent."""
    gate, connections = Gate(is_open=True), []

    def leave(event):
        if event.name == "auction.settled":
            connections[0].gone.set()

    app = create_app(auction_of(GatedChatModel(gate=gate), ledger, on_event=leave, seed=3))
    connections.append(Connection(app, BODY))
    await asyncio.gather(connections[0].task, return_exceptions=True)
    kinds = [entry.kind for entry in ledger.entries() if entry.kind != "deposit"]
    assert "charge" in kinds
    assert "reversal" in kinds
    assert states(ledger) == (0, 0)
    assert connections[0].messages == []


@pytest.mark.parametrize("rounds", range(8))
async def test_a_reply_is_charged_if_and_only_if_the_connection_was_open_when_it_was_sent(ledger, rounds):
    """The client goes some rounds of the event loop after the status was sent, just before or after the reply is."""

    class Leaving(Connection):
        async def _send(self, message):
            await super()._send(message)
            if message["type"] == "http.response.start":
                self._leave_in(rounds)

        def _leave_in(self, rounds):
            if rounds:
                asyncio.get_running_loop().call_soon(self._leave_in, rounds - 1)
            else:
                self.gone.set()

    app = create_app(auction_of(GatedChatModel(gate=Gate(is_open=True)), ledger, seed=3))
    connection = Leaving(app, BODY)
    await asyncio.gather(connection.task, return_exceptions=True)
    held, charged = states(ledger)
    assert held == 0
    assert (charged > 0) == (b"choices" in connection.body)


class Unread(Connection):
    """A client that reads nothing after the first comment, so that the server waits with all that follows."""

    async def _send(self, message):
        if b"auction runs" in self.body:
            await self.gone.wait()
        await super()._send(message)


@pytest.mark.parametrize("goes", [True, False])
async def test_a_client_that_reads_nothing_is_not_charged(ledger, goes, monkeypatch):
    gate, settled, taken_back, cancel = Gate(), asyncio.Event(), asyncio.Event(), ledger.cancel
    loop = asyncio.get_running_loop()

    def note(event):
        if event.name == "auction.settled":
            settled.set()

    def note_cancel(*arguments, **keywords):
        cancel(*arguments, **keywords)
        loop.call_soon_threadsafe(taken_back.set)

    ledger.cancel = note_cancel
    app = create_app(auction_of(GatedChatModel(gate=gate), ledger, on_event=note), limits=Limits(keep_alive=0.01))
    connection = Unread(app, {**BODY, "stream": True})
    while b"auction runs" not in connection.body:
        connection.sent.clear()
        await connection.sent.wait()
    gate.opened.set()
    await settled.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    if goes:
        await connection.hang_up()
    else:  # the deadline passes while the reply waits
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + Limits().timeout)
    await taken_back.wait()
    assert states(ledger) == (0, 0)
    await connection.hang_up()


@pytest.mark.parametrize("stays", [True, False])
async def test_a_middleware_around_the_application_changes_no_charge(ledger, stays):
    gate = Gate(is_open=stays)
    app = create_app(auction_of(GatedChatModel(gate=gate), ledger))

    @app.middleware("http")
    async def mark(request, call_next):
        response = await call_next(request)
        response.headers["x-mark"] = "1"
        return response

    connection = Connection(app, BODY)
    await gate.reached.wait()
    if stays:
        assert (await connection.answer())["choices"]
    else:
        await connection.hang_up()
    assert states(ledger)[0] == 0
    assert (states(ledger)[1] > 0) == stays


@pytest.mark.parametrize("rounds", range(8))
async def test_a_hang_up_that_arrives_as_the_comments_end_is_not_lost_in_a_middleware(ledger, rounds):
    connections = []

    def leave_in(rounds):
        if rounds:
            asyncio.get_running_loop().call_soon(leave_in, rounds - 1)
        else:
            connections[0].gone.set()

    def note(event):
        if event.name == "auction.settled":
            leave_in(rounds)

    app = create_app(auction_of(GatedChatModel(gate=Gate(is_open=True)), ledger, on_event=note))

    async def middleware(scope, receive, send):
        async def receive_within():
            return await receive()

        await app(scope, receive_within, send)

    connections.append(Connection(middleware, {**BODY, "stream": True}))
    await asyncio.gather(connections[0].task, return_exceptions=True)
    assert b"[DONE]" not in connections[0].body
    assert states(ledger) == (0, 0)


class Uploading(Connection):
    """A client that sends a part of its request."""

    async def _receive(self):
        if self._body is not None:
            body, self._body = self._body[:9], None
            return {"type": "http.request", "body": body, "more_body": True}
        return await super()._receive()


async def test_a_client_that_goes_before_its_request_is_complete_is_no_failure_of_the_server(caplog):
    app = create_app(auction_of(GatedChatModel(gate=Gate())))
    connection = Uploading(app, BODY)
    with caplog.at_level(logging.INFO, logger="llm_auction_chain"):
        await connection.hang_up()
    assert connection.messages == []
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert " 499 " in caplog.text
    assert 'route="/v1/chat/completions",status="499"} 1.0' in TestClient(app).get("/metrics").text


async def test_a_body_that_does_not_arrive_in_time_gets_408():
    auction = auction_of(GatedChatModel(gate=Gate())).model_copy(update={"reward_timeout": 0.01})
    connection = Uploading(create_app(auction, limits=Limits(timeout=0.05)), BODY)
    answer = await connection.answer()
    assert (connection.status, answer["error"]["code"]) == (408, "timeout")


async def test_a_request_that_takes_too_long_gets_503_and_is_not_charged(ledger):
    gate = Gate()
    auction = auction_of(GatedChatModel(gate=gate), ledger).model_copy(update={"reward_timeout": 0.01})
    connection = Connection(create_app(auction, limits=Limits(timeout=0.05)), BODY)
    answer = await connection.answer()
    assert (connection.status, answer["error"]["code"]) == (503, "timeout")
    assert states(ledger) == (0, 0)


async def test_an_agent_that_never_answers_abstains_before_the_requests_time_is_over():
    async def never(*_):
        await asyncio.Event().wait()

    model = GatedChatModel(gate=Gate(is_open=True))
    auction = AuctionRunnable(model=model, agents=[Agent("Slow", never)], n_candidates=2, reward_timeout=3.999)
    connection = Connection(create_app(auction, limits=Limits(timeout=4)), BODY)
    assert (await connection.answer())["choices"][0]["message"]["content"]
    assert connection.status == 200


async def test_a_stop_of_the_server_cancels_what_is_not_delivered(ledger):
    gate = Gate()
    connection = Connection(create_app(auction_of(GatedChatModel(gate=gate), ledger)), BODY)
    await gate.reached.wait()
    connection.task.cancel()
    await asyncio.gather(connection.task, return_exceptions=True)
    assert states(ledger) == (0, 0)


async def test_a_stop_waits_for_the_ledger_to_release_what_was_cancelled(ledger):
    gate, may_void = Gate(), threading.Event()
    void = ledger.void
    ledger.void = lambda *arguments, **keywords: may_void.wait(10) and void(*arguments, **keywords)
    app = create_app(auction_of(GatedChatModel(gate=gate), ledger))
    async with app.router.lifespan_context(app):
        connection = Connection(app, BODY)
        await gate.reached.wait()
        connection.task.cancel()  # as a server does whose time to drain is over
        asyncio.get_running_loop().call_later(0.05, may_void.set)
    assert states(ledger) == (0, 0)


async def test_a_repeated_idempotency_key_is_charged_once_and_answered_with_the_delivered_reply(ledger):
    gate = Gate(is_open=True)
    app = create_app(auction_of(GatedChatModel(gate=gate), ledger))
    headers = {"idempotency-key": "message 1"}
    first = await Connection(app, BODY, headers=headers).answer()
    after = states(ledger)
    again = await Connection(app, BODY, headers=headers).answer()
    assert again["choices"] == first["choices"]
    assert again["auction"] == first["auction"]
    assert states(ledger) == after
    assert len({entry.auction_id for entry in ledger.entries() if entry.kind == "charge"}) == 1


async def test_one_key_of_two_models_is_two_auctions(ledger):
    gate, auctions = Gate(is_open=True), set()
    app = create_app({name: auction_of(GatedChatModel(gate=gate), ledger) for name in ("small", "large")})
    for model in ("small", "large", "small"):
        answer = await Connection(app, {**BODY, "model": model}, headers={"idempotency-key": "1"}).answer()
        auctions.add((answer["id"], answer["auction"]["id"]))
    assert len(auctions) == 2


async def test_a_key_is_repeated_by_a_stream_and_not_by_a_request_of_another_form(ledger):
    app, headers = create_app(auction_of(GatedChatModel(gate=Gate(is_open=True)), ledger)), {"idempotency-key": "1"}
    first = (await Connection(app, BODY, headers=headers).answer())["auction"]["id"]
    streamed = Connection(app, {**BODY, "stream": True, "stream_options": {"include_usage": True}}, headers=headers)
    await streamed.task
    assert first.encode() in streamed.body
    for other in ({"temperature": 0.5}, {"n": 2}, {"max_tokens": 9}):
        await (connection := Connection(app, {**BODY, **other}, headers=headers)).task
        assert connection.status == 200
        assert first.encode() not in connection.body


async def test_one_key_of_two_callers_is_two_auctions(ledger):
    gate = Gate(is_open=True)
    keys = [Key.new("client", name=name) for name in ("web", "phone")]
    app = create_app(auction_of(GatedChatModel(gate=gate), ledger), keys=[key for _, key in keys])
    ids = set()
    for text, _ in keys:
        headers = {"idempotency-key": "1", "authorization": f"Bearer {text}"}
        ids.add((await Connection(app, BODY, headers=headers).answer())["auction"]["id"])
    assert len(ids) == 2


async def test_if_one_of_several_replies_fails_none_is_charged(ledger):
    calls = []

    class FailsLater(GatedChatModel):
        async def _agenerate(self, *arguments, **keywords):
            calls.append(1)
            if len(calls) > 4:
                raise ConnectionError
            return await super()._agenerate(*arguments, **keywords)

    gate = Gate(is_open=True)
    app = create_app(auction_of(FailsLater(gate=gate), ledger), limits=Limits(auctions=1, queue=4))
    connection = Connection(app, {**BODY, "n": 2})
    answer = await connection.answer()
    assert (connection.status, answer["error"]["code"]) == (503, "model_unavailable")
    assert states(ledger) == (0, 0)
    assert "llm_auction_auctions_total{" not in TestClient(app).get("/metrics").text  # it counts those delivered


async def test_a_waiting_stream_gets_comments_and_then_its_reply():
    gate = Gate()
    app = create_app(auction_of(GatedChatModel(gate=gate)), limits=Limits(keep_alive=0.01))
    connection = Connection(app, {**BODY, "stream": True})
    while connection.body.count(b": the auction runs\n\n") < 2:
        connection.sent.clear()
        await connection.sent.wait()
    gate.opened.set()
    await connection.task
    assert connection.status == 200
    headers = dict(connection.messages[0]["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert (headers[b"cache-control"], headers[b"x-accel-buffering"]) == (b"no-cache", b"no")
    assert b'"content":"Eggs."' in connection.body or b'"content":"Oats."' in connection.body
    assert connection.body.endswith(b"data: [DONE]\n\n")


async def test_a_failure_after_a_streams_first_comment_is_its_last_event():
    gate = Gate()
    auction = auction_of(GatedChatModel(gate=gate)).model_copy(update={"reward_timeout": 0.01})
    app = create_app(auction, limits=Limits(keep_alive=0.01, timeout=0.2))
    connection = Connection(app, {**BODY, "stream": True})
    await connection.task
    assert connection.status == 200
    assert b'"code":"timeout"' in connection.body.rpartition(b": the auction runs\n\n")[2]


async def test_a_failure_before_a_streams_first_comment_has_a_status():
    app = create_app(auction_of(GatedChatModel(gate=Gate(is_open=True), replies=("Eggs.",))))
    connection = Connection(app, {**BODY, "model": "other", "stream": True})
    answer = await connection.answer()
    assert (connection.status, answer["error"]["code"]) == (404, "model_not_found")


async def test_a_clients_seed_repeats_its_reply_and_predicts_nothing_where_money_is_charged(ledger):
    for of in (None, ledger):
        auction = auction_of(GatedChatModel(gate=Gate(is_open=True)), of)
        app = create_app(auction, secret=SECRET)
        texts = [(await Connection(app, {**BODY, "seed": 7}).answer())["choices"] for _ in range(3)]
        assert texts[0] == texts[1] == texts[2]
    key = Key.new("operator", name="ops")
    app = create_app(auction, keys=[key[1]], secret=SECRET)
    answer = await Connection(app, {**BODY, "seed": 7}, headers={"authorization": f"Bearer {key[0]}"}).answer()
    assert answer["auction"]["seed"] == 7


async def test_replies_of_one_request_have_seeds_of_their_own():
    text, key = Key.new("operator", name="ops")
    app = create_app(auction_of(GatedChatModel(gate=Gate(is_open=True))), keys=[key])
    answer = await Connection(app, {**BODY, "seed": 7, "n": 3}, headers={"authorization": f"Bearer {text}"}).answer()
    assert [choice["auction"]["seed"] for choice in answer["choices"]] == [7, 8, 9]


async def test_one_seed_of_a_client_is_another_seed_for_each_caller_and_question(ledger):
    keys = [Key.new("client", name=name) for name in ("web", "phone")]
    auction = auction_of(GatedChatModel(gate=Gate(is_open=True)), ledger)
    app, seeds = create_app(auction, keys=[key for _, key in keys], secret=SECRET), []
    for text, _ in keys:
        for question in ("What is for breakfast?", "And for lunch?", "And for lunch?"):
            body = {**BODY, "messages": [{"role": "user", "content": question}], "seed": 7}
            answer = await Connection(app, body, headers={"authorization": f"Bearer {text}"}).answer()
            seeds.append(ledger.receipt_of(answer["auction"]["id"])["seed"])
    assert seeds[1] == seeds[2]
    assert seeds[4] == seeds[5]
    assert len({7, *seeds}) == 5


async def test_only_an_operator_says_who_bids():
    (client, a), (operator, b) = Key.new("client", name="web"), Key.new("operator", name="ops")
    app = create_app(auction_of(GatedChatModel(gate=Gate(is_open=True), replies=("Eggs.", "Jam."))), keys=[a, b])
    agents = [{"name": "JamCo", "reward": {"mention": {"phrases": ["jam"], "value": 50.0}}}]
    body = {**BODY, "auction": {"agents": agents}}
    connection = Connection(app, body, headers={"authorization": f"Bearer {client}"})
    assert (await connection.answer())["error"]["param"] == "auction"
    assert connection.status == 403
    answer = await Connection(app, body, headers={"authorization": f"Bearer {operator}"}).answer()
    assert [payment["agent"] for payment in answer["auction"]["payments"]] == ["JamCo"]


async def test_a_client_sees_of_an_auction_what_users_may_see():
    app = create_app(auction_of(GatedChatModel(gate=Gate(is_open=True))))
    answer = await Connection(app, BODY).answer()
    assert answer["auction"].keys() == {"id", "sponsored", "sponsors", "disclosure"}


SCHEMA = {
    "type": "object",
    "properties": {"egg": {"type": "boolean"}},
    "required": ["egg"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "meal", "strict": True, "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "cook", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": FORM},
        {"response_format": {"type": "json_object"}},
        {"tools": [TOOL], "tool_choice": "auto"},
        {"tools": [TOOL], "response_format": FORM},
        {"temperature": 0.25, "max_tokens": 9, "stop": ["."], "response_format": FORM},
        {"temperature": 0.25, "max_tokens": 9, "stop": ["."], "tools": [TOOL]},
        {"temperature": 0.25, "max_tokens": 9, "stop": ["."]},
    ],
)
async def test_a_model_gets_the_tools_the_format_and_the_settings_of_the_request(fields):
    """The model is ChatOpenAI, whose requests a transport in this process answers."""
    bodies = []

    def answer(request):
        bodies.append(json.loads(request.content))
        message = {"role": "assistant", "content": '{"egg": true}'}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}] * bodies[-1].get("n", 1)
        completion = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
        return httpx.Response(200, json=completion)

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    model = ChatOpenAI(model="m", api_key="k", http_async_client=client)
    app = create_app(AuctionRunnable(model=model, n_candidates=2))
    body = await Connection(app, {**BODY, **fields}).answer()
    assert body["choices"][0]["message"]["content"] == '{"egg": true}'
    for name in ("temperature", "stop", "tool_choice"):
        assert bodies[0].get(name) == fields.get(name)
    assert bodies[0].get("max_completion_tokens") == fields.get("max_tokens")
    assert [tool["function"]["name"] for tool in bodies[0].get("tools", [])] == ["cook"] * ("tools" in fields)
    assert all(
        tool["function"].get("strict") == ("response_format" in fields or None) for tool in bodies[0].get("tools", [])
    )
    form = bodies[0].get("response_format", {})
    assert form.get("type") == fields.get("response_format", {}).get("type")
    if form.get("type") == "json_schema":
        assert form["json_schema"]["name"] == "meal"
        assert form["json_schema"]["strict"] is True
        assert form["json_schema"]["schema"]["required"] == ["egg"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (
            "/v1/chat/completions",
            {**BODY, "tools": [TOOL], "response_format": {"type": "json_object"}},
            "response_format",
        ),
        (
            "/v1/responses",
            {
                "model": "llm-auction",
                "input": "Hi",
                "tools": [{"type": "function", **TOOL["function"]}],
                "text": {"format": {"type": "json_object"}},
            },
            "text.format",
        ),
    ],
)
async def test_a_format_without_a_schema_is_refused_beside_tools(path, body, param):
    connection = Connection(create_app(auction_of(GatedChatModel(gate=Gate(is_open=True)))), body, path=path)
    assert (await connection.answer())["error"]["param"] == param
    assert connection.status == 400
