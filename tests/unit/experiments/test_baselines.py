"""Each rule on a case worked by hand, and the laws that hold for every case."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llm_auction_chain.errors import ConfigurationError, RewardError
from llm_auction_chain.experiments.baselines import (
    BASELINES,
    CONTEXT_PROMPT,
    REFERENCE,
    Candidates,
    Outcome,
    after_policy,
    best_of_n,
    kl_to_reference,
    largest_gain,
    mosaic,
    most_kl,
    no_auction,
    on_subsets,
    rules_at,
    segment_allocation,
    segment_auction,
    segment_prices,
    soft_best_of_n,
    sponsors_in_prompt,
    vcg,
)
from llm_auction_chain.mechanism import PAYMENT_RULES, settle

LOG2 = np.log(2.0)


def bed(rewards, *, log_weights=None, sources=None):
    m = np.shape(rewards)[1]
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

# Two replies, lw = (log 2, 0), reports (0, log 2) of both agents, tau 1: p is proportional to (2, 1 * 2 * 2).
# That is (1/3, 2/3), and (1/2, 1/2) without either agent. T = 1/3 log(2/3) + 2/3 log(4/3) = 5/3 log 2 - log 3.
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
    draws = [settle(rewards, weights, tau=0.7, payment_rule="pivot", seed=seed) for seed in range(3000)]
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


# --- others'


def test_no_auction_weighs_the_candidates_by_the_reference_and_charges_nothing():
    outcome = no_auction(bed([[4.0, 0.0]], log_weights=[np.log(3.0), 0.0]), np.array([[9.0, 9.0]]))
    assert outcome.probabilities == pytest.approx([0.75, 0.25])
    assert outcome.welfare([[4.0, 0.0]]) == pytest.approx(3.0)
    assert outcome.revenue() == 0.0


def test_sponsors_in_the_prompt_get_its_replies_for_nothing_whatever_they_report():
    sources = [CONTEXT_PROMPT, REFERENCE, CONTEXT_PROMPT]
    candidates = bed([[1.0, 2.0, 4.0]], sources=sources, log_weights=[-9.0, 0.0, 1.0])
    outcome = sponsors_in_prompt(candidates, candidates.rewards)
    assert outcome.probabilities.tolist() == [0.5, 0.0, 0.5]
    assert (outcome.welfare(candidates.rewards), outcome.revenue()) == (2.5, 0.0)


# Sums 2, 3, 2: the second reply is returned. The means under the reference are 4/3 and 1.
MENU = bed([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])


@pytest.mark.parametrize(("price", "paid"), [("first price", [3.0, 0.0]), ("pay your bid", [3.0 - 4 / 3, 0.0])])
def test_best_of_n_returns_the_largest_sum_at_the_report_or_at_what_it_adds(price, paid):
    outcome = best_of_n(price)(MENU, MENU.rewards)
    assert outcome.probabilities.tolist() == [0.0, 1.0, 0.0]
    assert outcome.expected_payments() == pytest.approx(paid)


@pytest.mark.parametrize("rule", [best_of_n(), vcg])
def test_ties_are_shared_as_the_reference_would_share_them(rule):
    candidates = bed([[0.3, 0.1, 0.0, 0.3], [0.0, 0.2, 0.3, 0.0]], log_weights=[0.0, np.log(2.0), 0.0, -np.inf])
    assert rule(candidates, candidates.rewards).probabilities == pytest.approx([0.25, 0.5, 0.25, 0.0])


def test_vcg_charges_what_the_others_lose():
    # Sums 2, 3.5. Without agent 0 they are 2, 0.5, so it pays 1.5; without 1 or 2 the same reply wins.
    candidates = bed([[0.0, 3.0], [2.0, 0.0], [0.0, 0.5]])
    outcome = vcg(candidates, candidates.rewards)
    assert outcome.expected_payments().tolist() == [1.5, 0.0, 0.0]
    assert outcome.utilities(candidates.rewards).tolist() == [1.5, 0.0, 0.5]


def test_vcg_counts_no_reply_that_the_reference_never_gives():
    candidates = bed([[0.0, 3.0, 0.0], [2.0, 0.0, 9.0]], log_weights=[0.0, 0.0, -np.inf])
    assert vcg(candidates, candidates.rewards).expected_payments().tolist() == [2.0, 0.0]


@settings(max_examples=40)
@given(beds())
def test_vcg_is_mosaic_with_a_tau_near_0(candidates):
    limit = mosaic(tau=1e-9)(candidates, candidates.rewards)
    outcome = vcg(candidates, candidates.rewards)
    total = np.unique(candidates.rewards.sum(axis=0))
    if np.diff(total).min(initial=1.0) > 1e-6:
        assert outcome.probabilities == pytest.approx(limit.probabilities, abs=1e-6)
        assert outcome.expected_payments() == pytest.approx(limit.expected_payments(), abs=1e-6)


def test_soft_best_of_n_uses_the_draws_of_the_reference_alone():
    candidates = bed([[0.0, LOG2, 50.0]], sources=[REFERENCE, REFERENCE, CONTEXT_PROMPT], log_weights=[0.0, -5.0, 3.0])
    outcome = soft_best_of_n(tau=1.0)(candidates, candidates.rewards)
    assert outcome.probabilities == pytest.approx([1 / 3, 2 / 3, 0.0])
    assert outcome.revenue() == pytest.approx(2 / 3 * LOG2)
    assert soft_best_of_n(tau=1.0, free=True)(candidates, candidates.rewards).revenue() == 0.0


@pytest.mark.parametrize(("m", "distance"), [(1, 0.172002), (2, 0.080810), (4, 0.032447)])
def test_soft_best_of_n_approaches_the_optimum_as_published(m, distance):
    pi, rewards = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.0, 0.5, 1.0, 2.0])
    returned = law(pi, soft_best_of_n(tau=1.0), rewards, m)
    optimum = pi * np.exp(rewards) / (pi @ np.exp(rewards))
    assert returned @ np.log(returned / optimum) == pytest.approx(distance, abs=1e-6)


def law(pi, rule, rewards, m):
    """Return the distribution of the reply that a rule returns from m draws of pi, by enumeration."""
    returned = np.zeros(len(pi))
    for drawn in product(range(len(pi)), repeat=m):
        candidates = bed(rewards[None, list(drawn)])
        np.add.at(returned, list(drawn), pi[list(drawn)].prod() * rule(candidates, candidates.rewards).probabilities)
    return returned


# Best replies of their own: 3, 2 and 1. The first agent wins with its second reply and pays 2.
OWN = bed([[1.0, 3.0, 0.0, 0.0], [0.0, 5.0, 2.0, 0.0], [0.0, 0.0, 7.0, 1.0]], sources=[0, 0, 1, 2])


def test_after_policy_returns_the_winner_s_best_reply_at_the_second_price():
    outcome = after_policy(OWN, OWN.rewards)
    assert outcome.probabilities.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert outcome.expected_payments().tolist() == [2.0, 0.0, 0.0]
    assert outcome.welfare(OWN.rewards) == 8.0


def test_after_policy_shares_ties_equally_and_charges_one_agent_nothing():
    tied = bed([[2.0, 2.0, 0.0], [0.0, 0.0, 2.0]], sources=[0, 0, 1])
    outcome = after_policy(tied, tied.rewards)
    assert outcome.probabilities.tolist() == [0.25, 0.25, 0.5]
    assert outcome.revenue() == 2.0
    alone = bed([[2.0, 1.0]], sources=[0, 0])
    assert after_policy(alone, alone.rewards).revenue() == 0.0


@pytest.mark.parametrize("rule", [after_policy, segment_auction()])
def test_without_a_bid_above_0_there_is_no_auction(rule):
    candidates = bed([[-1.0, 2.0], [3.0, 0.0]], sources=[0, 1], log_weights=[LOG2, 0.0])
    outcome = rule(candidates, candidates.rewards)
    assert outcome.probabilities == pytest.approx([2 / 3, 1 / 3])
    assert outcome.revenue() == 0.0


def test_segment_auction_draws_the_winner_s_own_reply_at_the_perturbed_second_price():
    # Bids 2 and 1, relevance 1 and 2: even chances. Price for equal scores: (2 log 2 - 1) of the bid.
    candidates = bed([[1.0, 3.0, 0.0], [9.0, 0.0, 1.0]], sources=[0, 0, 1])
    outcome = segment_auction([1.0, 2.0])(candidates, candidates.rewards)
    price = 2 * LOG2 - 1
    assert outcome.probabilities == pytest.approx([0.25, 0.25, 0.5])
    assert outcome.payments == pytest.approx(np.array([[2 * price, 2 * price, 0.0], [0.0, 0.0, price]]))


RELEVANCE = np.array([0.36, 0.87, 0.31, 0.26])
ELEVEN = np.array([0.36, 0.87, 0.31, 0.26, 0.21, 0.36, 0.38, 0.28, 0.33, 0.34, 0.33])


@pytest.mark.parametrize(
    ("bids", "relevance", "published"),
    [
        ([3, 3, 2, 2], RELEVANCE, [0.22, 0.54, 0.13, 0.11]),
        ([2, 1, 3, 3], RELEVANCE, [0.22, 0.26, 0.28, 0.24]),
        ([1] * 11, ELEVEN, [0.088, 0.215, 0.076, 0.064, 0.053, 0.088, 0.095, 0.070, 0.082, 0.084, 0.082]),
    ],
)
def test_segment_allocations_are_the_published_ones(bids, relevance, published):
    # Scenarios 0 to 2 of results-single-alloc.md in github.com/k1rezaei/llm-adv, the code of arXiv 2406.09459.
    ours = segment_allocation(bids, relevance)
    if len(bids) == 4:
        assert ours.round(2).tolist() == published
    else:  # the third decimal depends on digits of the relevance that are not published
        of_relevance = 0.005 / ELEVEN.sum()
        assert np.abs(ours - published).max() <= of_relevance + 0.0005


@pytest.mark.parametrize(
    ("bids", "relevance", "revenue", "error"),
    [
        ([3, 3, 2, 2], RELEVANCE, 0.371, 0.0070),
        ([3, 3, 2, 2], np.ones(4), 0.379, 0.0065),
        ([2, 1, 3, 3], RELEVANCE, 0.347, 0.0071),
        ([2, 1, 3, 3], np.ones(4), 0.378, 0.0069),
        ([1] * 11, ELEVEN, 0.482, 0.0070),
        ([1] * 11, np.ones(11), 0.495, 0.0071),
    ],
)
def test_segment_revenue_is_within_two_standard_errors_of_the_published_runs(bids, relevance, revenue, error):
    # The same file: 500 runs "with replacement" and "naive (II)", which has relevance 1; revenue over the largest bid.
    ours = segment_allocation(bids, relevance) @ segment_prices(bids, relevance) / max(bids)
    assert abs(ours - revenue) <= 2 * error


def test_a_segment_price_is_the_mean_of_the_bids_that_would_just_win():
    rng = np.random.default_rng(5)
    bids, relevance = np.array([2.0, 1.0, 0.5, 0.0]), np.array([0.3, 0.9, 0.0, 1.0])
    noise = rng.gumbel(size=(200_000, 4))
    perturbed = bids * relevance * np.exp(noise)
    winner, second = perturbed.argmax(axis=1), np.sort(perturbed, axis=1)[:, -2]
    for i in (0, 1):
        paid = second[winner == i] / (relevance[i] * np.exp(noise[winner == i, i]))
        assert paid.mean() == pytest.approx(segment_prices(bids, relevance)[i], abs=4 * paid.std() / np.sqrt(len(paid)))
    assert segment_prices(bids, relevance)[[2, 3]].tolist() == [0.25, 0.0]  # half the bid for hardly a chance


def test_segment_prices_keep_their_digits_for_tiny_and_huge_chances():
    below, above = (segment_prices([u, 1.0], [1.0, 1.0])[0] / u for u in (0.999e-4, 1.001e-4))
    assert below == pytest.approx(above, abs=1e-7)
    assert segment_prices([1e12, 1.0], [1.0, 1.0])[0] == pytest.approx(np.log(1e12) - 1, rel=1e-9)
    assert segment_prices([3.0, 0.0], [1.0, 1.0]).tolist() == [0.0, 0.0]


# --- laws of all


@settings(max_examples=60, deadline=None)
@given(beds(), st.sampled_from(sorted(rules_at(1.0))), st.sampled_from([0.05, 1.0, 20.0]))
def test_every_rule_returns_a_distribution_and_finite_payments(candidates, name, tau):
    outcome = rules_at(tau)[name](candidates, candidates.rewards)
    assert outcome.probabilities.sum() == pytest.approx(1.0)
    assert outcome.probabilities.min() >= 0.0
    assert outcome.payments.shape == candidates.rewards.shape
    assert np.isfinite(outcome.payments).all()
    assert outcome.payments.min() >= 0.0
    welfare = outcome.utilities(candidates.rewards).sum() + outcome.revenue()
    assert welfare == pytest.approx(outcome.welfare(candidates.rewards))


@settings(max_examples=60, deadline=None)
@given(beds(), st.sampled_from(sorted(rules_at(1.0))))
def test_an_agent_that_reports_nothing_pays_nothing(candidates, name):
    reports = candidates.rewards.copy()
    reports[0] = 0.0
    assert rules_at(1.0)[name](candidates, reports).expected_payments()[0] == 0.0


@settings(max_examples=60, deadline=None)
@given(beds(), st.sampled_from([*PAYMENT_RULES, "VCG"]), st.sampled_from([0.05, 1.0, 20.0]), st.data())
def test_no_lie_gains_under_mosaic_and_vcg(candidates, name, tau, data):
    rule = vcg if name == "VCG" else mosaic(name, tau=tau)
    m = candidates.rewards.shape[1]
    lies = data.draw(arrays(float, (3, m), elements=st.floats(0.0, 6.0, allow_subnormal=False)))
    assert largest_gain(rule, candidates, 0, lies) <= 1e-9 * max(np.ptp(candidates.rewards[0]), 1e-3)


@settings(max_examples=60, deadline=None)
@given(beds(), st.sampled_from(["after-policy", "segment auction"]), st.data())
def test_no_lie_gains_under_auctions_of_one_winner_if_no_agent_cares_for_another_s_reply(candidates, name, data):
    own = candidates.sources == np.arange(2)[:, None]
    alone = bed(candidates.rewards * own, sources=candidates.sources)
    lies = data.draw(arrays(float, (3, own.shape[1]), elements=st.floats(0.0, 6.0, allow_subnormal=False)))
    if alone.rewards[0].max() > 0:
        assert largest_gain(BASELINES[name], alone, 0, lies) <= 1e-9


@pytest.mark.parametrize(
    ("rule", "candidates", "lie", "gain"),
    [
        # The first agent wins with 2 - epsilon as well, and keeps the rest of its 3.
        (best_of_n("first price"), bed([[0.0, 3.0], [2.0, 0.0]]), [0.0, 2.5], 0.5),
        # It pays 3 - 1.5, or 2.5 - 1.25.
        (best_of_n("pay your bid"), bed([[0.0, 3.0], [2.0, 0.0]]), [0.0, 2.5], 0.25),
        # An agent that wants another's reply says nothing: it gets 5 for no payment, in place of 4 - 3.
        (after_policy, bed([[4.0, 5.0], [0.0, 3.0]], sources=[0, 1]), [0.0, 0.0], 4.0),
        # It says nothing: 5, in place of half of 5 and half of 4 - 4 * (2 log 2 - 1).
        (segment_auction(), bed([[4.0, 5.0], [0.0, 4.0]], sources=[0, 1]), [0.0, 0.0], 4 * LOG2 - 1.5),
        (sponsors_in_prompt, bed([[4.0, 5.0]], sources=[CONTEXT_PROMPT] * 2), [9.0, 0.0], 0.0),
    ],
)
def test_what_a_lie_gains_under_the_other_rules(rule, candidates, lie, gain):
    assert largest_gain(rule, candidates, 0, [lie, candidates.rewards[0] * 0.999]) >= gain - 1e-12
    assert largest_gain(rule, candidates, 0, [lie]) == pytest.approx(gain)


def test_a_lie_that_loses_has_a_negative_gain():
    assert largest_gain(mosaic(tau=1.0), TWO, 0, [[LOG2, 0.0]]) < -0.1


# --- subsets of a pool


def test_on_subsets_is_the_mean_over_subsets():
    pool = bed([[0.0, 1.0, 2.0, 4.0], [3.0, 0.0, 0.0, 0.5]])
    p, paid = np.zeros(4), np.zeros((2, 4))
    for pair in map(list, combinations(range(4), 2)):
        outcome = vcg(pool.take(pair), pool.rewards[:, pair])
        p[pair] += outcome.probabilities / 6
        paid[:, pair] += outcome.probabilities * outcome.payments / 6
    outcome = on_subsets(vcg, {REFERENCE: 2}, repeats=3000)(pool, pool.rewards)
    assert outcome.probabilities == pytest.approx(p, abs=0.04)
    assert outcome.payments * outcome.probabilities == pytest.approx(paid, abs=0.1)


def test_on_subsets_keeps_the_shares_of_the_sources_and_repeats_itself():
    pool = bed([[1.0] * 6], sources=[REFERENCE] * 4 + [CONTEXT_PROMPT] * 2)
    seen = []

    def rule(candidates, reports):
        seen.append(sorted(candidates.sources.tolist()))
        return no_auction(candidates, reports)

    first, second = (on_subsets(rule, {REFERENCE: 2, CONTEXT_PROMPT: 1}, repeats=5)(pool, pool.rewards) for _ in "ab")
    assert seen == [[CONTEXT_PROMPT, REFERENCE, REFERENCE]] * 10
    assert np.array_equal(first.probabilities, second.probabilities)


@settings(max_examples=20, deadline=None)
@given(beds(), st.data())
def test_on_subsets_keeps_a_rule_truthful(candidates, data):
    rule = on_subsets(mosaic(tau=0.5), dict.fromkeys((0, 1, REFERENCE), 1), repeats=4)
    lies = data.draw(arrays(float, candidates.rewards[:2].shape, elements=st.floats(0.0, 6.0, allow_subnormal=False)))
    assert largest_gain(rule, candidates, 1, lies) <= 1e-9


# --- distance from the reference

PI = np.array([0.5, 0.3, 0.2])
VALUES = np.array([0.0, 1.0, 2.0])


def mean_estimate(proposals, rule, rewards, estimate):
    """Return the mean of an estimate over all candidate sets of one draw from each proposal, and the reply's law."""
    mixture = np.mean(proposals, axis=0)
    total, returned = 0.0, np.zeros(3)
    for drawn in map(list, product(range(3), repeat=len(proposals))):
        chance = np.prod([proposal[y] for proposal, y in zip(proposals, drawn, strict=True)])
        candidates = bed(rewards[None, drawn], log_weights=np.log(PI / mixture)[drawn])
        outcome = rule(candidates, candidates.rewards)
        total += chance * estimate(outcome, candidates)
        np.add.at(returned, drawn, chance * outcome.probabilities)
    return total, returned


