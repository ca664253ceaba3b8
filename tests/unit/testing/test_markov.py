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
        ({"length": 0}, "length must be a whole number of at least 1, got 0"),
        ({"length": "long"}, "length must be a whole number of at least 1, got 'long'"),
        ({"vocabulary": ""}, "vocabulary must be .* got ''"),
        ({"vocabulary": "aba"}, "vocabulary must be .* each once, got 'aba'"),
        ({"vocabulary": "ab"}, "transition must be 2 rows"),
        ({"start": (0.5, 0.5)}, "start must be 3 probabilities"),
        ({"start": (0.5, 0.5, 0.5)}, "start must be .* sum to 1"),
        ({"start": (1.5, -0.5, 0.0)}, "start must be .* at least 0"),
        ({"start": (math.nan, 0.5, 0.5)}, "start must be"),
        ({"start": (0.5, 0.2, 0.3 + 1e-8)}, "start must be"),
        ({"start": "abc"}, "start"),
        ({"transition": ((1.0, 0.0, 0.0),) * 2}, "transition must be 3 rows"),
        ({"transition": ((1.0, 0.0, 0.0), (1.0, 0.0), (1.0, 0.0, 0.0))}, "transition after 'b' must be 3"),
        ({"transition": ((1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.9, 0.0, 0.0))}, "transition after 'c' must be"),
        ({"tilts": {"guitar": (1.0,)}}, r"tilts\['guitar'\] must be 3 finite numbers"),
        ({"tilts": {"guitar": (1.0, math.inf, 0.0)}}, r"tilts\['guitar'\]"),
    ],
)
def test_what_is_no_markov_chain_is_refused_by_name(settings, says):
    with pytest.raises(ConfigurationError, match=says):
        MarkovChatModel(**settings)


def test_the_sum_of_probabilities_may_miss_one_by_rounding():
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


def test_powers_multiply_the_distributions():
    model = MarkovChatModel(**SPARSE)
    first, _ = model.log_probabilities([PLAIN, TILTED], (2.0, -1.0))
    (one, _), (other, _) = model.log_probabilities([PLAIN]), model.log_probabilities([TILTED])
    expected = np.exp(2 * one[:2] - other[:2])
    np.testing.assert_allclose(np.exp(first), [*expected / expected.sum(), 0.0])


def test_what_is_impossible_is_never_drawn_and_scores_minus_infinity():
    model = MarkovChatModel(**SPARSE)
    result = model._generate(PLAIN, n=200, seed=3)
    drawn = {generation.text for generation in result.generations}
    assert drawn == {text for text, log_prob in model.enumerate().items() if log_prob > -math.inf}
    assert model.score(PLAIN, [AIMessage("ca"), AIMessage("a"), AIMessage("xx")]) == [-math.inf] * 3
