"""The steering experiment: bounds beside what happened."""

import numpy as np
import pytest

from llm_auction_chain.experiments.baselines import Candidates
from llm_auction_chain.experiments.config import ExperimentConfig
from llm_auction_chain.experiments.results import Cost
from llm_auction_chain.experiments.steering import _of_auction, _shares, analyse
from llm_auction_chain.experiments.study import Study
from tests.unit.experiments.test_pools import QUESTION, bench, measure_pool

FAMILIES = ("mentions", "log_ratio")


@pytest.fixture(scope="module")
def found():
    config = ExperimentConfig(experiment="steering", draws=12, n_candidates=(6,), families=FAMILIES)
    pools = tuple(measure_pool(bench(draws=12, families=FAMILIES), QUESTION, seed) for seed in range(2))
    return analyse(Study(config=config, questions=(QUESTION,), units=(pools,), cost=Cost()))


def two_replies(weight, span, tau):
    one = Candidates(log_weights=[0.0, weight], rewards=[[0, span]], log_reference=[-1, -1], sources=[-1, -1])
    return _of_auction(one, tau)


def test_nothing_exceeds_its_bound(found):
    assert 0.1 < found.ratios["largest_share_of_bound"] <= 1 + 1e-9
    for figure in found.figures:
        assert figure.diagonal
        assert all(y <= x * (1 + 1e-9) for series in figure.series for x, y in zip(series.x, series.y, strict=True))


def test_bounds_fall_with_tau(found):
    rows = [row for row in found.tables[0].rows if row[0] == "reference"]
    assert [row[1] for row in rows] == [0.25, 0.5, 1.0, 2.0, 4.0]
    for column in (3, 7, 8):
        bounds = [row[column].value for row in rows]
        assert bounds == sorted(bounds, reverse=True)


def test_the_bound_is_never_above_its_simple_form(found):
    assert all(row[7].value <= row[8].value for table in found.tables[::2] for row in table.rows)


def test_charges_for_one_draw_stay_within_the_most_of_their_rule(found):
    table = found.tables[1]
    assert [row[0] for row in table.rows] == ["expected", "proportional", "influence", "pivot"]
    assert all(row[2] <= 1 + 1e-9 for row in table.rows)


def test_both_bounds_are_tight():
    # one reply that the agent likes and one that it does not: some weight attains each bound
    shares = np.array([_shares(two_replies(weight, 3.0, 1.0))[0] for weight in np.linspace(-20, 20, 2001)])
    assert shares.max(axis=0) == pytest.approx([1.0, 1.0], abs=1e-3)


def test_an_influence_without_a_bound_would_refute_it():
    assert _shares(np.array([[1e-9, 0.0, 0.0, 0.0, 0.0]])).tolist() == [[np.inf, 0.0]]


def test_an_agent_that_is_indifferent_moves_and_pays_nothing():
    assert two_replies(0.0, 0.0, 1.0).tolist() == [[0.0] * 5]
