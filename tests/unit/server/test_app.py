"""Routes, keys, errors, logs: what every request of the application passes through."""

import logging
import re
import threading

import pytest
from fastapi.testclient import TestClient

from llm_auction_chain import Agent, AuctionRunnable, Billing, Ledger
from llm_auction_chain.errors import AuctionWarning, ConfigurationError, LedgerUnavailableError
from llm_auction_chain.receipts import Receipt, verify
from llm_auction_chain.server import Key, Limits, create_app
from llm_auction_chain.testing import MarkovChatModel

QUESTION = "an unusual question"
BODY = {"model": "llm-auction", "messages": [{"role": "user", "content": QUESTION}]}
CHAT = "/v1/chat/completions"


def auction_of(ledger=None, **settings):
    agents = [
        Agent("B", lambda _, reply: 4.0 * reply.text.count("b"), owner="b-group", report_cap=8.0),
        Agent("A", lambda _, reply: 3.0 * reply.text.count("a"), owner="a-group", report_cap=8.0),
    ]
    return AuctionRunnable(model=MarkovChatModel(), agents=agents, billing=Billing(ledger=ledger), **settings)


@pytest.fixture
def ledger():
    with Ledger("sqlite://", keep_replies=True) as ledger:
        for owner in ("a-group", "b-group"):
            ledger.deposit(owner, 1000, key=owner)
        yield ledger


@pytest.fixture
def keys():
    pairs = [
        Key.new("client", name="web"),
        Key.new("operator", name="ops"),
        Key.new("owner", name="a", owner="a-group"),
        Key.new("owner", name="c", owner="c-group"),
    ]
    return {key.name: {"Authorization": f"Bearer {text}"} for text, key in pairs}, [key for _, key in pairs]


def test_models_are_listed_and_retrieved_by_their_ids():
    client = TestClient(create_app({"ads/small": auction_of(), "ads-large": auction_of()}))
    listed = client.get("/v1/models").json()
    assert [one["id"] for one in listed["data"]] == ["ads/small", "ads-large"]
    assert listed["object"] == "list"
    assert client.get("/v1/models/ads/small").json() == listed["data"][0]
    missing = client.get("/v1/models/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("path", "method", "roles"),
    [
        (CHAT, "POST", {"web", "ops"}),
        ("/v1/responses", "POST", {"web", "ops"}),
        ("/v1/models", "GET", {"web", "ops"}),
        ("/v1/models/llm-auction", "GET", {"web", "ops"}),
        ("/auctions/x/receipt", "GET", {"ops"}),
        ("/auctions/x/view", "GET", {"ops", "a", "c"}),
        ("/metrics", "GET", {"ops"}),
    ],
)
def test_each_route_is_open_to_its_roles_only(keys, path, method, roles):
    headers, stored = keys
    client = TestClient(create_app(auction_of(), keys=stored))
    assert client.request(method, path).status_code == 401
    assert client.request(method, path, headers={"Authorization": "Bearer guess"}).status_code == 401
    for name, header in headers.items():
        status = client.request(method, path, headers=header).status_code
        assert (status in (401, 403)) == (name not in roles), name


