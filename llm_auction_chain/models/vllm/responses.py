"""What a vLLM server's answers mean: replies, their tokens, usage, log-probabilities. Pure functions of the JSON."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata

from llm_auction_chain.errors import ContextWindowError, ScoringError

__all__ = ["is_plain", "listed", "read_replies", "read_scores", "read_usage", "total_usage"]

_FLOOR = -9999.0  # what vLLM writes for minus infinity, which JSON cannot hold
_LEAST = -20.0  # nats; the likeliest of 2 ** 20 tokens has at least -14, so no reply is drawn of rarer ones alone
_LOGITS = "The server returns logits in place of log-probabilities; start it with --logprobs-mode raw_logprobs."


def is_plain(settings: Mapping[str, Any]) -> bool:
    """Whether the sampler's law is the model's own: temperature 1, nothing truncated."""
    return bool(settings["temperature"] == 1 and settings["top_p"] == 1 and settings["top_k"] == 0)


def listed(answer: Any, key: str) -> list[Any]:
    """Return a list out of an answer; one that lacks it is not a vLLM server's: ScoringError."""
    found = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(found, list):
        raise ScoringError(f"The server's answer has no {key!r}. Is it a vLLM server? It said: {str(answer)[:200]}")
    return found


def read_usage(answer: Mapping[str, Any]) -> UsageMetadata | None:
    """Return the token counts of one request: the prompt once, every reply's tokens; None where there are none."""
    if not isinstance(used := answer.get("usage"), dict):
        return None
    return _usage(used.get("prompt_tokens") or 0, used.get("completion_tokens") or 0)


def total_usage(usages: Sequence[UsageMetadata | None]) -> UsageMetadata | None:
    """Return the sum of those that are known; None where none is."""
    known = [usage for usage in usages if usage]
    read, written = sum(usage["input_tokens"] for usage in known), sum(usage["output_tokens"] for usage in known)
    return _usage(read, written) if known else None


def read_replies(answer: Any, body: Mapping[str, Any], prompt: Sequence[int] | None) -> list[AIMessage]:
    """Return the replies of one chat completion, in order, with their tokens where the request's body asked for them.

    Then they must have been drawn behind the tokens of `prompt`, behind which they will be scored.

    Log-probabilities are complete where every token has one, the server counted as many tokens as it sent, and a reply
    that ended by itself has its end token.

    Raises:
        ScoringError: there are no replies, or no tokens where they were asked for, or another prompt's.
        ContextWindowError: a reply with tokens was cut before `max_tokens`.
    """
    replies, counted = [], 0
    for choice in sorted(listed(answer, "choices"), key=_index):
        metadata = {"model_name": body["model"], "finish_reason": choice.get("finish_reason")}
        if body["logprobs"]:
            metadata["logprobs"] = _log_probs(choice, body)
            counted += len(choice["token_ids"])
        replies.append(AIMessage(content=_text(choice), response_metadata=metadata))
    if replies and prompt is not None and answer.get("prompt_token_ids") != prompt:
        raise ScoringError(
            "The server draws replies behind other tokens than /tokenize makes of the same messages, so it cannot "
            "score them. Serve a model whose chat template both use, or use proposal=Reference()."
        )
    usage = read_usage(answer)
    if body["logprobs"] and usage is not None and usage["output_tokens"] != counted:
        for reply in replies:
            reply.response_metadata["logprobs"]["complete"] = False
    return replies


def read_scores(answer: Any, start: int, replies: Sequence[Sequence[int]]) -> list[float]:
    """Return the log-probability of every reply, whose tokens begin at `start` of their prompts, nats.

    Raises:
        ScoringError: a log-probability is missing, or is none.
    """
    choices = sorted(listed(answer, "choices"), key=_index)
    if len(choices) != len(replies):
        raise ScoringError(f"The server scored {len(choices)} of {len(replies)} replies. Is it a vLLM server?")
    return [_score(choice, start, reply) for choice, reply in zip(choices, replies, strict=True)]


def _score(choice: Mapping[str, Any], start: int, reply: Sequence[int]) -> float:
    given = choice.get("prompt_logprobs")
    if not isinstance(given, list) or len(given) != start + len(reply):
        raise ScoringError("The server returned no prompt_logprobs. Score with a vLLM server, directly or by a proxy.")
    entries = zip(given[start:], reply, strict=True)
    values = [(entry or {}).get(str(token), {}).get("logprob") for entry, token in entries]
    if None in values:
        raise ScoringError("The server's prompt_logprobs are not of the tokens sent. Is it a vLLM server?")
    if not all(value <= 0 for value in values):
        raise ScoringError(_LOGITS)
    return -math.inf if min(values, default=0.0) <= _FLOOR else math.fsum(values)


def _log_probs(choice: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a reply's tokens and log-probabilities, and whether they are all there."""
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
    """Whether a reply that ended by itself has its end token: the last one, and no part of the text."""
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


def _usage(read: int, written: int) -> UsageMetadata:
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
