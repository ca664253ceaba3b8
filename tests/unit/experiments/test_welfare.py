"""The welfare experiment: rules on the same candidates, and the frontier of value against the user's loss."""

import numpy as np
import pytest

from llm_auction_chain.experiments import run
from llm_auction_chain.experiments.baselines import BASELINES, REFERENCE, mosaic
from llm_auction_chain.experiments.config import ExperimentConfig
from llm_auction_chain.experiments.exact import SmallBed, divergence
from llm_auction_chain.experiments.results import Cost
from llm_auction_chain.experiments.study import Study
from llm_auction_chain.experiments.welfare import EXPERIMENTS, analyse, at_loss, measured
from llm_auction_chain.testing import MarkovChatModel
from tests.unit.experiments.test_pools import QUESTION, bench, measure_pool


@pytest.fixture(scope="module")
def study():
    config = ExperimentConfig(
        experiment="welfare", draws=16, n_candidates=(2, 8), taus=(0.25, 1.0, 4.0), families=("mentions",)
    )
    units = ((measure_pool(bench(draws=16), QUESTION, 0), measure_pool(bench(draws=16), QUESTION, 1)),)
    return Study(config=config, questions=(QUESTION,), units=units, cost=Cost())


@pytest.fixture(scope="module")
def found(study):
    return analyse(study)


def rows(table):
    return {row[:2]: row[2:] for row in table.rows}


def test_every_rule_is_measured_with_as_many_candidates(found):
    table = found.tables[1]
    assert table.title == "Rules on the same questions with 8 candidates (mentions)"
    assert {name for name, _ in rows(table)} >= {*BASELINES, "MOSAIC, reference", "MOSAIC, product mixture"}


def test_no_lie_gains_under_our_rule_and_some_does_under_first_price(found):
    table = rows(found.tables[1])
    assert all(cells[-1] <= 1e-9 for (name, _), cells in table.items() if name.startswith("MOSAIC") or name == "VCG")
    assert table["best of n, first price", ""][-1] > 0.1


def test_agents_decide_more_and_the_user_loses_more_where_tau_is_small(found):
    table = rows(found.tables[0])
    values = [[table["MOSAIC, reference", tau][k] for tau in (0.25, 1.0, 4.0)] for k in range(3)]
    assert values == [sorted(each, reverse=True) for each in values]


def test_a_utility_is_the_contribution(found):
    figure = next(figure for figure in found.figures if figure.name == "welfare_mentions_equity")
    (series,) = figure.series
    assert figure.diagonal
    assert len(series.x) == 4  # two agents of two auctions
    assert np.asarray(series.y) == pytest.approx(np.asarray(series.x))


def test_the_ratios_are_those_that_are_promised(found):
    assert found.ratios.keys() == {"revenue_vs_sponsors_in_prompt", "welfare_vs_after_policy"}
    assert all(np.isfinite(value) and value > 0 for value in found.ratios.values())


def test_a_lot_between_two_rules_reaches_any_loss_between_theirs():
    losses, values = np.array([0.0, 2.0, 1.0]), np.array([1.0, 3.0, 1.5])
    assert at_loss(losses, values, 0.0) == 1.0
    assert at_loss(losses, values, 1.0) == 2.0  # half of the first two is better than the third
    assert at_loss(losses, values, 2.0) == 3.0


def test_the_means_over_subsets_are_near_the_exact_ones():
    # A pool of 64 draws of the small bed's reference gives nearly the same mean for 4 candidates: values have a
    # standard deviation below 1, so that of the mean is below 0.1 with 64 draws, and 0.4 is more than four of them.
    bed = SmallBed.make()
    law, revenue = bed.hold(mosaic(tau=0.5), {REFERENCE: 4})
    pool = measure_pool(bench(draws=64), QUESTION, 0)
    draws = np.random.default_rng(0).choice(9, p=bed.laws[REFERENCE], size=int(pool.counts.sum()))
    changed = type(pool)(**{**vars(pool), "rewards": {"mentions": bed.rewards[:, draws]}})
    got = measured(changed, mosaic(tau=0.5), proposal="reference", m=4, draws=64, family="mentions")
    assert got.value == pytest.approx(law @ bed.rewards.sum(axis=0), abs=0.4)
    assert got.revenue == pytest.approx(revenue, abs=0.4)
    assert got.loss == pytest.approx(divergence(law, bed.laws[REFERENCE]), abs=0.4)


def test_a_run_writes_its_tables_and_figures(tmp_path):
    config = EXPERIMENTS["welfare"].config.changed(**EXPERIMENTS["welfare"].quick, families=("mentions",), taus=(1.0,))
    summary = run(config.changed(n_questions=1), model=MarkovChatModel(length=6), out=tmp_path).summary()
    assert summary.claim == EXPERIMENTS["welfare"].claim
    assert len(summary.save(tmp_path)) == 2 + 2 * 3