def test_health_needs_no_key(keys):
    client = TestClient(create_app(auction_of(), keys=keys[1]))
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    assert [client.head(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]


def test_a_server_whose_ledger_is_away_is_not_ready(ledger):
    def fail():
        raise LedgerUnavailableError(QUESTION)

    client = TestClient(create_app(auction_of(ledger)))
    ledger.head = fail
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert QUESTION not in answer.text


@pytest.mark.parametrize(
    ("peer", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8000", 200),
        ("::1", "[::1]:8000", 200),
        ("127.0.0.1", "localhost", 200),
        ("10.0.0.7", "localhost", 403),
        ("127.0.0.1", "rebound.example", 403),
    ],
)
def test_a_server_without_keys_serves_its_own_machine_only(peer, host, status):
    client = TestClient(create_app(auction_of()), client=(peer, 5000))
    assert client.get("/v1/models", headers={"Host": host}).status_code == status
    everybody = TestClient(create_app(auction_of(), open_to_all=True), client=(peer, 5000))
    assert everybody.get("/v1/models", headers={"Host": host}).status_code == 200


def test_a_server_with_keys_serves_other_machines(keys):
    client = TestClient(create_app(auction_of(), keys=keys[1]), client=("10.0.0.7", 5000))
    assert client.get("/v1/models", headers=keys[0]["web"] | {"Host": "auctions.example"}).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{}", "text/plain", 400, "invalid_content_type"),
        (b"{}", "application/x-www-form-urlencoded", 400, "invalid_content_type"),
        (b"{", "application/json", 400, "invalid_json"),
        (b"[]", "application/json", 400, "invalid_json"),
        (b'{"a": NaN}', "application/json", 400, "invalid_json"),
        (b"\xff", "application/json", 400, "invalid_json"),
        (b"[" * 100_000, "application/json", 413, "body_too_large"),
        (b'{"a":' + b"9" * 20_000 + b"}", "application/json; charset=utf-8", 400, None),
    ],
)
def test_a_body_that_is_no_request_gets_an_error(content, kind, status, code):
    client = TestClient(create_app(auction_of(), limits=Limits(body_bytes=50_000)))
    answer = client.post(CHAT, content=content, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    if code is not None:
        assert answer.json()["error"]["code"] == code


def test_the_limits_of_a_request_are_named():
    client = TestClient(create_app(auction_of(), limits=Limits(messages=2, n=2, max_tokens=10)))
    for field, value in (("messages", BODY["messages"] * 3), ("n", 3), ("max_tokens", 11)):
        answer = client.post(CHAT, json={**BODY, field: value})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == field
    for field, value in (("input", BODY["messages"] * 3), ("max_output_tokens", 16)):
        answer = client.post("/v1/responses", json={"model": "llm-auction", "input": QUESTION, field: value})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == field


def test_more_replies_than_ever_run_and_wait_are_refused_rather_than_sent_away_to_retry():
    client = TestClient(create_app(auction_of(), limits=Limits(auctions=1, queue=1)))
    answer = client.post(CHAT, json={**BODY, "n": 3})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
    assert client.post(CHAT, json={**BODY, "n": 2}).status_code == 200


def test_an_idempotency_key_has_1_to_255_characters():
    client = TestClient(create_app(auction_of()))
    for key, status in ((" ", 400), ("k" * 256, 400), ("k" * 255, 200)):
        answer = client.post(CHAT, json=BODY, headers={"Idempotency-Key": key})
        assert answer.status_code == status
        assert status == 200 or answer.json()["error"]["param"] == "Idempotency-Key"


def test_each_answer_has_a_request_id_of_its_own():
    client = TestClient(create_app(auction_of()))
    ids = [client.get(path).headers["x-request-id"] for path in ("/healthz", "/nowhere", "/v1/models", "/healthz")]
    assert len(set(ids)) == 4
    assert all(re.fullmatch("req_[0-9a-f]{32}", one) for one in ids)


def test_paths_and_methods_that_do_not_exist_get_the_same_kind_of_error():
    client = TestClient(create_app(auction_of()))
    for answer, status in (
        (client.get("/nowhere"), 404),
        (client.get(CHAT), 405),
        (client.get("/docs"), 404),
        (client.get("/openapi.json"), 404),
    ):
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert client.get(CHAT).headers["allow"] == "POST"


def test_an_error_that_nobody_foresaw_is_500_and_shows_nothing(caplog):
    class Broken(AuctionRunnable):
        async def ainvoke(self, *_, **__):
            raise ZeroDivisionError(QUESTION)

    client = TestClient(create_app(Broken(model=MarkovChatModel())))
    with caplog.at_level(logging.DEBUG, logger="llm_auction_chain"):
        answer = client.post(CHAT, json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert QUESTION not in answer.text + caplog.text
    assert answer.headers["x-request-id"] in caplog.text


def test_the_log_has_one_line_of_a_request_without_its_texts_and_keys(keys, caplog):
    headers, stored = keys
    client = TestClient(create_app(auction_of(), keys=stored))
    with caplog.at_level(logging.INFO, logger="llm_auction_chain.server"):
        answer = client.post(f"{CHAT}?note=private", json=BODY, headers=headers["web"])
        client.get("/v1/models", headers={"Authorization": "Bearer guess"})
        client.get("/readyz")
        client.get("/metrics", headers=headers["web"])
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert re.fullmatch(r"req_\w+ GET /metrics 403 \d+ ms web", lines[2])  # a probe is in the log if it fails
    assert re.fullmatch(rf"{answer.headers['x-request-id']} POST {CHAT} 200 \d+ ms web", lines[0])
    assert lines[1].endswith("ms -")
    for private in (QUESTION, "private", "guess", headers["web"]["Authorization"]):
        assert private not in caplog.text


def test_other_origins_get_no_permission_unless_it_is_set():
    ask = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",  # of OpenAI's client
    }
    closed = TestClient(create_app(auction_of())).options(CHAT, headers=ask)
    assert "access-control-allow-origin" not in closed.headers
    opened = TestClient(create_app(auction_of(), cors_origins=["https://shop.example"]))
    assert opened.options(CHAT, headers=ask).headers["access-control-allow-origin"] == "https://shop.example"
    answer = opened.get("/healthz", headers={"Origin": "https://shop.example"})
    assert answer.headers["access-control-expose-headers"] == "x-request-id, retry-after"
    other = opened.options(CHAT, headers=ask | {"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("with_ledger", [True, False])
def test_an_operator_reads_a_receipt_and_an_owner_its_own_view(keys, ledger, with_ledger):
    headers, stored = keys
    client = TestClient(create_app(auction_of(ledger if with_ledger else None), keys=stored))
    auction = client.post(CHAT, json=BODY, headers=headers["web"]).json()["auction"]["id"]
    if with_ledger:  # of another worker, which has no auction in memory
        client = TestClient(create_app(auction_of(ledger), keys=stored))
    receipt = client.get(f"/auctions/{auction}/receipt", headers=headers["ops"]).json()
    assert verify(receipt).ok
    own = client.get(f"/auctions/{auction}/view", headers=headers["a"]).json()
    assert own == Receipt.from_dict(receipt).view("A").as_dict()
    assert "b-group" not in str(own)
    assert client.get(f"/auctions/{auction}/view?owner=b-group", headers=headers["a"]).status_code == 403
    assert client.get(f"/auctions/{auction}/view?owner=b-group", headers=headers["ops"]).status_code == 200
    assert client.get(f"/auctions/{auction}/receipt", headers=headers["a"]).status_code == 403
    for path, name in ((f"/auctions/{auction}/view", "c"), ("/auctions/other/view", "a"), ("/auctions/%00/view", "a")):
        answer = client.get(path, headers=headers[name])
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "auction_not_found")


@pytest.mark.parametrize(
    "host", ["[", "[::1", "a]b", "", "@", "evil.example", "127.0.0.1@evil.example", "localhost.evil.example"]
)
def test_a_host_that_is_not_this_machines_is_refused_without_keys(host, caplog):
    answer = TestClient(create_app(auction_of())).get("/v1/models", headers={"Host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "keys_needed")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_ledger_that_hangs_is_asked_once_by_all_that_want_to_know(ledger, monkeypatch):
    monkeypatch.setattr("llm_auction_chain.server.app._LEDGER_PATIENCE", 0.01)
    calls, may_answer = [], threading.Event()
    ledger.head = lambda: calls.append(1) or may_answer.wait(10)
    with TestClient(create_app(auction_of(ledger))) as client:
        assert [client.get("/readyz").status_code for _ in range(3)] == [503, 503, 503]
        assert len(calls) == 1
        may_answer.set()
        monkeypatch.setattr("llm_auction_chain.server.app._LEDGER_PATIENCE", 10)
        assert client.get("/readyz").status_code == 200


def test_an_owner_reads_its_view_however_its_accented_name_is_spelled():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    (client, a), (owner, b) = Key.new("client", name="web"), Key.new("owner", name="cafe", owner=decomposed)
    agent = Agent("A", lambda prompt, reply: 4.0 * reply.text.count("b"), owner=composed)
    server = TestClient(create_app(AuctionRunnable(model=MarkovChatModel(), agents=[agent]), keys=[a, b]))
    ask = server.post(CHAT, json=BODY, headers={"Authorization": f"Bearer {client}"})
    path, headers = f"/auctions/{ask.json()['auction']['id']}/view", {"Authorization": f"Bearer {owner}"}
    for name in ("", composed, decomposed):
        assert server.get(path, params={"owner": name}, headers=headers).status_code == 200
    answer = server.get(path, params={"owner": " a\0"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "owner")


def test_receipts_in_memory_are_bounded():
    text, key = Key.new("operator", name="ops")
    client = TestClient(create_app(auction_of(), keys=[key], limits=Limits(receipts=2)))
    headers = {"Authorization": f"Bearer {text}"}
    ids = [client.post(CHAT, json=BODY, headers=headers).json()["auction"]["id"] for _ in range(3)]
    assert [client.get(f"/auctions/{one}/receipt", headers=headers).status_code for one in ids] == [404, 200, 200]


def test_an_operator_sees_payments_and_a_client_does_not(keys):
    headers, stored = keys
    client = TestClient(create_app(auction_of(), keys=stored))
    assert "payments" in client.post(CHAT, json=BODY, headers=headers["ops"]).json()["auction"]
    assert "payments" not in client.post(CHAT, json=BODY, headers=headers["web"]).text


def test_metrics_count_requests_auctions_and_tokens():
    client = TestClient(create_app(auction_of(seed=7)))
    client.post(CHAT, json=BODY)
    client.post(CHAT, json={**BODY, "model": "other"})
    text = client.get("/metrics").text
    assert 'llm_auction_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'llm_auction_requests_total{route="/v1/chat/completions",status="404"} 1.0' in text
    assert 'llm_auction_request_seconds_count{route="/v1/chat/completions"} 2.0' in text
    assert 'llm_auction_auctions_total{model="llm-auction",outcome="sponsored"} 1.0' in text
    assert 'llm_auction_tokens_total{kind="output",model="llm-auction"}' in text
    assert "llm_auction_running 0.0" in text


def test_a_path_that_does_not_exist_makes_no_metric_of_its_own():
    client = TestClient(create_app(auction_of()))
    for number in range(3):
        client.get(f"/secret-{number}")
    text = client.get("/metrics").text
    assert "secret" not in text
    assert 'llm_auction_requests_total{route="other",status="404"} 3.0' in text


def test_a_model_is_loaded_before_the_server_takes_requests():
    loaded = threading.Event()

    class Loads(MarkovChatModel):
        def load(self):
            loaded.set()

    with TestClient(create_app(AuctionRunnable(model=Loads().bind(stop=["c"]), agents=[]))) as client:
        assert loaded.is_set()
        assert client.get("/readyz").status_code == 200


def test_expired_holds_are_released_while_the_server_runs(ledger, monkeypatch):
    monkeypatch.setattr("llm_auction_chain.server.app._EXPIRY", 0.001)
    released = threading.Event()
    ledger.expire_holds = lambda: released.set() or []
    with TestClient(create_app(auction_of(ledger))):
        assert released.wait(10)


@pytest.mark.parametrize(
    ("auctions", "settings", "text"),
    [
        ({}, {}, "auctions must be an AuctionRunnable, or a mapping from model ids to some, got {}."),
        (MarkovChatModel(), {}, "auctions must be an AuctionRunnable"),
        ({"x": MarkovChatModel()}, {}, "auctions['x'] must be an AuctionRunnable"),
        ({" ": auction_of()}, {}, "The id of a model must be a text"),
        (auction_of(reward_timeout=None), {}, "reward_timeout must be below the server's timeout, 120 seconds"),
        (auction_of(), {"limits": Limits(timeout=60)}, "reward_timeout must be below the server's timeout, 60 seconds"),
        (auction_of(), {"secret": ""}, "secret must be a text that is not blank"),
        (auction_of(), {"keys": []}, "The server has no keys"),
        (auction_of(), {"playground": True, "open_to_all": True}, "The playground shows private reports"),
    ],
)
def test_settings_that_cannot_be_are_refused(auctions, settings, text):
    with pytest.raises(ConfigurationError) as caught:
        create_app(auctions, **settings)
    assert text in str(caught.value)


def test_a_ledger_that_keeps_no_replies_is_warned_about():
    with Ledger("sqlite://") as ledger, pytest.warns(AuctionWarning, match="keep_replies=True"):
        create_app(auction_of(ledger))


def test_the_playground_is_there_if_it_is_set_and_asks_for_an_operators_key(keys):
    headers, stored = keys
    assert TestClient(create_app(auction_of())).get("/playground/").status_code == 404
    with TestClient(create_app(auction_of(), playground=True)) as client:
        assert client.get("/playground/config").status_code == 200
        assert client.get("/", follow_redirects=False).headers["location"] == "/playground"
    with TestClient(create_app(auction_of(), keys=stored, playground=True)) as client:
        assert client.get("/playground/config").status_code == 401
        for name, status in (("web", 400), ("a", 400), ("ops", 200)):
            key = headers[name]["Authorization"].removeprefix("Bearer ")
            form = {"username": "me", "password": key}
            assert client.post("/playground/login", data=form).status_code == status, name
        assert client.get("/playground/config").status_code == 200
