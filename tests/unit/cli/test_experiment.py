"""`llm-auction experiment`: what it prints, writes and refuses."""

import json

import pytest

from llm_auction_chain.cli import main
from llm_auction_chain.experiments import study as studies
from llm_auction_chain.testing import MarkovChatModel
from tests.unit.experiments.test_study import TOY


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(studies, "experiment_of", lambda name: TOY)
    monkeypatch.setattr(studies, "model_by_name", lambda name, max_tokens: MarkovChatModel(length=4))


def test_the_last_line_is_json_and_tables_stand_above(tmp_path, capsys):
    assert main(["experiment", "welfare", "--out", str(tmp_path / "new"), "--seeds", "1"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1]) == {"experiment": "welfare", "ratios": {"r": 2.0}}
    assert out.startswith("It runs.\n\nT\n     money\n")
    assert "3 measurements (0 from an earlier run)" in out
    assert "Wrote welfare.md, welfare.json" in err
    assert (tmp_path / "new" / "measurements.sqlite").exists()


def test_json_is_the_last_line_alone(tmp_path, capsys):
    assert main(["experiment", "welfare", "--out", str(tmp_path), "--seeds", "1", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"experiment": "welfare", "ratios": {"r": 2.0}}


def test_options_change_the_configuration(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("n_questions: 1\n")
    assert main(["experiment", "welfare", "--out", str(tmp_path), "--config", str(tmp_path / "c.yaml"), "--quick"]) == 0
    assert "2 measurements" in capsys.readouterr().out
    assert main(["experiment", "welfare", "--out", str(tmp_path), "--questions", "2", "--seeds", "1"]) == 0
    assert "2 measurements" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--seeds", "0"], "--seeds must be a whole number of at least 1"),
        (["--config", "none.yaml"], "none.yaml cannot be read"),
        (["--questions", "0"], "--questions must be a whole number of at least 1"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_loaded(options, match, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(studies, "model_by_name", lambda name, max_tokens: pytest.fail("loaded"))
    assert main(["experiment", "welfare", "--out", str(tmp_path), *options]) == 2
    assert match in capsys.readouterr().err


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["experiment", "welfare", "--out", str(tmp_path / "file")]) == 2
    assert "Name a folder" in capsys.readouterr().err


def test_an_unknown_experiment_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["experiment", "wealth"])
    assert stopped.value.code == 2
    assert "convergence" in capsys.readouterr().err
