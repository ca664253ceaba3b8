"""An auction that is cut off, while it draws or while it asks, leaves no task, no thread and no call of the model."""

import asyncio
import threading
from collections import Counter

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from llm_auction_chain import Agent, AuctionRunnable, ChatAuction

INTERFACES = [AuctionRunnable, ChatAuction]
M = 4
ENOUGH = 30  # seconds; only a test that fails waits so long


class Stage:
    """Where an auction comes to a stop: calls that begin, and end only by being cancelled, or by `release`."""

    def __init__(self):
        self.told, self.release = Counter(), threading.Event()
        self.tasks, self.threads = asyncio.all_tasks(), set(threading.enumerate())

    async def stop(self):
        self.told["begun"] += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.told["cancelled"] += 1
            raise

    def block(self, prompt, reply):
        self.told["begun"] += 1
        self.release.wait(ENOUGH)
        return 1.0

    async def reward(self, prompt, reply):
        await self.stop()

    async def reached(self, calls):
        await soon(lambda: self.told["begun"] >= calls)

    async def left_nothing(self):
        """Wait until tasks are gone, then threads, which nobody can cancel, once what they wait for is there."""
        await soon(lambda: not asyncio.all_tasks() - self.tasks, turns=5)
        self.release.set()
        await soon(lambda: not set(threading.enumerate()) - self.threads)


async def soon(true, *, turns=None):
    """Wait until it is true; with `turns`, for so many turns of the loop."""
    for _ in range(turns or ENOUGH * 1000):
        if true():
            return
        await asyncio.sleep(0 if turns else 0.001)
    assert true()


class Model(BaseChatModel):
    """Numbers its replies; what comes before each may stop it."""

    before: object = None
    calls: list = []  # noqa: RUF012 - pydantic copies it

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        self.calls.append(messages)
        number = len(self.calls)
        if self.before:
            await self.before(number)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(f"reply {number}"))])

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        raise NotImplementedError

    @property
    def _llm_type(self):
        return "stopping"


def drawing(stage):
    """Return the model and the agents of an auction that stops while it draws, and how many calls that is."""

    async def stop(number):
        await stage.stop()

    return Model(before=stop), [Agent("A", lambda prompt, reply: 1.0)], M


STAGES = {
    "drawing": drawing,
    "asking": lambda stage: (Model(), [Agent("A", stage.reward), Agent("B", stage.reward)], 2 * M),
    "asking in threads": lambda stage: (Model(), [Agent("A", stage.block), Agent("B", stage.block)], 2),
    "asking both": lambda stage: (Model(), [Agent("A", stage.reward), Agent("B", stage.block)], M + 1),
}
AWAITED = {"drawing": M, "asking": 2 * M, "asking in threads": 0, "asking both": M}  # calls that can be cancelled


async def all_of(stream):
    return [part async for part in stream]


STYLES = {
    "ainvoke": lambda auction: auction.ainvoke("x"),
    "abatch": lambda auction: auction.abatch(["x"]),
    "astream": lambda auction: all_of(auction.astream("x")),
    "astream_events": lambda auction: all_of(auction.astream_events("x", version="v2")),
    "with retries": lambda auction: auction.with_retry().ainvoke("x"),
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("where", STAGES)
@pytest.mark.parametrize("interface", INTERFACES)
async def test_a_cancelled_auction_leaves_no_task_no_thread_and_no_call_of_the_model(interface, where, style):
    stage = Stage()
    model, agents, calls = STAGES[where](stage)
    auction = interface(model=model, agents=agents, n_candidates=M)
    held = asyncio.create_task(STYLES[style](auction))
    await stage.reached(calls)
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held  # though a reward in a thread still waits
    assert not stage.release.is_set()
    await stage.left_nothing()
    assert stage.told["cancelled"] == AWAITED[where]


@pytest.mark.parametrize("where", STAGES)
@pytest.mark.parametrize("interface", INTERFACES)
async def test_a_stream_of_events_that_is_closed_early_leaves_nothing(interface, where):
    stage = Stage()
    model, agents, calls = STAGES[where](stage)
    events = interface(model=model, agents=agents, n_candidates=M).astream_events("x", version="v2")
    assert (await anext(events))["event"].endswith("_start")
    await stage.reached(calls)
    await events.aclose()
    await stage.left_nothing()
    assert stage.told["cancelled"] == AWAITED[where]


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("interface", INTERFACES)
async def test_calls_that_waited_for_their_turn_are_never_made(interface, limit):
    stage = Stage()
    model, agents, _ = drawing(stage)
    config = {"max_concurrency": limit}
    held = asyncio.create_task(interface(model=model, agents=agents, n_candidates=M).ainvoke("x", config))
    await stage.reached(limit)
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held
    await stage.left_nothing()
    assert stage.told == {"begun": limit, "cancelled": limit}


async def test_a_progress_hook_that_raises_ends_the_calls_under_way():
    stage = Stage()

    async def stop_all_but_one(number):
        if number > 1:
            await stage.stop()

    def refuse(progress):
        raise KeyError("no more")

    auction = AuctionRunnable(model=Model(before=stop_all_but_one), agents=[Agent("A", stage.reward)], n_candidates=M)
    with pytest.raises(KeyError, match="no more"):
        await auction.arun("x", progress=refuse)
    await stage.left_nothing()
    assert stage.told["begun"] == stage.told["cancelled"]