@pytest.mark.parametrize("rule", [no_auction, mosaic(tau=0.5), mosaic(tau=5.0), vcg])
@pytest.mark.parametrize("proposals", [[PI] * 3, [PI, [0.1, 0.1, 0.8], [0.2, 0.6, 0.2]]])
def test_the_mean_estimate_is_never_below_the_true_divergence(rule, proposals):
    estimate, returned = mean_estimate([np.array(row) for row in proposals], rule, VALUES, kl_to_reference)
    true = returned @ np.log(returned / PI)
    assert true - 1e-12 <= estimate <= np.log(3) + np.log(1 / PI.min())


def test_the_estimate_is_exact_on_average_for_one_draw_of_another_prompt():
    other = np.array([0.1, 0.1, 0.8])
    estimate, returned = mean_estimate([other], no_auction, VALUES, kl_to_reference)
    assert returned == pytest.approx(other)
    assert estimate == pytest.approx(other @ np.log(other / PI))


def test_subsets_of_a_larger_pool_leave_less_bias():
    # Best of two among the draws of a continuous reference: the divergence is most_kl(2), and one pair says log 2.
    rewards = np.random.default_rng(0).random((1, 60))
    pool = bed(rewards)
    of_pairs = kl_to_reference(on_subsets(vcg, {REFERENCE: 2}, repeats=4000)(pool, rewards), pool)
    pair = pool.take([0, 1])
    assert kl_to_reference(vcg(pair, pair.rewards), pair) == pytest.approx(LOG2)
    assert of_pairs == pytest.approx(most_kl(2), abs=0.03)


