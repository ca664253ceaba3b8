"""Candidates with their weights: what an auction draws, and the rounds of sampling, filtering and scoring.

All of it is decided from the prompt, public descriptions, tau and a seed. No report exists yet.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import RunnableConfig

from llm_auction_chain.candidates.filtering import CandidateFilter
from llm_auction_chain.candidates.logprobs import SequenceScorer, log_prob_matrix
from llm_auction_chain.candidates.proposals import (
    PLAIN,
    Abilities,
    Condition,
    Proposal,
    ProposalInputs,
    choose_proposal,
    conditions_of,
    log_weights,
    stratify,
)
from llm_auction_chain.candidates.source import Sample, Source
from llm_auction_chain.errors import CandidatesError, ConfigurationError, ContextWindowError, LogitsError
from llm_auction_chain.mechanism.diagnostics import effective_sample_size
from llm_auction_chain.messages import ENDS, calls_of, parsed, total_usage, usage_by_model
from llm_auction_chain.waiting import Waiter

__all__ = ["Candidate", "Contexts", "Drawn", "Plan", "Size", "draw", "make_plan"]

Contexts = Literal["none", "used", "unused", "reference"]
FloatArray = npt.NDArray[np.float64]
Progress = Callable[[Literal["candidates", "weights"], int, int, float | None], None]
_LONGEST_WARNING = 400
_UNREADABLE_PROMPT = "the model cannot read the prompt with the agents' contexts"
_Replies = Sequence[tuple[int, AIMessage]]  # each with the place of the condition that it was drawn from
# What a provider makes up anew for every reply, and what only it can read.
_UNREADABLE = frozenset({
    "approval_request_id", "call_id", "container_id", "created_at", "expires_at", "id", "index", "item_id",
    "response_id", "tool_call_id", "tool_use_id",
})  # fmt: skip
_SEALED = ("encrypted", "redacted", "signature")
_FILES, _BY_ID = frozenset({"audio", "file", "image", "video"}), frozenset({"id", "mime_type", "source_type", "type"})
_ARGUMENTS = frozenset({"args", "arguments", "input", "partial_json"})
_ELSEWHERE = frozenset(
    {"function_call", "parsed", "tool_calls"}
)  # of `additional_kwargs`: what a message has elsewhere


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One distinct reply that may be drawn.

    Attributes:
        message: the reply, with its own metadata.
        log_weight: `log pi_ref - log pi_gen`, nats; the mean weight if several draws gave this reply; 0 if all draws
            came from the reference.
        draws: how many of the M draws gave this reply.
        component: name of the proposal's component that drew it first.
        excluded: whether the platform's filter forbids it; its log-weight is then -inf.
    """

    message: AIMessage
    log_weight: float = 0.0
    draws: int = 1
    component: str = "reference"
    excluded: bool = False

    @property
    def possible(self) -> bool:
        """Whether it may be drawn at all."""
        return self.log_weight > -math.inf

    @property
    def merged_log_weight(self) -> float:
        """The weights of its draws by log-add-exp, nats: what `settle` takes, together with `draws`."""
        return self.log_weight + math.log(self.draws)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How many draws.

    Attributes:
        n: draws of a round.
        most: draws of all rounds.
        min_ess: further rounds are drawn while the weights have a smaller effective sample size.
        fewest: fewer draws than this are an error.
    """

    n: int
    most: int
    min_ess: float
    fewest: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to draw.

    Attributes:
        source: the chat model.
        scorer: computes how likely replies are; needed if there is more than the reference.
        prompt: the user's messages.
        conditions: (C,), the reference first.
        shares: (C,), of the draws; the reference's may be 0.
        contexts: whether the agents' descriptions or keywords reach the proposal, or the reference itself; `none` if
            there are none.
        size: how many draws.
        seed: replays them.
        reason: why it is this proposal.
        log_ratios: whether agents' rewards need the replies' tokens.
        filter: decides which replies may be returned; None allows all.
        fallback: returned if the filter excludes all; None is an error.
    """

    source: Source
    scorer: SequenceScorer | None
    prompt: Sequence[BaseMessage]
    conditions: Sequence[Condition]
    shares: Sequence[float]
    contexts: Contexts
    size: Size
    seed: int
    reason: str = ""
    log_ratios: bool = False
    filter: CandidateFilter | None = None
    fallback: AIMessage | None = None

    @property
    def weighted(self) -> bool:
        """Whether candidates need weights: not all are drawn from the reference."""
        return not all(condition.reference for condition in self.conditions)

    @property
    def tokens(self) -> bool:
        """Whether replies must come with their tokens, for weights or for agents' log-ratios."""
        own = self.source.scorer
        return own is not None and (self.log_ratios or (self.weighted and self.scorer is own))


