"""The platform's filter: what it excludes is never returned, and what it answers is checked."""

import json
import threading
import time

import numpy as np
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda

from llm_auction_chain import (
    Agent,
    AuctionRunnable,
    CandidatesError,
    ChatAuction,
    ConfigurationError,
    Policy,
    Sampling,
)
from llm_auction_chain.candidates import CandidateFilter, as_message
from llm_auction_chain.mechanism import settle
from llm_auction_chain.testing import MarkovChatModel
from llm_auction_chain.waiting import AWAITING, BLOCKING, run

LIKES_B = Agent("B", lambda prompt, reply: 2.0 * reply.text.count("b"))
LIKES_C = Agent("C", lambda prompt, reply: 1.0 * reply.text.count("c"))
PROMPT = [HumanMessage("x")]
REPLIES = [AIMessage("abc"), AIMessage("aac")]


def auction(agents=(LIKES_B, LIKES_C), **settings):
    model = MarkovChatModel(length=3)
    return AuctionRunnable(**{"model": model, "agents": agents, "n_candidates": 16, "seed": 7, **settings})


async def both(runnable):
    """Return the results of a sync and an async call."""
    return runnable.run("x"), await runnable.arun("x")


def no_b(prompt, reply):
    return "b" not in reply.text


async def ano_b(prompt, reply):
    return no_b(prompt, reply)


RULES = [no_b, RunnableLambda(lambda pair: no_b(**pair)), lambda prompt, reply: np.bool_(no_b(prompt, reply))]


@pytest.mark.parametrize("rule", RULES)
async def test_what_the_filter_excludes_has_no_weight_and_is_shown_to_no_agent(rule):
    shown = []

    def watches(prompt, reply):
        shown.append(reply.text)
        return 1.0

    for result in await both(auction([LIKES_B, LIKES_C, Agent("W", watches)], policy=rule)):
        excluded = [candidate.excluded for candidate in result.candidates]
        assert excluded == ["b" in candidate.message.text for candidate in result.candidates]
        assert 0 < sum(excluded) < len(excluded)
        assert all(weight == -np.inf for weight, out in zip(result.log_weights, excluded, strict=True) if out)
        assert not result.settlement.probabilities[excluded].any()
        assert "b" not in result.reply.text
        assert result.reply.response_metadata["auction"]["diagnostics"]["excluded_replies"] == sum(excluded)
        assert result.draws == 16
    assert shown
    assert not any("b" in text for text in shown)


async def test_an_async_filter_is_awaited_and_refused_where_nothing_can_await_it():
    result = await auction(policy=ano_b).arun("x")
    assert "b" not in result.reply.text
    with pytest.raises(ConfigurationError, match="ainvoke"):
        auction(policy=ano_b).run("x")


async def test_the_law_among_what_is_allowed_is_that_of_an_auction_over_it():
    for result in await both(auction(policy=no_b)):
        kept = [j for j, candidate in enumerate(result.candidates) if not candidate.excluded]
        alone = settle(result.rewards[:, kept], result.log_weights[kept], tau=1.0, seed=0)
        assert result.settlement.probabilities[kept] == pytest.approx(alone.probabilities, rel=1e-12)
        assert result.settlement.expected_payments == pytest.approx(alone.expected_payments, rel=1e-12)


async def test_the_fallback_is_the_reply_where_everything_is_excluded_and_nobody_pays():
    for fallback in ("Let me think.", AIMessage("Let me think.")):
        held = auction(policy=Policy(candidate_filter=lambda prompt, reply: False, fallback=fallback))
        for result in await both(held):
            assert result.reply.text == "Let me think."
            assert result.settlement.payments.tolist() == [0.0, 0.0]
            assert result.draws == 16
            assert json.dumps(result.reply.response_metadata["auction"], allow_nan=False)


async def test_without_a_fallback_an_auction_with_nothing_to_return_says_so():
    held = auction(policy=lambda prompt, reply: False)
    with pytest.raises(CandidatesError, match="excludes all of 16 replies"):
        held.run("x")
    with pytest.raises(CandidatesError, match="excludes all of 16 replies"):
        await held.arun("x")


def test_more_is_drawn_while_the_filter_leaves_too_little():
    once = auction(model=MarkovChatModel(length=9), policy=no_b, n_candidates=4)
    more = auction(
        model=MarkovChatModel(length=9),
        policy=Policy(candidate_filter=no_b, fallback="nothing"),
        n_candidates=4,
        sampling=Sampling(min_ess=2.0, max_candidates=64),
    )
    assert more.run("x").draws > 4
    assert more.run("x").settlement.diagnostics.ess_weights >= 2.0
    assert sum(not candidate.excluded for candidate in more.run("x").candidates) >= 2
    with pytest.raises(CandidatesError, match="excludes all"):
        once.run("x")


@pytest.mark.parametrize(("rule", "error"), [
    (lambda prompt, reply: 1 / 0, CandidatesError), (lambda prompt, reply: "yes", ConfigurationError),
    (lambda prompt, reply: None, ConfigurationError), (lambda prompt, reply: len(3), CandidatesError),
])  # fmt: skip
async def test_a_filter_that_fails_lets_nothing_through(rule, error):
    with pytest.raises(error, match="candidate_filter"):
        auction(policy=rule).run("x")
    with pytest.raises(error, match="candidate_filter"):
        await auction(policy=rule).arun("x")


