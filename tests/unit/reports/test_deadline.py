"""No agent can hold up an auction, see another's messages or report, or report beyond its cap."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolCall
from langchain_core.runnables import RunnableLambda

from llm_auction_chain import Agent, ConfigurationError, RewardError
from llm_auction_chain.messages import copies_of
from llm_auction_chain.reports import Terms, collect
from llm_auction_chain.rewards import AskedBy, asked_by
from llm_auction_chain.waiting import AWAITING, BLOCKING, run

PROMPT = [HumanMessage("x")]
REPLIES = [AIMessage("a"), AIMessage("b")]
GOOD = Agent("good", lambda prompt, reply: 1.0)


@pytest.fixture(params=["sync", "async"])
def ask(request):
    """Ask agents in both colours."""
    if request.param == "sync":
        return lambda *agents, progress=None, replies=REPLIES, **terms: run(
            collect(agents, PROMPT, replies, Terms(**terms), progress=progress, waiter=BLOCKING)
        )
    return lambda *agents, progress=None, replies=REPLIES, **terms: asyncio.run(
        collect(agents, PROMPT, replies, Terms(**terms), progress=progress, waiter=AWAITING)
    )


@pytest.fixture
def gate():
    """What hanging callbacks wait for; opened when the test is over, so that their threads end."""
    gate = threading.Event()
    yield gate
    gate.set()


def hangs(gate):
    return Agent("hangs", lambda prompt, reply: gate.wait() and 1.0)


async def waits(prompt, reply):
    await asyncio.sleep(600)


def test_a_callback_that_hangs_is_late_and_the_others_count(ask, gate):
    began = time.monotonic()
    late, good, awaited = ask(hangs(gate), GOOD, Agent("waits", waits), timeout=0.2)
    assert time.monotonic() - began < 20
    assert (late.status, late.rewards, late.reason) == ("timeout", (0.0, 0.0), "did not report within 0.2 s")
    assert awaited.status == "timeout"
    assert (good.status, good.rewards) == ("reported", (1.0, 1.0))
    with pytest.raises(RewardError, match=r"'hangs' did not report within 0\.2 s"):
        ask(hangs(gate), GOOD, timeout=0.2, on_agent_error="raise")


def test_many_that_hang_keep_nobody_else_from_being_asked(ask, gate):
    hanging = [Agent(f"hangs {k}", lambda prompt, reply: gate.wait()) for k in range(60)]
    reports = ask(*hanging, *(Agent(f"good {k}", GOOD.reward) for k in range(60)), timeout=2.0)
    assert [report.status for report in reports] == ["timeout"] * 60 + ["reported"] * 60


def test_callbacks_that_wait_are_all_under_way_at_once(ask):
    everybody = threading.Barrier(40)
    reports = ask(*(Agent(str(k), lambda p, r: (everybody.wait(60) and 1.0) or 1.0) for k in range(40)))
    assert {report.status for report in reports} == {"reported"}


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_the_interpreter_exits_while_callbacks_hang(colour):
    code = f"""
import time
from langchain_core.runnables import RunnableLambda
from llm_auction_chain import Agent, AuctionRunnable
from llm_auction_chain.testing import MarkovChatModel
hang = lambda *_: time.sleep(600)
agents = [Agent("function", hang), Agent("runnable", RunnableLambda(hang)), Agent("good", lambda p, r: 1.0)]
auction = AuctionRunnable(model=MarkovChatModel(), agents=agents, n_candidates=2, reward_timeout=0.3)
import asyncio
result = auction.run("x") if {colour!r} == "sync" else asyncio.run(auction.arun("x"))
print([report.status for report in result.reports])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
    assert done.stdout.strip() == "['timeout', 'timeout', 'reported']", done.stderr


def test_a_report_after_the_deadline_changes_nothing(ask):
    gate, answered = threading.Event(), threading.Event()

    def late(prompt, reply):
        gate.wait()
        answered.set()
        return 99.0

    (report,) = ask(Agent("late", late), timeout=0.1)
    gate.set()
    assert answered.wait(20)
    assert (report.status, report.rewards) == ("timeout", (0.0, 0.0))