def test_best_of_n_over_fine_replies_attains_the_largest_divergence():
    edges = np.linspace(0.0, 1.0, 2001)
    for m in (1, 4, 16):
        returned = np.diff(edges**m)
        divergence = returned @ np.log(np.maximum(returned, 1e-300) * 2000)
        assert divergence <= most_kl(m) + 1e-12
        assert divergence == pytest.approx(most_kl(m), abs=1e-3)


def test_a_reply_that_the_reference_never_gives_is_infinitely_far():
    candidates = bed([[0.0, 0.0]], log_weights=[0.0, -np.inf], sources=[REFERENCE, CONTEXT_PROMPT])
    assert kl_to_reference(sponsors_in_prompt(candidates, candidates.rewards), candidates) == np.inf
    assert kl_to_reference(no_auction(candidates, candidates.rewards), candidates) == pytest.approx(LOG2)


# --- figures and errors


def test_an_outcome_says_what_it_is_worth_and_how_payments_vary():
    # Each reply half the time: agent 0 gets 4 or 0 and pays 3 or 1; agent 1 gets 1 and pays nothing.
    outcome = Outcome(probabilities=np.array([0.5, 0.5]), payments=np.array([[3.0, 1.0], [0.0, 0.0]]))
    values = [[4.0, 0.0], [1.0, 1.0]]
    assert (outcome.welfare(values), outcome.revenue()) == (3.0, 2.0)
    assert outcome.utilities(values).tolist() == [0.0, 1.0]
    assert outcome.payment_variances().tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (sponsors_in_prompt, "No candidate comes from the context prompt"),
        (soft_best_of_n(tau=1.0), "No candidate comes from the reference"),
        (after_policy, "No candidate comes from the policy of agent 1"),
        (segment_auction(), "No candidate comes from the policy of agent 1"),
        (on_subsets(vcg, {0: 3}), r"counts\[0\] must be at most the 2 candidates of the pool, got 3"),
    ],
)
def test_a_rule_names_the_candidates_that_it_lacks(rule, message):
    candidates = bed([[0.0, 1.0], [1.0, 0.0]], sources=[0, 0])
    with pytest.raises(ConfigurationError, match=message):
        rule(candidates, candidates.rewards)


