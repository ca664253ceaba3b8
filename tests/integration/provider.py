"""A provider on the loopback that answers chat completions as OpenAI does, or as it is told to."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

READ, WRITTEN = 5, 4  # tokens of every prompt, and of every reply
MODEL = "some-model-2025-01-01"


class Provider(ThreadingHTTPServer):
    """Answers every POST with `answer(body)`, or with the next of `script` while there is one.

    Attributes:
        asked: the bodies, in the order in which they came.
        script: functions from a body to (status, answer).
        answer: what answers when the script is done.
        delay: seconds before every answer.
        busiest: the most requests that were under way at the same time.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.script, self.answer = [], [], complete
        self.delay, self.busy, self.busiest, self.lock = 0.0, 0, 0, threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def counts(self):
        """Return how many replies each request asked for; None where it said nothing of it."""
        return [body.get("n") for body in self.asked]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for the one before to be acknowledged

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.asked.append(body)
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
            number = len(server.asked)
            answer = server.script.pop(0) if server.script else server.answer
        time.sleep(server.delay)
        status, said = answer({**body, "number": number})
        with server.lock:
            server.busy -= 1
        if body.get("stream") and status == 200:
            self.send(status, "text/event-stream", "".join(f"data: {line}\n\n" for line in chunks(said)))
        else:
            self.send(status, "application/json", json.dumps(said))

    def send(self, status, kind, text):
        sent = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_):
        """Say nothing."""


def complete(body, *, n=None, **changes):
    """Answer with `n` choices, or as many as were asked for; `changes` go into every choice."""
    choices = [
        {"index": k, "message": message(body, k), "finish_reason": "stop", "logprobs": log_probs(body), **changes}
        for k in range(body.get("n") or 1 if n is None else n)
    ]
    written = WRITTEN * len(choices)
    usage = {"prompt_tokens": READ, "completion_tokens": written, "total_tokens": READ + written}
    return 200, {
        "id": f"chatcmpl-{body['number']}", "object": "chat.completion", "created": 1, "model": MODEL,
        "choices": choices, "usage": usage, "system_fingerprint": "fp",
    }  # fmt: skip


def message(body, k):
    """Return a reply that no other request or choice has; with a seed, one that equal seeds have."""
    key = f"{body['seed']}" if "seed" in body else f"request {body['number']}"
    said = json.dumps({"key": key, "choice": k}) if "response_format" in body else f"Practise. {key}, choice {k}"
    return {"role": "assistant", "content": said, "refusal": None}


def log_probs(body):
    if not body.get("logprobs"):
        return None
    tokens = [("Pract", -0.5), ("ise", -0.25), (".", -0.125), ("…", -1.0)]
    entries = [{"token": text, "logprob": p, "bytes": [*text.encode()], "top_logprobs": []} for text, p in tokens]
    return {"content": entries, "refusal": None}


def chunks(answer):
    """Return a streamed answer's lines."""
    common = {name: answer[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    for choice in answer["choices"]:
        delta = {"index": 0, "delta": choice["message"], "finish_reason": choice["finish_reason"]}
        yield json.dumps({**common, "choices": [delta]})
    yield "[DONE]"


def few(most):
    """Return an answer of at most so many choices."""
    return lambda body: complete(body, n=min(body.get("n") or 1, most))


def refuse(status, said="no", code=None):
    """Return an answer that is an error."""
    return lambda body: (status, {"error": {"message": said, "type": "error", "code": code}})


def refuse_n(status):
    """Return an answer that refuses every request but those for one reply."""
    return lambda body: refuse(status, "n must be 1")(body) if body.get("n", 1) > 1 else complete(body)


@contextmanager
def provider():
    """Serve until the block ends."""
    with Provider() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
