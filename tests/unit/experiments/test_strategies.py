"""No other report would have brought an agent more, and a search that does not know this finds no better one."""

import warnings
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_auction_chain import Agent, AuctionRunnable, AuctionWarning, ConfigurationError, Policy, RewardError
from llm_auction_chain.experiments import Candidates, best_response, misreport, utilities
from llm_auction_chain.experiments.baselines import mosaic
from llm_auction_chain.mechanism import PAYMENT_RULES
from llm_auction_chain.testing import MarkovChatModel


def likes(letter, worth, constant=0.0):
    return lambda prompt, reply: constant + worth * reply.text.count(letter)


def held(*agents, **settings):
    agents = agents or (Agent("B", likes("b", 2.0)), Agent("C", likes("c", 1.0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AuctionWarning)
        defaults = {"model": MarkovChatModel(), "n_candidates": 9, "seed": 7}
        return AuctionRunnable(agents=list(agents), **{**defaults, **settings}).run("Say something")


def no_b_first(prompt, reply):
    return not reply.text.startswith("b")


def kl(p, q):
    live = p > 0
    return float((p[live] * np.log(p[live] / q[live])).sum())


@pytest.mark.parametrize("rule", PAYMENT_RULES)
def test_utilities_are_those_of_the_payments_for_each_reply(rule):
    rng = np.random.default_rng(0)
    values, reports, weights = rng.random((3, 6)), 3 * rng.random((3, 6)), rng.normal(size=6)
    bed = Candidates(log_weights=weights, rewards=values, log_reference=weights, sources=np.full(6, -1))
    by_reply = mosaic(rule, tau=0.7)(bed, reports).utilities(values)
    assert utilities(values, reports, weights, 0.7, rule) == pytest.approx(by_reply, abs=1e-12)


def test_utilities_of_one_owner_are_one_sum():
    rng = np.random.default_rng(1)
    values, reports = rng.random((3, 5)), rng.random((3, 5))
    shared = utilities(values, reports, None, 1.0, "expected", owners=["X", "Y", "X"])
    alone = utilities([values[0] + values[2], values[1]], [reports[0] + reports[2], reports[1]], None, 1.0, "expected")
    assert shared == pytest.approx(alone[[0, 1, 0]], abs=1e-12)


@pytest.mark.parametrize("values", [[[1.0]], [[1.0, np.nan]], [1.0, 2.0]])
def test_values_that_do_not_fit_the_reports_are_refused(values):
    with pytest.raises(ConfigurationError, match=r"values must be finite numbers of shape \(1, 2\)"):
        utilities(values, [[1.0, 2.0]], None, 1.0, "expected")


@given(st.integers(0, 2**32), st.sampled_from(PAYMENT_RULES), st.sampled_from([0.3, 1.0, 20.0]))
@settings(deadline=None, max_examples=25)
def test_a_misreport_loses_tau_times_the_divergence_that_it_causes(seed, rule, tau):
    rng = np.random.default_rng(seed)
    agents = [
        Agent("B", likes("b", rng.random()), owner="Both"),
        Agent("A", likes("a", rng.random()), owner="Both"),
        Agent("C", likes("c", rng.random(), constant=1e3)),
    ]
    result = held(*agents, tau=tau, payment_rule=rule, seed=seed)
    for i, agent in enumerate(agents):
        other = misreport(result, agent.name, result.rewards[i] + 3 * rng.random(result.rewards.shape[1]))
        loss = tau * kl(other.probabilities, result.settlement.probabilities)
        assert other.gain == pytest.approx(-loss, abs=1e-9)
        assert other.gain <= 1e-9 * np.ptp(result.rewards[i])


def test_a_misreport_has_the_law_and_payment_of_an_auction_that_it_enters():
    result = held()
    told = misreport(result, "B", [3.0 * reward for reward in result.rewards[0]])
    entered = held(Agent("B", likes("b", 6.0)), Agent("C", likes("c", 1.0)))
    np.testing.assert_allclose(told.probabilities, entered.settlement.probabilities, rtol=1e-12)
    assert told.expected_payment == pytest.approx(entered.settlement.expected_payments[0], rel=1e-12)
    assert told.report == entered.reports[0].rewards
    value = float(told.probabilities @ result.rewards[0])
    assert told.utility == pytest.approx(value - told.expected_payment, abs=1e-12)
    assert told.gain == pytest.approx(told.utility - result.settlement.contributions[0], abs=1e-12)


def test_the_truth_gains_nothing_exactly():
    result = held(policy=Policy(candidate_filter=no_b_first))
    for i, agent in enumerate(result.agents):
        assert misreport(result, agent.name, result.rewards[i]).gain == 0.0


def test_amounts_are_of_the_owner_as_a_whole():
    result = held(Agent("B", likes("b", 2.0), owner="Firm"), Agent("C", likes("c", 1.0), owner="Firm"))
    told = misreport(result, "B", 0.0 * result.rewards[0])
    joint = utilities(
        [result.rewards.sum(axis=0)], [result.rewards[1]], result.log_weights, 1.0, "expected"
    )  # the owner's values, and the report of its other agent alone
    assert told.utility == pytest.approx(joint[0], abs=1e-12)
    assert told.expected_payment > 0.0


def test_a_report_is_cut_to_the_bounds_as_in_the_auction():
    result = held(Agent("B", likes("b", 2.0), report_cap=2.5), Agent("C", likes("c", 1.0)))
    told = misreport(result, "B", 100.0 * result.rewards[0])
    assert max(told.report) == 2.5
    assert max(best_response(result, "B").report) <= 2.5


@pytest.mark.parametrize("report", [[1.0], [], 3.0, "high", [1.0] * 8 + [np.nan], [["x"]], [1.0] * 8 + [np.inf]])
def test_a_report_that_is_not_one_number_per_candidate_is_refused(report):
    result = held(n_candidates=9, model=MarkovChatModel(length=6))
    assert len(result.candidates) == 9
    with pytest.raises(ConfigurationError, match="report must be 9 finite numbers, one per candidate, got"):
        misreport(result, "B", report)


def test_what_the_rule_refuses_is_refused():
    result = held(payment_rule="proportional")
    with pytest.raises(RewardError, match="at least 0"):
        misreport(result, "B", -1.0 - result.rewards[0])


def test_an_agent_that_did_not_take_part_is_named():
    for of in (lambda: misreport(held(), "D", [1.0]), lambda: best_response(held(), "D")):
        with pytest.raises(ConfigurationError, match=r"'D' did not take part in .*; 'B', 'C' did\."):
            of()
    with pytest.raises(ConfigurationError, match="seed must be"):
        best_response(held(), "B", seed=-1)


@pytest.mark.parametrize(("rule", "tau"), [*product(PAYMENT_RULES, [1.0]), ("influence", 0.2), ("expected", 50.0)])
def test_the_search_for_a_better_report_ends_at_the_truth(rule, tau):
    firm = [Agent("B", likes("b", 2.0), owner="Firm"), Agent("A", likes("a", 1.0), owner="Firm")]
    result = held(*firm, Agent("C", likes("c", 1.0)), payment_rule=rule, tau=tau, n_candidates=6)
    for i, agent in enumerate(result.agents):
        best, span = best_response(result, agent.name), np.ptp(result.rewards[i])
        assert -1e-6 * span <= best.gain <= 1e-9 * span
        error = np.array(best.report) - result.rewards[i]
        likely = best.probabilities > 1e-3
        assert np.ptp(error[likely]) <= 0.05 * span


def test_the_search_finds_a_gain_where_there_is_one():
    house = Agent("House", likes("b", 1.0), pays=False, report_cap=4.0)
    result = held(house, Agent("C", likes("c", 1.0)))
    best = best_response(result, "House")
    assert best.gain > 0.1
    assert best.expected_payment == 0.0
