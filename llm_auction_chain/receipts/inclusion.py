"""Proofs that the ledger contains an owner's view: made from the ledger, checked with the view and a head alone."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from llm_auction_chain import merkle
from llm_auction_chain.errors import ConfigurationError, LedgerError
from llm_auction_chain.ledger.chain import content, link
from llm_auction_chain.receipts.checks import Difference
from llm_auction_chain.receipts.records import AgentView, Digest, Receipt, Record, Row
from llm_auction_chain.validators import digest_text

_R = TypeVar("_R", bound=Record)


class Step(Record):
    """A step of a path in a Merkle tree."""

    side: Literal["left", "right"]
    """Where `other` stands."""
    other: Digest
    """The hash beside the path."""


class Inclusion(Record):
    """A proof that a ledger contains a view: a path in the auction's Merkle tree, then links to a head of the chain.

    It contains hashes only. The length of the path tells whether more than 8, 16, 32 ... owners took part, that of
    `later` how many bookings follow.
    """

    schema_: Literal["llm_auction_chain.inclusion/1"] = Field(alias="schema")
    """`llm_auction_chain.inclusion/1`."""
    auction_id: str
    """Of the auction."""
    path: Row[Step]
    """From the leaf of the view to the root over all views of the auction."""
    rest: Digest
    """Digest of what the charge's booking contains, but for that root."""
    previous: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")]
    """Hash of the booking before the charge; empty for the first."""
    later: Row[Digest]
    """For each booking after the charge, the hash of what it contains."""
    head: Digest
    """Hash of the last of them, where the proof ends."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return self.model_dump(mode="json")


def prove(ledger: Any, auction_id: str, agent: str, *, head: str | None = None) -> Inclusion:
    """Return the proof that a ledger contains the view of an agent's owner. It needs the stored receipt.

    Args:
        ledger: a `Ledger`.
        auction_id: of the auction.
        agent: name of an agent that took part.
        head: hash of the booking that the proof ends at, as the owner has noted it; None is the last one.

    Raises:
        LedgerError: no receipt or no root of views is stored, or no later booking has the hash `head`.
        ConfigurationError: the agent did not take part.
    """
    stored, links = ledger.receipt_of(auction_id), ledger.links(auction_id, head=head)
    if stored is None or links is None:
        raise LedgerError(f"No receipt of {auction_id!r} is stored, so there is nothing to prove a view with.")
    receipt = Receipt.from_dict(stored)
    leaves = receipt.leaves()
    steps = merkle.path(leaves, leaves.index(receipt.view(agent).leaf()))
    return Inclusion(
        schema="llm_auction_chain.inclusion/1",
        auction_id=auction_id,
        path=tuple(Step(side=side, other=other) for side, other in steps),  # type: ignore[arg-type]
        rest=links.rest,
        previous=links.previous,
        later=links.later,
        head=links.head.hash,
    )


def check_inclusion(
    view: AgentView | Mapping[str, Any], proof: Inclusion | Mapping[str, Any], head: str
) -> tuple[Difference, ...]:
    """Return what speaks against a ledger with a head containing a view; nothing where it does. Also `verify` the view.

    Args:
        view: of an owner.
        proof: that `prove` returned, or its JSON.
        head: hash that the owner has noted of the ledger, or that is public.

    Raises:
        ConfigurationError: the view is not a view, the proof not a proof, or the head not a hash.

    >>> from llm_auction_chain import Agent, AuctionRunnable, Ledger
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> ledger = Ledger("sqlite://")
    >>> _ = ledger.deposit("B", 100)
    >>> agent = Agent("B", lambda prompt, reply: float(reply.text.count("b")))
    >>> auction = AuctionRunnable(model=MarkovChatModel(), agents=[agent], report_cap=9.0, billing=ledger, seed=7)
    >>> result = auction.run("Say something")
    >>> proof = prove(ledger, result.receipt.auction_id, "B")
    >>> check_inclusion(result.receipt.view("B"), proof, ledger.head().hash)
    ()
    >>> ledger.close()
    """
    return tuple(_differences(_parsed(AgentView, view), _parsed(Inclusion, proof), digest_text("head", head)))


def _differences(view: AgentView, proof: Inclusion, head: str) -> Iterator[Difference]:
    if proof.auction_id != view.auction_id:
        yield Difference(
            field="auction_id",
            stated=proof.auction_id,
            computed=view.auction_id,
            rule="the proof is of another auction",
        )
    root = merkle.root_of(view.leaf(), [(step.side, step.other) for step in proof.path])
    end = link(proof.previous, content(root, proof.rest))
    for contained in proof.later:
        end = link(end, contained)
    if end != proof.head:
        yield Difference(
            field="head", stated=proof.head, computed=end, rule="the proof does not lead there from the view"
        )
    if proof.head != head:
        yield Difference(field="head", stated=proof.head, computed=head, rule="the proof ends at another head")


def _parsed(kind: type[_R], value: _R | Mapping[str, Any]) -> _R:
    if isinstance(value, kind):
        return value
    try:
        return kind.model_validate_json(json.dumps(dict(value)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"This is not the JSON of an {kind.__name__}: {error!s:.300}") from error
