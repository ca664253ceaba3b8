"""Reports: every agent's reward for every candidate, from callbacks that nobody should trust.

An agent that raises or returns nonsense reports zero for all candidates, pays nothing, and never removes a candidate.
Whatever of its code runs here (the callback, what it returns, its exception's own text) runs behind one guard, which
lets through only Ctrl-C and the cancellation of the auction itself.
"""

import asyncio
import inspect
import logging
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextvars import copy_context
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any, Literal, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from llm_auction_chain.agents import Agent
from llm_auction_chain.errors import RewardError

__all__ = ["OnAgentError", "Report", "acollect", "collect"]

OnAgentError = Literal["abstain", "raise"]
_LARGEST = 1e100
_LONGEST_REASON = 200
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one agent reported.

    Attributes:
        rewards: (M,), money; all zero unless `status` is `reported`.
        status: `reported`; `error`, the agent's code raised; `invalid`, it returned something else than numbers.
        reason: why, in at most 200 characters; empty where reported. It is public: the type and text of what the
            agent's own code raised, or which rule its report broke; never a reported number, nor anything of another
            agent.
    """

    rewards: tuple[float, ...]
    status: Literal["reported", "error", "invalid"] = "reported"
    reason: str = ""


class _Raised(NamedTuple):
    """What an agent's code raised, as a value."""

    error: BaseException


class _InvalidReportError(Exception):
    """A report that is none: the rule it breaks, for everybody, and the detail, for the developer."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule = rule


def collect(
    agents: Sequence[Agent],
    prompt: Sequence[BaseMessage],
    replies: Sequence[AIMessage],
    *,
    on_agent_error: OnAgentError = "abstain",
    refuse_negative: bool = False,
    config: RunnableConfig | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Report]:
    """Ask every agent at once, each in a thread of its own, and return one report per agent.

    Args:
        agents: who to ask.
        prompt: the user's messages.
        replies: the candidates.
        on_agent_error: `abstain` turns a failure into a zero report; `raise` raises it, after all have answered.
        refuse_negative: a negative reward is invalid (the `proportional` rule needs that).
        config: traces Runnable rewards.
        progress: called with the number of agents that have answered.

    Raises:
        RewardError: an agent failed and `on_agent_error` is `raise`.
    """
    if not agents:
        return []

    def ask(agent: Agent) -> Any:
        def answer() -> tuple[float, ...]:
            value = _call(agent, prompt, replies, config, awaiting=False)
            if inspect.isawaitable(value):
                value = _unwrapped(asyncio.run(_attempt(value)))
            return _numbers(value, len(replies), refuse_negative=refuse_negative)

        return _tried(answer)

    with ThreadPoolExecutor(min(32, len(agents)), thread_name_prefix="auction-agent") as pool:
        futures = [pool.submit(copy_context().run, ask, agent) for agent in agents]
        for done, _ in enumerate(as_completed(futures), 1):
            if progress:
                progress(done)
    return [
        _report(agent, future.result(), len(replies), on_agent_error)
        for agent, future in zip(agents, futures, strict=True)
    ]


async def acollect(
    agents: Sequence[Agent],
    prompt: Sequence[BaseMessage],
    replies: Sequence[AIMessage],
    *,
    on_agent_error: OnAgentError = "abstain",
    refuse_negative: bool = False,
    config: RunnableConfig | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Report]:
    """Do as `collect`: async callbacks and Runnables are awaited in this loop, sync ones run in threads.

    One thing is out of reach: SystemExit in a task that an async callback or a Runnable starts itself stops the loop.
    """
    done = 0

    async def ask(agent: Agent) -> Any:
        def call() -> Any:
            value = _call(agent, prompt, replies, config, awaiting=True)
            return value if inspect.isawaitable(value) else numbers_of(value)

        def numbers_of(value: Any) -> tuple[float, ...]:
            return _numbers(value, len(replies), refuse_negative=refuse_negative)

        async def answer() -> Any:
            value = call() if _is_async(agent) else _unwrapped(await asyncio.to_thread(_tried, call))
            if not inspect.isawaitable(value):
                return value
            # A task of its own: an agent that cancels the task it runs in cancels nobody else's.
            return numbers_of(_unwrapped(await asyncio.create_task(_attempt(value))))

        nonlocal done
        outcome = await _attempt(answer())
        done += 1
        if progress:
            progress(done)
        return outcome

    outcomes = await asyncio.gather(*map(ask, agents))
    return [
        _report(agent, outcome, len(replies), on_agent_error) for agent, outcome in zip(agents, outcomes, strict=True)
    ]


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
    """Whether a call only starts what is awaited later, so that it needs no thread."""
    reward = agent.reward
    verb = getattr(reward, "score", reward)
    if isinstance(verb, RunnableLambda):
        return hasattr(verb, "afunc")
    if isinstance(verb, Runnable):
        return True
    return inspect.iscoroutinefunction(verb) or inspect.iscoroutinefunction(getattr(verb, "__call__", None))  # noqa: B004


def _call(
    agent: Agent,
    prompt: Sequence[BaseMessage],
    replies: Sequence[AIMessage],
    config: RunnableConfig | None,
    *,
    awaiting: bool,
) -> Any:
    """Return the agent's scores, or an awaitable of them. Each agent gets copies: what it does to them is its own."""
    own_prompt = [message.model_copy(deep=True) for message in prompt]
    own_replies = [reply.model_copy(deep=True) for reply in replies]
    if callable(score := getattr(agent.reward, "score", None)):
        return score(own_prompt, own_replies)
    if isinstance(agent.reward, Runnable):
        questions = [{"prompt": own_prompt, "reply": reply} for reply in own_replies]
        if awaiting and _is_async(agent):
            return agent.reward.abatch(questions, config)
        try:
            return agent.reward.batch(questions, config)
        except (TypeError, NotImplementedError) as error:
            # An async function says so in a TypeError; one of the reward's own is not worth asking twice.
            if isinstance(error, TypeError) and "coroutine" not in str(error):
                raise
            return agent.reward.abatch(questions, config)
    values = [agent.reward(own_prompt, reply) for reply in own_replies]
    if any(map(inspect.isawaitable, values)):
        return _gather(values)
    return values


