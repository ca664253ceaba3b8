"""Candidates with their weights: rounds of sampling and scoring, until the weights are worth enough draws.

Nothing here knows a report. What is asked of model and scorer is written once, as steps: a generator that yields work
and receives its result. `draw` does the work, `adraw` awaits it.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.runnables import RunnableConfig

from llm_auction_chain.candidates.base import Candidate, Condition, LogitModel, LogProbs, SequenceScorer
from llm_auction_chain.candidates.logprobs import read_log_probs
from llm_auction_chain.candidates.plan import Plan
from llm_auction_chain.candidates.proposals import log_weights, stratify
from llm_auction_chain.candidates.source import Sampled, together
from llm_auction_chain.errors import CandidatesError, LogProbError, ScoringError
from llm_auction_chain.mechanism.diagnostics import effective_sample_size

__all__ = ["Drawn", "adraw", "draw"]

FloatArray = npt.NDArray[np.float64]
Progress = Callable[[Literal["candidates", "weights"], int, int, float | None], None]
_ROUNDING = 1e-6  # nats by which a log-probability may be above 0
_WITH_IDS = frozenset({"text", "tool_call", "tool_use", "function_call"})  # content blocks that providers number


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What the rounds gave.

    Attributes:
        candidates: the distinct replies, in the order of their first draw, and the fallback where none may be returned.
        components: name and number of draws of every condition that was drawn from.
        causes: what made the other calls fail.
        usage: tokens of all model calls together; None where the model reports none.
    """

    candidates: tuple[Candidate, ...]
    components: tuple[tuple[str, int], ...]
    causes: tuple[BaseException, ...]
    usage: UsageMetadata | None


class _Work(NamedTuple):
    """One piece of work in both colours."""

    do: Callable[[], Any]
    ado: Callable[[], Awaitable[Any]]


def draw(plan: Plan, *, config: RunnableConfig | None = None, progress: Progress | None = None) -> Drawn:
    """Draw the plan's candidates and weigh them.

    Args:
        plan: what to draw.
        config: the parent run's.
        progress: called with (stage, done, total, tokens per second); stages are `candidates` and `weights`.

    Raises:
        CandidatesError: too few calls succeeded, no reply is possible under the reference, or the filter failed or
            excludes all and there is no fallback.
        LogProbError: a weight would not be exact.
        ScoringError: the scorer failed.
    """
    steps = _rounds(plan, config, progress)
    answer = None
    while isinstance(work := _next(steps, answer), _Work):
        answer = work.do()
    return work


async def adraw(plan: Plan, *, config: RunnableConfig | None = None, progress: Progress | None = None) -> Drawn:
    """Do as `draw`, awaiting."""
    steps = _rounds(plan, config, progress)
    answer = None
    while isinstance(work := _next(steps, answer), _Work):
        answer = await work.ado()
    return work


def _next(steps: Generator[_Work, Any, Drawn], answer: Any) -> _Work | Drawn:
    """Return the next piece of work, or what all of it came to."""
    try:
        return steps.send(answer)
    except StopIteration as done:
        drawn: Drawn = done.value
        return drawn


def _rounds(plan: Plan, config: RunnableConfig | None, progress: Progress | None) -> Generator[_Work, Any, Drawn]:
    """Sample and score until the weights are worth `min_ess` draws or there are `most`."""
    replies: list[tuple[int, AIMessage]] = []
    allowed: dict[tuple[Any, ...], bool] = {}
    log_probs = np.zeros((len(plan.conditions), 0))
    weights = np.zeros(0)
    causes: list[BaseException] = []
    usage: UsageMetadata | None = None
    asked = 0
    while asked < plan.size.most:
        size = min(plan.size.n, plan.size.most - asked)
        sampled: Sampled = yield _sampling(plan, size, asked, config, progress)
        asked += size
        causes += sampled.causes
        if sampled.usage is not None:
            usage = add_usage(usage, sampled.usage)
        if not sampled.replies:
            break
        yield from _filtering(plan, sampled.replies, allowed, config)
        if plan.weighs:
            fresh = yield from _scores(plan, sampled.replies, progress)
            log_probs = np.concatenate([log_probs, fresh], axis=1)
        else:
            log_probs = np.zeros((1, len(replies) + len(sampled.replies)))
        replies += sampled.replies
        weights = log_weights(log_probs, log_probs[0], np.bincount([c for c, _ in replies], minlength=len(log_probs)))
        weights = np.where([allowed[_identity(message)] for _, message in replies], weights, -np.inf)
        if _worth(weights) >= plan.size.min_ess:
            break
    candidates = _merged(plan, replies, weights, allowed)
    _check_enough(plan, candidates, len(replies), causes, asked)
    if not any(candidate.possible for candidate in candidates) and plan.fallback is not None:
        candidates += (Candidate(message=plan.fallback, component="fallback"),)
    return Drawn(
        candidates=candidates,
        components=_components(plan, replies),
        causes=tuple(causes),
        usage=usage,
    )


