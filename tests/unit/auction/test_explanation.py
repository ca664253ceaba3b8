"""The explanation says what the settlement computed, and which reply there would be without an agent."""

import json
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest

from llm_auction_chain import Agent
from llm_auction_chain.mechanism import settle
from llm_auction_chain.mechanism.payments import most_charged
from llm_auction_chain.testing import MarkovChatModel
from tests.unit.auction.auctions import auction, both


async def test_the_explanation_holds_the_settlements_own_figures():
    for result in await both(auction()):
        told = result.explain()
        for i, agent in enumerate(told.agents):
            without = settle(
                np.delete(result.rewards, i, axis=0), result.log_weights, tau=1.0, seed=result.settlement.seed
            )
            assert agent.reply_without == result.candidates[without.winner].message.text
            assert agent.changed_the_reply == (without.winner != result.settlement.winner)
            assert agent.influence == pytest.approx(
                abs(without.probabilities - result.settlement.probabilities).sum() / 2, abs=1e-9
            )
            assert agent.contribution == result.settlement.contributions[i]
            assert Decimal(agent.charge) == result.charges[i]
        assert json.loads(json.dumps(told.as_dict(), allow_nan=False)) == told.as_dict()
        for name in ("B", "C", told.reply):
            assert name in str(told)


def test_an_explanation_says_what_would_have_been_the_reply_instead():
    loud = Agent("Loud", lambda prompt, reply: 50.0 * (reply.text == "bcb"))
    result = auction([loud], model=MarkovChatModel(length=3), n_candidates=64).run("x")
    assert result.reply.text == "bcb"
    (told,) = result.explain().agents
    assert told.changed_the_reply
    assert f'Without it: "{told.reply_without}"' in str(result.explain())


def test_an_explanation_sets_what_happened_beside_what_could_have():
    capped = Agent("Capped", lambda prompt, reply: 2.0 * reply.text.count("b"), report_cap=3.0, owner="Firm")
    endless = Agent("Endless", lambda prompt, reply: 1.0 * reply.text.count("c"))
    result = auction([capped, endless], tau=1.5).run("x")
    told = result.explain()
    one, other = told.agents
    assert one.steering == result.settlement.steering[0] <= one.most_steering == 6.0 / 1.5
    assert one.expected_payment == result.settlement.expected_payments[0] <= one.most_expected_payment
    assert one.most_expected_payment == most_charged("expected", 6.0, 1.5) <= 6.0**2 / (8 * 1.5)
    assert (other.most_steering, other.most_expected_payment) == (None, None)
    line = (
        "Its owner, Firm, can change no reply's probability by more than a factor of 54.60, and pays at most 2.504774"
    )
    assert str(told).count("can change") == 1
    assert line in str(told)
    assert "more than a factor of e^600, and" in str(auction([capped], tau=0.01).run("x").explain())
    house = replace(capped, pays=False)
    assert "by more than a factor of 54.60." in str(auction([house], tau=1.5).run("x").explain())
