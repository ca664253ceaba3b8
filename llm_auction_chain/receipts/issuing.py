"""How a receipt comes about: an opening before any agent is asked, the receipt after the auction is settled."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from langchain_core.messages import BaseMessage

from llm_auction_chain.agents import Agent
from llm_auction_chain.candidates import Candidate
from llm_auction_chain.canonical_json import digest, printable
from llm_auction_chain.mechanism import Settlement
from llm_auction_chain.mechanism.settlement import LARGEST_REWARD
from llm_auction_chain.money import as_text, total
from llm_auction_chain.receipts import records
from llm_auction_chain.receipts.figures import limits_of
from llm_auction_chain.receipts.records import Receipt, commitment, committed, message_digests, report_salt, salt_of
from llm_auction_chain.reports import Report, bounds_of, cap_of


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The part of an auction that is fixed before any agent reports: terms, seeds, candidates, weights and agents.

    Attributes:
        commitment: one commitment to all parts. Agents receive it together with the prompt and the replies.
        salt: opens all parts, 64 hexadecimal digits. Only the platform and its auditor may see it.
        parts: the parts by name, as plain JSON: `terms`, `seed`, `draw_seed`, `replies`, `draws`, `weights`, `agents`.
    """

    commitment: str
    salt: str
    parts: Mapping[str, Any]


def open_auction(
    *,
    auction_id: str,
    salt: str,
    prompt: Sequence[BaseMessage],
    terms: Mapping[str, Any],
    seed: int,
    draw_seed: int,
    candidates: Sequence[Candidate],
    components: Sequence[tuple[str, int]],
    agents: Sequence[Agent],
    report_cap: float | None,
    left_out: Sequence[Mapping[str, str]],
    bypassed: bool,
) -> Opening:
    """Return the opening of an auction whose candidates are drawn.

    `salt` is fresh, 64 hexadecimal digits. `terms` are the time, model, tau and whatever else the reply depends on;
    `draw_seed` follows from `seed`; `components` have a name and a number of draws; `report_cap` is the auction's,
    money. The opening contains only digests of the prompt and of the candidates' messages. Replies that no agent is
    shown have a salt of their own, so that no agent can test texts against their digests.
    """
    possible = [one.log_weight > -math.inf for one in candidates]
    weights = [float(one.log_weight) if may else None for one, may in zip(candidates, possible, strict=True)]
    draws = {
        "components": [{"component": printable(name), "draws": count} for name, count in components],
        "candidates": [
            {"component": printable(one.component), "draws": one.draws, "excluded": one.excluded} for one in candidates
        ],
    }
    part = {"agents": [_terms_of(agent, report_cap) for agent in agents], "left_out": left_out, "bypassed": bypassed}
    plain = printable({"terms": terms, "agents": part, "auction_id": auction_id})
    shown, unshown = salt_of(salt, "reply"), salt_of(salt, "unshown reply")
    replies = [(shown if may else unshown, [one.message]) for one, may in zip(candidates, possible, strict=True)]
    prompt_digest, *reply_digests = message_digests([(salt_of(salt, "prompt"), prompt), *replies])
    parts = {
        "terms": {**plain["terms"], "prompt": prompt_digest},
        "seed": str(seed),
        "draw_seed": str(draw_seed),
        "replies": reply_digests,
        "draws": draws,
        "weights": weights,
        "agents": plain["agents"],
    }
    commitments = records.part_commitments(salt, parts)
    opening = records.opening_commitment(plain["auction_id"], commitments)
    return Opening(commitment=opening, salt=salt, parts=parts)


def issue(
    opening: Opening,
    *,
    auction_id: str,
    reports: Sequence[Report],
    settlement: Settlement,
    charges: Sequence[Decimal],
    prices_per_click: Sequence[float | None],
) -> Receipt:
    """Return the receipt of a settled auction: its opening, the reports and the outcome."""
    parts, name = opening.parts, printable(auction_id)
    agents, terms = parts["agents"]["agents"], parts["terms"]
    limits = limits_of(
        ((one["owner"], one["pays"], one["bounds"]) for one in agents), terms["payment_rule"], terms["tau"]
    )
    bids = [
        {
            **agents[k],
            "status": report.status,
            "reason": printable(report.reason),
            "report": report.rewards,
            "click_through": report.click_through,
            "value_per_click": report.value_per_click,
            "contribution": contribution,
            "expected": expected,
            "most_expected": limits[k].expected,
            "steering": steering,
            "most_steering": limits[k].steering,
            "payment": payment,
            "charge": as_text(charges[k]),
            "price_per_click": prices_per_click[k],
        }
        for k, (report, contribution, expected, steering, payment) in enumerate(
            zip(
                reports,
                settlement.contributions.tolist(),
                settlement.expected_payments.tolist(),
                settlement.steering.tolist(),
                settlement.payments.tolist(),
                strict=True,
            )
        )
    ]
    content = {
        "schema": "llm_auction_chain.receipt/1",
        **terms,
        "auction_id": name,
        "seed": parts["seed"],
        "draw_seed": parts["draw_seed"],
        "components": parts["draws"]["components"],
        "candidates": [
            {"reply": reply, **draws}
            for reply, draws in zip(parts["replies"], parts["draws"]["candidates"], strict=True)
        ],
        "log_weights": parts["weights"],
        "log_probabilities": [nats if nats > -np.inf else None for nats in settlement.log_probabilities.tolist()],
        "probabilities": settlement.probabilities.tolist(),
        "winner": settlement.winner,
        "agents": bids,
        "left_out": parts["agents"]["left_out"],
        "revenue": as_text(total(charges)),
        "bypassed": parts["agents"]["bypassed"],
        "salt": opening.salt,
        "opening": opening.commitment,
        "reports": [commitment(report_salt(opening.salt, k), committed(bid, name)) for k, bid in enumerate(bids)],
    }
    return Receipt.model_validate({**content, "digest": digest(content), "signature": None})


def _terms_of(agent: Agent, report_cap: float | None) -> dict[str, Any]:
    """Return what is public of an agent before it reports."""
    cap, bounds = cap_of(agent, report_cap), bounds_of(agent, report_cap)
    limited = math.isfinite(bounds[0]) and math.isfinite(bounds[1])
    return {
        "agent": agent.name,
        "owner": agent.payer,
        "pays": agent.pays,
        "report_cap": None if cap is None else float(cap),
        "bounds": [min(max(bound, -LARGEST_REWARD), LARGEST_REWARD) for bound in bounds] if limited else None,
    }