def _sampling(plan: Plan, size: int, asked: int, config: RunnableConfig | None, progress: Progress | None) -> _Work:
    """Return the work of drawing so many replies, the first `asked` being there."""
    counts = stratify(plan.shares, size)

    def told(done: int, tokens_per_second: float | None) -> None:
        if progress:
            progress("candidates", asked + done, asked + size, tokens_per_second)

    settings: dict[str, Any] = {
        "seed": int(np.random.SeedSequence([plan.seed, asked]).generate_state(1, np.uint64)[0]) >> 11,
        "tokens": plan.tokens,
        "config": config,
        "progress": told if progress else None,
    }
    wanted = [(condition, count) for condition, count in zip(plan.conditions, counts, strict=True) if count]
    places = [place for place, count in enumerate(counts) if count]

    def placed(sampled: Sampled) -> Sampled:
        replies = tuple((places[k], message) for k, message in sampled.replies)
        return Sampled(replies=replies, causes=sampled.causes, usage=sampled.usage)

    async def later() -> Sampled:
        return placed(await plan.source.asample(wanted, **settings))

    return _Work(lambda: placed(plan.source.sample(wanted, **settings)), later)


def _filtering(
    plan: Plan,
    drawn: Sequence[tuple[int, AIMessage]],
    allowed: dict[tuple[Any, ...], bool],
    config: RunnableConfig | None,
) -> Generator[_Work, Any, None]:
    """Note which replies may be returned; equal ones are asked about once."""
    fresh = {_identity(message): message for _, message in drawn if _identity(message) not in allowed}
    if (rule := plan.filter) is None or not fresh:
        allowed.update(dict.fromkeys(fresh, True))
        return
    asked = plan.prompt, list(fresh.values()), config
    said = yield _Work(lambda: rule.allowed(*asked), lambda: rule.aallowed(*asked))
    allowed.update(zip(fresh, said, strict=True))


def _scores(
    plan: Plan, drawn: Sequence[tuple[int, AIMessage]], progress: Progress | None
) -> Generator[_Work, Any, FloatArray]:
    """Return the log-probabilities (C, draws), nats. Equal draws are scored once.

    Under the condition that a reply was drawn from, and under that condition's prompts alone, the sampler's own figure
    is taken where it is exact: it is the law that was drawn from to the last bit, and saves a scoring.
    """
    places: dict[tuple[Any, ...], int] = {}
    columns = [places.setdefault((*_identity(message), _token_ids(message)), len(places)) for _, message in drawn]
    distinct = [drawn[columns.index(column)][1] for column in range(len(places))]
    scores = np.full((len(plan.conditions), len(distinct)), np.nan)
    for (condition, message), column in zip(drawn, columns, strict=True):
        known = read_log_probs(message)
        if known is not None and known.exact:
            scores[condition, column] = known.total()
            for other, total in _alone(plan, condition, known):
                scores[other, column] = total
    missing = [np.flatnonzero(np.isnan(row)) for row in scores]
    if progress:
        progress("weights", 0, len(drawn), None)
    answers = yield _scoring(plan, distinct, missing)
    for row, columns_of_row, answer in zip(scores, missing, answers, strict=True):
        row[columns_of_row] = answer
    if progress:
        progress("weights", len(drawn), len(drawn), None)
    for (condition, _), column in zip(drawn, columns, strict=True):
        if np.isneginf(scores[condition, column]):
            raise LogProbError(
                f"A reply drawn from the {plan.conditions[condition].name} is impossible under it, says the scorer: it "
                "does not score the law that replies are drawn from. Give both the same model, temperature and "
                "truncation, or use proposal=Reference()."
            )
    return scores[:, columns]


def _alone(plan: Plan, condition: int, known: LogProbs) -> Iterator[tuple[int, float]]:
    """Yield (another condition, log-probability) of those that are one prompt of this condition, as it stands."""
    for prompt, total in zip(plan.conditions[condition].prompts, known.prompt_totals, strict=False):
        alone = Condition(name="", prompts=(prompt,))
        for other, law in enumerate(plan.conditions):
            if other != condition and law.same_law(alone):
                yield other, total


def _scoring(plan: Plan, replies: Sequence[AIMessage], missing: Sequence[npt.NDArray[np.int64]]) -> _Work:
    """Return the work of scoring what is missing of the matrix (conditions, replies); its result is a list of rows."""
    assert plan.scorer is not None  # noqa: S101 - for the type checker: a plan that weighs has one
    scorer: SequenceScorer = plan.scorer
    law = plan.source.law if scorer is plan.source.scorer else {}
    if isinstance(scorer, LogitModel):
        conditions = [(condition.prompts, condition.powers) for condition in plan.conditions]
        wanted = [np.isin(np.arange(len(replies)), need).tolist() for need in missing]

        def checked(rows: Sequence[Sequence[float]]) -> list[FloatArray]:
            picked = [[row[k] for k in need] for row, need in zip(rows, missing, strict=True)]
            return [_checked(scorer, row, len(row)) for row in picked]

        def at_once() -> list[FloatArray]:
            return checked(scorer.score_conditions(conditions, replies, wanted=wanted, **law))

        async def awaited() -> list[FloatArray]:
            if not callable(verb := getattr(scorer, "ascore_conditions", None)):
                return await asyncio.to_thread(at_once)
            return checked(await verb(conditions, replies, wanted=wanted, **law))

        return _Work(at_once, awaited)
    tasks = [
        (condition.prompts[0], [replies[k] for k in need])
        for condition, need in zip(plan.conditions, missing, strict=True)
    ]

    def one(prompt: Any, asked: list[AIMessage]) -> FloatArray:
        return _checked(scorer, scorer.score(prompt, asked, **law) if asked else [], len(asked))

    async def aone(prompt: Any, asked: list[AIMessage]) -> FloatArray:
        if not asked or not callable(verb := getattr(scorer, "ascore", None)):
            return await asyncio.to_thread(one, prompt, asked)
        return _checked(scorer, await verb(prompt, asked, **law), len(asked))

    return _Work(
        lambda: [one(*task) for task in tasks],
        lambda: together([partial(aone, *task) for task in tasks]),
    )