@pytest.mark.parametrize("name", sorted(rules_at(1.0)))
@pytest.mark.parametrize("reports", [np.zeros((2, 3)), np.full((2, 4), np.nan)])
def test_reports_of_another_shape_or_not_finite_are_refused(name, reports):
    candidates = bed(np.ones((2, 4)), sources=[0, 1, REFERENCE, CONTEXT_PROMPT])
    with pytest.raises(ConfigurationError, match="reports must be finite numbers of shape"):
        rules_at(1.0)[name](candidates, reports)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_weights": [0.0]}, "shapes"),
        ({"sources": [-1]}, "shapes"),
        ({"rewards": [1.0, 2.0]}, "shapes"),
        ({"log_weights": [], "log_reference": [], "sources": [], "rewards": [[]]}, "shapes"),
        ({"rewards": [[1.0, np.nan]]}, "rewards must be finite"),
        ({"log_weights": [np.nan, 0.0]}, "log_weights must be"),
        ({"log_weights": [-np.inf, -np.inf]}, "log_weights must be"),
    ],
)
def test_candidates_whose_arrays_do_not_agree_are_refused(changes, message):
    fields = {"log_weights": [0.0, 0.0], "rewards": [[1.0, 2.0]], "log_reference": [-1.0, -1.0], "sources": [-1, -1]}
    with pytest.raises(ConfigurationError, match=message):
        Candidates(**{**fields, **changes})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_of_n("second price"), "price must be"),
        (lambda: soft_best_of_n(tau=0.0), "tau must be a number above 0"),
        (lambda: on_subsets(vcg, {REFERENCE: 0}), r"counts\[-1\] must be a whole number of at least 1"),
        (lambda: on_subsets(vcg, {REFERENCE: 1}, repeats=0), "repeats must be"),
        (lambda: segment_auction([1.0])(OWN, OWN.rewards), "relevance must be 3 numbers of at least 0"),
        (lambda: segment_auction([1.0, -1.0, 0.0])(OWN, OWN.rewards), "relevance must be"),
        (lambda: most_kl(0), "n_candidates must be"),
    ],
)
def test_settings_that_make_no_rule_are_refused(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()


def test_every_rule_has_a_name_and_those_without_tau_are_the_baselines():
    rules = rules_at(0.5)
    assert len(rules) == 11
    assert all(rules[name] is rule for name, rule in BASELINES.items())


def test_rules_serve_a_question_without_agents():
    candidates = bed(np.zeros((0, 2)))
    for name in ("MOSAIC", "MOSAIC, pivot", "no auction", "VCG", "after-policy", "segment auction"):
        assert rules_at(1.0)[name](candidates, candidates.rewards).probabilities.tolist() == [0.5, 0.5]
