"""One engine, many who ask: each gets what it would get alone, and an abandoned one stops before its next step."""

import asyncio
import gc
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
from langchain_core.messages import HumanMessage

from llm_auction_chain import Agent, AuctionRunnable, ChatTransformers
from llm_auction_chain.candidates import Condition
from llm_auction_chain.models.local.attention import Group
from llm_auction_chain.models.local.engine import Drawing
from llm_auction_chain.models.local.sampler import Sampler

HI = [HumanMessage("Hi")]
PROMPTS = [[1, 2, 4, 3], [5, 2, 6, 1, 2, 4, 3]]


@pytest.fixture
def chat(seven_words):
    chat = ChatTransformers(model=seven_words, dtype="float32", device="cpu", max_tokens=40, seed=1)
    chat.load()
    return chat


@pytest.fixture
def engine(chat):
    return chat._engine()


def wait_until(true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.001)


def nothing_is_held():
    """Whether no keys and values are left; an abandoned thread may still be on its way out."""
    gc.collect()
    return not [thing for thing in gc.get_objects() if type(thing) is Group]


@pytest.fixture
def endless(engine, monkeypatch):
    """The engine, where no token ends a reply."""
    monkeypatch.setattr(engine, "ends", set())
    return engine


class Gate:
    """A progress callback that holds its thread once a number of tokens are there."""

    def __init__(self, tokens):
        self.steps, self.tokens = 0, tokens
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, *_):
        # The first call comes after the prompts are read.
        if self.steps == self.tokens:
            self.reached.set()
            assert self.opened.wait(60)
        self.steps += 1

    async def pass_by(self, coroutine):
        """Abandon a coroutine at the gate, then let its thread go on."""
        task = asyncio.create_task(coroutine)
        assert await asyncio.to_thread(self.reached.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        self.opened.set()


def groups():
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) is Group]


def test_eight_threads_get_what_each_would_get_alone(engine):
    def work(seed):
        conditions = [Drawing([PROMPTS[0]], [1.0], 3), Drawing(PROMPTS, [0.5, 0.5], 2)]
        replies = engine.sample(conditions, seed=seed, max_tokens=12, sampler=Sampler())
        *_, streamed = engine.stream(PROMPTS[1], seed=seed, max_tokens=12, sampler=Sampler())
        ids = [reply.token_ids for reply in replies]
        return ids, streamed.token_ids, engine.score(PROMPTS, np.eye(2), ids, Sampler())

    alone = [work(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(work, range(8)))
    for (ids, streamed, scores), expected in zip(together, alone, strict=True):
        assert (ids, streamed) == expected[:2]
        assert scores == pytest.approx(expected[2], abs=1e-5)


def test_a_stream_takes_its_steps_between_those_of_a_request(endless):
    gate = Gate(tokens=2)
    options = {"max_tokens": 20, "sampler": Sampler()}
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(endless.sample, [Drawing([PROMPTS[0]], [1.0], 2)], seed=0, progress=gate, **options)
        assert gate.reached.wait(60)
        *_, streamed = endless.stream(PROMPTS[1], seed=0, **options)
        assert len(streamed.token_ids) == 20
        assert not request.done()
        gate.opened.set()
        assert [len(reply.token_ids) for reply in request.result()] == [20, 20]


async def test_an_abandoned_request_draws_no_further_token_and_frees_its_memory(endless, chat):
    gate = Gate(tokens=3)
    await gate.pass_by(chat.agenerate([HI], n=5, progress=gate))
    with endless._requests.turn():
        assert gate.steps == 4
    await asyncio.to_thread(wait_until, nothing_is_held)


async def test_an_abandoned_auction_stops_its_model(endless, chat):
    gate = Gate(tokens=3)
    agents = [Agent(name="a", reward=lambda _prompt, _reply: 1.0, context="Acme sells tea.")]
    auction = AuctionRunnable(model=chat, agents=agents, n_candidates=4, tau=1.0)
    await gate.pass_by(auction.arun("Hi", progress=gate))
    with endless._requests.turn():
        assert gate.steps == 4
    await asyncio.to_thread(wait_until, nothing_is_held)


async def test_an_abandoned_scoring_never_begins_where_it_still_waits(engine, chat, monkeypatch):
    (reply,) = (each.message for each in chat.generate([HI], n=1, logprobs=True).generations[0])
    read = []
    monkeypatch.setattr(engine._passes, "read", lambda prompts: read.append(prompts) or iter(()))
    with engine._requests.turn():
        task = asyncio.create_task(chat.ascore_conditions([Condition(name="hi", prompts=((*HI,),))], [reply]))
        await asyncio.to_thread(wait_until, lambda: len(engine._requests._waiting) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_until, lambda: len(engine._requests._waiting) == 1)
    assert not read


def test_who_asks_synchronously_may_set_the_event_too(endless):
    cancel = threading.Event()
    seen = []

    def after_two_tokens(*_):
        seen.append(len(seen))
        if len(seen) == 3:
            cancel.set()

    options = {"max_tokens": 30, "sampler": Sampler(), "progress": after_two_tokens, "cancel": cancel}
    with pytest.raises(CancelledError, match="call was cancelled"):
        endless.sample([Drawing([PROMPTS[0]], [1.0], 1)], seed=0, **options)
    assert seen == [0, 1, 2]
    wait_until(nothing_is_held)
