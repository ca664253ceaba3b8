"""Payment rules, shares of owners and prices per click, in cases small enough to check by hand."""

import mpmath
import numpy as np
import pytest

from llm_auction_chain.errors import RewardError
from llm_auction_chain.mechanism import PAYMENT_RULES, settle
from llm_auction_chain.mechanism.payments import most_charged, owner_shares, price_per_click

CLICKS = np.array([0.9, 0.3, 0.05, 0.0])


def outcomes(report, rule):
    """Return p, the expected payment and, for every winner, the payment for it."""
    paid, expected, p = {}, 0.0, np.zeros(len(report))
    for seed in range(400):
        outcome = settle([report, [0.0, 0.0, 1.0, 0.0]], tau=1.0, payment_rule=rule, seed=seed)
        p, expected = outcome.probabilities, outcome.expected_payments[0]
        paid.setdefault(outcome.winner, outcome.payments[0])
    return p, expected, paid


def price(rule, p, expected, paid, winner):
    return price_per_click(rule, expected=expected, paid=paid[winner], probabilities=p, clicks=CLICKS, winner=winner)


@pytest.mark.parametrize("cap", [np.inf, 1.0])
@pytest.mark.parametrize("rule", ["expected", "proportional"])
def test_a_price_per_click_is_the_same_for_every_winner_also_where_the_cap_cuts_the_report(rule, cap):
    p, expected, paid = outcomes(np.minimum(4.0 * CLICKS, cap), rule)
    assert sorted(paid) == [0, 1, 2, 3]
    for winner in paid:
        assert price(rule, p, expected, paid, winner) == pytest.approx(expected / (p @ CLICKS), rel=1e-12)


@pytest.mark.parametrize("cap", [np.inf, 1.0])
@pytest.mark.parametrize("rule", ["expected", "proportional", "influence"])
def test_a_price_per_click_brings_the_expected_payment_on_average(rule, cap):
    report = np.minimum(4.0 * CLICKS, cap)
    report[3], clicks = 0.0, CLICKS + 0.01
    p, expected, paid = outcomes(report, rule)
    prices = [
        price_per_click(rule, expected=expected, paid=paid[j], probabilities=p, clicks=clicks, winner=j)
        for j in range(4)
    ]
    assert (p * clicks * prices).sum() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rule", PAYMENT_RULES)
def test_a_click_that_is_nearly_impossible_has_no_price(rule):
    on_average = rule in ("expected", "proportional")
    for chance, found in [(0.9e-6, None), (1e-6, None), (1.1e-6, 1 / 1.1e-6)]:
        clicks = [chance, chance] if on_average else [chance, 1.0]
        price = price_per_click(
            rule, expected=1.0, paid=1.0, probabilities=np.array([0.5, 0.5]), clicks=clicks, winner=0
        )
        assert price == (None if found is None else pytest.approx(found))
    clicks, p = [0.0, 0.4], np.array([0.5, 0.5])
    price = price_per_click(rule, expected=1.0, paid=0.5, probabilities=p, clicks=clicks, winner=0)
    assert price == (5.0 if on_average else None)


def test_each_rule_charges_what_its_formula_says():
    report, other = np.array([2.0, 0.5]), np.array([0.0, 1.0])
    p = np.exp(report + other) / np.exp(report + other).sum()
    q = np.exp(other) / np.exp(other).sum()
    expected = (p * np.log(p / q)).sum()
    for seed in range(20):
        for rule in PAYMENT_RULES:
            outcome = settle([report, other], tau=1.0, payment_rule=rule, seed=seed)
            j, z = outcome.winner, report + other + outcome.noise
            formula = {
                "expected": expected,
                "proportional": report[j] * expected / (p @ report),
                "influence": np.log(p[j] / q[j]),
                "pivot": (z - report).max() - (z - report)[j],
            }[rule]
            assert outcome.payments[0] == pytest.approx(formula, rel=1e-12, abs=1e-15)


def test_proportional_refuses_negative_rewards_of_agents_that_pay():
    with pytest.raises(RewardError, match="at least 0"):
        settle([[-1.0, 1.0]], tau=1.0, payment_rule="proportional")
    settle([[-1.0, 1.0]], tau=1.0, payment_rule="proportional", pays=[False])


def test_an_agent_worth_nothing_pays_nothing_under_proportional():
    assert settle([[0.0, 0.0]], tau=1.0, payment_rule="proportional").payments.tolist() == [0.0]


