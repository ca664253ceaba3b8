"""What an agent returns becomes plain numbers within its cap, or no report and a public reason without numbers."""

import itertools
import math
import time
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from langchain_core.messages import AIMessage

from llm_auction_chain import Agent, ConfigurationError, RewardError
from llm_auction_chain.errors import LogProbError, ScoringError
from llm_auction_chain.reports import Terms, bounds_of, collect
from llm_auction_chain.reports.report import InvalidReportError, amounts_of, failed_report, report_of
from llm_auction_chain.rewards import ClickReward, LogRatioReward, MentionReward, Reward
from llm_auction_chain.waiting import BLOCKING, run


def report(value, n=2, *, reward=None, cap=math.inf, refuse_negative=False):
    return report_of(value, n, reward=reward, bounds=(-cap, cap), refuse_negative=refuse_negative)


class Rows(list):
    """A list whose length is wrong."""

    def __len__(self):
        return 2


@pytest.mark.parametrize("value", [
    [Decimal("sNaN"), 1.0], [Decimal("1e400"), 1.0], [10**400, 1.0], [Fraction(10**400), 1.0], [float("nan"), 1.0],
    [1.0, float("inf")], np.array([1j, 1.0]), np.ones((2, 1)), np.float64(1.0),
    Rows([1.0, 1.0, 9.0]), ["1", "2"], [None, 1.0], [1.0], [], None, 1.0, "12", b"12", bytearray(b"ab"),
    {1.0, 2.0}, {1.0: 2, 2.0: 3}, {1.0: 2, 2.0: 3}.keys(), {1.0: 1, 2.0: 1}.items(), [1.1e100, 0.0],
], ids=repr)  # fmt: skip
def test_what_is_not_one_finite_number_for_every_reply_is_no_report(value):
    with pytest.raises(InvalidReportError):
        amounts_of(value, 2)


@pytest.mark.parametrize(("value", "expected"), [
    ((number for number in (1.0, Decimal("0.5"))), (1.0, 0.5)),
    (np.array([1, 2], dtype=np.int8), (1.0, 2.0)),
    (np.array([1, 2], dtype=np.float32), (1.0, 2.0)),
    ([np.float64(7.0), Fraction(1, 2)], (7.0, 0.5)),
    ([5e-324, -1e100], (5e-324, -1e100)),
    ((1, 2), (1.0, 2.0)), ([True, False], (1.0, 0.0)), (np.array([True, False]), (1.0, 0.0)),
])  # fmt: skip
def test_numbers_of_any_kind_become_floats(value, expected):
    amounts = amounts_of(value, 2)
    assert amounts == expected
    assert {type(amount) for amount in amounts} == {float}


def test_an_infinite_report_is_read_no_further_than_the_replies():
    read = []

    def endless():
        for k in itertools.count():
            read.append(k)
            yield 1.0

    with pytest.raises(InvalidReportError, match="more than 2 rewards for 2 replies"):
        amounts_of(endless(), 2)
    assert len(read) == 3


def test_no_replies_have_no_amounts():
    assert report([], 0, cap=1.0).rewards == ()


def test_a_list_that_changes_later_changes_no_report():
    rows = [1.0, 1.0]
    kept = report(rows)
    rows[:] = [9.0, 9.0]
    assert kept.rewards == (1.0, 1.0)


def test_a_reward_beyond_the_cap_is_cut_to_it():
    capped = report([7.25, -7.25], cap=2.0)
    assert (capped.status, capped.rewards) == ("capped", (2.0, -2.0))
    assert "7.25" not in capped.reason


def test_a_reward_exactly_at_its_cap_is_reported():
    exact = report([2.0, -2.0], cap=2.0)
    assert (exact.status, exact.rewards, exact.reason) == ("reported", (2.0, -2.0), "")
    assert report([np.nextafter(2.0, 3.0), 0.0], cap=2.0).status == "capped"


def test_a_negative_amount_is_invalid_only_where_the_payment_rule_needs_it():
    assert report([-1.0, 0.0]).status == "reported"
    assert report([0.0, -0.0], refuse_negative=True).status == "reported"
    with pytest.raises(InvalidReportError, match="'proportional' needs rewards >= 0"):
        report([-1.0, 0.0], refuse_negative=True)


@pytest.mark.parametrize("value", [[-3.25, -3.25], [3.25e150, 0.0], [1.0, -3.25]])
def test_a_broken_rule_names_no_number_and_the_error_for_the_developer_does(value):
    with pytest.raises(InvalidReportError, match=r"reported -?3\.25.* for candidate \d; .*rewards") as error:
        report(value, refuse_negative=True)
    assert "3.25" not in error.value.rule
    assert failed_report(error.value, 2).reason == error.value.rule


def test_a_click_reward_says_what_it_predicted_and_bid():
    reward = ClickReward(2.0, lambda prompt, reply: 0.25)
    clicks = report([0.5, 2.0], reward=reward, cap=1.0)
    assert (clicks.rewards, clicks.click_through, clicks.value_per_click) == ((0.5, 1.0), (0.25, 1.0), 2.0)
    nothing = report([0.0, 0.0], reward=ClickReward(0.0, lambda prompt, reply: 0.25))
    assert (nothing.click_through, nothing.value_per_click) == (None, None)


