"""Queries that return the ledger's records."""

import json
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from operator import eq, ge, lt
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Select, func, literal_column, select, tuple_

from llm_auction_chain.errors import LedgerError
from llm_auction_chain.ledger import tables
from llm_auction_chain.ledger.chain import content, key_of, rest_of
from llm_auction_chain.ledger.database import reading
from llm_auction_chain.ledger.records import (
    Account,
    Booking,
    Charge,
    ChargeLine,
    Delivered,
    Entry,
    Head,
    Hold,
    Links,
    Totals,
)
from llm_auction_chain.ledger.transaction import AuctionRow, Booked, booked
from llm_auction_chain.money import FINEST, from_units, plus

Conditions = list[ColumnElement[bool]]
PAGE = 1000  # rows of one query
_CASH, _REVENUE = ("deposit", "withdrawal"), ("charge", "reversal")
_b, _e = tables.bookings.c, tables.entries.c


@reading()
def booking_record(booking: Booked) -> Booking:
    """Return the record of a booking."""
    row, lines = booking
    entries = tuple(_entry(row, number, *line) for number, line in enumerate(lines))
    return Booking(**_columns(row, "seq", "key", "kind", "auction_id", "currency", "note", "hash"), entries=entries)


def _entry(row: Any, number: int, owner: str, amount: int, held: int, residual: int) -> Entry:
    return Entry(
        **_columns(row, "seq", "kind", "auction_id", "currency", "note"),
        line=number,
        owner=owner,
        amount=from_units(amount, row.scale),
        held=from_units(held, row.scale),
        residual=from_units(residual, FINEST),
    )


def _columns(row: Any, *names: str) -> dict[str, Any]:
    """Return columns of a booking, and its time."""
    return {**{name: getattr(row, name) for name in names}, "at": datetime.fromisoformat(row.at)}


@reading()
def hold_record(booking: Booked, nonce: str, most: Mapping[str, int], delivered: Delivered | None) -> Hold:
    """Return the record of a hold; `most` is the request."""
    row = booking.row
    amounts = {line.owner: from_units(line.held, row.scale) for line in booking.lines}
    return Hold(
        **_columns(row, "seq", "auction_id", "currency", "hash"),
        expires_at=datetime.fromisoformat(row.note),
        amounts=amounts,
        without_cover=tuple(owner for owner in most if owner not in amounts),
        nonce=nonce,
        delivered=delivered,
    )


@reading()
def charge_record(booking: Booked) -> Charge:
    """Return the record of a charge."""
    row = booking.row
    lines = tuple(
        ChargeLine(owner=owner, amount=from_units(-amount, row.scale), residual=from_units(-residual, FINEST))
        for owner, amount, _, residual in booking.lines
    )
    return Charge(
        **_columns(row, "seq", "auction_id", "currency", "hash"),
        lines=lines,
        total=from_units(-sum(line.amount for line in booking.lines), row.scale),
        receipt=row.receipt,
    )


def receipt_of(connection: Connection, auction_id: str) -> dict[str, Any] | None:
    """Return the stored receipt of an auction."""
    body = connection.scalar(select(tables.receipts.c.body).where(tables.receipts.c.auction_id == auction_id))
    return dict(json.loads(body)) if body else None


def links(connection: Connection, auction_id: str, head: str | None) -> Links | None:
    """Return how the charge of an auction is linked to a later booking, or to the last one."""
    charge = next(iter(booked(connection, _b.key == key_of("charge", auction_id))), None)
    if charge is None:
        return None
    row = end = charge.row
    if not row.views:
        raise LedgerError(f"Booking {row.seq}, the charge of {auction_id!r}, has no root of views.")
    later: list[str] = []
    while end.hash != head and (page := booked(connection, _b.seq > end.seq, limit=PAGE)):
        for end, lines in page:
            later.append(content(end.views or "", rest_of(end, lines)))
            if end.hash == head:
                break
    if head not in (None, end.hash):
        raise LedgerError(f"No booking from {row.seq} on has the hash {head!r}.")
    return Links(
        previous=row.previous,
        rest=rest_of(*charge),
        later=tuple(later),
        head=Head(seq=end.seq, hash=end.hash),
    )


def reply_of(connection: Connection, auction_id: str) -> str:
    """Return the stored reply of an auction; empty where none is kept."""
    of_auction = tables.receipts.c.auction_id == auction_id
    return connection.scalar(select(tables.receipts.c.reply).where(of_auction)) or ""


def erase_receipts(connection: Connection, before: str) -> int:
    """Delete receipts of charges before a time, and the nonces from which their salts were derived."""
    # lock the writers out: one that has read an auction's nonce would write it again
    connection.execute(select(tables.head.c.id).with_for_update())
    held = select(_b.seq).where(_b.kind == "hold", _b.at < before)
    closed = (tables.auctions.c.state != "held") & tables.auctions.c.hold_seq.in_(held)
    connection.execute(tables.auctions.update().where(closed).values(nonce=""))
    old = select(_b.auction_id).where(_b.kind == "charge", _b.at < before)
    return connection.execute(tables.receipts.delete().where(tables.receipts.c.auction_id.in_(old))).rowcount


