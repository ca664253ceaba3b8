"""One auction from admission to charge: the only module that knows all parts."""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import set_config_context

from llm_auction_chain.agents import cap_of
from llm_auction_chain.auction import events
from llm_auction_chain.auction.admission import (
    Admitted,
    Call,
    LeftOut,
    admit,
    check_prompt,
    one_currency,
)
from llm_auction_chain.auction.billing import Tab, most_owed
from llm_auction_chain.auction.outcome import settle_auction
from llm_auction_chain.auction.result import AuctionResult
from llm_auction_chain.auction.settings import AuctionSettings, size_of
from llm_auction_chain.candidates import CandidateFilter, Drawn, Plan, Size, Source, as_message, draw, make_plan
from llm_auction_chain.receipts import GENERATOR, MECHANISM, Opening, open_auction
from llm_auction_chain.reports import Report, Terms, collect
from llm_auction_chain.rewards import AskedBy, Reward, log_ratios_of
from llm_auction_chain.waiting import Waiter

__all__ = ["hold_auction"]

_T = TypeVar("_T")
_LIBRARY = version("llm-auction-chain")  # reads a file, which no event loop should wait for
_BYPASSED = "the model calls tools, so no agent bids"
_ONE = Size(n=1, most=1, min_ess=0.0, fewest=1)  # without agents, one has the distribution of the reference model
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
    check_prompt(call.prompt)
    async with _open_tab(settings, call, waiter) as tab:
        admitted = admit(settings, call, tab)
        size = size_of(settings) if admitted.agents or settings.policy.candidate_filter else _ONE
        await call.notify(_started(admitted, size))

        plan = _plan(settings, call, admitted, size)
        drawn = await _draw(plan, call, waiter)
        admitted = await _without_agents_if_tools_are_called(settings, admitted, drawn, tab)
        opening = await _commit(settings, admitted, plan, drawn, waiter)
        await call.notify(events.candidates(admitted.auction_id, drawn, opening.commitment))

        reports = await _ask(settings, call, admitted, plan, drawn, opening, waiter)
        await call.notify(events.scored(admitted.auction_id, reports))

        result = await _settle(settings, admitted, plan, drawn, opening, reports, waiter)
        charge = await tab.charge(result)
        if charge is None and tab.failure is not admitted.failure:
            result = await _settle_without_sponsors(settings, admitted, plan, drawn, reports, tab, waiter)
        result = result.charged(charge)
        await call.notify(_settled(result))
    return result


def _open_tab(settings: AuctionSettings, call: Call, waiter: Waiter) -> Tab:
    """Return the auction's bookings, which begin with a hold of the most that every owner may owe."""
    billing = settings.billing
    negative = settings.payment_rule != "proportional"
    return Tab(
        billing.ledger,
        call.auction_id,
        {} if billing.ledger is None else most_owed(call.agents, settings.report_cap, negative=negative),
        waiter,
        currency=one_currency(billing.currency, call.agents),
        on_error=billing.on_error,
    )


def _plan(settings: AuctionSettings, call: Call, admitted: Admitted, size: Size) -> Plan:
    """Return what to draw, decided from the prompt, public descriptions, tau and a seed."""
    sampling, policy = settings.sampling, settings.policy
    return make_plan(
        Source(
            settings.model,
            call.config,
            native_n=sampling.native_n,
            traced=call.traced,
            kwargs=dict(call.model_kwargs),
        ),
        scorer=sampling.scorer,
        proposal=settings.proposal,
        prompt=admitted.prompt,
        contexts=[agent.context for agent in admitted.agents],
        tau=settings.tau,
        size=size,
        seed=admitted.seed_of_candidates,
        tokens=any(isinstance(one.reward, Reward) and bool(log_ratios_of(one.reward)) for one in admitted.agents),
        candidate_filter=None if policy.candidate_filter is None else CandidateFilter(policy.candidate_filter),
        fallback=None if policy.fallback is None else as_message(policy.fallback),
    )


async def _draw(plan: Plan, call: Call, waiter: Waiter) -> Drawn:
    """Draw the candidates and weigh them."""
    progress = events.Progress.of_candidates(call.progress) if call.progress else None
    return await _within(call.config, draw(plan, waiter, config=call.config, progress=progress), waiter)


