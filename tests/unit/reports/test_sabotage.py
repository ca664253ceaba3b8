"""What agents have tried against an auction and got through with, once: each attack by its promise."""

import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from types import CoroutineType

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.base import Runnable
from langchain_core.runnables.config import var_child_runnable_config

from llm_auction_chain import Agent, AuctionRunnable, ConfigurationError
from llm_auction_chain.reports import Report, Terms, collect
from llm_auction_chain.rewards import ClickReward, LogRatioReward, Reward
from llm_auction_chain.testing import MarkovChatModel
from llm_auction_chain.waiting import AWAITING, BLOCKING, run

PROMPT = [HumanMessage("x")]
REPLIES = [AIMessage("a"), AIMessage("b")]
GOOD = Agent("good", lambda prompt, reply: 1.0)
SOON = 20.0  # seconds: far more than what does not hang takes, far less than what does


@pytest.fixture(params=["sync", "async"])
def ask(request):
    """Ask agents in both colours, and see that it ends soon."""

    def asked(*agents, replies=REPLIES, progress=None, config=None, **terms):
        began = time.monotonic()
        settings = (agents, PROMPT, replies, Terms(**{"timeout": 5.0, **terms}))
        extra = {"progress": progress, "config": config}
        reports = (
            run(collect(*settings, **extra, waiter=BLOCKING))
            if request.param == "sync"
            else asyncio.run(collect(*settings, **extra, waiter=AWAITING))
        )
        assert time.monotonic() - began < SOON
        return reports

    return asked


@pytest.fixture
def gate():
    """What hanging code waits for; opened when the test is over, so that its threads end."""
    gate = threading.Event()
    yield gate
    gate.set()


class Whole:
    def __init__(self, make):
        self.make = make

    def score(self, prompt, replies):
        return self.make()


def raising(error):
    def callback(prompt, reply):
        raise error

    return callback


def test_the_text_of_an_exception_costs_the_agents_own_time(ask, gate):
    class Slow(Exception):  # noqa: N818
        def __str__(self):
            gate.wait()
            return "slow"

    slow, good = ask(Agent("slow", raising(Slow())), GOOD, timeout=0.3)
    assert (slow.status, slow.reason) == ("timeout", "did not report within 0.3 s")
    assert good.status == "reported"


class Interrupts(Exception):  # noqa: N818
    def __str__(self):
        raise KeyboardInterrupt


class Classless(Exception):  # noqa: N818
    @property
    def __class__(self):
        raise SystemExit


class Pretends(Exception):  # noqa: N818
    rule = "reported a number of mine"

    @property
    def __class__(self):
        from llm_auction_chain.reports.amounts import InvalidReportError

        return InvalidReportError


@pytest.mark.parametrize("kind", [Interrupts, Classless, Pretends])
def test_the_class_and_text_of_an_exception_end_no_auction(ask, kind):
    bad, good = ask(Agent("bad", raising(kind("x"))), GOOD)
    assert (bad.status, good.status) == ("error", "reported")
    assert "of mine" not in bad.reason


class Trap(Future):
    def cancel(self):
        raise SystemExit

    def add_done_callback(self, fn):
        raise SystemExit


@pytest.mark.parametrize("future", [Trap(), Future()])
def test_a_future_that_an_agent_returns_is_no_report(ask, future):
    bad, good = ask(Agent("bad", Whole(lambda: future)), GOOD)
    assert (bad.status, good.status) == ("invalid", "reported")


class Turns:
    """Something to await when it is looked at first, and a report of its own making later."""

    looks = 0

    @property
    def __class__(self):
        Turns.looks += 1
        return CoroutineType if Turns.looks < 3 else Report

    rewards = (1e9, 1e9)
    status = "reported"


def test_what_is_first_to_be_awaited_cannot_turn_into_a_report_past_every_check(ask):
    Turns.looks = 0
    bad, good = ask(Agent("bad", Whole(Turns)), GOOD, report_cap=1.0)
    assert bad.rewards == (0.0, 0.0)
    assert good.status == "reported"


class Notes(BaseCallbackHandler):
    def __init__(self):
        self.heard = []

    def on_chain_end(self, outputs, **kwargs):
        self.heard.append(outputs)