def make_plan(
    source: Source,
    *,
    scorer: SequenceScorer | None,
    proposal: Proposal | None,
    inputs: ProposalInputs,
    size: Size,
    candidate_filter: CandidateFilter | None = None,
    fallback: AIMessage | None = None,
) -> Plan:
    """Return what to draw for one auction: the `Plan`, whose fields have the names of these arguments.

    Without a scorer, the model itself is the scorer if it can be. Without a proposal, it is the best that model and
    scorer can do.

    Raises:
        ConfigurationError: the proposal needs a scorer and there is none, or logits and the model exposes none.
    """
    scorer = source.scorer if scorer is None else scorer
    own_scorer = scorer is source.scorer
    logits = source.logits and own_scorer
    knows_agents = bool(inputs.descriptions or inputs.keywords)
    can: Abilities = "draw"
    if scorer is not None:
        can = "everything" if logits else "tilt" if own_scorer and source.tilts else "score"
    chosen, reason = choose_proposal(inputs, can=can)
    if proposal is not None and knows_agents:
        chosen, reason = proposal, "it is the auction's setting"
    conditions, shares = conditions_of(chosen, inputs)
    weighted = not all(condition.reference for condition in conditions)
    if weighted and scorer is None:
        raise ConfigurationError(
            f"proposal={proposal!r} needs the probability of every reply, which this model does not report. Use "
            "ChatTransformers or ChatVLLM, set sampling=Sampling(scorer=...), leave proposal out, or state a reference "
            "that knows the agents: Reference(prompt=...)."
        )
    _check_drawable(conditions, proposal, can)
    stated = any(condition.reference and condition.prompts != (inputs.prompt,) for condition in conditions)
    used: Contexts = "reference" if stated else "used" if weighted else "unused"
    return Plan(
        source=source,
        scorer=scorer,
        prompt=inputs.prompt,
        conditions=conditions,
        shares=shares,
        contexts=used if knows_agents else "none",
        size=size,
        seed=inputs.seed,
        reason=reason,
        log_ratios=inputs.log_ratios != "none",
        filter=candidate_filter,
        fallback=fallback,
    )


def _check_drawable(conditions: Sequence[Condition], proposal: Proposal | None, can: Abilities) -> None:
    """Raise `ConfigurationError` if a proposal needs more than the model can do."""
    tilted = [condition.tilt for condition in conditions if condition.tilt is not None]
    if can == "everything" or all(condition.is_plain for condition in conditions):
        return
    if can != "tilt" or not all(condition.powers == PLAIN for condition in conditions):
        raise ConfigurationError(
            f"proposal={proposal!r} draws from products of prompts or tilts, for which the model must expose its "
            "logits. Use ChatTransformers without a scorer of its own, or a mixture of Reference() and ContextPrompt()."
        )
    if any(tilt.until_said for tilt in tilted):
        raise ConfigurationError(
            f"proposal={proposal!r} ends a tilt within a reply, for which the model must expose its logits. Use "
            "KeywordTilt(1.0, until_said=False), or ChatTransformers."
        )
    if any(condition.tilt is None and not condition.reference for condition in conditions):
        raise ConfigurationError(
            f"proposal={proposal!r} mixes tilts with other prompts, whose replies the model cannot score under a tilt. "
            "Leave one of the two out."
        )


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The candidates of one auction.

    Attributes:
        candidates: the distinct replies, in the order of their first draw; the fallback too if none may be returned.
        components: name and number of draws of every condition that was drawn from.
        causes: errors of the model calls that failed.
        usages: tokens of all calls of a model together, by its name.
        usage: the same of all models together; None if they report none.
        contexts: whether the agents' descriptions or keywords reached the proposal; `none` if there are none.
        reason: why it is this proposal.
        warning: why they did not though the plan has them; else empty.
    """

    candidates: tuple[Candidate, ...]
    components: tuple[tuple[str, int], ...]
    causes: tuple[BaseException, ...]
    usages: Mapping[str, UsageMetadata]
    usage: UsageMetadata | None
    contexts: Contexts = "none"
    reason: str = ""
    warning: str = ""

    @cached_property
    def possible(self) -> tuple[int, ...]:
        """The places of the candidates that may be drawn, which are those that agents see."""
        return tuple(j for j, candidate in enumerate(self.candidates) if candidate.possible)


async def draw(
    plan: Plan, waiter: Waiter, *, config: RunnableConfig | None = None, progress: Progress | None = None
) -> Drawn:
    """Draw replies and weigh them, in rounds, until the effective sample size or the number of draws is reached.

    If the model cannot read the prompts with the agents' descriptions, all are drawn from the reference. One that you
    stated yourself is never replaced.

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
    try:
        return await _draw(plan, waiter, config, progress)
    except (ConfigurationError, ContextWindowError, LogitsError) as error:
        if not plan.weighted:
            raise
        contexts: Contexts = "reference" if plan.contexts == "reference" else "unused"
        alone = replace(plan, conditions=plan.conditions[:1], shares=(1.0,), contexts=contexts)
        drawn = await _draw(alone, waiter, config, progress)
        reason = f"The model cannot read the prompt with the agents' contexts, so these are not used: {error}"
        return replace(drawn, reason=_UNREADABLE_PROMPT, warning=reason[:_LONGEST_WARNING])


