"""Pure functions that read a vLLM server's answers: replies, their tokens, usage, log-probabilities, failures."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

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
from pydantic import BaseModel, ConfigDict, ValidationError

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

__all__ = [
    "is_plain",
    "read_failure",
    "read_first",
    "read_names",
    "read_replies",
    "read_scores",
    "read_tokens",
    "read_usage",
    "without_key",
]

_TOO_LONG = ("context length", "max_model_len", "model length")
_BAD_REQUEST, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TOO_MANY, _SERVER = 400, 401, 403, 404, 429, 500
_CLASSES: dict[int, type[ModelError]] = {
    _UNAUTHORIZED: ModelAuthenticationError,
    _FORBIDDEN: ModelPermissionDeniedError,
    _NOT_FOUND: ModelNotFoundError,
    _TOO_MANY: ModelRateLimitError,
}

_SPACES = " \u0120\u2581"  # how tokenizers write the space before a word
_SHORT = 100  # characters of a value that an error quotes
_FLOOR = -9999.0  # what vLLM writes for minus infinity, which JSON cannot hold
_BY_ID = "token_id:"
_LEAST = -20.0  # nats. The likeliest of 2 ** 20 tokens has at least -14, so no reply has rarer ones alone
_LOGITS = "The server returns logits in place of log-probabilities; start it with --logprobs-mode raw_logprobs."


def is_plain(settings: Mapping[str, Any]) -> bool:
    """Return whether the sampler draws from the model's own distribution: temperature 1, no truncation."""
    return bool(settings["temperature"] == 1 and settings["top_p"] == 1 and settings["top_k"] == 0)


class _Part(BaseModel):
    """A part of an answer: numbers are numbers, texts are texts, and what is not read may be there."""

    model_config = ConfigDict(strict=True, protected_namespaces=(), hide_input_in_errors=True)


class _Figure(_Part):
    logprob: float = _FLOOR
    token: str = ""


class _Token(_Figure):
    top_logprobs: list[_Figure] = []


class _LogProbs(_Part):
    content: list[_Token] | None = None


class _Message(_Part):
    content: str | None = None


class _Choice(_Part):
    index: int | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    logprobs: _LogProbs | None = None
    prompt_logprobs: list[dict[str, _Token] | None] | None = None


class _Reply(_Choice):
    message: _Message

    @property
    def text(self) -> str:
        return self.message.content or ""


_C = TypeVar("_C", bound=_Choice)


class _Completion(_Part, Generic[_C]):
    choices: list[_C]
    prompt_token_ids: list[int] | None = None

    @property
    def in_order(self) -> list[_C]:
        return sorted(self.choices, key=lambda choice: choice.index or 0)


class _Card(_Part):
    id: str


class _Models(_Part):
    data: list[_Card]


class _Tokenized(_Part):
    tokens: list[int]
    token_strs: list[str] | None = None
    max_model_len: int | None = None


_P = TypeVar("_P", bound=_Part)


def _parsed(kind: type[_P], answer: Any) -> _P:
    """Return an answer of this kind. One of another shape is not a vLLM server's: ScoringError."""
    try:
        return kind.model_validate(answer)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or next(iter(kind.model_fields))
        lacks = first["type"] == "missing" or not first["loc"]
        value = repr(first["input"])
        value = value if len(value) <= _SHORT else f"a {type(first['input']).__name__}"
        fault = f"no {place!r}" if lacks else f"{value} as {place!r}"
        raise ScoringError(f"The server's answer has {fault}. Is it a vLLM server? It said: {answer}") from error


def read_names(answer: Any) -> list[str]:
    """Return the names of the models that a server serves."""
    return [card.id for card in _parsed(_Models, answer).data]


def read_tokens(answer: Any) -> tuple[list[int], int | None]:
    """Return the tokens of a text or a prompt, and how many the model reads, where the server says so."""
    tokenized = _parsed(_Tokenized, answer)
    return tokenized.tokens, tokenized.max_model_len


def read_first(answer: Any) -> tuple[int, str] | None:
    """Return the first token of a text, with its letters; None if there is none."""
    tokenized = _parsed(_Tokenized, answer)
    if not tokenized.tokens or not tokenized.token_strs:
        return None
    return tokenized.tokens[0], tokenized.token_strs[0].lstrip(_SPACES)


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
        text = without_key(error.response.text, api_key)
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


def without_key(text: str, api_key: str | None) -> str:
    """Return the beginning of what a server said, without the key."""
    return text.replace(api_key or "\0", "***")[:500]


