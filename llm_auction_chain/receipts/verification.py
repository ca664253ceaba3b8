"""Verification of receipts: everything is computed again from the receipt alone, and what differs is told."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from pydantic import ValidationError

from llm_auction_chain.canonical_json import loads
from llm_auction_chain.receipts.checks import Difference, bound, consistent, sealed, settled, spelled
from llm_auction_chain.receipts.fields import Bid, Component, Hidden, LeftOut, Record, Reply, Salts, Signature
from llm_auction_chain.receipts.records import AgentView, Receipt
from llm_auction_chain.receipts.signing import digits_of

__all__ = ["Difference", "Verification", "verify"]

_MOST = 100
_OF_VIEWS = "llm_auction_chain.agent_view/"
_RECORDS: dict[str, type[Record]] = {
    "agents": Bid,
    "candidates": Reply,
    "components": Component,
    "left_out": LeftOut,
    "salts": Salts,
    "hidden": Hidden,
    "signature": Signature,
}
_RULES = {
    "greater_than_equal": "it should be at least {ge!r}",
    "less_than_equal": "it should be at most {le!r}",
    "less_than": "it should be less than {lt!r}",
}


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What verification found.

    Attributes:
        differences: the first hundred; none where the receipt holds.
        more: how many more there are. Of a list with entries of another shape only the first such entry is looked at.
        signed_by: the public key whose signature it has, hexadecimal; None where it has none that holds, or where the
            digest that was signed is not that of the content.
    """

    differences: tuple[Difference, ...]
    more: int = 0
    signed_by: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def verify(receipt: Receipt | AgentView | Mapping[str, Any] | str | bytes, *, public_key: Any = None) -> Verification:
    """Compute a receipt, or an agent's view, again from itself alone, and tell what differs.

    Law, draw, contributions, payments, charges, commitments and digest are computed again; no clock, network or model
    is asked. The digest finds any change; whoever makes a new digest, too, is found by the rest, or by a signature.
    What is no receipt at all is a difference, too, and no error.

    Args:
        receipt: the object, its JSON as a dict, or as a text.
        public_key: an Ed25519 public key; the receipt must then be signed by it. Without one a signature is checked
            against the key it names itself, which anybody may have made.

    Raises:
        ConfigurationError: `public_key` is another kind of key.
        MissingDependencyError: there is a key or a signature, and `cryptography` is not installed.

    >>> from llm_auction_chain import Agent, AuctionRunnable
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> agent = Agent("B", lambda prompt, reply: 4.0 * reply.text.count("b"))
    >>> receipt = AuctionRunnable(model=MarkovChatModel(), agents=[agent], seed=7).run("Say something").receipt
    >>> verify(receipt).ok, verify(receipt.view("B")).ok
    (True, True)
    >>> [difference.field for difference in verify({**receipt.as_dict(), "winner": 1}).differences]
    ['digest', 'winner']
    """
    expected = None if public_key is None else digits_of(public_key)
    try:
        kind, told = _told(receipt)
        misnamed = _misnamed(kind, told)
        first = next(misnamed, None)
        if first is not None:
            return _verification(chain([first], misnamed))
        read = kind.model_validate_json(json.dumps(told))
    except ValidationError as error:
        return _verification(_misshapen(error))
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        given = receipt if isinstance(receipt, str) else type(receipt).__name__
        return Verification(differences=(Difference(field="receipt", stated=given, rule=f"no receipt: {error}"),))
    seal = list(sealed(read, expected))
    holds = read.signature is not None and not {found.field for found in seal} & {"digest", "signature.value"}
    return _verification(
        chain(seal, bound(read), consistent(read), settled(read)),
        signed_by=read.signature.public_key if read.signature is not None and holds else None,
    )


def _verification(found: Iterator[Difference], signed_by: str | None = None) -> Verification:
    first = tuple(islice(found, _MOST))
    return Verification(differences=first, more=sum(1 for _ in found), signed_by=signed_by)


def _told(receipt: Any) -> tuple[type[Receipt | AgentView], dict[str, Any]]:
    """Return which kind of receipt it claims to be, and its JSON as a dict, whatever it came as."""
    if isinstance(receipt, Receipt | AgentView):
        receipt = receipt.model_dump(mode="json", by_alias=True, warnings=False)
    elif isinstance(receipt, str | bytes | bytearray):
        receipt = loads(receipt)
    if not isinstance(receipt, Mapping):
        raise TypeError(f"give the object, its JSON as a dict, or as a text, not {type(receipt).__name__}")
    return AgentView if str(receipt.get("schema")).startswith(_OF_VIEWS) else Receipt, dict(receipt)


def _misnamed(kind: type[Record], told: dict[str, Any], where: tuple[str | int, ...] = ()) -> Iterator[Difference]:
    """Tell which fields are missing or unknown; the models would hold a copy of the whole object for each of them."""
    names = [field.alias or name for name, field in kind.model_fields.items()]
    for name in names:
        if name not in told:
            yield Difference(field=spelled((*where, name)), stated=None, rule="it is missing")
    for name, value in told.items():
        if name not in names:
            yield Difference(field=spelled((*where, name)), stated=value, rule="receipts have no such field")
    if where:
        return
    for name, inner in _RECORDS.items():
        value = told.get(name) if name in names else None
        for k, one in enumerate(value if isinstance(value, list) else [value]):
            at = (name, k) if isinstance(value, list) else (name,)
            found = list(_misnamed(inner, one, at)) if isinstance(one, dict) else []
            yield from found
            if found:  # of a list the first wrong entry is enough
                break


def _misshapen(error: ValidationError) -> Iterator[Difference]:
    for found in error.errors(include_url=False):
        rule = _RULES.get(found["type"], "").format_map(found.get("ctx", {}))
        rule = rule or f"{found['msg'][:1].lower()}{found['msg'][1:]}"
        yield Difference(field=spelled(found["loc"]), stated=found["input"], rule=rule)
