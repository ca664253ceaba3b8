"""One auction from admission to charge: the only module that knows all parts."""

import math
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any, TypeVar

from langchain_core.runnables.config import set_config_context

from llm_auction_chain.auction import events
from llm_auction_chain.auction.admission import Admitted, Call, LeftOut, admit, open_tab
from llm_auction_chain.auction.billing import Tab
from llm_auction_chain.auction.result import AuctionResult, settle_auction
from llm_auction_chain.auction.settings import AuctionSettings
from llm_auction_chain.candidates import (
    CandidateFilter,
    Drawn,
    Plan,
    ProposalInputs,
    Source,
    as_message,
    draw,
    make_plan,
)
from llm_auction_chain.descriptions import descriptions_of, keywords_of
from llm_auction_chain.messages import calls_of
from llm_auction_chain.receipts import GENERATOR, MECHANISM, Opening, open_auction
from llm_auction_chain.reports import Report, Terms, cap_of, collect
from llm_auction_chain.rewards import AskedBy, Reward, log_ratios_of
from llm_auction_chain.waiting import Waiter

__all__ = ["hold_auction"]

_T = TypeVar("_T")
_LIBRARY = version("llm-auction-chain")  # reads a file, which no event loop should wait for
_BYPASSED = "the model calls tools, so no agent bids"
_MANY_REWARDS = 1 << 15  # settling more takes longer than an event loop should be held up
_PER_AGENT = 64  # what an agent costs beside its rewards, counted in rewards
_MANY_CANDIDATES = 512  # committing to more takes longer than an event loop should be held up


async def hold_auction(settings: AuctionSettings, call: Call, waiter: Waiter) -> AuctionResult:
    """Hold one auction.

    The reply is drawn from `p = softmax(log_weights + sum_i rewards_i / tau)`, which converges to the distribution
    proportional to `pi_ref * exp(sum_i r_i / tau)` as the number of candidates grows.

    Args:
        settings: of the auction.
        call: the prompt, the agents and all else that this call carries.
        waiter: how the caller waits.

    Raises:
        PromptError: the prompt is empty.
        ConfigurationError: the agents cannot meet in one auction, or the seed is not one.
        CandidatesError: too few replies could be drawn.
        RewardError: an agent failed and `on_agent_error` is `raise`.
        LedgerError: the ledger failed and `billing.on_error` is `raise`.

    Source: arXiv 2405.05905, algorithm 1.
    """
    steps = _Steps(settings, call, waiter)
    async with open_tab(settings, call, waiter) as tab:
        admitted = admit(settings, call, tab)
        await steps.notify(events.started, admitted)

        plan = steps.plan(admitted)
        drawn = await steps.draw(plan)
        admitted = await steps.bypass_if_tools_are_called(admitted, drawn, tab)
        opening = await steps.commit(admitted, drawn)
        await steps.notify(events.candidates, admitted.auction_id, drawn, opening.commitment)

        reports = await steps.ask(admitted, plan, drawn, opening)
        await steps.notify(events.scored, admitted.auction_id, reports)

        result = await steps.settle(admitted, plan, drawn, opening, reports)
        charge = await tab.charge(result)
        if charge is None and tab.failure is not admitted.failure:
            result = await steps.settle_without_sponsors(admitted, plan, drawn, reports, tab)
        if charge is not None:
            result = result.charged(charge)
        await steps.notify(events.settled, result)
    return result


