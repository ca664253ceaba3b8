"""What a client sees of an error, and what the log keeps of it."""

import logging
import re
import traceback
from collections.abc import Mapping

from langchain_core.exceptions import ContextOverflowError
from starlette.responses import JSONResponse

from llm_auction_chain import validators
from llm_auction_chain.errors import (
    CandidatesError,
    ChargeConflictError,
    ConfigurationError,
    LedgerError,
    PromptError,
    RewardError,
)
from llm_auction_chain.server.wire import WireError

__all__ = ["error_response", "wire_error"]

_logger = logging.getLogger(__name__)
_HEADERS: Mapping[int, Mapping[str, str]] = {
    401: {"www-authenticate": "Bearer"},
    409: {"x-should-retry": "false"},  # clients of OpenAI's would repeat the request
}
# What the request caused. Packages of providers raise the same types, with private texts: where an error was raised is
# the only mark of a text of our own.
_OF_THE_REQUEST: Mapping[type[Exception], WireError] = {
    ContextOverflowError: WireError(400, "The prompt is too long for the model.", code="context_length_exceeded"),
    PromptError: WireError(400, "The prompt is empty; its last message must have content.", code="empty_prompt"),
    NotImplementedError: WireError(400, "The model does not support this request.", code="unsupported"),
}
_OF_OUR_MODELS = re.compile(
    r"llm_auction_chain\.(messages|models\.sampling|models\.local\.(chat_model|engine|templates)|interfaces\.binding)"
)
_OF_THE_SERVER: Mapping[type[Exception], WireError] = {
    ChargeConflictError: WireError(
        409,
        "This Idempotency-Key was used, and its first reply cannot be sent again. Send the request with a new key.",
        code="idempotency_key_in_use",
    ),
    LedgerError: WireError(503, "The ledger is unavailable. Nothing was charged.", code="unavailable", retry_after=1),
    RewardError: WireError(503, "The auction failed. Nothing was charged.", code="unavailable", retry_after=1),
    TimeoutError: WireError(503, "The auction took too long. Nothing was charged.", code="timeout", retry_after=1),
}


def error_response(error: WireError) -> JSONResponse:
    """Return an error as a response."""
    headers = dict(_HEADERS.get(error.status, {}))
    if error.retry_after is not None:
        headers["retry-after"] = f"{error.retry_after:.0f}"
    return JSONResponse(error.envelope(), error.status, headers)


def wire_error(error: Exception, request_id: str, *, details: bool = False) -> WireError:
    """Return what the client sees of an error. Texts that may be of a prompt, a model or an agent are not logged.

    Args:
        error: of the request.
        request_id: for the log.
        details: whether the caller is an operator, who may send agents and reads what is wrong with them.
    """
    if isinstance(error, WireError):
        return error
    wire = _of_the_request(error, details=details) or _of_type(error, _OF_THE_SERVER)
    if wire is None and isinstance(error, CandidatesError):
        wire = _of_candidates(error)
    causes = [error, error.__cause__]
    kinds = " from ".join(type(one).__name__ for one in causes if one is not None)
    if wire is not None:
        _logger.warning("Request %s failed: %s", request_id, kinds)
        return wire
    frames = "".join(traceback.format_tb(error.__traceback__))
    _logger.error("Request %s failed: %s\n%s", request_id, kinds, frames)
    return WireError(500, f"The server failed. Its log has the request {request_id}.", code="internal_error")


def _of_the_request(error: Exception, *, details: bool) -> WireError | None:
    """Return the error of a request that the model cannot serve, None for one of the server or of its agents."""
    wire = _of_type(error, _OF_THE_REQUEST)
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [module for module in modules if module != validators.__name__]
    of_model = bool(modules) and _OF_OUR_MODELS.fullmatch(modules[-1]) is not None
    if (wire and of_model) or (isinstance(error, ConfigurationError) and (of_model or details)):
        return WireError(400, str(error), code=wire.code if wire else "unsupported")
    return wire


def _of_type(error: Exception, errors: Mapping[type[Exception], WireError]) -> WireError | None:
    return next((wire for kind, wire in errors.items() if isinstance(error, kind)), None)


def _of_candidates(error: CandidatesError) -> WireError:
    """Return the error of a model whose replies could not be drawn."""
    statuses = {getattr(cause, "status_code", None) for cause in error.causes}
    if not error.causes:
        return WireError(503, "The model gave no reply that is allowed.", code="no_reply", retry_after=1)
    if statuses <= {400, 413, 422}:
        return WireError(400, "The model does not accept this request.", code="refused_by_model")
    if statuses == {429}:
        return WireError(429, "The model is busy. Retry later.", code="model_busy", retry_after=1)
    return WireError(503, "The model could not be reached, or failed.", code="model_unavailable", retry_after=1)
