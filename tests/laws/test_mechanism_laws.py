"""Every identity of docs/mechanism.md, on random and on extreme auctions."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llm_auction_chain.errors import ConfigurationError, RewardError
from llm_auction_chain.mechanism import PAYMENT_RULES, effective_sample_size, pareto_smooth, settle

FLOATS = st.floats(-20, 20, allow_subnormal=False)


@st.composite
def auctions(draw, least=1):
    n, m = draw(st.integers(least, 4)), draw(st.integers(1, 6))
    rewards = draw(arrays(float, (n, m), elements=FLOATS))
    weights = draw(arrays(float, m, elements=st.one_of(st.floats(-5, 5), st.just(-np.inf))))
    if not np.isfinite(weights).any():
        weights[0] = 0.0
    return rewards, weights, draw(st.sampled_from([0.05, 1.0, 7.0]))


@st.composite
def extreme_auctions(draw):
    n, m = draw(st.integers(0, 4)), draw(st.integers(1, 6))
    scale = draw(st.sampled_from([1e-9, 1.0, 700.0, 1e6, 1e99]))
    rewards = scale * draw(arrays(float, (n, m), elements=st.floats(-1, 1)))
    weights = draw(arrays(float, m, elements=st.sampled_from([0.0, -1.0, -800.0, 1e5, -np.inf])))
    if not np.isfinite(weights).any():
        weights[-1] = 3.0
    return rewards, weights, draw(st.sampled_from([1e-100, 1e-9, 1.0, 1e9, 1e100]))


def exact(rewards, weights, tau):
    """Law, counterfactual laws, payments and contributions by 120 digits, straight from the definitions."""
    with mpmath.workdps(120):
        live = [j for j in range(len(weights)) if np.isfinite(weights[j])]

        def log_law(rows):
            scores = {
                j: mpmath.mpf(weights[j]) + sum(mpmath.mpf(row[j]) for row in rows) / mpmath.mpf(tau) for j in live
            }
            top = max(scores.values())
            normaliser = top + mpmath.log(sum(mpmath.exp(score - top) for score in scores.values()))
            return {j: score - normaliser for j, score in scores.items()}

        law = log_law(list(rewards))
        without = [log_law([row for k, row in enumerate(rewards) if k != i]) for i in range(len(rewards))]
        payments = [mpmath.mpf(tau) * sum(mpmath.exp(law[j]) * (law[j] - other[j]) for j in live) for other in without]
        values = [sum(mpmath.exp(law[j]) * mpmath.mpf(row[j]) for j in live) for row in rewards]
        contributions = [float(value - payment) for value, payment in zip(values, payments, strict=True)]

        def dense(log_law_):
            return [float(mpmath.exp(log_law_[j])) if j in log_law_ else 0.0 for j in range(len(weights))]

        return dense(law), [dense(other) for other in without], [float(t) for t in payments], contributions


@given(auctions())
@settings(deadline=None, max_examples=150)
def test_laws_payments_and_contributions_are_those_of_the_definitions(auction):
    rewards, weights, tau = auction
    outcome = settle(rewards, weights, tau=tau, seed=1)
    law, without, payments, contributions = exact(rewards, weights, tau)
    scale = max(1.0, np.abs(rewards).max() / tau)
    np.testing.assert_allclose(outcome.probabilities, law, rtol=1e-13 * scale * 50, atol=1e-300)
    np.testing.assert_allclose(outcome.counterfactuals, without, rtol=1e-13 * scale * 50, atol=1e-90)
    np.testing.assert_allclose(outcome.expected_payments, payments, rtol=1e-9, atol=1e-25)
    np.testing.assert_allclose(outcome.contributions, contributions, rtol=1e-9, atol=1e-12)


@given(auctions())
def test_payments_lie_between_nothing_and_the_spread_of_the_report(auction):
    rewards, weights, tau = auction
    live = rewards[:, np.isfinite(weights)]
    outcome = settle(rewards, weights, tau=tau, seed=1)
    assert (outcome.expected_payments >= 0).all()
    assert (outcome.expected_payments <= np.ptp(live, axis=1) * (1 + 1e-12)).all()
    values_without = (outcome.counterfactuals * rewards).sum(axis=1)
    assert (outcome.contributions >= values_without - 1e-9).all()


@given(auctions(), arrays(float, 6, elements=FLOATS))
@settings(deadline=None)
def test_a_misreport_loses_exactly_tau_times_the_divergence_it_causes(auction, lie):
    truth, weights, tau = auction
    lied = truth.copy()
    lied[0] = lie[: truth.shape[1]]
    honest, dishonest = settle(truth, weights, tau=tau, seed=1), settle(lied, weights, tau=tau, seed=1)
    gain = float(dishonest.probabilities @ truth[0]) - dishonest.expected_payments[0] - honest.contributions[0]
    live = np.isfinite(weights)
    with mpmath.workdps(60):
        log_laws = []
        for rows in (lied, truth):
            scores = [mpmath.mpf(w) + sum(map(mpmath.mpf, c)) / mpmath.mpf(tau)
                      for w, c in zip(weights[live], rows[:, live].T, strict=True)]  # fmt: skip
            normaliser = mpmath.log(sum(map(mpmath.exp, scores)))
            log_laws.append([score - normaliser for score in scores])
        divergence = float(sum(mpmath.exp(a) * (a - b) for a, b in zip(*log_laws, strict=True)))
    assert gain == pytest.approx(-tau * divergence, rel=1e-9, abs=1e-10)
    assert gain <= 1e-10


@given(auctions(), st.floats(-1e3, 1e3))
def test_adding_a_constant_to_a_report_changes_no_payment(auction, constant):
    rewards, weights, tau = auction
    shifted = rewards.copy()
    shifted[0] += constant
    before, after = settle(rewards, weights, tau=tau, seed=1), settle(shifted, weights, tau=tau, seed=1)
    np.testing.assert_allclose(after.expected_payments, before.expected_payments, rtol=1e-6, atol=1e-9)


@given(auctions(), st.floats(-50, 50))
def test_a_report_that_is_constant_pays_nothing(auction, constant):
    rewards, weights, tau = auction
    rewards[0] = constant
    for rule in PAYMENT_RULES:
        if rule != "proportional":
            outcome = settle(rewards, weights, tau=tau, payment_rule=rule, seed=3)
            assert outcome.payments[0] == pytest.approx(0.0, abs=1e-9)
    assert settle(rewards, weights, tau=tau, seed=3).expected_payments[0] == 0.0


@given(auctions(), st.randoms(use_true_random=False))
def test_the_order_of_agents_and_of_candidates_does_not_matter(auction, random):
    rewards, weights, tau = auction
    rows, columns = list(range(rewards.shape[0])), list(range(rewards.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    before = settle(rewards, weights, tau=tau, seed=1)
    after = settle(rewards[rows][:, columns], weights[columns], tau=tau, seed=1)
    np.testing.assert_allclose(after.expected_payments, before.expected_payments[rows], rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(after.probabilities, before.probabilities[columns], rtol=1e-9, atol=1e-300)


@given(auctions(), st.floats(-100, 100))
def test_shifting_all_log_weights_changes_nothing(auction, shift):
    rewards, weights, tau = auction
    before, after = settle(rewards, weights, tau=tau, seed=1), settle(rewards, weights + shift, tau=tau, seed=1)
    np.testing.assert_allclose(after.expected_payments, before.expected_payments, rtol=1e-8, atol=1e-11)


@given(auctions())
def test_merging_identical_candidates_changes_no_payment(auction):
    rewards, weights, tau = auction
    doubled = np.hstack([rewards, rewards[:, :1]])
    split = np.append(weights, weights[0] - math.log(2))
    split[0] -= math.log(2)
    before, after = settle(rewards, weights, tau=tau, seed=1), settle(doubled, split, tau=tau, seed=1)
    np.testing.assert_allclose(after.expected_payments, before.expected_payments, rtol=1e-8, atol=1e-11)


@given(extreme_auctions())
@settings(max_examples=300)
def test_extreme_numbers_neither_overflow_nor_give_nan(auction):
    rewards, weights, tau = auction
    for rule in ("expected", "influence", "pivot"):
        outcome = settle(rewards, weights, tau=tau, payment_rule=rule, seed=1)
        for values in (outcome.probabilities, outcome.counterfactuals, outcome.payments, outcome.contributions):
            assert np.isfinite(values).all()
        assert (outcome.expected_payments >= 0).all()
        assert outcome.probabilities.sum() == pytest.approx(1.0)
        assert outcome.probabilities[np.isneginf(weights)].sum() == 0.0
        assert np.isfinite(weights[outcome.winner])
        np.testing.assert_allclose(outcome.counterfactuals.sum(axis=1), 1.0, rtol=1e-12)


def test_payments_survive_the_underflow_of_p():
    """Without agent 0 candidate 0 wins; with it, p_0 is exp(-2000): the whole payment stands in q alone."""
    rewards = np.array([[0.0, 3000.0], [1000.0, 0.0]])
    outcome = settle(rewards, tau=1.0, seed=1)
    assert outcome.probabilities[0] == 0.0
    np.testing.assert_allclose(outcome.expected_payments, [1000.0, 0.0], rtol=1e-12, atol=1e-300)


@given(auctions())
def test_a_small_tau_is_the_second_price(auction):
    rewards, _, _ = auction
    rewards = np.round(rewards)
    outcome = settle(rewards, tau=1e-7, seed=1)
    welfare = rewards.sum(axis=0)
    for i, report in enumerate(rewards):
        others = welfare - report
        clarke = others.max() - others[np.isclose(welfare, welfare.max())].max()
        if np.isclose(welfare, welfare.max()).sum() == 1:
            assert outcome.expected_payments[i] == pytest.approx(clarke, abs=1e-5)


def test_a_large_tau_is_the_reference():
    outcome = settle([[1.0, 5.0, -3.0]], [0.0, 1.0, 2.0], tau=1e9, seed=1)
    np.testing.assert_allclose(outcome.probabilities, np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum(), rtol=1e-8)
    assert outcome.revenue < 1e-7


@pytest.mark.parametrize("rule", PAYMENT_RULES)
def test_every_rule_charges_the_expected_payment_on_average(rule):
    """Mean of 20,000 draws within 5 standard errors: fails by chance with probability below 1e-5."""
    rewards = np.array([[0.0, 1.0, 2.0, 0.5], [1.5, 0.0, 0.2, 0.9]])
    weights = np.array([0.0, 0.3, -1.0, 0.1])
    rng = np.random.default_rng(5)
    outcomes = [settle(rewards, weights, tau=0.7, payment_rule=rule, rng=rng) for _ in range(20_000)]
    paid = np.array([outcome.payments for outcome in outcomes])
    error = paid.std(axis=0) / math.sqrt(len(paid)) + 1e-12
    assert (np.abs(paid.mean(axis=0) - outcomes[0].expected_payments) < 5 * error).all()


@given(auctions(), st.integers(0, 2**32))
def test_one_seed_draws_one_winner_under_every_rule(auction, seed):
    rewards, weights, tau = auction
    rewards = np.abs(rewards)
    winners = {settle(rewards, weights, tau=tau, payment_rule=rule, seed=seed).winner for rule in PAYMENT_RULES}
    assert len(winners) == 1


@given(auctions(), st.integers(0, 2**32))
def test_proportional_and_pivot_charge_at_most_the_drawn_value(auction, seed):
    rewards, weights, tau = auction
    rewards = np.abs(rewards)
    for rule in ("proportional", "pivot"):
        outcome = settle(rewards, weights, tau=tau, payment_rule=rule, seed=seed)
        assert (outcome.payments >= 0).all()
        assert (outcome.payments <= rewards[:, outcome.winner] * (1 + 1e-12)).all()


@given(auctions(), arrays(float, 6, elements=FLOATS), st.integers(0, 2**32))
def test_pivot_is_truthful_for_every_noise_draw(auction, lie, seed):
    truth, weights, tau = auction
    lied = truth.copy()
    lied[0] = lie[: truth.shape[1]]
    honest = settle(truth, weights, tau=tau, payment_rule="pivot", seed=seed)
    dishonest = settle(lied, weights, tau=tau, payment_rule="pivot", seed=seed)
    gain = (truth[0, dishonest.winner] - dishonest.payments[0]) - (truth[0, honest.winner] - honest.payments[0])
    assert gain <= 1e-9


def test_influence_leaves_every_agent_its_contribution():
    rewards = np.random.default_rng(1).normal(size=(3, 8))
    outcome = settle(rewards, tau=1.0, payment_rule="influence", seed=4)
    np.testing.assert_allclose(rewards[:, outcome.winner] - outcome.payments, outcome.contributions)


@given(auctions(least=2))
def test_agents_of_one_owner_pay_what_their_summed_report_would(auction):
    rewards, weights, tau = auction
    owners = ["one"] * 2 + [str(k) for k in range(len(rewards) - 2)]
    together = settle(rewards, weights, tau=tau, owners=owners, seed=2)
    merged = settle(np.vstack([rewards[:2].sum(axis=0), rewards[2:]]), weights, tau=tau, seed=2)
    assert together.expected_payments[:2].sum() == pytest.approx(merged.expected_payments[0], rel=1e-9, abs=1e-11)
    assert together.contributions[:2].sum() == pytest.approx(merged.contributions[0], rel=1e-8, abs=1e-8)
    assert (together.expected_payments >= 0).all()


def test_a_thousand_agents_settle():
    rewards = np.random.default_rng(0).random((1000, 32))
    outcome = settle(rewards, tau=1.0, seed=1)
    assert outcome.payments.shape == (1000,)
    assert outcome.revenue == pytest.approx(outcome.payments.sum())


def test_no_agents_leave_the_reference():
    outcome = settle(np.empty((0, 4)), tau=1.0, seed=1)
    assert outcome.probabilities.tolist() == [0.25] * 4
    assert outcome.revenue == 0.0


def test_results_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        settle([[1.0, 2.0]], tau=1.0, seed=1).probabilities[0] = 1.0


@pytest.mark.parametrize("size", [25, 60, 225, 226, 1000])
def test_k_hat_and_smoothing_agree_with_arviz(size):
    from arviz_stats.base import array_stats

    rng = np.random.default_rng(size)
    for scale in (0.1, 1.0, 3.0):
        weights = rng.normal(scale=scale, size=size)
        smoothed, k_hat = pareto_smooth(weights)
        theirs, their_k = array_stats.psislw(-weights)
        assert k_hat == pytest.approx(float(their_k), abs=1e-6)
        np.testing.assert_allclose(smoothed, theirs, atol=1e-6)


def test_k_hat_is_none_where_no_tail_can_be_fitted():
    assert pareto_smooth(np.arange(24.0))[1] is None
    assert pareto_smooth(np.zeros(100))[1] is None


def test_the_effective_sample_size_counts_equal_weights():
    assert effective_sample_size(np.array([0.0, 0.0, -np.inf])) == pytest.approx(2.0)


@pytest.mark.parametrize("tau", [0, -1, math.nan, math.inf, None, "1", True])
def test_a_tau_that_is_not_a_finite_positive_number_is_refused(tau):
    with pytest.raises(ConfigurationError, match="tau"):
        settle([[1.0]], tau=tau)


@pytest.mark.parametrize(
    "rewards",
    [[[math.nan]], [[math.inf]], [["1"]], [[None]], [[True]], [1.0], [[[1.0]]], [[1.0], [1.0, 2.0]], np.empty((2, 0)),
     [[1e200]], [[1j]]],
)  # fmt: skip
def test_rewards_that_are_no_matrix_of_finite_numbers_are_refused(rewards):
    with pytest.raises(RewardError):
        settle(rewards, tau=1.0)


@pytest.mark.parametrize("weights", [[0.0], [math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf], ["a", "b"]])
def test_log_weights_that_no_draw_can_follow_are_refused(weights):
    with pytest.raises(RewardError, match=r"log_weights?"):
        settle([[1.0, 2.0]], weights, tau=1.0)


def test_other_bad_settings_are_refused():
    with pytest.raises(ConfigurationError, match="payment_rule"):
        settle([[1.0]], tau=1.0, payment_rule="free")
    with pytest.raises(ConfigurationError, match="owners"):
        settle([[1.0]], tau=1.0, owners=["a", "b"])
    with pytest.raises(ConfigurationError, match="not both"):
        settle([[1.0]], tau=1.0, seed=1, rng=np.random.default_rng(1))
    with pytest.raises(ConfigurationError, match="seed"):
        settle([[1.0]], tau=1.0, seed=-1)
    with pytest.raises(RewardError, match="proportional"):
        settle([[-1.0, 1.0]], tau=1.0, payment_rule="proportional")