def test_an_agent_learns_nothing_from_the_config_and_spoils_it_for_nobody(ask):
    spy, found = Notes(), []

    def spies(prompt, reply):
        if reply.text == "b":
            return 1.0
        config = var_child_runnable_config.get()
        found.append(config["configurable"])
        config["callbacks"].add_handler(spy)
        config["callbacks"] = 5
        config["configurable"]["mine"] = True
        return 1.0

    class Spies(Runnable):
        def invoke(self, input, config=None, **kwargs):  # noqa: A002
            found.append(config["configurable"])
            told = spies(**input)
            config["callbacks"] = 5
            return told

    from langchain_core.callbacks import CallbackManager

    chosen = {"agents": ["rivals"], "idempotency_key": "request 1", "user": "u"}
    config = {"callbacks": CallbackManager([]), "configurable": dict(chosen)}
    agents = [Agent("function", spies), Agent("runnable", Spies()), Agent("rival", RunnableLambda(lambda pair: 3.25))]
    reports = ask(*agents, config=config)
    assert [report.status for report in reports] == ["reported"] * 3
    assert len(found) == 4
    assert all(settings["user"] == "u" and not {"agents", "idempotency_key"} & set(settings) for settings in found)
    assert 3.25 not in spy.heard
    assert isinstance(config["callbacks"], CallbackManager)
    assert not config["callbacks"].handlers
    assert config["configurable"] == chosen


def test_a_function_beside_a_reward_that_awaits_holds_up_nobody(ask, gate):
    model = MarkovChatModel(tilts={"Praise b.": (0.0, 1.0, 0.0)})
    replies = [AIMessage("ab"), AIMessage("ba")]
    ratio = LogRatioReward("Praise b.", scorer=model)
    mixed = Agent("mixed", ratio + (lambda prompt, reply: gate.wait() and 1.0))
    clicks = Agent("clicks", ClickReward(1.0, lambda prompt, reply: gate.wait() and 1.0))
    late, also, alone, good = ask(mixed, clicks, Agent("alone", ratio), GOOD, replies=replies, timeout=1.0)
    assert [late.status, also.status] == ["timeout", "timeout"]
    assert [alone.status, good.status] == ["reported", "reported"]


EXIT = """
import asyncio, time, threading
from langchain_core.runnables import Runnable, RunnableLambda
from llm_auction_chain import Agent, AuctionRunnable
from llm_auction_chain.testing import MarkovChatModel

def hang(*_):
    time.sleep(600)

class Only(Runnable):
    def invoke(self, input, config=None, **kwargs):
        hang()

async def swallows(prompt, reply):
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass

rewards = {
    "sequence": RunnableLambda(hang) | (lambda number: number),
    "invoke": Only(),
    "bound": RunnableLambda(hang).with_config(tags=["x"]),
    "swallows": swallows,
    "good": lambda prompt, reply: 1.0,
}
agents = [Agent(name, reward) for name, reward in rewards.items()]
auction = AuctionRunnable(model=MarkovChatModel(), agents=agents, n_candidates=2, reward_timeout=0.5)
result = auction.run("x") if COLOUR == "sync" else asyncio.run(auction.arun("x"))
print(*(report.status for report in result.reports))
"""


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_neither_the_loop_nor_the_interpreter_waits_for_what_hangs(colour):
    code = f"COLOUR = {colour!r}\n{EXIT}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
    assert done.stdout.split() == ["timeout"] * 4 + ["reported"], done.stderr
    assert "never awaited" not in done.stderr


async def test_who_cleans_up_when_cancelled_may_do_so():
    cleaned = asyncio.Event()

    async def careful(prompt, reply):
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.01)
            cleaned.set()

    (report,) = await collect([Agent("careful", careful)], PROMPT, REPLIES, Terms(timeout=0.1), waiter=AWAITING)
    assert report.status == "timeout"
    await asyncio.wait_for(cleaned.wait(), SOON)


async def test_a_coroutine_that_comes_too_late_is_never_begun():
    gate, began, returned = threading.Event(), threading.Event(), threading.Event()

    async def coroutine():
        began.set()
        return [1.0, 1.0]

    def late():
        gate.wait()
        returned.set()
        return coroutine()

    (report,) = await collect([Agent("late", Whole(late))], PROMPT, REPLIES, Terms(timeout=0.1), waiter=AWAITING)
    gate.set()
    assert returned.wait(SOON)
    await asyncio.sleep(0.1)
    assert report.status == "timeout"
    assert not began.is_set()


async def test_an_agent_that_cancels_every_task_it_finds_fails_itself_or_those_and_ends_the_wait():
    async def cancels(prompt, reply):
        await asyncio.sleep(0.05)  # until all have begun
        for task in asyncio.all_tasks() - {outer}:
            task.cancel()
        await asyncio.sleep(0)
        return 1.0

    async def slow(prompt, reply):
        await asyncio.sleep(600)

    outer = asyncio.current_task()
    reports = await collect(
        [Agent("cancels", cancels), Agent("slow", slow)], PROMPT, REPLIES, Terms(timeout=60.0), waiter=AWAITING
    )
    assert {report.status for report in reports} == {"error"}


