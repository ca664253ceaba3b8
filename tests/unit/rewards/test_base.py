"""Rewards are added and multiplied reply by reply, and a reward that waits writes its work once."""

import asyncio
import operator
import threading
from fractions import Fraction
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from llm_auction_chain import ConfigurationError
from llm_auction_chain.rewards import ClickReward, LengthReward, MentionReward, RegexReward, Reward
from llm_auction_chain.rewards.base import WaitingReward

REPLIES = [AIMessage("one"), AIMessage("one two")]


class Words(Reward):
    def score(self, prompt, replies):
        return [float(len(reply.text.split())) for reply in replies]


class Waits(WaitingReward):
    """Waits for another one like it, in a thread or in the loop."""

    def __init__(self, blocking, awaiting):
        self.blocking, self.awaiting = blocking, awaiting

    async def _score(self, prompt, replies, waiter):
        blocking, awaiting = self.blocking, self.awaiting
        await waiter.either(lambda: blocking.wait(60), lambda: asyncio.wait_for(awaiting.wait(), 60))
        return [2.0] * len(replies)


@pytest.fixture(params=["blocking", "awaiting"])
def score(request):
    if request.param == "blocking":
        return lambda reward: list(reward.score([], REPLIES))
    return lambda reward: list(asyncio.run(reward.ascore([], REPLIES)))


@pytest.mark.parametrize(("reward", "expected"), [
    (Words() + 1, [2.0, 3.0]), (1 + Words(), [2.0, 3.0]), (Words() * 0.5, [0.5, 1.0]), (2 * Words(), [2.0, 4.0]),
    (Words() + Words() * Words(), [2.0, 6.0]), (Words() + (lambda prompt, reply: 0.5), [1.5, 2.5]),
    ((lambda prompt, reply: 2.0) * Words(), [2.0, 4.0]), (Words() * MentionReward(["two"]), [0.0, 2.0]),
    (LengthReward(2, 1) + MentionReward(["one"]) + 1, [2.0, 3.0]),
])  # fmt: skip
def test_parts_are_combined_reply_by_reply(score, reward, expected):
    assert score(reward) == expected
    assert not reward.awaits


@pytest.mark.parametrize("part", ["1", True, None, [1.0], Words().ascore])
def test_a_part_that_scores_nothing_is_refused(part):
    with pytest.raises(ConfigurationError, match=r"A part of a reward with [+*] must be a reward, a number"):
        Words() + part
    with pytest.raises(ConfigurationError):
        part * Words()


def test_parts_that_wait_wait_side_by_side():
    blocking = threading.Barrier(2)
    both = Waits(blocking, None) + Waits(blocking, None)
    assert both.awaits
    assert both.score([], REPLIES) == [4.0, 4.0]

    async def awaited():
        awaiting = asyncio.Barrier(2)
        return await (Waits(None, awaiting) * Waits(None, awaiting)).ascore([], REPLIES)

    assert asyncio.run(asyncio.wait_for(awaited(), 60)) == [4.0, 4.0]


def test_an_error_of_a_part_is_raised(score):
    class Fails(WaitingReward):
        async def _score(self, prompt, replies, waiter):
            raise LookupError("no amounts")

    with pytest.raises(LookupError, match="no amounts"):
        score(Fails() + Words())
    with pytest.raises(ZeroDivisionError):
        score(Words() + (lambda prompt, reply: 1 / 0))


def test_a_reward_that_only_has_score_is_awaited_in_a_thread():
    threads = []

    class Notes(Reward):
        def score(self, prompt, replies):
            threads.append(threading.current_thread())
            return [1.0] * len(replies)

    assert asyncio.run(Notes().ascore([], REPLIES)) == [1.0, 1.0]
    assert threads[0] is not threading.main_thread()
    assert threads[0].daemon


def test_a_reward_without_score_is_none():
    with pytest.raises(TypeError, match="abstract"):
        Reward()
    with pytest.raises(TypeError, match="abstract"):
        WaitingReward()


