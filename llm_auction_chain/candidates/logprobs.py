"""Log-probabilities out of what models and providers put into a reply's metadata."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeGuard, get_args

from langchain_core.messages import AIMessage

from llm_auction_chain.candidates.base import Basis, LogProbs
from llm_auction_chain.errors import LogProbError

__all__ = ["read_log_probs"]

# What OpenAI writes for a token outside the twenty likeliest, and vLLM for minus infinity: no log-probability at all.
_FLOOR = -9999.0
_ENDED = ("stop", "eos")  # Together says "eos" for the model's own end


class _Token(NamedTuple):
    log_prob: Any
    spelling: bytes | None = None
    token_id: Any = None


def read_log_probs(message: AIMessage) -> LogProbs | None:
    """Return the log-probabilities that came along with a reply; None where there are none.

    A provider's are complete only where that can be proven: as many tokens as were billed, which spell the reply and,
    where it ended by itself, one more that no reader sees, the end token. OpenAI lists every token but that one, so its
    replies are complete only where they were cut. Of many replies to one request no single one's bill is known, and
    none is complete. Providers do not say whether temperature and truncation are in their figures: the basis is
    `unknown`.

    Shapes of `response_metadata["logprobs"]`:

    - ours, and any that names its `basis`: `{"token_logprobs", "basis", "complete", "token_ids"}`, taken at its word,
      with `"prompt_totals"` from models that draw under several prompts at once;
    - OpenAI and who speaks like it: `{"content": [{"token", "logprob", "bytes"}], "refusal": [...]}`;
    - Together: `{"tokens", "token_logprobs", "token_ids"}`;
    - Ollama: `[{"token", "logprob", "bytes"}]`.

    Raises:
        LogProbError: a model names the basis of its figures, and they are not what that shape promises.

    >>> reply = AIMessage("Hi", response_metadata={"logprobs": {"content": [{"token": "Hi", "logprob": -0.5}]}})
    >>> read_log_probs(reply)
    LogProbs(tokens=(-0.5,), basis='unknown', complete=False, token_ids=None, prompt_totals=())
    """
    given = message.response_metadata.get("logprobs")
    if isinstance(given, Mapping) and "basis" in given:
        return _declared(given)
    tokens = (
        _together(given) if isinstance(given, Mapping) and _is_list(given.get("token_logprobs")) else _listed(given)
    )
    if not tokens or not all(_is_log_prob(token.log_prob) for token in tokens):
        return None
    ids = [token.token_id for token in tokens]
    return LogProbs(
        tokens=tuple(float(token.log_prob) for token in tokens),
        basis="unknown",
        complete=_is_whole(tokens, message),
        token_ids=tuple(map(int, ids)) if _are_ids(ids) else None,
    )


def _declared(given: Mapping[str, Any]) -> LogProbs:
    """Return what a model says of itself. Where it calls its figures incomplete, there may be more ids or fewer."""
    values, ids, complete = given.get("token_logprobs"), given.get("token_ids"), given.get("complete")
    totals = given.get("prompt_totals", [])
    if (
        not (_is_list(values) and all(map(_is_log_prob, values)))
        or given["basis"] not in get_args(Basis)
        or not isinstance(complete, bool)
        or not (_is_list(totals) and all(map(_is_log_prob, totals)))
        or not (ids is None or (_is_list(ids) and _are_ids(ids)))
        or (complete and ids is not None and len(ids) != len(values))
    ):
        raise LogProbError(
            "A model names the basis of its log-probabilities, so response_metadata['logprobs'] must be "
            "{'token_logprobs': numbers up to 0, 'basis': 'model', 'sampler' or 'unknown', 'complete': True or False, "
            f"'token_ids': None or one for each}}; it is {str(given)[:200]}. Correct the model."
        )
    return LogProbs(
        tokens=tuple(map(float, values)),
        basis=given["basis"],
        complete=complete,
        token_ids=None if ids is None else tuple(map(int, ids)),
        prompt_totals=tuple(map(float, totals)),
    )


def _together(given: Mapping[str, Any]) -> list[_Token]:
    values = given["token_logprobs"]
    texts, ids = ([*(found if _is_list(found := given.get(key)) else [])] for key in ("tokens", "token_ids"))
    spellings = [_spelled({"token": text}) for text in texts] if len(texts) == len(values) else [None] * len(values)
    ids = ids if len(ids) == len(values) else [None] * len(values)
    return [_Token(*fields) for fields in zip(values, spellings, ids, strict=True)]


def _listed(given: Any) -> list[_Token]:
    if isinstance(given, Mapping):
        # A reply is text or a refusal. Of both together the order is unknown, and they spell neither: incomplete.
        given = [entry for key in ("content", "refusal") if _is_list(part := given.get(key)) for entry in part]
    if not _is_list(given):
        return []
    return [
        _Token(entry.get("logprob"), _spelled(entry)) if isinstance(entry, Mapping) else _Token(None) for entry in given
    ]


def _spelled(entry: Mapping[str, Any]) -> bytes | None:
    """Return a token's bytes: half a character is no text."""
    text, octets = entry.get("token"), entry.get("bytes")
    if _is_list(octets) and all(isinstance(octet, int) and 0 <= octet < 256 for octet in octets):  # noqa: PLR2004
        return bytes(octets)
    return _encoded(text) if isinstance(text, str) else None


def _is_whole(tokens: list[_Token], message: AIMessage) -> bool:
    """Whether the tokens are all that were drawn: none billed beside them, and the reply's own end among them."""
    usage, spellings = message.usage_metadata, [token.spelling for token in tokens if token.spelling is not None]
    if usage is None or not usage.get("output_tokens") == len(tokens) == len(spellings) or _hides_tokens(message):
        return False
    if min(token.log_prob for token in tokens) <= _FLOOR:
        return False
    text = _encoded(str(message.text) or str(message.additional_kwargs.get("refusal") or ""))
    metadata = message.response_metadata
    reason = metadata.get("finish_reason") or metadata.get("done_reason")
    if reason == "length":
        return b"".join(spellings) == text
    # White space at the end may have been stripped from the text, and is then no end token.
    return reason in _ENDED and b"".join(spellings[:-1]) == text and bool(spellings[-1].strip())


def _hides_tokens(message: AIMessage) -> bool:
    """Whether the model drew calls or thoughts, which providers list elsewhere, or not at all."""
    details = message.usage_metadata.get("output_token_details") if message.usage_metadata else None
    thought = message.additional_kwargs.get("reasoning_content") or (details and details.get("reasoning"))
    return bool(message.tool_calls or message.invalid_tool_calls or thought)


def _is_list(value: Any) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    return isinstance(value, list | tuple)


def _is_log_prob(value: Any) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return float(value) <= 0
    except OverflowError:  # JSON knows whole numbers that no float can hold
        return False


def _are_ids(values: Any) -> bool:
    return all(isinstance(value, Integral) and not isinstance(value, bool) for value in values)


def _encoded(text: str) -> bytes:
    # A token may be half of a surrogate pair, which has no UTF-8.
    return text.encode(errors="surrogatepass")