class Cheats(ClickReward):
    """Promises clicks beyond every probability."""

    def score(self, prompt, replies):
        return [1000.0] * len(replies)


class Claims(Reward):
    @property
    def value_per_click(self):
        raise SystemExit

    @property
    def awaits(self):
        raise SystemExit

    def score(self, prompt, replies):
        return [1.0] * len(replies)


def test_only_the_platforms_own_click_reward_has_a_price_per_click(ask):
    cheats, claims = ask(Agent("cheats", Cheats(1.0, lambda prompt, reply: 0.5)), Agent("claims", Claims()))
    assert cheats.click_through is None
    assert claims.click_through is None
    assert claims.rewards in [(1.0, 1.0), (0.0, 0.0)]


class Nameless:
    """A reward whose class is its own code."""

    looks = 0

    @property
    def __class__(self):
        Nameless.looks += 1
        if Nameless.looks > 4:
            raise ZeroDivisionError
        return type(self)

    def score(self, prompt, replies):
        return [1.0] * len(replies)


def test_a_reward_whose_class_raises_fails_alone(ask):
    Nameless.looks = 0
    bad, good = ask(Agent("bad", Nameless()), GOOD)
    assert bad.status in ("reported", "error")
    assert good.status == "reported"


@pytest.mark.parametrize("rewards", [{1.0, 2.0}, bytearray(b"ab"), {1.0: 2, 2.0: 3}.keys(), {1.0: 1}.items()])
def test_what_has_no_order_is_no_report(ask, rewards):
    (report,) = ask(Agent("A", Whole(lambda: rewards)))
    assert report.status == "invalid"


def test_a_reason_is_one_line_that_moves_no_terminal(ask):
    (report,) = ask(Agent("A", raising(ValueError("x\nWARNING Agent 'rival' was banned\x1b[2J\u202e"))))
    assert report.reason == "ValueError: x WARNING Agent 'rival' was banned [2J "


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_progress_hook_that_raises_is_heard_at_once(colour, gate):
    def hook(done):
        raise LookupError("hook")

    agents = [GOOD, Agent("hangs", lambda prompt, reply: gate.wait())]
    began = time.monotonic()
    settings = (agents, PROMPT, REPLIES, Terms(timeout=60.0))
    colours = {
        "sync": lambda *given, **hooks: run(collect(*given, **hooks, waiter=BLOCKING)),
        "async": lambda *given, **hooks: asyncio.run(collect(*given, **hooks, waiter=AWAITING)),
    }
    with pytest.raises(LookupError, match="hook"):
        colours[colour](*settings, progress=hook)
    assert time.monotonic() - began < SOON


def test_a_reply_that_cannot_be_copied_is_shared_and_one_that_holds_itself_is_copied(ask):
    lock = AIMessage("a", response_metadata={"raw": threading.Lock()})
    cyclic = AIMessage("b")
    cyclic.response_metadata["self"] = cyclic.response_metadata
    (report,) = ask(GOOD, replies=[lock, cyclic])
    assert report.rewards == (1.0, 1.0)


@pytest.mark.parametrize("timeout", [1e7, 1e300])
def test_a_deadline_beyond_what_a_thread_can_wait_is_refused(timeout):
    with pytest.raises(ConfigurationError, match="reward_timeout"):
        AuctionRunnable(model=MarkovChatModel(), reward_timeout=timeout)


@pytest.mark.parametrize("rule", ["expected", "proportional", "influence", "pivot"])
@pytest.mark.parametrize("chance", [5e-324, 1e-310, 1e-200, 1e-12])
def test_a_click_that_is_next_to_impossible_has_no_price(rule, chance):
    agents = [Agent("A", ClickReward(1e100, lambda prompt, reply: 0.5 if "b" in reply.text else chance)), GOOD]
    for seed in range(4):
        auction = AuctionRunnable(
            model=MarkovChatModel(), agents=agents, n_candidates=4, payment_rule=rule, seed=seed, tau=1e99
        )
        result = auction.run("x")
        assert result.reply.response_metadata["auction"]["payments"][0]["amount_decimal"]
        assert str(result.explain())
    with pytest.raises(ConfigurationError, match="value_per_click"):
        ClickReward(1e101, lambda prompt, reply: 0.5)
