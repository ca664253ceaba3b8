"""The misreports experiment: what a liar gains under each rule."""

import numpy as np
import pytest

from llm_auction_chain.experiments.baselines import Candidates, best_of_n, mosaic, rules_at, utility_of
from llm_auction_chain.experiments.config import ExperimentConfig
from llm_auction_chain.experiments.misreports import EXPERIMENTS, KINDS, analyse, ascend, lies
from llm_auction_chain.experiments.results import Cost
from llm_auction_chain.experiments.study import Study, run
from llm_auction_chain.testing import MarkovChatModel
from tests.unit.experiments.test_pools import QUESTION, bench, measure_pool

FAMILIES = ("mentions", "log_ratio")


@pytest.fixture(scope="module")
def found():
    config = ExperimentConfig(experiment="misreports", draws=8, n_candidates=(4,), families=FAMILIES)
    pool = measure_pool(bench(families=FAMILIES), QUESTION, 0)
    return analyse(Study(config=config, questions=(QUESTION,), units=((pool,),), cost=Cost()))


def bed(*rewards):
    m = len(rewards[0])
    return Candidates(log_weights=[0] * m, rewards=rewards, log_reference=[-1] * m, sources=[-1] * m)


def test_no_lie_gains_in_expectation_whatever_the_payment_rule_and_the_proposal(found):
    assert found.ratios["largest_gain"] <= 1e-9
    for table in (found.tables[0], found.tables[3]):
        assert len(table.rows) == 4 * 4
        assert all(in_expectation <= 1e-9 for _, _, in_expectation, _ in table.rows)


def test_under_pivot_alone_no_lie_gains_for_a_draw_whose_noise_is_known(found):
    per_draw = {rule: 0.0 for rule, *_ in found.tables[0].rows}
    for rule, _, _, gain in (*found.tables[0].rows, *found.tables[3].rows):
        per_draw[rule] = max(per_draw[rule], gain)
    assert per_draw.pop("pivot") <= 1e-9
    assert all(gain > 0.01 for gain in per_draw.values())


def test_what_a_liar_gains_under_the_rules_of_others_is_shown(found):
    best = {row[0]: row[1].value for row in found.tables[4].rows}
    assert best.keys() == rules_at(1.0).keys()
    assert best["best of n, first price"] > 0.03
    assert found.ratios["gain_under_first_price"] > 0.03
    assert all(best[name] <= 1e-9 for name in ("MOSAIC", "MOSAIC, pivot", "VCG", "no auction"))


def test_each_kind_of_lie_costs_or_gains_nothing_under_ours(found):
    table = found.tables[2]
    assert tuple(row[0] for row in table.rows) == KINDS
    assert all(row[1].value <= 1e-9 for row in table.rows)
    assert any(row[1].value < -1e-3 for row in table.rows)


def test_lies_scale_shift_silence_and_exaggerate():
    truth = np.array([0.0, 1.0, 2.0])
    found = lies(truth, 2.0, np.random.default_rng(0))
    assert {*found, "gradient ascent"} == set(KINDS)
    assert found["scaled"][0].tolist() == [0.0, 0.5, 1.0]
    assert found["shifted by 30 %"] - truth == pytest.approx(np.array([[0.6] * 3, [-0.6] * 3]))
    assert found["good replies shifted by 30 %"][0] == pytest.approx([0.0, 1.0, 2.6])
    assert not found["silent"].any()
    assert found["one reply exaggerated"][0].tolist() == [0.0, 1.0, 6.0]


def test_an_ascent_finds_that_first_price_rewards_shading():
    # by hand: any report above 0 for the second reply wins it, so the best lie pays next to nothing of 2
    one, rule = bed([0.0, 2.0]), best_of_n("first price")
    report = ascend(rule, one, 0, one.rewards[0], 2.0)
    assert utility_of(rule, one, 0, report) > 1.9


def test_an_ascent_comes_back_to_the_truth_under_ours():
    one, rule = bed([0.0, 2.0, 1.0], [1.0, 0.0, 0.5]), mosaic(tau=1.0)
    start = np.array([2.0, -1.0, 0.0])
    honest = utility_of(rule, one, 0, one.rewards[0])
    losses = [honest - utility_of(rule, one, 0, each) for each in (start, ascend(rule, one, 0, start, 2.0))]
    assert losses[0] > 0.5
    assert 0 <= losses[1] < 1e-3


def test_a_run_writes_its_tables_and_figures(tmp_path):
    config = EXPERIMENTS["misreports"].config.changed(**EXPERIMENTS["misreports"].quick, families=("log_ratio",))
    config = config.changed(n_questions=1, proposals=("product mixture",))
    summary = run(config, model=MarkovChatModel(length=6), out=tmp_path).summary()
    assert len(summary.save(tmp_path)) == 2 + 2
