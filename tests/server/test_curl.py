"""What is on the wire, as curl shows it."""

import json
import re
import subprocess

import pytest

from tests.server.kitchen import LONG, QUESTION

WAIT = [{"role": "user", "content": "Please wait."}]
CHAT = "/v1/chat/completions"


def arguments(site, path=CHAT, *options, body=None, key="web"):
    command = ["curl", "--silent", "--no-buffer", "--max-time", str(LONG), *options]
    command += ["-H", f"Authorization: Bearer {site.keys.get(key, key)}"]
    if body is not None:
        command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return [*command, f"{site.url}{path}"]


def curl(site, path=CHAT, *options, **settings):
    """Return the status, the headers by their names, and the body."""
    done = subprocess.run(  # noqa: S603  our own code
        arguments(site, path, "--include", *options, **settings), capture_output=True, check=True
    )
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    first, *lines = head.decode().splitlines()
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def test_a_reply_is_json_with_its_length(site):
    status, headers, body = curl(site, body={"model": "ads", "messages": QUESTION})
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(body)
    assert headers["x-request-id"].startswith("req_")
    assert json.loads(body)["choices"][0]["message"]["content"].startswith("Today we have ")


def test_a_stream_is_events_up_to_done(site):
    status, headers, body = curl(site, body={"model": "ads", "messages": QUESTION, "stream": True})
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")
    events = body.decode().split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith(("data: ", ": ")) for event in events)
    *chunks, done = [event.removeprefix("data: ") for event in events if event.startswith("data: ")]
    assert done == "[DONE]"
    assert {json.loads(chunk)["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_the_role_and_comments_come_while_the_auction_runs(site, gate):
    command = arguments(site, body={"model": "ads", "messages": WAIT, "stream": True})
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603  our own code
        lines = [process.stdout.readline() for _ in range(8)]  # the role and its blank line, then comments
        assert b'"role":"assistant"' in lines[0]
        assert lines[2:8:2] == [b": the auction runs\n"] * 3
        gate.open()
        rest = process.stdout.read()
    assert rest.endswith(b"data: [DONE]\n\n")


def test_a_plain_reply_that_waits_sends_nothing_before_it_is_whole(site, gate):
    command = arguments(site, body={"model": "ads", "messages": WAIT})
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603  our own code
        assert gate.reached.wait(LONG)
        gate.open()
        body = process.stdout.read()
    assert json.loads(body)["object"] == "chat.completion"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("leave", ["a time limit", "a signal"])
def test_a_client_that_goes_away_cancels_its_auction_and_owes_nothing(site, gate, stream, leave):
    before = site.money()
    body = {"model": "ads/charged", "messages": WAIT, "stream": stream}
    options = ("--max-time", "0.5") if leave == "a time limit" else ()
    with subprocess.Popen(arguments(site, CHAT, *options, body=body), stdout=subprocess.DEVNULL) as process:  # noqa: S603
        assert gate.reached.wait(LONG)
        if leave == "a signal":
            process.kill()
    assert process.returncode == (28 if leave == "a time limit" else -9)
    assert gate.left.wait(LONG), "the model is no longer waited for"
    site.settled(before)


def test_health_readiness_and_metrics_are_for_machines(site):
    assert json.loads(curl(site, "/healthz", key="")[2]) == {"status": "ok"}
    assert json.loads(curl(site, "/readyz", key="")[2]) == {"status": "ready"}
    assert curl(site, "/metrics")[0] == 403
    status, headers, body = curl(site, "/metrics", key="ops")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    assert re.search(rb'^llm_auction_requests_total\{route="/healthz",status="200"\} \d', body, re.MULTILINE)


@pytest.mark.parametrize(
    ("path", "options", "body", "key", "status", "code"),
    [
        (CHAT, (), {"model": "ads"}, "web", 400, "missing_required_parameter"),
        (CHAT, (), {"model": "ads", "messages": QUESTION}, "guess", 401, "invalid_api_key"),
        (CHAT, (), {"model": "ads", "messages": QUESTION}, "eggs", 403, "insufficient_role"),
        (CHAT, (), {"model": "none", "messages": QUESTION}, "web", 404, "model_not_found"),
        ("/v1/nowhere", (), None, "web", 404, None),
        (CHAT, (), None, "web", 405, None),
        (
            CHAT,
            ("-H", "Expect:"),
            {"model": "ads", "messages": "x" * 90_000 + "y" * 20_000},
            "web",
            413,
            "body_too_large",
        ),
        (CHAT, ("-H", "Content-Type: text/plain"), {"model": "ads"}, "web", 400, "invalid_content_type"),
        ("/auctions/none/receipt", (), None, "ops", 404, "auction_not_found"),
    ],
)
def test_every_error_is_an_envelope_with_its_status(site, path, options, body, key, status, code):
    got, headers, text = curl(site, path, *options, body=body, key=key)
    error = json.loads(text)["error"]
    assert (got, error["code"]) == (status, code)
    assert error.keys() == {"message", "type", "param", "code"}
    assert headers["x-request-id"].startswith("req_")
    assert site.keys.get(key, key) not in text.decode()


def test_an_operator_gets_the_receipt_of_a_clients_auction_and_an_owner_its_view(site):
    auction = json.loads(curl(site, body={"model": "ads/charged", "messages": QUESTION})[2])["auction"]["id"]
    path = f"/auctions/{auction}"
    receipt = json.loads(curl(site, f"{path}/receipt", key="ops")[2])
    view = json.loads(curl(site, f"{path}/view", key="eggs")[2])
    assert receipt["auction_id"] == view["auction_id"] == auction
    assert curl(site, f"{path}/receipt")[0] == curl(site, f"{path}/receipt", key="eggs")[0] == 403
    assert "OatCo" not in json.dumps(view)
