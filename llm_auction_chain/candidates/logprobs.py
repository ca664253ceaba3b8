"""How likely replies are: log-probabilities from a reply's metadata, or from a scorer."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, Protocol, TypeGuard, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt
from langchain_core.messages import AIMessage, BaseMessage

from llm_auction_chain.candidates.proposals import Condition
from llm_auction_chain.errors import LogProbError, ScoringError
from llm_auction_chain.waiting import Waiter, run

__all__ = ["Basis", "LogProbs", "LogitModel", "SequenceScorer", "checked_scores", "log_prob_matrix", "read_log_probs"]

Basis = Literal["model", "sampler", "unknown"]
FloatArray = npt.NDArray[np.float64]

# OpenAI writes this figure for a token outside the twenty likeliest, and vLLM for minus infinity.
_FLOOR = -9999.0
_ENDED = ("stop", "eos")  # Together writes "eos" for the model's own end
_ROUNDING = 1e-6  # nats by which a log-probability may be above 0


@dataclass(frozen=True, kw_only=True)
class LogProbs:
    """Log-probabilities of the tokens of one reply.

    Attributes:
        tokens: one per token in the order of sampling, the end token included, nats.
        basis: `model`, the model's own distribution (temperature 1, no truncation); `sampler`, the distribution that
            the reply was sampled from; `unknown`, one of the two.
        complete: whether every sampled token is there: end token, tool calls and reasoning too.
        token_ids: the tokens, if they are known.
        condition_totals: log-probabilities of the whole reply under each condition of the request that drew it; None
            for one that the draw does not give. Empty if the model reports none; nats.
    """

    tokens: tuple[float, ...]
    basis: Basis
    complete: bool
    token_ids: tuple[int, ...] | None = None
    condition_totals: tuple[float | None, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether all are there, under the distribution that the reply was sampled from."""
        return self.complete and self.basis == "sampler"

    def total(self, *, plain_sampler: bool = False) -> float:
        """Return the log-probability of the whole reply under the distribution that it was sampled from, nats.

        Args:
            plain_sampler: whether it was sampled at temperature 1 without truncation: then every basis is the same.

        Raises:
            LogProbError: tokens are missing, or the basis is another distribution.

        >>> LogProbs(tokens=(-1.0, -0.5), basis="unknown", complete=True).total(plain_sampler=True)
        -1.5
        """
        if not self.complete:
            raise LogProbError(
                "The log-probabilities do not cover every token of the reply (end token, tool calls or hidden "
                "reasoning are missing), so the reply has no exact weight. Set Sampling(scorer=...), draw without "
                "tools and reasoning, or use proposal=Reference()."
            )
        if not plain_sampler and self.basis != "sampler":
            raise LogProbError(
                f"The reply was drawn with a temperature or truncation, and its log-probabilities have basis "
                f"{self.basis!r}, which may be another distribution. Draw at temperature=1 and top_p=1, or use "
                "proposal=Reference()."
            )
        return float(sum(self.tokens))


@runtime_checkable
class SequenceScorer(Protocol):
    """Computes how likely replies are. An optional `ascore` with the same arguments is awaited by async callers.

    `llm_auction_chain.testing.ScorerConformance` holds the laws that every scorer must obey.
    """

    def score(self, prompt: Sequence[BaseMessage], replies: Sequence[AIMessage]) -> Sequence[float]:
        """Return `log pi(reply | prompt)` for every reply, nats; `-inf` for one that cannot be drawn.

        The distribution is the one that replies are sampled from: with its temperature and truncation, the end token
        included. A reply that was cut has the probability of its prefix.

        Raises:
            LogProbError: a reply's tokens are unknown, or its log-probability is not exact.
            ScoringError: the scorer failed.
        """
        ...


@runtime_checkable
class LogitModel(Protocol):
    """A chat model that exposes its logits: it draws from, and scores under, conditions of every kind.

    Its `_generate` takes `conditions`, a list of `(condition, count)`, in place of `n`; a count may be 0. A reply that
    comes with `condition_totals` needs no scoring under the conditions that they hold.
    """

    def score_conditions(
        self,
        conditions: Sequence[Condition],
        replies: Sequence[AIMessage],
        *,
        wanted: Sequence[Sequence[bool]],
    ) -> Sequence[Sequence[float]]:
        """Return `log pi_c(reply)` (C, M) in nats.

        Figures that are not `wanted` (C, M) are ignored. An optional `ascore_conditions` with the same arguments is
        awaited by async callers.
        """
        ...


