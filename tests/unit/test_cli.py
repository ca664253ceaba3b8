"""The console script, over the embedded model."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llm_auction_chain.cli import main

QUICK = ["--candidates", "3", "--max-tokens", "6", "--seed", "5"]


def test_the_demo_shows_everything_needed_to_believe_it(capsys):
    assert main(["run", "How do I learn the guitar?", *QUICK]) == 0
    shown = capsys.readouterr()
    for word in (
        "log-weight",
        "probability",
        "StringSchool",
        "tune-group",
        "charged",
        "revenue",
        "ESS",
        "seed 5",
        "auction",
    ):
        assert word in shown.out, word
    assert "drawing candidates" in shown.err


def test_the_same_seed_is_the_same_auction(capsys):
    outcomes = []
    for _ in range(2):
        assert main(["run", "Hi", *QUICK, "--json"]) == 0
        outcome = json.loads(capsys.readouterr().out)
        outcome.pop("auction_id")
        outcomes.append(outcome)
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0]["candidates"]) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tau", "0"], "tau"),
        (["--candidates", "0"], "n_candidates"),
        (["--payment-rule", "free"], "payment_rule"),
        (["--agents", "missing.yaml"], "missing.yaml"),
        (["--max-tokens", "0"], "max-tokens"),
        (["--model", "no/such/folder/here"], "no/such/folder/here"),
        (["--model", "nobody:model"], "nobody"),
        (["--seed", "-3"], "seed"),
    ],
)
def test_bad_input_gets_one_clear_line_and_exit_code_2(arguments, says, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["run", "Hi", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_an_empty_question_is_bad_input(capsys):
    assert main(["run", ""]) == 2
    assert "empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["agents: 3", "agents: [{name: A}]", "agents: [{name: A, reward: len}]", "agents: [{name: A, reward: 'no:such'}]",
     "agents: [{name: A, reward: {mention: {words: [a]}}}]", "{", "agents: [{name: A, reward: 'math:sin', bid: 3}]"],
)  # fmt: skip
def test_an_agents_file_that_says_something_else_is_refused(text, tmp_path, capsys):
    path = tmp_path / "agents.yaml"
    path.write_text(text)
    assert main(["run", "Hi", "--agents", str(path)]) == 2
    assert "agents.yaml" in capsys.readouterr().err


def test_a_reward_may_be_a_dotted_path(tmp_path, capsys):
    path = tmp_path / "agents.yaml"
    path.write_text("- {name: A, reward: 'math:dist'}")
    assert main(["run", "Hi", *QUICK, "--agents", str(path)]) == 0
    assert "error" in capsys.readouterr().out


class Provider(BaseHTTPRequestHandler):
    """What an OpenAI-compatible provider answers to a chat completion."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        message = {"role": "assistant", "content": f"Practice, lesson {len(self.server.asked)}."}
        body = json.dumps({
            "id": "c", "object": "chat.completion", "created": 1, "model": asked["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9},
        }).encode()  # fmt: skip
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


def test_a_provider_and_a_model_name_reach_any_chat_model(capsys, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        arguments = ["--model", "openai:some-model", "--candidates", "4", "--max-tokens", "9", "--seed", "5"]
        assert main(["run", "Hi", *arguments, "--json"]) == 0
        server.shutdown()
    outcome = json.loads(capsys.readouterr().out)
    assert len(outcome["candidates"]) == len(server.asked) == 4
    assert outcome["usage"]["total_tokens"] == 36
    assert {asked["model"] for asked in server.asked} == {"some-model"}
