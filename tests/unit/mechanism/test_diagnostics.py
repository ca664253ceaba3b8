"""Diagnostics of small cases, by hand."""

import tracemalloc

import numpy as np
import pytest

from llm_auction_chain.mechanism import effective_sample_size, pareto_k_hat, settle


def test_the_effective_sample_size_counts_equal_weights():
    assert effective_sample_size(np.array([0.0, 0.0, -np.inf])) == pytest.approx(2.0)
    assert effective_sample_size(np.log([1.0, 2.0, 3.0])) == pytest.approx(36 / 14)
    assert effective_sample_size([1000.0, 0.0]) == pytest.approx(1.0)


def test_diagnostics_are_about_draws():
    diagnostics = settle([[0.0, 1.0]], np.log([3.0, 1.0]), draws=[3, 1], tau=1.0, seed=1).diagnostics
    assert diagnostics.ess_weights == pytest.approx(4.0)
    assert diagnostics.largest_share == pytest.approx(0.25)
    assert diagnostics.log_normaliser == pytest.approx(np.log((3.0 + np.e) / 4))
    p = np.array([3.0, np.e]) / (3.0 + np.e)
    assert diagnostics.ess_probabilities == pytest.approx(1 / (p @ p))


@pytest.mark.parametrize("seed", range(40))
def test_candidates_that_stand_for_several_draws_have_the_diagnostics_of_those_draws(seed):
    rng = np.random.default_rng(seed)
    draws = rng.integers(1, rng.integers(2, 60), size=rng.integers(1, 50))
    weights, rewards = rng.normal(size=len(draws)) * rng.choice([0.1, 1.0, 3.0]), rng.normal(size=(1, len(draws)))
    weights = weights.round(rng.integers(0, 3))  # some are equal
    each = settle(np.repeat(rewards, draws, axis=1), np.repeat(weights, draws), tau=1.0, seed=1).diagnostics
    merged = settle(rewards, weights + np.log(draws), draws=draws, tau=1.0, seed=1).diagnostics
    for name in ("ess_weights", "largest_share", "log_normaliser", "k_hat"):
        expected = getattr(each, name)
        assert getattr(merged, name) == (None if expected is None else pytest.approx(expected, rel=1e-9)), name


def test_memory_does_not_depend_on_the_number_of_draws():
    weights = np.linspace(0.0, 3.0, 1000)
    tracemalloc.start()
    diagnostics = settle(np.zeros((1, 1000)), weights, draws=[2**31 - 1] * 1000, tau=1.0, seed=1).diagnostics
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10_000_000
    assert diagnostics.ess_weights > 2**31


@pytest.mark.parametrize("weights", [
    np.arange(24.0), np.zeros(100), 1e-15 * np.arange(100.0), -1000.0 * np.arange(100.0),
    np.array([0.0, -0.1, -0.2, -0.3] + [-1.0] * 46), np.array([0.0] * 10 + [-1.0] * 40),
])  # fmt: skip
def test_k_hat_is_none_if_no_tail_can_be_fitted(weights):
    assert pareto_k_hat(weights) is None


def test_25_draws_and_five_weights_that_differ_have_a_k_hat():
    assert pareto_k_hat(np.arange(25.0)) == pytest.approx(0.753916, abs=1e-6)  # as arviz_stats 1.x
    assert pareto_k_hat(np.array([0.0, -0.1, -0.2, -0.3, -0.4] + [-1.0] * 45)) is not None


def test_an_excess_whose_reciprocal_overflows_counts_as_underflow():
    tail = [0.0, -135.0, -320.0, -560.0]
    assert pareto_k_hat(np.array([*tail, np.log(1e-310)] + [-2000.0] * 27)) is None
    k_hat = pareto_k_hat(np.array([*tail, np.log(1e-290)] + [-2000.0] * 27))
    assert k_hat is not None
    assert 0.7 < k_hat < np.inf
