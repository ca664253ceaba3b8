"""The hash chain: each booking carries a hash of itself, of its entries and of the previous hash."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llm_auction_chain.canonical_json import digest
from llm_auction_chain.merkle import hashed


class BookingRow(NamedTuple):
    """A row of `bookings`, in the order of the table's columns. Its place in the chain may be empty at first."""

    seq: int = 0
    key: str = ""
    kind: str = ""
    auction_id: str | None = None
    currency: str = ""
    scale: int = 0
    at: str = ""
    note: str = ""
    request: str = ""
    receipt: str = ""
    evidence: str = ""
    previous: str = ""
    hash: str = ""
    views: str | None = ""  # Merkle root over the views of the auction; None in bookings from before there were roots


class Line(NamedTuple):
    """What an entry changes: the balance and the holds, in units, and the residual, in millionths."""

    owner: str
    amount: int
    held: int
    residual: int


def hash_of(row: BookingRow, lines: Sequence[Line]) -> str:
    """Return the hash of a booking and its entries, computed without its column `hash`."""
    if row.views is None:
        return _digest(row, lines, ("hash", "views"))
    return link(row.previous, content(row.views, rest_of(row, lines)))


def rest_of(row: BookingRow, lines: Sequence[Line]) -> str:
    """Return the digest of a booking and its entries, without its place in the chain and the root of the views."""
    return _digest(row, lines, ("previous", "hash", "views"))


def content(views: str, rest: str) -> str:
    """Return the hash of what a booking contains. It can be shown with the root of the views, and nothing else."""
    return hashed(b"\x02", rest, views)


def link(previous: str, contained: str) -> str:
    """Return the hash of a booking, given that of the one before it and the hash of what it contains."""
    return hashed(b"\x03", contained, previous)


def _digest(row: BookingRow, lines: Sequence[Line], without: tuple[str, ...]) -> str:
    """Whole numbers are hashed as text, because canonical JSON has none above 2**53."""
    columns = {
        name: value if value is None else str(value) for name, value in row._asdict().items() if name not in without
    }
    return digest({**columns, "entries": [[str(value) for value in line] for line in lines]}, floats=False)


def evidence_of(text: str, reply: str = "") -> str:
    """Return the digest of what is stored outside the chain: a nonce, or a receipt and a reply. Empty stays empty."""
    text = json.dumps([text, reply]) if reply else text
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if text else ""


def key_of(kind: str, *parts: str, number: int = 0) -> str:
    """Return the unique key of a booking. Different parts never give the same key.

    A `number` other than 0 is added to it, for bookings of the same kind and parts.

    >>> key_of("charge", "a-1"), key_of("reversal", "a:1", "x"), key_of("hold", "a-1", number=2)
    ('charge:a-1', 'reversal:a%3A1:x', 'hold:a-1:2')
    """
    if number:
        parts = (*parts, str(number))
    return ":".join((kind, *(part.replace("%", "%25").replace(":", "%3A").replace("*", "%2A") for part in parts)))


def request_of(kind: str, subject: str, currency: str, amounts: Mapping[str, int], reply: str = "") -> str:
    """Return a digest of a request, the same for equal amounts in any order. They are in millionths.

    A charge may leave out owners that pay nothing, so zeros do not count in it.
    """
    spelled = sorted([owner, str(amount)] for owner, amount in amounts.items() if amount or kind != "charge")
    request = {"kind": kind, "subject": subject, "currency": currency, "amounts": spelled, "reply": reply}
    return digest(request, floats=False)
