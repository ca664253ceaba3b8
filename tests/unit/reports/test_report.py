"""Whatever an agent's code does, the auction goes on, and nobody learns what was reported."""

import asyncio
import contextlib
import itertools
import signal
import sys
import threading
import time

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableGenerator, RunnableLambda

from llm_auction_chain import Agent, RewardError
from llm_auction_chain.reports import Terms, collect
from llm_auction_chain.waiting import AWAITING, BLOCKING, run

PROMPT = [HumanMessage("x")]
REPLIES = [AIMessage("a"), AIMessage("b")]
GOOD = Agent("good", lambda prompt, reply: 1.0)


class Whole:
    """Answers for all replies at once, with whatever `make` makes."""

    def __init__(self, make):
        self.make = make

    def score(self, prompt, replies):
        return self.make()


class Evil:
    """A number whose every attribute is the agent's own code."""

    def __init__(self, error):
        self._error = error

    def __getattr__(self, name):
        raise self._error

    def __float__(self):
        raise self._error


class EvilReal(float):
    def __float__(self):
        raise ArithmeticError("no float")


class Scalar:
    shape = ()

    def item(self):
        raise RuntimeError("no item")


class Unspeakable(Exception):  # noqa: N818
    def __str__(self):
        raise SystemExit(3)


def midway():
    yield 1.0
    raise LookupError("midway")


def exits(*_):
    sys.exit("bye")


def cancels(*_):
    raise asyncio.CancelledError


def unspeakable(*_):
    raise Unspeakable


async def acancels(prompt, reply):
    raise asyncio.CancelledError


async def aexits(prompt, reply):
    sys.exit("bye")


async def cancels_itself(prompt, reply):
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


class AsyncWhole:
    async def score(self, prompt, replies):
        sys.exit("bye")


ERRORS = {
    "a generator that raises midway": (Whole(midway), "LookupError: midway"),
    "an attribute that raises": (Whole(lambda: [Evil(OSError("no")), 1.0]), "OSError: no"),
    "an attribute that exits": (Whole(lambda: [Evil(SystemExit(1)), 1.0]), "SystemExit: 1"),
    "a number that raises": (Whole(lambda: [EvilReal(1.0), 1.0]), "ArithmeticError: no float"),
    "a scalar that raises": (lambda prompt, reply: Scalar(), "RuntimeError: no item"),
    "sys.exit": (exits, "SystemExit: bye"),
    "sys.exit, awaited": (aexits, "SystemExit: bye"),
    "sys.exit for all at once, awaited": (AsyncWhole(), "SystemExit: bye"),
    "sys.exit in a Runnable": (RunnableLambda(exits), "SystemExit: bye"),
    "a cancellation of nobody's": (cancels, "CancelledError"),
    "a cancellation of nobody's, awaited": (acancels, "CancelledError"),
    "a cancellation of its own task": (cancels_itself, "CancelledError"),
    "an exception that cannot be shown": (unspeakable, "an exception that cannot be shown"),
    "half a surrogate pair": (Whole(lambda: [][chr(0xD800)]), "TypeError: list indices must be integers"),
}


@pytest.fixture(params=["sync", "async"])
def ask(request):
    """Ask agents in both colours."""
    if request.param == "sync":
        return lambda *agents, progress=None, **terms: run(
            collect(agents, PROMPT, REPLIES, Terms(**terms), progress=progress, waiter=BLOCKING)
        )
    return lambda *agents, progress=None, **terms: asyncio.run(
        collect(agents, PROMPT, REPLIES, Terms(**terms), progress=progress, waiter=AWAITING)
    )


@pytest.mark.parametrize("case", ERRORS)
def test_no_callback_can_end_the_auction(ask, case):
    reward, reason = ERRORS[case]
    bad, good = ask(Agent("bad", reward), GOOD)
    assert (bad.status, bad.rewards) == ("error", (0.0, 0.0))
    assert bad.reason.startswith(reason)
    assert good.rewards == (1.0, 1.0)
    with pytest.raises(RewardError, match="'bad' raised"):
        ask(Agent("bad", reward), GOOD, on_agent_error="raise")


def test_an_infinite_report_is_read_no_further_than_the_replies(ask):
    read = []

    def endless():
        for k in itertools.count():
            read.append(k)
            yield 1.0

    (report,) = ask(Agent("bad", Whole(endless)))
    assert (report.status, len(read)) == ("invalid", 3)
    assert "more than 2 rewards for 2 replies" in report.reason