async def _draw(plan: Plan, waiter: Waiter, config: RunnableConfig | None, progress: Progress | None) -> Drawn:
    replies: list[tuple[int, AIMessage]] = []
    identities: list[Hashable] = []  # of the replies
    allowed: dict[Hashable, bool] = {}
    log_probs = np.zeros((len(plan.conditions), 0))
    weights, counts = np.zeros(0), np.zeros(len(plan.conditions), dtype=np.int64)
    causes: list[BaseException] = []
    asked = 0
    while asked < plan.size.most and not _suffice(weights, plan.size.min_ess):
        size = min(plan.size.n, plan.size.most - asked)
        sample = await _sample(plan, size, asked, waiter, config, progress)
        asked += size
        causes += sample.causes
        if not sample.replies:
            break
        fresh = [_identity(message) for _, message in sample.replies]
        await _filter(plan, sample.replies, fresh, allowed, waiter, config)
        replies += sample.replies
        identities += fresh
        counts = np.bincount([condition for condition, _ in replies], minlength=len(plan.conditions))
        weights = np.zeros(len(replies))
        if plan.weighted:
            scores = await _log_probs(plan, sample.replies, fresh, waiter, progress)
            log_probs = np.concatenate([log_probs, scores], axis=1)
            weights = log_weights(log_probs, counts)
        weights = np.where([allowed[identity] for identity in identities], weights, -np.inf)
    candidates = _merge(plan, replies, identities, weights, allowed)
    _check_enough(plan, candidates, len(replies), causes, asked)
    if not any(candidate.possible for candidate in candidates) and plan.fallback is not None:
        candidates += (Candidate(message=plan.fallback, component="fallback"),)
    drawn_from = zip(plan.conditions, counts.tolist(), strict=True)
    components = tuple((condition.name, count) for condition, count in drawn_from if count)
    usages = usage_by_model([message for _, message in replies])
    return Drawn(
        candidates=candidates,
        components=components,
        causes=tuple(causes),
        usages=usages,
        usage=total_usage(usages.values()),
        contexts=plan.contexts,
        reason=plan.reason,
    )


def _suffice(weights: FloatArray, min_ess: float) -> bool:
    return bool(np.isfinite(weights).any()) and effective_sample_size(weights) >= min_ess


async def _sample(
    plan: Plan, size: int, asked: int, waiter: Waiter, config: RunnableConfig | None, progress: Progress | None
) -> Sample:
    """Draw `size` replies after the first `asked`, and return each with the place of its condition in the plan."""

    def pass_on(done: int, tokens_per_second: float | None) -> None:
        if progress:
            progress("candidates", asked + done, asked + size, tokens_per_second)

    return await plan.source.sample(
        list(zip(plan.conditions, stratify(plan.shares, size), strict=True)),
        waiter,
        seed=int(np.random.SeedSequence([plan.seed, asked]).generate_state(1, np.uint64)[0]) >> 11,
        tokens=plan.tokens,
        config=config,
        progress=pass_on if progress else None,
    )


async def _filter(
    plan: Plan,
    replies: _Replies,
    identities: Sequence[Hashable],
    allowed: dict[Hashable, bool],
    waiter: Waiter,
    config: RunnableConfig | None,
) -> None:
    """Add to `allowed` which replies may be returned. The filter is asked once about equal replies."""
    fresh = {own: message for own, (_, message) in zip(identities, replies, strict=True) if own not in allowed}
    if plan.filter is None or not fresh:
        allowed.update(dict.fromkeys(fresh, True))
        return
    answers = await plan.filter.allowed(plan.prompt, list(fresh.values()), config, waiter)
    allowed.update(zip(fresh, answers, strict=True))


