"""`llm-auction chat`: what it keeps, what it prints after every reply, and how it ends."""

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from langchain_core.language_models import FakeListChatModel

from llm_auction_chain.cli import main, run
from llm_auction_chain.errors import CandidatesError
from llm_auction_chain.testing import MarkovChatModel

QUICK = ["chat", "--candidates", "4", "--seed", "5"]
AGENTS = """
- {name: B, reward: {regex: {pattern: b, value: 4.0}}}
- {name: C, owner: shop, reward: {regex: {pattern: a, value: 9.0}}}
"""


class Echo(FakeListChatModel):
    """Answers with the whole conversation, and fails where it is told to."""

    def _call(self, messages, stop=None, run_manager=None, **kwargs):
        if messages[-1].text == "fail":
            raise CandidatesError("no \x1b[2J reply")
        return "|".join(message.text for message in messages) + "\x1b[2J"


@pytest.fixture
def talk(monkeypatch, capsys):
    """Have a conversation; return the exit code and what is printed."""

    def chat(said, *options, model=None):
        monkeypatch.setattr(run, "_load_model", lambda *_: model or MarkovChatModel())
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        capsys.readouterr()
        return main([*QUICK, *options]), *capsys.readouterr()

    return chat


def objects(out):
    return [json.loads(line) for line in out.splitlines()]


def test_the_model_reads_the_conversation_so_far(talk):
    code, out, _ = talk("one\n\n  \ntwo\n", "--format", "json", model=Echo(responses=[]))
    first, second, sums = objects(out)
    assert code == 0
    assert first["reply"] == "one\x1b[2J"
    assert second["reply"] == "one|one\x1b[2J|two\x1b[2J"
    assert sums["replies"] == 2


def test_payments_stand_below_every_reply_and_their_sums_at_the_end(talk, tmp_path):
    (tmp_path / "agents.yaml").write_text(AGENTS)
    options = ["--agents", str(tmp_path / "agents.yaml"), "--currency", "EUR"]
    _, out, _ = talk("one\ntwo\n", *options, "--format", "json")
    *replies, sums = objects(out)
    for name in ("B", "C"):
        paid = sum(float(reply["payments"][name]) for reply in replies)
        assert float(sums["paid"][name]) == pytest.approx(paid, abs=1e-9)
    assert any(float(paid) > 0 for paid in sums["paid"].values())
    code, out, err = talk("one\ntwo\n", *options)
    for reply in replies:
        sponsors = f"; sponsored by {', '.join(reply['sponsors'])}" if reply["sponsors"] else ""
        payments = ", ".join(f"{name} {paid}" for name, paid in reply["payments"].items())
        assert f"{reply['reply']}\n  payments: {payments} EUR{sponsors}\n" in out
    table = out.partition("Paid in all")[2]
    assert [line.split() for line in table.splitlines()[3:]] == [[*one] for one in sums["paid"].items()]
    assert (code, "loading the model" in err) == (0, True)


def test_a_reply_that_fails_is_said_and_forgotten(talk):
    code, out, err = talk("one\nfail\ntwo\n", "--format", "json", model=Echo(responses=[]))
    assert code == 1
    assert [one.get("reply") for one in objects(out)] == ["one\x1b[2J", "one|one\x1b[2J|two\x1b[2J", None]
    assert "no \\x1b[2J reply" in err
    assert "Traceback" not in err


def test_no_escape_of_a_reply_reaches_the_terminal(talk):
    _, out, err = talk("one\n", model=Echo(responses=[]))
    assert "one\\x1b[2J\n" in out
    assert "\x1b" not in out + err


def test_a_conversation_without_a_word_prints_nothing(talk, monkeypatch, capsys):
    assert talk("\n \n")[:2] == (0, "")
    monkeypatch.setattr(sys, "stdin", None)  # closed by the shell
    assert (main(QUICK), capsys.readouterr().out) == (0, "")


@pytest.mark.parametrize(
    "options", [["--tau", "0"], ["--agents", "none.yaml"], ["--top-p", "2"], ["--max-tokens", "0"]]
)
def test_no_model_is_loaded_for_settings_that_are_wrong(options, monkeypatch, capsys):
    monkeypatch.setattr(run, "_load_model", lambda *_: pytest.fail("loaded"))
    assert main([*QUICK, *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_no_text_is_bad_input(monkeypatch, capsys):
    monkeypatch.setattr(run, "_load_model", lambda *_: MarkovChatModel())
    for said in (io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8"), io.StringIO("caf\udce9\n")):
        monkeypatch.setattr(sys, "stdin", said)
        assert main(QUICK) == 2
        assert "not UTF-8" in capsys.readouterr().err


CODE = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
from llm_auction_chain.cli import main, run
from llm_auction_chain.testing import MarkovChatModel
run._load_model = lambda *_: MarkovChatModel()
sys.exit(main({QUICK}))
"""


@pytest.mark.parametrize(("end", "code"), [("Ctrl-D", 0), ("Ctrl-C", 130)])
def test_on_a_terminal_there_is_a_prompt_and_both_keys_end_with_the_sums(end, code):
    terminal, its_end = os.openpty()
    streams = {"stdin": its_end, "stdout": its_end, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", CODE], **streams) as process:  # noqa: S603 - our own code
        os.close(its_end)
        shown = ""

        def read_until(text, count=1):
            nonlocal shown
            while shown.count(text) < count:
                shown += os.read(terminal, 1 << 12).decode()

        read_until("> ")
        os.write(terminal, b"Hi\n")
        read_until("payments: ")
        read_until("> ", 2)
        while process.poll() is None:  # a key that is pressed before the line editor waits for one may be lost
            if end == "Ctrl-D":
                os.write(terminal, b"\x04")
            else:
                process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(3)
        read_until("Paid in all")
        error = process.stderr.read().decode()
    os.close(terminal)
    assert (process.returncode, "Traceback" in error) == (code, False)
    assert error.endswith("llm-auction: interrupted\n") is (end == "Ctrl-C")