@dataclass(frozen=True)
class _Steps:
    """The steps of one auction, each from what the steps before it returned."""

    settings: AuctionSettings
    call: Call
    waiter: Waiter

    async def notify(self, event: Callable[..., events.AuctionEvent], *facts: Any) -> None:
        """Make an event of the facts and pass it on, where something listens."""
        if self.call.notify is not None:
            await self.call.notify(event(*facts))

    def plan(self, admitted: Admitted) -> Plan:
        """Return what to draw, decided from the prompt, public descriptions, tau and a seed."""
        call, sampling, policy = self.call, self.settings.sampling, self.settings.policy
        keywords = [keywords_of(agent.context, agent.keywords) for agent in admitted.agents]
        ratios = [isinstance(agent.reward, Reward) and bool(log_ratios_of(agent.reward)) for agent in admitted.agents]
        caps = [cap_of(agent, self.settings.report_cap) for agent in admitted.agents]
        kwargs = dict(call.model_kwargs)
        return make_plan(
            Source(self.settings.model, call.config, native_n=sampling.native_n, traced=call.traced, kwargs=kwargs),
            scorer=sampling.scorer,
            proposal=self.settings.proposal,
            inputs=ProposalInputs(
                prompt=tuple(admitted.prompt),
                descriptions=tuple(descriptions_of(agent.context for agent in admitted.agents)),
                keywords=tuple(sorted({own for own in keywords if own.words})),
                tau=self.settings.tau,
                seed=admitted.seed_of_candidates,
                span=sum(math.inf if cap is None else 2 * float(cap) for cap in caps) / self.settings.tau,
                log_ratios="all" if all(ratios) and ratios else "some" if any(ratios) else "none",
            ),
            size=admitted.size,
            candidate_filter=None if policy.candidate_filter is None else CandidateFilter(policy.candidate_filter),
            fallback=None if policy.fallback is None else as_message(policy.fallback),
        )

    async def draw(self, plan: Plan) -> Drawn:
        """Draw the candidates and weigh them."""
        progress = events.Progress.of_candidates(self.call.progress, plan.size.n) if self.call.progress else None
        return await self._within(draw(plan, self.waiter, config=self.call.config, progress=progress))

    async def bypass_if_tools_are_called(self, admitted: Admitted, drawn: Drawn, tab: Tab) -> Admitted:
        """Return the auction without agents where a candidate calls tools that the model did not show beforehand.

        This is decided from the candidates alone, before agents are asked, so the reply follows the reference model.
        """
        has_calls = any(map(calls_of, [one.message for one in drawn.candidates]))
        if has_calls and self.settings.on_tool_calls == "bypass":
            admitted = replace(admitted, agents=(), left_out=(), bypassed=True)
        if admitted.bypassed:
            await tab.give_up(_BYPASSED)
        return admitted

    async def commit(self, admitted: Admitted, drawn: Drawn) -> Opening:
        """Commit to everything that the reply depends on except the reports, before agents are asked."""
        terms = {
            "library": _LIBRARY,
            "mechanism": MECHANISM,
            "time": admitted.time,
            "model": admitted.model,
            "contexts": drawn.contexts,
            "currency": admitted.currency,
            "tau": float(self.settings.tau),
            "payment_rule": self.settings.payment_rule,
            "generator": GENERATOR,
        }
        commit = partial(
            open_auction,
            auction_id=admitted.auction_id,
            salt=admitted.salt,
            prompt=admitted.prompt,
            terms=terms,
            seed=admitted.seed,
            draw_seed=admitted.seed_of_draw,
            candidates=drawn.candidates,
            agents=admitted.agents,
            components=drawn.components,
            left_out=[out.as_dict() for out in admitted.left_out],
            report_cap=self.settings.report_cap,
            bypassed=admitted.bypassed,
        )
        return await self._compute(commit, long=len(drawn.candidates) >= _MANY_CANDIDATES)

    async def ask(self, admitted: Admitted, plan: Plan, drawn: Drawn, opening: Opening) -> Sequence[Report]:
        """Ask every agent what each candidate is worth to it."""
        settings, call = self.settings, self.call
        terms = Terms(
            timeout=settings.reward_timeout,
            report_cap=settings.report_cap,
            on_agent_error=settings.on_agent_error,
            refuse_negative=settings.payment_rule == "proportional",
            asked_by=AskedBy(auction_id=admitted.auction_id, currency=admitted.currency, commitment=opening.commitment),
            scorer=plan.scorer,
            law=plan.source.law if plan.scorer is plan.source.scorer else None,
        )
        progress = events.Progress.of_rewards(call.progress, len(admitted.agents)) if call.progress else None
        return await self._within(
            collect(
                admitted.agents,
                admitted.prompt,
                [drawn.candidates[j].message for j in drawn.possible],
                terms,
                config=call.config,
                progress=progress,
                waiter=self.waiter,
            )
        )

    async def settle(
        self, admitted: Admitted, plan: Plan, drawn: Drawn, opening: Opening, reports: Sequence[Report]
    ) -> AuctionResult:
        """Draw the reply and compute what every owner owes."""
        rewards = len(admitted.agents) * max(_PER_AGENT, len(drawn.candidates))
        settle = partial(settle_auction, self.settings, admitted, plan, drawn, opening, reports)
        return await self._compute(settle, long=rewards >= _MANY_REWARDS)

    async def settle_without_sponsors(
        self, admitted: Admitted, plan: Plan, drawn: Drawn, reports: Sequence[Report], tab: Tab
    ) -> AuctionResult:
        """Return the result without the agents that pay, because the ledger could not charge them."""
        stay = [k for k, agent in enumerate(admitted.agents) if not agent.pays]
        uncharged = (LeftOut(agent=agent, reason="ledger") for agent in admitted.agents if agent.pays)
        alone = replace(
            admitted,
            agents=tuple(admitted.agents[k] for k in stay),
            left_out=(*admitted.left_out, *uncharged),
            failure=tab.failure,
        )
        opening = await self.commit(alone, drawn)
        return await self.settle(alone, plan, drawn, opening, [reports[k] for k in stay])

    async def _within(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Await work in a context where models, scorers and agents find the parent run and its tags."""
        return await self.waiter.within(self._context.copy(), work)

    @cached_property
    def _context(self) -> Context:
        with set_config_context(self.call.config) as context:
            return context.copy()

    async def _compute(self, work: Callable[[], _T], *, long: bool) -> _T:
        """Return the result of a computation; a long one does not hold up an event loop."""
        return await self.waiter.in_thread(work) if long else work()
