"""Reports: every agent's reward for every candidate, from callbacks that nobody should trust.

An agent that raises, returns nonsense or comes late reports zero for all candidates, pays nothing, and never removes a
candidate. Whatever of its code runs here (the callback, what it returns, its exception's own text) runs behind one
guard, which lets through only Ctrl-C and the cancellation of the auction itself; on copies of its own; and only until
the deadline.
"""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig

from llm_auction_chain.agents import Agent
from llm_auction_chain.errors import RewardError
from llm_auction_chain.rewards.amounts import InvalidReportError, amounts_of
from llm_auction_chain.rewards.asking import (
    Raised,
    ask,
    attempt,
    caught,
    described_as,
    interrupts,
    is_async,
    tried,
    unwrapped,
)
from llm_auction_chain.rewards.base import AskedBy, asked_by
from llm_auction_chain.rewards.click import ClickReward
from llm_auction_chain.rewards.copies import Copies
from llm_auction_chain.rewards.log_ratio import grouped, groups_of_agent, log_ratios_of
from llm_auction_chain.rewards.workers import Later, finished, hearing

__all__ = ["OnAgentError", "Report", "Status", "Terms", "acollect", "collect"]

OnAgentError = Literal["abstain", "raise"]
Status = Literal["reported", "capped", "timeout", "error", "invalid"]
_LONGEST_REASON = 200
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one agent reported.

    Attributes:
        rewards: (M,), money; all zero unless `status` is `reported` or `capped`.
        status: `reported`; `capped`, a reward was beyond the agent's cap and cut to it; `timeout`, the report was late;
            `error`, the agent's code raised; `invalid`, it returned something else than numbers.
        reason: why, in at most 200 characters; empty where reported. It is public: the type and text of what the
            agent's own code raised, or which rule its report broke; never a reported number, nor anything of another
            agent.
        click_through: (M,), the predicted probability of a click, of an agent with a `ClickReward`; else None.
    """

    rewards: tuple[float, ...]
    status: Status = "reported"
    reason: str = ""
    click_through: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On which terms agents are asked: the same for all, and none of them a report's.

    Attributes:
        timeout: seconds for the whole round; None waits for ever.
        report_cap: money; every reward is cut to within plus and minus this, or the agent's own cap if that is less.
        on_agent_error: `abstain` turns a failure into a zero report; `raise` raises it, after all have answered.
        refuse_negative: a negative reward of an agent that pays is invalid (the `proportional` rule needs that).
        asked_by: the auction, for rewards that tell a remote bidder of it.
        scorer: says how likely replies are, for the log-ratios that bring no scorer.
        law: temperature and truncation that the replies were drawn with.
    """

    timeout: float | None = None
    report_cap: float | None = None
    on_agent_error: OnAgentError = "abstain"
    refuse_negative: bool = False
    asked_by: AskedBy | None = None
    scorer: Any = None
    law: Mapping[str, Any] | None = None


class _LateError(Exception):
    """Nothing was heard before the deadline."""


def collect(
    agents: Sequence[Agent],
    prompt: Sequence[BaseMessage],
    replies: Sequence[AIMessage],
    terms: Terms | None = None,
    *,
    config: RunnableConfig | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Report]:
    """Ask every agent at once, none in this thread, and return their reports when all have answered or time is up.

    Args:
        agents: who to ask.
        prompt: the user's messages.
        replies: the candidates.
        terms: deadline, caps and the like; None is `Terms()`.
        config: traces Runnable rewards.
        progress: called with the number of agents that have answered, or were late.

    Raises:
        RewardError: an agent failed and `on_agent_error` is `raise`.
    """
    terms = terms or Terms()
    asked = _Round(agents, prompt, replies, terms, config)
    heard = _Heard(len(agents), progress)
    for place, outcome in finished([asked.call(k) for k in range(len(agents))], terms.timeout):
        if heard.hear(place, outcome):
            break
    return asked.reports(heard)


