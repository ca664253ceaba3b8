"""What the tables hold, told as records."""

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    delete,
    func,
    literal_column,
    or_,
    select,
    update,
)

from llm_auction_chain.ledger import tables
from llm_auction_chain.ledger.chain import as_time, key_of
from llm_auction_chain.ledger.records import Account, Booking, Charge, ChargeLine, Entry, Head, Hold, Totals
from llm_auction_chain.ledger.transaction import AuctionRow, Booked, booked
from llm_auction_chain.money import FINEST, from_units, plus

__all__ = [
    "accounts",
    "booking_of",
    "charge_of",
    "charge_record",
    "due",
    "entries_after",
    "erase_receipts",
    "head",
    "hold_record",
    "opening",
    "receipt_of",
    "totals",
]

PAGE = 1000  # rows that are read at once
_CASH, _REVENUE = ("deposit", "withdrawal"), ("charge", "reversal")
_b, _e = tables.bookings.c, tables.entries.c


def booking_of(made: Booked) -> Booking:
    """Return a booking as it is told."""
    row = made.row
    return Booking(
        seq=row.seq,
        key=row.key,
        kind=row.kind,
        auction_id=row.auction_id,
        currency=row.currency,
        at=as_time(row.at),
        note=row.note,
        entries=tuple(_entry(row, number, *line) for number, line in enumerate(made.lines)),
        hash=row.hash,
    )


def _entry(row: Any, number: int, owner: str, amount: int, held: int, residual: int) -> Entry:
    return Entry(
        seq=row.seq,
        line=number,
        kind=row.kind,
        auction_id=row.auction_id,
        owner=owner,
        currency=row.currency,
        at=as_time(row.at),
        amount=from_units(amount, row.scale),
        held=from_units(held, row.scale),
        residual=from_units(residual, FINEST),
        note=row.note,
    )


def hold_record(made: Booked, nonce: str, most: Mapping[str, Decimal]) -> Hold:
    """Return a hold as it is told; `most` is what was asked."""
    row = made.row
    amounts = {line.owner: from_units(line.held, row.scale) for line in made.lines}
    return Hold(
        auction_id=str(row.auction_id),
        currency=row.currency,
        seq=row.seq,
        hash=row.hash,
        at=as_time(row.at),
        expires_at=as_time(row.note),
        amounts=amounts,
        without_cover=tuple(owner for owner in most if owner not in amounts),
        nonce=nonce,
    )


def charge_record(made: Booked) -> Charge:
    """Return a charge as it is told."""
    row = made.row
    lines = tuple(
        ChargeLine(
            owner=line.owner,
            amount=from_units(-line.amount, row.scale),
            residual=from_units(-line.residual, FINEST),
        )
        for line in made.lines
    )
    return Charge(
        auction_id=str(row.auction_id),
        currency=row.currency,
        seq=row.seq,
        hash=row.hash,
        at=as_time(row.at),
        lines=lines,
        total=from_units(-sum(line.amount for line in made.lines), row.scale),
        receipt=row.receipt,
    )


def charge_of(connection: Connection, auction_id: str) -> Charge | None:
    """Return what an auction was charged, reversed or not."""
    statement = select(tables.bookings).where(_b.key == bindparam("key"))
    found = booked(connection, statement, {"key": key_of("charge", auction_id)})
    return charge_record(found[0]) if found else None


def receipt_of(connection: Connection, auction_id: str) -> dict[str, Any] | None:
    """Return the stored body of a receipt."""
    body = connection.execute(select(tables.receipts.c.body).where(tables.receipts.c.auction_id == auction_id)).scalar()
    return None if body is None else dict(json.loads(body))


def erase_receipts(connection: Connection, before: str) -> int:
    """Delete the bodies of receipts of charges that were booked before, and the nonces their salts were made of."""
    # a writer who has read an auction's nonce would write it again
    connection.execute(select(tables.head.c.id).with_for_update())
    held = select(_b.seq).where(_b.kind == "hold", _b.at < before)
    columns = tables.auctions.c
    connection.execute(
        update(tables.auctions).where(columns.state != "held", columns.hold_seq.in_(held)).values(nonce="")
    )
    old = select(_b.auction_id).where(_b.kind == "charge", _b.at < before)
    return int(connection.execute(delete(tables.receipts).where(tables.receipts.c.auction_id.in_(old))).rowcount)


def head(connection: Connection) -> Head:
    """Return the end of the chain."""
    row = connection.execute(select(tables.head).where(tables.head.c.id == 1)).one_or_none()
    return Head(seq=row.seq, hash=row.hash) if row else Head(seq=0, hash="")


def due(connection: Connection, now: str) -> list[AuctionRow]:
    """Return auctions whose hold is over, a page of them, the longest first."""
    columns = tables.auctions.c
    statement = (
        select(tables.auctions)
        .where(columns.state == "held", columns.expires_at <= now)
        .order_by(columns.expires_at, columns.hold_seq)
        .limit(PAGE)
    )
    return [AuctionRow.of(row) for row in connection.execute(statement)]