def test_without_agents_the_filter_still_has_enough_to_choose_from():
    result = auction([], policy=no_b).run("x")
    assert result.draws == 16
    assert "b" not in result.reply.text


class Batched(RunnableLambda):
    """A rule whose batch returns the answers that it is given."""

    def __init__(self, answers):
        super().__init__(lambda pair: True)
        self.answers = answers

    def batch(self, inputs, config=None, **kwargs):
        return self.answers

    async def abatch(self, inputs, config=None, **kwargs):
        return self.answers


@pytest.mark.parametrize("answers", [[True], [True, True, True], []])
async def test_a_filter_that_answers_too_often_or_too_rarely_is_refused(answers):
    rule = CandidateFilter(Batched(answers))
    with pytest.raises(ConfigurationError, match=f"must be 2 answers, one for each reply, got {len(answers)}"):
        run(rule.allowed([], REPLIES, None, BLOCKING))
    with pytest.raises(ConfigurationError, match="2 answers"):
        await rule.allowed([], REPLIES, None, AWAITING)


def test_a_function_that_returns_a_coroutine_is_told_to_be_async():
    rule = CandidateFilter(lambda prompt, reply: ano_b(prompt, reply))  # noqa: PLW0108 - LangChain sees no coroutine function
    with pytest.raises(ConfigurationError, match=r"Write a rule that awaits with async def\."):
        run(rule.allowed([], REPLIES[:1], None, BLOCKING))


def test_a_fallback_is_a_text_or_a_message():
    assert as_message("Sorry.").text == "Sorry."
    assert as_message(REPLIES[0]) is REPLIES[0]
    with pytest.raises(ConfigurationError, match="fallback must be a text or an AIMessage"):
        as_message(3)


async def test_a_fallback_is_no_candidate_while_another_may_be_returned():
    held = auction(policy=Policy(candidate_filter=no_b, fallback="Let me think."))
    for result in await both(held):
        assert any(candidate.excluded for candidate in result.candidates)
        assert "fallback" not in [candidate.component for candidate in result.candidates]
        assert "Let me think." not in [candidate.message.text for candidate in result.candidates]


class Log(BaseCallbackHandler):
    """Keeps what chain runs begin with and what model calls reply."""

    def __init__(self):
        self.heard = []

    def on_chain_start(self, serialized, inputs, **kwargs):
        self.heard.append(str(inputs))

    def on_llm_end(self, response, **kwargs):
        self.heard.append(response.generations[0][0].text)


@pytest.mark.parametrize("waiter", [BLOCKING, AWAITING])
async def test_a_rule_sees_the_prompt_and_each_reply(waiter):
    seen = []

    def rule(prompt, reply):
        seen.append((prompt, reply.text))
        return True

    async def arule(prompt, reply):
        return rule(prompt, reply)

    for one in (rule, RunnableLambda(lambda pair: rule(**pair)), *([arule] if waiter is AWAITING else [])):
        seen.clear()
        deciding = CandidateFilter(one).allowed(PROMPT, REPLIES, {"max_concurrency": 1}, waiter)
        assert (run(deciding) if waiter is BLOCKING else await deciding) == [True, True]
        assert seen == [(PROMPT, "abc"), (PROMPT, "aac")]


@pytest.mark.parametrize("rule", [no_b, ano_b, RunnableLambda(lambda pair: no_b(**pair))])
async def test_no_log_of_a_chat_auction_holds_what_a_function_was_asked_about(rule):
    log = Log()
    held = ChatAuction(model=MarkovChatModel(length=3), agents=[LIKES_B], n_candidates=16, seed=7, policy=rule)
    reply = await held.ainvoke("x", {"callbacks": [log]})
    if not isinstance(rule, RunnableLambda):
        assert log.heard == [reply.text]
    else:
        assert any("'reply'" in heard for heard in log.heard)


@pytest.mark.parametrize("waiter", [BLOCKING, AWAITING])
async def test_rules_that_wait_are_asked_side_by_side_no_more_at_once_than_allowed(waiter):
    together, busy, most = threading.Barrier(4, timeout=10), [], []

    def meets(prompt, reply):
        together.wait()
        return True

    def counts(prompt, reply):
        busy.append(reply)
        most.append(len(busy))
        time.sleep(0.005)
        busy.remove(reply)
        return True

    replies = [AIMessage(f"reply {k}") for k in range(4)]
    for rule, config in ((meets, None), (counts, {"max_concurrency": 2})):
        deciding = CandidateFilter(rule).allowed(PROMPT, replies, config, waiter)
        assert (run(deciding) if waiter is BLOCKING else await deciding) == [True] * 4
    assert max(most) <= 2


async def test_an_object_whose_call_is_async_is_an_async_rule():
    class Slow:
        async def __call__(self, prompt, reply):
            return no_b(prompt, reply)

    assert await CandidateFilter(Slow()).allowed(PROMPT, REPLIES, None, AWAITING) == [False, True]
    with pytest.raises(ConfigurationError, match="candidate_filter is async"):
        run(CandidateFilter(Slow()).allowed(PROMPT, REPLIES, None, BLOCKING))
