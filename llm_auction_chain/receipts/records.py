"""The two kinds of receipt: the full one for the platform and its auditor, and an agent's view of it."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from langchain_core.messages import BaseMessage
from pydantic import Field

from llm_auction_chain.canonical_json import digest, printable
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.receipts.commitments import commitment, message_digest, salt_of
from llm_auction_chain.receipts.fields import (
    Bid,
    Charge,
    Component,
    Count,
    Digest,
    Hidden,
    LeftOut,
    Nats,
    Record,
    Reply,
    Row,
    Salt,
    Salts,
    Seed,
    Share,
    Signature,
    Tau,
    Time,
)
from llm_auction_chain.receipts.opening import PARTS
from llm_auction_chain.receipts.signing import signature_of

__all__ = ["GENERATOR", "MECHANISM", "AgentView", "Receipt", "report_part"]

MECHANISM = "mosaic/1"
GENERATOR = "numpy PCG64 of draw_seed, stream 2 of SeedSequence(seed); Gumbel noise -log(standard_exponential)"


class _Shared(Record):
    """What both kinds of receipt say.

    Attributes:
        library: version of llm_auction_chain.
        mechanism: version of the rules that figures follow.
        auction_id: unique.
        time: when it was opened, ISO 8601 in UTC.
        model: what the candidates were drawn from.
        contexts: whether the agents' descriptions reached the proposal.
        currency: unit of all amounts; may have no name.
        tau: weight of the reference model, money per nat.
        payment_rule: what payments follow.
        draw_seed: of the draw among the candidates, decimal digits.
        generator: what noise is made of it.
        prompt: salted digest of the user's messages.
        log_probabilities: (M,), log p, nats; null for what is never drawn.
        winner: index of the drawn candidate.
        agents: all of them, in a view the owner's.
        reports: salted commitment to the report of each of `agents`.
        opening: commitment to all but the reports, which agents were told before they reported.
        digest: SHA-256 of all else but the signature.
        signature: of the digest; null where there is none.
    """

    library: str
    mechanism: Literal["mosaic/1"]
    auction_id: str
    time: Time
    model: str
    contexts: Literal["none", "used", "unused"]
    currency: str
    tau: Tau
    payment_rule: Literal["expected", "proportional", "influence", "pivot"]
    draw_seed: Seed
    generator: str
    prompt: Digest
    log_probabilities: Annotated[Row[Nats | None], Field(min_length=1)]
    winner: Count
    agents: Row[Bid]
    reports: Row[Digest]
    opening: Digest
    digest: Digest
    signature: Signature | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """Return what plain JSON tells; whether it holds, `verify` says.

        Raises:
            ConfigurationError: it is not of this kind.
        """
        try:
            return cls.model_validate_json(json.dumps(dict(told)))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"This is no {cls.__name__}; verify tells what is wrong with it.") from error

    def computed_digest(self) -> str:
        """Return the digest of all else but digest and signature."""
        return digest(self.model_dump(mode="json", by_alias=True, exclude={"digest", "signature"}))

    def signed(self, key: Any) -> Self:
        """Return this with a signature of its digest.

        Args:
            key: an Ed25519 private key of `cryptography`; `load_private_key` reads one.

        Raises:
            MissingDependencyError: `cryptography` is not installed.
            ConfigurationError: it is another kind of key, or the digest stated is not that of the content.
        """
        if self.digest != self.computed_digest():
            raise ConfigurationError(f"The digest of {self.auction_id} is not that of its content; verify tells more.")
        public_key, value = signature_of(self.digest, key)
        signature = Signature(algorithm="Ed25519", public_key=public_key, value=value)
        return self.model_copy(update={"signature": signature})

    def terms(self) -> dict[str, Any]:
        """Return the terms the opening is bound to."""
        names = ("library", "mechanism", "time", "model", "contexts", "currency", "tau", "payment_rule", "generator")
        return {name: getattr(self, name) for name in (*names, "prompt")}


class Receipt(_Shared):
    """All of one auction. It holds every report: it is for the platform and its auditor.

    Attributes:
        schema_: `llm_auction_chain.receipt/1`.
        seed: of the auction, decimal digits; gives the candidates again, and `draw_seed`.
        candidates: (M,).
        components: of the proposal, with their draws.
        log_weights: (M,), `log pi_ref - log pi_gen` of a draw, nats; null where it is never drawn.
        probabilities: (M,), p.
        left_out: who took no part, and why.
        revenue: the sum of charges.
        bypassed: whether the reference replied by itself, because tools were offered.
        salt: opens every commitment and digest.

    >>> from llm_auction_chain import Agent, AuctionRunnable
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> agent = Agent("B", lambda prompt, reply: 4.0 * reply.text.count("b"))
    >>> receipt = AuctionRunnable(model=MarkovChatModel(), agents=[agent], seed=7).run("Say something").receipt
    >>> receipt.revenue, receipt.view("B").agents[0].charge == receipt.revenue
    ('1.887806', True)
    """

    schema_: Literal["llm_auction_chain.receipt/1"] = Field(alias="schema")
    seed: Seed
    candidates: Annotated[Row[Reply], Field(min_length=1)]
    components: Row[Component]
    log_weights: Row[Nats | None]
    probabilities: Row[Share]
    left_out: Row[LeftOut]
    revenue: Charge
    bypassed: bool
    salt: Salt

    def commitments(self) -> dict[str, str]:
        """Return the commitment to each part of the opening."""
        parts = {
            "terms": self.terms(),
            "seed": self.seed,
            "draw_seed": self.draw_seed,
            "replies": [candidate.reply for candidate in self.candidates],
            "draws": {
                "components": [component.model_dump() for component in self.components],
                "candidates": [candidate.model_dump(exclude={"reply"}) for candidate in self.candidates],
            },
            "weights": list(self.log_weights),
            "agents": {
                "agents": [bid.model_dump(include={"agent", "owner", "pays", "report_cap"}) for bid in self.agents],
                "left_out": [out.model_dump() for out in self.left_out],
                "bypassed": self.bypassed,
            },
        }
        return {part: commitment(salt_of(self.salt, part), parts[part]) for part in PARTS}

    def digest_of(self, *messages: BaseMessage, part: Literal["reply", "unshown reply", "prompt"] = "reply") -> str:
        """Return the digest that messages have here: to find what a digest is of.

        Args:
            messages: one reply, or the whole prompt.
            part: `reply`; `unshown reply`, one that could not be drawn and no agent was shown; or `prompt`.
        """
        return message_digest(salt_of(self.salt, part), *messages)

    def view(self, agent: str) -> "AgentView":
        """Return what an agent is entitled to: its owner's reports and payments, and nobody else's. It is not signed.

        Args:
            agent: its name.

        Raises:
            ConfigurationError: it took no part.
        """
        owner = next((bid.owner for bid in self.agents if bid.agent == printable(agent)), None)
        if owner is None:
            took_part = ", ".join(repr(bid.agent) for bid in self.agents) or "nobody"
            raise ConfigurationError(f"{agent!r} took no part in {self.auction_id}; {took_part} did.")
        own = [k for k, bid in enumerate(self.agents) if bid.owner == owner]
        sealed = self.commitments()
        view = AgentView(
            **{
                **{name: getattr(self, name) for name in _Shared.model_fields},
                "schema": "llm_auction_chain.agent_view/1",
                "agents": tuple(self.agents[k] for k in own),
                "reports": tuple(self.reports[k] for k in own),
                "replies": tuple(candidate.reply for candidate in self.candidates),
                "salts": Salts(
                    **{part: salt_of(self.salt, part) for part in ("terms", "draw_seed", "replies", "reply")},
                    reports=tuple(salt_of(self.salt, report_part(k)) for k in own),
                ),
                "hidden": Hidden(**{part: sealed[part] for part in Hidden.model_fields}),
                "receipt": self.digest,
                "signature": None,
            }
        )
        return view.model_copy(update={"digest": view.computed_digest()})


class AgentView(_Shared):
    """What one owner's agents are entitled to know of an auction: enough to recompute what they pay.

    p is proportional to `p_-i * exp(r_i / tau)`, so that p, the own reports and tau give the law without them, the
    contribution and the payment under every rule. Seed, weights, draws, all other reports and the number of agents
    stay hidden. What p itself tells stays visible: to who knows the weights and draws from elsewhere, the others'
    reports summed, up to a constant.

    Attributes:
        schema_: `llm_auction_chain.agent_view/1`.
        replies: (M,), salted digests of the candidates' messages.
        salts: open what is shown.
        hidden: commitments to what is not.
        receipt: digest of the full receipt.
    """

    schema_: Literal["llm_auction_chain.agent_view/1"] = Field(alias="schema")
    replies: Annotated[Row[Digest], Field(min_length=1)]
    salts: Salts
    hidden: Hidden
    receipt: Digest

    def commitments(self) -> dict[str, str]:
        """Return the commitment to each part of the opening: to those that are shown, from what is shown."""
        opened = {
            "terms": commitment(self.salts.terms, self.terms()),
            "draw_seed": commitment(self.salts.draw_seed, self.draw_seed),
            "replies": commitment(self.salts.replies, list(self.replies)),
        }
        return {**opened, **self.hidden.model_dump()}

    def digest_of(self, *messages: BaseMessage) -> str:
        """Return the digest that a reply has here: to find the candidate that a message is."""
        return message_digest(self.salts.reply, *messages)


def report_part(position: int) -> str:
    """Return the name under which the salt of a report's commitment is made."""
    return f"report {position}"
