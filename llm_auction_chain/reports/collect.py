"""One round of reports: all agents are asked at once, until all have answered or time is up.

An agent that raises, returns something else than numbers or is late reports zero for all candidates, pays nothing, and
never removes a candidate. Each agent gets its own copies of the messages, without the metadata of earlier auctions.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import cached_property, partial
from types import coroutine
from typing import Any, Literal, TypeGuard

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableSequence
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import ensure_config, var_child_runnable_config

from llm_auction_chain.agents import AGENTS_OF_CALL, Agent, RewardLike
from llm_auction_chain.candidates import SequenceScorer
from llm_auction_chain.errors import RewardError
from llm_auction_chain.messages import copies_of, shown_to_agents
from llm_auction_chain.reports.report import InvalidReportError, Report, bounds_of, failed_report, report_of, text_of
from llm_auction_chain.rewards.base import AskedBy, Reward, asked_by
from llm_auction_chain.rewards.log_ratio import groups_by_reward, groups_of_agent, log_ratios_of
from llm_auction_chain.waiting import AWAITING, BLOCKING, Waiter, attempt, outcomes_of, run, running

__all__ = ["OnAgentError", "Terms", "collect"]

OnAgentError = Literal["abstain", "raise"]
_logger = logging.getLogger(__name__)
_COPIES_AT_ONCE = 1 << 10  # replies copied for agents in one turn of an event loop
_HIDDEN = (AGENTS_OF_CALL, "idempotency_key")  # settings of the call that no agent may read
_late_tasks: set["asyncio.Task[Any]"] = set()  # a loop keeps no reference to its tasks


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms on which agents are asked. They are the same for all agents, and depend on no report.

    Attributes:
        timeout: seconds for the whole round; None waits for ever.
        report_cap: money; every reward is cut to within plus and minus this, or the agent's own cap if that is less.
        on_agent_error: `abstain` turns a failure into a zero report; `raise` raises it, after all have answered.
        refuse_negative: a negative reward of an agent that pays is invalid (the `proportional` rule needs that).
        asked_by: the auction, for rewards that send its id to a remote bidder.
        scorer: says how likely replies are, for log-ratios without a scorer of their own.
        law: temperature and truncation that the replies were drawn with.
    """

    timeout: float | None = None
    report_cap: float | None = None
    on_agent_error: OnAgentError = "abstain"
    refuse_negative: bool = False
    asked_by: AskedBy | None = None
    scorer: SequenceScorer | None = None
    law: Mapping[str, Any] | None = None


async def collect(
    agents: Sequence[Agent],
    prompt: Sequence[BaseMessage],
    replies: Sequence[AIMessage],
    terms: Terms | None = None,
    *,
    config: RunnableConfig | None = None,
    progress: Callable[[int], None] | None = None,
    waiter: Waiter,
) -> list[Report]:
    """Ask every agent at once and return their reports, in the agents' order.

    If the caller blocks, each agent is asked in a thread. If it awaits, async callbacks and Runnables are asked in its
    loop: one that blocks instead of awaiting holds up that loop, deadline included.

    Args:
        agents: the agents to ask.
        prompt: the user's messages.
        replies: the candidates.
        terms: deadline, caps and the like; None is `Terms()`.
        config: traces Runnable rewards.
        progress: called with the number of agents that have answered or were late. What it raises ends the round.
        waiter: how the caller waits.

    Raises:
        RewardError: an agent failed and `on_agent_error` is `raise`.
    """
    asking = _Round(agents, prompt, replies, terms or Terms(), config, progress or (lambda _: None))
    try:
        await waiter.either(asking.ask_in_threads, asking.ask_in_loop)
        return asking.reports()
    finally:
        asking.stop()