def _checked(scorer: object, values: Any, n: int) -> FloatArray:
    """Return a scorer's answer as log-probabilities (n,), or raise `ScoringError`."""
    name = type(scorer).__name__
    try:
        scores = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ScoringError(f"{name} returned {str(values)[:100]}; score must return one number per reply.") from error
    if scores.shape != (n,):
        raise ScoringError(f"{name} returned scores of shape {scores.shape} for {n} replies; return one per reply.")
    if not np.all(scores <= _ROUNDING):
        raise ScoringError(
            f"{name} returned {scores[~(scores <= _ROUNDING)][0]}; log-probabilities are at most 0, in nats."
        )
    return np.minimum(scores, 0.0)


def _worth(weights: FloatArray) -> float:
    return effective_sample_size(weights) if np.isfinite(weights).any() else 0.0


def _check_enough(
    plan: Plan, candidates: Sequence[Candidate], drawn: int, causes: Sequence[BaseException], asked: int
) -> None:
    if drawn < max(1, plan.size.fewest):
        listed = "; ".join(sorted({f"{type(cause).__name__}: {cause}"[:200] for cause in causes}))
        raise CandidatesError(
            f"Only {drawn} of {asked} replies could be drawn, and min_candidates is {plan.size.fewest}. "
            f"The model failed with: {listed or 'no error, it returned nothing'}",
            causes,
        )
    if any(candidate.possible for candidate in candidates):
        return
    if not any(candidate.excluded for candidate in candidates):
        raise CandidatesError(
            "No candidate is possible under the reference, so none may be returned. Put Reference() into the proposal, "
            "or draw with a higher temperature and less truncation."
        )
    if plan.fallback is None:
        raise CandidatesError(
            f"candidate_filter excludes all of {drawn} replies. Set fallback= to what is then said, draw more "
            "candidates, or loosen the filter."
        )


def _components(plan: Plan, replies: Sequence[tuple[int, AIMessage]]) -> tuple[tuple[str, int], ...]:
    counts = np.bincount([place for place, _ in replies], minlength=len(plan.conditions)).tolist()
    return tuple((condition.name, count) for condition, count in zip(plan.conditions, counts, strict=True) if count)


def _merged(
    plan: Plan,
    replies: Sequence[tuple[int, AIMessage]],
    weights: FloatArray,
    allowed: Mapping[tuple[Any, ...], bool],
) -> tuple[Candidate, ...]:
    """Return the distinct replies; a candidate's weight is the mean of its draws', which changes no payment."""
    places: dict[tuple[Any, ...], list[int]] = {}
    for k, (_, message) in enumerate(replies):
        places.setdefault(_identity(message), []).append(k)
    return tuple(
        Candidate(
            message=replies[draws[0]][1],
            log_weight=float(np.logaddexp.reduce(weights[draws]) - math.log(len(draws))),
            draws=len(draws),
            component=plan.conditions[replies[draws[0]][0]].name,
            excluded=not allowed[identity],
        )
        for identity, draws in places.items()
    )


def _identity(message: AIMessage) -> tuple[Any, ...]:
    """Return what makes two replies the same: what they say and call, and whether they ended or were cut.

    Ids are no part of it: a provider makes up a new one for every call.
    """
    content: Any = message.content
    if isinstance(content, list):
        content = [_without_ids(block) for block in content]
    calls = [(call["name"], _in_order(call["args"])) for call in (*message.tool_calls, *message.invalid_tool_calls)]
    return repr(content), repr(calls), message.response_metadata.get("finish_reason")


def _without_ids(block: Any) -> Any:
    if not isinstance(block, dict) or block.get("type") not in _WITH_IDS:
        return block
    return {name: value for name, value in block.items() if name not in ("id", "call_id")}


def _in_order(value: Any) -> Any:
    """Return arguments under names in their order: a provider may write them in any."""
    if isinstance(value, dict):
        return sorted((str(name), repr(_in_order(inner))) for name, inner in value.items())
    return [_in_order(inner) for inner in value] if isinstance(value, list) else value


def _token_ids(message: AIMessage) -> tuple[int, ...] | None:
    known = read_log_probs(message)
    return known.token_ids if known else None
