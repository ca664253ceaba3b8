"""Each rule on a case worked by hand, and the laws that hold for every case."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llm_auction_chain.errors import RewardError
from llm_auction_chain.experiments.baselines import (
    CONTEXT_PROMPT,
    REFERENCE,
    Candidates,
    mosaic,
)
from llm_auction_chain.mechanism import PAYMENT_RULES, settle

LOG2 = np.log(2.0)


def bed(rewards, *, log_weights=None, sources=None):
    m = len(rewards[0])
    return Candidates(
        log_weights=np.zeros(m) if log_weights is None else log_weights,
        rewards=rewards,
        log_reference=np.full(m, np.nan),
        sources=np.full(m, REFERENCE) if sources is None else sources,
    )


@st.composite
def beds(draw, least=0.0):
    """Return candidates of two agents, drawn from each one's own policy, the reference and the context prompt."""
    m = draw(st.integers(4, 8))
    whole = draw(st.booleans())  # whole numbers tie
    number = st.integers(int(least), 3).map(float) if whole else st.floats(least, 3.0, allow_subnormal=False)
    return Candidates(
        log_weights=draw(arrays(float, m, elements=st.sampled_from([0.0, -1.3, 0.4]))),
        rewards=draw(arrays(float, (2, m), elements=number)),
        log_reference=np.full(m, np.nan),
        sources=[0, 1, REFERENCE, CONTEXT_PROMPT, *draw(st.lists(st.integers(-2, 1), min_size=m - 4, max_size=m - 4))],
    )


# --- ours

# Two replies, lw = (log 2, 0), reports (0, log 2) of both agents, tau 1: p is proportional to (2, 1 * 2 * 2), (1/3, 2/3).
# Without either agent it is (2, 2): (1/2, 1/2). T = KL(p || p_-i) = 1/3 log(2/3) + 2/3 log(4/3) = 5/3 log 2 - log 3.
TWO = bed([[0.0, LOG2], [0.0, LOG2]], log_weights=[LOG2, 0.0])
T = 5 / 3 * LOG2 - np.log(3.0)


@pytest.mark.parametrize(
    ("payment_rule", "first", "second"),
    [
        ("expected", T, T),
        # in proportion to the report, whose mean is 2/3 log 2
        ("proportional", 0.0, 1.5 * T),
        # p over p_-i is (2/3, 4/3)
        ("influence", np.log(2 / 3), np.log(4 / 3)),
        # nothing for the reply that the agent did not raise; so the other costs T / (2/3)
        ("pivot", 0.0, 1.5 * T),
    ],
)
def test_mosaic_charges_the_payment_rule_for_each_reply(payment_rule, first, second):
    outcome = mosaic(payment_rule, tau=1.0)(TWO, TWO.rewards)
    assert outcome.probabilities == pytest.approx([1 / 3, 2 / 3])
    assert outcome.payments == pytest.approx(np.array([[first, second]] * 2))
    assert outcome.revenue() == pytest.approx(2 * T)


@settings(max_examples=60)
@given(beds(), st.sampled_from(PAYMENT_RULES), st.sampled_from([0.02, 1.0, 30.0]))
def test_mosaic_has_the_distribution_and_the_mean_payments_of_settle(candidates, payment_rule, tau):
    outcome = mosaic(payment_rule, tau=tau)(candidates, candidates.rewards)
    settled = settle(candidates.rewards, candidates.log_weights, tau=tau, seed=0)
    assert np.array_equal(outcome.probabilities, settled.probabilities)
    assert outcome.expected_payments() == pytest.approx(settled.expected_payments, abs=1e-12)
    assert outcome.utilities(candidates.rewards) == pytest.approx(settled.contributions, abs=1e-12)


def test_the_mean_pivot_payment_given_the_reply_is_that_of_many_draws():
    rng = np.random.default_rng(3)
    rewards, weights = rng.normal(size=(2, 3)), rng.normal(size=3)
    exact = mosaic("pivot", tau=0.7)(bed(rewards, log_weights=weights), rewards)
    draws = [settle(rewards, weights, tau=0.7, payment_rule="pivot", seed=seed) for seed in range(6000)]
    for j in range(3):
        paid = np.array([drawn.payments for drawn in draws if drawn.winner == j])
        error = paid.std(axis=0) / np.sqrt(len(paid))
        assert np.all(np.abs(paid.mean(axis=0) - exact.payments[:, j]) <= 4 * error + 1e-12)


@pytest.mark.parametrize("tau", [1e-9, 1e-3, 1e3, 1e9])
def test_the_mean_pivot_payment_neither_overflows_nor_loses_its_mean(tau):
    rewards = np.array([[0.0, 5.0, 2.0, 2.0], [3.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    candidates = bed(rewards, log_weights=[0.0, -np.inf, -800.0, 0.3])
    outcome = mosaic("pivot", tau=tau)(candidates, rewards)
    settled = settle(rewards, candidates.log_weights, tau=tau, seed=0)
    assert np.isfinite(outcome.payments).all()
    assert np.all(outcome.payments >= 0)
    assert outcome.expected_payments() == pytest.approx(settled.expected_payments, abs=1e-12)


def test_mosaic_refuses_negative_reports_under_proportional_as_the_auction_does():
    candidates = bed([[-1.0, 1.0]])
    with pytest.raises(RewardError, match="at least 0"):
        mosaic("proportional", tau=1.0)(candidates, candidates.rewards)