async def acollect(
    agents: Sequence[Agent],
    prompt: Sequence[BaseMessage],
    replies: Sequence[AIMessage],
    terms: Terms | None = None,
    *,
    config: RunnableConfig | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Report]:
    """Do as `collect`: async callbacks and Runnables are awaited in this loop, sync ones run in threads.

    Two things are out of reach. An async callback that blocks instead of awaiting holds up this loop, deadline
    included; `collect` would give it a thread. And SystemExit in a task that a callback starts itself stops the loop.
    """
    terms = terms or Terms()
    asked = _Round(agents, prompt, replies, terms, config)
    heard = _Heard(len(agents), progress)
    everybody = asyncio.Event()
    tasks: set[asyncio.Task[Any]] = set()

    def hear(k: int, outcome: Any) -> None:
        if heard.hear(k, outcome):
            everybody.set()

    def begin(k: int, awaitable: Any = None) -> None:
        task = asyncio.create_task(asked.aask(k, awaitable), context=asked.contexts[k])
        tasks.add(task)
        task.add_done_callback(lambda task: None if task.cancelled() else hear(k, task.result()))

    def hear_from_thread(place: int, outcome: Any) -> None:
        (begin if inspect.isawaitable(outcome) else hear)(threaded[place], outcome)

    threaded = [k for k, agent in enumerate(agents) if tried(partial(is_async, agent.reward)) is not True]
    try:
        async with hearing([asked.call(k, awaiting=True) for k in threaded], hear_from_thread):
            for k in set(range(len(agents))).difference(threaded):
                begin(k)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(everybody.wait(), terms.timeout if agents else 0)
    finally:
        late = _abandon(tasks)
    if late:
        await asyncio.sleep(0)  # so that they hear of it before this loop may close
    return asked.reports(heard)


_ABANDONED: set["asyncio.Task[Any]"] = set()  # a loop keeps no task alive, and these may still be cleaning up


def _abandon(tasks: Iterable["asyncio.Task[Any]"]) -> bool:
    """Cancel what is not done, wait for none of it, and return whether there was any."""
    late = [task for task in tasks if not task.done()]
    for task in late:
        _ABANDONED.add(task)
        task.add_done_callback(_ABANDONED.discard)
        task.cancel()
    return bool(late)


class _Heard:
    """The outcomes that came in so far."""

    def __init__(self, n: int, progress: Callable[[int], None] | None) -> None:
        self.outcomes: list[Any] = [None] * n
        self._done, self._progress, self._open = 0, progress, True

    def hear(self, k: int, outcome: Any) -> bool:
        """Note an outcome; return whether there is nothing left to wait for: all are there, or one is Ctrl-C."""
        if self._open:
            self.outcomes[k] = outcome
            self._done += 1
            if self._progress:
                self._progress(self._done)
        return self._done == len(self.outcomes) or interrupts(outcome)

    def close(self) -> None:
        """Hear no more; tell of those that were late, and raise Ctrl-C where one heard it."""
        self._open = False
        for outcome in filter(interrupts, self.outcomes):
            raise outcome.error
        if self._progress and self._done < len(self.outcomes):
            self._progress(len(self.outcomes))


