"""What an auction draws: decided from the prompt, public descriptions, tau and a seed, before any report exists."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from langchain_core.messages import BaseMessage

from llm_auction_chain.candidates.base import Condition, SequenceScorer
from llm_auction_chain.candidates.proposals import (
    Proposal,
    Reference,
    conditions_of,
    default_proposal,
    descriptions_of,
)
from llm_auction_chain.candidates.sampling import Source
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
    """

    source: Source
    scorer: SequenceScorer | None
    conditions: Sequence[Condition]
    shares: Sequence[float]
    contexts: Contexts
    size: Size
    seed: int

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
    )
