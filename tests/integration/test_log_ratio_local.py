"""Agents that are a local model under instructions: their tokens, their law, and work that stops when they are late."""

import asyncio
import contextlib
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
from langchain_core.messages import HumanMessage

from llm_auction_chain import Agent, AuctionRunnable, ChatTransformers, Policy, Reference
from llm_auction_chain.descriptions import with_instructions
from llm_auction_chain.reports import Terms, collect
from llm_auction_chain.rewards import LogRatioReward
from llm_auction_chain.rewards.log_ratio import groups_by_reward
from llm_auction_chain.waiting import AWAITING, BLOCKING, run

PROMPT = (HumanMessage("Hi"),)
AGENTS = [Agent("A", LogRatioReward("Hi Hi")), Agent("B", LogRatioReward("system no", -0.5))]
GOOD = Agent("good", lambda prompt, reply: 1.0)


@pytest.fixture
def model(seven_words):
    return ChatTransformers(model=seven_words, dtype="float32", device="cpu", max_tokens=6)


@pytest.fixture(params=["sync", "async"])
def hold(request):
    """Hold an auction, as a caller that blocks and as one that awaits."""

    def hold(model, agents=AGENTS, **settings):
        auction = AuctionRunnable(
            model=model, agents=agents, n_candidates=12, seed=8, proposal=Reference(), tau=2.0, **settings
        )
        return auction.run("Hi") if request.param == "sync" else asyncio.run(auction.arun("Hi"))

    return hold


def log_ratios(model, agent, replies, **law):
    own, reference = (
        np.array(model.score(prompt, replies, **law))
        for prompt in (with_instructions(PROMPT, agent.reward.instructions), PROMPT)
    )
    return agent.reward.value * (own - reference)


@pytest.mark.parametrize("law", [{}, {"temperature": 0.7}])
def test_the_amounts_are_those_of_the_law_that_replies_are_drawn_from(hold, model, law):
    result = hold(model.bind(**law) if law else model)
    assert result.components == (("reference", 12),)
    replies = [candidate.message for candidate in result.candidates]
    for agent, amounts in zip(AGENTS, result.rewards, strict=True):
        assert amounts == pytest.approx(log_ratios(model, agent, replies, **law), abs=1e-4)
        assert amounts.std() > 0.01
    if law:
        assert result.rewards[0] != pytest.approx(log_ratios(model, AGENTS[0], replies), abs=1e-3)


def test_the_reply_shows_no_log_probabilities_that_nobody_asked_for(hold, model):
    result = hold(model)
    assert all("logprobs" in candidate.message.response_metadata for candidate in result.candidates)
    assert "logprobs" not in result.reply.response_metadata
    assert "logprobs" in hold(model.bind(logprobs=True)).reply.response_metadata
    assert all("logprobs" not in one.message.response_metadata for one in hold(model, [GOOD]).candidates)


def test_all_agents_are_one_batch_of_the_engine(hold, model, monkeypatch):
    engine, asked = model._engine(), []
    score = engine.score

    def watched(prompts, *given, **settings):
        asked.append(len(prompts))
        return score(prompts, *given, **settings)

    monkeypatch.setattr(engine, "score", watched)
    hold(model, [*AGENTS, Agent("C", LogRatioReward("Hi Hi", 3.0) * 2 + 1.0)])
    assert asked == [3]


@pytest.mark.parametrize("strange", ["Hi " * 400, "half a pair: \ud800"], ids=["too long", "no text"])
def test_instructions_that_the_model_cannot_read_spoil_nobody_elses_amounts(hold, model, strange):
    *reports, bad = hold(model, [*AGENTS, Agent("bad", LogRatioReward(strange))]).reports
    assert (bad.status, set(bad.rewards)) == ("error", {0.0})
    assert all(report.status == "reported" and any(report.rewards) for report in reports)


def test_truncation_under_which_a_reply_is_impossible_is_told(hold, model):
    agent = Agent("A", LogRatioReward("system : system"))
    (report,) = hold(model.model_copy(update={"top_k": 2}), [agent]).reports
    assert report.status == "invalid"
    assert "impossible under the agent's instructions" in report.reason
    assert "draw without top_p and top_k" in report.reason


def test_a_filter_that_leaves_the_fallback_alone_leaves_nothing_to_compare(hold, model):
    result = hold(
        model, [*AGENTS, GOOD], policy=Policy(candidate_filter=lambda prompt, reply: False, fallback="Sorry.")
    )
    assert result.reply.text == "Sorry."
    assert [report.status for report in result.reports] == ["error", "error", "reported"]
    assert "tokens are unknown" in result.reports[0].reason


def drawn(model):
    return [one.message for one in model.generate([list(PROMPT)], n=4, seed=1, logprobs=True).generations[0]]


@contextlib.contextmanager
def busy(engine):
    """Hold the engine's turn, so that whatever is asked of it waits."""
    with engine._requests.turn():
        yield engine._requests._waiting


def until(said):
    for _ in range(2000):
        if said():
            return True
        threading.Event().wait(0.005)
    return False


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_late_agents_leave_the_engine_to_the_next_auction(model, colour):
    asked = [*AGENTS, GOOD], PROMPT, drawn(model), Terms(scorer=model, timeout=0.3)
    with busy(model._engine()) as waiting:
        reports = (
            run(collect(*asked, waiter=BLOCKING)) if colour == "sync" else asyncio.run(collect(*asked, waiter=AWAITING))
        )
        assert [report.status for report in reports] == ["timeout", "timeout", "reported"]
        assert until(lambda: len(waiting) == 1), "only this test waits"


def test_a_stopped_group_leaves_the_engine_to_the_next_auction(model):
    reward, ended = AGENTS[0].reward, []
    group = groups_by_reward([[reward]], PROMPT, drawn(model), scorer=model)[reward]

    def hear():
        with pytest.raises(CancelledError, match="call was cancelled"):
            run(group.amounts(reward, BLOCKING))
        ended.append(True)

    thread = threading.Thread(target=hear, daemon=True)
    with busy(model._engine()) as waiting:
        thread.start()
        assert until(lambda: len(waiting) == 2)
        group.stop()
        thread.join(10)
        assert len(waiting) == 1
    assert ended


def test_the_embedded_models_agents_are_worth_differences_of_its_scores():
    model = ChatTransformers(max_tokens=4, dtype="float32")
    agents = [
        Agent("TuneTown", LogRatioReward("Recommend TuneTown's guitars.")),
        Agent("SongBook", LogRatioReward("Recommend SongBook's sheet music.", 0.5)),
    ]
    auction = AuctionRunnable(model=model, agents=agents, n_candidates=2, seed=1)
    result = auction.run("How do I learn a song?")
    prompt = (HumanMessage("How do I learn a song?"),)
    replies = [candidate.message for candidate in result.candidates]
    reference = np.array(model.score(prompt, replies))
    for agent, amounts in zip(agents, result.rewards, strict=True):
        own = np.array(model.score(with_instructions(prompt, agent.reward.instructions), replies))
        assert amounts == pytest.approx(agent.reward.value * (own - reference), abs=2e-3)
        assert np.abs(amounts).max() > 0.05