async def log_prob_matrix(
    scorer: SequenceScorer,
    conditions: Sequence[Condition],
    replies: Sequence[tuple[int, AIMessage]],
    waiter: Waiter,
    *,
    identities: Sequence[Hashable],
    law: Mapping[str, Any],
) -> FloatArray:
    """Return the log-probabilities (C, M) of replies under every condition, nats.

    Each reply comes with the place of the condition that it was drawn from. Under that condition, and under others that
    the draw gives, the sampler's own figure is taken if it is exact: it is that of the draw to the last bit, and saves
    a scoring. Other figures are the scorer's, to which `law` passes the sampler's temperature and truncation. Replies
    with equal `identities` and tokens are scored once.

    Raises:
        LogProbError: a reply is impossible under the condition that it was drawn from.
        ScoringError: the scorer returned something else than log-probabilities.
    """
    exact = [read_log_probs(message) for _, message in replies]
    keys = [(identity, known and known.token_ids) for identity, known in zip(identities, exact, strict=True)]
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    columns = [places[key] for key in keys]
    distinct = [replies[columns.index(place)][1] for place in places.values()]
    scores = np.full((len(conditions), len(distinct)), np.nan)
    for (condition, _), known, column in zip(replies, exact, columns, strict=True):
        if known is not None and known.exact:
            scores[condition, column] = known.total()
            for other, total in enumerate(known.condition_totals[: len(conditions)]):
                if total is not None and other != condition:
                    scores[other, column] = total
    missing = [np.flatnonzero(np.isnan(row)) for row in scores]
    answers = await _score(scorer, conditions, distinct, missing, waiter, law)
    for row, need, answer in zip(scores, missing, answers, strict=True):
        row[need] = answer
    for (condition, _), column in zip(replies, columns, strict=True):
        if np.isneginf(scores[condition, column]):
            raise LogProbError(
                f"The scorer returned -inf for a reply that was drawn from the {conditions[condition].name}: it does "
                "not score the distribution that replies are drawn from. Give both the same model, temperature and "
                "truncation, or use proposal=Reference()."
            )
    return scores[:, columns]


async def _score(
    scorer: SequenceScorer,
    conditions: Sequence[Condition],
    replies: Sequence[AIMessage],
    missing: Sequence[npt.NDArray[np.int64]],
    waiter: Waiter,
    law: Mapping[str, Any],
) -> list[FloatArray]:
    """Return the missing figures of each row of the matrix (conditions, replies)."""

    async def ask(verb: str, *args: Any, **kwargs: Any) -> Any:
        call, twin = getattr(scorer, verb), getattr(scorer, f"a{verb}", None)
        if callable(twin):
            return await waiter.either(lambda: call(*args, **kwargs, **law), lambda: twin(*args, **kwargs, **law))
        return await waiter.in_thread(lambda: call(*args, **kwargs, **law))

    if not any(map(len, missing)):
        return [np.zeros(0) for _ in missing]
    if isinstance(scorer, LogitModel):
        wanted = [np.isin(np.arange(len(replies)), need).tolist() for need in missing]
        rows = await ask("score_conditions", conditions, replies, wanted=wanted)
        return [
            checked_scores(scorer, [row[k] for k in need], len(need)) for row, need in zip(rows, missing, strict=True)
        ]

    async def row(condition: Condition, need: npt.NDArray[np.int64]) -> FloatArray:
        values = await ask("score", condition.prompts[0], [replies[k] for k in need]) if len(need) else []
        return checked_scores(scorer, values, len(need))

    calls = [partial(row, *task) for task in zip(conditions, missing, strict=True)]
    # one after the other where they block: a scorer need not be safe in threads
    return await waiter.either(lambda: [run(call()) for call in calls], lambda: waiter.together(calls))


def checked_scores(scorer: object, values: Any, n: int) -> FloatArray:
    """Return the answer of a scorer as log-probabilities (n,), or raise `ScoringError`."""
    name = type(scorer).__name__
    try:
        scores = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ScoringError(f"{name} returned no numbers; return one log-probability per reply.") from error
    if scores.shape != (n,):
        raise ScoringError(f"{name} returned scores of shape {scores.shape} for {n} replies; return one per reply.")
    if not np.all(scores <= _ROUNDING):  # nan too
        # without the number: this may become the public reason of an agent's report
        raise ScoringError(f"{name} returned a score that is no log-probability; they are at most 0, in nats.")
    return np.minimum(scores, 0.0)


class _Token(NamedTuple):
    log_prob: Any
    spelling: bytes | None = None
    token_id: Any = None


