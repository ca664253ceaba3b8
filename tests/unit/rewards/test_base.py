"""Rewards are added and multiplied reply by reply, and a reward that waits writes its work once."""

import asyncio
import threading

import pytest
from langchain_core.messages import AIMessage

from llm_auction_chain import ConfigurationError
from llm_auction_chain.rewards import LengthReward, MentionReward, Reward
from llm_auction_chain.rewards.base import WaitingReward

REPLIES = [AIMessage("one"), AIMessage("one two")]


class Words(Reward):
    def score(self, prompt, replies):
        return [float(len(reply.text.split())) for reply in replies]


class Waits(WaitingReward):
    """Waits for another one like it, in a thread or in the loop."""

    def __init__(self, blocking, awaiting):
        self.blocking, self.awaiting = blocking, awaiting

    async def _score(self, prompt, replies, waiter):
        blocking, awaiting = self.blocking, self.awaiting
        await waiter.either(lambda: blocking.wait(60), lambda: asyncio.wait_for(awaiting.wait(), 60))
        return [2.0] * len(replies)


@pytest.fixture(params=["blocking", "awaiting"])
def score(request):
    if request.param == "blocking":
        return lambda reward: list(reward.score([], REPLIES))
    return lambda reward: list(asyncio.run(reward.ascore([], REPLIES)))


@pytest.mark.parametrize(("reward", "expected"), [
    (Words() + 1, [2.0, 3.0]), (1 + Words(), [2.0, 3.0]), (Words() * 0.5, [0.5, 1.0]), (2 * Words(), [2.0, 4.0]),
    (Words() + Words() * Words(), [2.0, 6.0]), (Words() + (lambda prompt, reply: 0.5), [1.5, 2.5]),
    ((lambda prompt, reply: 2.0) * Words(), [2.0, 4.0]), (Words() * MentionReward(["two"]), [0.0, 2.0]),
    (LengthReward(2, 1) + MentionReward(["one"]) + 1, [2.0, 3.0]),
])  # fmt: skip
def test_parts_are_combined_reply_by_reply(score, reward, expected):
    assert score(reward) == expected
    assert not reward.awaits


@pytest.mark.parametrize("part", ["1", True, None, [1.0], Words().ascore])
def test_a_part_that_scores_nothing_is_refused(part):
    with pytest.raises(ConfigurationError, match=r"A part of a reward with [+*] must be a reward, a number"):
        Words() + part
    with pytest.raises(ConfigurationError):
        part * Words()


def test_parts_that_wait_wait_side_by_side():
    blocking = threading.Barrier(2)
    both = Waits(blocking, None) + Waits(blocking, None)
    assert both.awaits
    assert both.score([], REPLIES) == [4.0, 4.0]

    async def awaited():
        awaiting = asyncio.Barrier(2)
        return await (Waits(None, awaiting) * Waits(None, awaiting)).ascore([], REPLIES)

    assert asyncio.run(asyncio.wait_for(awaited(), 60)) == [4.0, 4.0]


def test_an_error_of_a_part_is_raised(score):
    class Fails(WaitingReward):
        async def _score(self, prompt, replies, waiter):
            raise LookupError("no amounts")

    with pytest.raises(LookupError, match="no amounts"):
        score(Fails() + Words())
    with pytest.raises(ZeroDivisionError):
        score(Words() + (lambda prompt, reply: 1 / 0))


def test_a_reward_that_only_has_score_is_awaited_in_a_thread():
    threads = []

    class Notes(Reward):
        def score(self, prompt, replies):
            threads.append(threading.current_thread())
            return [1.0] * len(replies)

    assert asyncio.run(Notes().ascore([], REPLIES)) == [1.0, 1.0]
    assert threads[0] is not threading.main_thread()
    assert threads[0].daemon


def test_a_reward_without_score_is_none():
    with pytest.raises(TypeError, match="abstract"):
        Reward()
    with pytest.raises(TypeError, match="abstract"):
        WaitingReward()