async def _log_probs(
    plan: Plan, replies: _Replies, identities: Sequence[Hashable], waiter: Waiter, progress: Progress | None
) -> FloatArray:
    """Return the log-probabilities (C, M) of replies under every condition, nats."""
    assert plan.scorer is not None  # noqa: S101 - for the type checker: such a plan has one
    if progress:
        progress("weights", 0, len(replies), None)
    scores = await log_prob_matrix(
        plan.scorer,
        plan.conditions,
        replies,
        waiter,
        identities=identities,
        law=plan.source.law if plan.scorer is plan.source.scorer else {},
    )
    if progress:
        progress("weights", len(replies), len(replies), None)
    return scores


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
            f"candidate_filter excludes all of {drawn} replies. Set policy=Policy(fallback=...), draw more "
            "candidates, or loosen the filter."
        )


def _merge(
    plan: Plan,
    replies: _Replies,
    identities: Sequence[Hashable],
    weights: FloatArray,
    allowed: Mapping[Hashable, bool],
) -> tuple[Candidate, ...]:
    """Return the distinct replies. A candidate's weight is the mean of its draws' weights, which changes no payment."""
    places: dict[Hashable, list[int]] = {}
    for k, identity in enumerate(identities):
        places.setdefault(identity, []).append(k)
    values = weights.tolist()
    return tuple(
        Candidate(
            message=replies[draws[0]][1],
            log_weight=_mean_of([values[k] for k in draws]),
            draws=len(draws),
            component=plan.conditions[replies[draws[0]][0]].name,
            excluded=not allowed[identity],
        )
        for identity, draws in places.items()
    )


def _mean_of(log_weights: list[float]) -> float:
    """Return the logarithm of the mean of weights."""
    if len(log_weights) == 1:
        return log_weights[0]
    return float(np.logaddexp.reduce(log_weights) - math.log(len(log_weights)))


def _identity(message: AIMessage) -> Hashable:
    """Return a key that equal replies share: all that user or agents can tell apart, and whether a reply was cut.

    Ids and signatures are left out: a provider makes up new ones for every call.
    """
    content = message.content
    ends = repr([message.response_metadata.get(name) for name in ENDS])
    if isinstance(content, str) and not (message.additional_kwargs or message.tool_calls or message.invalid_tool_calls):
        return repr([content] if content else []), "[]", "[]", ends  # as below, but faster
    blocks: list[Any] = [content] if isinstance(content, str) else content
    blocks = [{"type": "text", "text": block} if isinstance(block, str) else block for block in blocks]
    calls = [(name, _in_order(args)) for name, args in calls_of(message)]
    rest = {name: value for name, value in message.additional_kwargs.items() if name not in _ELSEWHERE}
    return repr(_joined(_readable(blocks))), repr(calls), repr(_readable(rest)), ends


def _joined(blocks: list[Any]) -> list[Any]:
    """Return content blocks with those that are only text as strings, and neighbours among these as one."""
    joined: list[Any] = []
    for block in blocks:
        text = dict(block).get("text") if [name for name, _ in block] == ["text", "type"] else None
        if isinstance(text, str) and joined and isinstance(joined[-1], str):
            joined[-1] += text
        else:
            joined.append(text if isinstance(text, str) else block)
    return joined


def _readable(value: Any) -> Any:
    """Return what can be read of a content block or of another part of a reply; nothing of a part without anything."""
    if isinstance(value, list):
        return [part for one in value if not _is_empty(part := _readable(one), list)]
    if not isinstance(value, dict):
        return value
    parts = {
        str(name): _in_order(parsed(inner)) if name in _ARGUMENTS else _readable(inner)
        for name, inner in value.items()
        if not _is_sealed(str(name), value)
    }
    contents = [(name, part) for name, part in sorted(parts.items()) if not _is_empty(part, list | str)]
    return contents if {name for name, _ in contents} - {"type"} else []


def _is_empty(part: Any, kinds: Any) -> bool:  # by kind: arrays do not compare with a list
    return part is None or (isinstance(part, kinds) and not part)


def _is_sealed(name: str, block: Mapping[str, Any]) -> bool:
    if name == "id" and block.get("type") in _FILES and block.keys() <= _BY_ID:  # the provider keeps the file
        return False
    if name == "data" and any(word in str(block.get("type")) for word in _SEALED):
        return True
    return name in _UNREADABLE or name.startswith("__") or any(word in name.lower() for word in _SEALED)


def _in_order(value: Any) -> Any:
    """Return arguments sorted by name: a provider may write them in any order."""
    if isinstance(value, dict):
        return {name: _in_order(value[name]) for name in sorted(value, key=str)}
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    return [_in_order(inner) for inner in value] if isinstance(value, list | tuple) else value
