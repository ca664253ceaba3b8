"""The explanation says what the settlement computed, and which reply there would be without an agent."""

import json
from decimal import Decimal

import numpy as np
import pytest

from llm_auction_chain import Agent
from llm_auction_chain.mechanism import settle
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
