"""From the agents' reports to the result: settled, and the drawn message made ready for whoever asked."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

from langchain_core.messages import AIMessage

from llm_auction_chain.auction.admission import Opened
from llm_auction_chain.auction.result import AuctionResult, matrix_of, metadata_of
from llm_auction_chain.candidates import Drawn, Plan
from llm_auction_chain.descriptions import lint_context
from llm_auction_chain.errors import AuctionWarning
from llm_auction_chain.mechanism import PaymentRule, settle
from llm_auction_chain.receipts import Opening
from llm_auction_chain.reports import Report

__all__ = ["DisclosurePlace", "close"]

DisclosurePlace = Literal["metadata", "start", "end"]
_SUSPICIOUS = 4  # so many draws that are all one reply are rather one draw, repeated


def close(
    opened: Opened,
    plan: Plan,
    drawn: Drawn,
    opening: Opening,
    asked: Sequence[Report],
    *,
    tau: float,
    payment_rule: PaymentRule,
    disclosure: str | None,
    disclosure_place: DisclosurePlace,
    proposal_chosen: bool,
) -> AuctionResult:
    """Return what the auction comes to, before anybody is charged.

    Args:
        opened: who takes part, and the seed of the draw.
        plan: what the candidates were drawn from.
        drawn: the candidates and their log-weights.
        opening: what the auction was bound to before anybody reported.
        asked: (N,), every agent's report of the candidates that may be drawn.
        tau: weight of the reference model, money per nat.
        payment_rule: what owners pay.
        disclosure: what the user is told where the reply is sponsored; `{sponsors}` stands for the agents' names.
        disclosure_place: where.
        proposal_chosen: whether the proposal was, so that contexts it does not use are meant to be unused.
    """
    reports = _over_all(asked, drawn)
    settlement = settle(
        matrix_of(reports, drawn.candidates),
        [candidate.merged_log_weight for candidate in drawn.candidates],
        tau=tau,
        payment_rule=payment_rule,
        owners=[agent.payer for agent in opened.agents],
        pays=[agent.pays for agent in opened.agents],
        draws=[candidate.draws for candidate in drawn.candidates],
        seed=opened.seed_of_draw,
    )
    result = AuctionResult(
        auction_id=opened.auction_id,
        prompt=opened.prompt,
        candidates=drawn.candidates,
        components=drawn.components,
        contexts=plan.contexts,
        agents=opened.agents,
        left_out=opened.left_out,
        reports=reports,
        settlement=settlement,
        reply=drawn.candidates[settlement.winner].message,
        usage=drawn.usage,
        failures=drawn.causes,
        warnings=_warn(opened, plan, drawn, chosen=proposal_chosen),
        currency=opened.currency,
        disclosure="",
        bypassed=opened.bypassed,
        seed=opened.seed,
        opening=opening,
        charge=None,
    )
    if disclosure and result.sponsors:
        names = ", ".join(agent.name for agent in result.sponsors)
        result = replace(result, disclosure=disclosure.replace("{sponsors}", names))
    return replace(result, reply=_reply(result, plan, disclosure_place))


def _over_all(asked: Sequence[Report], drawn: Drawn) -> tuple[Report, ...]:
    """Return the reports over all candidates: agents were asked only of those that may be drawn."""
    possible = [j for j, candidate in enumerate(drawn.candidates) if candidate.possible]
    if len(possible) == len(drawn.candidates):
        return tuple(asked)

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
        for report in asked
    )


def _reply(result: AuctionResult, plan: Plan, place: DisclosurePlace) -> AIMessage:
    """Return the drawn message with the outcome in its metadata, and the disclosure where it belongs.

    A reply that is parsed stays as it was drawn, for with a text before or after it nothing could be parsed.
    """
    drawn = result.reply
    shown = {
        name: value
        for name, value in drawn.response_metadata.items()
        if name != "logprobs" or plan.source.asked_for_tokens or not plan.tokens
    }
    told = {
        "response_metadata": {**shown, "auction": metadata_of(result)},
        "usage_metadata": result.usage,
        "content": _disclosed(drawn.content, result.disclosure, "metadata" if plan.source.asked_for_a_shape else place),
    }
    return drawn.model_copy(update=told)


def _disclosed(content: Any, disclosure: str, place: DisclosurePlace) -> Any:
    """Return a message's content with the disclosure before or after it; a reply that says nothing stays so."""
    if not disclosure or place == "metadata" or not content:
        return content
    if isinstance(content, str):
        return f"{disclosure}\n\n{content}" if place == "start" else f"{content}\n\n{disclosure}"
    block = {"type": "text", "text": disclosure}
    return [block, *content] if place == "start" else [*content, block]


_lint = lru_cache(maxsize=4096)(lint_context)


def _warn(opened: Opened, plan: Plan, drawn: Drawn, *, chosen: bool) -> tuple[str, ...]:
    noticed = [
        f"The context of {agent.name!r} {'; it '.join(findings)}."
        for agent in opened.agents
        if (findings := _lint(agent.context))
    ]
    if plan.contexts == "unused" and not chosen:
        noticed.append(
            "The agents' contexts are not used: the model cannot say how likely its replies are. Use "
            "ChatTransformers or ChatVLLM, give a scorer, or proposal=Reference() to say that this is meant."
        )
    if opened.failure is not None:
        noticed.append(f"The ledger failed, so the reply has no sponsors: {type(opened.failure).__name__}.")
    draws = sum(candidate.draws for candidate in drawn.candidates)
    if len(drawn.candidates) == 1 and draws >= _SUSPICIOUS:
        noticed.append(
            f"All {draws} draws are the same reply, so no agent can move it. Raise the temperature above 0, take "
            "away the provider's seed, or any cache in front of the model."
        )
    for text in noticed:
        warnings.warn(text, AuctionWarning, stacklevel=2)
    return tuple(noticed)
