"""Verification of receipts: everything is computed again from the receipt alone, and what differs is told."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from llm_auction_chain.receipts.checks import Difference, bound, consistent, sealed, settled, spelled
from llm_auction_chain.receipts.records import AgentView, Receipt
from llm_auction_chain.receipts.signing import digits_of

__all__ = ["Difference", "Verification", "verify"]

_OF_VIEWS = "llm_auction_chain.agent_view/"
_RULES = {
    "missing": "it is missing",
    "extra_forbidden": "receipts have no such field",
    "greater_than_equal": "it should be at least {ge!r}",
    "less_than_equal": "it should be at most {le!r}",
    "less_than": "it should be less than {lt!r}",
}


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What verification found.

    Attributes:
        differences: all of them; none where the receipt holds.
        signed_by: the public key whose signature of the digest it has, hexadecimal; None where it has none that holds.
    """

    differences: tuple[Difference, ...]
    signed_by: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def verify(receipt: Receipt | AgentView | Mapping[str, Any] | str | bytes, *, public_key: Any = None) -> Verification:
    """Compute a receipt, or an agent's view, again from itself alone, and tell every difference.

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
        read = _read(receipt)
    except ValidationError as error:
        return Verification(differences=tuple(_misshapen(error)))
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        given = receipt if isinstance(receipt, str) else type(receipt).__name__
        return Verification(differences=(Difference(field="receipt", stated=given, rule=f"no receipt: {error}"),))
    signature = list(sealed(read, expected))
    holds = read.signature is not None and not any(found.field == "signature.value" for found in signature)
    return Verification(
        differences=(*signature, *bound(read), *consistent(read), *settled(read)),
        signed_by=read.signature.public_key if read.signature is not None and holds else None,
    )


def _read(receipt: Any) -> Receipt | AgentView:
    """Return a receipt of which every field has been checked, whatever it came as."""
    if isinstance(receipt, Receipt | AgentView):
        receipt = receipt.model_dump(mode="json", by_alias=True, warnings=False)
    elif isinstance(receipt, str | bytes | bytearray):
        receipt = json.loads(receipt, object_pairs_hook=_unambiguous)
    if not isinstance(receipt, Mapping):
        raise TypeError(f"give the object, its JSON as a dict, or as a text, not {type(receipt).__name__}")
    kind = AgentView if str(receipt.get("schema")).startswith(_OF_VIEWS) else Receipt
    return kind.model_validate_json(json.dumps(dict(receipt)))


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object without a key twice, of which every reader would take another."""
    read = dict(pairs)
    if len(read) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return read


def _misshapen(error: ValidationError) -> Iterator[Difference]:
    for found in error.errors(include_url=False):
        stated = None if found["type"] == "missing" else found["input"]
        rule = _RULES.get(found["type"], "").format_map(found.get("ctx", {}))
        rule = rule or f"{found['msg'][:1].lower()}{found['msg'][1:]}"
        yield Difference(field=spelled(found["loc"]), stated=stated, rule=rule)
