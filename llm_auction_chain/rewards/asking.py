"""Asking one agent, whatever kind of reward it has, behind a guard: what its code raises becomes a value."""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from llm_auction_chain.rewards.base import Reward
from llm_auction_chain.rewards.webhook import WebhookReward
from llm_auction_chain.rewards.workers import finished

__all__ = ["Raised", "ask", "attempt", "caught", "described_as", "interrupts", "is_async", "tried", "unwrapped"]


def ask(
    reward: Any,
    prompt: list[BaseMessage],
    replies: list[AIMessage],
    config: RunnableConfig | None,
    *,
    awaiting: bool,
) -> Any:
    """Return what a reward says of the replies: numbers, an awaitable of them, or a future that another thread sets.

    Args:
        reward: of any kind that an agent may have.
        prompt: the agent's own copies, as are the replies.
        replies: the candidates.
        config: traces a Runnable.
        awaiting: whether an awaitable will be awaited in the loop that this auction runs in.
    """
    if isinstance(reward, WebhookReward):
        return reward.submit(prompt, replies)
    if awaiting and isinstance(reward, Reward) and reward.awaits:
        return reward.ascore(prompt, replies)
    if callable(score := getattr(reward, "score", None)):
        return score(prompt, replies)
    if isinstance(reward, Runnable):
        return _of_runnable(
            reward, [{"prompt": prompt, "reply": reply} for reply in replies], config, awaiting=awaiting
        )
    values = [reward(prompt, reply) for reply in replies]
    strange = [value for value in values if type(value) is not float]  # few, and the question is slow
    return _gather(values) if any(map(inspect.isawaitable, strange)) else values


def _of_runnable(
    reward: Runnable[Any, Any], questions: Sequence[Any], config: RunnableConfig | None, *, awaiting: bool
) -> Any:
    if awaiting and is_async(reward):
        return reward.abatch(list(questions), config)
    try:
        return _invoked(reward, questions, config)
    except (TypeError, NotImplementedError) as error:
        # An async function says so in a TypeError; one of the reward's own is not worth asking twice.
        if isinstance(error, TypeError) and "coroutine" not in str(error):
            raise
        return reward.abatch(list(questions), config)


class Raised(NamedTuple):
    """What an agent's code raised, as a value."""

    error: BaseException


def interrupts(outcome: Any) -> bool:
    """Whether an outcome is Ctrl-C."""
    return isinstance(outcome, Raised) and isinstance(outcome.error, KeyboardInterrupt)


def caught(do: Callable[[], Any]) -> Any:
    """Do as `tried` in a thread of its own, where Ctrl-C is a value, too: its reader raises it."""
    try:
        return tried(do)
    except KeyboardInterrupt as error:
        return Raised(error)


def tried(do: Callable[[], Any]) -> Any:
    """Return what it returns, or `Raised`."""
    try:
        return do()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - an agent's own code may raise anything, SystemExit too
        return Raised(error)


async def attempt(awaitable: Any) -> Any:
    """Do as `tried`, awaiting; a cancellation of the awaiting task goes through, one that the agent made does not.

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
        return Raised(error)
    except BaseException as error:  # noqa: BLE001 - an agent's own code may raise anything, SystemExit too
        return Raised(error)


def unwrapped(outcome: Any) -> Any:
    """Return the value, or raise what the agent raised."""
    if isinstance(outcome, Raised):
        raise outcome.error
    return outcome


def described_as(error: BaseException) -> str:
    """Return an exception's type and text, which are the agent's own and may themselves raise."""
    described = tried(lambda: f"{type(error).__name__}: {error}".removesuffix(": "))
    return "an exception that cannot be shown" if isinstance(described, Raised) else str(described)


def is_async(reward: Any) -> bool:
    """Whether asking only starts what is awaited later, in this loop, so that it needs no thread."""
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
        return lambda: context.run(caught, lambda: reward.invoke(question, config))

    answers = [None] * len(questions)
    most = (config or {}).get("max_concurrency")
    for place, answer in finished([ask(question) for question in questions], timeout=None, most=most):
        answers[place] = unwrapped(answer)
    return answers


async def _gather(values: Sequence[Any]) -> list[Any]:
    return [unwrapped(outcome) for outcome in await asyncio.gather(*map(attempt, values))]
