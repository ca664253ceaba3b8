"""A view and the formulas are enough to compute what its owner pays."""

import numpy as np
import pytest
from mpmath import mp, mpf

from llm_auction_chain.mechanism import PAYMENT_RULES
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
