"""`llm-auction run`, over the embedded model, and over smaller ones where the model does not matter."""

import json
import logging
import os
import subprocess
import sys

import pytest
from langchain_core.language_models import FakeListChatModel

from llm_auction_chain import cli
from llm_auction_chain.auction.result import AuctionResult
from llm_auction_chain.auction.tau_sweep import tau_sweep
from llm_auction_chain.cli import main, run
from llm_auction_chain.errors import CandidatesError
from llm_auction_chain.models.local import weights
from llm_auction_chain.models.local.chat_model import ChatTransformers
from llm_auction_chain.rewards import from_data
from llm_auction_chain.testing import MarkovChatModel
from tests.integration.provider import READ, WRITTEN, provider

QUICK = ["--candidates", "3", "--max-tokens", "6", "--seed", "5"]


@pytest.fixture
def small(monkeypatch):
    """Have the command load a model that answers at once."""
    monkeypatch.setattr(run, "_load_model", lambda *_: MarkovChatModel(tilts={"guitars": (0.0, 2.0, 0.0)}))


def agents_with_context(folder):
    (folder / "agents.yaml").write_text("- {name: A, context: A sells a., reward: {mention: {phrases: [one]}}}")
    return str(folder / "agents.yaml")


def test_a_first_look_shows_bids_chances_reply_payments_and_what_to_try_next(capsys):
    assert main(["run", "--candidates", "2", "--max-tokens", "3", "--seed", "5"]) == 0
    shown = capsys.readouterr()
    for word in (
        f"Question: {run.DEFAULT_QUESTION}",
        "EggCo",
        "before",
        "after",
        "The reply drawn: candidate",
        "OatCo pays",
        "Replies cut by --max-tokens: 0, 1",
        "at temperature 0.5, and exact for it",
        "Next: ",
        "--details --seed 5",
    ):
        assert word in shown.out, word
    assert "log-weight" not in shown.out
    assert "drawing candidates" in shown.err


def test_details_show_everything_needed_to_believe_it(small, capsys):
    assert main(["run", "Hi", *QUICK, "--details"]) == 0
    out = capsys.readouterr().out
    for word in ("log-weight", "probability", "EggCo", "charged", "revenue", "ESS", "seed 5", "auction"):
        assert word in out, word
    assert "Next: " not in out


