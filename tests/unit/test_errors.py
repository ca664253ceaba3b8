"""Errors are one tree: one `except` catches them all, and the tree at the top of the module is the tree there is."""

import copy
import pickle

import pytest

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
