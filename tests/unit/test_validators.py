"""Settings are checked by a few validators, whose errors say what is allowed and what was given."""

import math
from fractions import Fraction

import pytest

from llm_auction_chain import ConfigurationError
from llm_auction_chain.validators import choice, number, refuse, text, whole_number


@pytest.mark.parametrize(("check", "expected"), [
    (lambda: refuse("tau", "a number above 0", -1), "tau must be a number above 0, got -1."),
    (lambda: refuse("seed", "smaller", 10**5000), "seed must be smaller, got a larger number."),
    (lambda: refuse("tau", "smaller", Fraction(10**5000, 3)), "tau must be smaller, got a larger number."),
    (lambda: refuse("name", "short", "x" * 999), f"name must be short, got '{'x' * 199}."),
    (lambda: refuse("k", "2", 3, "Use 2."), "k must be 2, got 3. Use 2."),
])  # fmt: skip
def test_an_error_says_what_is_allowed_and_what_was_given(check, expected):
    assert str(check()) == expected


@pytest.mark.parametrize("value", [0, 4])
def test_a_whole_number_within_its_limits_is_returned(value):
    assert whole_number("n", value, below=5) == value


@pytest.mark.parametrize("value", [-1, 5, 2.0, "4", True, None, math.nan])
def test_what_is_no_whole_number_within_the_limits_is_refused(value):
    with pytest.raises(ConfigurationError, match=r"n must be a whole number of at least 0 and below 5, got"):
        whole_number("n", value, below=5)


def test_a_large_limit_is_shown_as_a_power():
    with pytest.raises(ConfigurationError, match=r"seed must be .* of at least 0 and below 2\*\*128, got -1"):
        whole_number("seed", -1, below=2**128)


def test_a_number_becomes_a_float():
    assert number("tau", Fraction(1, 2), above=0) == 0.5
    assert type(number("tau", 2)) is float
    assert number("low", -1, least=-1, most=-1) == -1.0


@pytest.mark.parametrize("value", [0, 1.5, math.nan, math.inf, -math.inf, "1", True, None, 1j, 10**400])
def test_what_is_no_number_within_the_limits_is_refused(value):
    with pytest.raises(ConfigurationError, match=r"tau must be a number .*above 0 and .*at most 1, got"):
        number("tau", value, above=0, most=1)
    if value not in (0, 1.5):
        with pytest.raises(ConfigurationError, match="tau must be a finite number, got"):
            number("tau", value)


def test_a_choice_is_one_of_its_own_type():
    assert choice("mode", "a", ("a", "b")) == "a"
    for value in ("c", None, [], 1):
        with pytest.raises(ConfigurationError, match="mode must be 'a' or 'b', got"):
            choice("mode", value, ("a", "b"))
    with pytest.raises(ConfigurationError, match="pays must be True or False, got 1"):
        choice("pays", 1, (True, False))


def test_a_text_is_a_string_and_blank_only_where_that_is_allowed():
    assert text("name", "A") == "A"
    assert text("context", " ", empty=True) == " "
    for value in ("", " \n", None, b"A", 7):
        with pytest.raises(ConfigurationError, match="name must be a text that is not blank, got"):
            text("name", value)
    with pytest.raises(ConfigurationError, match="context must be a text, got"):
        text("context", None, empty=True)
