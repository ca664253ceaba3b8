"""Strategic agents: false names, collusion, free riding, entry and budgets."""

import numpy as np
import pytest

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.experiments.baselines import Candidates
from llm_auction_chain.experiments.config import ExperimentConfig
from llm_auction_chain.experiments.exact import divergence
from llm_auction_chain.experiments.questions import Question
from llm_auction_chain.experiments.results import Cost
from llm_auction_chain.experiments.strategic_agents import (
    EXPERIMENTS,
    _of_budgets,
    _of_copies,
    _of_entrant,
    _of_names,
    _of_pair,
    _run_down,
    auction_size,
    auctions,
)
from llm_auction_chain.experiments.study import Study, run
from llm_auction_chain.mechanism.payments import most_charged
from llm_auction_chain.testing import MarkovChatModel
from tests.unit.experiments.test_pools import QUESTION, SPONSORS, bench, measure_pool


@pytest.fixture(scope="module")
def found():
    pools = tuple(measure_pool(bench(draws=16), QUESTION, seed) for seed in range(2))

    def analysed(name):
        config = ExperimentConfig(experiment=name, draws=16, n_candidates=(8,), families=("mentions",))
        return Study(config=config, questions=(QUESTION,), units=(pools,), cost=Cost()).summary().findings

    return {name: analysed(name) for name in EXPERIMENTS}


def bed(*rewards):
    m = len(rewards[0])
    return Candidates(log_weights=[0] * m, rewards=rewards, log_reference=[-1] * m, sources=[-1] * m)


def softmax(*scores):
    return np.exp(scores) / np.exp(scores).sum()


def column(table, k):
    return [getattr(row[k], "value", row[k]) for row in table.rows]


def test_false_names_pay_for_the_difference_that_each_makes_alone():
    # by hand: with k names of 2/k each, the law without one of them is softmax(0, 2 - 2/k)
    for k in (1, 2, 5):
        payment, gain, best, *inside = _of_names(bed([0.0, 2.0]), 0, k, 1.0)
        assert payment == pytest.approx(k * divergence(softmax(0, 2), softmax(0, 2 - 2 / k)))
        assert gain == pytest.approx(2 * softmax(0, 2)[1] - payment - 1)
        assert best >= gain
        assert inside == pytest.approx(_of_names(bed([0.0, 2.0]), 0, 1, 1.0)[:2])


def test_false_names_avoid_the_payment_only_outside_an_owner(found):
    table = found["false_names"].tables[0]
    payments, gains = column(table, 1), column(table, 2)
    assert payments == sorted(payments, reverse=True)
    assert gains == sorted(gains)
    assert column(table, 4) == pytest.approx([payments[0]] * 9)
    ratios = found["false_names"].ratios
    assert ratios["payment_of_256_names"] < 0.02
    assert ratios["gain_of_256_names"] > 1
    assert ratios["payment_of_256_names_inside_an_owner"] == pytest.approx(1.0)


def test_rivals_gain_by_silence_together_what_they_would_pay_against_each_other():
    # by hand: both silent or both honest, either reply has probability 1/2
    rows = _of_pair(bed([2.0, 0.0], [0.0, 2.0]), (0, 1), 1.0)
    honest = 2 * divergence(softmax(0, 0), softmax(0, 2))
    assert rows[0][0] == pytest.approx(honest)
    assert rows[3] == pytest.approx([0.0, 0.0, honest, honest, 0.0])


def test_friends_gain_by_exaggerating_together():
    rows = _of_pair(bed([0.0, 1.0], [0.0, 1.0]), (0, 1), 1.0)
    assert rows[5][0] > 0.1  # both report the double
    assert rows[0][0] < 0


def test_a_coalition_gains_unless_it_has_one_owner(found):
    assert found["collusion"].ratios["joint_gain"] > 0.01
    assert found["collusion"].ratios["joint_gain_inside_an_owner"] <= 1e-9
    assert max(column(found["collusion"].tables[0], 6)) <= 1e-9


def test_equal_agents_pay_for_what_the_others_would_not_bring():
    one = bed([0.0, 2.0])
    payment, revenue, value, utility, silent = _of_copies(one.rewards[0], one, 2, 1.0)
    assert payment == pytest.approx(divergence(softmax(0, 4), softmax(0, 2)))
    assert revenue == pytest.approx(2 * payment)
    assert value == pytest.approx(2 * softmax(0, 4)[1] - 1)
    assert utility == pytest.approx(value - payment)
    assert silent == pytest.approx(2 * softmax(0, 2)[1] - 1)


