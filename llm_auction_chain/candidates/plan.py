"""What an auction draws: decided from the prompt, public descriptions, tau and a seed, before any report exists."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from langchain_core.messages import AIMessage, BaseMessage

from llm_auction_chain.candidates.base import Condition, SequenceScorer
from llm_auction_chain.candidates.filtering import CandidateFilter
from llm_auction_chain.candidates.proposals import (
    Proposal,
    Reference,
    conditions_of,
    default_proposal,
)
from llm_auction_chain.candidates.source import Source
from llm_auction_chain.descriptions import descriptions_of
from llm_auction_chain.errors import ConfigurationError

__all__ = ["Contexts", "Plan", "Size", "make_plan"]

Contexts = Literal["none", "used", "unused"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How many draws.

    Attributes:
        n: draws of a round.
        most: draws of all rounds.
        min_ess: further rounds are drawn while the weights are worth fewer draws.
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
        scorer: says how likely replies are; needed where there is more than the reference.
        conditions: (C,), the reference first.
        shares: (C,), of the draws; the reference's may be 0.
        contexts: whether the agents' descriptions reach the proposal; `none` where there are none.
        size: how many draws.
        seed: replays them.
        tokens: whether replies are to come with their tokens, for weights or for agents' log-ratios.
        filter: decides which replies may be returned; None allows all.
        fallback: returned where the filter excludes all; None is an error.
    """

    source: Source
    scorer: SequenceScorer | None
    conditions: Sequence[Condition]
    shares: Sequence[float]
    contexts: Contexts
    size: Size
    seed: int
    tokens: bool = False
    filter: CandidateFilter | None = None
    fallback: AIMessage | None = None

    @property
    def prompt(self) -> tuple[BaseMessage, ...]:
        """The user's messages."""
        return self.conditions[0].prompts[0]

    @property
    def weighs(self) -> bool:
        """Whether there is more than the reference, so that draws have weights."""
        return len(self.conditions) > 1


def make_plan(
    source: Source,
    *,
    scorer: SequenceScorer | None,
    proposal: Proposal | None,
    prompt: Sequence[BaseMessage],
    contexts: Iterable[str],
    tau: float,
    size: Size,
    seed: int,
    tokens: bool = False,
    candidate_filter: CandidateFilter | None = None,
    fallback: AIMessage | None = None,
) -> Plan:
    """Return what to draw for one auction.

    Args:
        source: the chat model.
        scorer: says how likely replies are; None is the model itself, where it can.
        proposal: None is the best that model and scorer can do.
        prompt: the user's messages.
        contexts: the agents' public descriptions; their order does not matter.
        tau: weight of the reference model, money per nat.
        size: how many draws.
        seed: decides the order of the descriptions, and the draws.
        tokens: whether an agent's reward needs the replies' tokens, where the model can tell them.
        candidate_filter: decides which replies may be returned.
        fallback: returned where it excludes all.

    Raises:
        ConfigurationError: the proposal needs weights and nothing can score, or logits and the model shows none.
    """
    scorer = source.scorer if scorer is None else scorer
    logits = source.logits and scorer is source.scorer
    descriptions = descriptions_of(contexts)
    if not descriptions:
        chosen: Proposal = Reference()
    elif proposal is None:
        chosen = default_proposal(descriptions, scores=scorer is not None, logits=logits)
    else:
        chosen = proposal
    conditions, shares = conditions_of(chosen, prompt, descriptions, tau=tau, seed=seed)
    if len(conditions) > 1 and scorer is None:
        raise ConfigurationError(
            f"proposal={proposal!r} needs to know how likely replies are, and the model cannot say. Use "
            "ChatTransformers or ChatVLLM, give a scorer, or leave proposal out."
        )
    if not logits and not all(condition.plain for condition in conditions):
        raise ConfigurationError(
            f"proposal={proposal!r} draws from products of prompts, for which the model must show its logits. Use "
            "ChatTransformers without a scorer of its own, or a mixture of Reference() and ContextPrompt()."
        )
    used: Contexts = "used" if len(conditions) > 1 else "unused"
    return Plan(
        source=source,
        scorer=scorer,
        conditions=conditions,
        shares=shares,
        contexts=used if descriptions else "none",
        size=size,
        seed=seed,
        tokens=source.scorer is not None and (tokens or (len(conditions) > 1 and scorer is source.scorer)),
        filter=candidate_filter,
        fallback=fallback,
    )
