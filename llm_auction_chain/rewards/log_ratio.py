"""The paper's reward: an agent that is itself a language model, under instructions of its own."""

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from llm_auction_chain.candidates.logprobs import SequenceScorer, checked_scores
from llm_auction_chain.candidates.proposals import Condition
from llm_auction_chain.descriptions import with_instructions
from llm_auction_chain.errors import RewardError, ScoringError
from llm_auction_chain.messages import copies_of
from llm_auction_chain.rewards.base import LONGEST_TEXT, Combined, Prompt, Replies, WaitingReward
from llm_auction_chain.rewards.click import ClickReward
from llm_auction_chain.validators import number, refuse, text
from llm_auction_chain.waiting import AWAITING, BLOCKING, Waiter, run

__all__ = ["LogRatioReward", "groups_by_reward", "groups_of_agent", "log_ratios_of"]

FloatArray = npt.NDArray[np.float64]
_SHORT = 250  # characters of instructions: up to twice as many are scored first


@dataclass(frozen=True, eq=False)
class LogRatioReward(WaitingReward):
    """Worth `value * (log pi_i(reply | prompt) - log pi_ref(reply | prompt))`.

    pi_i is the model under the agent's instructions, pi_ref under the prompt as it stands. All such agents of an
    auction are scored together: in one call of a model in this process, or in parallel requests to a server. The
    scorer must be the model that draws the replies, or another of the same weights, because it reads their tokens.

    Attributes:
        instructions: the end of the agent's own system message, at most 20,000 characters.
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
    scorer: SequenceScorer | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the settings."""
        text("LogRatioReward.instructions", self.instructions, most=LONGEST_TEXT)
        number("LogRatioReward.value", self.value)
        if self.scorer is not None and not callable(getattr(self.scorer, "score", None)):
            raise refuse("LogRatioReward.scorer", "an object with score(prompt, replies)", self.scorer)

    @override
    async def _score(self, prompt: Prompt, replies: Replies, waiter: Waiter) -> list[float]:
        group = groups_of_agent.get().get(self) or groups_by_reward([[self]], prompt, replies)[self]
        return await group.amounts(self, waiter)


class Group:
    """Log-ratios under one scorer, which are scored together when the first of them is asked.

    One agent's instructions cannot spoil another's amounts: few and short ones are scored before those of twice the
    length, and an agent waits for its own. If the call for several prompts fails, each prompt is scored alone.

    Attributes:
        texts: the distinct instructions, and how many characters an agent has that has them.
    """

    def __init__(self, scorer: Any, law: Mapping[str, Any], prompt: Prompt, replies: Replies) -> None:
        self.texts: dict[str, int] = {}
        self._scorer, self._law = scorer, law
        # An agent may bring its scorer, and the candidates belong to all.
        self._prompt, self._replies = copies_of(prompt, replies)()
        self._turn, self._stopped, self._scoring = threading.Condition(), threading.Event(), False
        self._rows: dict[str | None, Any] = {}  # by instructions; None is the reference
        self._task: asyncio.Task[None] | None = None
        self._scored: asyncio.Future[None]  # done with the batch under way
        self._awaiting = 0

    async def amounts(self, reward: LogRatioReward, waiter: Waiter) -> list[float]:
        """Return one agent's amounts. The first call computes those of all agents, the others wait for their own."""
        text = reward.instructions
        await waiter.either(lambda: self._score_in_thread(text), lambda: self._score_in_loop(text))
        reference, own = self._checked(self._rows[None]), self._checked(self._rows[text])
        for scores, law in ((reference, "the reference"), (own, "the agent's instructions")):
            if np.isneginf(scores).any():
                raise RewardError(
                    f"a reply is impossible under {law}, so its log-ratio is no number; draw without top_p and top_k, "
                    "and score with the same model"
                )
        return [float(amount) for amount in reward.value * (own - reference)]

    def stop(self) -> None:
        """Tell the scorer to give up, if it can: the round is over."""
        self._stopped.set()

    def _batch(self) -> list[str | None]:
        """Return the shortest instructions without a row, to be scored together, the reference first."""
        left = {text: length for text, length in self.texts.items() if text not in self._rows}
        most = 2 * max(_SHORT, min(left.values(), default=0))
        return [*([] if None in self._rows else [None]), *(text for text, length in left.items() if length < most)]

    def _score_in_thread(self, text: str) -> None:
        """Score batches until one has the text. One thread scores at a time."""
        while True:
            with self._turn:
                self._turn.wait_for(lambda: text in self._rows or not self._scoring)
                if text in self._rows:
                    return
                if self._stopped.is_set():
                    raise ScoringError("The time for reports is over.")
                self._scoring = True
            try:
                run(self._score_batch(self._batch(), BLOCKING, self._stopped))
            finally:
                with self._turn:
                    self._scoring = False
                    self._turn.notify_all()

    async def _score_in_loop(self, text: str) -> None:
        """Share one task among the agents of a loop. It is cancelled when no agent awaits it any more."""
        if self._task is None or self._task.cancelling():
            self._scored = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._score_all(self._scored))
        task = self._task
        self._awaiting += 1
        try:
            while text not in self._rows:
                await asyncio.wait({task, self._scored}, return_when=asyncio.FIRST_COMPLETED)
                if task.done():
                    task.result()
        finally:
            self._awaiting -= 1
            if not self._awaiting and not task.done():
                task.cancel()

    async def _score_all(self, scored: "asyncio.Future[None]") -> None:
        cancel = threading.Event()
        try:
            while batch := self._batch():
                if self._has("score", AWAITING) or self._has("score_conditions", AWAITING):
                    await self._score_batch(batch, AWAITING, cancel)
                else:
                    await AWAITING.in_thread(partial(run, self._score_batch(batch, BLOCKING, cancel)))
                scored.set_result(None)
                self._scored = scored = asyncio.get_running_loop().create_future()
        finally:
            cancel.set()

    async def _score_batch(self, texts: Sequence[str | None], waiter: Waiter, cancel: threading.Event) -> None:
        """Note the log-probabilities of the replies under each text, or the error that took their place."""
        prompts = [self._prompt if text is None else with_instructions(self._prompt, text) for text in texts]
        rows = None
        if self._has("score_conditions", waiter):
            with contextlib.suppress(Exception, SystemExit):
                rows = await self._rows_together(prompts, waiter, cancel)
        if rows is None:
            rows = await waiter.together([partial(self._row_alone, prompt, waiter, cancel) for prompt in prompts])
        self._rows.update(zip(texts, rows, strict=True))

    async def _rows_together(self, prompts: Sequence[Any], waiter: Waiter, cancel: threading.Event) -> list[Any]:
        conditions = [Condition(name="prompt", prompts=(tuple(prompt),)) for prompt in prompts]
        settings = {**self._law, "wanted": [[True] * len(self._replies)] * len(prompts)}
        if waiter is BLOCKING and "cancel" in signature(self._scorer.score_conditions).parameters:
            settings["cancel"] = cancel
        rows = await self._call("score_conditions", waiter, conditions, settings)
        if len(rows) != len(prompts):
            name = type(self._scorer).__name__
            raise ScoringError(f"{name} returned {len(rows)} rows for {len(prompts)} prompts; return one per prompt.")
        return list(rows)

    async def _row_alone(self, prompt: Any, waiter: Waiter, cancel: threading.Event) -> Any:
        try:
            if self._has("score_conditions", waiter):
                return (await self._rows_together([prompt], waiter, cancel))[0]
            return await self._call("score", waiter, prompt, self._law)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - raised to the agents whose row it is
            return error

    async def _call(self, verb: str, waiter: Waiter, given: Any, settings: Mapping[str, Any]) -> Any:
        return await waiter.either(
            lambda: getattr(self._scorer, verb)(given, self._replies, **settings),
            lambda: getattr(self._scorer, f"a{verb}")(given, self._replies, **settings),
        )

    def _has(self, verb: str, waiter: Waiter) -> bool:
        return callable(getattr(self._scorer, verb if waiter is BLOCKING else f"a{verb}", None))

    def _checked(self, row: Any) -> FloatArray:
        """Return the log-probabilities (M,) of the replies under one prompt, or raise what is wrong with them."""
        if isinstance(row, BaseException):
            raise row
        return checked_scores(self._scorer, row, len(self._replies))