def read_log_probs(message: AIMessage) -> LogProbs | None:
    """Return the log-probabilities in the metadata of a reply; None if there are none.

    Those of a provider are complete only if that can be proven: the tokens are as many as the billed ones, they spell
    the reply and, unless it was cut, there is one more, the end token. OpenAI lists every token but the end token, so
    its replies are complete only if they were cut. If one request returns several replies, no reply's own bill is
    known, and none is complete. Providers do not report whether temperature and truncation are in their figures, so
    the basis is `unknown`.

    Formats of `response_metadata["logprobs"]`:

    - this library's, and any with a `basis`: `{"token_logprobs", "basis", "complete", "token_ids"}`, taken as declared,
      with `"condition_totals"` from models that draw under several conditions at once;
    - OpenAI and compatible providers: `{"content": [{"token", "logprob", "bytes"}], "refusal": [...]}`;
    - Together: `{"tokens", "token_logprobs", "token_ids"}`;
    - Ollama: `[{"token", "logprob", "bytes"}]`.

    Raises:
        LogProbError: the figures have a `basis`, and not the format that goes with it.

    >>> reply = AIMessage("Hi", response_metadata={"logprobs": {"content": [{"token": "Hi", "logprob": -0.5}]}})
    >>> read_log_probs(reply)
    LogProbs(tokens=(-0.5,), basis='unknown', complete=False, token_ids=None, condition_totals=())
    """
    data = message.response_metadata.get("logprobs")
    if isinstance(data, Mapping) and "basis" in data:
        return _declared(data)
    tokens = _together(data) if isinstance(data, Mapping) and _is_list(data.get("token_logprobs")) else _listed(data)
    if not tokens or not all(_is_log_prob(token.log_prob) for token in tokens):
        return None
    ids = [token.token_id for token in tokens]
    return LogProbs(
        tokens=tuple(float(token.log_prob) for token in tokens),
        basis="unknown",
        complete=_is_whole(tokens, message),
        token_ids=tuple(map(int, ids)) if _are_ids(ids) else None,
    )


def _declared(data: Mapping[str, Any]) -> LogProbs:
    """Return the figures as a model declares them. If it declares them incomplete, the number of ids may differ."""
    values, ids, complete = data.get("token_logprobs"), data.get("token_ids"), data.get("complete")
    totals = data.get("condition_totals", [])
    if (
        not (_is_list(values) and all(map(_is_log_prob, values)))
        or data["basis"] not in get_args(Basis)
        or not isinstance(complete, bool)
        or not (_is_list(totals) and all(total is None or _is_log_prob(total) for total in totals))
        or not (ids is None or (_is_list(ids) and _are_ids(ids)))
        or (complete and ids is not None and len(ids) != len(values))
    ):
        raise LogProbError(
            "A model declares the basis of its log-probabilities, so response_metadata['logprobs'] must be "
            "{'token_logprobs': numbers up to 0, 'basis': 'model', 'sampler' or 'unknown', 'complete': True or False, "
            f"'token_ids': None or one for each}}; it is {str(data)[:200]}. Correct the model."
        )
    return LogProbs(
        tokens=tuple(map(float, values)),
        basis=data["basis"],
        complete=complete,
        token_ids=None if ids is None else tuple(map(int, ids)),
        condition_totals=tuple(None if total is None else float(total) for total in totals),
    )


def _together(data: Mapping[str, Any]) -> list[_Token]:
    values = data["token_logprobs"]
    texts, ids = ([*(value if _is_list(value := data.get(key)) else [])] for key in ("tokens", "token_ids"))
    spellings = [_spelled({"token": text}) for text in texts] if len(texts) == len(values) else [None] * len(values)
    ids = ids if len(ids) == len(values) else [None] * len(values)
    return [_Token(*fields) for fields in zip(values, spellings, ids, strict=True)]


def _listed(data: Any) -> list[_Token]:
    if isinstance(data, Mapping):
        # A reply is text or a refusal. Of both together the order is unknown: they spell neither, and are incomplete.
        data = [entry for key in ("content", "refusal") if _is_list(part := data.get(key)) for entry in part]
    if not _is_list(data):
        return []
    return [
        _Token(entry.get("logprob"), _spelled(entry)) if isinstance(entry, Mapping) else _Token(None) for entry in data
    ]


def _spelled(entry: Mapping[str, Any]) -> bytes | None:
    """Return the bytes of a token, which may be half a character."""
    text, octets = entry.get("token"), entry.get("bytes")
    if _is_list(octets) and all(isinstance(octet, int) and 0 <= octet < 256 for octet in octets):  # noqa: PLR2004
        return bytes(octets)
    return _encoded(text) if isinstance(text, str) else None


def _is_whole(tokens: list[_Token], message: AIMessage) -> bool:
    """Whether these are all sampled tokens: as many as were billed, with the end token of a reply that was not cut."""
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
    """Whether the model sampled tool calls or reasoning, whose tokens providers list elsewhere, or not at all."""
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
    except OverflowError:  # JSON allows whole numbers that no float can hold
        return False


def _are_ids(values: Any) -> bool:
    return all(isinstance(value, Integral) and not isinstance(value, bool) for value in values)


def _encoded(text: str) -> bytes:
    # A token may be half of a surrogate pair, which has no UTF-8.
    return text.encode(errors="surrogatepass")
