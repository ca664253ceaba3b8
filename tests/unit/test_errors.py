"""Errors are one tree: one `except` catches them all, and the tree at the top of the module is the tree there is."""

import copy
import pickle

import pytest
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAuthenticationError,
    ModelError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
)
from langgraph.errors import GraphInterrupt

from llm_auction_chain import errors

ERRORS = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]


def test_every_error_is_an_auction_error():
    assert all(issubclass(error, errors.AuctionError) for error in ERRORS)


def test_no_error_is_one_that_pydantic_swallows():
    assert not [error for error in ERRORS if issubclass(error, ValueError | AssertionError)]


def test_a_warning_is_no_error():
    assert issubclass(errors.AuctionWarning, UserWarning)
    assert not issubclass(errors.AuctionWarning, errors.AuctionError)


def test_a_missing_extra_is_an_import_error_too():
    assert issubclass(errors.MissingDependencyError, ImportError)


def test_the_tree_in_the_docstring_is_the_tree_of_classes():
    drawn, above = {}, ["AuctionError"]
    for line in errors.__doc__.splitlines():
        if "──" in line:
            depth = line.index("──") // 4
            name = line.split("──")[1].split()[0]
            above = [*above[:depth], name]
            drawn[name] = above[-2]
    assert drawn == {
        error.__name__: error.__bases__[0].__name__ for error in ERRORS if error is not errors.AuctionError
    }


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_crosses_processes_with_its_message(error):
    for same in (pickle.loads(pickle.dumps(error("text"))), copy.copy(error("text"))):  # noqa: S301
        assert (type(same), str(same)) == (error, "text")


def test_what_failed_to_draw_keeps_its_causes():
    error = errors.CandidatesError("too few", [ConnectionError("a"), TimeoutError("b")])
    assert [type(cause) for cause in error.causes] == [ConnectionError, TimeoutError]
    assert errors.CandidatesError("too few").causes == ()


class ProviderError(Exception):
    """Says of itself what a provider's errors say: its response, and a text of its own."""

    def __init__(self, message, *, response):
        super().__init__(message)
        self.response = response

    def __str__(self):
        return f"provider: {self.args[0]}"


class RateError(ProviderError, ModelRateLimitError):
    pass


class LongError(ProviderError, ContextOverflowError):
    pass


class BusyError(RuntimeError):
    @property
    def is_retryable(self):
        return True


class FinalError(Exception):
    def __init_subclass__(cls):
        raise RuntimeError("final")


class StrictError(Exception):
    def __new__(cls, *, code):
        return super().__new__(cls, code)

    def __init__(self, *, code):
        self.code = code


SLOW, SLOWER = RateError("slow down", response={"retry-after": "3"}), RateError("slower", response={})
LONG = LongError("too long", response={})


@pytest.mark.parametrize(
    ("causes", "classes", "others"),
    [
        ([SLOW, SLOWER], [RateError], []),
        ([LONG], [LongError], []),
        ([SLOW, LONG], [ProviderError, ModelError], [ModelRateLimitError, ContextOverflowError]),
        ([SLOW, ModelRateLimitError("other")], [ModelRateLimitError], [ProviderError]),
        ([ConnectionResetError(104, "reset"), ConnectionRefusedError("no")], [ConnectionError], [ConnectionResetError]),
        ([TimeoutError("a"), errors.ContextWindowError("b")], [], [OSError, ModelError]),
        ([ValueError("a"), UnicodeError("b")], [ValueError], [UnicodeError]),
        ([BusyError("a"), BusyError("b")], [BusyError], []),
        ([FinalError("a")], [], [FinalError]),
        ([StopIteration("a")], [], [StopIteration]),
        ([GraphInterrupt(("a",))], [], [GraphInterrupt]),
        ([StrictError(code=3)], [StrictError], []),
        ([errors.CandidatesError("a", [SLOW])], [RateError], []),
    ],
)
def test_what_failed_to_draw_is_of_every_class_that_its_causes_share(causes, classes, others):
    error = errors.CandidatesError("too few", causes)
    for same in (error, copy.copy(error)):
        assert (type(same).__name__, str(same), same.__cause__) == ("CandidatesError", "too few", causes[0])
        assert all(isinstance(same, kind) for kind in (errors.CandidatesError, *classes))
        assert not any(isinstance(same, kind) for kind in others)


def test_what_failed_to_draw_has_the_attributes_of_its_first_cause():
    assert errors.CandidatesError("too few", [SLOW, SLOWER]).response == {"retry-after": "3"}


def test_what_failed_to_draw_may_be_asked_again_if_one_of_its_causes_may():
    plain = [ModelAuthenticationError("bad key"), ModelPermissionDeniedError("no")]
    assert errors.CandidatesError("too few", [SLOW]).is_retryable
    assert errors.CandidatesError("too few", [*plain, SLOW]).is_retryable
    assert not errors.CandidatesError("too few", plain).is_retryable


def test_a_prompt_too_long_for_a_model_of_ours_is_too_long_for_langchain():
    assert issubclass(errors.ContextWindowError, ContextOverflowError)
