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
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from llm_auction_chain.agents import Agent
from llm_auction_chain.errors import RewardError
from llm_auction_chain.rewards.base import AskedBy, Reward, asked_by
from llm_auction_chain.rewards.click import ClickReward
from llm_auction_chain.rewards.copies import Copies
from llm_auction_chain.rewards.log_ratio import grouped, groups_of_agent, log_ratios_of
from llm_auction_chain.rewards.webhook import WebhookReward
from llm_auction_chain.rewards.workers import Later, finished, hearing

__all__ = ["OnAgentError", "Report", "Status", "Terms", "acollect", "collect"]

OnAgentError = Literal["abstain", "raise"]
Status = Literal["reported", "capped", "timeout", "error", "invalid"]
_LARGEST = 1e100
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


class _Raised(NamedTuple):
    """What an agent's code raised, as a value."""

    error: BaseException


class _InvalidReportError(Exception):
    """A report that is none: the rule it breaks, for everybody, and the detail, for the developer."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule = rule


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

    threaded = [k for k, agent in enumerate(agents) if _tried(partial(_is_async, agent)) is not True]
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
        return self._done == len(self.outcomes) or _interrupts(outcome)

    def close(self) -> None:
        """Hear no more; tell of those that were late, and raise Ctrl-C where one heard it."""
        self._open = False
        for outcome in filter(_interrupts, self.outcomes):
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
            value = self._ask(self._agents[k], awaiting=awaiting)
            if isinstance(value, Future):
                return Later(value, lambda: context.run(_caught, lambda: self._answer(k, value.result())))
            if not inspect.isawaitable(value):
                return self._answer(k, value)
            return value if awaiting else self._answer(k, _unwrapped(asyncio.run(_attempt(value))))

        context = self.contexts[k].copy()
        return lambda: context.run(_caught, answer)

    async def aask(self, k: int, awaitable: Any = None) -> Any:
        """Return an agent's answer, or `_Raised`; the awaitable is what its call in a thread returned."""

        async def answer() -> Any:
            value = self._ask(self._agents[k], awaiting=True) if awaitable is None else awaitable
            if inspect.isawaitable(value):
                # A task of its own: an agent that cancels the task it runs in cancels nobody else's.
                value = _unwrapped(await asyncio.create_task(_attempt(value)))
            return self._answer(k, value)

        return await _attempt(answer())

    def _answer(self, k: int, value: Any) -> Report:
        """Return the report that a returned value is. It may be the agent's own code, so this runs behind the guard."""
        agent, cap = self._agents[k], self._terms.report_cap
        rewards = _numbers(value, self._n, refuse_negative=self._terms.refuse_negative and agent.pays)
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

    def _ask(self, agent: Agent, *, awaiting: bool) -> Any:
        """Return the agent's scores, or an awaitable of them. Its copies are its own, whatever it does to them."""
        prompt, replies, reward = self._prompt.fresh(), self._replies.fresh(), agent.reward
        if isinstance(reward, WebhookReward):
            return reward.submit(prompt, replies)
        if awaiting and isinstance(reward, Reward) and reward.awaits:
            return reward.ascore(prompt, replies)
        if callable(score := getattr(reward, "score", None)):
            return score(prompt, replies)
        if isinstance(reward, Runnable):
            questions = [{"prompt": prompt, "reply": reply} for reply in replies]
            if awaiting and _is_async(agent):
                return reward.abatch(questions, self._config)
            try:
                return _invoked(reward, questions, self._config)
            except (TypeError, NotImplementedError) as error:
                # An async function says so in a TypeError; one of the reward's own is not worth asking twice.
                if isinstance(error, TypeError) and "coroutine" not in str(error):
                    raise
                return reward.abatch(questions, self._config)
        values = [reward(prompt, reply) for reply in replies]
        strange = [value for value in values if type(value) is not float]  # few, and the question is slow
        return _gather(values) if any(map(inspect.isawaitable, strange)) else values

    def reports(self, heard: _Heard) -> list[Report]:
        """Return all reports, zero where an agent failed or was late.

        Raises:
            RewardError: one failed and `on_agent_error` is `raise`.
        """
        heard.close()
        late = _Raised(_LateError(f"did not report within {self._terms.timeout} s"))
        return [self._report(k, late if outcome is None else outcome) for k, outcome in enumerate(heard.outcomes)]

    def _report(self, k: int, outcome: Any) -> Report:
        if isinstance(outcome, Report):
            return outcome
        agent, error = self._agents[k], outcome.error
        ours = isinstance(error, _LateError | _InvalidReportError)
        said = error.rule if isinstance(error, _InvalidReportError) else str(error) if ours else _described(error)
        if self._terms.on_agent_error == "raise":
            raise RewardError(f"{agent.name!r} {error if ours else f'raised {said}'}") from error
        # Half a surrogate pair is text to Python, and to nothing that stores or prints it.
        reason = said[:_LONGEST_REASON].encode("utf-8", "replace").decode()
        _logger.warning("Agent %r abstains: it %s", agent.name, reason if ours else f"raised {reason}")
        return Report(rewards=(0.0,) * self._n, status=_status(error), reason=reason)


def _status(error: BaseException) -> Status:
    if isinstance(error, _LateError | TimeoutError):
        return "timeout"
    return "invalid" if isinstance(error, _InvalidReportError | RewardError) else "error"


