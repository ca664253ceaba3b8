"""What another tau or a lie would have done to one auction, from its stored candidates."""

import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_auction_chain import Agent, AuctionRunnable, AuctionWarning, ConfigurationError, Policy
from llm_auction_chain.errors import RewardError
from llm_auction_chain.mechanism import PAYMENT_RULES
from llm_auction_chain.rewards import MentionReward
from llm_auction_chain.server.page_html import what_if_html
from llm_auction_chain.server.what_if import FACTORS, liars_of, what_if
from llm_auction_chain.testing import MarkovChatModel


def likes(letter, value):
    return lambda prompt, reply: value * reply.text.count(letter)


def settled(*agents, model=None, **terms):
    agents = agents or (Agent("B", likes("b", 2.0)), Agent("C", likes("c", 1.0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AuctionWarning)
        auction = AuctionRunnable(model=model or MarkovChatModel(), agents=agents, **{"n_candidates": 9, **terms})
        return auction.run("Say something")


def kl(p, q):
    live = p > 0
    return float((p[live] * np.log(p[live] / q[live])).sum())


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(0, 8), min_size=2, max_size=3),
    tau=st.floats(0.2, 8),
    rule=st.sampled_from(sorted(PAYMENT_RULES)),
    factor=st.sampled_from(FACTORS),
    one_owner=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_curve_peaks_at_the_truth_and_a_lie_loses_tau_times_the_divergence(
    values, tau, rule, factor, one_owner, seed
):
    owners = ["O", "O" if one_owner else None, None]
    agents = [
        Agent(name, likes(name, value), owner=owner) for name, value, owner in zip("abc", values, owners, strict=False)
    ]
    result = settled(*agents, payment_rule=rule, seed=seed)
    truth = what_if(result, tau=tau, liar="a")
    assert truth.utility == truth.truthful == truth.curve[truth.factors.index(1.0)]
    assert max(truth.curve) - truth.truthful <= 1e-12 * (1 + sum(values))
    if rule == "proportional":
        factor = abs(factor)
    lie = what_if(result, tau=tau, liar="a", factor=factor)
    p, honest = (one.point.settlement.probabilities for one in (lie, truth))
    assert lie.truthful - lie.utility == pytest.approx(tau * kl(p, honest), abs=1e-9 * (1 + sum(values)))


def test_an_owner_lies_with_all_of_its_agents():
    result = settled(
        Agent("B", likes("b", 2.0), owner="O"), Agent("C", likes("c", 1.0), owner="O"), Agent("A", likes("a", 1.0)),
        seed=7,
    )  # fmt: skip
    by_b, by_c = what_if(result, tau=1.0, liar="B", factor=3.0), what_if(result, tau=1.0, liar="C", factor=3.0)
    assert by_b.curve == by_c.curve
    assert by_b.owner == "O"
    assert "O, with all 2 of its agents," in what_if_html(result, by_b)


def test_another_tau_is_that_of_the_sweep_and_calls_neither_model_nor_agent():
    calls = Counter()

    class Watched(MarkovChatModel):
        def _generate(self, *args, **kwargs):
            calls["model"] += 1
            return super()._generate(*args, **kwargs)

    def reward(prompt, reply):
        calls["agent"] += 1
        return float(reply.text.count("b"))

    result = settled(Agent("B", reward), model=Watched(), seed=7)
    before = dict(calls)
    same, steered = what_if(result, tau=1.0, liar="B"), what_if(result, tau=0.01, liar="B")
    assert dict(calls) == before
    assert np.array_equal(same.point.settlement.probabilities, result.settlement.probabilities)
    assert same.point.settlement.winner == result.settlement.winner
    assert steered.point.distance > same.point.distance
    assert same.welfare == pytest.approx(result.settlement.probabilities @ result.rewards[0])


def test_a_lie_stays_within_the_cap_but_not_within_what_the_reward_declares():
    agents = [Agent("B", MentionReward(["bb", "cb"], value=2.0)), Agent("C", likes("c", 1.0), report_cap=1.0)]
    result = settled(*agents, n_candidates=16, seed=7)
    twice = what_if(result, tau=1.0, liar="B", factor=2.0)
    assert not np.allclose(twice.point.settlement.probabilities, result.settlement.probabilities)
    capped = [what_if(result, tau=1.0, liar="C", factor=factor).utility for factor in (1.0, 2.0)]
    assert capped[0] == capped[1]


def test_under_the_proportional_rule_no_report_turns_negative():
    result = settled(payment_rule="proportional", seed=7)
    assert what_if(result, tau=1.0, liar="B").factors == FACTORS[10:]
    with pytest.raises(RewardError):
        what_if(result, tau=1.0, liar="B", factor=-1.0)


def test_forbidden_replies_stay_forbidden():
    result = settled(policy=Policy(candidate_filter=lambda prompt, reply: "b" not in reply.text), seed=7)
    p = what_if(result, tau=0.1, liar="B", factor=3.0).point.settlement.probabilities
    forbidden = [candidate.excluded for candidate in result.candidates]
    assert any(forbidden)
    assert p[forbidden].max() == 0.0


def test_only_agents_that_pay_may_lie():
    result = settled(Agent("B", likes("b", 2.0)), Agent("user", likes("a", 1.0), pays=False), seed=7)
    assert liars_of(result) == ["B"]
    with pytest.raises(ConfigurationError, match="'user' is not an agent of this auction that pays"):
        what_if(result, tau=1.0, liar="user")
    assert what_if(result, tau=1.0).curve == ()