def test_many_equal_agents_pay_little_and_gain_no_less_than_by_silence(found):
    table = found["free_riding"].tables[0]
    assert found["free_riding"].ratios["revenue_of_32"] < 0.05
    assert found["free_riding"].ratios["payment_of_each_of_4"] < 1
    assert all(utility >= silent for utility, silent in zip(column(table, 4), column(table, 5), strict=True))


def test_a_newcomer_helps_a_friend_and_costs_a_rival():
    likes, dislikes, indifferent = [0.0, 2.0], [2.0, 0.0], [1.0, 1.0]
    _, others = _of_entrant(bed(likes, likes, dislikes, indifferent), 0, 1.0)
    assert others[0].min() > 0
    assert others[1].max() < 0
    assert others[2] == pytest.approx([0.0, 0.0])


def test_a_newcomer_without_interest_changes_nothing():
    figures, others = _of_entrant(bed([1.0, 1.0], [0.0, 2.0]), 0, 1.0)
    assert figures[:8:2] == pytest.approx(figures[1:8:2])
    assert others[0] == pytest.approx([0.0, 0.0])


def test_what_a_newcomer_changes_is_the_difference_of_two_columns(found):
    for row in found["entry"].tables[0].rows[:-1]:
        assert row[3].value == pytest.approx(row[2].value - row[1].value)
    assert found["entry"].ratios["revenue_with_entrant"] > 0


def test_an_agent_enters_only_while_its_cover_holds_the_most_that_it_may_owe():
    offers = np.array([[1.0, 2.0]] * 4)
    assert _run_down(offers, 3.0, 1.5) == (0.5, 1.0)
    assert _run_down(offers, 0.9, 1.0) == (0.0, 0.0)
    assert _run_down(offers, 4.0, 1.0) == (1.0, 2.0)


def test_a_budget_of_one_hold_and_all_payments_reaches_to_the_end():
    found = _of_budgets([bed([0.0, 2.0], [1.0, 0.0])], 0, 1.0)
    honest = found[-1, 4]
    assert most_charged("expected", 2.0, 1.0) > 0
    assert honest[0] == 1.0
    assert found[-1, :, 1].max() == pytest.approx(honest[1])


def test_truth_is_best_where_the_budget_lasts_and_shading_gains_where_it_does_not(found):
    ratios = found["budgets"].ratios
    assert ratios["gain_with_the_whole_budget"] <= 1e-9
    assert ratios["gain_with_half_the_budget"] > 0.05


def test_pairs_need_two_sponsors():
    alone = Question(id="alone", domain="words", text="Speak", sponsors=SPONSORS[:1])
    pool = measure_pool(bench(), alone, 0)
    for name in ("collusion", "entry"):
        config = ExperimentConfig(experiment=name, draws=8, n_candidates=(4,), families=("mentions",))
        study = Study(config=config, questions=(alone,), units=((pool,),), cost=Cost())
        with pytest.raises(ConfigurationError, match="compares two agents, and 'alone' has one sponsor"):
            study.summary()


def test_auctions_leave_out_what_the_reference_never_gives():
    pool = measure_pool(bench(), QUESTION, 0)
    (one, *rest) = auctions(pool, "product mixture", 4, "mentions")
    assert one.rewards.min(axis=1).tolist() == [0.0, 0.0]
    assert np.isfinite(one.log_weights).all()
    assert len(rest) >= 1


def test_an_auction_is_the_largest_that_a_pool_has_two_of():
    assert auction_size(ExperimentConfig(experiment="entry", draws=12, n_candidates=(2, 6, 8))) == 6
    assert auction_size(ExperimentConfig(experiment="entry", draws=4, n_candidates=(4, 3))) == 3


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_run_writes_its_tables_and_figures(name, tmp_path):
    config = EXPERIMENTS[name].config.changed(**{**EXPERIMENTS[name].quick, "n_questions": 1})
    summary = run(config, model=MarkovChatModel(length=6), out=tmp_path).summary()
    assert summary.claim == EXPERIMENTS[name].claim
    assert len(summary.findings.tables) == len(config.families)
    assert len(summary.save(tmp_path)) == 2 + 2 * len(config.families)
