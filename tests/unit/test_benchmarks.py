"""Every benchmark has the same front: `--quick`, tables, and one line of JSON with its ratios."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
SCRIPTS = [
    "agents",
    "directory",
    "engine",
    "ledger",
    "mechanism",
    "neighbours",
    "overhead",
    "ray_scaling",
    "server",
    "soak",
]


@pytest.fixture(scope="module")
def front():
    spec = importlib.util.spec_from_file_location("front", FOLDER / "front.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def calls_of_front(path):
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "benchmark"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_leaves_its_command_line_and_its_json_to_the_front(name):
    path = FOLDER / f"{name}.py"
    (call,) = calls_of_front(path)
    assert call.args[0].value == name
    assert [keyword for keyword in call.keywords if keyword.arg == "quick"]
    assert not re.search(r"ArgumentParser\(|print\(\s*json", path.read_text())


def test_no_benchmark_is_forgotten():
    assert sorted(path.stem for path in FOLDER.glob("*.py") if calls_of_front(path)) == SCRIPTS
    lists = re.findall(r"^(?:RAY_)?BENCHMARKS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(" ".join(lists).split()) == SCRIPTS


def test_help_explains_quick():
    command = [sys.executable, FOLDER / "mechanism.py", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603  our own code
    assert "How fast is `settle`" in shown
    assert re.search(r"--quick\s+fewer repetitions", shown)


def test_the_last_line_is_json_with_the_ratios(front, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["example.py", "--quick", "--size", "3"])

    def measure(options):
        print("a table")  # noqa: T201  what a benchmark does
        return {"quick": float(options.quick), "size": options.size / 7}

    front.benchmark(
        "example", "What?", measure, quick="less", add_options=lambda parser: parser.add_argument("--size", type=int)
    )
    table, last = capsys.readouterr().out.splitlines()
    assert table == "a table"
    assert json.loads(last) == {"benchmark": "example", "ratios": {"quick": 1.0, "size": 0.4286}}


def test_contenders_take_turns_and_the_first_rounds_do_not_count(front):
    calls, ticks = [], iter(range(100))
    contenders = {"one": lambda: calls.append("one"), "two": lambda: (calls.append("two"), 0.5)[1]}
    seconds = front.take_turns(contenders, 3, warm_up=2, clock=lambda: next(ticks))
    assert calls == ["one", "two"] * 5
    assert seconds == {"one": [1, 1, 1], "two": [0.5, 0.5, 0.5]}