def accounts(connection: Connection, credit: Decimal, owner: str | None = None, currency: str = "") -> list[Account]:
    """Return how all accounts stand, or one, by owner and currency."""
    columns = tables.accounts.c
    statement = select(tables.accounts, tables.currencies.c.scale).join(
        tables.currencies, tables.currencies.c.code == columns.currency
    )
    if owner is not None:
        statement = statement.where(columns.owner == owner, columns.currency == currency)
    found = [
        Account(
            owner=row.owner,
            currency=row.currency,
            balance=from_units(row.balance, row.scale),
            held=from_units(row.held, row.scale),
            available=plus(from_units(row.balance - row.held, row.scale), credit),
        )
        for row in connection.execute(statement)
    ]
    return sorted(found, key=lambda account: (account.owner, account.currency))


def _chosen(columns: Any, owner: str | None, currency: str | None, since: str | None, until: str | None) -> Select[Any]:
    asked: list[tuple[str | None, Callable[[Any], ColumnElement[bool]]]] = [
        (owner, _e.owner.__eq__),
        (currency, _b.currency.__eq__),
        (since, _b.at.__ge__),
        (until, _b.at.__lt__),
    ]
    wanted = [condition(value) for value, condition in asked if value is not None]
    return select(*columns).join_from(tables.bookings, tables.entries, _b.seq == _e.seq).where(*wanted)


def entries_after(connection: Connection, place: tuple[int, int], last: int, **chosen: str | None) -> list[Entry]:
    """Return a page of entries that follow a place (seq, line), up to a last booking."""
    columns = _b["seq", "kind", "auction_id", "currency", "at", "scale", "note"]
    statement = (
        _chosen([*columns, *_e["line", "owner", "amount", "held", "residual"]], **_filled(chosen))
        .where(or_(_e.seq > place[0], and_(_e.seq == place[0], _e.line > place[1])), _e.seq <= last)
        .order_by(_e.seq, _e.line)
        .limit(PAGE)
    )
    return [
        _entry(row, row.line, row.owner, row.amount, row.held, row.residual) for row in connection.execute(statement)
    ]


def _filled(chosen: dict[str, str | None]) -> dict[str, str | None]:
    return {name: chosen.get(name) for name in ("owner", "currency", "since", "until")}


def opening(connection: Connection, owner: str, currency: str, since: str | None) -> tuple[Decimal, Decimal]:
    """Return nothing, in the currency's decimals, and an account's balance before a time."""
    chosen = select(tables.currencies.c.scale).where(tables.currencies.c.code == currency)
    scale = connection.execute(chosen).scalar() or 0
    if since is None:
        return from_units(0, scale), from_units(0, scale)
    moved = _joined(*connection.execute(_chosen(_sum(_e.amount), owner, currency, None, since)).one())
    return from_units(0, scale), from_units(moved, scale)


def totals(connection: Connection) -> list[Totals]:
    """Return all of each currency; cash and revenue from the entries, balances and holds from the accounts."""
    sums: dict[tuple[str, bool], tuple[int, int]] = {}
    statement = (
        _chosen([_b.currency, _b.kind, *_sum(_e.amount), *_sum(_e.residual)], None, None, None, None)
        .where(_b.kind.in_(_CASH + _REVENUE))
        .group_by(_b.currency, _b.kind)
    )
    for currency, kind, *parts in connection.execute(statement):
        amount, residual = sums.get((currency, kind in _CASH), (0, 0))
        sums[currency, kind in _CASH] = (amount + _joined(*parts[:2]), residual + _joined(*parts[2:]))
    columns = tables.accounts.c
    standing = select(columns.currency, *_sum(columns.balance), *_sum(columns.held)).group_by(columns.currency)
    stands = {row[0]: (_joined(*row[1:3]), _joined(*row[3:5])) for row in connection.execute(standing)}
    return [
        Totals(
            currency=code,
            cash=from_units(sums.get((code, True), (0, 0))[0], scale),
            revenue=from_units(-sums.get((code, False), (0, 0))[0], scale),
            balances=from_units(stands.get(code, (0, 0))[0], scale),
            held=from_units(stands.get(code, (0, 0))[1], scale),
            residual=from_units(-sums.get((code, False), (0, 0))[1], FINEST),
        )
        for code, scale in sorted(tuple(row) for row in connection.execute(select(tables.currencies)))
    ]


def _sum(column: ColumnElement[int]) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """Return a sum as two: SQLite has no whole numbers beyond 64 bits."""
    high, low = (column.op(sign)(literal_column(number)) for sign, number in ((">>", "32"), ("&", "4294967295")))
    return func.sum(high, type_=BigInteger), func.sum(low, type_=BigInteger)


def _joined(high: Any, low: Any) -> int:
    return (int(high or 0) << 32) + int(low or 0)
