"""Whole auctions with agents that fail or report extreme amounts: what they cannot move, and what stays finite."""

import asyncio
import gc
import json
import sys
import weakref
from decimal import Decimal
from fractions import Fraction

import pytest

from llm_auction_chain import Agent, AuctionRunnable, ConfigurationError, Policy
from llm_auction_chain.rewards import ClickReward, LogRatioReward
from llm_auction_chain.testing import MarkovChatModel

GOOD = Agent("good", lambda prompt, reply: 1.0)


@pytest.fixture(params=["sync", "async"])
def hold(request):
    """Hold an auction, as a caller that blocks and as one that awaits."""

    def held(*agents, seed=7, **settings):
        auction = AuctionRunnable(model=MarkovChatModel(), agents=agents, n_candidates=4, seed=seed, **settings)
        return auction.run("Say something") if request.param == "sync" else asyncio.run(auction.arun("Say something"))

    return held


def deep(prompt, reply):
    return deep(prompt, reply)


def test_a_callback_may_run_a_loop_or_an_auction_of_its_own(hold):
    inner = AuctionRunnable(model=MarkovChatModel(), agents=[GOOD], n_candidates=2)

    def nests(prompt, reply):
        asyncio.run(asyncio.sleep(0))
        return float(inner.run("Say something").revenue) + 2.0

    async def anests(prompt, reply):
        return float((await inner.arun("Say something")).revenue) + 2.0

    first, second, good = hold(Agent("nests", nests), Agent("anests", anests), GOOD).reports
    assert (first.status, second.status, good.status) == ("reported",) * 3
    assert set(first.rewards + second.rewards) == {2.0}


def test_a_scorer_that_an_agent_brings_cannot_change_the_candidates(hold):
    class Rewrites:
        def score(self, prompt, replies):
            for message in (*prompt, *replies):
                message.content = "mine"
            return [-1.0] * len(replies)

    result = hold(Agent("bad", LogRatioReward("Sing.", scorer=Rewrites())))
    assert "mine" not in [candidate.message.text for candidate in result.candidates]
    assert result.prompt[0].text == "Say something"


@pytest.mark.parametrize("reward", [
    lambda prompt, reply: 50.0 * reply.text.count("b"), deep, lambda prompt, reply: "no number",
    lambda prompt, reply: sys.exit(),
])  # fmt: skip
def test_no_report_and_no_failure_moves_what_is_drawn_from(hold, reward):
    silent = hold(Agent("A", lambda prompt, reply: 0.0), GOOD, report_cap=5.0)
    loud = hold(Agent("A", reward), GOOD, report_cap=5.0)
    assert [one.message.content for one in loud.candidates] == [one.message.content for one in silent.candidates]
    assert loud.log_weights.tolist() == silent.log_weights.tolist()
    assert [agent.name for agent in loud.agents] == ["A", "good"]


@pytest.mark.parametrize("rule", ["expected", "proportional", "influence", "pivot"])
@pytest.mark.parametrize("amount", [5e-324, 1e-9, 745.0, 1e100])
@pytest.mark.parametrize("tau", [1e-100, 1.0, 1e100])
def test_extreme_reports_give_finite_json_whose_decimals_add_up(rule, amount, tau):
    agents = [
        Agent("A", lambda prompt, reply: amount * reply.text.count("b"), owner="O", report_cap=1e100),
        Agent("B", lambda prompt, reply: amount * (len(reply.text) % 2), owner="O"),
        Agent("user", lambda prompt, reply: 1.0, pays=False),
        Agent("gone", deep),
    ]
    auction = AuctionRunnable(
        model=MarkovChatModel(), agents=agents, n_candidates=6, tau=tau, payment_rule=rule, seed=3,
        policy=Policy(candidate_filter=lambda prompt, reply: reply.text != "a", fallback="Sorry"), report_cap=1e100,
    )  # fmt: skip
    result = auction.run("Say something")
    told = json.loads(json.dumps(result.reply.response_metadata["auction"], allow_nan=False))
    json.dumps(result.explain().as_dict(), allow_nan=False)
    assert not {"nan", "inf"} & set(str(result.explain()).split())
    assert result.revenue == Decimal(told["revenue_decimal"])
    for amounts in ([Decimal(one["amount_decimal"]) for one in told["payments"]], result.charges):
        assert sum(map(Fraction, amounts)) == Fraction(result.revenue)
    assert told["payments"][2]["amount_decimal"] == told["payments"][3]["amount_decimal"] == "0.000000"


def test_results_are_gone_when_nothing_refers_to_them(hold):
    async def awaited(prompt, reply):
        await asyncio.sleep(0)
        return 1.0

    def one():
        return weakref.ref(hold(GOOD, Agent("deep", deep), Agent("awaited", awaited)))

    results = [one() for _ in range(5)]
    gc.collect()
    assert [result() for result in results] == [None] * 5


@pytest.mark.parametrize("timeout", [1e7, 1e300])
def test_a_deadline_beyond_what_a_thread_can_wait_is_refused(timeout):
    with pytest.raises(ConfigurationError, match="reward_timeout"):
        AuctionRunnable(model=MarkovChatModel(), reward_timeout=timeout)


@pytest.mark.parametrize("rule", ["expected", "proportional", "influence", "pivot"])
@pytest.mark.parametrize("chance", [5e-324, 1e-310, 1e-200, 1e-12])
def test_a_click_that_is_next_to_impossible_has_no_price(rule, chance):
    agents = [Agent("A", ClickReward(1e9, lambda prompt, reply: 0.5 if "b" in reply.text else chance)), GOOD]
    for seed in range(4):
        auction = AuctionRunnable(
            model=MarkovChatModel(), agents=agents, n_candidates=4, payment_rule=rule, seed=seed, tau=1e8
        )
        result = auction.run("x")
        assert result.reply.response_metadata["auction"]["payments"][0]["amount_decimal"]
        assert str(result.explain())
    with pytest.raises(ConfigurationError, match="value_per_click"):
        ClickReward(1.1e9, lambda prompt, reply: 0.5)