groups_of_agent: ContextVar[Mapping[LogRatioReward, Group]] = ContextVar(
    "groups_of_agent", default=MappingProxyType({})
)
"""The groups of an agent's own log-ratios, in the context in which the agent is asked."""


def groups_by_reward(
    rewards: Iterable[Sequence[LogRatioReward]],
    prompt: Prompt,
    replies: Replies,
    *,
    scorer: SequenceScorer | None = None,
    law: Mapping[str, Any] | None = None,
) -> dict[LogRatioReward, Group]:
    """Return the group of each reward. Rewards with one scorer are one group.

    Args:
        rewards: those of each agent of an auction.
        prompt: the user's messages.
        replies: the candidates, their tokens known.
        scorer: of rewards that bring none.
        law: temperature and truncation that the auction's model draws with.
    """
    by_scorer: dict[int, Group] = {}
    by_reward: dict[LogRatioReward, Group] = {}
    for own in rewards:
        length = sum(len(reward.instructions) for reward in own)
        for reward in own:
            used = scorer if reward.scorer is None else reward.scorer
            if used is None:
                used = _NO_SCORER
            if id(used) not in by_scorer:
                by_scorer[id(used)] = Group(used, (law or {}) if used is scorer else {}, prompt, replies)
            group = by_reward[reward] = by_scorer[id(used)]
            group.texts[reward.instructions] = min(length, group.texts.get(reward.instructions, length))
    return by_reward


def log_ratios_of(reward: Any) -> list[LogRatioReward]:
    """Return the log-ratios that a reward is composed of."""
    if isinstance(reward, LogRatioReward):
        return [reward]
    if isinstance(reward, ClickReward):
        return log_ratios_of(reward.click_through)
    parts = reward.parts if isinstance(reward, Combined) else ()
    return [ratio for part in parts for ratio in log_ratios_of(part)]


class _NoScorer:
    """Takes the place of a scorer where there is none."""

    def score(self, *_: Any) -> list[float]:
        raise ScoringError(
            "The auction's model cannot say how likely replies are. Use ChatTransformers or ChatVLLM, give the auction "
            "a scorer, or LogRatioReward(..., scorer=...)."
        )


_NO_SCORER = _NoScorer()