class _Round:
    """The agents of a round, what each of them is given, and the outcomes so far."""

    def __init__(
        self,
        agents: Sequence[Agent],
        prompt: Sequence[BaseMessage],
        replies: Sequence[AIMessage],
        terms: Terms,
        config: RunnableConfig | None,
        progress: Callable[[int], None],
    ) -> None:
        self._agents, self._terms, self._progress, self._n = agents, terms, progress, len(replies)
        self._outcomes: dict[int, Any] = {}
        ratios = [log_ratios_of(agent.reward) if isinstance(agent.reward, Reward) else [] for agent in agents]
        groups = groups_by_reward(ratios, prompt, replies, scorer=terms.scorer, law=terms.law) if any(ratios) else {}
        self._copies = copies_of([*map(shown_to_agents, prompt)], [*map(shown_to_agents, replies)])
        self._groups = list(groups.values())
        here = copy_context()
        here.run(asked_by.set, terms.asked_by)
        self._contexts = [here.copy() for _ in agents]
        shared = None if config is None else ensure_config(config)
        self._configs = [_own(shared) for _ in agents]
        for context, own_config, own_ratios in zip(self._contexts, self._configs, ratios, strict=True):
            if own_config is not None:
                context.run(var_child_runnable_config.set, own_config)
            if own_ratios:
                context.run(groups_of_agent.set, {ratio: groups[ratio] for ratio in own_ratios})

    @cached_property
    def _shown(self) -> tuple[list[BaseMessage], list[AIMessage]]:
        """The copies that all rewards share which only read them: a copy for each takes longer than a request."""
        return self._copies()

    def ask_in_threads(self) -> None:
        """Ask every agent in a thread."""
        calls = [partial(self._outcome_in_thread, k) for k in range(len(self._agents))]
        for k, outcome in outcomes_of(calls, self._terms.timeout):
            self._note(k, outcome)

    async def ask_in_loop(self) -> None:
        """Ask async agents in the running loop, and the others in threads."""
        in_loop = [k for k, agent in enumerate(self._agents) if awaits(agent.reward)]
        threaded = sorted(set(range(len(self._agents))).difference(in_loop))
        calls = [partial(self._outcome_in_thread, k) for k in threaded]
        arrived: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        tasks: list[asyncio.Task[Any]] = []
        deadline = asyncio.timeout(self._terms.timeout)
        try:
            async with running(calls, lambda place, outcome: arrived.put_nowait((threaded[place], outcome))), deadline:
                for place, k in enumerate(in_loop, 1):
                    tasks.append(self._begin(k, arrived))
                    if place % max(1, _COPIES_AT_ONCE // max(1, self._n)) == 0:
                        await asyncio.sleep(0)  # gives other tasks of this loop a turn
                for _ in self._agents:
                    self._note(*await arrived.get())
        except TimeoutError:
            if not deadline.expired():
                raise
            while not arrived.empty():  # those that have just arrived, before the others are cancelled
                self._note(*arrived.get_nowait())
        finally:
            late = [task for task in tasks if not task.done()]
            for task in late:
                _late_tasks.add(task)
                task.add_done_callback(_late_tasks.discard)
                task.cancel()
            for _ in range(2 * bool(late)):  # they, and then their own tasks
                await asyncio.sleep(0)  # clean up before the caller may close this loop

    def stop(self) -> None:
        """Let scorers give up, because nothing waits for them any more."""
        for group in self._groups:
            group.stop()

    def reports(self) -> list[Report]:
        """Return all reports: zero for agents that failed, and for those that are late by now."""
        if len(self._outcomes) < len(self._agents):
            self._progress(len(self._agents))
        return [self._report(k) for k in range(len(self._agents))]

    def _outcome_in_thread(self, k: int) -> Any:
        """Return (report, None), (None, error), or the future of a reward's amounts, for which no thread waits."""

        def answer() -> Any:
            reward = self._agents[k].reward
            if _starts(reward) and (amounts := reward.start(*self._shown)) is not None:
                return amounts
            return self._read(k, run(ask(reward, *self._copies(), self._configs[k], BLOCKING)))

        value, error = self._contexts[k].run(attempt, answer)
        return value if isinstance(value, Future) else (value, error)

    def _begin(self, k: int, arrived: "asyncio.Queue[tuple[int, Any]]") -> "asyncio.Task[Any]":
        """Ask an agent in a task of the running loop."""

        async def answer() -> Report:
            reward, config = self._agents[k].reward, self._configs[k]
            return self._read(k, await ask(reward, *self._copies(), config, AWAITING))

        def deliver(task: "asyncio.Task[Any]") -> None:
            # Not every cancellation is ours: an agent's own code may raise CancelledError.
            arrived.put_nowait((k, (None, asyncio.CancelledError()) if task.cancelled() else task.result()))

        task = asyncio.create_task(attempt_awaiting(answer()), context=self._contexts[k])
        task.add_done_callback(deliver)
        return task

    def _read(self, k: int, value: Any) -> Report:
        agent = self._agents[k]
        refuse_negative = self._terms.refuse_negative and agent.pays
        bounds = bounds_of(agent, self._terms.report_cap)
        return report_of(value, self._n, reward=agent.reward, bounds=bounds, refuse_negative=refuse_negative)

    def _note(self, k: int, outcome: Any) -> None:
        if isinstance(outcome, Future):
            future = outcome
            outcome = attempt(lambda: self._read(k, future.result()))
        self._outcomes[k] = outcome
        self._progress(len(self._outcomes))

    def _report(self, k: int) -> Report:
        report: Report | None
        report, error = self._outcomes.get(k, (None, None))
        if report is not None:
            return report
        name = self._agents[k].name
        if error is None:
            text = f"did not report within {self._terms.timeout} s"
            report = Report(rewards=(0.0,) * self._n, status="timeout", reason=text)
        else:
            text = str(error) if isinstance(error, InvalidReportError) else f"raised {text_of(error)}"
            report = failed_report(error, self._n, self._agents[k].reward)
        if self._terms.on_agent_error == "raise":
            raise RewardError(f"{name!r} {text}") from error
        _logger.warning("Agent %r abstains (%s): %s", name, report.status, report.reason)
        return report


def _own(config: RunnableConfig | None) -> RunnableConfig | None:
    """Return an agent's own copy of a complete config. It names no other agent, and changes to it reach none."""
    if config is None:
        return None
    own = config.copy()
    callbacks = own.get("callbacks")
    own["callbacks"] = callbacks.copy() if isinstance(callbacks, BaseCallbackManager) else list(callbacks or [])
    own["tags"] = list(own.get("tags") or [])
    own["configurable"] = _without_hidden(own.get("configurable"))
    own["metadata"] = _without_hidden(own.get("metadata"))  # LangChain copies texts and numbers from there
    return own


def _without_hidden(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (settings or {}).items() if name not in _HIDDEN}


async def ask(
    reward: RewardLike,
    prompt: list[BaseMessage],
    replies: list[AIMessage],
    config: RunnableConfig | None,
    waiter: Waiter,
) -> Any:
    """Return what a reward says of the replies.

    Args:
        reward: of any kind that an agent may have.
        prompt: the agent's own copies.
        replies: the agent's own copies of the candidates.
        config: traces a Runnable.
        waiter: how the caller waits. A caller that blocks awaits an async reward in a new event loop.
    """
    if isinstance(reward, Reward):
        value: Any = await waiter.either(lambda: reward.score(prompt, replies), lambda: reward.ascore(prompt, replies))
    elif callable(score := getattr(reward, "score", None)):
        value = score(prompt, replies)
    elif isinstance(reward, Runnable):
        questions = [{"prompt": prompt, "reply": reply} for reply in replies]
        return await waiter.either(
            lambda: _batch(reward, questions, config), lambda: reward.abatch(list(questions), config)
        )
    else:
        values = [reward(prompt, reply) for reply in replies]  # type: ignore[operator]
        # Few values are not floats, and `isawaitable` is slow.
        awaited = any(inspect.isawaitable(value) for value in values if type(value) is not float)
        value = _gather(values) if awaited else values
    if inspect.isawaitable(value):
        value = await waiter.either(lambda: asyncio.run(_await(value)), lambda: value)
    return value


def awaits(reward: RewardLike) -> bool:
    """Whether all of a reward's work can be awaited in the caller's loop, so that it needs no thread."""
    if isinstance(reward, Reward):
        # Work that `start` begins elsewhere needs neither a thread to wait in nor a turn of the loop.
        return reward.awaits and not _starts(reward)
    verb = getattr(reward, "score", reward)
    if isinstance(verb, Runnable):
        return _is_async(verb)
    return inspect.iscoroutinefunction(verb) or inspect.iscoroutinefunction(getattr(verb, "__call__", None))  # noqa: B004


def _starts(reward: RewardLike) -> TypeGuard[Reward]:
    return isinstance(reward, Reward) and type(reward).start is not Reward.start


async def attempt_awaiting(value: Any) -> tuple[Any, BaseException | None]:
    """Do as `waiting.attempt` does with a value that may have to be awaited. Ctrl-C and cancellation go through.

    A SystemExit must not leave a task: it would stop the loop.
    """
    try:
        return (await value if inspect.isawaitable(value) else value), None
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise
    except BaseException as error:  # noqa: BLE001 - an agent's code may raise anything
        return None, error


def _is_async(runnable: Runnable[Any, Any]) -> bool:
    """Whether a Runnable awaits all of its work. LangChain's default thread would delay an exit if it hangs."""
    if isinstance(runnable, RunnableLambda):
        return hasattr(runnable, "afunc")
    if isinstance(runnable, RunnableSequence):
        return all(map(_is_async, runnable.steps))
    if isinstance(runnable, RunnableBindingBase):
        return _is_async(runnable.bound)
    return type(runnable).ainvoke is not Runnable.ainvoke


def _batch(reward: Runnable[Any, Any], questions: Sequence[Any], config: RunnableConfig | None) -> list[Any]:
    """Do as `reward.batch`, in threads that delay no exit."""

    async def invoke(question: Any) -> Any:
        return reward.invoke(question, config)

    calls = [partial(invoke, question) for question in questions]
    try:
        return run(BLOCKING.together(calls, most=(config or {}).get("max_concurrency")))
    except (TypeError, NotImplementedError) as error:
        # LangChain raises a TypeError for an async function. Another TypeError is the reward's own.
        if isinstance(error, TypeError) and "coroutine" not in str(error):
            raise
        return asyncio.run(reward.abatch(list(questions), config))


async def _gather(values: Sequence[Any]) -> list[Any]:
    """Return the values, awaited side by side, each in a context of its own.

    A task costs more than most callbacks do. So values are awaited one after the other as long as they are ready; where
    one has to wait, all others begin beside it.
    """
    left, results, tasks = iter(values), [], list[asyncio.Task[Any]]()
    try:
        for value in left:
            awaited, context = value if inspect.iscoroutine(value) else _await(value), copy_context()
            try:
                waited_for = context.run(awaited.send, None)
            except StopIteration as finished:
                results.append(finished.value)
            else:
                tasks += map(_task_of, left)
                results.append(await _resumed(awaited, context, waited_for))
        for result, error in await asyncio.gather(*tasks):
            if error is not None:
                raise error
            results.append(result)
    finally:
        for task in tasks:
            task.cancel()
        for value in left:
            _close(value)
    return results


def _task_of(value: Any) -> "asyncio.Task[Any]":
    task = asyncio.create_task(attempt_awaiting(value))
    task.add_done_callback(partial(_close, value))
    return task


@coroutine
def _resumed(awaited: Coroutine[Any, Any, Any], context: Context, waited_for: Any) -> Generator[Any, Any, Any]:
    """Return the value of a coroutine that waits for something, and runs on in its context."""
    while True:
        try:
            resume: Callable[[], Any] = partial(awaited.send, (yield waited_for))
        except BaseException as error:  # noqa: BLE001 - it is the coroutine's
            resume = partial(awaited.throw, error)
        try:
            waited_for = context.run(resume)
        except StopIteration as finished:
            return finished.value


def _close(value: Any, _: object = None) -> None:
    """Close a coroutine, which may not have begun."""
    if inspect.iscoroutine(value):
        value.close()


async def _await(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
