"""The platform's rule of which replies may be returned."""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig

from llm_auction_chain.errors import CandidatesError, ConfigurationError
from llm_auction_chain.validators import refuse
from llm_auction_chain.waiting import BLOCKING, Waiter, run

__all__ = ["CandidateFilter", "as_message"]


class CandidateFilter:
    """Applies the platform's rule to replies. The rule sees no agent and no report, so no report can influence it.

    Args:
        rule: `(prompt, reply) -> bool`, sync or async, or a Runnable over `{"prompt": ..., "reply": ...}`. True: the
            reply may be returned.

    Raises:
        ConfigurationError: the rule cannot be called.

    >>> from llm_auction_chain.waiting import BLOCKING, run
    >>> polite = CandidateFilter(lambda prompt, reply: "darn" not in reply.text)
    >>> run(polite.allowed([], [AIMessage("Hello"), AIMessage("Oh darn")], None, BLOCKING))
    [True, False]
    """

    def __init__(self, rule: Any) -> None:
        if not isinstance(rule, Runnable) and not callable(rule):
            raise refuse("candidate_filter", "a function (prompt, reply) -> bool, or a Runnable", rule)
        self._rule = rule

    async def allowed(
        self, prompt: Sequence[BaseMessage], replies: Sequence[AIMessage], config: RunnableConfig | None, waiter: Waiter
    ) -> list[bool]:
        """Return whether each reply may be returned. A Runnable is traced, with the replies; a function is not.

        Raises:
            CandidatesError: the rule failed; no reply is returned unchecked.
            ConfigurationError: the rule returned something else than True or False, or is async in a sync call.
        """
        try:
            answers = await self._answers(prompt, replies, config, waiter)
        except Exception as error:
            if isinstance(error, TypeError) and "coroutine" in str(error):
                raise ConfigurationError("candidate_filter is async; use ainvoke, abatch, astream or arun.") from error
            raise CandidatesError(
                f"candidate_filter raised {type(error).__name__}: {error}. No reply is returned unchecked.", [error]
            ) from error
        return _checked(answers, len(replies))

    async def _answers(
        self, prompt: Sequence[BaseMessage], replies: Sequence[AIMessage], config: RunnableConfig | None, waiter: Waiter
    ) -> list[Any]:
        rule, most = self._rule, (config or {}).get("max_concurrency")
        if isinstance(rule, Runnable):
            pairs = [{"prompt": list(prompt), "reply": reply} for reply in replies]
            return await waiter.either(lambda: rule.batch(pairs, config), lambda: rule.abatch(pairs, config))
        if _is_async(rule):
            calls = [partial(rule, list(prompt), reply) for reply in replies]
            return await waiter.either(_refuse_coroutine, lambda: waiter.together(calls, most=most))

        async def decide(reply: AIMessage) -> Any:
            return rule(list(prompt), reply)

        decisions = [partial(decide, reply) for reply in replies]
        return await waiter.in_thread(lambda: run(BLOCKING.together(decisions, most=most)))


def as_message(fallback: Any) -> AIMessage:
    """Return the configured fallback as a message, or raise `ConfigurationError`."""
    if isinstance(fallback, AIMessage):
        return fallback
    if isinstance(fallback, str):
        return AIMessage(fallback)
    raise refuse("fallback", "a text or an AIMessage, or None for an error", fallback)


def _is_async(rule: Any) -> bool:
    return inspect.iscoroutinefunction(rule) or inspect.iscoroutinefunction(getattr(rule, "__call__", None))  # noqa: B004


def _refuse_coroutine() -> list[Any]:
    raise TypeError("a coroutine needs an event loop")  # as LangChain does for a Runnable


def _checked(values: Any, n: int) -> list[bool]:
    """Return one decision for each reply, or raise `ConfigurationError`."""
    answers = list(values)
    for answer in answers:
        if not isinstance(answer, bool | np.bool_):
            if inspect.iscoroutine(answer):
                answer.close()
            hint = "Write a rule that awaits with async def."
            raise refuse("The answer of candidate_filter", "True if the reply may be returned, or False", answer, hint)
    if len(answers) != n:
        raise refuse("The batch of candidate_filter", f"{n} answers, one for each reply", len(answers))
    return [bool(answer) for answer in answers]
