"""A reward of any kind is asked the same, by callers that block and callers that await."""

import asyncio
import functools
import threading

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableGenerator, RunnableLambda

from llm_auction_chain import Agent
from llm_auction_chain.reports import collect
from llm_auction_chain.reports.collect import awaits
from llm_auction_chain.rewards import EmbeddingReward, LogRatioReward, MentionReward, WebhookReward
from llm_auction_chain.testing import MarkovChatModel
from llm_auction_chain.waiting import AWAITING

PROMPT = [HumanMessage("x")]
REPLIES = [AIMessage("a"), AIMessage("b")]


def ones(prompt, reply):
    return 1.0


async def aones(prompt, reply):
    await asyncio.sleep(0)
    return 1.0


async def aone(pair):
    return await aones(**pair)


async def astream(pairs):
    async for _ in pairs:
        yield 1.0


class Whole:
    def score(self, prompt, replies):
        return [1.0] * len(replies)


class AsyncWhole:
    async def score(self, prompt, replies):
        return [1.0] * len(replies)


class AsyncCall:
    async def __call__(self, prompt, reply):
        return 1.0


KINDS = {
    "function": ones,
    "async function": aones,
    "function that returns an awaitable": lambda prompt, reply: aones("x", reply),
    "function that returns an awaitable sometimes": lambda prompt, reply: aones(0, 0) if reply.text == "a" else 1.0,
    "partial of an async function": functools.partial(aones),
    "object": Whole(),
    "async object": AsyncWhole(),
    "async callable object": AsyncCall(),
    "Reward": MentionReward(["a", "b"]),
    "Runnable": RunnableLambda(lambda pair: 1.0),
    "async Runnable": RunnableLambda(aone),
    "async sequence": RunnableLambda(aone) | (lambda number: number),
    "half async sequence": RunnableLambda(lambda pair: pair) | RunnableLambda(aone),
    "async Runnable with retry": RunnableLambda(aone).with_retry(wait_exponential_jitter=False),
    "async generator": RunnableGenerator(astream),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_of_any_kind_is_asked_for_every_reply(ask, kind):
    (report,) = ask(Agent("A", KINDS[kind]))
    assert (report.rewards, report.reason) == ((1.0, 1.0), "")


@pytest.mark.parametrize(("reward", "expected"), [
    (ones, False), (aones, True), (functools.partial(aones), True), (Whole(), False), (AsyncWhole(), True),
    (AsyncCall(), True), (RunnableLambda(ones), False), (RunnableLambda(aone), True),
    (RunnableLambda(aone) | RunnableLambda(aone), True), (RunnableLambda(ones) | RunnableLambda(aone), False),
    (RunnableLambda(ones).with_config(tags=["x"]), False), (MentionReward(["a"]), False),
    (LogRatioReward("Sing.", scorer=MarkovChatModel()), True), (1 + MentionReward(["a"]), False),
    (WebhookReward("https://songbook.example", "secret"), False),
])  # fmt: skip
def test_only_a_reward_whose_work_is_all_awaited_needs_no_thread(reward, expected):
    assert awaits(reward) is expected


def test_an_embedding_is_awaited():
    from langchain_core.embeddings import DeterministicFakeEmbedding

    assert awaits(EmbeddingReward(DeterministicFakeEmbedding(size=4), "guitars"))


def test_a_runnable_is_awaited_in_the_callers_own_loop():
    loops = []

    async def notes(pair):
        loops.append(asyncio.get_running_loop())
        return 1.0

    async def round_of_reports():
        agents = [Agent("A", RunnableLambda(notes))]
        await collect(agents, PROMPT, REPLIES, config={"max_concurrency": 1}, waiter=AWAITING)
        return asyncio.get_running_loop()

    loop = asyncio.run(round_of_reports())
    assert loops == [loop, loop]


def test_a_runnable_that_fails_is_not_asked_twice(ask):
    calls = []

    def fails(pair):
        calls.append(pair)
        return None + 1

    (report,) = ask(Agent("bad", RunnableLambda(fails)))
    assert report.reason.startswith("TypeError")
    assert len(calls) <= len(REPLIES)


def test_a_runnable_is_asked_no_more_at_once_than_it_allows(ask):
    under_way, most = 0, 0
    lock, three = threading.Lock(), threading.Barrier(3)

    def slow(pair):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        three.wait(30)  # three are under way at once, or this fails
        with lock:
            under_way -= 1
        return 1.0

    replies = [AIMessage(str(k)) for k in range(12)]
    (report,) = ask(Agent("A", RunnableLambda(slow)), replies=replies, config={"max_concurrency": 3})
    assert (report.rewards, report.reason) == ((1.0,) * 12, "")
    assert most == 3
