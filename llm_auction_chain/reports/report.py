"""Reports: every agent's reward for every candidate, from callbacks that nobody should trust.

An agent that raises, returns nonsense or comes late reports zero for all candidates, pays nothing, and never removes a
candidate. Whatever of its code runs here (the callback, what it returns, its exception's own text) runs behind one
guard, which lets through only Ctrl-C and the cancellation of the auction itself; on copies of its own; and only until
the deadline.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, var_child_runnable_config

from llm_auction_chain.agents import Agent, cap_of
from llm_auction_chain.errors import RewardError
from llm_auction_chain.messages import copies_of
from llm_auction_chain.reports.amounts import InvalidReportError, amounts_of
from llm_auction_chain.reports.ask import Pending, Raised, ask, attempt, leashed, tried, unwrapped
from llm_auction_chain.rewards.base import AskedBy, asked_by
from llm_auction_chain.rewards.click import ClickReward
from llm_auction_chain.rewards.log_ratio import grouped, groups_of_agent, log_ratios_of
from llm_auction_chain.rewards.webhook import WebhookReward
from llm_auction_chain.threads import Later

__all__ = ["OnAgentError", "Report", "Round", "Status", "Terms"]

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
        value_per_click: its bid, money; None where `click_through` is.
    """

    rewards: tuple[float, ...]
    status: Status = "reported"
    reason: str = ""
    click_through: tuple[float, ...] | None = None
    value_per_click: float | None = None


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


class Round:
    """One round of asking: what each agent is given, and what is made of its answer."""

    def __init__(
        self,
        agents: Sequence[Agent],
        prompt: Sequence[BaseMessage],
        replies: Sequence[AIMessage],
        terms: Terms,
        config: RunnableConfig | None,
    ) -> None:
        self._agents, self._terms = agents, terms
        self._prompt, self._replies, self._n = copies_of(prompt), copies_of(replies), len(replies)
        ratios = [log_ratios_of(agent.reward) for agent in agents]
        groups = grouped(
            (ratio for found in ratios for ratio in found), prompt, replies, scorer=terms.scorer, law=terms.law
        )
        self._groups = list(groups.values())
        here = copy_context()
        here.run(asked_by.set, terms.asked_by)
        self.contexts: list[Context] = []
        self._configs: list[RunnableConfig | None] = []
        for found in ratios:
            context, own = here.copy(), _own(config)
            if own is not None:
                context.run(var_child_runnable_config.set, own)
            if found:
                context.run(groups_of_agent.set, {ratio: groups[ratio] for ratio in found})
            self.contexts.append(context)
            self._configs.append(own)

    def stop(self) -> None:
        """Give up what nobody waits for any more."""
        for group in self._groups:
            group.stop()

    def call(self, k: int, *, awaiting: bool = False) -> Callable[[], Any]:
        """Return the call that asks an agent in a thread; `awaiting` leaves what it awaits to `aask`."""

        def answer() -> Any:
            value = self._ask(k, awaiting=awaiting)
            if type(value) is Future and type(self._agents[k].reward) is WebhookReward:
                return Later(value, lambda: context.run(tried, lambda: self._answer(k, value.result())))
            if not inspect.isawaitable(value):
                return self._answer(k, value)
            return Pending(value) if awaiting else self._answer(k, unwrapped(asyncio.run(attempt(value))))

        context = self.contexts[k].copy()
        return lambda: context.run(tried, answer)

    async def aask(self, k: int, awaitable: Any = None) -> Any:
        """Return an agent's report, or `Raised`; the awaitable is what its call in a thread returned."""

        async def answer() -> Any:
            value = self._ask(k, awaiting=True) if awaitable is None else awaitable
            if awaitable is not None or inspect.isawaitable(value):
                # A task of its own: an agent that cancels the task it runs in cancels nobody else's.
                value = unwrapped(await asyncio.create_task(attempt(leashed(value))))
            return self._answer(k, value)

        return await attempt(answer())

    def _answer(self, k: int, value: Any) -> Report:
        """Return the report that a returned value is. It may be the agent's own code, so this runs behind the guard."""
        agent = self._agents[k]
        rewards = amounts_of(value, self._n, refuse_negative=self._terms.refuse_negative and agent.pays)
        clicks, value = _per_click(agent.reward, rewards)
        cap = cap_of(agent, self._terms.report_cap)
        if cap is None or all(-cap <= reward <= cap for reward in rewards):
            return Report(rewards=rewards, click_through=clicks, value_per_click=value)
        return Report(
            rewards=tuple(min(max(reward, -cap), cap) for reward in rewards),
            status="capped",
            reason="reported rewards beyond its cap; they count as the cap",
            click_through=clicks,
            value_per_click=value,
        )

    def _ask(self, k: int, *, awaiting: bool) -> Any:
        """Return the agent's scores, or what they will come from. Its copies are its own, whatever it does to them."""
        prompt, replies = self._prompt(), self._replies()
        return ask(self._agents[k].reward, prompt, replies, self._configs[k], awaiting=awaiting)

    def reports(self, outcomes: Sequence[Report | Raised | None]) -> list[Report]:
        """Return all reports, zero where an agent failed or was late.

        Raises:
            RewardError: one failed and `on_agent_error` is `raise`.
        """
        return [self._report(k, outcome) for k, outcome in enumerate(outcomes)]

    def _report(self, k: int, outcome: Report | Raised | None) -> Report:
        if type(outcome) is Report:
            return outcome
        agent, late = self._agents[k], f"did not report within {self._terms.timeout} s"
        if type(outcome) is Raised:
            error, status, said, detail = (
                outcome.error,
                _STATUS.get(outcome.kind, "error"),
                outcome.said,
                outcome.detail,
            )
        else:
            error, status, said, detail = None, "timeout", late, late
        if self._terms.on_agent_error == "raise":
            raise RewardError(f"{agent.name!r} {detail}") from error
        said = "".join(letter if letter.isprintable() else " " for letter in said)
        # Half a surrogate pair is text to Python, and to nothing that stores or prints it.
        said = said.encode("utf-8", "replace").decode()
        _logger.warning("Agent %r abstains: it %s", agent.name, said[:_LONGEST_REASON])
        reason = said.removeprefix("raised ")[:_LONGEST_REASON]
        return Report(rewards=(0.0,) * self._n, status=status, reason=reason)


_STATUS: Mapping[type[BaseException], Status] = {
    InvalidReportError: "invalid",
    RewardError: "invalid",
    TimeoutError: "timeout",
}


_UNTOLD = ("agents", "idempotency_key")  # of what a call's config chooses


def _own(config: RunnableConfig | None) -> RunnableConfig | None:
    """Return an agent's own copy of the config: it is told no other agent and no key, and what it adds reaches none."""
    if config is None:
        return None
    own = ensure_config(config)
    callbacks = own.get("callbacks")
    own["callbacks"] = callbacks.copy() if isinstance(callbacks, BaseCallbackManager) else list(callbacks or [])
    own["tags"], own["metadata"] = list(own.get("tags") or []), dict(own.get("metadata") or {})
    own["configurable"] = {name: value for name, value in own.get("configurable", {}).items() if name not in _UNTOLD}
    return own


def _per_click(reward: Any, rewards: tuple[float, ...]) -> tuple[tuple[float, ...] | None, float | None]:
    """Return what a `ClickReward` predicted, from what it made of it, and its value of a click."""
    if type(reward) is not ClickReward or not reward.value_per_click:
        return None, None
    value = float(reward.value_per_click)
    return tuple(min(amount / value, 1.0) for amount in rewards), value
