"""Candidates with their weights: rounds of sampling and scoring, until the weights are worth enough draws.

Nothing here knows a report.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.runnables import RunnableConfig

from llm_auction_chain.candidates.base import Candidate, Condition, LogitModel, LogProbs
from llm_auction_chain.candidates.logprobs import read_log_probs
from llm_auction_chain.candidates.plan import Plan
from llm_auction_chain.candidates.proposals import log_weights, stratify
from llm_auction_chain.candidates.source import Sampled
from llm_auction_chain.errors import CandidatesError, LogProbError, ScoringError
from llm_auction_chain.mechanism.diagnostics import effective_sample_size
from llm_auction_chain.waiting import Waiter, run

__all__ = ["Drawn", "draw"]

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

    @property
    def possible_replies(self) -> list[AIMessage]:
        """The replies that may be drawn, which are those that agents see."""
        return [candidate.message for candidate in self.candidates if candidate.possible]


async def draw(
    plan: Plan, waiter: Waiter, *, config: RunnableConfig | None = None, progress: Progress | None = None
) -> Drawn:
    """Sample and score until the weights are worth `min_ess` draws or there are `most`.

    Args:
        plan: what to draw.
        waiter: how the caller waits for model, scorer and filter.
        config: the parent run's.
        progress: called with (stage, done, total, tokens per second); stages are `candidates` and `weights`.

    Raises:
        CandidatesError: too few calls succeeded, no reply is possible under the reference, or the filter failed or
            excludes all and there is no fallback.
        LogProbError: a weight would not be exact.
        ScoringError: the scorer failed.
    """
    replies: list[tuple[int, AIMessage]] = []
    allowed: dict[tuple[Any, ...], bool] = {}
    log_probs = np.zeros((len(plan.conditions), 0))
    weights = np.zeros(0)
    causes: list[BaseException] = []
    usage: UsageMetadata | None = None
    asked = 0
    while asked < plan.size.most:
        size = min(plan.size.n, plan.size.most - asked)
        sampled = await _sample(plan, size, asked, waiter, config, progress)
        asked += size
        causes += sampled.causes
        if sampled.usage is not None:
            usage = add_usage(usage, sampled.usage)
        if not sampled.replies:
            break
        await _filter(plan, sampled.replies, allowed, waiter, config)
        if plan.weighs:
            fresh = await _scores(plan, sampled.replies, waiter, progress)
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


async def _sample(
    plan: Plan, size: int, asked: int, waiter: Waiter, config: RunnableConfig | None, progress: Progress | None
) -> Sampled:
    """Draw `size` replies after the first `asked`, and return each with the place of its condition in the plan."""
    counts = stratify(plan.shares, size)

    def report(done: int, tokens_per_second: float | None) -> None:
        if progress:
            progress("candidates", asked + done, asked + size, tokens_per_second)

    sampled = await plan.source.sample(
        [(condition, count) for condition, count in zip(plan.conditions, counts, strict=True) if count],
        waiter,
        seed=int(np.random.SeedSequence([plan.seed, asked]).generate_state(1, np.uint64)[0]) >> 11,
        tokens=plan.tokens,
        config=config,
        progress=report if progress else None,
    )
    places = np.flatnonzero(counts).tolist()
    return replace(sampled, replies=tuple((places[k], message) for k, message in sampled.replies))


async def _filter(
    plan: Plan,
    drawn: Sequence[tuple[int, AIMessage]],
    allowed: dict[tuple[Any, ...], bool],
    waiter: Waiter,
    config: RunnableConfig | None,
) -> None:
    """Note which replies may be returned; equal ones are asked about once."""
    fresh = {_identity(message): message for _, message in drawn if _identity(message) not in allowed}
    if plan.filter is None or not fresh:
        allowed.update(dict.fromkeys(fresh, True))
        return
    answers = await plan.filter.allowed(plan.prompt, list(fresh.values()), config, waiter)
    allowed.update(zip(fresh, answers, strict=True))


async def _scores(
    plan: Plan, drawn: Sequence[tuple[int, AIMessage]], waiter: Waiter, progress: Progress | None
) -> FloatArray:
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
    answers = await _score(plan, distinct, missing, waiter)
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


async def _score(
    plan: Plan, replies: Sequence[AIMessage], missing: Sequence[npt.NDArray[np.int64]], waiter: Waiter
) -> list[FloatArray]:
    """Return the rows of what is missing of the matrix (conditions, replies)."""
    scorer = plan.scorer
    assert scorer is not None  # noqa: S101 - for the type checker: a plan that weighs has one
    law = plan.source.law if scorer is plan.source.scorer else {}

    async def ask(verb: str, *args: Any, **kwargs: Any) -> Any:
        call, twin = getattr(scorer, verb), getattr(scorer, f"a{verb}", None)
        if callable(twin):
            return await waiter.either(lambda: call(*args, **kwargs, **law), lambda: twin(*args, **kwargs, **law))
        return await waiter.in_thread(lambda: call(*args, **kwargs, **law))

    if isinstance(scorer, LogitModel):
        conditions = [(condition.prompts, condition.powers) for condition in plan.conditions]
        wanted = [np.isin(np.arange(len(replies)), need).tolist() for need in missing]
        rows = await ask("score_conditions", conditions, replies, wanted=wanted)
        picked = [[row[k] for k in need] for row, need in zip(rows, missing, strict=True)]
        return [_checked(scorer, row, len(row)) for row in picked]

    async def one(condition: Condition, need: npt.NDArray[np.int64]) -> FloatArray:
        values = await ask("score", condition.prompts[0], [replies[k] for k in need]) if len(need) else []
        return _checked(scorer, values, len(need))

    tasks = [partial(one, *task) for task in zip(plan.conditions, missing, strict=True)]
    # one after the other where they block: a scorer need not be safe in threads
    return await waiter.either(lambda: [run(task()) for task in tasks], lambda: waiter.together(tasks))


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
