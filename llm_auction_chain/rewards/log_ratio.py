"""The paper's reward: an agent that is itself a language model, under instructions of its own."""

import asyncio
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.messages import BaseMessage
from typing_extensions import override

from llm_auction_chain.contexts import with_instructions
from llm_auction_chain.errors import ConfigurationError, RewardError, ScoringError
from llm_auction_chain.rewards.base import Combined, Prompt, Replies, Reward, check_number

__all__ = ["LogRatioReward", "grouped", "groups_of_agent", "log_ratios_of"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LogRatioReward(Reward):
    """Worth `value * (log pi_i(reply | prompt) - log pi_ref(reply | prompt))`.

    pi_i is the model under the agent's instructions, pi_ref under the prompt as it stands. All such agents of an
    auction are scored together: in one call of a model in this process, side by side at a server. The replies' tokens
    must be known: the scorer is the model that draws them, or another of the same weights.

    Attributes:
        instructions: the end of the agent's own system message.
        value: money per nat.
        scorer: says how likely replies are; None is the auction's own.

    Raises:
        ConfigurationError: no instructions, no number, or a scorer that cannot score.

    Source: arXiv 2405.05905, section 6.

    >>> from langchain_core.messages import AIMessage, HumanMessage
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> model = MarkovChatModel(tilts={"Praise b.": (0.0, 1.0, 0.0)})
    >>> reward = LogRatioReward("Praise b.", scorer=model)
    >>> [round(amount, 2) for amount in reward.score([HumanMessage("Hi")], [AIMessage("bb"), AIMessage("ac")])]
    [1.08, -0.45]
    """

    instructions: str
    value: float = 1.0
    scorer: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what cannot be scored."""
        if not isinstance(self.instructions, str) or not self.instructions.strip():
            raise ConfigurationError("LogRatioReward needs instructions: what the agent's own model is told.")
        check_number(self, "value", self.value)
        if self.scorer is not None and not callable(getattr(self.scorer, "score", None)):
            raise ConfigurationError(f"scorer is {self.scorer!r}; give an object with score(prompt, replies).")

    @property
    @override
    def awaits(self) -> bool:
        return True

    @override
    def score(self, prompt: Prompt, replies: Replies) -> list[float]:
        return self._group(prompt, replies).row(self)

    @override
    async def ascore(self, prompt: Prompt, replies: Replies) -> list[float]:
        return await self._group(prompt, replies).arow(self)

    def _group(self, prompt: Prompt, replies: Replies) -> "Group":
        known = groups_of_agent.get().get(self)
        return grouped([self], prompt, replies)[self] if known is None else known


class Group:
    """Rewards under one scorer, scored together when the first of them is asked."""

    def __init__(self, scorer: Any, law: Mapping[str, Any], prompt: Prompt, replies: Replies) -> None:
        self.rewards: list[LogRatioReward] = []
        self._scorer, self._law = scorer, law
        self._prompt, self._replies = tuple(prompt), replies
        self._lock = threading.Lock()
        self._rows: FloatArray | Exception | None = None
        self._task: asyncio.Task[FloatArray] | None = None
        self._awaiting = 0

    def row(self, reward: LogRatioReward) -> list[float]:
        """Return one agent's amounts; whoever comes first computes them all, the others wait."""
        with self._lock:
            if self._rows is None:
                try:
                    self._rows = self._checked(self._scored())
                except Exception as error:  # noqa: BLE001 - every agent of the group hears of it
                    self._rows = error
        if isinstance(self._rows, Exception):
            raise self._rows
        return self._amounts(self._rows, reward)

    async def arow(self, reward: LogRatioReward) -> list[float]:
        """Do as `row`, awaiting; where no agent awaits it any more, the work is cancelled."""
        if self._task is None or self._task.cancelled():
            self._task = asyncio.create_task(self._ascored())
        self._awaiting += 1
        try:
            rows = await asyncio.shield(self._task)
        finally:
            self._awaiting -= 1
            if not self._awaiting:
                self._task.cancel()
        return self._amounts(self._checked(rows), reward)

    def _prompts(self) -> list[Sequence[BaseMessage]]:
        """Return the reference's prompt, then one for each text of instructions."""
        texts = dict.fromkeys(reward.instructions for reward in self.rewards)
        return [self._prompt, *(with_instructions(self._prompt, text) for text in texts)]

    def _scored(self) -> Any:
        prompts = self._prompts()
        if callable(together := getattr(self._scorer, "score_conditions", None)):
            return together(_conditions(prompts), self._replies, wanted=self._wanted(prompts), **self._law)
        return [self._scorer.score(prompt, self._replies, **self._law) for prompt in prompts]

    async def _ascored(self) -> Any:
        prompts = self._prompts()
        if callable(together := getattr(self._scorer, "ascore_conditions", None)):
            return await together(_conditions(prompts), self._replies, wanted=self._wanted(prompts), **self._law)
        if callable(one := getattr(self._scorer, "ascore", None)):
            return await asyncio.gather(*(one(prompt, self._replies, **self._law) for prompt in prompts))
        return await asyncio.to_thread(self._scored)

    def _wanted(self, prompts: Sequence[Any]) -> list[list[bool]]:
        return [[True] * len(self._replies)] * len(prompts)

    def _checked(self, rows: Any) -> FloatArray:
        """Return the log-probabilities (1 + texts, replies), or raise `ScoringError`."""
        scores = np.asarray(rows, dtype=np.float64)
        if scores.shape != (len(self._prompts()), len(self._replies)):
            raise ScoringError(
                f"{type(self._scorer).__name__} returned scores of shape {scores.shape} for {len(self._replies)} "
                "replies; return one per reply."
            )
        return scores

    def _amounts(self, scores: FloatArray, reward: LogRatioReward) -> list[float]:
        texts = list(dict.fromkeys(one.instructions for one in self.rewards))
        row = scores[1 + texts.index(reward.instructions)]
        if np.isneginf(scores[0]).any():
            raise RewardError("a reply is impossible under the reference, so its log-ratio is no number")
        return [float(amount) for amount in reward.value * (row - scores[0])]


groups_of_agent: ContextVar[Mapping[LogRatioReward, Group]] = ContextVar("groups_of_agent", default={})  # noqa: B039 - read only
"""In the context in which an agent is asked, the groups that its own log-ratios belong to."""


def grouped(
    rewards: Iterable[LogRatioReward],
    prompt: Prompt,
    replies: Replies,
    *,
    scorer: Any = None,
    law: Mapping[str, Any] | None = None,
) -> dict[LogRatioReward, Group]:
    """Return the group of each reward: those with one scorer are one group.

    Args:
        rewards: of all agents of an auction.
        prompt: the user's messages.
        replies: the candidates, their tokens known.
        scorer: of rewards that bring none.
        law: temperature and truncation that the auction's model draws with.
    """
    groups: dict[int, Group] = {}
    of: dict[LogRatioReward, Group] = {}
    for reward in rewards:
        scores = scorer if reward.scorer is None else reward.scorer
        if scores is None:
            scores = _NOBODY
        laws = (law or {}) if scores is scorer else {}
        of[reward] = groups.setdefault(id(scores), Group(scores, laws, prompt, replies))
        of[reward].rewards.append(reward)
    return of


def log_ratios_of(reward: Any) -> list[LogRatioReward]:
    """Return the log-ratios that a reward is, or is composed of."""
    if isinstance(reward, LogRatioReward):
        return [reward]
    if isinstance(reward, Combined):
        return [found for part in reward.parts for found in log_ratios_of(part)]
    return []


class _Nobody:
    """Stands where there is no scorer."""

    def score(self, *_: Any) -> list[float]:
        raise ScoringError(
            "The auction's model cannot say how likely replies are. Use ChatTransformers or ChatVLLM, give the auction "
            "a scorer, or LogRatioReward(..., scorer=...)."
        )


_NOBODY = _Nobody()


def _conditions(
    prompts: Iterable[Sequence[BaseMessage]],
) -> list[tuple[tuple[Sequence[BaseMessage], ...], tuple[float, ...]]]:
    return [((prompt,), (1.0,)) for prompt in prompts]
