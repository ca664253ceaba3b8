"""The platform's rule of which replies may be returned."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from llm_auction_chain.errors import CandidatesError, ConfigurationError
from llm_auction_chain.validators import refuse
from llm_auction_chain.waiting import Waiter

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
        self._runnable: Runnable[Any, Any] = rule if isinstance(rule, Runnable) else _lambda(rule)

    async def allowed(
        self, prompt: Sequence[BaseMessage], replies: Sequence[AIMessage], config: RunnableConfig | None, waiter: Waiter
    ) -> list[bool]:
        """Return whether each reply may be returned.

        Raises:
            CandidatesError: the rule failed; no reply is returned unchecked.
            ConfigurationError: the rule returned something else than True or False, or is async in a sync call.
        """
        pairs = [{"prompt": list(prompt), "reply": reply} for reply in replies]
        try:
            answers = await waiter.either(
                lambda: self._runnable.batch(pairs, config), lambda: self._runnable.abatch(pairs, config)
            )
        except Exception as error:
            if isinstance(error, TypeError) and "coroutine" in str(error):
                raise ConfigurationError("candidate_filter is async; use ainvoke, abatch, astream or arun.") from error
            raise CandidatesError(
                f"candidate_filter raised {type(error).__name__}: {error}. No reply is returned unchecked.", [error]
            ) from error
        return _checked(answers, len(replies))


def as_message(fallback: Any) -> AIMessage:
    """Return the configured fallback as a message, or raise `ConfigurationError`."""
    if isinstance(fallback, AIMessage):
        return fallback
    if isinstance(fallback, str):
        return AIMessage(fallback)
    raise refuse("fallback", "a text or an AIMessage, or None for an error", fallback)


def _lambda(rule: Any) -> Runnable[Any, Any]:
    """Return the rule as a Runnable, which LangChain calls concurrently and traces."""
    if inspect.iscoroutinefunction(rule) or inspect.iscoroutinefunction(getattr(rule, "__call__", None)):  # noqa: B004

        async def decide(pair: dict[str, Any]) -> Any:
            return await rule(pair["prompt"], pair["reply"])

        return RunnableLambda(decide, name="candidate_filter")
    return RunnableLambda(lambda pair: rule(pair["prompt"], pair["reply"]), name="candidate_filter")


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