def _click_through(reward: Any, rewards: tuple[float, ...]) -> tuple[float, ...] | None:
    """Return what a `ClickReward` predicted, from what it made of it."""
    if not isinstance(reward, ClickReward) or not reward.value_per_click:
        return None
    return tuple(amount / reward.value_per_click for amount in rewards)


def _interrupts(outcome: Any) -> bool:
    return isinstance(outcome, _Raised) and isinstance(outcome.error, KeyboardInterrupt)


def _caught(do: Callable[[], Any]) -> Any:
    """Do as `_tried` in a thread of its own, where Ctrl-C is a value, too: its reader raises it."""
    try:
        return _tried(do)
    except KeyboardInterrupt as error:
        return _Raised(error)


def _tried(do: Callable[[], Any]) -> Any:
    """Return what it returns, or `_Raised`."""
    try:
        return do()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - an agent's own code may raise anything, SystemExit too
        return _Raised(error)


async def _attempt(awaitable: Any) -> Any:
    """Do as `_tried`, awaiting; a cancellation of the awaiting task goes through, one that the agent made does not.

    A SystemExit that left a task would stop the loop, so whatever may raise one is awaited in here.
    """
    try:
        return await awaitable if inspect.isawaitable(awaitable) else awaitable
    except KeyboardInterrupt:
        raise
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return _Raised(error)
    except BaseException as error:  # noqa: BLE001 - an agent's own code may raise anything, SystemExit too
        return _Raised(error)


def _unwrapped(outcome: Any) -> Any:
    """Return the value, or raise what the agent raised."""
    if isinstance(outcome, _Raised):
        raise outcome.error
    return outcome


def _is_async(agent: Agent) -> bool:
    """Whether a call only starts what is awaited later, in this loop, so that it needs no thread."""
    reward = agent.reward
    if isinstance(reward, Reward):
        return reward.awaits and not isinstance(reward, WebhookReward)  # which has a loop of its own
    verb = getattr(reward, "score", reward)
    if isinstance(verb, RunnableLambda):
        return hasattr(verb, "afunc")
    if isinstance(verb, Runnable):
        return True
    return inspect.iscoroutinefunction(verb) or inspect.iscoroutinefunction(getattr(verb, "__call__", None))  # noqa: B004


def _invoked(reward: Runnable[Any, Any], questions: Sequence[Any], config: RunnableConfig | None) -> list[Any]:
    """Do as `batch`, whose own threads would hold up the interpreter's exit where a question hangs."""

    def ask(question: Any) -> Callable[[], Any]:
        context = copy_context()
        return lambda: context.run(_caught, lambda: reward.invoke(question, config))

    answers = [None] * len(questions)
    most = (config or {}).get("max_concurrency")
    for place, answer in finished([ask(question) for question in questions], timeout=None, most=most):
        answers[place] = _unwrapped(answer)
    return answers


async def _gather(values: Sequence[Any]) -> list[Any]:
    return [_unwrapped(outcome) for outcome in await asyncio.gather(*map(_attempt, values))]


def _described(error: BaseException) -> str:
    """Return an exception's type and text, which are the agent's own and may themselves raise."""
    described = _tried(lambda: f"{type(error).__name__}: {error}".removesuffix(": "))
    return "an exception that cannot be shown" if isinstance(described, _Raised) else str(described)


def _numbers(value: Any, n_replies: int, *, refuse_negative: bool) -> tuple[float, ...]:
    """Return the report as numbers. What is read of it may be the agent's own code, so this runs behind the guard.

    Raises:
        _InvalidReportError: it is no finite number for every reply.
    """
    if isinstance(value, str | bytes | dict) or not isinstance(value, Iterable):
        raise _invalid(f"returned {_type(value)}; score must return one number per reply, as a list")
    values = list(islice(value, n_replies + 1))
    if len(values) != n_replies:
        count = len(values) if len(values) < n_replies else f"more than {n_replies}"
        raise _invalid(f"returned {count} rewards for {n_replies} replies; return one per reply")
    rewards = []
    for j, item in enumerate(values):
        number = item if type(item) is float else _number(item)
        if number is None:
            raise _invalid(f"reported {_type(item)} for candidate {j}; rewards must be numbers, in money")
        if not -_LARGEST <= number <= _LARGEST:  # nan too
            raise _invalid("reported a reward out of range; rewards must be finite, at most 1e100", number, j)
        if refuse_negative and number < 0:
            raise _invalid("reported a reward out of range; payment_rule='proportional' needs rewards >= 0", number, j)
        rewards.append(number)
    return tuple(rewards)


def _invalid(rule: str, number: float | None = None, j: int = 0) -> _InvalidReportError:
    """Return the error of a broken rule; the number, for the developer, replaces what is before the semicolon."""
    _, _, must = rule.partition("; ")
    return _InvalidReportError(rule, f"{rule}." if number is None else f"reported {number} for candidate {j}; {must}.")


def _type(item: Any) -> str:
    return str(type(item).__name__)


def _number(item: Any) -> float | None:
    """Return the number an agent meant, or None: bool, strings, None and complex numbers are not amounts of money."""
    if getattr(item, "shape", None) == () and hasattr(item, "item"):  # a NumPy or torch scalar
        item = item.item()
    if isinstance(item, bool) or not isinstance(item, numbers.Real | Decimal):
        return None
    try:
        return float(item)
    except (OverflowError, ValueError):
        return math.inf
