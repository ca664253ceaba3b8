"""A view and the formulas are enough to compute what its owner pays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from llm_auction_chain import Agent
from llm_auction_chain.mechanism import PAYMENT_RULES
from llm_auction_chain.mechanism.payments import most_charged
from llm_auction_chain.receipts import verify
from llm_auction_chain.rewards import MentionReward
from tests.unit.receipts.examples import MIXTURE, crowd, hold_auction, no_b_first, rich_receipt


def noise_of(view):
    """Return the Gumbel noise, as the view's `generator` describes it."""
    stream = np.random.default_rng(int(view["draw_seed"]))
    return [-mp.log(mpf(float(e))) for e in stream.standard_exponential(len(view["replies"]))]


def by_hand(view):
    """Return p_-i, U, T and the payment of the owner's reports together, in 60 digits, from p, r, tau and the noise."""
    tau, j = mpf(view["tau"]), view["winner"]
    alive = [k for k, nats in enumerate(view["log_probabilities"]) if nats is not None]
    log_p = {k: mpf(view["log_probabilities"][k]) for k in alive}
    r = {k: sum(mpf(bid["report"][k]) for bid in view["agents"]) for k in alive}
    mass = mp.fsum(mp.exp(log_p[k] - r[k] / tau) for k in alive)
    log_q = {k: log_p[k] - r[k] / tau - mp.log(mass) for k in alive}
    kl = mp.fsum(mp.exp(log_p[k]) * (log_p[k] - log_q[k]) for k in alive)
    mean = mp.fsum(mp.exp(log_p[k]) * r[k] for k in alive)
    noise = noise_of(view)
    z = {k: tau * (log_p[k] + noise[k]) for k in alive}
    paid = {
        "expected": tau * kl,
        "proportional": r[j] * tau * kl / mean if mean else mpf(0),
        "influence": tau * (log_p[j] - log_q[j]),
        "pivot": max(z[k] - r[k] for k in alive) - (z[j] - r[j]),
    }[view["payment_rule"]]
    assert max(z, key=z.get) == j
    return log_q, mean - tau * kl, tau * kl, paid


@pytest.mark.parametrize("agent", ["TuneTown", "Capped", "Late", "Clicks", "User"])
@pytest.mark.parametrize("rule", PAYMENT_RULES)
def test_the_formulas_give_what_the_view_says(rule, agent):
    with mp.workdps(60):
        view = rich_receipt(rule).view(agent).as_dict()
        _, contribution, expected, paid = by_hand(view)
        own = view["agents"]
        assert sum(bid["contribution"] for bid in own) == pytest.approx(float(contribution), rel=1e-9, abs=1e-12)
        if own[0]["pays"]:
            assert sum(bid["expected"] for bid in own) == pytest.approx(float(expected), rel=1e-9, abs=1e-12)
            assert sum(bid["payment"] for bid in own) == pytest.approx(float(paid), rel=1e-9, abs=1e-12)
        else:
            assert [bid["payment"] for bid in own] == [bid["expected"] for bid in own] == [0.0]


def test_the_law_without_an_agent_is_the_settlements_own():
    result = hold_auction(crowd(), policy=no_b_first, proposal=MIXTURE)
    for i, agent in enumerate(result.agents):
        log_q, *_ = by_hand(result.receipt.view(agent.name).as_dict())
        for k, nats in log_q.items():
            assert float(mp.exp(nats)) == pytest.approx(result.settlement.counterfactuals[i, k], rel=1e-9)


def test_limits_are_the_owners_and_follow_from_public_numbers_alone():
    agents = [
        Agent("One", MentionReward(["b"], value=2.0), owner="Both"),
        Agent("Two", lambda prompt, reply: 9.0 * reply.text.count("c"), owner="Both", report_cap=0.5),
        Agent("Endless", lambda prompt, reply: 1.0 * reply.text.count("a")),
        Agent("Free", MentionReward(["c"], value=1.0), pays=False),
    ]
    one, two, endless, free = hold_auction(agents, tau=2.0).receipt.agents
    assert one.bounds == (0.0, 2.0)
    assert two.bounds == (-0.5, 0.5)
    assert one.most_steering == two.most_steering == 3.0 / 2.0
    assert one.most_expected == two.most_expected == most_charged("expected", 3.0, 2.0) < 3.0**2 / (8 * 2.0)
    assert one.steering == two.steering <= one.most_steering
    assert one.expected + two.expected <= one.most_expected
    assert endless.bounds is endless.most_steering is endless.most_expected is None
    assert endless.steering > 0.0
    assert (free.most_steering, free.most_expected) == (0.5, 0.0)


def test_steering_is_the_largest_change_of_a_log_probability():
    receipt = rich_receipt()
    for bid in receipt.agents:
        with mp.workdps(60):
            view = receipt.view(bid.agent).as_dict()
            log_q, *_ = by_hand(view)
            ratios = [abs(mpf(view["log_probabilities"][k]) - nats) for k, nats in log_q.items()]
        assert bid.steering == pytest.approx(float(max(ratios)), rel=1e-9, abs=1e-12)


def test_no_report_below_zero_counts_towards_a_limit_under_proportional():
    agent = Agent("A", lambda prompt, reply: 1.0 * reply.text.count("a"), report_cap=3.0)
    limits = [hold_auction([agent], payment_rule=rule).receipt.agents[0].most_steering for rule in PAYMENT_RULES]
    assert limits == [3.0 if rule == "proportional" else 6.0 for rule in PAYMENT_RULES]


@given(st.floats(1e-3, 50.0), st.floats(0.05, 20.0), st.integers(0, 2**32), st.sampled_from(PAYMENT_RULES))
@settings(max_examples=30, deadline=None)
def test_no_auction_breaks_a_limit_and_every_receipt_and_view_holds(cap, tau, seed, rule):
    rng = np.random.default_rng(seed)
    owners, pays = [None, "Both", "Both", None], [True, True, True, False]
    agents = [
        Agent(f"A{k}", counts(rng.uniform(-1, 1, 3) * cap), owner=owners[k], pays=pays[k], report_cap=cap)
        for k in range(4)
    ]
    receipt = hold_auction(agents, tau=tau, seed=seed, payment_rule=rule).receipt
    assert all(bid.steering <= bid.most_steering * (1 + 1e-9) for bid in receipt.agents)
    for one in (receipt, *(receipt.view(agent.name) for agent in agents)):
        assert verify(one).differences == ()


def counts(worth):
    return lambda prompt, reply: sum(worth["abc".index(letter)] for letter in reply.text)
