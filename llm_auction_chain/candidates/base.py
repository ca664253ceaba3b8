"""What the rest of the room speaks of: candidates, how they may be conditioned, and who can say how likely they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from langchain_core.messages import AIMessage, BaseMessage

from llm_auction_chain.errors import LogProbError

__all__ = ["Basis", "Candidate", "Condition", "LogProbs", "LogitModel", "SequenceScorer"]

Basis = Literal["model", "sampler", "unknown"]


@dataclass(frozen=True, kw_only=True)
class LogProbs:
    """Log-probabilities of one reply's tokens, and what they are log-probabilities of.

    Attributes:
        tokens: one per token in the order they were drawn, the end token included, nats.
        basis: `model`, the model's own law (temperature 1, nothing truncated); `sampler`, the law really drawn from;
            `unknown`, one of the two.
        complete: whether every token drawn is there: end token, tool calls and reasoning too.
        token_ids: the tokens, where they are known.
        prompt_totals: of the whole reply under each prompt of its condition alone, where the model says so; nats.
    """

    tokens: tuple[float, ...]
    basis: Basis
    complete: bool
    token_ids: tuple[int, ...] | None = None
    prompt_totals: tuple[float, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether they are all there, under the law that was drawn from."""
        return self.complete and self.basis == "sampler"

    def total(self, *, plain_sampler: bool = False) -> float:
        """Return the log-probability of the whole reply under the law it was drawn from, nats.

        Args:
            plain_sampler: whether it is known to be drawn at temperature 1 without truncation: then every basis is one.

        Raises:
            LogProbError: the figure would be that of another law, or of a part of the reply.

        >>> LogProbs(tokens=(-1.0, -0.5), basis="unknown", complete=True).total(plain_sampler=True)
        -1.5
        """
        if not self.complete:
            raise LogProbError(
                "The log-probabilities do not cover every token of the reply (end token, tool calls or hidden "
                "reasoning are missing), so no weight can be made of them. Give the auction a scorer, draw without "
                "tools and reasoning, or use proposal=Reference()."
            )
        if not plain_sampler and self.basis != "sampler":
            raise LogProbError(
                f"The reply was drawn with a temperature or truncation, and its log-probabilities have basis "
                f"{self.basis!r}: they are not known to be those of the sampler. Draw at temperature=1 and top_p=1, "
                "or use proposal=Reference()."
            )
        return float(sum(self.tokens))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One distinct reply that may be drawn.

    Attributes:
        message: the reply, with its own metadata.
        log_weight: `log pi_ref - log pi_gen`, nats; the mean weight where several draws gave this reply; 0 where the
            reference alone was drawn from.
        draws: how many of the M draws gave this very reply.
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
class Condition:
    """A law over replies: token by token proportional to `prod_k pi(token | prompts[k]) ** powers[k]`.

    Attributes:
        name: for metadata and tables.
        prompts: (K,), each a list of messages.
        powers: (K,), not 0; `(1.0,)` for one prompt as it stands, which any chat model can draw from.
    """

    name: str
    prompts: tuple[tuple[BaseMessage, ...], ...]
    powers: tuple[float, ...] = (1.0,)

    @property
    def plain(self) -> bool:
        """Whether it is one prompt as it stands."""
        return self.powers == (1.0,)

    def same_law(self, other: "Condition") -> bool:
        """Whether both are one law under two names."""
        return self.prompts == other.prompts and self.powers == other.powers


@runtime_checkable
class SequenceScorer(Protocol):
    """Says how likely replies are. One method; an `ascore` with the same arguments is awaited where there is one.

    `llm_auction_chain.testing.ScorerConformance` holds the laws that every scorer must obey.
    """

    def score(self, prompt: Sequence[BaseMessage], replies: Sequence[AIMessage]) -> Sequence[float]:
        """Return `log pi(reply | prompt)` for every reply, nats; `-inf` for one that cannot be drawn.

        The law is the one that replies are drawn from: with its temperature and truncation, the end token included; a
        reply that was cut has the probability of its prefix.

        Raises:
            LogProbError: a reply's tokens are unknown, or the law cannot be told exactly.
            ScoringError: the scorer failed.
        """
        ...


@runtime_checkable
class LogitModel(Protocol):
    """A chat model that shows its logits: it draws from, and scores under, conditions of several prompts.

    Its `_generate` takes `conditions`, a list of `(prompts, powers, count)`, in place of `n`. A reply that comes with
    `prompt_totals` needs no scoring under the prompts of its own condition.
    """

    def score_conditions(
        self,
        conditions: Sequence[tuple[Sequence[Sequence[BaseMessage]], Sequence[float]]],
        replies: Sequence[AIMessage],
        *,
        wanted: Sequence[Sequence[bool]],
    ) -> Sequence[Sequence[float]]:
        """Return `log pi_c(reply)` (C, M) in nats, for conditions of `(prompts, powers)`.

        What is not `wanted` (C, M) is not looked at. An `ascore_conditions` with the same arguments is awaited where
        there is one.
        """
        ...