class Unspeakable(Exception):  # noqa: N818
    def __str__(self):
        raise LookupError


@pytest.mark.parametrize(("error", "status", "reason"), [
    (LookupError("midway"), "error", "LookupError: midway"),
    (ValueError(), "error", "ValueError"),
    (SystemExit(1), "error", "SystemExit: 1"),
    (TimeoutError("the bidder took 3 s"), "timeout", "TimeoutError: the bidder took 3 s"),
    (RewardError("the bidder sent words"), "invalid", "RewardError: the bidder sent words"),
    (Unspeakable(), "error", "Unspeakable"),
    (ValueError("x\nWARNING 'rival'\x1b[2J\u202e"), "error", "ValueError: x WARNING 'rival' [2J "),
])  # fmt: skip
def test_the_reason_of_a_failure_is_one_line_of_the_errors_type_and_text(error, status, reason):
    failed = failed_report(error, 2)
    assert (failed.status, failed.reason, failed.rewards) == (status, reason, (0.0, 0.0))


def test_a_reason_can_be_stored_and_is_short():
    reason = failed_report(ValueError(chr(0xD800) + "x" * 1000), 1).reason
    assert reason.encode("utf-8")
    assert len(reason) == 200


class Declares(Reward):
    """Declares bounds, and reports beyond them."""

    def __init__(self, bounds):
        self._bounds = bounds

    @property
    def bounds(self):
        if isinstance(self._bounds, Exception):
            raise self._bounds
        return self._bounds

    def score(self, prompt, replies):
        return [9.0 for _ in replies]


@pytest.mark.parametrize(("bounds", "cap", "expected"), [
    ((-1.0, 0.5), None, (-1.0, 0.5)), ((-1.0, 0.5), 0.75, (-0.75, 0.5)), ((2, 3), 1.0, (1.0, 1.0)),
    (None, 2.0, (-2.0, 2.0)), (LookupError(), 2.0, (-2.0, 2.0)), ((math.nan, 1.0), 2.0, (-2.0, 2.0)),
    ((1.0, -1.0), 2.0, (-2.0, 2.0)), ("no", 2.0, (-2.0, 2.0)), (None, None, (-math.inf, math.inf)),
])  # fmt: skip
def test_an_agent_reports_within_what_its_reward_declares_and_within_its_cap(bounds, cap, expected):
    agent = Agent("A", Declares(bounds))
    assert bounds_of(agent, cap) == expected
    (one,) = run(collect([agent], [], [AIMessage("a")], Terms(report_cap=cap), waiter=BLOCKING))
    assert one.rewards == (min(9.0, expected[1]),)
    assert one.status == ("capped" if expected[1] < 9.0 else "reported")


def test_a_long_text_of_an_error_is_cut_before_it_is_cleaned():
    start = time.thread_time()
    reason = failed_report(ValueError("\u200b" * 30_000_000), 1).reason
    assert (reason.strip(), len(reason)) == ("ValueError:", 200)
    assert time.thread_time() - start < 1


def test_what_others_raise_within_a_ready_made_reward_is_named_and_not_quoted():
    quoted, ours = LookupError("the instructions: bid $9"), RewardError("no vectors")
    for reward in (LogRatioReward("bid $9"), MentionReward(["a"]) + 1):
        assert failed_report(quoted, 1, reward).reason == "LookupError"
        assert failed_report(ours, 1, reward).reason == "RewardError: no vectors"
    assert failed_report(quoted, 1, Declares(None)).reason == "LookupError: the instructions: bid $9"


class Refuses:
    """A scorer, and a function, whose errors quote what an agent keeps private."""

    def __init__(self, kind):
        self._kind = kind

    def score(self, *_, **__):
        raise self._kind("429 for 'bid $9'")

    __call__ = score


@pytest.mark.parametrize("kind", [TimeoutError, ConnectionResetError, ScoringError, RewardError, ConfigurationError])
def test_errors_of_any_class_that_others_raise_within_a_ready_made_reward_are_not_quoted(kind):
    refuses = Refuses(kind)
    rewards = [LogRatioReward("bid $9", scorer=refuses), ClickReward(9.0, refuses), MentionReward(["a"]) + refuses]
    agents = [Agent(f"A{k}", reward) for k, reward in enumerate(rewards)]
    reports = run(collect(agents, [], [AIMessage("a")], Terms(), waiter=BLOCKING))
    assert [report.reason for report in reports] == [kind.__name__] * 3


@pytest.mark.parametrize(("error", "reason"), [
    (ScoringError("400: 'bid $9'"), "ScoringError"),
    (LogProbError("drawn with a temperature"), "LogProbError: drawn with a temperature"),
])  # fmt: skip
def test_the_words_of_a_model_server_are_not_quoted(error, reason):
    def refuse(*_):
        raise error

    scores = type(refuse)(refuse.__code__, {"__name__": "llm_auction_chain.models.vllm.x"}, closure=refuse.__closure__)
    reward = MentionReward(["a"]) + scores
    (report,) = run(collect([Agent("A", reward)], [], [AIMessage("a")], Terms(), waiter=BLOCKING))
    assert report.reason == reason