def test_an_agent_may_say_itself_that_it_was_late_or_has_no_report(ask):
    def late(prompt, reply):
        raise TimeoutError("the bidder took 3 s")

    def none(prompt, reply):
        raise RewardError("the bidder sent words")

    first, second = ask(Agent("late", late), Agent("none", none))
    assert (first.status, first.reason) == ("timeout", "TimeoutError: the bidder took 3 s")
    assert (second.status, second.reason) == ("invalid", "RewardError: the bidder sent words")


def test_progress_reaches_its_total_though_some_are_late(ask, gate):
    seen = []
    ask(GOOD, hangs(gate), timeout=0.2, progress=seen.append)
    assert seen == [1, 2]


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
    assert "7.25" not in big.reason
    assert (small.status, small.rewards, small.reason) == ("reported", (1.0, -1.0), "")


@pytest.mark.parametrize("cap", [0, -1.0, True, "2", float("nan"), float("inf")])
def test_a_cap_is_an_amount_above_nothing(cap):
    with pytest.raises(ConfigurationError, match="report_cap"):
        Agent("A", len, report_cap=cap)


RICH = AIMessage(
    [{"type": "text", "text": "a"}],
    tool_calls=[ToolCall(name="buy", args={"items": ["pick"]}, id="1")],
    response_metadata={"deep": {"list": [{"x": 1}]}, "tokens": [1, 2]},
    usage_metadata={"input_tokens": 1, "output_tokens": 1, "total_tokens": 2},
)


def spoil(value):
    """Change every dict and list within."""
    if isinstance(value, dict):
        for inner in list(value.values()):
            spoil(inner)
        value["spoilt"] = True
    if isinstance(value, list):
        for inner in list(value):
            spoil(inner)
        value.append("spoilt")


def test_what_one_agent_does_to_its_copies_reaches_nobody_else_not_even_later(ask):
    kept = []

    def vandal(prompt, reply):
        kept.append(reply)
        for message in (*prompt, reply):
            for value in message.__dict__.values():
                spoil(value)
            message.content = "mine"
            message.extra = "new"
        return 0.0

    def spoils_what_was_kept(prompt, reply):
        for message in kept:
            message.content = "mine"
            spoil(message.response_metadata)
        return 0.0

    seen = []

    def sees(prompt, reply):
        seen.append((prompt[0], reply))
        return 1.0

    original = RICH.model_copy(deep=True)
    names = [Agent(str(k), reward) for k, reward in enumerate([vandal, spoils_what_was_kept, vandal, sees])]
    reports = ask(*names, replies=[original, original])
    assert [report.status for report in reports] == ["reported"] * 4
    assert original == RICH
    assert [reply for _, reply in seen] == [RICH, RICH]
    assert seen[0][0] == HumanMessage("x")


class Odd(AIMessage):
    """A message with a field that is no JSON."""

    where: set = set()  # noqa: RUF012 - pydantic copies it


@pytest.mark.parametrize("message", [
    RICH, HumanMessage("x", id="1", name="n"), Odd("a", where={1}),
    AIMessage("a", extra={"more": [1]}), AIMessage("a", additional_kwargs={"t": (1, [2])}),
])  # fmt: skip
def test_copies_are_equal_of_the_same_kind_and_share_nothing_mutable(message):
    copies = copies_of([message])
    (first,), (second,) = copies(), copies()
    assert type(first) is type(message)
    assert first == second == message
    assert first.model_fields_set == message.model_fields_set
    assert first.model_dump() == message.model_dump()
    first.content = "other"
    for value in {**first.__dict__, **(first.__pydantic_extra__ or {})}.values():
        spoil(value)
    first.another = 1
    assert second == message
    assert second.model_fields_set == message.model_fields_set


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


def test_a_runnable_is_asked_no_more_at_once_than_it_allows():
    under_way, most = 0, 0
    lock = threading.Lock()

    def slow(pair):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 1
        return 1.0

    replies = [AIMessage(str(k)) for k in range(12)]
    (report,) = run(
        collect([Agent("A", RunnableLambda(slow))], PROMPT, replies, config={"max_concurrency": 3}, waiter=BLOCKING)
    )
    assert report.rewards == (1.0,) * 12
    assert most == 3
