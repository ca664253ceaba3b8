"""Pure functions that read a vLLM server's answers: replies, their tokens, usage, log-probabilities, failures."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.exceptions import (
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
    ModelTimeoutError,
)
from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata

from llm_auction_chain.errors import (
    AuctionError,
    CandidatesError,
    ConfigurationError,
    ContextWindowError,
    ScoringError,
)
from llm_auction_chain.models.sampling import usage

if TYPE_CHECKING:
    import httpx

__all__ = ["is_plain", "read_failure", "read_list", "read_replies", "read_scores", "read_usage"]

_TOO_LONG = ("context length", "max_model_len", "model length")
_BAD_REQUEST, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TOO_MANY, _SERVER = 400, 401, 403, 404, 429, 500
_CLASSES: dict[int, type[ModelError]] = {
    _UNAUTHORIZED: ModelAuthenticationError,
    _FORBIDDEN: ModelPermissionDeniedError,
    _NOT_FOUND: ModelNotFoundError,
    _TOO_MANY: ModelRateLimitError,
}

_FLOOR = -9999.0  # what vLLM writes for minus infinity, which JSON cannot hold
_LEAST = -20.0  # nats. The likeliest of 2 ** 20 tokens has at least -14, so no reply has rarer ones alone
_LOGITS = "The server returns logits in place of log-probabilities; start it with --logprobs-mode raw_logprobs."


def is_plain(settings: Mapping[str, Any]) -> bool:
    """Return whether the sampler draws from the model's own distribution: temperature 1, no truncation."""
    return bool(settings["temperature"] == 1 and settings["top_p"] == 1 and settings["top_k"] == 0)


def read_list(answer: Any, key: str) -> list[Any]:
    """Return a list in an answer. Without it the answer is not a vLLM server's: ScoringError."""
    value = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(value, list):
        raise ScoringError(f"The server's answer has no {key!r}. Is it a vLLM server? It said: {str(answer)[:200]}")
    return value


def read_failure(
    error: "httpx.HTTPError", url: str, kind: type[AuctionError], *, api_key: str | None, timeout: float | None
) -> AuctionError:
    """Return our error for a request that failed: of this kind, or a `ContextWindowError`.

    A `CandidatesError` is also LangChain's error for such a failure, which says whether asking again may help. The key
    is never in the message, even if the server repeats it.
    """
    import httpx

    cause: type[ModelError] = ModelConnectionError
    if isinstance(error, httpx.HTTPStatusError):
        text = error.response.text[:500].replace(api_key or "\0", "***")
        if error.response.status_code == _BAD_REQUEST and any(words in text for words in _TOO_LONG):
            return ContextWindowError(f"{url} says: {text} Shorten the prompt or lower max_tokens.")
        path, status = error.request.url.path, error.response.status_code
        if status == _BAD_REQUEST and path.endswith("/tokenize"):
            return ConfigurationError(f"{url} refuses these messages: {text}")
        cause = _CLASSES.get(status, ModelInvalidRequestError if status < _SERVER else ModelAPIError)
        if status in (_UNAUTHORIZED, _FORBIDDEN):
            message = f"refuses the API key (status {status}). Set api_key to the server's --api-key."
        elif status == _NOT_FOUND and path.endswith("/tokenize"):
            message = "has no /tokenize. Score with a vLLM server; a proxy in front must pass on /tokenize beside /v1."
        else:
            message = f"answered {path} with status {status}: {text}"
    elif isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout)):
        cause = ModelTimeoutError
        message = f"did not answer within {timeout} s. Raise timeout or lower max_tokens or max_concurrency."
    elif isinstance(error, httpx.DecodingError):
        cause = ModelAPIError
        message = "answered something other than JSON. Is it a vLLM server?"
    else:
        message = f"cannot be reached ({error}). Start a server: vllm serve MODEL --port 8000, or set base_url."
    message = f"{url} {message}"
    return CandidatesError(message, [cause(message)]) if kind is CandidatesError else kind(message)


def read_usage(answer: Mapping[str, Any]) -> UsageMetadata | None:
    """Return the token counts of one request: the prompt once, and every reply; None where there are none."""
    if not isinstance(counts := answer.get("usage"), dict):
        return None
    return usage(counts.get("prompt_tokens") or 0, counts.get("completion_tokens") or 0)


