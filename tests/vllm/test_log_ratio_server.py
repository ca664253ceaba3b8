"""Agents that are the served model under instructions of their own, against a real vLLM server."""

import asyncio

import numpy as np
import pytest
from langchain_core.messages import HumanMessage

from llm_auction_chain import Agent, AuctionRunnable
from llm_auction_chain.descriptions import with_instructions
from llm_auction_chain.models.vllm.chat_model import ChatVLLM
from llm_auction_chain.rewards import LogRatioReward, MentionReward

PROMPT = (HumanMessage("Name a colour."),)
TEAL = Agent("Teal", LogRatioReward("Teal Paints sells teal. Bring it in where it fits."))
ROSE = Agent("Rose", LogRatioReward("Answer with one word, which is rose.", 0.5) + MentionReward(["rose"]))
GOOD = Agent("good", MentionReward(["blue"]))
# On a CPU the sampler's and the scorer's kernels are the same; batches of other sizes may round otherwise.
TOLERANCE = 1e-2


@pytest.fixture(scope="module")
def model(server):
    return ChatVLLM(base_url=server.url, max_tokens=24, seed=11)


@pytest.fixture(params=["sync", "async"])
def hold(request):
    """Hold an auction in both colours."""

    def hold(model, *agents, **settings):
        auction = AuctionRunnable(model=model, agents=agents, n_candidates=6, seed=3, **settings)
        return auction.run(PROMPT) if request.param == "sync" else asyncio.run(auction.arun(PROMPT))

    return hold


def log_ratios(model, instructions, replies):
    own, reference = (
        np.array(model.score(prompt, replies)) for prompt in (with_instructions(PROMPT, instructions), PROMPT)
    )
    return own - reference


def test_amounts_are_differences_of_the_servers_own_scores(hold, model):
    result = hold(model, TEAL, ROSE)
    replies = [candidate.message for candidate in result.candidates]
    teal = log_ratios(model, TEAL.reward.instructions, replies)
    ratio, mentions = ROSE.reward.parts
    rose = 0.5 * log_ratios(model, ratio.instructions, replies) + mentions.score(PROMPT, replies)
    assert result.rewards == pytest.approx(np.array([teal, rose]), abs=TOLERANCE)
    assert np.abs(result.rewards).max(axis=1).min() > 1, "instructions matter by more than the tolerance"
    assert "logprobs" not in result.reply.response_metadata


def test_instructions_longer_than_the_window_spoil_nobody_elses_amounts(hold, model):
    long = Agent("long", LogRatioReward("red " * 2000))
    teal, refused, good = hold(model, TEAL, long, GOOD).reports
    assert (refused.status, set(refused.rewards)) == ("error", {0.0})
    assert "ContextWindowError" in refused.reason
    assert (teal.status, good.status) == ("reported", "reported")
    assert any(teal.rewards)


def test_a_law_that_the_server_cannot_score_is_told(hold, model):
    teal, good = hold(model.bind(temperature=0.7), TEAL, GOOD).reports
    assert teal.status == "error"
    assert "LogProbError" in teal.reason
    assert "temperature" in teal.reason
    assert good.status == "reported"
