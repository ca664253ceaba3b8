"""A view is enough to compute what its owner pays, by the formulas and nothing else, and tells of nobody else."""

import json

import numpy as np
import pytest
from mpmath import mp, mpf

from llm_auction_chain import Agent, ConfigurationError
from llm_auction_chain.mechanism import PAYMENT_RULES
from llm_auction_chain.mechanism.allocation import streams_of
from llm_auction_chain.receipts import verify
from llm_auction_chain.receipts.commitments import salt_of
from tests.unit.receipts.made import MIXTURE, crowd, fails, held, no_b_first, recommitted, rich

FRESH = {"auction_id", "time", "salts", "hidden", "replies", "prompt", "reports", "opening", "digest", "receipt"}


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
        view = rich(rule).view(agent).as_dict()
        _, contribution, expected, paid = by_hand(view)
        own = view["agents"]
        assert sum(bid["contribution"] for bid in own) == pytest.approx(float(contribution), rel=1e-9, abs=1e-12)
        if own[0]["pays"]:
            assert sum(bid["expected"] for bid in own) == pytest.approx(float(expected), rel=1e-9, abs=1e-12)
            assert sum(bid["payment"] for bid in own) == pytest.approx(float(paid), rel=1e-9, abs=1e-12)
        else:
            assert [bid["payment"] for bid in own] == [bid["expected"] for bid in own] == [0.0]


def test_the_law_without_an_agent_is_the_settlements_own():
    result = held(crowd(), candidate_filter=no_b_first, proposal=MIXTURE)
    for i, agent in enumerate(result.agents):
        log_q, *_ = by_hand(result.receipt.view(agent.name).as_dict())
        for k, nats in log_q.items():
            assert float(mp.exp(nats)) == pytest.approx(result.settlement.counterfactuals[i, k], rel=1e-9)


def counts(letter, worth):
    return lambda prompt, reply: worth * reply.text.count(letter)


def test_views_of_auctions_that_differ_in_the_others_reports_alone_are_equal():
    mine, a, c = Agent("Mine", counts("b", 1.0)), counts("a", 0.5), counts("c", 2.0)
    one, other = (
        held([mine, Agent("P", first, report_cap=cap), Agent("Q", second)]).receipt
        for first, second, cap in [(a, c, None), (c, a, 9.0)]
    )
    assert one.agents[1].report == other.agents[2].report != other.agents[1].report
    seen, also = one.view("Mine").as_dict(), other.view("Mine").as_dict()
    assert {name: seen[name] for name in seen if name not in FRESH} == {
        name: also[name] for name in also if name not in FRESH
    }
    assert set(seen["hidden"]) == set(also["hidden"])


def test_a_view_has_no_name_number_status_or_cap_of_anybody_else():
    others = [
        Agent("Zebra", counts("a", 0.123456), owner="Zoo", report_cap=77.125, categories=["cars"], context="TuneTown"),
        Agent("Yak", fails),
        Agent("Gnu", counts("c", 0.0625), pays=False),
        Agent("Rival", counts("c", 1.0), categories=["cars"]),
    ]
    receipt = held([Agent("Mine", counts("b", 1.0)), *others], exclusive_categories=["cars"], proposal=MIXTURE).receipt
    told, text = (json.dumps(one.as_dict()) for one in (receipt, receipt.view("Mine")))
    secrets = {
        "Zebra",
        "Zoo",
        "Yak",
        "Gnu",
        "Rival",
        "77.125",
        "LookupError",
        '"error"',
        "cars",
        "context p",
        receipt.salt,
    }
    secrets |= {
        "components",
        "revenue",
        "left_out",
        "log_weights",
        *receipt.reports[1:],
        f'"{receipt.agents[1].charge}"',
    }
    for bid in receipt.agents[1:]:
        secrets |= {repr(figure) for figure in (*bid.report, bid.contribution, bid.expected) if figure % 0.5}
    for secret in secrets:
        assert secret in told
        assert secret not in text


def test_neither_the_number_of_agents_nor_a_salt_of_theirs_can_be_told_from_a_view():
    few, many = (held([Agent("Mine", counts("b", 1.0)), *more]).receipt.view("Mine").as_dict() for more in [
        [], [Agent(str(k), counts("c", 0.0)) for k in range(5)],
    ])  # fmt: skip
    shape = {name: len(value) if isinstance(value, list | dict) else None for name, value in few.items()}
    assert {name: len(value) if isinstance(value, list | dict) else None for name, value in many.items()} == shape
    assert len(few["salts"]["reports"]) == len(many["salts"]["reports"]) == 1


def test_a_view_replays_the_draw_and_not_the_candidates():
    receipt = rich(seed=2**60 + 3)
    view = receipt.view("Capped")
    assert verify(view).ok
    assert receipt.seed == str(2**60 + 3)
    text = json.dumps(view.as_dict())
    assert receipt.seed not in text
    assert str(streams_of(int(receipt.seed))[0]) not in text
    assert view.draw_seed == str(streams_of(int(receipt.seed))[1])
    assert salt_of(receipt.salt, "seed") not in text


def test_the_seed_of_the_draw_is_that_of_the_auction():
    forged = {**rich().as_dict(), "seed": "8"}
    assert "draw_seed" in {found.field for found in verify(recommitted(forged)).differences}


def test_an_owner_sees_all_of_its_agents_in_one_view():
    receipt = rich()
    assert receipt.view("TuneTown") == receipt.view("StringSchool")
    assert [bid.agent for bid in receipt.view("TuneTown").agents] == ["TuneTown", "StringSchool"]
    with pytest.raises(ConfigurationError, match=r"'Rival' took no part .* 'TuneTown', "):
        receipt.view("Rival")


def test_views_of_one_auction_agree_in_all_that_is_shared():
    receipt = rich()
    shared = [
        {name: value for name, value in receipt.view(bid.agent).as_dict().items() if name not in
         ("agents", "reports", "salts", "digest")} for bid in receipt.agents
    ]  # fmt: skip
    assert all(one == shared[0] for one in shared)
    assert shared[0]["receipt"] == receipt.digest


def test_a_view_of_two_owners_is_none():
    receipt = rich()
    one, other = receipt.view("Capped"), receipt.view("Clicks")
    forged = one.model_copy(update={"agents": one.agents + other.agents, "reports": one.reports + other.reports})
    told = [str(difference) for difference in verify(forged).differences]
    assert any("a view has one owner" in text for text in told)
    assert any("a view has at least one" in str(d) for d in verify(one.model_copy(update={"agents": ()})).differences)