async def _without_agents_if_tools_are_called(
    settings: AuctionSettings, admitted: Admitted, drawn: Drawn, tab: Tab
) -> Admitted:
    """Return the auction without agents where a candidate calls tools that the model hid before it drew.

    This is decided from the candidates alone, before agents are asked, so the reply follows the reference model.
    """
    has_calls = any(one.message.tool_calls or one.message.invalid_tool_calls for one in drawn.candidates)
    if has_calls and settings.on_tool_calls == "bypass":
        admitted = replace(admitted, agents=(), left_out=(), bypassed=True)
    if admitted.bypassed:
        await tab.give_up(_BYPASSED)
    return admitted


async def _commit(settings: AuctionSettings, admitted: Admitted, plan: Plan, drawn: Drawn, waiter: Waiter) -> Opening:
    """Commit to everything that the reply depends on except the reports, before agents are asked."""
    terms = {
        "library": _LIBRARY,
        "mechanism": MECHANISM,
        "time": admitted.time,
        "model": admitted.model,
        "contexts": plan.contexts,
        "currency": admitted.currency,
        "tau": float(settings.tau),
        "payment_rule": settings.payment_rule,
        "generator": GENERATOR,
    }

    def commit() -> Opening:
        return open_auction(
            auction_id=admitted.auction_id,
            salt=admitted.salt,
            prompt=admitted.prompt,
            terms=terms,
            seed=admitted.seed,
            candidates=drawn.candidates,
            agents=admitted.agents,
            components=drawn.components,
            caps=[cap_of(agent, settings.report_cap) for agent in admitted.agents],
            left_out=[out.as_dict() for out in admitted.left_out],
            bypassed=admitted.bypassed,
        )

    return await _compute(commit, waiter, long=len(drawn.candidates) >= _MANY_CANDIDATES)


async def _ask(
    settings: AuctionSettings,
    call: Call,
    admitted: Admitted,
    plan: Plan,
    drawn: Drawn,
    opening: Opening,
    waiter: Waiter,
) -> Sequence[Report]:
    """Ask every agent what each candidate is worth to it."""
    asked_by = AskedBy(auction_id=admitted.auction_id, currency=admitted.currency, commitment=opening.commitment)
    terms = Terms(
        timeout=settings.reward_timeout,
        report_cap=settings.report_cap,
        on_agent_error=settings.on_agent_error,
        refuse_negative=settings.payment_rule == "proportional",
        asked_by=asked_by,
        scorer=plan.scorer,
        law=plan.source.law if plan.scorer is plan.source.scorer else None,
    )
    progress = events.Progress.of_rewards(call.progress, len(admitted.agents)) if call.progress else None
    reports = collect(
        admitted.agents,
        admitted.prompt,
        drawn.possible_replies,
        terms,
        config=call.config,
        progress=progress,
        waiter=waiter,
    )
    return await _within(call.config, reports, waiter)


async def _settle(
    settings: AuctionSettings,
    admitted: Admitted,
    plan: Plan,
    drawn: Drawn,
    opening: Opening,
    reports: Sequence[Report],
    waiter: Waiter,
) -> AuctionResult:
    """Draw the reply and compute what every owner owes."""

    def settle() -> AuctionResult:
        return settle_auction(settings, admitted, plan, drawn, opening, reports)

    rewards = len(admitted.agents) * max(_PER_AGENT, len(drawn.candidates))
    return await _compute(settle, waiter, long=rewards >= _MANY_REWARDS)


async def _settle_without_sponsors(
    settings: AuctionSettings,
    admitted: Admitted,
    plan: Plan,
    drawn: Drawn,
    reports: Sequence[Report],
    tab: Tab,
    waiter: Waiter,
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
    opening = await _commit(settings, alone, plan, drawn, waiter)
    return await _settle(settings, alone, plan, drawn, opening, [reports[k] for k in stay], waiter)


async def _within(config: RunnableConfig, work: Coroutine[Any, Any, _T], waiter: Waiter) -> _T:
    """Await work in a context where models, scorers and agents find the parent run and its tags."""
    with set_config_context(config) as context:
        return await waiter.within(context, work)


async def _compute(work: Callable[[], _T], waiter: Waiter, *, long: bool) -> _T:
    """Return the result of a computation; a long one does not hold up an event loop."""
    return await waiter.in_thread(work) if long else work()


def _started(admitted: Admitted, size: Size) -> events.AuctionEvent:
    return events.started(
        admitted.auction_id,
        agents=len(admitted.agents),
        left_out=len(admitted.left_out),
        bypassed=admitted.bypassed,
        most=size.most,
    )


def _settled(result: AuctionResult) -> events.AuctionEvent:
    charged, sponsored = result.charge is not None, bool(result.sponsors)
    return events.settled(result.auction_id, result.settlement, sponsored=sponsored, charged=charged)