@pytest.mark.parametrize("reward", [
    lambda prompt, reply: -3.25, lambda prompt, reply: 3.25e150, Whole(lambda: [1.0, -3.25]),
])  # fmt: skip
def test_no_reported_value_reaches_the_public_reason_or_the_log(ask, reward, caplog):
    (report,) = ask(Agent("secretive", reward), refuse_negative=True)
    assert report.status == "invalid"
    assert "rewards" in report.reason
    assert "3.25" not in report.reason + caplog.text
    with pytest.raises(RewardError, match=r"'secretive' reported -?3\.25.* for candidate \d; .*rewards"):
        ask(Agent("secretive", reward), refuse_negative=True, on_agent_error="raise")


def test_a_reason_is_text_that_can_be_stored_and_is_short(ask):
    def fails(prompt, reply):
        raise ValueError(chr(0xD800) + "x" * 1000)

    (report,) = ask(Agent("bad", fails))
    assert report.reason.encode("utf-8")
    assert len(report.reason) == 200


def test_ctrl_c_goes_through(ask):
    """The signal reaches the main thread alone, whichever thread it is raised in."""

    def interrupts(prompt, reply):
        if reply.text == "a":
            signal.raise_signal(signal.SIGINT)
        time.sleep(1)
        return 1.0

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            ask(Agent("A", interrupts), GOOD)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_agent_that_raises_keyboard_interrupt_itself_has_failed_like_any_other(ask):
    def interrupted(prompt, reply):
        raise KeyboardInterrupt

    (report,) = ask(Agent("bad", interrupted))
    assert (report.status, report.reason) == ("error", "KeyboardInterrupt")


async def test_a_cancellation_of_the_auction_goes_through():
    started = asyncio.Event()

    async def slow(prompt, reply):
        started.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(collect([Agent("slow", slow), GOOD], PROMPT, REPLIES, waiter=AWAITING))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_deadline_over_the_auction_holds():
    async def stubborn(prompt, reply):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return 1.0

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await collect([Agent("stubborn", stubborn)], PROMPT, REPLIES, waiter=AWAITING)


async def aones(pair):
    await asyncio.sleep(0)
    return 1.0


async def astream(pairs):
    async for _ in pairs:
        yield 1.0


@pytest.mark.parametrize("reward", [
    RunnableLambda(aones),
    RunnableLambda(aones) | (lambda number: number),
    RunnableLambda(aones).with_retry(),
    RunnableLambda(lambda pair: 1.0) | RunnableLambda(aones),
    RunnableGenerator(astream),
])  # fmt: skip
def test_an_async_runnable_is_asked_in_both_colours(ask, reward):
    (report,) = ask(Agent("A", reward))
    assert (report.rewards, report.reason) == ((1.0, 1.0), "")


def test_a_runnable_is_awaited_in_the_callers_own_loop():
    loops = []

    async def notes(pair):
        loops.append(asyncio.get_running_loop())
        return 1.0

    async def run():
        await collect(
            [Agent("A", RunnableLambda(notes))], PROMPT, REPLIES, config={"max_concurrency": 1}, waiter=AWAITING
        )
        return asyncio.get_running_loop()

    loop = asyncio.run(run())
    assert loops == [loop, loop]


def test_a_runnable_that_fails_is_not_asked_twice():
    calls = []

    def fails(pair):
        calls.append(pair)
        return None + 1

    (report,) = run(collect([Agent("bad", RunnableLambda(fails))], PROMPT, REPLIES, waiter=BLOCKING))
    assert report.reason.startswith("TypeError")
    assert len(calls) <= len(REPLIES)


def test_a_callback_that_awaits_only_sometimes_is_read_as_it_is(ask):
    (report,) = ask(Agent("A", lambda prompt, reply: aones(reply) if reply.text == "a" else 2.0))
    assert report.rewards == (1.0, 2.0)


def test_progress_reaches_its_total_whoever_fails(ask):
    seen = []
    agents = [Agent("bad", exits), Agent("worse", acancels), Agent("invalid", lambda prompt, reply: "1"), GOOD]
    ask(*agents, progress=seen.append)
    assert seen == [1, 2, 3, 4]


def test_progress_does_not_wait_for_the_first_agent(ask):
    go = threading.Event()

    def first(prompt, reply):
        assert go.wait(10)
        return 1.0

    reports = ask(Agent("first", first), GOOD, progress=lambda done: go.set())
    assert [report.status for report in reports] == ["reported", "reported"]


def test_no_agents_are_asked_nothing(ask):
    assert ask() == []