def ready_made():
    """Rewards that say what they are worth at most, in sums, products and clicks."""
    values = st.floats(-1e6, 1e6)
    words = st.sampled_from(["one", "two"])
    leaves = st.one_of(
        st.builds(MentionReward, st.lists(words, min_size=1), values, st.integers(1, 9)),
        st.builds(RegexReward, st.sampled_from([r"\w", "o."]), values, st.integers(1, 9)),
        st.builds(LengthReward, st.floats(0, 9), st.floats(1e-3, 9), values),
        st.builds(ClickReward, st.floats(0, 1e9), words.map(lambda word: MentionReward([word]))),
    )

    def combined(inner):
        part = st.one_of(inner, values)
        return st.one_of(st.builds(operator.add, inner, part), st.builds(operator.mul, inner, part),
                         st.builds(lambda one, other: other + one, inner, values))  # fmt: skip

    return st.recursive(leaves, combined, max_leaves=8)


@given(ready_made(), st.lists(st.text("one tw", max_size=30), min_size=1, max_size=5))
def test_no_report_lies_outside_of_the_bounds_of_its_reward(reward, texts):
    low, high = reward.bounds
    assert all(low <= worth <= high for worth in reward.score([], [AIMessage(text) for text in texts]))


def test_bounds_are_those_of_all_parts_and_unknown_where_one_is():
    mention, length = MentionReward(["a"], 2.0, at_most=3), LengthReward(1, 1, value=-1.0)
    assert ((mention + length).bounds, (mention * length).bounds) == ((-1.0, 6.0), (-6.0, 0.0))
    assert ((mention * -0.5 + 1).bounds, (2 + -3 * length).bounds) == ((-2.0, 1.0), (2.0, 5.0))
    assert (Words() + mention).bounds is (mention * (lambda prompt, reply: 1.0)).bounds is Words().bounds is None
    assert (MentionReward(["a"], 1e200) * MentionReward(["a"], 1e200)).bounds is None
    assert (MentionReward(["a"], 10**300, at_most=2**30) + 1).bounds is None


@pytest.mark.parametrize("verb", [operator.add, operator.mul])
def test_a_sum_or_product_of_many_is_not_deep_and_one_of_too_many_is_refused(score, verb):
    many = reduce(verb, [Words()] * 100)
    assert len(many.parts) == 100
    assert score(many) == [reduce(verb, [1.0] * 100), reduce(verb, [2.0] * 100)]
    with pytest.raises(ConfigurationError, match="at most 100 parts, nested at most 20 deep; got 101 parts, 1 deep"):
        verb(many, 1)
    doubled = reduce(lambda one, _: verb(one, one), range(6), Words())
    with pytest.raises(ConfigurationError, match="got 128 parts"):
        verb(doubled, doubled)


def test_a_reward_is_nested_up_to_a_depth(score):
    nested = Words()
    for _ in range(10):
        nested = 1 + 1 * nested
    assert score(nested) == [11.0, 12.0]
    for deeper in (lambda: 1 + nested, lambda: ClickReward(1.0, nested)):
        with pytest.raises(ConfigurationError, match="21 deep"):
            deeper()


@pytest.mark.parametrize("part", [10**400, Fraction(10**400), float("inf"), float("nan")])
def test_a_number_that_no_float_holds_is_no_part(part):
    with pytest.raises(ConfigurationError, match=r"A part of a reward with \+ must be a finite number"):
        Words() + part


def test_a_function_of_one_argument_is_refused_at_once():
    for one in (lambda reply: 1.0, lambda prompt, reply, third: 1.0, lambda: 1.0, len):
        for make in (lambda one=one: Words() + one, lambda one=one: ClickReward(1.0, one)):
            with pytest.raises(ConfigurationError, match=r"must be a function of \(prompt, reply\)"):
                make()
    assert Words() + max  # of C: it has no signature
    assert Words() + (lambda *given: 1.0)
