"""What both wire formats share."""

import json

import pytest

from llm_auction_chain.server.wire import WireError, server_sent_event


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_an_error_has_the_four_fields_that_clients_read(status, kind):
    error = WireError(status, "No.", param="n", code="too_many")
    assert error.envelope() == {"error": {"message": "No.", "type": kind, "param": "n", "code": "too_many"}}


def test_a_text_with_line_breaks_stays_one_event():
    event = server_sent_event({"text": "one\n\ndata: two\r\n"})
    assert event.count(b"\n") == 2
    assert json.loads(event.removeprefix(b"data: ")) == {"text": "one\n\ndata: two\r\n"}
