"""Agents that try to crash, cheat, outlast or spy on an auction, and what comes of it: their own report at most."""

import asyncio
import gc
import json
import sys
import threading
import time
import weakref
from contextvars import ContextVar
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from langchain_core.messages import AIMessage, HumanMessage

from llm_auction_chain import Agent, AuctionRunnable, Policy
from llm_auction_chain.reports import Terms, collect
from llm_auction_chain.rewards import LogRatioReward
from llm_auction_chain.testing import MarkovChatModel
from llm_auction_chain.waiting import AWAITING, BLOCKING, run

PROMPT = [HumanMessage("x")]
REPLIES = [AIMessage("a"), AIMessage("b")]
GOOD = Agent("good", lambda prompt, reply: 1.0)


@pytest.fixture(params=["sync", "async"])
def ask(request):
    """Ask agents in both colours, with a deadline that only what hangs can reach."""
    if request.param == "sync":
        return lambda *agents, timeout=60.0, **terms: run(
            collect(agents, PROMPT, REPLIES, Terms(timeout=timeout, **terms), waiter=BLOCKING)
        )
    return lambda *agents, timeout=60.0, **terms: asyncio.run(
        collect(agents, PROMPT, REPLIES, Terms(timeout=timeout, **terms), waiter=AWAITING)
    )


@pytest.fixture(params=["sync", "async"])
def hold(request):
    """Hold a whole auction in both colours."""

    def held(*agents, seed=7, **settings):
        auction = AuctionRunnable(model=MarkovChatModel(), agents=agents, n_candidates=4, seed=seed, **settings)
        return auction.run("Say something") if request.param == "sync" else asyncio.run(auction.arun("Say something"))

    return held


class Whole:
    """Answers for all replies at once, with whatever `make` makes."""

    def __init__(self, make):
        self.make = make

    def score(self, prompt, replies):
        return self.make()


def raises(error):
    """Return a sync and an async callback that raise it."""

    def now(prompt, reply):
        raise error

    async def later(prompt, reply):
        await asyncio.sleep(0)
        raise error

    return now, later


def deep(prompt, reply):
    return deep(prompt, reply)


class Unended:
    """Awaited, it never yields what a loop can wait for."""

    def __await__(self):
        yield "no future"


@pytest.mark.parametrize(
    "error",
    [
        GeneratorExit(), MemoryError(), StopIteration(1.0), StopAsyncIteration(), RecursionError(), SystemExit(0),
        BaseExceptionGroup("both", [KeyboardInterrupt(), ValueError()]), asyncio.CancelledError("mine"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_nothing_that_python_treats_specially_leaves_an_agents_code(ask, error):
    now, later = raises(error)
    *bad, good = ask(Agent("now", now), Agent("later", later), Agent("whole", Whole(lambda: now(0, 0))), GOOD)
    assert [(report.status, report.rewards) for report in bad] == [("error", (0.0, 0.0))] * 3
    assert good.rewards == (1.0, 1.0)


def test_endless_recursion_and_what_cannot_be_awaited_are_errors_of_their_agent_alone(ask):
    endless, unended, good = ask(Agent("deep", deep), Agent("unended", lambda prompt, reply: Unended()), GOOD)
    assert endless.reason.startswith("RecursionError")
    assert (unended.status, unended.rewards) == ("error", (0.0, 0.0))
    assert good.rewards == (1.0, 1.0)


class Liar:
    """Says that it is a float."""

    __class__ = float


class Loud(float):
    """A float that would tell whenever it is worked with, and calls itself another amount."""

    def __float__(self):
        return 2.0

    def __lt__(self, other):
        raise AssertionError("compared")

    __le__ = __gt__ = __ge__ = __add__ = __radd__ = __mul__ = __truediv__ = __lt__


class Rows(list):
    """A list whose length is a lie."""

    def __len__(self):
        return 2


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: [Decimal("sNaN"), 1.0], "invalid"),
        (lambda: [Decimal("1e400"), 1.0], "invalid"),
        (lambda: [10**400, 1.0], "invalid"),
        (lambda: [Fraction(10**400), 1.0], "invalid"),
        (lambda: np.array([True, False]), "invalid"),
        (lambda: np.array([1j, 1.0]), "invalid"),
        (lambda: np.ones((2, 1)), "invalid"),
        (lambda: np.float64(1.0), "invalid"),
        (lambda: Rows([1.0, 1.0, 9.0]), "invalid"),
        (lambda: [Liar(), 1.0], "error"),
        (lambda: (value for value in [1.0, Decimal("0.5")]), (1.0, 0.5)),
        (lambda: np.array([1, 2], dtype=np.int8), (1.0, 2.0)),
        (lambda: [Loud(7.0), Fraction(1, 2)], (2.0, 0.5)),
        (lambda: [5e-324, -1e100], (5e-324, -1e100)),
    ],
)
def test_what_is_returned_becomes_plain_numbers_or_no_report(ask, make, expected):
    report, good = ask(Agent("odd", Whole(make)), GOOD)
    if isinstance(expected, str):
        assert (report.status, report.rewards) == (expected, (0.0, 0.0))
    else:
        assert report.rewards == expected
        assert {type(reward) for reward in report.rewards} == {float}
    assert good.rewards == (1.0, 1.0)