def read_usage(answer: Any) -> UsageMetadata | None:
    """Return the token counts of one request: the prompt once, and every reply; None where they are no counts."""
    counts = answer.get("usage") if isinstance(answer, dict) else None
    both = [counts.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(counts, dict) else [None]
    return usage(*both) if all(type(count) is int and count >= 0 for count in both) else None


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
    completion = _parsed(_Completion[_Reply], answer)
    replies, n_tokens = [], 0
    for choice in completion.in_order:
        metadata = {"model_name": body["model"], "finish_reason": choice.finish_reason}
        if body["logprobs"]:
            metadata["logprobs"] = _log_probs(choice, body)
            n_tokens += len(choice.token_ids or ())
        replies.append(AIMessage(content=choice.text, response_metadata=metadata))
    if replies and prompt is not None and completion.prompt_token_ids != prompt:
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
    choices = _parsed(_Completion[_Choice], answer).in_order
    if len(choices) != len(replies):
        raise ScoringError(f"The server scored {len(choices)} of {len(replies)} replies. Is it a vLLM server?")
    return [_score(choice, start, reply) for choice, reply in zip(choices, replies, strict=True)]


def _score(choice: _Choice, start: int, reply: Sequence[int]) -> float:
    log_probs = choice.prompt_logprobs
    if log_probs is None or len(log_probs) != start + len(reply):
        raise ScoringError("The server returned no prompt_logprobs. Score with a vLLM server, directly or by a proxy.")
    entries = [(entry or {}).get(str(token)) for entry, token in zip(log_probs[start:], reply, strict=True)]
    values = [entry.logprob for entry in entries if entry is not None and "logprob" in entry.model_fields_set]
    if len(values) < len(reply):
        raise ScoringError("The server's prompt_logprobs are not of the tokens sent. Is it a vLLM server?")
    if not all(value <= 0 for value in values):
        raise ScoringError(_LOGITS)
    return -math.inf if min(values, default=0.0) <= _FLOOR else math.fsum(values)


def _log_probs(choice: _Reply, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokens and log-probabilities of a reply, and whether they are all there."""
    ids, content = choice.token_ids, None if choice.logprobs is None else choice.logprobs.content
    if ids is None or content is None:
        raise ScoringError(
            "The server returned a reply without its tokens: it does not know return_token_ids or logprobs. Use a "
            "newer vLLM, directly or by a proxy, or proposal=Reference(), which needs no tokens."
        )
    values = [entry.logprob for entry in content]
    rare = "logit_bias" not in body and _FLOOR < max(values, default=0.0) < _LEAST  # a bias draws rare tokens
    if rare or not all(value <= 0 for value in values):
        raise ScoringError(_LOGITS)
    if choice.finish_reason == "length" and len(ids) < body["max_tokens"]:
        # Under a shorter prompt the reply would have gone on: its probabilities under both could not be compared.
        raise ContextWindowError(
            f"A reply was cut after {len(ids)} tokens, by the model's window or a limit of the server's, before "
            f"max_tokens={body['max_tokens']}. Lower max_tokens to at most {len(ids)} or shorten the prompt."
        )
    of_tokens = {}
    if "logprob_token_ids" in body:
        of_tokens["of_tokens"] = [
            {token: _finite(figure.logprob) for figure in entry.top_logprobs if (token := _id_of(figure)) is not None}
            for entry in content
        ]
    return {
        **of_tokens,
        "token_ids": ids,
        "token_logprobs": values,
        "basis": "sampler" if is_plain(body) else "unknown",
        "complete": len(ids) == len(values) > 0 and min(values) > _FLOOR and _is_whole(choice, ids, content),
    }


def _id_of(figure: _Figure) -> int | None:
    """Return the token that a figure is of, which the server writes as `token_id:7`."""
    number = figure.token.removeprefix(_BY_ID)
    return int(number) if number.isdecimal() and number != figure.token else None


def _finite(value: float) -> float:
    return -math.inf if value <= _FLOOR else value


def _is_whole(choice: _Reply, ids: Sequence[int], content: Sequence[_Token]) -> bool:
    """Return whether a reply that ended by itself has its end token: the last one, which is not part of the text."""
    if choice.finish_reason != "stop" or isinstance(choice.stop_reason, str):
        return choice.finish_reason in ("stop", "length")
    if choice.stop_reason is not None:
        return ids[-1] == choice.stop_reason
    last = content[-1].token
    return bool(last) and not choice.text.endswith(last)