def head(connection: Connection) -> Head:
    """Return the end of the chain."""
    row = connection.execute(select(tables.head).where(tables.head.c.id == 1)).one_or_none()
    return Head(seq=row.seq, hash=row.hash) if row else Head(seq=0, hash="")


def due(connection: Connection, now: str) -> list[AuctionRow]:
    """Return a page of the auctions whose hold has expired, the oldest first."""
    columns = tables.auctions.c
    statement = (
        select(tables.auctions)
        .where(columns.state == "held", columns.expires_at <= now)
        .order_by(columns.expires_at, columns.hold_seq)
        .limit(PAGE)
    )
    return [AuctionRow(*row) for row in connection.execute(statement)]


def accounts(connection: Connection, credit: Decimal, owner: str | None = None, currency: str = "") -> list[Account]:
    """Return all accounts, or one, by owner and currency."""
    columns = tables.accounts.c
    statement = select(tables.accounts, tables.currencies.c.scale).join(
        tables.currencies, tables.currencies.c.code == columns.currency
    )
    if owner is not None:
        statement = statement.where(columns.owner == owner, columns.currency == currency)
    records = [
        Account(
            owner=row.owner,
            currency=row.currency,
            balance=from_units(row.balance, row.scale),
            held=from_units(row.held, row.scale),
            available=plus(from_units(row.balance - row.held, row.scale), credit),
        )
        for row in connection.execute(statement)
    ]
    return sorted(records, key=lambda account: (account.owner, account.currency))


def _with_entries(*columns: Any) -> Select[Any]:
    """Return a query of bookings joined with their entries."""
    return select(*columns).join_from(tables.bookings, tables.entries, _b.seq == _e.seq)


def conditions(owner: str | None, currency: str | None, since: str | None, until: str | None) -> Conditions:
    """Return the conditions for the entries of an account from a time to before another; None is all."""
    chosen = ((_e.owner, eq, owner), (_b.currency, eq, currency), (_b.at, ge, since), (_b.at, lt, until))
    return [compare(column, value) for column, compare, value in chosen if value is not None]


def entries_after(connection: Connection, place: tuple[int, int], last: int, chosen: Conditions) -> list[Entry]:
    """Return a page of the chosen entries that follow a place (seq, line), up to a last booking."""
    booking = _b["seq", "kind", "auction_id", "currency", "at", "scale", "note"]
    query = _with_entries(*booking, *_e["line", "owner", "amount", "held", "residual"])
    query = query.where(tuple_(_e.seq, _e.line) > place, _e.seq <= last, *chosen)
    query = query.order_by(_e.seq, _e.line).limit(PAGE)
    return [_entry(row, row.line, row.owner, row.amount, row.held, row.residual) for row in connection.execute(query)]


def opening(connection: Connection, owner: str, currency: str, since: str | None) -> tuple[Decimal, Decimal]:
    """Return zero in the currency's decimals, and an account's balance before a time."""
    scales = select(tables.currencies.c.scale).where(tables.currencies.c.code == currency)
    scale = connection.execute(scales).scalar() or 0
    moved = 0
    if since is not None:
        before = _with_entries(*_sum(_e.amount)).where(*conditions(owner, currency, None, since))
        moved = _joined(*connection.execute(before).one())
    return from_units(0, scale), from_units(moved, scale)


def totals(connection: Connection) -> list[Totals]:
    """Return the sums of each currency: cash and revenue from entries, balances and holds from accounts."""
    sums: Counter[tuple[str, str]] = Counter()
    query = _with_entries(_b.currency, _b.kind, *_sum(_e.amount), *_sum(_e.residual))
    query = query.where(_b.kind.in_(_CASH + _REVENUE)).group_by(_b.currency, _b.kind)
    for code, kind, *parts in connection.execute(query):
        name = "cash" if kind in _CASH else "revenue"
        sums[code, name] += _joined(*parts[:2])
        sums[code, f"residual of {name}"] += _joined(*parts[2:])
    columns = tables.accounts.c
    query = select(columns.currency, *_sum(columns.balance), *_sum(columns.held)).group_by(columns.currency)
    for code, *parts in connection.execute(query):
        sums[code, "balances"], sums[code, "held"] = _joined(*parts[:2]), _joined(*parts[2:])
    return [
        Totals(
            currency=code,
            cash=from_units(sums[code, "cash"], scale),
            revenue=from_units(-sums[code, "revenue"], scale),
            balances=from_units(sums[code, "balances"], scale),
            held=from_units(sums[code, "held"], scale),
            residual=from_units(-sums[code, "residual of revenue"], FINEST),
        )
        for code, scale in sorted(tuple(row) for row in connection.execute(select(tables.currencies)))
    ]


def _sum(column: ColumnElement[int]) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """Return a sum as two columns, because SQLite has no whole numbers beyond 64 bits."""
    high, low = (column.op(sign)(literal_column(number)) for sign, number in ((">>", "32"), ("&", "4294967295")))
    return func.sum(high, type_=BigInteger), func.sum(low, type_=BigInteger)


def _joined(high: Any, low: Any) -> int:
    return (int(high or 0) << 32) + int(low or 0)
