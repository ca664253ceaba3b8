"""The store keeps what was measured, whatever happens to the run."""

import subprocess
import sys

import numpy as np
import pytest

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.experiments.store import Store


def measuring(calls):
    def measure():
        calls.append(1)
        return {"x": np.arange(3.0), "texts": np.array(["a", "ä"])}, {
            "input_tokens": 2,
            "output_tokens": 3,
            "total_tokens": 5,
        }

    return measure


def test_a_measurement_is_made_once_for_what_it_depends_on(tmp_path):
    calls = []
    for _ in range(2):
        with Store(tmp_path / "new" / "m.sqlite") as store:
            assert store.get({"a": 1, "b": "x"}, measuring(calls))["x"].tolist() == [0, 1, 2]
            assert store.get({"b": "x", "a": 1}, measuring(calls))["texts"].tolist() == ["a", "ä"]
    assert len(calls) == 1
    assert (store.cost.measured, store.cost.reused, store.cost.input_tokens, store.cost.output_tokens) == (2, 2, 4, 6)


def test_another_dependence_is_another_measurement():
    calls = []
    store = Store(None)
    for depends_on in ({"a": 1}, {"a": 2}, {"a": [1]}, {"a": 1, "b": None}):
        store.get(depends_on, measuring(calls))
    assert len(calls) == 4


def test_what_was_measured_before_a_kill_is_kept(tmp_path):
    path = tmp_path / "m.sqlite"
    script = f"""
import os, signal, numpy as np
from pathlib import Path
from llm_auction_chain.experiments.store import Store
store = Store(Path({str(path)!r}))
store.get({{"k": 1}}, lambda: ({{"x": np.ones(2)}}, None))
store.get({{"k": 2}}, lambda: os.kill(os.getpid(), signal.SIGKILL))
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9  # noqa: S603
    calls = []
    with Store(path) as store:
        assert store.get({"k": 1}, measuring(calls))["x"].tolist() == [1, 1]
        assert not calls
        store.get({"k": 2}, measuring(calls))
    assert len(calls) == 1


def test_a_file_that_is_no_store_is_refused_and_kept(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine " * 500)
    with pytest.raises(ConfigurationError, match="is not a file of measurements"):
        Store(path)
    assert path.read_text() == "mine " * 500
