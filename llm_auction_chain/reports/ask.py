"""Asking one agent, whatever kind of reward it has."""

import asyncio
import inspect
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableSequence
from langchain_core.runnables.base import RunnableBindingBase

from llm_auction_chain.agents import RewardLike
from llm_auction_chain.rewards.base import Reward
from llm_auction_chain.waiting import BLOCKING, Waiter, run

__all__ = ["ask", "attempt_awaiting", "awaits"]


async def ask(
    reward: RewardLike,
    prompt: list[BaseMessage],
    replies: list[AIMessage],
    config: RunnableConfig | None,
    waiter: Waiter,
) -> Any:
    """Return what a reward says of the replies, or the future of it if the caller blocks and the work is elsewhere.

    Args:
        reward: of any kind that an agent may have.
        prompt: the agent's own copies.
        replies: the agent's own copies of the candidates.
        config: traces a Runnable.
        waiter: how the caller waits. A caller that blocks awaits an async reward in a new event loop.
    """
    if isinstance(reward, Reward):
        value: Any = await waiter.either(
            lambda: reward.start(prompt, replies) or reward.score(prompt, replies),
            lambda: reward.ascore(prompt, replies),
        )
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
        return reward.awaits and type(reward).start is Reward.start
    verb = getattr(reward, "score", reward)
    if isinstance(verb, Runnable):
        return _is_async(verb)
    return inspect.iscoroutinefunction(verb) or inspect.iscoroutinefunction(getattr(verb, "__call__", None))  # noqa: B004


async def attempt_awaiting(awaitable: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """Do as `threads.attempt` does. Ctrl-C and cancellation go through.

    A SystemExit must not leave a task: it would stop the loop.
    """
    try:
        return await awaitable, None
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
    outcomes = await asyncio.gather(*(attempt_awaiting(_await(value)) for value in values))
    for _, error in outcomes:
        if error is not None:
            raise error
    return [value for value, _ in outcomes]


async def _await(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
