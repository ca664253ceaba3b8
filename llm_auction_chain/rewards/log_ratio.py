"""The paper's reward: an agent that is itself a language model, under instructions of its own."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.messages import BaseMessage
from typing_extensions import override

from llm_auction_chain.descriptions import with_instructions
from llm_auction_chain.errors import ConfigurationError, RewardError, ScoringError
from llm_auction_chain.rewards.base import Combined, Prompt, Replies, Reward, check_number
from llm_auction_chain.rewards.click import ClickReward
from llm_auction_chain.rewards.copies import Copies
from llm_auction_chain.threads import finished, in_thread

__all__ = ["LogRatioReward", "grouped", "groups_of_agent", "log_ratios_of"]

FloatArray = npt.NDArray[np.float64]
_ROUNDING = 1e-6  # nats by which a log-probability may be above 0


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
    """Log-ratios under one scorer, scored together when the first of them is asked.

    What fails together is asked again prompt by prompt, so that nobody's instructions spoil another's amounts.

    Attributes:
        texts: the distinct instructions, and the place of each.
    """

    def __init__(self, scorer: Any, law: Mapping[str, Any], prompt: Prompt, replies: Replies) -> None:
        self.texts: dict[str, int] = {}
        self._scorer, self._law = scorer, law
        # A scorer may be an agent's own code, and the candidates are everybody's.
        self._prompt, self._replies = Copies(prompt).fresh(), Copies(replies).fresh()
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._rows: list[Any] | None = None
        self._task: asyncio.Task[list[Any]] | None = None
        self._awaiting = 0

    def row(self, reward: LogRatioReward) -> list[float]:
        """Return one agent's amounts; whoever comes first computes them all, the others wait."""
        with self._lock:
            if self._rows is None:
                self._rows = self._scored(self._stopped)
        return self._amounts(self._rows, reward)

    async def arow(self, reward: LogRatioReward) -> list[float]:
        """Do as `row`, awaiting; where no agent awaits it any more, the work is cancelled."""
        if self._task is None or self._task.cancelling():
            self._task = asyncio.create_task(self._ascored())
        task = self._task
        self._awaiting += 1
        try:
            rows = await asyncio.shield(task)
        finally:
            self._awaiting -= 1
            if not self._awaiting and not task.done():
                task.cancel()
        return self._amounts(rows, reward)

    def stop(self) -> None:
        """Give up what `row` computes, where the scorer can: nobody waits for it any more."""
        self._stopped.set()

    def _prompts(self) -> list[Sequence[BaseMessage]]:
        """Return the reference's prompt, then one for each text of instructions."""
        return [self._prompt, *(with_instructions(self._prompt, text) for text in self.texts)]

    def _scored(self, cancel: threading.Event) -> list[Any]:
        """Return the row of every prompt, or what it failed with."""
        prompts = self._prompts()
        rows: Any = None
        if callable(getattr(self._scorer, "score_conditions", None)):
            rows = _tried(lambda: self._ask(prompts, cancel))
        if rows is None or isinstance(rows, Exception):
            context = copy_context()
            calls = [partial(context.copy().run, _tried, partial(self._ask, [prompt], cancel)) for prompt in prompts]
            told = dict(finished(calls, timeout=None))
            rows = _firsts(told[k] for k in range(len(prompts)))
        return rows if isinstance(rows, list) else [rows] * len(prompts)

    def _ask(self, prompts: Sequence[Any], cancel: threading.Event) -> list[Any]:
        together = getattr(self._scorer, "score_conditions", None)
        if not callable(together):
            return [self._scorer.score(prompt, self._replies, **self._law) for prompt in prompts]
        stopping = {"cancel": cancel} if "cancel" in signature(together).parameters else {}
        conditions, wanted = self._conditions(prompts)
        return self._rows_of(together(conditions, self._replies, wanted=wanted, **self._law, **stopping), prompts)

    async def _ascored(self) -> list[Any]:
        """Do as `_scored`, awaiting; a scorer that cannot be awaited gets a thread that delays no exit."""
        prompts = self._prompts()
        verbs = [verb for verb in ("ascore_conditions", "ascore") if callable(getattr(self._scorer, verb, None))]
        if not verbs:
            return await self._threaded()
        rows: Any = None
        if "ascore_conditions" in verbs:
            rows = await _atried(lambda: self._aask(prompts))
        if rows is None or isinstance(rows, Exception):
            rows = _firsts(await asyncio.gather(*(_atried(partial(self._aask, [prompt])) for prompt in prompts)))
        return rows if isinstance(rows, list) else [rows] * len(prompts)

    async def _aask(self, prompts: Sequence[Any]) -> list[Any]:
        together = getattr(self._scorer, "ascore_conditions", None)
        if not callable(together):
            return [await self._scorer.ascore(prompt, self._replies, **self._law) for prompt in prompts]
        conditions, wanted = self._conditions(prompts)
        return self._rows_of(await together(conditions, self._replies, wanted=wanted, **self._law), prompts)

    async def _threaded(self) -> list[Any]:
        cancel = threading.Event()
        try:
            rows: list[Any] = await in_thread(partial(self._scored, cancel))
        finally:
            cancel.set()
        return rows

    def _conditions(self, prompts: Sequence[Any]) -> tuple[list[Any], list[list[bool]]]:
        """Return each prompt as a condition of its own, and that all replies are wanted under all of them."""
        return [((prompt,), (1.0,)) for prompt in prompts], [[True] * len(self._replies)] * len(prompts)

    def _rows_of(self, rows: Any, prompts: Sequence[Any]) -> list[Any]:
        if len(rows) != len(prompts):
            name = type(self._scorer).__name__
            raise ScoringError(f"{name} returned {len(rows)} rows for {len(prompts)} prompts; return one per prompt.")
        return list(rows)

    def _amounts(self, rows: Sequence[Any], reward: LogRatioReward) -> list[float]:
        reference, own = self._checked(rows[0]), self._checked(rows[1 + self.texts[reward.instructions]])
        for scores, law in ((reference, "the reference"), (own, "the agent's instructions")):
            if np.isneginf(scores).any():
                raise RewardError(
                    f"a reply is impossible under {law}, so its log-ratio is no number; draw without top_p and top_k, "
                    "and score with the same model"
                )
        return [float(amount) for amount in reward.value * (own - reference)]

    def _checked(self, row: Any) -> FloatArray:
        """Return the log-probabilities (M,) of the replies under one prompt, or raise what was wrong."""
        if isinstance(row, BaseException):
            raise row
        name, n = type(self._scorer).__name__, len(self._replies)
        try:
            scores = np.asarray(row, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ScoringError(f"{name} returned no numbers; return one log-probability per reply.") from error
        if scores.shape != (n,):
            raise ScoringError(f"{name} returned scores of shape {scores.shape} for {n} replies; return one per reply.")
        if not np.all(scores <= _ROUNDING):  # nan too
            raise ScoringError(f"{name} returned a score that is no log-probability; they are at most 0, in nats.")
        return np.minimum(scores, 0.0)


groups_of_agent: ContextVar[Mapping[LogRatioReward, Group]] = ContextVar(
    "groups_of_agent", default=MappingProxyType({})
)
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
        if id(scores) not in groups:
            groups[id(scores)] = Group(scores, laws, prompt, replies)
        of[reward] = groups[id(scores)]
        of[reward].texts.setdefault(reward.instructions, len(of[reward].texts))
    return of


def log_ratios_of(reward: Any) -> list[LogRatioReward]:
    """Return the log-ratios that a reward is, or is composed of."""
    if type(reward) is LogRatioReward:  # exactly: what else there is of a reward may be an agent's own code
        return [reward]
    if type(reward) is ClickReward:
        return log_ratios_of(reward.click_through)
    if type(reward) is Combined:
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


def _tried(do: Callable[[], Any]) -> Any:
    """Return what it returns, or what it raised, for every agent that waits for it to hear."""
    try:
        return do()
    except BaseException as error:  # noqa: BLE001 - a scorer may be an agent's own code, which may raise anything
        return error


async def _atried(do: Callable[[], Awaitable[Any]]) -> Any:
    """Do as `_tried`, awaiting; a SystemExit that left a task would stop the loop."""
    try:
        return await do()
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - as in `_tried`
        return error


def _firsts(answers: Iterable[Any]) -> list[Any]:
    """Return the row of each prompt that was asked about alone, or what it failed with."""
    return [answer[0] if isinstance(answer, list) else answer for answer in answers]
