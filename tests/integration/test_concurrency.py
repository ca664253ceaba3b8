"""Many auctions in one event loop: each right, and none that holds the loop, or the others, up."""

import asyncio
import threading
import time
from collections import Counter
from itertools import pairwise

import pytest
from blockbuster import blockbuster_ctx
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr

import llm_auction_chain.auction.result
from llm_auction_chain import Agent, AuctionRunnable, ChatAuction, waiting

INTERFACES = [AuctionRunnable, ChatAuction]


class Numbered(BaseChatModel):
    """Replies to a prompt with it and a number; every `fails_every`-th call breaks."""

    fails_every: int = 0
    _calls: Counter = PrivateAttr(default_factory=Counter)

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        prompt = messages[-1].text
        self._calls[prompt] += 1
        number = self._calls[prompt]
        if self.fails_every and number % self.fails_every == 0:
            raise ConnectionError(f"call {number} broke")
        return ChatResult(generations=[ChatGeneration(message=AIMessage(f"{prompt} {number}"))])

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        await asyncio.sleep(0)
        return self._generate(messages)

    @property
    def _llm_type(self):
        return "numbered"


def likes(prompt, reply):
    """The second reply to one's own prompt is worth so much that no other is ever drawn."""
    return 1e9 * (reply.text == f"{prompt[-1].text} 2")


async def alikes(prompt, reply):
    await asyncio.sleep(0)
    return likes(prompt, reply)


def pair(reward):
    return [Agent("A", reward), Agent("B", reward)]


async def held(auctions, reward, count):
    """Hold so many auctions at once, by turns of each interface, where blocking the loop is an error."""
    model = Numbered()
    held = [interface(model=model, agents=pair(reward), n_candidates=2) for interface in auctions]
    with blockbuster_ctx():
        replies = await asyncio.gather(*(held[k % len(held)].ainvoke(f"prompt {k}") for k in range(count)))
    return [(reply.text, reply.response_metadata["auction"]) for reply in replies]


def check(held):
    """Every auction drew its own winner, heard everybody, and lost no model call."""
    assert [text for text, _ in held] == [f"prompt {k} 2" for k in range(len(held))]
    assert {agent["status"] for _, auction in held for agent in auction["agents"]} == {"reported"}
    assert {auction["diagnostics"]["failed_calls"] for _, auction in held} == {0}
    assert {auction["diagnostics"]["distinct_replies"] for _, auction in held} == {2}
    assert len({auction["auction_id"] for _, auction in held}) == len(held)


async def test_a_thousand_auctions_in_one_loop_are_all_right_and_block_it_never():
    check(await held(INTERFACES, alikes, 1000))


async def test_sync_rewards_of_many_auctions_block_no_loop_and_leave_no_thread():
    here, known, seen = threading.get_ident(), set(threading.enumerate()), []

    def slow(prompt, reply):
        seen.append(threading.get_ident())
        time.sleep(0.001)
        return likes(prompt, reply)

    check(await held(INTERFACES, slow, 100))
    assert here not in seen
    await gone(known)


async def gone(known):
    """Wait until no thread is left but those that were known."""
    for _ in range(2000):
        if not set(threading.enumerate()) - known:
            return
        await asyncio.sleep(0.001)
    raise AssertionError(set(threading.enumerate()) - known)


@pytest.mark.parametrize("interface", INTERFACES)
async def test_the_detector_sees_a_reward_that_blocks(interface):
    async def blocks(prompt, reply):
        time.sleep(0)  # noqa: ASYNC251 - what must be found
        return 1.0

    told = (await held([interface], blocks, 1))[0][1]["agents"]
    assert {agent["status"] for agent in told} == {"error"}
    assert "Blocking call to time.sleep" in told[0]["reason"]


class Score:
    """An amount for every reply at once, by a function of the reply's place."""

    def __init__(self, asked):
        self.asked = asked

    def score(self, prompt, replies):
        self.asked.append(len(replies))
        return [float(j % 11) for j in range(len(replies))]


