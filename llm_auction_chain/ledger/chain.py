"""The chain of bookings: each carries a hash of itself, its entries and the hash before it."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from llm_auction_chain.canonical_json import digest_without_floats, time_text
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.money import FINEST, in_units

__all__ = ["BookingRow", "Line", "as_time", "evidence_of", "hash_of", "key_of", "request_of", "spell_time"]


class BookingRow(NamedTuple):
    """A row of `bookings`, in the table's order of columns."""

    seq: int
    key: str
    kind: str
    auction_id: str | None
    currency: str
    scale: int
    at: str
    note: str
    request: str
    receipt: str
    evidence: str
    previous: str
    hash: str


class Line(NamedTuple):
    """What an entry changes: the balance and the holds, in units, and the residual, in millionths of the balance."""

    owner: str
    amount: int
    held: int
    residual: int


def hash_of(row: BookingRow, lines: Sequence[Line]) -> str:
    """Return the hash of a booking and its entries, whatever its column `hash` says.

    Whole numbers are text there, for canonical JSON has none beyond 2**53.
    """
    columns = {name: value if value is None else str(value) for name, value in row._asdict().items() if name != "hash"}
    return digest_without_floats({**columns, "entries": [[str(value) for value in line] for line in lines]})


def evidence_of(text: str) -> str:
    """Return the digest of what stands beside the chain, a hold's nonce or a stored receipt; empty for nothing."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if text else ""


def key_of(kind: str, *parts: str) -> str:
    """Return the unique key of a booking, different parts never alike.

    >>> key_of("charge", "a-1"), key_of("reversal", "a:1", "x")
    ('charge:a-1', 'reversal:a%3A1:x')
    """
    return ":".join((kind, *(part.replace("%", "%25").replace(":", "%3A").replace("*", "%2A") for part in parts)))


def request_of(kind: str, subject: str, currency: str, amounts: Mapping[str, Decimal], reply: str = "") -> str:
    """Return a digest of what was asked: the same for amounts that are equal, in any order.

    Amounts of nothing do not count in a charge, which may or may not name those that pay nothing.
    """
    asked = {owner: in_units(amount, FINEST)[0] for owner, amount in amounts.items()}
    said = sorted([owner, str(amount)] for owner, amount in asked.items() if amount or kind != "charge")
    return digest_without_floats(
        {"kind": kind, "subject": subject, "currency": currency, "amounts": said, "reply": reply}
    )


def spell_time(moment: datetime, name: str) -> str:
    """Return a moment as the ledger spells it: UTC, microseconds, in the order of time.

    Raises:
        ConfigurationError: it has no time zone.

    >>> from datetime import UTC
    >>> spell_time(datetime(2026, 1, 2, tzinfo=UTC), "since")
    '2026-01-02T00:00:00.000000Z'
    """
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ConfigurationError(f"{name} is {moment!r}; give a datetime with a time zone.")
    try:
        return time_text(moment)
    except OverflowError as error:
        raise ConfigurationError(f"{name} is {moment!r}; give a time within the years 1 to 9999 in UTC.") from error


def as_time(spelled: str) -> datetime:
    """Return the moment that was spelled."""
    return datetime.fromisoformat(spelled)
