"""Asking one agent, whatever kind of reward it has, behind a guard: what its code raises becomes a value."""

import asyncio
import inspect
from collections.abc import Callable, Generator, Sequence
from contextvars import copy_context
from types import coroutine
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableSequence
from langchain_core.runnables.base import RunnableBindingBase

from llm_auction_chain.errors import RewardError
from llm_auction_chain.reports.amounts import InvalidReportError
from llm_auction_chain.rewards.base import Reward
from llm_auction_chain.rewards.webhook import WebhookReward
from llm_auction_chain.threads import finished

__all__ = ["Pending", "Raised", "ask", "attempt", "is_async", "leashed", "raised", "tried", "unwrapped"]


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
    if type(reward) is WebhookReward:
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
    """What an agent's code raised, as a value; what may be said of it was found where it was raised.

    Its text, even its class, may be the agent's own code: nothing of it is looked at outside of the guard.

    Attributes:
        error: for the developer alone.
        kind: the class of ours that it is, or Exception.
        said: its type and text, or the rule that it broke.
        detail: the same for the developer, with the number that was reported.
    """

    error: BaseException
    kind: type[BaseException]
    said: str
    detail: str


class Pending(NamedTuple):
    """What a call in a thread returned to be awaited in the loop."""

    awaitable: Any


def tried(do: Callable[[], Any]) -> Any:
    """Return what it returns, or `Raised`; for a thread of its own, where Ctrl-C is never heard but the agent's."""
    try:
        return do()
    except BaseException as error:  # noqa: BLE001 - an agent's own code may raise anything
        return raised(error)


def raised(error: BaseException) -> Raised:
    """Return an exception as a value. Its text runs here, so it costs the agent's own time."""
    known = (InvalidReportError, RewardError, TimeoutError, KeyboardInterrupt)
    kind = next((kind for kind in known if issubclass(type(error), kind)), Exception)
    if type(error) is InvalidReportError:
        return Raised(error, kind, error.rule, str(error))
    try:
        said = f"{type(error).__name__}: {error}".removesuffix(": ")
    except BaseException:  # noqa: BLE001
        said = "an exception that cannot be shown"
    return Raised(error, kind, f"raised {said}", f"raised {said}")


async def attempt(awaitable: Any) -> Any:
    """Do as `tried`, awaiting in the caller's loop, which hears Ctrl-C; its own cancellation goes through, too.

    A SystemExit that left a task would stop the loop, so whatever may raise one is awaited in here.
    """
    try:
        return await awaitable
    except KeyboardInterrupt:
        raise
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return raised(error)
    except BaseException as error:  # noqa: BLE001 - an agent's own code may raise anything, SystemExit too
        return raised(error)


@coroutine
def leashed(awaitable: Any) -> Generator[Any, Any, Any]:
    """Await it. A first cancellation asks it to end, and it may clean up; a second one ends it.

    So what suppresses its cancellation cannot keep a loop from closing.
    """
    steps = awaitable.__await__()
    asked_to_end: BaseException | None = None
    thrown: BaseException | None = None
    while True:
        try:
            waits_for = steps.throw(thrown) if thrown is not None else next(steps)
        except StopIteration as done:
            return done.value
        thrown = None
        try:
            yield waits_for
        except asyncio.CancelledError as error:
            if asked_to_end is not None:
                steps.close()
                raise
            asked_to_end = thrown = error
        except BaseException as error:  # noqa: BLE001 - whatever the loop says is for the awaitable to hear
            thrown = error


def unwrapped(outcome: Any) -> Any:
    """Return the value, or raise what was raised."""
    if type(outcome) is Raised:
        raise outcome.error
    return outcome


def is_async(reward: Any) -> bool:
    """Whether asking only starts what is awaited later, in this loop, so that it needs no thread."""
    if isinstance(reward, Reward):
        return type(reward) is not WebhookReward and reward.awaits  # the webhooks' loop is their own
    verb = getattr(reward, "score", reward)
    if isinstance(verb, Runnable):
        return _awaits(verb)
    return inspect.iscoroutinefunction(verb) or inspect.iscoroutinefunction(getattr(verb, "__call__", None))  # noqa: B004


def _awaits(runnable: Runnable[Any, Any]) -> bool:
    """Whether all of it can be awaited: LangChain's own threads, which it gets else, delay an exit where it hangs."""
    if isinstance(runnable, RunnableLambda):
        return hasattr(runnable, "afunc")
    if isinstance(runnable, RunnableSequence):
        return all(map(_awaits, runnable.steps))
    if isinstance(runnable, RunnableBindingBase):
        return _awaits(runnable.bound)
    return type(runnable).ainvoke is not Runnable.ainvoke


def _invoked(reward: Runnable[Any, Any], questions: Sequence[Any], config: RunnableConfig | None) -> list[Any]:
    """Do as `batch`, whose own threads would hold up the interpreter's exit where a question hangs."""

    def ask(question: Any) -> Callable[[], Any]:
        context = copy_context()
        return lambda: context.run(tried, lambda: reward.invoke(question, config))

    answers = [None] * len(questions)
    most = (config or {}).get("max_concurrency")
    for place, answer in finished([ask(question) for question in questions], timeout=None, most=most):
        answers[place] = unwrapped(answer)
    return answers


async def _gather(values: Sequence[Any]) -> list[Any]:
    return [unwrapped(outcome) for outcome in await asyncio.gather(*map(_value, values))]


async def _value(value: Any) -> Any:
    return await attempt(leashed(value)) if inspect.isawaitable(value) else value
