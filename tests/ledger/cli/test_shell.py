"""The command as a process: pipes that close, devices that are full, Ctrl-C, and passwords that stay secret."""

import os
import subprocess
import sys

import pytest

from llm_auction_chain import Ledger
from llm_auction_chain.cli import without_passwords

COMMAND = [sys.executable, "-m", "llm_auction_chain"]


def run(*arguments, **options):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([*COMMAND, *arguments], text=True, check=False, **streams)  # noqa: S603  our own code


@pytest.fixture
def long(path):
    """A ledger whose export is longer than a pipe."""
    with Ledger(f"sqlite:///{path}") as ledger:
        for number in range(300):
            ledger.deposit("A" * 200, 1, key=str(number), note="n" * 200)
    return path


def test_the_module_is_the_command(booked):
    done = run("ledger", "verify")
    assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (0, "OK", "")


@pytest.mark.parametrize("form", ["csv", "json", "table"])
def test_a_reader_that_leaves_is_no_traceback(long, form):
    command = [*COMMAND, "ledger", "export", "--format", form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize(
    "arguments", [["ledger", "export", "--format", "csv"], ["ledger", "balance"], ["ledger", "head"]]
)
def test_output_that_cannot_be_written_is_said_and_is_exit_code_1(long, arguments):
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = run(*arguments, stdout=full)
    assert (done.returncode, done.stderr) == (1, "llm-auction: No space left on device\n")


def test_names_in_csv_are_themselves_whatever_the_terminal_shows(path):
    with Ledger(f"sqlite:///{path}") as ledger:
        ledger.deposit("Ünïcode", 1)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [*COMMAND, "ledger", "balance", "--format", "csv"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)  # noqa: S603
    assert "\nÜnïcode," in done.stdout.decode("utf-8")


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("numpy", ["ledger", "balance"]),
        ("datetime", ["ledger", "balance"]),
        ("sqlalchemy", ["ledger", "balance"]),
        ("numpy", ["verify", "-"]),
        ("pydantic", ["verify", "-"]),
    ],
)
def test_ctrl_c_while_modules_load_is_one_line(booked, module, arguments):
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
class Press:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.modules.pop({module!r}, None)
sys.meta_path.insert(0, Press())
from llm_auction_chain.cli import main
sys.exit(main({arguments!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], input="{}", capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "llm-auction: interrupted\n")


SECRET = "s3cr:t/x"  # noqa: S105
SPELLED = "s3cr%3At%2Fx"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://me:{SPELLED}@127.0.0.1:1/bank",
        f"postgresql://me:{SPELLED}@127.0.0.1:1/bank",
        f"postgresql://me@127.0.0.1:1/bank?password={SPELLED}",
        f"postgresql://me@127.0.0.1:1/bank?sslpassword={SPELLED}",
        f"postgresql://me:{SECRET}@127.0.0.1:1/bank",
        f"postgresql://me:{SPELLED}@127.0.0.1:port/bank",
        f"postgresql//me:{SPELLED}@127.0.0.1/bank",
        f"postgresql://me:first@{SPELLED}@127.0.0.1/bank",
        f"mysql://me:{SPELLED}@127.0.0.1/bank",
        f"sqlite://me:{SPELLED}@127.0.0.1/bank.db",
        f"postgresql://me:first {SECRET}@127.0.0.1:1/bank",
        f"postgresql://me:{SPELLED}@127.0.0.1/bank?port=x",
    ],
)
@pytest.mark.parametrize("place", ["option", "environment", "wrong"])
def test_a_password_is_in_no_output(say, url, place, monkeypatch):
    monkeypatch.setenv("LLM_AUCTION_LEDGER", url)
    arguments = {"option": ["--url", url, "balance"], "environment": ["balance"], "wrong": ["balance", "A", url]}[place]
    said = say("ledger", *arguments)
    assert said.code in (1, 2)
    assert said.err
    for secret in (SECRET, SPELLED, "s3cr"):
        assert secret not in said.out + said.err


def test_other_addresses_in_messages_are_left_as_they_are():
    for text in ("see https://example.org/a:b", "mail me@example.org", "postgresql://me@there/bank", "a:b@c"):
        assert without_passwords(text) == text
