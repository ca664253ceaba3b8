"""What an auction is bound to before any report is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage

from llm_auction_chain.agents import Agent
from llm_auction_chain.candidates import Candidate
from llm_auction_chain.canonical_json import digest, printable
from llm_auction_chain.mechanism.allocation import streams_of
from llm_auction_chain.receipts.commitments import commitment, message_digest, salt_of

__all__ = ["PARTS", "Opening", "commit", "open_auction"]

PARTS = ("terms", "seed", "draw_seed", "replies", "draws", "weights", "agents")


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What an auction is bound to before any report: terms, seeds, candidates, their weights, who takes part.

    Attributes:
        commitment: digest of a salted commitment to each part; agents are told it with the question.
        salt: opens all parts, 64 hexadecimal digits; for the platform and its auditor.
        parts: each of `PARTS` as plain JSON.
    """

    commitment: str
    salt: str
    parts: Mapping[str, Any]


def commit(auction_id: str, commitments: Mapping[str, str]) -> str:
    """Return the one commitment to all parts, from the commitment to each."""
    return digest({"auction_id": auction_id, **commitments})


def open_auction(
    *,
    auction_id: str,
    salt: str,
    prompt: Sequence[BaseMessage],
    terms: Mapping[str, Any],
    seed: int,
    candidates: Sequence[Candidate],
    components: Sequence[tuple[str, int]],
    agents: Sequence[Agent],
    caps: Sequence[float | None],
    left_out: Sequence[Mapping[str, str]],
    bypassed: bool,
) -> Opening:
    """Return what an auction is bound to once its candidates are drawn.

    Replies that agents are never shown have a salt of their own, so that no agent can try texts against their digests.

    Args:
        auction_id: unique.
        salt: fresh, 64 hexadecimal digits.
        prompt: the user's messages; only their digest is kept.
        terms: time, model, tau and whatever else the reply depends on.
        seed: of the auction.
        candidates: (M,); only digests of their messages are kept.
        components: of the proposal, with their draws.
        agents: (N,), who takes part.
        caps: (N,), money; what each report is cut to.
        left_out: who does not, and why.
        bypassed: whether nobody does, because tools were offered.
    """
    of_shown, of_unshown = salt_of(salt, "reply"), salt_of(salt, "unshown reply")
    parts = {
        "terms": {**printable(terms), "prompt": message_digest(salt_of(salt, "prompt"), *prompt)},
        "seed": str(seed),
        "draw_seed": str(streams_of(seed)[1]),
        "replies": [message_digest(of_shown if one.possible else of_unshown, one.message) for one in candidates],
        "draws": {
            "components": [{"component": printable(name), "draws": count} for name, count in components],
            "candidates": [
                {"component": printable(one.component), "draws": one.draws, "excluded": one.excluded}
                for one in candidates
            ],
        },
        "weights": [float(one.log_weight) if one.possible else None for one in candidates],
        "agents": {
            "agents": [
                {
                    "agent": printable(agent.name),
                    "owner": printable(agent.payer),
                    "pays": agent.pays,
                    "report_cap": None if cap is None else float(cap),
                }
                for agent, cap in zip(agents, caps, strict=True)
            ],
            "left_out": printable(left_out),
            "bypassed": bypassed,
        },
    }
    commitments = {
        part: commitment(salt_of(salt, part), parts[part], floats=part in ("terms", "weights", "agents"))
        for part in PARTS
    }
    return Opening(commitment=commit(printable(auction_id), commitments), salt=salt, parts=parts)
