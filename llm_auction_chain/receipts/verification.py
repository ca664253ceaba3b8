"""Verification of receipts: everything is recomputed from the receipt alone and compared with what it states."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from pydantic import ValidationError

from llm_auction_chain.canonical_json import loads, printable
from llm_auction_chain.receipts import checks, records
from llm_auction_chain.receipts.checks import Difference, path_text
from llm_auction_chain.receipts.records import AgentView, Receipt, Record
from llm_auction_chain.receipts.signing import public_key_hex
from llm_auction_chain.validators import digest_text, text

_MOST = 100
_RECORDS: dict[str, type[Record]] = {
    "agents": records.Bid,
    "candidates": records.Reply,
    "components": records.Component,
    "left_out": records.LeftOut,
    "salts": records.Salts,
    "hidden": records.Hidden,
    "signature": records.Signature,
}
_RULES = {
    "greater_than_equal": "it should be at least {ge!r}",
    "less_than_equal": "it should be at most {le!r}",
    "less_than": "it should be less than {lt!r}",
}
_OTHERS = {
    "request_id": "a request to a bidder",
    "rewards": "a bidder's answer",
    "differences": "the result of a verification",
    "sponsors": "an outcome",
    "settlement": "a stored result",
    "response_metadata": "a message",
    "lc": "a message",
    "auction": "the metadata of a message",
    "auctions": "the state of an agent",
    "entries": "a statement of the ledger",
    "seq": "an entry of the ledger",
    "balance": "an account of the ledger",
    "$schema": "a schema",
}
"""What other JSON of this package is, by a key that receipts and views do not have."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The result of a verification.

    Attributes:
        differences: the first hundred differences; none if the receipt is valid.
        more: number of further differences. In a list with malformed entries only the first such entry is examined.
        signed_by: the public key of a valid signature, hexadecimal. None if there is no signature, or if it is not a
            signature of the digest of this content.
    """

    differences: tuple[Difference, ...]
    more: int = 0
    signed_by: str | None = None

    @property
    def ok(self) -> bool:
        """Whether there are no differences."""
        return not self.differences


def verify(
    receipt: Receipt | AgentView | Mapping[str, Any] | str | bytes,
    *,
    auction_id: str | None = None,
    opening: str | None = None,
    public_key: Any = None,
) -> Verification:
    """Recompute a receipt or an agent's view from its own content and report every difference.

    Distribution, draw, contributions, payments, charges, commitments and digest are recomputed, without clock, network
    or model. The digest reveals any change. A forger who recomputes the digest is caught by the other checks or by a
    signature. A value that is not a receipt gives a difference, not an error.

    Args:
        receipt: the object, its JSON as a dict, or its JSON as a text.
        auction_id: the auction that it must be of. Without it, a valid receipt of any auction is valid.
        opening: the commitment that agents received before they reported, which the receipt must open.
        public_key: an Ed25519 public key that must have signed the receipt. Without it, a signature is checked against
            the key that it names, which anyone may have made.

    Raises:
        ConfigurationError: `auction_id` is not a text, `opening` is not a digest, or `public_key` is a key of another
            kind.
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
    signer = None if public_key is None else public_key_hex(public_key)
    expected = _expected(auction_id, opening)
    try:
        kind, content = _parse(receipt)
        wrong_names = _check_names(kind, content)
        first = next(wrong_names, None)
        if first is not None:
            return _verification(chain([first], wrong_names))
        record = kind.model_validate_json(json.dumps(content))
    except ValidationError as error:
        return _verification(_malformed(error))
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        stated = receipt if isinstance(receipt, str) else type(receipt).__name__
        return Verification(differences=(Difference(field="receipt", stated=stated, rule=f"not a receipt: {error}"),))
    seal = list(checks.check_seal(record, signer))
    signed = record.signature is not None and not {one.field for one in seal} & {"digest", "signature.value"}
    return _verification(
        chain(
            seal,
            checks.check_expected(record, expected),
            checks.check_commitments(record),
            checks.check_consistency(record),
            checks.check_figures(record),
        ),
        signed_by=record.signature.public_key if record.signature is not None and signed else None,
    )


def _expected(auction_id: str | None, opening: str | None) -> dict[str, str]:
    """Return the fields whose values the caller knows, as receipts spell them."""
    expected = {}
    if auction_id is not None:
        expected["auction_id"] = printable(text("auction_id", auction_id))
    if opening is not None:
        expected["opening"] = digest_text("opening", opening)
    return expected


def _verification(differences: Iterator[Difference], signed_by: str | None = None) -> Verification:
    first = tuple(islice(differences, _MOST))
    return Verification(differences=first, more=sum(1 for _ in differences), signed_by=signed_by)


def _parse(receipt: Any) -> tuple[type[Receipt | AgentView], dict[str, Any]]:
    """Return the kind of receipt that the content claims to be, and the content as a dict."""
    if isinstance(receipt, Receipt | AgentView):
        receipt = receipt.model_dump(mode="json", warnings=False)
    elif isinstance(receipt, str | bytes | bytearray):
        receipt = loads(receipt)
    if kind := other_kind(receipt):
        raise TypeError(f"this is {kind}")
    if not isinstance(receipt, Mapping):
        raise TypeError(f"pass the object, its JSON as a dict or its JSON as a text, not {type(receipt).__name__}")
    is_view = str(receipt.get("schema")).startswith("llm_auction_chain.agent_view/")
    return AgentView if is_view else Receipt, dict(receipt)


def other_kind(value: Any) -> str | None:
    """Return what JSON of this package is that is no receipt; None where it is one, or is something foreign.

    >>> other_kind({"auction_id": "x", "sponsors": []})
    'an outcome'
    """
    if not isinstance(value, Mapping) or "digest" in value:
        return None
    return next((kind for key, kind in _OTHERS.items() if key in value), None)


def _check_names(kind: type[Record], content: dict[str, Any], path: tuple[str | int, ...] = ()) -> Iterator[Difference]:
    """Yield missing and unknown fields. Pydantic would copy the whole object into the error of each."""
    names = [field.alias or name for name, field in kind.model_fields.items()]
    for name in names:
        if name not in content:
            yield Difference(field=path_text((*path, name)), stated=None, rule="it is missing")
    for name, value in content.items():
        if name not in names:
            yield Difference(field=path_text((*path, name)), stated=value, rule="receipts have no such field")
    if path:
        return
    for name, inner in _RECORDS.items():
        value = content.get(name) if name in names else None
        for k, entry in enumerate(value if isinstance(value, list) else [value]):
            at = (name, k) if isinstance(value, list) else (name,)
            differences = list(_check_names(inner, entry, at)) if isinstance(entry, dict) else []
            yield from differences
            if differences:  # the first malformed entry of a list is enough
                break


def _malformed(error: ValidationError) -> Iterator[Difference]:
    for one in error.errors(include_url=False):
        rule = _RULES.get(one["type"], "").format_map(one.get("ctx", {}))
        rule = rule or f"{one['msg'][:1].lower()}{one['msg'][1:]}"
        yield Difference(field=path_text(one["loc"]), stated=one["input"], rule=rule)
