"""The console script, over the embedded model, and over smaller ones where the model does not matter."""

import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from langchain_core.language_models import FakeListChatModel
from rich.console import Console

from llm_auction_chain import Agent, AuctionRunnable, cli
from llm_auction_chain.cli import main
from llm_auction_chain.local import weights
from llm_auction_chain.local.chat_model import ChatTransformers
from llm_auction_chain.testing import MarkovChatModel

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
    candidates = outcomes[0]["candidates"]
    assert sum(candidate["draws"] for candidate in candidates) == 3
    components = {part["component"] for part in outcomes[0]["proposal"]["components"]}
    assert {candidate["component"] for candidate in candidates} <= components


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
        (["--agents", ""], "--agents is empty"),
        (["--model", ""], "--model is empty"),
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


@pytest.mark.parametrize("code", ["def f(:", "raise SystemExit(0)", "1 / 0"])
def test_a_reward_module_that_does_not_load_is_bad_input(code, tmp_path, capsys, monkeypatch):
    (tmp_path / "broken_rewards.py").write_text(code)
    (tmp_path / "agents.yaml").write_text("- {name: A, reward: 'broken_rewards:f'}")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["run", "Hi", "--agents", str(tmp_path / "agents.yaml")]) == 2
    error = capsys.readouterr().err
    assert "'broken_rewards:f' cannot be imported: " in error
    assert "Traceback" not in error


def test_a_cache_folder_that_cannot_be_written_is_bad_input(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLM_AUCTION_CHAIN_CACHE", str(tmp_path / "file"))
    assert main(["run", "Hi", *QUICK]) == 2
    assert f"cannot be written to {tmp_path / 'file'}" in capsys.readouterr().err


# The command over a model small enough for a test, in a process of its own.
SMALL = """
import sys
{first}
from llm_auction_chain import cli
def load(*_):
    from llm_auction_chain.testing import MarkovChatModel
    return MarkovChatModel()
cli._load_model = load
sys.exit(cli.main(["run", "Hi", "--seed", "5", *sys.argv[1:]]))
"""


def run_small(*arguments, first="", **streams):
    command = [sys.executable, "-c", SMALL.format(first=first), *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **streams)  # noqa: S603  our own code


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_output_that_cannot_be_written_is_said_and_is_exit_code_1(arguments):
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = run_small(*arguments, stdout=full)
    assert done.returncode == 1
    assert "llm-auction: No space left on device" in done.stderr
    assert "Exception" not in done.stderr
    assert "Traceback" not in done.stderr


# The second is looked for by NumPy's C code, which makes an ImportError of Ctrl-C.
@pytest.mark.parametrize("module", ["numpy", "datetime", "langchain_core"])
def test_ctrl_c_while_modules_load_is_one_line(module):
    first = f"""
import os, signal
class Press:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Press())
"""
    done = run_small(first=first, stdout=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (130, "llm-auction: interrupted\n")


def test_warnings_reach_the_shell_user_once_and_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(cli, "_load_model", lambda *_: FakeListChatModel(responses=["one", "two"]))
    assert main(["run", "Hi", *QUICK]) == 0
    error = capsys.readouterr().err
    assert error.count("llm-auction: warning: ") == error.count("contexts are not used") == 1
    assert "AuctionWarning" not in error


def test_other_warnings_are_left_as_they_are(monkeypatch):
    def warns(*_):
        cli.warnings.warn("not ours", DeprecationWarning, stacklevel=1)
        return MarkovChatModel()

    monkeypatch.setattr(cli, "_load_model", warns)
    with pytest.warns(DeprecationWarning, match="not ours"):
        assert main(["run", "Hi", *QUICK]) == 0


class Recorded:
    def __init__(self):
        self.descriptions = []

    def update(self, _task, *, description):
        self.descriptions.append(description)


@pytest.mark.parametrize("converted", [True, False])
def test_the_one_conversion_is_announced(converted, monkeypatch):
    monkeypatch.setattr(weights, "embedded_model_is_converted", lambda: converted)
    monkeypatch.setattr(ChatTransformers, "load", lambda self: None)
    bars = Recorded()
    cli._load_model(None, 4, bars, 0)
    assert bars.descriptions == ([] if converted else ["converting the embedded model (once)", "loading the model"])


def fails(prompt, reply):
    raise ZeroDivisionError("oh")


AGENTS = [
    Agent("StringSchool", lambda prompt, reply: reply.text.count("b"), context="abc guitars"),
    Agent("TuneTown", lambda prompt, reply: 2.0 * reply.text.count("c"), context="instruments", owner="tune-group"),
]


def shown(width, agents=AGENTS, scale=1.0, **settings):
    scaled = [
        Agent(agent.name, lambda p, r, reward=agent.reward: scale * reward(p, r), agent.owner, agent.context)
        for agent in agents
    ]
    model = MarkovChatModel(length=3, tilts={"guitars": (0.0, 2.0, 0.0)})
    result = AuctionRunnable(model=model, agents=scaled, n_candidates=16, seed=7, **settings).run("x")
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        cli._show(result, console)
    return result, captured.get()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("scale", [1.0, 1e7])
def test_nothing_vanishes_on_any_terminal(width, scale):
    result, out = shown(width, scale=scale)
    lines = out.splitlines()
    assert max(map(len, lines)) <= width
    for agent, payment in zip(AGENTS, result.settlement.payments, strict=True):
        assert agent.name in out
        assert f"{payment:.4f}" in out
    assert "(tune-group)" in out
    for j, candidate in enumerate(result.candidates):
        assert any(re.match(rf"{j} +{candidate.message.text} +[a-z]", line) for line in lines), (j, out)
    assert "reported" not in out
    for fact in ("seed 7", result.auction_id, f"revenue {result.settlement.revenue:.4f}"):
        assert fact in out


def test_draws_components_and_the_log_normaliser_are_shown():
    result, out = shown(80)
    assert len(result.components) > 1
    assert result.draws > len(result.candidates)
    letters = {}
    for letter, (name, count) in zip("abcdef", result.components, strict=False):
        assert f"{letter} {name} {count}" in out
        letters[name] = letter
    for j, candidate in enumerate(result.candidates):
        times = f" x{candidate.draws}" if candidate.draws > 1 else ""
        assert re.search(rf"^{j} +{candidate.message.text} +{letters[candidate.component]}{times} ", out, re.MULTILINE)
    assert f"draws {result.draws} " in out
    assert f"log-normaliser {result.settlement.diagnostics.log_normaliser:.4f}" in out


def test_one_component_needs_no_letters():
    result, out = shown(80, agents=[Agent("A", lambda prompt, reply: 1.0)])
    assert f"draws {result.draws}, all from the reference" in out
    assert " x2" in out


def test_an_agent_that_abstains_gets_a_line_of_its_own():
    _, out = shown(80, agents=[*AGENTS, Agent("SongBook", fails)])
    assert "\nSongBook abstains (error): ZeroDivisionError: oh\n" in out


def test_without_agents_there_is_no_table_of_them():
    _, out = shown(80, agents=[])
    assert "Agents" not in out
    assert "draws 1, all from the reference" in out


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
