"""Every identity of docs/concepts/mechanism.md, on random and on extreme auctions."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llm_auction_chain.mechanism import PAYMENT_RULES, settle, settlement
from llm_auction_chain.mechanism.payments import most_charged

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
    n, m = draw(st.integers(0, 4)), draw(st.sampled_from([1, 2, 3, 4, 5, 6, 25, 64]))
    scale = draw(st.sampled_from([1e-9, 1.0, 700.0, 1e6, 1e99]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if m <= 6:
        rewards = scale * draw(arrays(float, (n, m), elements=st.floats(-1, 1)))
        weights = draw(arrays(float, m, elements=st.sampled_from([0.0, -1.0, -800.0, 1e5, -np.inf])))
    else:
        rewards = scale * rng.uniform(-1, 1, size=(n, m))
        weights = rng.normal(scale=draw(st.sampled_from([0.0, 5.0, 300.0, 1e4])), size=m)
        weights[rng.random(m) < draw(st.sampled_from([0.0, 0.5]))] = -np.inf
    if not np.isfinite(weights).any():
        weights[-1] = 3.0
    return rewards, weights, draw(st.sampled_from([1e-100, 1e-9, 1.0, 1e9, 1e100]))


def exact(rewards, weights, tau, agents=None, digits=120):
    """Return log p, log p_-i, payments and contributions to many digits, straight from the definitions."""
    with mpmath.workdps(digits):
        live = [j for j in range(len(weights)) if np.isfinite(weights[j])]
        total = {j: sum(map(mpmath.mpf, rewards[:, j]), mpmath.mpf(0)) for j in live}

        def log_law(welfare):
            scores = {j: mpmath.mpf(weights[j]) + welfare[j] / mpmath.mpf(tau) for j in live}
            top = max(scores.values())
            normaliser = top + mpmath.log(sum(mpmath.exp(score - top) for score in scores.values()))
            return {j: score - normaliser for j, score in scores.items()}

        law = log_law(total)
        rows = [rewards[i] for i in (range(len(rewards)) if agents is None else agents)]
        without = [log_law({j: total[j] - mpmath.mpf(row[j]) for j in live}) for row in rows]
        payments = [mpmath.mpf(tau) * sum(mpmath.exp(law[j]) * (law[j] - other[j]) for j in live) for other in without]
        values = [sum(mpmath.exp(law[j]) * mpmath.mpf(row[j]) for j in live) for row in rows]
        contributions = [float(value - payment) for value, payment in zip(values, payments, strict=True)]
        return law, without, [float(t) for t in payments], contributions


def dense(log_law, m):
    return [float(mpmath.exp(log_law[j])) if j in log_law else 0.0 for j in range(m)]


@given(auctions())
@settings(deadline=None, max_examples=150)
def test_laws_payments_and_contributions_are_those_of_the_definitions(auction):
    rewards, weights, tau = auction
    outcome = settle(rewards, weights, tau=tau, seed=1)
    law, without, payments, contributions = exact(rewards, weights, tau)
    scale = max(1.0, np.abs(rewards).max() / tau)
    law, without = dense(law, len(weights)), [dense(other, len(weights)) for other in without]
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


@given(auctions(), st.floats(-1e3, 1e3), st.integers(0, 2**32))
@settings(deadline=None)
def test_adding_a_constant_to_a_report_adds_it_to_the_contribution_and_changes_nothing_else(auction, constant, seed):
    rewards, weights, tau = auction
    shifted = rewards.copy()
    shifted[0] += constant
    change = np.where(np.arange(len(rewards)) == 0, constant, 0.0)
    for rule in ("expected", "influence", "pivot"):
        before, after = (settle(r, weights, tau=tau, payment_rule=rule, seed=seed) for r in (rewards, shifted))
        assert after.winner == before.winner
        np.testing.assert_allclose(after.payments, before.payments, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(after.expected_payments, before.expected_payments, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(after.contributions, before.contributions + change, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(after.probabilities, before.probabilities, rtol=1e-9, atol=1e-300)
        np.testing.assert_allclose(after.counterfactuals, before.counterfactuals, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("rule", ["expected", "influence", "pivot"])
@pytest.mark.parametrize("tau", [0.05, 1.0, 1e6])
def test_a_constant_of_1e12_costs_no_digit(rule, tau):
    """Rewards are sixteenths, so that adding the constant does not round them."""
    rng = np.random.default_rng(3)
    rewards = rng.integers(0, 32, size=(5, 9)) / 16
    plain = settle(rewards, tau=tau, payment_rule=rule, seed=8)
    shifted = settle(rewards + 1e12, tau=tau, payment_rule=rule, seed=8)
    np.testing.assert_allclose(shifted.payments, plain.payments, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(shifted.counterfactuals, plain.counterfactuals, rtol=1e-11)


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
    moved = before.counterfactuals[rows][:, columns]
    np.testing.assert_allclose(after.counterfactuals, moved, rtol=1e-9, atol=1e-250)
    np.testing.assert_allclose(after.contributions, before.contributions[rows], rtol=1e-9, atol=1e-11)


@given(auctions(), st.floats(-100, 100), st.integers(0, 2**32))
@settings(deadline=None)
def test_shifting_all_log_weights_changes_nothing(auction, shift, seed):
    rewards, weights, tau = auction
    rewards = np.abs(rewards)
    for rule in PAYMENT_RULES:
        before, after = (settle(rewards, w, tau=tau, payment_rule=rule, seed=seed) for w in (weights, weights + shift))
        assert after.winner == before.winner
        np.testing.assert_allclose(after.payments, before.payments, rtol=1e-8, atol=1e-11)
        np.testing.assert_allclose(after.expected_payments, before.expected_payments, rtol=1e-8, atol=1e-11)
        np.testing.assert_allclose(after.contributions, before.contributions, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(after.probabilities, before.probabilities, rtol=1e-9, atol=1e-300)
        np.testing.assert_allclose(after.counterfactuals, before.counterfactuals, rtol=1e-9, atol=1e-250)


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
    for rule in PAYMENT_RULES:
        reports = np.abs(rewards) if rule == "proportional" else rewards
        outcome = settle(reports, weights, tau=tau, payment_rule=rule, seed=1)
        for values in (outcome.probabilities, outcome.counterfactuals, outcome.payments, outcome.contributions):
            assert np.isfinite(values).all()
        assert (outcome.expected_payments >= 0).all()
        assert outcome.probabilities.sum() == pytest.approx(1.0)
        assert outcome.probabilities[np.isneginf(weights)].sum() == 0.0
        assert outcome.counterfactuals[:, np.isneginf(weights)].sum() == 0.0
        assert np.isfinite(weights[outcome.winner])
        np.testing.assert_allclose(outcome.counterfactuals.sum(axis=1), 1.0, rtol=1e-12)


def test_payments_survive_the_underflow_of_p():
    """Without agent 0 candidate 0 wins. With it p_0 is exp(-2000): the payment follows from q alone."""
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


@given(auctions(), st.floats(3, 50))
def test_a_large_tau_is_the_reference(auction, exponent):
    """Hoeffding: a report of spread s moves no log-probability by more than s / tau, and T <= s^2 / (8 tau)."""
    rewards, weights, _ = auction
    tau = 10.0**exponent
    outcome = settle(rewards, weights, tau=tau, seed=1)
    live = rewards[:, np.isfinite(weights)]
    reference = np.exp(weights - np.logaddexp.reduce(weights))
    moved = np.ptp(live.sum(axis=0)) / tau
    np.testing.assert_allclose(outcome.probabilities, reference, rtol=2 * moved + 1e-12)
    assert (outcome.expected_payments <= np.ptp(live, axis=1) ** 2 / (8 * tau) * (1 + 1e-9)).all()


@given(auctions(), st.sampled_from([None, "together"]))
@settings(deadline=None)
def test_the_mean_charge_over_the_law_of_the_draw_is_the_expected_payment(auction, owners):
    """This is exact: it averages over every winner by its probability."""
    rewards, weights, tau = auction
    rewards = np.abs(rewards)
    owners = owners and ["one"] * min(2, len(rewards)) + [str(k) for k in range(len(rewards) - 2)]
    for rule in ("expected", "proportional", "influence"):
        mean = np.zeros(len(rewards))
        for j in np.flatnonzero(np.isfinite(weights)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(settlement, "draw", lambda scores, _, j=j: (int(j), np.zeros(len(scores))))
                outcome = settle(rewards, weights, tau=tau, payment_rule=rule, owners=owners, seed=1)
            assert outcome.winner == j
            mean += outcome.probabilities[j] * outcome.payments
        np.testing.assert_allclose(mean, outcome.expected_payments, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("owners", [None, ["one", "two", "one"]])
def test_pivot_charges_the_expected_payment_on_average(owners):
    """The charge depends on the noise, so this samples 4,000 draws; 5 standard errors fail by chance below 1e-5."""
    rewards = np.array([[0.0, 1.0, 2.0, 0.5, 9.0], [1.5, 0.0, 0.2, 0.9, 9.0], [0.3, 0.6, 0.1, 0.0, 0.0]])
    weights = np.array([0.0, 0.3, -1.0, 0.1, -np.inf])
    rng = np.random.default_rng(5)
    outcomes = [
        settle(rewards, weights, tau=0.7, payment_rule="pivot", owners=owners, rng=rng) for _ in range(4_000)
    ]  # fmt: skip
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
def test_every_rule_that_goes_by_the_draw_charges_at_most_the_drawn_value(auction, seed):
    """`proportional` and `pivot` pay nothing back; `influence` may, since its charge is `r_ij - U_i`, with U_i >= 0."""
    rewards, weights, tau = auction
    rewards = np.abs(rewards)
    for rule in ("proportional", "pivot", "influence"):
        outcome = settle(rewards, weights, tau=tau, payment_rule=rule, seed=seed)
        assert rule == "influence" or (outcome.payments >= 0).all()
        assert (outcome.payments <= rewards[:, outcome.winner] * (1 + 1e-12) + 1e-9 * tau).all()


@given(auctions(), st.integers(0, 2**32))
def test_pivot_charges_what_the_others_lose_for_the_noise_drawn(auction, seed):
    rewards, weights, tau = auction
    outcome = settle(rewards, weights, tau=tau, payment_rule="pivot", seed=seed)
    noise = -np.log(np.random.default_rng(seed).standard_exponential(len(weights)))
    others = rewards.sum(axis=0) - rewards + tau * (weights + noise)
    lost = others.max(axis=1) - others[:, outcome.winner]
    np.testing.assert_allclose(outcome.payments, lost, rtol=1e-9, atol=1e-11)


@given(auctions(), arrays(float, 6, elements=FLOATS), st.integers(0, 2**32))
def test_pivot_is_truthful_for_every_noise_draw(auction, lie, seed):
    truth, weights, tau = auction
    lied = truth.copy()
    lied[0] = lie[: truth.shape[1]]
    honest = settle(truth, weights, tau=tau, payment_rule="pivot", seed=seed)
    dishonest = settle(lied, weights, tau=tau, payment_rule="pivot", seed=seed)
    gain = (truth[0, dishonest.winner] - dishonest.payments[0]) - (truth[0, honest.winner] - honest.payments[0])
    assert gain <= 1e-9


@given(auctions(), st.integers(0, 2**32))
@settings(deadline=None)
def test_influence_charges_how_much_likelier_the_agent_made_the_drawn_reply(auction, seed):
    """So every agent keeps its contribution, whatever is drawn."""
    rewards, weights, tau = auction
    outcome = settle(rewards, weights, tau=tau, payment_rule="influence", seed=seed)
    law, without, _, _ = exact(rewards, weights, tau)
    for i, other in enumerate(without):
        gained = float(mpmath.mpf(tau) * (law[outcome.winner] - other[outcome.winner]))
        assert outcome.payments[i] == pytest.approx(gained, rel=1e-9, abs=1e-13 * max(1.0, np.ptp(rewards[i])))
    drawn = rewards[:, outcome.winner]
    np.testing.assert_allclose(drawn - outcome.payments, outcome.contributions, rtol=1e-9, atol=1e-11)


@given(auctions())
def test_no_agent_that_wants_no_harm_contributes_less_than_nothing(auction):
    rewards, weights, tau = auction
    assert (settle(np.abs(rewards), weights, tau=tau, seed=1).contributions >= 0).all()


@given(auctions(least=2))
def test_agents_of_one_owner_pay_what_their_summed_report_would(auction):
    rewards, weights, tau = auction
    owners = ["one"] * 2 + [str(k) for k in range(len(rewards) - 2)]
    together = settle(rewards, weights, tau=tau, owners=owners, seed=2)
    merged = settle(np.vstack([rewards[:2].sum(axis=0), rewards[2:]]), weights, tau=tau, seed=2)
    assert together.expected_payments[:2].sum() == pytest.approx(merged.expected_payments[0], rel=1e-9, abs=1e-11)
    assert together.contributions[:2].sum() == pytest.approx(merged.contributions[0], rel=1e-8, abs=1e-8)
    assert (together.expected_payments >= 0).all()


@given(auctions(least=2), st.integers(0, 2**32))
@settings(deadline=None)
def test_an_owner_is_charged_under_every_rule_what_its_summed_report_would_be(auction, seed):
    rewards, weights, tau = auction
    rewards = np.abs(rewards)
    owners = ["one"] * 2 + [str(k) for k in range(len(rewards) - 2)]
    summed = np.vstack([rewards[:2].sum(axis=0), rewards[2:]])
    for rule in PAYMENT_RULES:
        together = settle(rewards, weights, tau=tau, owners=owners, payment_rule=rule, seed=seed)
        merged = settle(summed, weights, tau=tau, payment_rule=rule, seed=seed)
        assert together.winner == merged.winner
        assert together.payments[:2].sum() == pytest.approx(merged.payments[0], rel=1e-9, abs=1e-11)
        np.testing.assert_allclose(together.payments[2:], merged.payments[1:], rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(together.counterfactuals[1:], merged.counterfactuals, rtol=1e-9, atol=1e-250)


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("kind", ["plain", "signed", "sparse", "constant"])
@pytest.mark.parametrize("tau", [1e-5, 1e-3, 0.003, 0.01, 0.1, 1.0, 30.0, 1e3, 1e6])
def test_a_thousand_agents_settle_to_the_last_digits(tau, kind, dead):
    rng = np.random.default_rng(0)
    rewards = rng.random((1000, 24))
    rewards = {
        "plain": rewards,
        "signed": 2 * rewards - 1,
        "sparse": rewards * (rng.random(rewards.shape) < 0.05),
        "constant": rewards + 4096.0,
    }[kind]
    weights = rng.normal(size=24)
    if dead:
        weights[[0, 5]] = -np.inf
    outcome = settle(rewards, weights, tau=tau, seed=1)
    agents = [0, 1, 499, 999, int(np.argmax(outcome.expected_payments))]
    law, without, payments, contributions = exact(rewards, weights, tau, agents, digits=420)
    rtol = 4e-15 * 1000 / min(tau, 1)  # the scores are sums of a thousand numbers over tau
    np.testing.assert_allclose(outcome.probabilities, dense(law, 24), rtol=rtol, atol=1e-250)
    for i, other, payment, contribution in zip(agents, without, payments, contributions, strict=True):
        np.testing.assert_allclose(outcome.counterfactuals[i], dense(other, 24), rtol=rtol, atol=1e-250)
        assert outcome.expected_payments[i] == pytest.approx(payment, rel=1e-10 + rtol, abs=1e-250)
        assert outcome.contributions[i] == pytest.approx(contribution, rel=1e-12, abs=1e-14 * max(1.0, tau * rtol))


@pytest.mark.parametrize("size", [2000.0, 3000.0, 1e6, 1e12])
@pytest.mark.parametrize("agents", [2, 9, 20])
def test_a_report_however_large_costs_the_law_without_it_no_digit(size, agents):
    rng = np.random.default_rng(agents)
    rewards, weights = rng.normal(size=(agents, 6)), np.array([0.0, 1.0, -1.0, 0.5, -np.inf, 2.0])
    rewards[1] *= size
    outcome = settle(rewards, weights, tau=1.0, seed=1)
    _, without, payments, contributions = exact(rewards, weights, 1.0, digits=420)
    np.testing.assert_allclose(outcome.counterfactuals[1], dense(without[1], 6), rtol=1e-12)
    np.testing.assert_allclose(outcome.expected_payments[1], payments[1], rtol=1e-12)
    np.testing.assert_allclose(outcome.contributions[1], contributions[1], rtol=1e-12)


@pytest.mark.parametrize("agents", [3, 8, 17, 70])
def test_large_reports_that_cancel_each_other_settle_to_the_last_digits(agents):
    """They leave a broad distribution, and rows of both kinds side by side."""
    rng = np.random.default_rng(agents)
    rewards, weights = rng.integers(-64, 64, size=(agents, 7)) / 64, rng.normal(size=7)
    rewards[1:3] = 5000.0 * rewards[1]
    rewards[2] *= -1.0
    weights[3] = -np.inf
    outcome = settle(rewards, weights, tau=1.0, seed=1)
    _, without, payments, contributions = exact(rewards, weights, 1.0, digits=420)
    np.testing.assert_allclose(outcome.counterfactuals, [dense(other, 7) for other in without], rtol=2e-11, atol=1e-250)
    np.testing.assert_allclose(outcome.expected_payments, payments, rtol=2e-11)
    np.testing.assert_allclose(outcome.contributions, contributions, rtol=2e-11, atol=1e-12)


@pytest.mark.parametrize("gap", [100.0, 250.0, 500.0])
@pytest.mark.parametrize("share", [1e-6, 0.03, 1.0, 60.0])
def test_numbers_keep_their_digits_down_to_1e_250(gap, share):
    """Candidate 1 has probability exp(-gap), and every payment follows from it alone."""
    rewards = np.array([[0.0, share, 0.25 * share], [1.0, 0.5, 0.75]])
    weights = np.array([0.0, -gap, -gap - 1.0])
    outcome = settle(rewards, weights, tau=1.0, seed=1)
    law, without, payments, _ = exact(rewards, weights, 1.0, digits=420)
    np.testing.assert_allclose(outcome.probabilities, dense(law, 3), rtol=1e-12)
    np.testing.assert_allclose(outcome.counterfactuals, [dense(other, 3) for other in without], rtol=1e-12)
    np.testing.assert_allclose(outcome.expected_payments, payments, rtol=1e-11)


def test_no_agents_leave_the_reference():
    outcome = settle(np.empty((0, 4)), tau=1.0, seed=1)
    assert outcome.probabilities.tolist() == [0.25] * 4
    assert outcome.revenue == 0.0


def test_results_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        settle([[1.0, 2.0]], tau=1.0, seed=1).probabilities[0] = 1.0


@given(auctions(), st.lists(st.sampled_from(["X", "Y", "Z"]), min_size=4, max_size=4), st.booleans())
def test_an_owner_steers_no_reply_and_expects_no_payment_beyond_the_limits_of_its_span(auction, owners, shared):
    rewards, weights, tau = auction
    owners = owners[: len(rewards)] if shared else [str(k) for k in range(len(rewards))]
    live = np.isfinite(weights)
    outcome = settle(rewards, weights, tau=tau, owners=owners, seed=1)
    for i, owner in enumerate(owners):
        own = [k for k, other in enumerate(owners) if other == owner]
        span = np.ptp(rewards[own].sum(axis=0)[live])
        assert 0.0 <= outcome.steering[i] <= span / tau * (1 + 1e-12)
        expected = outcome.expected_payments[own].sum()
        assert expected <= most_charged("expected", span, tau) * (1 + 1e-9) + 1e-15
        assert expected <= min(span, span**2 / (8 * tau)) * (1 + 1e-9) + 1e-15
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.abs(np.log(outcome.probabilities[live] / outcome.counterfactuals[i, live]))
        alive = outcome.probabilities[live] > 1e-290
        assert ratios[alive & np.isfinite(ratios)].max() <= outcome.steering[i] * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("tau", [0.5, 1.0, 20.0])
def test_two_candidates_reach_both_limits(tau):
    span = 3.0
    rare = settle([[0.0, span]], [0.0, -40.0], tau=tau, seed=1)  # without the agent, the valued reply hardly occurs
    assert rare.steering[0] == pytest.approx(span / tau, rel=1e-12)
    a = span / tau
    p = (-a / np.expm1(-a) - 1.0) / a  # where the expected payment is largest
    worst = settle([[0.0, span]], [np.log1p(-p), np.log(p) - a], tau=tau, seed=1)
    assert worst.expected_payments[0] == pytest.approx(most_charged("expected", span, tau), rel=1e-9)
    if tau == 20.0:  # a small report nearly reaches the simpler limit
        assert worst.expected_payments[0] == pytest.approx(span**2 / (8 * tau), rel=1e-3)
