"""What the experiment on proposals measures, on a model whose replies can be listed."""

import numpy as np
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding

from llm_auction_chain import ConfigurationError
from llm_auction_chain.experiments import ExperimentConfig, run
from llm_auction_chain.experiments.proposals import CASES, Draws, keyword_phrases
from llm_auction_chain.testing import MarkovChatModel, ScriptedChatModel

MODEL = MarkovChatModel(length=3, tilts={"Bees": (0.0, 1.5, 0.0), "Cats": (-0.5, 0.0, 1.0)})
NAMES = ("reference", "tilt 2 until said", "product mixture", "default")
CONFIG = ExperimentConfig(experiment="proposals", n_questions=2, draws=12, proposals=NAMES)


@pytest.fixture(scope="module")
def study():
    return run(CONFIG, model=MODEL, embeddings=DeterministicFakeEmbedding(size=8))


def test_the_ratios_compare_the_default_with_the_reference_and_the_reference_gains_nothing(study):
    findings = study.summary().findings
    assert findings.ratios.keys() == {
        "nats_under_reference_worst_family", "nats_over_reference_4tau", "ess_share_worst",
        "candidates_vs_reference_4tau", "cost_vs_reference", "nats_under_old_default_log_ratio",
    }  # fmt: skip
    assert findings.ratios["nats_under_old_default_log_ratio"] == 0.0  # at tau 1 it is the same proposal
    assert len(findings.tables) == len(CASES) + 1
    for table in findings.tables[:-1]:
        (reference,) = (row for row in table.rows if row[0] == "reference")
        values = [estimate.value for estimate in reference[1:]]
        assert values == pytest.approx([0.0] * (len(values) - 1) + [1.0], abs=1e-12)


def test_the_default_of_each_case_is_the_auctions(study):
    unit = study.units[0][0]

    def parts(case, name):
        shares = unit.shares[case, name]
        return sorted(shares[np.flatnonzero(shares)].tolist())

    assert parts("keyword, 4 tau", "default") == pytest.approx([0.5, 0.5])
    assert parts("log-ratio, tau 1", "default") == parts("log-ratio, tau 1", "product mixture")
    assert parts("log-ratio, tau 4", "default") == pytest.approx([0.5, 0.5])


def test_the_log_normaliser_is_that_of_the_draws_weights_and_rewards():
    """A subset of all draws of a component is the pool itself."""
    log_probs = np.log([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    worth = np.array([[1.0, 0.0, 2.0]])
    draws = Draws(
        log_probs=log_probs, sources=np.array([1, 1, 1]), rewards={"keywords": worth},
        shares={("keyword, 2 tau", "other"): np.array([0.0, 1.0])}, seconds=np.ones(2), length=1.0,
    )  # fmt: skip
    normaliser, ess, spread = draws.statistics("keyword, 2 tau", "other", 3)
    weights = log_probs[0] - log_probs[1]
    assert normaliser == pytest.approx(np.log(np.mean(np.exp(weights + 2 * worth[0]))))
    assert ess == pytest.approx(np.exp(weights).sum() ** 2 / np.exp(2 * weights).sum() / 3)
    assert spread == pytest.approx(np.std(weights))


def test_a_second_run_draws_nothing_anew(tmp_path):
    config = CONFIG.changed(n_questions=1, families=("mentions",))
    first, second = (run(config, model=MODEL, out=tmp_path) for _ in range(2))
    assert (first.cost.reused, second.cost.reused) == (0, second.cost.measured)
    assert first.units[0][0].log_probs.tolist() == second.units[0][0].log_probs.tolist()
    assert not any(case.startswith(("log-ratio", "grade")) for case, _ in first.units[0][0].shares)


def test_a_model_without_logits_is_refused_with_a_remedy():
    with pytest.raises(ConfigurationError, match="Use a local model"):
        run(
            CONFIG.changed(proposals=("reference", "default"), families=("mentions",)),
            model=ScriptedChatModel(turns=[["Hi"]]),
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"proposals": ("reference", "tilt 1")}, "proposals must be a list with 'reference' and 'default'"),
        ({"proposals": ("tilt 1", "default")}, "proposals must be a list with 'reference' and 'default'"),
        ({"draws": 1}, "draws must be at least 2"),
    ],
)
def test_settings_that_leave_nothing_to_compare_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        run(CONFIG.changed(families=("mentions",), **settings), model=MODEL)


def test_sponsors_are_not_paid_for_common_words_or_their_own_name():
    assert keyword_phrases("Bees", "Bees sells the honey that you need.") == ["honey", "sells"]