def read_replies(answer: Any, body: Mapping[str, Any], prompt: Sequence[int] | None) -> list[AIMessage]:
    """Return the replies of one chat completion, in order, with their tokens where the request's body asked for them.

    Log-probabilities are complete where every token has one, the server counted as many tokens as it sent, and a reply
    that ended by itself has its end token.

    Args:
        answer: the JSON.
        body: of the request.
        prompt: the tokens before the replies when they are scored; the server must have drawn behind the same.

    Raises:
        ScoringError: there are no replies, or no tokens where the request asked for them, or those of another prompt.
        ContextWindowError: a reply with tokens was cut before `max_tokens`.
    """
    replies, n_tokens = [], 0
    for choice in sorted(read_list(answer, "choices"), key=_index):
        metadata = {"model_name": body["model"], "finish_reason": choice.get("finish_reason")}
        if body["logprobs"]:
            metadata["logprobs"] = _log_probs(choice, body)
            n_tokens += len(choice["token_ids"])
        replies.append(AIMessage(content=_text(choice), response_metadata=metadata))
    if replies and prompt is not None and answer.get("prompt_token_ids") != prompt:
        raise ScoringError(
            "The server draws replies behind other tokens than /tokenize makes of the same messages, so it cannot "
            "score them. Serve a model whose chat template both use, or use proposal=Reference()."
        )
    counts = read_usage(answer)
    if body["logprobs"] and counts is not None and counts["output_tokens"] != n_tokens:
        for reply in replies:
            reply.response_metadata["logprobs"]["complete"] = False
    return replies


def read_scores(answer: Any, start: int, replies: Sequence[Sequence[int]]) -> list[float]:
    """Return the log-probability of every reply in nats. The tokens of a reply begin at `start` of its prompt.

    Raises:
        ScoringError: a log-probability is missing, or not one.
    """
    choices = sorted(read_list(answer, "choices"), key=_index)
    if len(choices) != len(replies):
        raise ScoringError(f"The server scored {len(choices)} of {len(replies)} replies. Is it a vLLM server?")
    return [_score(choice, start, reply) for choice, reply in zip(choices, replies, strict=True)]


def _score(choice: Mapping[str, Any], start: int, reply: Sequence[int]) -> float:
    log_probs = choice.get("prompt_logprobs")
    if not isinstance(log_probs, list) or len(log_probs) != start + len(reply):
        raise ScoringError("The server returned no prompt_logprobs. Score with a vLLM server, directly or by a proxy.")
    entries = zip(log_probs[start:], reply, strict=True)
    values = [(entry or {}).get(str(token), {}).get("logprob") for entry, token in entries]
    if None in values:
        raise ScoringError("The server's prompt_logprobs are not of the tokens sent. Is it a vLLM server?")
    if not all(value <= 0 for value in values):
        raise ScoringError(_LOGITS)
    return -math.inf if min(values, default=0.0) <= _FLOOR else math.fsum(values)


def _log_probs(choice: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokens and log-probabilities of a reply, and whether they are all there."""
    ids, content = choice.get("token_ids"), (choice.get("logprobs") or {}).get("content")
    if not isinstance(ids, list) or not isinstance(content, list):
        raise ScoringError(
            "The server returned a reply without its tokens: it does not know return_token_ids or logprobs. Use a "
            "newer vLLM, directly or by a proxy, or proposal=Reference(), which needs no tokens."
        )
    values = [entry.get("logprob", _FLOOR) for entry in content]
    if not all(value <= 0 for value in values) or _FLOOR < max(values, default=0.0) < _LEAST:
        raise ScoringError(_LOGITS)
    if choice.get("finish_reason") == "length" and len(ids) < body["max_tokens"]:
        # Under a shorter prompt the reply would have gone on: its probabilities under both could not be compared.
        raise ContextWindowError(
            f"A reply was cut after {len(ids)} tokens, by the model's window or a limit of the server's, before "
            f"max_tokens={body['max_tokens']}. Lower max_tokens to at most {len(ids)} or shorten the prompt."
        )
    return {
        "token_ids": ids,
        "token_logprobs": values,
        "basis": "sampler" if is_plain(body) else "unknown",
        "complete": len(ids) == len(values) > 0 and min(values) > _FLOOR and _is_whole(choice, ids, content),
    }


def _is_whole(choice: Mapping[str, Any], ids: Sequence[int], content: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a reply that ended by itself has its end token: the last one, which is not part of the text."""
    reason = choice.get("stop_reason")
    if choice.get("finish_reason") != "stop" or isinstance(reason, str):
        return choice.get("finish_reason") in ("stop", "length")
    if isinstance(reason, int):
        return ids[-1] == reason
    last = str(content[-1].get("token") or "")
    return bool(last) and not _text(choice).endswith(last)


def _text(choice: Mapping[str, Any]) -> str:
    return str((choice.get("message") or {}).get("content") or "")


def _index(choice: Mapping[str, Any]) -> int:
    return int(choice.get("index") or 0)