def test_changing_a_returned_list_later_changes_no_report(ask):
    answered = []

    def make():
        answered.append([1.0, 1.0])
        return answered[-1]

    (report,) = ask(Agent("kept", Whole(make)))
    answered[0][:] = [9.0, 9.0]
    assert report.rewards == (1.0, 1.0)


def test_a_callback_may_run_a_loop_or_an_auction_of_its_own(hold):
    inner = AuctionRunnable(model=MarkovChatModel(), agents=[GOOD], n_candidates=2)

    def nests(prompt, reply):
        asyncio.run(asyncio.sleep(0))
        return float(inner.run("Say something").revenue) + 2.0

    async def anests(prompt, reply):
        return float((await inner.arun("Say something")).revenue) + 2.0

    first, second, good = hold(Agent("nests", nests), Agent("anests", anests), GOOD).reports
    assert (first.status, second.status, good.status) == ("reported",) * 3
    assert set(first.rewards + second.rewards) == {2.0}


def test_a_callback_cannot_close_the_loop_it_runs_in(ask):
    async def closes(prompt, reply):
        asyncio.get_running_loop().close()

    bad, good = ask(Agent("closes", closes), GOOD)
    assert (bad.status, good.status) == ("error", "reported")


def test_an_async_callback_of_a_sync_auction_has_a_loop_to_itself():
    async def ends_it(prompt, reply):
        for task in asyncio.all_tasks():
            task.cancel()
        await asyncio.sleep(0)

    async def stops(prompt, reply):
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)

    async def good(prompt, reply):
        await asyncio.sleep(0.01)
        return 1.0

    agents = [Agent("ends it", ends_it), Agent("stops", stops), Agent("good", good)]
    reports = run(collect(agents, PROMPT, REPLIES[:1], Terms(timeout=60.0), waiter=BLOCKING))
    assert [report.status for report in reports] == ["error", "error", "reported"]


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


def test_a_deadline_holds_for_what_a_report_is_made_of(ask):
    over = threading.Event()

    class Slow:
        shape = ()

        def item(self):
            over.wait()

    def dawdles():
        yield 1.0
        over.wait()

    try:
        began = time.monotonic()
        reports = ask(Agent("item", Whole(lambda: [Slow(), 1.0])), Agent("rows", Whole(dawdles)), GOOD, timeout=0.2)
        assert time.monotonic() - began < 20
    finally:
        over.set()
    assert [report.status for report in reports] == ["timeout", "timeout", "reported"]


