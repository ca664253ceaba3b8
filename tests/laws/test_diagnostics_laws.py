"""Diagnostics follow their definitions, and k-hat agrees with arviz."""

import warnings

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_auction_chain.mechanism import pareto_k_hat, settle


@st.composite
def merged_auctions(draw):
    """Return an auction over merged replies, the number of draws of each, and the same auction over single draws."""
    n, m = draw(st.integers(0, 3)), draw(st.integers(1, 16))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rewards, tau = rng.normal(size=(n, m)), draw(st.sampled_from([0.05, 1.0, 30.0]))
    draws = rng.integers(1, 5, size=m)
    each = rng.normal(scale=draw(st.sampled_from([0.0, 0.5, 3.0])), size=m)
    each[(rng.random(m) < 0.2) & (np.arange(m) > 0)] = -np.inf
    weights = np.array([np.logaddexp.reduce([weight] * count) for weight, count in zip(each, draws, strict=True)])
    return (rewards, weights), draws, (rewards.repeat(draws, axis=1), each.repeat(draws)), tau


@given(merged_auctions())
@settings(deadline=None)
def test_merging_equal_replies_changes_nothing_but_their_number(auctions):
    merged, draws, split, tau = auctions
    together, apart = settle(*merged, draws=draws, tau=tau, seed=1), settle(*split, tau=tau, seed=1)
    np.testing.assert_allclose(together.expected_payments, apart.expected_payments, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(together.contributions, apart.contributions, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(together.influences, apart.influences, rtol=1e-9, atol=1e-11)
    merged_diagnostics, diagnostics = together.diagnostics, apart.diagnostics
    assert merged_diagnostics.ess_weights == pytest.approx(diagnostics.ess_weights, rel=1e-12)
    assert merged_diagnostics.largest_share == pytest.approx(diagnostics.largest_share, rel=1e-12)
    assert merged_diagnostics.log_normaliser == pytest.approx(diagnostics.log_normaliser, rel=1e-11, abs=1e-11)
    assert (merged_diagnostics.k_hat is None) == (diagnostics.k_hat is None)
    if diagnostics.k_hat is not None:
        assert merged_diagnostics.k_hat == pytest.approx(diagnostics.k_hat, rel=1e-6, abs=1e-6)


@given(merged_auctions(), st.sampled_from([0.0, 1e6]))
@settings(deadline=None)
def test_the_log_normaliser_is_tau_times_the_log_of_the_mean_weight_and_reward(auctions, constant):
    (rewards, weights), draws, _, tau = auctions
    rewards = rewards + constant
    for counts in (None, draws):
        outcome = settle(rewards, weights, draws=counts, tau=tau, seed=1)
        with mpmath.workdps(60):
            terms = [
                mpmath.exp(mpmath.mpf(weight) + sum(map(mpmath.mpf, column)) / mpmath.mpf(tau))
                for weight, column in zip(weights, rewards.T, strict=True)
                if np.isfinite(weight)
            ]
            number = len(weights) if counts is None else int(counts.sum())
            normaliser = float(mpmath.mpf(tau) * mpmath.log(sum(terms) / number))
        assert outcome.diagnostics.log_normaliser == pytest.approx(normaliser, rel=1e-13, abs=1e-12)


def test_the_log_normaliser_survives_rewards_of_1e6_tau():
    outcome = settle([[1e6, 0.0]], [0.0, -np.inf], tau=1.0, seed=1)
    assert outcome.diagnostics.log_normaliser == pytest.approx(1e6 - np.log(2), rel=1e-15)


WEIGHTS = {
    "normal": lambda rng, m: rng.normal(scale=rng.choice([0.1, 1.0, 3.0, 10.0]), size=m),
    "never drawn": lambda rng, m: np.where(rng.random(m) < 0.4, -np.inf, rng.normal(size=m)),
    "ties": lambda rng, m: np.round(20.0 * rng.normal(size=m)) / 10.0,
    "heavy tails": lambda rng, m: rng.standard_t(2, size=m),
}


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("size", [25, 60, 64, 225, 226, 1000])
def test_k_hat_agrees_with_arviz(size, kind):
    from arviz_stats.base import array_stats

    compared = 0
    for seed in range(12):
        weights = WEIGHTS[kind](np.random.default_rng([size, seed]), size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                smoothed, their_k = array_stats.psislw(-weights)
            except ValueError:  # a tail of equal weights
                assert pareto_k_hat(weights) is None
                continue
        if np.isfinite(their_k) and not np.isnan(smoothed).any():
            assert pareto_k_hat(weights) == pytest.approx(float(their_k), abs=1e-6)
            compared += 1
    assert compared > 0


@pytest.mark.parametrize("scale", [5, 20, 100, 300, 1000, 1e4, 1e99])
@pytest.mark.parametrize("size", [25, 32, 128, 500])
def test_wide_weights_have_a_k_hat_above_its_limit_as_long_as_five_of_the_tail_do_not_underflow(scale, size):
    for seed in range(10):
        weights = np.random.default_rng([size, seed]).normal(scale=scale, size=size)
        k_hat = settle(np.ones((1, size)), weights, tau=1.0, seed=1).diagnostics.k_hat
        ascending = np.sort(np.exp(weights - weights.max()))
        length = size // 5 if size <= 225 else int(3 * np.sqrt(size))
        usable = np.sum(ascending[-length:] - ascending[-length - 1] > 1e-300)
        assert (k_hat is None) == (usable < 5)
        if k_hat is not None:
            assert np.isfinite(k_hat)
            assert k_hat > 0.7 or scale < 20
