"""An agent that raises, hangs or returns garbage costs only itself, and sees nothing of another agent."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
import time
from contextvars import ContextVar

import pytest
from langchain_core.callbacks import BaseCallbackHandler, CallbackManager
from langchain_core.messages import AIMessage, HumanMessage, ToolCall
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.runnables.config import var_child_runnable_config

from llm_auction_chain import Agent, RewardError
from llm_auction_chain.messages import shown_to_agents
from llm_auction_chain.reports import Terms, collect
from llm_auction_chain.rewards import AskedBy, ClickReward, LogRatioReward, asked_by
from llm_auction_chain.testing import MarkovChatModel
from llm_auction_chain.waiting import AWAITING

PROMPT = [HumanMessage("x")]
REPLIES = [AIMessage("a"), AIMessage("b")]
GOOD = Agent("good", lambda prompt, reply: 1.0)
LONG = 60.0  # seconds that no working machine needs


class Whole:
    """Answers for all replies at once, with the result of `make`."""

    def __init__(self, make):
        self.make = make

    def score(self, prompt, replies):
        return self.make()


def midway():
    yield 1.0
    raise LookupError("midway")


def raises(error):
    """Return a sync and an async callback that raise it."""

    def now(prompt, reply):
        raise error

    async def later(prompt, reply):
        await asyncio.sleep(0)
        raise error

    return now, later


def exits(*_):
    sys.exit("bye")


async def aexits(prompt, reply):
    sys.exit("bye")


async def cancels_itself(prompt, reply):
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


class AsyncWhole:
    async def score(self, prompt, replies):
        sys.exit("bye")


def endless(prompt, reply):
    return endless(prompt, reply)


ERRORS = {
    "a generator that raises midway": (Whole(midway), "LookupError: midway"),
    "endless recursion": (endless, "RecursionError"),
    "sys.exit": (exits, "SystemExit: bye"),
    "sys.exit, awaited": (aexits, "SystemExit: bye"),
    "sys.exit for all at once, awaited": (AsyncWhole(), "SystemExit: bye"),
    "sys.exit in a Runnable": (RunnableLambda(exits), "SystemExit: bye"),
    "a cancellation": (raises(asyncio.CancelledError())[0], "CancelledError"),
    "a cancellation, awaited": (raises(asyncio.CancelledError())[1], "CancelledError"),
    "a cancellation of its own task": (cancels_itself, "CancelledError"),
    "StopIteration": (raises(StopIteration(1.0))[0], ""),
    "KeyboardInterrupt": (raises(KeyboardInterrupt())[0], "KeyboardInterrupt"),
    "MemoryError, awaited": (raises(MemoryError())[1], "MemoryError"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_agent_that_raises_has_failed_alone(ask, case):
    reward, reason = ERRORS[case]
    bad, good = ask(Agent("bad", reward), GOOD)
    assert (bad.status, bad.rewards) == ("error", (0.0, 0.0))
    assert bad.reason.startswith(reason)
    assert good.rewards == (1.0, 1.0)
    with pytest.raises(RewardError, match="'bad' raised"):
        ask(Agent("bad", reward), GOOD, on_agent_error="raise")


def test_no_reported_number_reaches_the_public_reason_or_the_log(ask, caplog):
    agent = Agent("secretive", lambda prompt, reply: -3.25)
    (report,) = ask(agent, refuse_negative=True)
    assert report.status == "invalid"
    assert "3.25" not in report.reason + caplog.text
    with pytest.raises(RewardError, match=r"'secretive' reported -3\.25 for candidate 0"):
        ask(agent, refuse_negative=True, on_agent_error="raise")


def test_a_player_that_never_pays_may_report_negative_amounts_under_any_rule(ask):
    (report,) = ask(Agent("user", lambda prompt, reply: -3.25, pays=False), refuse_negative=True)
    assert report.rewards == (-3.25, -3.25)


def test_ctrl_c_goes_through(ask, gate):
    """Python handles the signal in the main thread, whichever thread raises it."""

    def interrupts(prompt, reply):
        if reply.text == "a":
            signal.raise_signal(signal.SIGINT)
        gate.wait()
        return 1.0

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            ask(Agent("A", interrupts), GOOD)
    finally:
        signal.signal(signal.SIGINT, before)


async def test_a_cancellation_of_the_auction_goes_through():
    started = asyncio.Event()

    async def slow(prompt, reply):
        started.set()
        await asyncio.sleep(600)

    task = asyncio.create_task(collect([Agent("slow", slow), GOOD], PROMPT, REPLIES, waiter=AWAITING))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_deadline_over_the_auction_holds():
    async def stubborn(prompt, reply):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(600)
        return 1.0

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await collect([Agent("stubborn", stubborn)], PROMPT, REPLIES, waiter=AWAITING)


async def waits(prompt, reply):
    await asyncio.sleep(600)


def hangs(gate):
    return Agent("hangs", lambda prompt, reply: gate.wait() and 1.0)


def test_a_callback_that_hangs_is_late_and_the_others_count(ask, gate):
    late, good, awaited = ask(hangs(gate), GOOD, Agent("waits", waits), timeout=1.0)
    assert (late.status, late.rewards, late.reason) == ("timeout", (0.0, 0.0), "did not report within 1.0 s")
    assert awaited.status == "timeout"
    assert (good.status, good.rewards) == ("reported", (1.0, 1.0))


def test_a_late_agent_can_be_an_error_of_the_auction(ask, gate):
    with pytest.raises(RewardError, match=r"'hangs' did not report within 0\.2 s"):
        ask(hangs(gate), GOOD, timeout=0.2, on_agent_error="raise")


def test_a_deadline_holds_for_the_numbers_of_a_report_too(ask, gate):
    def dawdles():
        yield 1.0
        gate.wait()

    late, good = ask(Agent("rows", Whole(dawdles)), GOOD, timeout=1.0)
    assert (late.status, good.status) == ("timeout", "reported")


def test_many_that_hang_keep_no_other_from_being_asked(ask, gate):
    hanging = [Agent(f"hangs {k}", lambda prompt, reply: gate.wait()) for k in range(60)]
    answered = threading.Barrier(60, action=gate.set)  # ends the round once all the others are asked

    def good(prompt, reply):
        if reply.text == "a":
            answered.wait(LONG)
        return 1.0

    reports = ask(*hanging, *(Agent(f"good {k}", good) for k in range(60)))
    assert [report.status for report in reports[60:]] == ["reported"] * 60


def test_callbacks_that_wait_are_all_under_way_at_once(ask):
    everybody = threading.Barrier(40)
    reports = ask(*(Agent(str(k), lambda p, r: (everybody.wait(LONG) and 1.0) or 1.0) for k in range(40)))
    assert {report.status for report in reports} == {"reported"}


def test_a_function_beside_a_reward_that_awaits_holds_up_no_other(ask, gate):
    ratio = LogRatioReward("Praise b.", scorer=MarkovChatModel(tilts={"Praise b.": (0.0, 1.0, 0.0)}))
    mixed = Agent("mixed", ratio + (lambda prompt, reply: gate.wait() and 1.0))
    clicks = Agent("clicks", ClickReward(1.0, lambda prompt, reply: gate.wait() and 1.0))
    replies = [AIMessage("ab"), AIMessage("ba")]
    reports = ask(mixed, clicks, Agent("alone", ratio), GOOD, replies=replies, timeout=2.0)
    assert [report.status for report in reports] == ["timeout", "timeout", "reported", "reported"]


EXIT = """
import asyncio, time
from langchain_core.runnables import Runnable, RunnableLambda
from llm_auction_chain import Agent, AuctionRunnable
from llm_auction_chain.testing import MarkovChatModel