async def _gather(values: Sequence[Any]) -> list[Any]:
    return [_unwrapped(outcome) for outcome in await asyncio.gather(*map(_attempt, values))]


def _report(agent: Agent, outcome: Any, n_replies: int, on_agent_error: OnAgentError) -> Report:
    if not isinstance(outcome, _Raised):
        return Report(rewards=outcome)
    error = outcome.error
    invalid = isinstance(error, _InvalidReportError)
    if on_agent_error == "raise":
        raise RewardError(f"{agent.name!r} {error if invalid else f'raised {_described(error)}'}") from error
    said = error.rule if isinstance(error, _InvalidReportError) else _described(error)
    # Half a surrogate pair is text to Python, and to nothing that stores or prints it.
    reason = said[:_LONGEST_REASON].encode("utf-8", "replace").decode()
    _logger.warning("Agent %r abstains: it %s", agent.name, reason if invalid else f"raised {reason}")
    return Report(rewards=(0.0,) * n_replies, status="invalid" if invalid else "error", reason=reason)


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
        number = _number(item)
        if number is None:
            raise _invalid(f"reported {_type(item)} for candidate {j}; rewards must be numbers, in money")
        told = f"reported {number} for candidate {j}"
        if not math.isfinite(number) or abs(number) > _LARGEST:
            raise _invalid("reported a reward out of range; rewards must be finite, at most 1e100", told)
        if refuse_negative and number < 0:
            raise _invalid("reported a reward out of range; payment_rule='proportional' needs rewards >= 0", told)
        rewards.append(number)
    return tuple(rewards)


def _invalid(rule: str, told: str = "") -> _InvalidReportError:
    """Return the error of a broken rule; what was told replaces the part before the semicolon for the developer."""
    _, _, must = rule.partition("; ")
    return _InvalidReportError(rule, f"{told}; {must}." if told else f"{rule}.")


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