class AsyncScore(Score):
    async def score(self, prompt, replies):
        return super().score(prompt, replies)


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("score", [Score, AsyncScore])
@pytest.mark.parametrize(("agents", "candidates", "elsewhere"), [(256, 256, True), (8, 16, False)])
async def test_only_a_large_auction_is_settled_off_the_loop(
    monkeypatch, interface, score, agents, candidates, elsewhere
):
    settle, settled = llm_auction_chain.auction.result.settle, []

    def spy(*args, **kwargs):
        settled.append(threading.get_ident())
        return settle(*args, **kwargs)

    monkeypatch.setattr(llm_auction_chain.auction.result, "settle", spy)
    bidders = [Agent(f"agent {k}", score([])) for k in range(agents)]
    reply = await interface(model=Numbered(), agents=bidders, n_candidates=candidates).ainvoke("x")
    assert len(reply.response_metadata["auction"]["probabilities"]) == candidates
    assert [where != threading.get_ident() for where in settled] == [elsewhere]


@pytest.mark.parametrize(("candidates", "at_once"), [(256, 4), (16, 64)])
async def test_others_have_a_turn_while_many_async_agents_are_asked_of_many_replies(candidates, at_once):
    asked, seen = [], [0]
    agents = [Agent(f"agent {k}", AsyncScore(asked)) for k in range(3 * at_once + 1)]

    async def others():
        while True:
            seen.append(len(asked))
            await asyncio.sleep(0)

    watching = asyncio.create_task(others())
    await AuctionRunnable(model=Numbered(), agents=agents, n_candidates=candidates).ainvoke("x")
    watching.cancel()
    assert len(asked) == len(agents)
    assert max(after - before for before, after in pairwise(seen)) == at_once


@pytest.mark.parametrize("interface", INTERFACES)
async def test_rewards_that_wait_wait_for_no_other_auction(interface):
    known, all_at_once = set(threading.enumerate()), threading.Barrier(60)

    def waits(prompt, reply):
        if reply.text.endswith(" 1"):
            all_at_once.wait(30)  # a reward without a thread of its own would break it
        return likes(prompt, reply)

    check(await held([interface], waits, 30))
    await gone(known)


async def test_the_loop_starts_few_of_the_threads_it_needs(monkeypatch):
    start, starts, all_at_once = threading.Thread.start, Counter(), threading.Barrier(32)
    here = threading.current_thread().name

    def spy(thread):
        if thread.name == "auction-agent":
            starts[threading.current_thread().name] += 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", spy)
    while waiting._inboxes:  # noqa: ASYNC110 - threads of other tests, which would take part
        await asyncio.sleep(0.01)
    agents = [Agent(f"agent {k}", lambda prompt, reply: all_at_once.wait(30) * 0.0) for k in range(32)]
    reply = await AuctionRunnable(model=Numbered(), agents=agents, n_candidates=1).ainvoke("x")
    assert {agent["status"] for agent in reply.response_metadata["auction"]["agents"]} == {"reported"}
    assert starts == {here: 6, "auction-agent": 26}  # 1, and five times as many again


@pytest.mark.parametrize("interface", INTERFACES)
async def test_a_model_that_is_called_once_a_reply_is_called_through_its_retries(interface):
    def over(model):
        retrying = model.with_retry(wait_exponential_jitter=False, stop_after_attempt=4).bind(stop=["END"])
        return interface(model=retrying, agents=pair(alikes), n_candidates=4)

    replies = [await over(Numbered(fails_every=2)).ainvoke("x"), over(Numbered(fails_every=2)).invoke("x")]
    told = [reply.response_metadata["auction"]["diagnostics"] for reply in replies]
    assert [(one["candidates"], one["failed_calls"]) for one in told] == [(4, 0)] * 2