def hang(*_):
    time.sleep(600)

class Only(Runnable):
    def invoke(self, input, config=None, **kwargs):
        hang()

async def ahang(prompt, reply):
    await asyncio.sleep(600)

rewards = {
    "function": hang,
    "runnable": RunnableLambda(hang),
    "sequence": RunnableLambda(hang) | (lambda number: number),
    "invoke": Only(),
    "bound": RunnableLambda(hang).with_config(tags=["x"]),
    "async": ahang,
    "good": lambda prompt, reply: 1.0,
}
agents = [Agent(name, reward) for name, reward in rewards.items()]
auction = AuctionRunnable(model=MarkovChatModel(), agents=agents, n_candidates=2, reward_timeout=1.0)
for result in (auction.run("x"), asyncio.run(auction.arun("x"))):
    print(*(report.status for report in result.reports))
"""


def test_neither_the_loop_nor_the_interpreter_waits_for_a_callback_that_hangs():
    done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=300, check=True)  # noqa: S603
    assert done.stdout.split() == 2 * (["timeout"] * 6 + ["reported"]), done.stderr
    assert "never awaited" not in done.stderr


def test_a_report_after_the_deadline_changes_nothing(ask):
    gate, answered = threading.Event(), threading.Event()

    def late(prompt, reply):
        gate.wait()
        answered.set()
        return 99.0

    (report,) = ask(Agent("late", late), timeout=0.1)
    gate.set()
    assert answered.wait(LONG)
    assert (report.status, report.rewards) == ("timeout", (0.0, 0.0))


async def test_an_agent_that_is_late_may_clean_up():
    cleaned = asyncio.Event()

    async def careful(prompt, reply):
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.01)
            cleaned.set()

    (report,) = await collect([Agent("careful", careful)], PROMPT, REPLIES, Terms(timeout=0.1), waiter=AWAITING)
    assert report.status == "timeout"
    await asyncio.wait_for(cleaned.wait(), LONG)


def test_progress_reaches_its_total_whichever_agents_fail(ask, gate):
    seen = []
    now, later = raises(LookupError())
    agents = [Agent("bad", now), Agent("worse", later), Agent("invalid", lambda prompt, reply: "1"), GOOD]
    ask(*agents, progress=seen.append)
    assert seen == [1, 2, 3, 4]
    seen.clear()
    ask(GOOD, hangs(gate), timeout=0.5, progress=seen.append)
    assert seen == [1, 2]


def test_progress_does_not_wait_for_the_first_agent(ask):
    go = threading.Event()

    def first(prompt, reply):
        assert go.wait(LONG)
        return 1.0

    reports = ask(Agent("first", first), GOOD, progress=lambda done: go.set())
    assert [report.status for report in reports] == ["reported", "reported"]


@pytest.mark.parametrize("error", [LookupError("hook"), TimeoutError("hook")])
def test_an_error_of_the_progress_hook_ends_the_round_at_once(ask, gate, error):
    def hook(done):
        raise error

    with pytest.raises(type(error), match="hook"):
        ask(GOOD, hangs(gate), progress=hook, timeout=None)


def test_without_agents_there_are_no_reports(ask):
    assert ask() == []


class Rows:
    def __init__(self, rows):
        self.rows = rows

    def score(self, prompt, replies):
        return self.rows


@pytest.mark.parametrize(
    ("own", "global_", "cut"), [(2.0, None, 2.0), (None, 3.0, 3.0), (2.0, 3.0, 2.0), (4.0, 3.0, 3.0)]
)
def test_no_report_goes_beyond_the_lower_of_both_caps(ask, own, global_, cut):
    big, small = ask(
        Agent("big", Rows([7.25, -7.25]), report_cap=own), Agent("small", Rows([1.0, -1.0]), report_cap=own),
        report_cap=global_,
    )  # fmt: skip
    assert (big.status, big.rewards) == ("capped", (cut, -cut))
    assert (small.status, small.rewards, small.reason) == ("reported", (1.0, -1.0), "")


RICH = AIMessage(
    [{"type": "text", "text": "a"}],
    tool_calls=[ToolCall(name="buy", args={"items": ["pick"]}, id="1")],
    response_metadata={"deep": {"list": [{"x": 1}]}, "tokens": [1, 2]},
)


def spoil(message):
    message.response_metadata.clear()
    message.tool_calls.append("spoilt")
    message.content = "mine"


def test_changes_of_one_agent_to_its_copies_reach_no_other_not_even_later(ask):
    kept, seen = [], []

    def vandal(prompt, reply):
        kept.append(reply)
        spoil(reply)
        prompt[0].content = "mine"
        return 0.0

    def spoils_the_copies_of_another(prompt, reply):
        for message in kept:
            spoil(message)
        return 0.0

    def sees(prompt, reply):
        seen.append((prompt[0], reply))
        return 1.0

    replies = [RICH.model_copy(deep=True), RICH.model_copy(deep=True)]
    rewards = [vandal, spoils_the_copies_of_another, vandal, sees]
    reports = ask(*(Agent(str(k), reward) for k, reward in enumerate(rewards)), replies=replies)
    assert [report.status for report in reports] == ["reported"] * 4
    assert replies == [RICH, RICH]
    assert seen == [(HumanMessage("x"), shown_to_agents(RICH))] * 2


def test_an_agent_learns_which_auction_asks_and_nothing_else(ask):
    seen = []

    def notes(prompt, reply):
        seen.append(asked_by.get())
        return 1.0

    async def anotes(prompt, reply):
        return notes(prompt, reply)

    auction = AskedBy(auction_id="one", currency="EUR")
    ask(Agent("A", notes), Agent("B", anotes), Agent("C", RunnableLambda(lambda pair: notes(**pair))), asked_by=auction)
    assert seen == [auction] * 6
    assert asked_by.get() is None


class Notes(BaseCallbackHandler):
    def __init__(self):
        self.outputs = []

    def on_chain_end(self, outputs, **kwargs):
        self.outputs.append(outputs)


def test_an_agent_reads_no_other_agent_in_the_config_and_changes_it_for_none(ask):
    spy, configs = Notes(), []

    def spies(prompt, reply):
        config = var_child_runnable_config.get()
        configs.append(dict(config["configurable"]))
        config["callbacks"].add_handler(spy)
        config["configurable"]["mine"] = True
        return 1.0

    class Spies(Runnable):
        def invoke(self, input, config=None, **kwargs):
            configs.append(dict(config["configurable"]))
            return 1.0

    chosen = {"auction_agents": ["rivals"], "idempotency_key": "request 1", "user": "u"}
    config = {"callbacks": CallbackManager([]), "configurable": dict(chosen)}
    agents = [Agent("function", spies), Agent("runnable", Spies()), Agent("rival", RunnableLambda(lambda pair: 3.25))]
    reports = ask(*agents, config=config)
    assert [report.status for report in reports] == ["reported"] * 3
    assert len(configs) == 4
    assert all(own["user"] == "u" and not {"auction_agents", "idempotency_key"} & set(own) for own in configs)
    assert 3.25 not in spy.outputs
    assert not config["callbacks"].handlers
    assert config["configurable"] == chosen


def test_a_context_variable_of_one_agent_is_seen_by_no_other(ask):
    secret = ContextVar("secret", default="nothing")
    seen = []

    def sets(prompt, reply):
        seen.append(secret.get())
        secret.set("told")
        return 1.0

    async def asets(prompt, reply):
        return sets(prompt, reply)

    def reads(prompt, reply):
        seen.append(secret.get())
        return 1.0

    ask(Agent("A", Whole(lambda: [sets(0, 0), 1.0])), Agent("B", asets), Agent("C", reads), Agent("D", reads))
    assert secret.get() == "nothing"
    assert seen == ["nothing"] * 7


def test_threads_are_gone_when_the_round_is_over(ask):
    def working():
        return {thread for thread in threading.enumerate() if thread.name == "auction-agent"}

    before = working()
    ask(GOOD, Agent("bad", endless), Agent("other", lambda prompt, reply: 2.0))
    deadline = time.monotonic() + LONG
    while working() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not working() - before


class Gate:
    """Holds up async callbacks until all of them have come."""

    def __init__(self, count):
        self.left, self.open = count, asyncio.Event()

    async def __call__(self):
        self.left -= 1
        if not self.left:
            self.open.set()
        await self.open.wait()


FOUR = [AIMessage(text) for text in "abcd"]


def test_the_replies_of_an_async_callback_wait_side_by_side_and_keep_their_order(ask):
    gate = Gate(2)

    async def waits_for_two(prompt, reply):
        if reply.text in "bd":
            await gate()
        return float(ord(reply.text))

    (report,) = ask(Agent("A", waits_for_two), replies=FOUR)
    assert report.rewards == tuple(map(float, map(ord, "abcd")))


def test_a_deadline_of_an_async_callback_is_that_of_its_reply_alone(ask):
    async def hurries(prompt, reply):
        try:
            async with asyncio.timeout(0.05 if reply.text in "ac" else LONG):
                await asyncio.sleep(0.2 if reply.text != "d" else 0)
        except TimeoutError:
            return -1.0
        return 1.0

    (report,) = ask(Agent("A", hurries), replies=FOUR)
    assert report.rewards == (-1.0, 1.0, -1.0, 1.0)


def test_the_first_error_of_an_async_callback_is_the_reason(ask):
    answered = []

    async def fails(prompt, reply):
        if reply.text == "b":
            await asyncio.sleep(0.01)
        if reply.text in "bd":
            raise LookupError(reply.text)
        answered.append(reply.text)
        return 1.0

    (report,) = ask(Agent("A", fails), replies=FOUR)
    assert (report.status, report.reason) == ("error", "LookupError: b")
    assert answered == ["a", "c"]


@pytest.mark.filterwarnings("error")
def test_an_async_callback_that_raises_at_once_is_asked_about_no_further_reply(ask):
    asked = []

    async def fails(prompt, reply):
        asked.append(reply.text)
        raise LookupError(reply.text)

    (report,) = ask(Agent("A", fails), replies=FOUR)
    assert (report.status, report.reason, asked) == ("error", "LookupError: a", ["a"])


@pytest.mark.filterwarnings("error")
def test_an_error_of_an_async_callback_cancels_what_still_waits_for_other_replies(ask):
    ended = []

    async def fails(prompt, reply):
        try:
            await asyncio.sleep(0.01 if reply.text == "a" else LONG)
        finally:
            ended.append(reply.text)
        raise LookupError(reply.text)

    (report,) = ask(Agent("A", fails), replies=FOUR)
    assert (report.status, report.reason) == ("error", "LookupError: a")
    assert sorted(ended) == list("abcd")


def test_a_context_variable_of_one_reply_is_seen_by_no_other(ask):
    note, seen = ContextVar("note", default="none"), []

    async def notes(prompt, reply):
        seen.append(note.get())
        token = note.set(reply.text)
        if reply.text == "b":
            await asyncio.sleep(0)
        assert note.get() == reply.text
        note.reset(token)
        note.set("left")
        return 1.0

    (report,) = ask(Agent("A", notes), replies=FOUR)
    assert (report.status, seen) == ("reported", ["none"] * 4)


async def test_async_callbacks_that_are_late_have_cleaned_up_for_every_reply_when_the_round_is_over():
    cleaned = []

    async def late(prompt, reply):
        try:
            await asyncio.sleep(LONG)
        finally:
            cleaned.append(reply.text)

    agents = [Agent("late", late), GOOD]
    reports = await collect(agents, PROMPT, FOUR, Terms(timeout=0.2), waiter=AWAITING)
    assert [report.status for report in reports] == ["timeout", "reported"]
    assert sorted(cleaned) == list("abcd")
    assert asyncio.all_tasks() == {asyncio.current_task()}