class _Round:
    """One round of asking: what each agent is given, and what is made of its answer."""

    def __init__(
        self,
        agents: Sequence[Agent],
        prompt: Sequence[BaseMessage],
        replies: Sequence[AIMessage],
        terms: Terms,
        config: RunnableConfig | None,
    ) -> None:
        self._agents, self._terms, self._config = agents, terms, config
        self._prompt, self._replies, self._n = Copies(prompt), Copies(replies), len(replies)
        ratios = [log_ratios_of(agent.reward) for agent in agents]
        groups = grouped(
            (ratio for found in ratios for ratio in found), prompt, replies, scorer=terms.scorer, law=terms.law
        )
        here = copy_context()
        here.run(asked_by.set, terms.asked_by)
        self.contexts: list[Context] = []
        for found in ratios:
            context = here.copy()
            if found:
                context.run(groups_of_agent.set, {ratio: groups[ratio] for ratio in found})
            self.contexts.append(context)

    def call(self, k: int, *, awaiting: bool = False) -> Callable[[], Any]:
        """Return the call that asks an agent in a thread; `awaiting` leaves what it awaits to `aask`."""

        def answer() -> Any:
            value = self._ask(k, awaiting=awaiting)
            if isinstance(value, Future):
                return Later(value, lambda: context.run(caught, lambda: self._answer(k, value.result())))
            if not inspect.isawaitable(value):
                return self._answer(k, value)
            return value if awaiting else self._answer(k, unwrapped(asyncio.run(attempt(value))))

        context = self.contexts[k].copy()
        return lambda: context.run(caught, answer)

    async def aask(self, k: int, awaitable: Any = None) -> Any:
        """Return an agent's answer, or `Raised`; the awaitable is what its call in a thread returned."""

        async def answer() -> Any:
            value = self._ask(k, awaiting=True) if awaitable is None else awaitable
            if inspect.isawaitable(value):
                # A task of its own: an agent that cancels the task it runs in cancels nobody else's.
                value = unwrapped(await asyncio.create_task(attempt(value)))
            return self._answer(k, value)

        return await attempt(answer())

    def _answer(self, k: int, value: Any) -> Report:
        """Return the report that a returned value is. It may be the agent's own code, so this runs behind the guard."""
        agent, cap = self._agents[k], self._terms.report_cap
        rewards = amounts_of(value, self._n, refuse_negative=self._terms.refuse_negative and agent.pays)
        clicks = _click_through(agent.reward, rewards)
        cap = min((limit for limit in (cap, agent.report_cap) if limit is not None), default=None)
        if cap is None or all(-cap <= reward <= cap for reward in rewards):
            return Report(rewards=rewards, click_through=clicks)
        return Report(
            rewards=tuple(min(max(reward, -cap), cap) for reward in rewards),
            status="capped",
            reason=f"reported rewards beyond its cap of {cap:g}; they count as the cap",
            click_through=clicks,
        )

    def _ask(self, k: int, *, awaiting: bool) -> Any:
        """Return the agent's scores, or what they will come from. Its copies are its own, whatever it does to them."""
        return ask(self._agents[k].reward, self._prompt.fresh(), self._replies.fresh(), self._config, awaiting=awaiting)

    def reports(self, heard: _Heard) -> list[Report]:
        """Return all reports, zero where an agent failed or was late.

        Raises:
            RewardError: one failed and `on_agent_error` is `raise`.
        """
        heard.close()
        late = Raised(_LateError(f"did not report within {self._terms.timeout} s"))
        return [self._report(k, late if outcome is None else outcome) for k, outcome in enumerate(heard.outcomes)]

    def _report(self, k: int, outcome: Any) -> Report:
        if isinstance(outcome, Report):
            return outcome
        agent, error = self._agents[k], outcome.error
        ours = isinstance(error, _LateError | InvalidReportError)
        said = error.rule if isinstance(error, InvalidReportError) else str(error) if ours else described_as(error)
        if self._terms.on_agent_error == "raise":
            raise RewardError(f"{agent.name!r} {error if ours else f'raised {said}'}") from error
        # Half a surrogate pair is text to Python, and to nothing that stores or prints it.
        reason = said[:_LONGEST_REASON].encode("utf-8", "replace").decode()
        _logger.warning("Agent %r abstains: it %s", agent.name, reason if ours else f"raised {reason}")
        return Report(rewards=(0.0,) * self._n, status=_status(error), reason=reason)


def _status(error: BaseException) -> Status:
    if isinstance(error, _LateError | TimeoutError):
        return "timeout"
    return "invalid" if isinstance(error, InvalidReportError | RewardError) else "error"


def _click_through(reward: Any, rewards: tuple[float, ...]) -> tuple[float, ...] | None:
    """Return what a `ClickReward` predicted, from what it made of it."""
    if not isinstance(reward, ClickReward) or not reward.value_per_click:
        return None
    return tuple(amount / reward.value_per_click for amount in rewards)
