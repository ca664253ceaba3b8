"""The exactly solvable chat model is a Markov chain, or is refused."""

import math

import numpy as np
import pytest
from langchain_core.messages import AIMessage, HumanMessage

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.testing import MarkovChatModel

# "c" never comes first, and never after "a".
SPARSE = {
    "start": (0.5, 0.5, 0.0),
    "transition": ((0.25, 0.75, 0.0), (0.0, 0.0, 1.0), (0.4, 0.2, 0.4)),
    "tilts": {"guitar": (1.0, 0.0, -1.0)},
}
PLAIN, TILTED = [HumanMessage("Hi")], [HumanMessage("A guitar, please")]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"length": 0}, "length is 0"),
        ({"length": "long"}, "length is 'long'"),
        ({"vocabulary": ""}, "vocabulary is ''"),
        ({"vocabulary": "aba"}, "vocabulary is 'aba'"),
        ({"vocabulary": "ab"}, "transition has 3 rows; it needs 2"),
        ({"start": (0.5, 0.5)}, "start has 2 entries; it needs 3"),
        ({"start": (0.5, 0.5, 0.5)}, "start is .* sum to 1, not 1.5"),
        ({"start": (1.5, -0.5, 0.0)}, "start is .* at least 0"),
        ({"start": (math.nan, 0.5, 0.5)}, "start is"),
        ({"start": (0.5, 0.2, 0.3 + 1e-8)}, "start is"),
        ({"start": "abc"}, "start"),
        ({"transition": ((1.0, 0.0, 0.0),) * 2}, "transition has 2 rows"),
        ({"transition": ((1.0, 0.0, 0.0), (1.0, 0.0), (1.0, 0.0, 0.0))}, "transition after 'b' has 2 entries"),
        ({"transition": ((1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.9, 0.0, 0.0))}, "transition after 'c' is"),
        ({"tilts": {"guitar": (1.0,)}}, "tilt of 'guitar' is .*; it needs 3"),
        ({"tilts": {"guitar": (1.0, math.inf, 0.0)}}, "tilt of 'guitar'"),
    ],
)
def test_what_is_no_markov_chain_is_refused_by_name(settings, says):
    with pytest.raises(ConfigurationError, match=says):
        MarkovChatModel(**settings)


def test_a_law_may_miss_one_by_rounding():
    assert MarkovChatModel(start=(0.1, 0.2, 0.7 + 1e-12)).start


@pytest.mark.parametrize("powers", [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (2.0, -1.0), (-1.0, 2.0), (0.5, 0.5)])
def test_a_probability_of_zero_stays_zero_under_every_power(powers):
    model = MarkovChatModel(**SPARSE, length=3)
    replies = model.enumerate([PLAIN, TILTED], powers)
    assert len(replies) == 27
    assert math.isclose(sum(map(math.exp, replies.values())), 1.0)
    for text, log_prob in replies.items():
        impossible = text[0] == "c" or "ac" in text or "ba" in text or "bb" in text
        assert (log_prob == -math.inf) == impossible, text


def test_powers_multiply_the_laws():
    model = MarkovChatModel(**SPARSE)
    first, _ = model.laws([PLAIN, TILTED], (2.0, -1.0))
    (one, _), (other, _) = model.laws([PLAIN]), model.laws([TILTED])
    expected = np.exp(2 * one[:2] - other[:2])
    np.testing.assert_allclose(np.exp(first), [*expected / expected.sum(), 0.0])


def test_what_is_impossible_is_never_drawn_and_scores_minus_infinity():
    model = MarkovChatModel(**SPARSE)
    result = model._generate(PLAIN, n=200, seed=3)
    drawn = {generation.text for generation in result.generations}
    assert drawn == {text for text, log_prob in model.enumerate().items() if log_prob > -math.inf}
    assert model.score(PLAIN, [AIMessage("ca"), AIMessage("a"), AIMessage("xx")]) == [-math.inf] * 3
