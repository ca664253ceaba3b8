"""What a client sees of an error, and what the log keeps of it."""

import logging

import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage

from llm_auction_chain import AuctionRunnable
from llm_auction_chain.errors import (
    CandidatesError,
    ChargeConflictError,
    ConfigurationError,
    DeliveredError,
    LedgerUnavailableError,
    RewardError,
)
from llm_auction_chain.messages import as_turns
from llm_auction_chain.server.failures import error_response, wire_error
from llm_auction_chain.server.wire import WireError
from llm_auction_chain.testing import MarkovChatModel

PROMPT = "the user's question"


class UpstreamError(Exception):
    """An error of a provider's package, which has the status of its response."""

    def __init__(self, status_code):
        super().__init__(PROMPT)
        self.status_code = status_code


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ChargeConflictError(PROMPT), 409, "idempotency_key_in_use"),
        (DeliveredError(PROMPT), 409, "idempotency_key_in_use"),
        (LedgerUnavailableError(PROMPT), 503, "unavailable"),
        (RewardError(PROMPT), 503, "unavailable"),
        (TimeoutError(PROMPT), 503, "timeout"),
        (CandidatesError(PROMPT), 503, "no_reply"),
        (CandidatesError(PROMPT, [UpstreamError(429)]), 429, "model_busy"),
        (CandidatesError(PROMPT, [UpstreamError(400), UpstreamError(422)]), 400, "refused_by_model"),
        (CandidatesError(PROMPT, [UpstreamError(400), UpstreamError(500)]), 503, "model_unavailable"),
        (CandidatesError(PROMPT, [ConnectionError(PROMPT)]), 503, "model_unavailable"),
        (ValueError(PROMPT), 500, "internal_error"),
        (KeyError(PROMPT), 500, "internal_error"),
    ],
)
def test_neither_client_nor_log_gets_the_text_of_an_error_that_may_be_private(caplog, error, status, code):
    with caplog.at_level(logging.DEBUG):
        wire = wire_error(error, "req_7")
    assert (wire.status, wire.code) == (status, code)
    assert (wire.retry_after is not None) == (status in (429, 503))
    assert PROMPT not in wire.message
    assert PROMPT not in caplog.text
    assert "req_7" in caplog.text


class TooLongError(ContextOverflowError):
    """A provider's error, which LangChain names."""


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (CandidatesError(PROMPT, [TooLongError(PROMPT)]), 400, "context_length_exceeded"),
        (CandidatesError(PROMPT, [NotImplementedError(PROMPT)]), 400, "unsupported"),
        (NotImplementedError(PROMPT), 400, "unsupported"),
        (ConfigurationError(PROMPT), 500, "internal_error"),
    ],
)
def test_a_client_reads_no_text_of_a_provider_or_of_the_servers_settings(caplog, error, status, code):
    wire = wire_error(error, "req_7")
    assert (wire.status, wire.code) == (status, code)
    assert PROMPT not in wire.message + caplog.text


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: as_turns([HumanMessage([{"type": "image_url", "image_url": "https://a.example"}])], "M"),
            "M reads text only, and a human message has image_url.",
        ),
        (
            lambda: AuctionRunnable(model=MarkovChatModel()).bind_tools([{"name": "cook"}]),
            "MarkovChatModel has no tools; give a model that can call them.",
        ),
    ],
)
def test_a_client_reads_what_our_models_cannot_do(call, text):
    with pytest.raises((ConfigurationError, NotImplementedError)) as caught:
        call()
    wire = wire_error(caught.value, "req_7")
    assert (wire.status, wire.code, wire.message) == (400, "unsupported", text)


def test_an_operator_reads_what_is_wrong_with_the_agents():
    wire = wire_error(ConfigurationError("Two agents are called 'A'."), "req_7", details=True)
    assert (wire.status, wire.message) == (400, "Two agents are called 'A'.")


def test_an_error_of_the_wire_stays_as_it_is():
    error = WireError(404, "No such model.")
    assert wire_error(error, "req_7") is error


def test_an_unforeseen_error_is_found_in_the_log_by_the_place_where_it_was_raised(caplog):
    def fails():
        raise ZeroDivisionError(PROMPT)

    try:
        fails()
    except ZeroDivisionError as error:
        wire = wire_error(error, "req_7")
    assert "req_7" in wire.message
    assert "in fails" in caplog.text


def test_headers_say_what_a_client_should_do_next():
    assert error_response(WireError(401, "No.")).headers["www-authenticate"] == "Bearer"
    assert error_response(WireError(409, "No.")).headers["x-should-retry"] == "false"
    assert error_response(WireError(429, "No.", retry_after=3)).headers["retry-after"] == "3"
    assert "retry-after" not in error_response(WireError(400, "No.")).headers