def test_question_and_progress_are_shown_before_anything_heavy_is_imported():
    script = """
import os, sys
class Leave:  # as soon as somebody looks for a heavy module
    def find_spec(self, name, *_):
        if name in ("torch", "transformers"):
            os._exit(7)
sys.meta_path.insert(0, Leave())
from llm_auction_chain.cli import main
main(["run"])
"""
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", script],
        env={**os.environ, "FORCE_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert f"Question: {run.DEFAULT_QUESTION}" in done.stdout
    assert "loading the model" in done.stderr


def test_the_same_seed_is_the_same_auction(small, capsys):
    outcomes = []
    for _ in range(2):
        assert main(["run", "Hi", *QUICK, "--format", "json"]) == 0
        outcome = json.loads(capsys.readouterr().out)
        outcome.pop("auction_id")
        outcome.pop("commitment")
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
        (["--candidates", "0"], "--candidates must be a whole number of at least 1, got 0"),
        (["--payment-rule", "free"], "payment_rule"),
        (["--agents", "missing.yaml"], "missing.yaml"),
        (["--max-tokens", "0"], "max-tokens"),
        (["--seed", "-3"], "seed"),
        (["--agents", ""], "--agents must be a text that is not blank"),
        (["--model", ""], "--model must be a text that is not blank"),
    ],
)
def test_bad_input_gets_one_clear_line_and_exit_code_2(small, arguments, says, capsys):
    assert main(["run", "Hi", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([""], "empty"),
        ([" \n"], "empty"),
        (["caf\udce9"], "UTF-8"),
        (["Hi", "--tau", "nan"], "tau"),
        (["Hi", "--tau", "-1"], "tau"),
        (["Hi", "--candidates", "0"], "--candidates must be a whole number of at least 1, got 0"),
        (["Hi", "--payment-rule", "free"], "payment_rule"),
        (["Hi", "--seed", "-3"], "seed"),
        (["Hi", "--max-tokens", "0"], "max-tokens"),
        (["Hi", "--agents", "missing.yaml"], "missing.yaml"),
        (["Hi", "--agents", "twice.yaml"], "'A'"),
        (["Hi", "--temperature", "-1"], "--temperature must be a number of at least 0, got -1.0"),
        (["Hi", "--temperature", "nan"], "--temperature"),
        (["Hi", "--top-p", "0"], "--top-p must be a number above 0 and at most 1, got 0.0"),
        (["Hi", "--top-p", "1.1"], "--top-p"),
        (["Hi", "--currency", " EUR"], "currency"),
        (["Hi", "--receipt", "none/a.json"], "--receipt none/a.json cannot be written: No such file"),
        (["Hi", "--save", "."], "--save . is not a file"),
        (["Hi", "--receipt", "new.json", "--save", "new.json"], "--save are the same file"),
        (["Hi", "--receipt", "new.json", "--save", "twice.yaml/a"], "--save twice.yaml/a cannot be written"),
    ],
)
def test_no_model_is_loaded_for_arguments_that_are_wrong(arguments, says, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    twice = "- {name: A, reward: {length: {target: 5, tolerance: 3}}}\n"
    (tmp_path / "twice.yaml").write_text(2 * twice)
    monkeypatch.setattr(run, "_load_model", lambda *_: pytest.fail("loaded"))
    assert main(["run", *arguments]) == 2
    assert [one.name for one in tmp_path.iterdir()] == ["twice.yaml"]
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


@pytest.mark.parametrize("option", ["--receipt", "--save"])
def test_the_agents_file_is_never_written_over(option, small, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    agents = agents_with_context(tmp_path)
    text = (tmp_path / "agents.yaml").read_text()
    assert main(["run", "Hi", "--agents", agents, option, "./agents.yaml"]) == 2
    assert "are the same file" in capsys.readouterr().err
    assert (tmp_path / "agents.yaml").read_text() == text


@pytest.mark.parametrize("model", ["no/such/folder/here", "nobody:model"])
def test_a_model_that_does_not_exist_is_bad_input(model, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["run", "Hi", "--model", model]) == 2
    error = capsys.readouterr().err
    assert model.partition(":")[0] in error
    assert "Traceback" not in error


def test_an_empty_question_is_bad_input(small, capsys):
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


@pytest.mark.parametrize(("text", "key"), [
    ("agents:\n- name: A\n  owner: B\n  reward: {length: {target: 5, tolerance: 3}}\n  owner: C\n", "owner"),
    ("- {name: A, reward: {mention: {value: 2.0, phrases: [a], value: 9.0}}}", "value"),
    ("agents: []\nagents: []", "agents"),
])  # fmt: skip
def test_a_key_of_the_agents_file_that_is_there_twice_is_refused_by_name(text, key, tmp_path, capsys):
    path = tmp_path / "agents.yaml"
    path.write_text(text)
    assert main(["run", "Hi", "--agents", str(path)]) == 2
    assert f"'{key}' is there twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("agents: []\ntau: 4", "agents.yaml: it has no setting 'tau'"),
        ("- {name: B, reward: {length: {target: 5, tolerance: 3}}}\n- {name: A, reward: {}, bid: 3}",
         "agents.yaml, agent 2, 'A': an agent has no setting 'bid'"),
        ("- {name: A, reward: {}, 3: 4}", "agents.yaml, agent 1, 'A': an agent has no setting 3"),
        ("- {name: A, reward: {mention: {phrase: [a]}}}", "agent 1, 'A': mention has no setting 'phrase'"),
        ("- {name: A, reward: {mention: {phrases: []}}}", "agents.yaml, agent 1, 'A': "),
        ("- {name: A, reward: {mention: {value: 2}}}", "agents.yaml, agent 1, 'A': "),
        ("- {name: A, reward: {length: {target: 5, tolerance: 3}}, report_cap: -1}", "agent 1, 'A': report_cap"),
        ("- {name: '', reward: {length: {target: 5, tolerance: 3}}}", "agents.yaml, agent 1, '': "),
        ("- {name: A}", "agents.yaml, agent 1, 'A' must be a mapping with a name and a reward"),
        ("- {name: A, rewards: {}}", "agents.yaml, agent 1, 'A': an agent has no setting 'rewards'"),
        ("- {nam: A, reward: {}}", "agents.yaml, agent 1: an agent has no setting 'nam'"),
        ("- {name: A, reward: {mentions: {}}}", "agents.yaml, agent 1, 'A': reward has no setting 'mentions'"),
        ("- {name: A, reward: {mention: {}, weight: 2}}", "agent 1, 'A': reward has no setting 'weight'"),
        ("- {name: A, reward: {mention: {}, length: {}}}", "agent 1, 'A': reward is one of click"),
        ("- {name: A, context: 2026-02-30, reward: {}}", "agents.yaml is not YAML: day is out of range"),
        ("- 3", "agents.yaml, agent 1 must be a mapping with a name and a reward"),
    ],
)  # fmt: skip
def test_an_error_of_an_agents_file_names_the_file_the_agent_and_the_key(text, says, tmp_path, capsys):
    (tmp_path / "agents.yaml").write_text(text)
    assert main(["run", "Hi", "--agents", str(tmp_path / "agents.yaml")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_a_reward_may_be_a_dotted_path(small, tmp_path, capsys):
    path = tmp_path / "agents.yaml"
    path.write_text("- {name: A, reward: 'math:dist'}")
    assert main(["run", "Hi", *QUICK, "--allow-code", "--agents", str(path)]) == 0
    assert "error" in capsys.readouterr().out


def test_an_agents_file_runs_code_only_if_that_is_allowed_and_the_help_says_so(small, tmp_path, capsys, monkeypatch):
    (tmp_path / "marks_its_import.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'mark')!r}).touch()\ndef f(p, r): return 1.0"
    )
    (tmp_path / "agents.yaml").write_text("- {name: A, reward: 'marks_its_import:f'}")
    monkeypatch.syspath_prepend(tmp_path)
    command = ["run", "Hi", *QUICK, "--agents", str(tmp_path / "agents.yaml")]
    assert main(command) == 2
    assert "agents.yaml, agent 1, 'A': reward 'marks_its_import:f' names code" in capsys.readouterr().err
    assert not (tmp_path / "mark").exists()
    assert main([*command, "--allow-code"]) == 0
    assert (tmp_path / "mark").exists()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    assert "module:function` is code, see --allow-code" in " ".join(capsys.readouterr().out.split())


def test_an_agents_file_may_say_all_that_agents_and_plain_rewards_take(small, tmp_path, capsys):
    path = tmp_path / "agents.yaml"
    path.write_text("""
- {name: A, reward: {regex: {pattern: '[a-z]+', value: 2.0}}, report_cap: 1.0, currency: EUR, categories: [music]}
- {name: U, reward: {length: {target: 5, tolerance: 3}}, pays: false}
- {name: L, reward: {log_ratio: {instructions: Praise drums.}}, owner: drums}
""")
    assert main(["run", "Hi", *QUICK, "--format", "json", "--agents", str(path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [agent["status"] for agent in told["agents"]] == ["capped", "reported", "reported"]
    assert [payment["pays"] for payment in told["payments"]] == [True, False, True]
    assert told["currency"] == "EUR"


@pytest.mark.parametrize("code", ["def f(:", "raise SystemExit(0)", "1 / 0"])
def test_a_reward_module_that_does_not_load_is_bad_input(code, tmp_path, capsys, monkeypatch):
    (tmp_path / "broken_rewards.py").write_text(code)
    (tmp_path / "agents.yaml").write_text("- {name: A, reward: 'broken_rewards:f'}")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["run", "Hi", "--allow-code", "--agents", str(tmp_path / "agents.yaml")]) == 2
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
from llm_auction_chain.cli import main
def load(*_):
    from llm_auction_chain.testing import MarkovChatModel
    return MarkovChatModel()
class Loaded:  # replaces what loads the model as soon as the module is there
    def find_spec(self, name, *_):
        if name == "llm_auction_chain.interfaces.runnable":
            sys.modules["llm_auction_chain.cli.run"]._load_model = load
sys.meta_path.insert(0, Loaded())
sys.exit(main(["run", "Hi", "--seed", "5", *sys.argv[1:]]))
"""


def run_small(*arguments, first="", **streams):
    command = [sys.executable, "-c", SMALL.format(first=first), *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **streams)  # noqa: S603  our own code


@pytest.mark.parametrize("arguments", [[], ["--format", "json"]])
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
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
class Press:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.modules.pop({module!r}, None)  # whoever measures coverage may have brought it
sys.meta_path.insert(0, Press())
"""
    done = run_small(first=first, stdout=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (130, "llm-auction: interrupted\n")


@pytest.mark.parametrize("module", ["rich", "yaml"])
def test_without_the_extra_the_error_names_what_to_install(module):
    done = run_small(first=f"sys.modules[{module!r}] = None", stdout=subprocess.DEVNULL)
    assert (done.returncode, "pip install 'llm-auction-chain[cli]'" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_warnings_reach_the_shell_user_once_and_in_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "_load_model", lambda *_: FakeListChatModel(responses=["one", "two"]))
    assert main(["run", "Hi", *QUICK, "--agents", agents_with_context(tmp_path)]) == 0
    error = capsys.readouterr().err
    assert error.count("llm-auction: warning: ") == error.count("contexts are not used") == 1
    assert "AuctionWarning" not in error


def test_no_escape_of_an_error_a_warning_or_a_log_reaches_the_terminal(small, tmp_path, capsys, monkeypatch):
    def fails(prompt, replies):
        raise LookupError("no \x1b[2J stock")

    monkeypatch.setattr(from_data, "reward_from_data", lambda *_, **__: fails)
    (tmp_path / "agents.yaml").write_text('- {name: A, context: "see \\x9b1A https://x.example", reward: x}')
    assert main(["run", "Hi", *QUICK, "--agents", str(tmp_path / "agents.yaml")]) == 0
    shown = capsys.readouterr()
    assert "stock" in shown.out
    assert not {"\x1b", "\x9b"} & set(shown.err + shown.out)
    assert main(["run", "Hi", "--agents", "none\x1b[2J.yaml"]) == 2
    with pytest.raises(SystemExit):
        main(["run", "Hi", "--tau", "\x1b[2J"])
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert "none\\x1b[2J.yaml" in error


def test_no_escape_of_a_traceback_or_of_others_warnings_reaches_the_terminal(capsys, monkeypatch):
    def load(*_):
        cli.warnings.warn("theirs \x1b[2J", UserWarning, stacklevel=1)
        try:
            raise LookupError("caused \x9b1A")
        except LookupError:
            logging.getLogger("theirs").exception("%s failed", "\u202eA\nB")
        return MarkovChatModel()

    monkeypatch.setattr(run, "_load_model", load)
    monkeypatch.setattr(logging.root, "handlers", [])
    with pytest.warns(UserWarning, match=r"theirs \\x1b\[2J"):
        assert main(["run", "Hi", *QUICK]) == 0
    error = capsys.readouterr().err
    assert not set("\x1b\x9b\u202e") & set(error)
    for shown in ("\\u202eA\nB failed\nTraceback", "LookupError: caused \\x9b1A"):
        assert shown in error


def test_other_warnings_are_left_as_they_are(monkeypatch):
    def warns(*_):
        cli.warnings.warn("not ours", DeprecationWarning, stacklevel=1)
        return MarkovChatModel()

    monkeypatch.setattr(run, "_load_model", warns)
    with pytest.warns(DeprecationWarning, match="not ours"):
        assert main(["run", "Hi", *QUICK]) == 0


def test_the_receipt_and_the_result_are_written_for_other_programs(small, tmp_path, capsys):
    files = tmp_path / "receipt.json", tmp_path / "result.json"
    options = ["--currency", "EUR", "--receipt", str(files[0]), "--save", str(files[1])]
    assert main(["run", "Hi", *QUICK, *options, "--format", "json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert main(["verify", str(files[0]), "--auction-id", outcome["auction_id"]]) == 0
    result = AuctionResult.from_dict(json.loads(files[1].read_text("utf-8")))
    assert result.receipt.as_dict() == json.loads(files[0].read_text("utf-8"))
    assert (result.text, result.currency) == (outcome["reply"], outcome["currency"]) == (outcome["reply"], "EUR")


def test_an_auction_that_fails_writes_nothing(monkeypatch, tmp_path):
    def fails(*_):
        raise CandidatesError("no reply")

    monkeypatch.setattr(run, "_load_model", fails)
    (tmp_path / "old.json").write_text("old")
    options = ["--receipt", str(tmp_path / "new.json"), "--save", str(tmp_path / "old.json")]
    assert main(["run", "Hi", *QUICK, *options]) == 1
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("old.json", "old")]


def test_the_sweep_settles_the_same_candidates_at_other_values_of_tau(small, tmp_path, capsys):
    assert main(["run", "Hi", *QUICK, "--tau-sweep", "--save", str(tmp_path / "result.json"), "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)["tau_sweep"]
    taus = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    points = tau_sweep(AuctionResult.from_dict(json.loads((tmp_path / "result.json").read_text())), taus)
    assert [one["tau"] for one in told] == taus
    assert [one["welfare"] for one in told] == [point.welfare for point in points]
    assert [one["probabilities"] for one in told] == [point.settlement.probabilities.tolist() for point in points]
    assert main(["run", "Hi", *QUICK, "--tau-sweep"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.partition("at other values of tau")[2].splitlines()[3:]]
    assert [row[:2] for row in rows] == [[f"{point.tau:g}", f"{point.welfare:.4f}"] for point in points]


def test_temperature_and_top_p_reach_the_model(monkeypatch, capsys):
    monkeypatch.setattr(run, "_load_model", lambda *_: Sharp(responses=[]))
    candidates = []
    for options in ([], ["--temperature", "0.5", "--top-p", "0.9"]):
        assert main(["run", "Hi", *QUICK, *options, "--format", "json"]) == 0
        candidates.append({one["text"] for one in json.loads(capsys.readouterr().out)["candidates"]})
    assert candidates == [{"None None"}, {"0.5 0.9"}]


class Sharp(FakeListChatModel):
    """Says with which temperature it is called."""

    def _call(self, messages, stop=None, run_manager=None, **kwargs):
        return f"{kwargs.get('temperature')} {kwargs.get('top_p')}"


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
    run._load_model(None, 4, bars, 0)
    assert bars.descriptions == (
        [] if converted else ["converting the embedded model, once: about 20 seconds", "loading the model"]
    )


def test_a_provider_and_a_model_name_reach_any_chat_model(capsys, monkeypatch, tmp_path):
    with provider() as server:
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        arguments = ["--model", "openai:some-model", "--candidates", "4", "--max-tokens", "9", "--seed", "5"]
        arguments += ["--agents", agents_with_context(tmp_path), "--format", "json"]
        assert main(["run", "Hi", *arguments]) == 0
    said = capsys.readouterr()
    outcome = json.loads(said.out)
    assert [asked["model"] for asked in server.asked] == ["some-model"]
    assert outcome["diagnostics"]["candidates"] == 4
    assert outcome["usage"]["total_tokens"] == READ + 4 * WRITTEN
    assert said.err.count("llm-auction: warning: The agents' contexts are not used") == 1