def test_instructions_that_no_model_can_read_cost_their_own_agent_alone(ask):
    class Limited:
        def score(self, prompt, replies):
            if any("too long" in message.text for message in prompt):
                raise SystemExit("too long")
            return [-float(len(prompt[0].text))] * len(replies)

    scorer = Limited()
    bad, rival = ask(
        Agent("bad", LogRatioReward("too long", scorer=scorer)), Agent("rival", LogRatioReward("Sing.", scorer=scorer))
    )
    assert (bad.status, bad.rewards, rival.status) == ("error", (0.0, 0.0), "reported")
    assert set(rival.rewards) != {0.0}


def test_a_scorer_that_an_agent_brings_cannot_change_the_candidates(hold):
    class Rewrites:
        def score(self, prompt, replies):
            for message in (*prompt, *replies):
                message.content = "mine"
            return [-1.0] * len(replies)

    result = hold(Agent("bad", LogRatioReward("Sing.", scorer=Rewrites())))
    assert "mine" not in [candidate.message.text for candidate in result.candidates]
    assert result.prompt[0].text == "Say something"


@pytest.mark.parametrize("reward", [
    lambda prompt, reply: 50.0 * reply.text.count("b"), deep, lambda prompt, reply: "no number",
    lambda prompt, reply: sys.exit(),
])  # fmt: skip
def test_no_report_and_no_failure_moves_what_is_drawn_from(hold, reward):
    silent = hold(Agent("A", lambda prompt, reply: 0.0), GOOD, report_cap=5.0)
    loud = hold(Agent("A", reward), GOOD, report_cap=5.0)
    assert [one.message.content for one in loud.candidates] == [one.message.content for one in silent.candidates]
    assert loud.log_weights.tolist() == silent.log_weights.tolist()
    assert [agent.name for agent in loud.agents] == ["A", "good"]


@pytest.mark.parametrize("rule", ["expected", "proportional", "influence", "pivot"])
@pytest.mark.parametrize("amount", [5e-324, 1e-9, 745.0, 1e100])
@pytest.mark.parametrize("tau", [1e-100, 1.0, 1e100])
def test_extreme_reports_give_finite_json_whose_decimals_add_up(rule, amount, tau):
    agents = [
        Agent("A", lambda prompt, reply: amount * reply.text.count("b"), owner="O", report_cap=1e100),
        Agent("B", lambda prompt, reply: amount * (len(reply.text) % 2), owner="O"),
        Agent("user", lambda prompt, reply: 1.0, pays=False),
        Agent("gone", deep),
    ]
    auction = AuctionRunnable(
        model=MarkovChatModel(), agents=agents, n_candidates=6, tau=tau, payment_rule=rule, seed=3,
        policy=Policy(candidate_filter=lambda prompt, reply: reply.text != "a", fallback="Sorry"), report_cap=1e100,
    )  # fmt: skip
    result = auction.run("Say something")
    told = json.loads(json.dumps(result.reply.response_metadata["auction"], allow_nan=False))
    json.dumps(result.explain().as_dict(), allow_nan=False)
    assert not {"nan", "inf"} & set(str(result.explain()).split())
    assert result.revenue == Decimal(told["revenue_decimal"])
    for amounts in ([Decimal(one["amount_decimal"]) for one in told["payments"]], result.charges):
        assert sum(map(Fraction, amounts)) == Fraction(result.revenue)
    assert told["payments"][2]["amount_decimal"] == told["payments"][3]["amount_decimal"] == "0.000000"


def test_threads_and_results_are_gone_when_auctions_are_over(hold):
    async def awaited(prompt, reply):
        await asyncio.sleep(0)
        return 1.0

    def one():
        return weakref.ref(hold(GOOD, Agent("deep", deep), Agent("awaited", awaited)))

    def working():
        return {thread for thread in threading.enumerate() if thread.name == "auction-agent"}

    others = working()
    results = [one() for _ in range(5)]
    gc.collect()
    assert [result() for result in results] == [None] * 5
    deadline = time.monotonic() + 20
    while working() - others and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not working() - others
