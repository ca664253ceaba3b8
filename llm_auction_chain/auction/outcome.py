"""From reports to the result: settle, draw the reply, add the disclosure, and say what deserves a look."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from langchain_core.messages import AIMessage

from llm_auction_chain.auction.admission import Admitted
from llm_auction_chain.auction.result import AuctionResult, matrix_of, metadata_of
from llm_auction_chain.auction.settings import AuctionSettings, DisclosurePlace
from llm_auction_chain.candidates import Drawn, Plan
from llm_auction_chain.descriptions import lint_context
from llm_auction_chain.errors import AuctionWarning
from llm_auction_chain.mechanism import settle
from llm_auction_chain.receipts import Opening
from llm_auction_chain.reports import Report

__all__ = ["settle_auction"]

_SUSPICIOUS = 4  # this many draws that all gave one reply are more likely one draw, repeated


def settle_auction(
    settings: AuctionSettings,
    admitted: Admitted,
    plan: Plan,
    drawn: Drawn,
    opening: Opening,
    reports: Sequence[Report],
) -> AuctionResult:
    """Return the result of an auction, before owners are charged.

    Args:
        settings: of the auction.
        admitted: the agents that take part, and the seed of the draw.
        plan: what the candidates were drawn from.
        drawn: the candidates and their log-weights.
        opening: the commitment made before agents reported.
        reports: (N,), each agent's report of the candidates that may be drawn.
    """
    reports = _over_all_candidates(reports, drawn)
    settlement = settle(
        matrix_of(reports, drawn.candidates),
        [candidate.merged_log_weight for candidate in drawn.candidates],
        tau=settings.tau,
        payment_rule=settings.payment_rule,
        owners=[agent.payer for agent in admitted.agents],
        pays=[agent.pays for agent in admitted.agents],
        draws=[candidate.draws for candidate in drawn.candidates],
        seed=admitted.seed_of_draw,
    )
    result = AuctionResult(
        auction_id=admitted.auction_id,
        prompt=admitted.prompt,
        candidates=drawn.candidates,
        components=drawn.components,
        contexts=plan.contexts,
        agents=admitted.agents,
        left_out=admitted.left_out,
        reports=reports,
        settlement=settlement,
        reply=drawn.candidates[settlement.winner].message,
        usage=drawn.usage,
        failures=drawn.causes,
        warnings=_warn(settings, admitted, plan, drawn),
        currency=admitted.currency,
        disclosure="",
        bypassed=admitted.bypassed,
        seed=admitted.seed,
        opening=opening,
        charge=None,
    )
    if settings.disclosure.text and result.sponsors:
        names = ", ".join(agent.name for agent in result.sponsors)
        result = replace(result, disclosure=settings.disclosure.text.replace("{sponsors}", names))
    return replace(result, reply=_reply(result, plan, settings.disclosure.place))


def _over_all_candidates(reports: Sequence[Report], drawn: Drawn) -> tuple[Report, ...]:
    """Return the reports over all candidates, zero for those that may not be drawn: agents do not see these."""
    possible = [j for j, candidate in enumerate(drawn.candidates) if candidate.possible]
    if len(possible) == len(drawn.candidates):
        return tuple(reports)

    def spread(amounts: Sequence[float]) -> tuple[float, ...]:
        row = [0.0] * len(drawn.candidates)
        for j, amount in zip(possible, amounts, strict=True):
            row[j] = amount
        return tuple(row)

    return tuple(
        replace(
            report,
            rewards=spread(report.rewards),
            click_through=None if report.click_through is None else spread(report.click_through),
        )
        for report in reports
    )


def _reply(result: AuctionResult, plan: Plan, place: DisclosurePlace) -> AIMessage:
    """Return the drawn message with the metadata, and the disclosure in its place.

    A reply in a requested format keeps its text: with a disclosure around it, no parser could read it.
    """
    metadata = {
        name: value
        for name, value in result.reply.response_metadata.items()
        if name != "logprobs" or plan.source.asked_for_tokens or not plan.tokens
    }
    place = "metadata" if plan.source.asked_for_format else place
    return result.reply.model_copy(
        update={
            "response_metadata": {**metadata, "auction": metadata_of(result)},
            "usage_metadata": result.usage,
            "content": _with_disclosure(result.reply.content, result.disclosure, place),
        }
    )


def _with_disclosure(content: Any, disclosure: str, place: DisclosurePlace) -> Any:
    """Return a message's content with the disclosure before or after it; empty content stays empty."""
    if not disclosure or place == "metadata" or not content:
        return content
    if isinstance(content, str):
        return f"{disclosure}\n\n{content}" if place == "start" else f"{content}\n\n{disclosure}"
    block = {"type": "text", "text": disclosure}
    return [block, *content] if place == "start" else [*content, block]


_lint = lru_cache(maxsize=4096)(lint_context)


def _warn(settings: AuctionSettings, admitted: Admitted, plan: Plan, drawn: Drawn) -> tuple[str, ...]:
    """Return what deserves a look, and issue it as `AuctionWarning`s."""
    messages = [
        f"The context of {agent.name!r} {'; it '.join(findings)}."
        for agent in admitted.agents
        if (findings := _lint(agent.context))
    ]
    if plan.contexts == "unused" and settings.proposal is None:
        messages.append(
            "The agents' contexts are not used: the model cannot say how likely its replies are. Use "
            "ChatTransformers or ChatVLLM, give a scorer, or set proposal=Reference() to accept this."
        )
    if admitted.failure is not None:
        messages.append(f"The ledger failed, so the reply has no sponsors: {type(admitted.failure).__name__}.")
    draws = sum(candidate.draws for candidate in drawn.candidates)
    if len(drawn.candidates) == 1 and draws >= _SUSPICIOUS:
        messages.append(
            f"All {draws} draws are the same reply, so no agent can move it. Raise the temperature above 0, remove "
            "the provider's seed, or any cache in front of the model."
        )
    for message in messages:
        warnings.warn(message, AuctionWarning, stacklevel=2)
    return tuple(messages)
