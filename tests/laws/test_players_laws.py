"""Owners, agents that never pay, and the winner without each agent."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llm_auction_chain import ConfigurationError
from llm_auction_chain.mechanism import PAYMENT_RULES, settle

FLOATS = st.floats(0, 20, allow_subnormal=False)
RULES = st.sampled_from(PAYMENT_RULES)
SEEDS = st.integers(0, 2**32)


@st.composite
def auctions(draw):
    n, m = draw(st.integers(2, 4)), draw(st.integers(1, 6))
    rewards = draw(arrays(float, (n, m), elements=FLOATS))
    weights = draw(arrays(float, m, elements=st.one_of(st.floats(-5, 5), st.just(-np.inf))))
    if not np.isfinite(weights).any():
        weights[0] = 0.0
    return rewards, weights, draw(st.sampled_from([0.05, 1.0, 7.0]))


def owner_pays(outcome, agents):
    return outcome.payments[agents].sum(), outcome.expected_payments[agents].sum()


@given(auctions(), RULES, SEEDS, st.floats(-20, 0))
def test_the_others_pay_the_clarke_payments_against_the_welfare_that_counts_the_user(auction, rule, seed, dislike):
    """A user that never pays is equivalent to a reference model with log-weights `lw + r_user / tau`."""
    rewards, weights, tau = auction
    user = rewards[0] + dislike
    with_user = settle(
        np.vstack([user, rewards[1:]]), weights, tau=tau, payment_rule=rule, seed=seed,
        pays=[False] + [True] * (len(rewards) - 1),
    )  # fmt: skip
    folded = settle(rewards[1:], weights + user / tau, tau=tau, payment_rule=rule, seed=seed)
    assert with_user.winner == folded.winner
    for name in ("payments", "expected_payments", "contributions"):
        assert getattr(with_user, name)[1:] == pytest.approx(getattr(folded, name), rel=1e-9, abs=1e-9)
    assert with_user.probabilities == pytest.approx(folded.probabilities, rel=1e-9, abs=1e-300)
    assert with_user.counterfactuals[1:] == pytest.approx(folded.counterfactuals, rel=1e-9, abs=1e-300)


@given(auctions(), RULES, SEEDS)
def test_who_never_pays_is_charged_nothing_and_contributes_what_it_would_if_it_paid(auction, rule, seed):
    rewards, weights, tau = auction
    settings = {"tau": tau, "payment_rule": rule, "seed": seed}
    free = settle(rewards, weights, pays=np.arange(len(rewards)) > 0, **settings)
    paid = settle(rewards, weights, **settings)
    assert (free.payments[0], free.expected_payments[0]) == (0.0, 0.0)
    assert free.contributions.tolist() == paid.contributions.tolist()
    assert free.payments[1:].tolist() == paid.payments[1:].tolist()
    assert free.revenue == pytest.approx(paid.payments[1:].sum(), rel=1e-12, abs=1e-12)


def test_agents_of_one_owner_all_pay_or_none_does():
    rewards = [[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]]
    none = settle(rewards, tau=1.0, owners=["user", "user", "shop"], pays=[False, False, True], seed=1)
    assert none.payments[:2].tolist() == [0.0, 0.0]
    assert none.payments[2] > 0
    with pytest.raises(ConfigurationError, match="another owner"):
        settle(rewards, tau=1.0, owners=["user", "user", "shop"], pays=[False, True, True])


@pytest.mark.parametrize("pays", [[True], [1, 0], "ab", [[True, False]], [None, None]])
def test_pays_is_one_flag_per_agent(pays):
    with pytest.raises(ConfigurationError, match="pays must be"):
        settle([[0.0, 1.0], [1.0, 0.0]], tau=1.0, pays=pays)


@given(auctions(), SEEDS)
def test_without_an_agent_the_same_noise_draws_what_an_auction_without_it_draws(auction, seed):
    rewards, weights, tau = auction
    outcome = settle(rewards, weights, tau=tau, seed=seed)
    for i in range(len(rewards)):
        rest = settle(np.delete(rewards, i, axis=0), weights, tau=tau, seed=seed)
        assert outcome.winners_without[i] == rest.winner


@given(auctions(), RULES, SEEDS, st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_splitting_a_report_inside_one_owner_changes_nothing(auction, rule, seed, cuts):
    rewards, weights, tau = auction
    shares = np.array([*cuts, 1.0 - sum(cuts)]) if sum(cuts) <= 1 else np.array(cuts) / sum(cuts)
    split = np.vstack([shares[:, None] * rewards[0], rewards[1:]])
    owners = ["one"] * len(shares) + [str(k) for k in range(len(rewards) - 1)]
    whole = settle(rewards, weights, tau=tau, payment_rule=rule, seed=seed)
    parts = settle(split, weights, tau=tau, payment_rule=rule, seed=seed, owners=owners)
    assert parts.winner == whole.winner
    assert parts.probabilities == pytest.approx(whole.probabilities, rel=1e-9, abs=1e-300)
    assert owner_pays(parts, slice(len(shares))) == pytest.approx(
        (whole.payments[0], whole.expected_payments[0]), rel=1e-9, abs=1e-9
    )


@given(auctions(), st.integers(2, 5), st.floats(0.1, 5))
def test_cloning_or_inflating_identities_inside_one_owner_gains_nothing(auction, clones, factor):
    """The owner's gain is E_p[true value] less its payment; an exaggeration loses `tau * KL` like any misreport."""
    rewards, weights, tau = auction
    truth = settle(rewards, weights, tau=tau, seed=0)
    lie = np.vstack([np.repeat(rewards[:1] * factor, clones, axis=0), rewards[1:]])
    owners = ["one"] * clones + [str(k) for k in range(len(rewards) - 1)]
    lied = settle(lie, weights, tau=tau, seed=0, owners=owners)
    gain = truth.probabilities @ rewards[0] - truth.expected_payments[0]
    gain_of_the_lie = lied.probabilities @ rewards[0] - lied.expected_payments[:clones].sum()
    assert gain_of_the_lie <= gain + 1e-9 * (1 + abs(gain))


def test_splitting_over_owners_that_nobody_detects_drives_the_payment_to_nothing():
    """docs/concepts/truthfulness.md warns of this: one report is split into k equal ones of k owners."""
    rng = np.random.default_rng(5)
    report, others = 2 * rng.random(16), 2 * rng.random((2, 16))
    paid = []
    for k in (1, 2, 16, 256):
        outcome = settle(np.vstack([np.repeat(report[None] / k, k, axis=0), others]), tau=1.0, seed=0)
        paid.append(outcome.expected_payments[:k].sum())
    assert paid == pytest.approx([paid[0], paid[0] / 2, paid[0] / 16, paid[0] / 256], rel=0.2)