def test_owners_agents_share_by_the_spans_of_their_reports_or_equally():
    groups = np.array([0, 0, 1, 1, 2])
    shares = owner_shares(groups, np.array([1.0, 3.0, 0.0, 0.0, 7.0]))
    assert shares.tolist() == [0.25, 0.75, 0.5, 0.5, 1.0]


@pytest.mark.parametrize("rule", PAYMENT_RULES)
@pytest.mark.parametrize("constants", [1.0, 250.0, 1e6])
def test_an_owners_constants_cost_its_payment_no_digits(rule, constants):
    rng = np.random.default_rng(3)
    reports, log_weights = np.round(rng.random((3, 4)) * 2.0**20) / 2.0**30, rng.normal(size=4)  # sums are exact
    raised = reports + np.array([[constants], [constants / 4], [constants / 8]])
    one = {"tau": 1.0, "seed": 1, "owners": ["O", "O", "O"], "payment_rule": rule}
    plain, shifted = settle(reports, log_weights, **one), settle(raised, log_weights, **one)
    assert shifted.expected_payments.sum() == pytest.approx(plain.expected_payments.sum(), rel=1e-12)
    if rule != "proportional":
        assert shifted.payments.sum() == pytest.approx(plain.payments.sum(), rel=1e-12)


def test_an_unlikely_candidate_of_an_owner_costs_its_payment_no_digits():
    reports = np.array([[-1e9, 0.0, 1e-3], [-1e9, 1e-3, 1e-3]])
    alone = settle(reports.sum(axis=0)[None, :] + np.array([2e9, 0.0, 0.0]), [-np.inf, 0.0, 0.5], tau=1.0, seed=1)
    both = settle(reports, [0.0, 0.0, 0.5], tau=1.0, seed=1, owners=["O", "O"])
    alone_payment, payment = alone.expected_payments[0], both.expected_payments.sum()
    assert both.probabilities[0] == 0.0
    assert both.counterfactuals[0, 0] > 0.2  # the owner pays for removing the first candidate
    assert payment > alone_payment


@pytest.mark.parametrize("rule", PAYMENT_RULES)
@pytest.mark.parametrize("span", [0.0, 1e-3, 0.05, 1.0, 30.0, 5000.0])
def test_no_owner_is_charged_more_than_the_proven_maximum_which_some_reports_reach(rule, span):
    most, charged = most_charged(rule, span, 1.0), [0.0]
    a = max(span, 1e-9)
    worst = (-a / np.expm1(-a) - 1.0) / a if a > 0.01 else 0.5  # `expected` charges the most
    for p in [1e-9, 1e-3, 0.1, 0.5, worst, 0.999]:
        for seed in range(20):
            weights = [np.log1p(-p), np.log(p) - span]  # with the report, p is the probability of the second
            outcome = settle([[0.0, span]], weights, tau=1.0, seed=seed, payment_rule=rule)
            charged.append(float(outcome.payments[0]))
            if rule == "proportional":  # at the most valuable candidate, however rarely it is drawn
                value = float(outcome.probabilities @ [0.0, span])
                charged.append(span * float(outcome.expected_payments[0]) / value if value else 0.0)
    assert max(charged) <= most * (1 + 1e-12)
    assert most <= span
    if rule == "proportional" and span <= 30.0:
        assert max(charged) == pytest.approx(most, rel=0.01)  # near 0 the bound is its series
    if rule == "expected":
        assert most <= span**2 / 8.0 * (1 + 1e-12)
        assert span > 30.0 or max(charged) == pytest.approx(most, rel=1e-6)


@pytest.mark.parametrize("report", [[0.0, 1e-7, -0.9], [0.0, 1e-7, 0.9], [0.0, 1e-7, -3.0], [0.0, 1e-7, 0.02]])
def test_a_payment_keeps_its_digits_if_an_unlikely_candidate_makes_most_of_it(report):
    weights = np.log([0.5, 0.5, 1e-12])
    expected = settle([report], weights, tau=1.0).expected_payments[0]
    with mpmath.workdps(60):
        scores = [mpmath.mpf(w) + mpmath.mpf(r) for w, r in zip(weights, report, strict=True)]
        q, p = ([mpmath.exp(s) for s in row] for row in (list(map(mpmath.mpf, weights)), scores))
        p, q = ([each / mpmath.fsum(row) for each in row] for row in (p, q))
        kl = mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True))
    assert expected == pytest.approx(float(kl), rel=1e-9, abs=0.0)
