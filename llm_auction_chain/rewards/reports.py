"""Reports: every agent's reward for every candidate, from callbacks that nobody should trust.

An agent that raises or returns nonsense reports zero for all candidates, pays nothing, and never removes a candidate.
"""

import asyncio
import inspect
import logging
import math
import numbers
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig

from llm_auction_chain.agents import Agent
from llm_auction_chain.errors import RewardError

__all__ = ["OnAgentError", "Report", "acollect", "collect"]

OnAgentError = Literal["abstain", "raise"]
_LARGEST = 1e100
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one agent reported.

    Attributes:
        rewards: (M,), money; all zero unless `status` is `reported`.
        status: `reported`; `error`, the callback raised; `invalid`, it returned something else than numbers.
        reason: why, in at most 200 characters; empty where reported.
    """

    rewards: tuple[float, ...]
    status: Literal["reported", "error", "invalid"] = "reported"
    reason: str = ""


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
        on_agent_error: `abstain` turns a failure into a zero report; `raise` raises it.
        refuse_negative: a negative reward is invalid (the `proportional` rule needs that).
        config: traces Runnable rewards.
        progress: called with the number of agents that have answered.

    Raises:
        RewardError: an agent failed and `on_agent_error` is `raise`.
    """
    if not agents:
        return []

    def ask(agent: Agent) -> Report:
        async def wait(awaitable: Awaitable[Any]) -> Any:
            return await awaitable

        try:
            value = _call(agent, prompt, replies, config)
            if inspect.isawaitable(value):
                value = asyncio.run(wait(value))
        except Exception as error:  # noqa: BLE001 - whatever an agent's own code may raise
            return _failed(agent, error, len(replies), on_agent_error)
        return _checked(agent, value, len(replies), on_agent_error, refuse_negative=refuse_negative)

    with ThreadPoolExecutor(min(32, len(agents)), thread_name_prefix="auction-agent") as pool:
        futures = [pool.submit(copy_context().run, ask, agent) for agent in agents]
        reports = []
        for done, future in enumerate(futures, 1):
            reports.append(future.result())
            if progress:
                progress(done)
    return reports


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
    """Do as `collect`: async callbacks are awaited in this loop, sync ones run in threads."""
    done = 0

    async def ask(agent: Agent) -> Report:
        nonlocal done
        try:
            if _is_async(agent):
                value = await _call(agent, prompt, replies, config)
            else:
                value = await asyncio.to_thread(_call, agent, prompt, replies, config)
                if inspect.isawaitable(value):
                    value = await value
        except Exception as error:  # noqa: BLE001 - whatever an agent's own code may raise
            return _failed(agent, error, len(replies), on_agent_error)
        report = _checked(agent, value, len(replies), on_agent_error, refuse_negative=refuse_negative)
        done += 1
        if progress:
            progress(done)
        return report

    return list(await asyncio.gather(*map(ask, agents)))


def _is_async(agent: Agent) -> bool:
    reward = agent.reward
    verb = getattr(reward, "score", reward)
    return inspect.iscoroutinefunction(verb) or inspect.iscoroutinefunction(getattr(verb, "__call__", None))  # noqa: B004


def _call(
    agent: Agent, prompt: Sequence[BaseMessage], replies: Sequence[AIMessage], config: RunnableConfig | None
) -> Any:
    """Return the agent's scores, or an awaitable of them. Each agent gets copies: what it does to them is its own."""
    own_prompt = [message.model_copy(deep=True) for message in prompt]
    own_replies = [reply.model_copy(deep=True) for reply in replies]
    if callable(score := getattr(agent.reward, "score", None)):
        return score(own_prompt, own_replies)
    if isinstance(agent.reward, Runnable):
        questions = [{"prompt": own_prompt, "reply": reply} for reply in own_replies]
        return agent.reward.batch(questions, config)
    values = [agent.reward(own_prompt, reply) for reply in own_replies]
    if any(map(inspect.isawaitable, values)):
        return _gather(values)
    return values


async def _gather(values: Sequence[Any]) -> list[Any]:
    return list(await asyncio.gather(*values))


def _failed(agent: Agent, error: Exception, n_replies: int, on_agent_error: OnAgentError) -> Report:
    if on_agent_error == "raise":
        raise RewardError(f"{agent.name!r} raised {type(error).__name__}: {error}") from error
    reason = f"{type(error).__name__}: {error}"[:200]
    _logger.warning("Agent %r abstains: its reward raised %s", agent.name, reason)
    return Report(rewards=(0.0,) * n_replies, status="error", reason=reason)


def _checked(
    agent: Agent, value: Any, n_replies: int, on_agent_error: OnAgentError, *, refuse_negative: bool
) -> Report:
    try:
        rewards = _numbers(agent.name, value, n_replies, refuse_negative=refuse_negative)
    except RewardError as error:
        if on_agent_error == "raise":
            raise
        _logger.warning("Agent %r abstains: %s", agent.name, error)
        return Report(rewards=(0.0,) * n_replies, status="invalid", reason=str(error)[:200])
    return Report(rewards=rewards)


def _numbers(name: str, value: Any, n_replies: int, *, refuse_negative: bool) -> tuple[float, ...]:
    if isinstance(value, str | bytes | dict) or not isinstance(value, Iterable):
        raise RewardError(
            f"{name!r} returned {type(value).__name__}; score must return one number per reply, as a list."
        )
    values = list(value)
    if len(values) != n_replies:
        raise RewardError(f"{name!r} returned {len(values)} rewards for {n_replies} replies; return one per reply.")
    rewards = []
    for j, item in enumerate(values):
        number = _number(item)
        if number is None:
            raise RewardError(
                f"{name!r} reported {type(item).__name__} for candidate {j}; rewards must be numbers, in money."
            )
        if not math.isfinite(number) or abs(number) > _LARGEST:
            raise RewardError(f"{name!r} reported {number} for candidate {j}; rewards must be finite, at most 1e100.")
        if refuse_negative and number < 0:
            raise RewardError(
                f"{name!r} reported {number} for candidate {j}; payment_rule='proportional' needs rewards >= 0."
            )
        rewards.append(number)
    return tuple(rewards)


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
