"""The users experiment: losses by enumeration, the frontier, and the tau that a budget buys."""

import math

import numpy as np
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.experiments import Estimate, TauPoint, choose_tau, frontier, run
from llm_auction_chain.experiments.config import ExperimentConfig
from llm_auction_chain.experiments.pools import RUBRICS
from llm_auction_chain.experiments.users import _measures, distinctness
from llm_auction_chain.testing import MarkovChatModel
from tests.unit.experiments.test_pools import MODEL, QUESTION, Judge, bench, measure_pool, plain

CHAIN = MarkovChatModel(length=6, tilts={"LeafLoft": (1.0, 0.0, 0.0)})


@pytest.fixture(scope="module")
def study():
    return run("users", quick=True, model=CHAIN)


def at(tau, low, high):
    loss = Estimate(value=(low + high) / 2, low=low, high=high)
    return TauPoint(tau=tau, loss=loss, welfare=Estimate(value=1.0))


def test_measures_of_two_candidates_by_hand():
    # 2,000 draws, dealt in pairs. Between replies of worth 0, 1 and 2 the probability of the better one is the logistic
    # function of the difference; the law of the returned reply follows from the chain's by enumeration.
    pool = measure_pool(bench(draws=2000, proposals=("reference",)), QUESTION, 0)
    chances = {text: math.exp(value) for text, value in MODEL.enumerate().items()}
    worth = {text: {"a": 1.0, "b": 2.0}.get(text[0], 0.0) for text in chances}
    texts = list(chances)
    p, r = np.array([chances[text] for text in texts]), np.array([worth[text] for text in texts])
    law = 2 * p * (p / (1 + np.exp(r - r[:, None]))).sum(axis=1)
    assert law.sum() == pytest.approx(1)
    loss, welfare, likely, tokens, distinct, *unknown = _measures(pool, "reference", "mentions", 2, [1.0])[0]
    # the estimate has the noise of 2,000 draws, whose replies are 81
    assert loss == pytest.approx(float((law * np.log(law / p)).sum()), abs=0.03)
    assert welfare == pytest.approx(float(law @ r), abs=0.06)
    assert likely == pytest.approx(float(law @ np.log(p)), abs=0.1)
    assert (tokens, distinct) == (pytest.approx(4.0), pytest.approx(1.0))
    assert np.isnan(unknown).all()


def test_without_reports_the_reference_loses_nothing():
    pool = measure_pool(bench(), QUESTION, 0)
    assert _measures(pool, "reference", "mentions", 4, [math.inf])[0, 0] == pytest.approx(0.0, abs=1e-12)


def test_users_lose_less_under_a_larger_tau_and_sponsors_get_less(study):
    for family in study.config.families:
        points = frontier(study, proposal="reference", family=family)
        assert [point.tau for point in points] == list(study.config.taus)
        losses, worths = (
            [round(x.value, 12) for x in each] for each in zip(*((p.loss, p.welfare) for p in points), strict=True)
        )
        assert losses == sorted(losses, reverse=True)
        assert worths == sorted(worths, reverse=True)


def test_tables_show_every_proposal_with_and_without_reports(study):
    found = study.summary().findings
    levels, changes, *_ = found.tables
    assert len(levels.rows) == 3 * 9
    assert levels.columns[2:] == (
        "KL to the reference (nats)", "welfare (money)", "log pi_ref(reply) (nats)", "length (tokens)", "distinct-2",
    )  # fmt: skip
    assert len(changes.rows) == 8
    rows = {row[:2]: row for row in levels.rows}
    for tau, change, *_ in changes.rows:
        difference = rows["product mixture", tau][3].value - rows["product mixture", math.inf][3].value
        assert change.value == pytest.approx(difference)
    assert any("relevance (cosine), helpful" in note for note in found.notes)


def test_relevance_and_grades_have_columns_where_they_are_measured():
    embedded = run("users", quick=True, model=CHAIN, embeddings=DeterministicFakeEmbedding(size=8),
                   judge=Judge(messages=iter([])))  # fmt: skip
    found = embedded.summary().findings
    assert found.tables[0].columns[-7:] == ("relevance (cosine)", *RUBRICS)
    assert [figure.name for figure in found.figures[:4]] == [
        "users_mentions_loss", "users_mentions_frontier", "users_mentions_relevance", "users_mentions_helpful",
    ]  # fmt: skip
    assert not any("Not measured" in note for note in found.notes)


def test_a_model_without_log_probabilities_has_a_frontier():
    config = ExperimentConfig(
        experiment="users", n_questions=2, draws=4, n_candidates=(2,), proposals=("reference",), families=("mentions",)
    )
    found = run(config, model=plain()).summary().findings
    assert found.tables[0].columns[2:] == ("KL to the reference (nats)", "welfare (money)", "distinct-2")


def test_the_smallest_tau_within_the_budget_is_chosen():
    points = [at(4.0, 0.1, 0.2), at(1.0, 0.8, 1.2), at(2.0, 0.3, 0.5)]
    assert [choose_tau(points, budget).tau for budget in (0.2, 0.6, 1.1, 1.2)] == [4.0, 2.0, 2.0, 1.0]


def test_no_tau_below_one_that_is_over_the_budget_is_chosen():
    assert choose_tau([at(1.0, 0.1, 0.2), at(2.0, 0.4, 0.6), at(4.0, 0.1, 0.2)], 0.5).tau == 4.0


def test_a_study_gives_its_tau(study):
    chosen = choose_tau(study, 10.0, proposal="reference", family="mentions")
    assert chosen == frontier(study, proposal="reference", family="mentions")[0]


def test_a_budget_that_no_tau_keeps_is_refused(study):
    with pytest.raises(ConfigurationError, match=r"No tau keeps .* within 0\.1 nats: at the largest, 4, it is 0\.15"):
        choose_tau([at(1.0, 0.8, 1.2), at(4.0, 0.1, 0.2)], 0.1)
    with pytest.raises(ConfigurationError, match="budget must be a number of at least 0, got -1"):
        choose_tau(study, -1)
    with pytest.raises(ConfigurationError, match="at least one point"):
        choose_tau([], 1.0)
    with pytest.raises(ConfigurationError, match="family must be"):
        choose_tau(study, 1.0, family="judge")


def test_one_measurement_is_too_few_to_choose():
    single = run(ExperimentConfig(experiment="users", n_questions=1, draws=4, n_candidates=(2,)), model=CHAIN)
    with pytest.raises(ConfigurationError, match="no interval"):
        choose_tau(single, 1.0)
    assert math.isnan(single.summary().findings.ratios["tau_for_1_nat"])


@pytest.mark.parametrize(
    ("text", "expected"), [("", 1.0), ("one", 1.0), ("a b", 1.0), ("a a a a", 1 / 3), ("A b. a B", 2 / 3)]
)
def test_distinctness_counts_pairs_of_words(text, expected):
    assert distinctness(text) == pytest.approx(expected)
