"""Running an experiment: from a configuration to a study and its summary."""

import pytest

from llm_auction_chain import experiments
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.experiments import study as studies
from llm_auction_chain.experiments.config import ExperimentConfig
from llm_auction_chain.experiments.results import Findings, Table
from llm_auction_chain.experiments.study import Experiment, load_config, run
from llm_auction_chain.testing import MarkovChatModel

MODEL = MarkovChatModel(length=4)


def analyse(study):
    chance = study.mean(lambda pool: float(pool.rewards["mentions"].sum()))
    return Findings(tables=(Table(title="T", columns=("money",), rows=((chance,),)),), ratios={"r": 2.0})


TOY = Experiment(
    claim="It runs.",
    config=ExperimentConfig(experiment="welfare", n_questions=3, draws=4, families=("mentions",), seeds=(0, 1)),
    quick={"n_questions": 1, "draws": 2},
    analyse=analyse,
)


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setattr(studies, "experiment_of", lambda name: TOY)


def test_public_names_are_sorted_and_load_when_they_are_used():
    assert sorted(experiments.__all__) == dir(experiments)
    assert all(getattr(experiments, name) is not None for name in experiments.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = experiments.nothing


def test_every_question_is_measured_under_every_seed():
    study = run("welfare", model=MODEL)
    assert [len(row) for row in study.units] == [2, 2, 2]
    assert [pool.seed for pool in study.units[1]] == [0, 1]
    assert {pool.question.id for pool in study.units[1]} == {study.questions[1].id}
    assert study.values(lambda pool: pool.seed).tolist() == [[0, 1]] * 3


def test_seeds_are_given_by_the_caller():
    assert [len(row) for row in run("welfare", seed=range(3), model=MODEL).units] == [3, 3, 3]
    assert run("welfare", seed=7, model=MODEL).config.seeds == (7,)


def test_a_quick_run_measures_less():
    study = run("welfare", quick=True, model=MODEL)
    assert (len(study.units), study.units[0][0].counts[0]) == (1, 2)


def test_progress_counts_up_to_the_total_and_estimates_the_time_left():
    seen = []
    run("welfare", model=MODEL, progress=seen.append)
    assert [(each.done, each.total) for each in seen] == [(k, 6) for k in range(1, 7)]
    assert seen[0].seconds_left > 0
    assert seen[-1].seconds_left == 0


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    class StoppedError(Exception):
        pass

    def stop(progress):
        if progress.done == 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        run("welfare", model=MODEL, out=tmp_path, progress=stop)
    study = run("welfare", model=MODEL, out=tmp_path)
    assert (study.cost.measured, study.cost.reused) == (6, 4)
    whole = run("welfare", model=MODEL)
    assert study.summary().findings == whole.summary().findings
    assert study.cost.output_tokens == whole.cost.output_tokens > 0


def test_a_stored_run_needs_no_draw(tmp_path):
    class Silent(MarkovChatModel):
        def _generate(self, *args, **kwargs):
            raise AssertionError

    run("welfare", model=MODEL, out=tmp_path)
    Silent.__qualname__ = MarkovChatModel.__qualname__
    study = run("welfare", model=Silent(length=4), out=tmp_path)
    assert study.cost.reused == 6


def test_a_summary_says_what_the_measurements_cost():
    summary = run("welfare", model=MODEL).summary()
    assert "6 measurements (0 from an earlier run)" in str(summary)
    assert f"{summary.cost.output_tokens:,} written" in str(summary)
    assert summary.json_line == '{"experiment": "welfare", "ratios": {"r": 2.0}}'


def test_a_configuration_comes_from_yaml(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"query": "How?", "advertisers": []}\n')
    path = tmp_path / "c.yaml"
    path.write_text("n_questions: 2\ntaus: [1, 2.5]\nquestions: mine.jsonl\n")
    config = load_config(path, experiment="welfare")
    assert (config.n_questions, config.taus, config.draws) == (2, (1.0, 2.5), 4)
    assert config.questions == tmp_path / "mine.jsonl"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("- 1", "must be a mapping of settings"),
        ("a: [", "is not YAML"),
        ("draws: 0", "c.yaml: draws must be a whole number of at least 1, got 0"),
        ("drawz: 4", "ExperimentConfig has no setting 'drawz'. Did you mean 'draws'?"),
        ("taus: []", "taus must be a list of at least one"),
        ("families: [clicks]", "families must be 'mentions' or"),
        ("experiment: users", "is for the experiment 'users', not 'welfare'"),
    ],
)
def test_a_wrong_configuration_is_refused(content, match, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=match):
        load_config(path, experiment="welfare")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"none\.yaml cannot be read"):
        load_config(tmp_path / "none.yaml")
