"""The audit: the chain is read from its beginning, and everything else must follow from it."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from llm_auction_chain.ledger import tables
from llm_auction_chain.ledger.chain import BookingRow, Line, evidence_of, hash_of
from llm_auction_chain.ledger.records import Audit
from llm_auction_chain.ledger.replay import Replay
from llm_auction_chain.ledger.transaction import AuctionRow

__all__ = ["verify"]

_PAGE = 1000
_UNREADABLE = (TypeError, ValueError, ArithmeticError, AttributeError)
_b, _e = tables.bookings.c, tables.entries.c


def verify(connection: Connection, *, head: str | None = None) -> Audit:
    """Return what differs between the chain, its hashes, and all that follows from it.

    Args:
        connection: sees one state of the database.
        head: a hash that must be in the chain.
    """
    differences: list[str] = []
    replay, chain = Replay(differences.append), _Chain(differences.append, head)
    sections: tuple[Callable[[], Iterator[str]], ...] = (
        lambda: chain.read(connection, replay),
        lambda: _head(connection, chain.last),
        lambda: _currencies(connection, replay),
        lambda: _accounts(connection, replay),
        lambda: _auctions(connection, replay),
        lambda: _receipts(connection),
    )
    for section in sections:
        try:
            differences.extend(section())
        except _UNREADABLE as error:
            differences.append(f"A table holds what cannot be read: {error}.")
        except DBAPIError as error:
            if not _undecodable(error):
                raise
            differences.append(f"A table holds what cannot be read: {error.orig}.")
    return Audit(ok=not differences, differences=differences, bookings=chain.count, head=chain.last.hash)


def _undecodable(error: DBAPIError) -> bool:
    """Return whether SQLite found a text that is none: Python says so, and the database gives no code."""
    return isinstance(error.orig, sqlite3.Error) and not hasattr(error.orig, "sqlite_errorname")


class _Chain:
    """Reads the chain, and keeps where it ends.

    Args:
        tell: hears what differs.
        head: a hash to look for.
    """

    def __init__(self, tell: Callable[[str], None], head: str | None) -> None:
        self._tell = tell
        self._head = head
        self.last = BookingRow(0, "", "", None, "", 0, "", "", "", "", "", "", "")
        self.count = 0

    def read(self, connection: Connection, replay: Replay) -> Iterator[str]:
        """Yield what differs in the bookings and their entries."""
        seen = self._head in (None, "")
        for row, lines in _chain(connection, self._tell):
            self.count += 1
            try:
                yield from _links(row, self.last)
                if hash_of(row, lines) != row.hash:
                    yield f"Booking {row.seq} or its entries were changed: its hash is not theirs."
                replay.book(row, lines)
            except _UNREADABLE as error:
                yield f"Booking {row.seq} cannot be read: {error}."
            seen, self.last = seen or row.hash == self._head, row
        if not seen:
            yield f"The hash {self._head!r}, noted elsewhere, is not in the chain: bookings were changed or removed."


def _links(row: BookingRow, last: BookingRow) -> Iterator[str]:
    if row.seq != last.seq + 1:
        yield f"Booking {last.seq + 1} is missing: {row.seq} follows {last.seq}."
    if row.previous != last.hash:
        yield f"Booking {row.seq} does not link to the hash of the one before it."
    if row.at < last.at:
        yield f"Booking {row.seq} is dated before the one before it."


def _chain(connection: Connection, tell: Callable[[str], None]) -> Iterator[tuple[BookingRow, list[Line]]]:
    """Yield bookings with their entries, a page at a time, and tell of entries that have none."""
    low = -(2**63)
    while True:
        rows = [BookingRow(*row) for row in _page(connection, tables.bookings, _b.seq, low)]
        bounds = (_e.seq >= low) & (_e.seq <= rows[-1].seq) if rows else _e.seq >= low
        lines: dict[int, list[Line]] = {row.seq: [] for row in rows}
        numbers: dict[int, list[int]] = {row.seq: [] for row in rows}
        for seq, number, *line in connection.execute(select(tables.entries).where(bounds).order_by(_e.seq, _e.line)):
            if seq not in lines:
                tell(f"Entry {number} of booking {seq} has no booking.")
                continue
            lines[seq].append(Line(*line))
            numbers[seq].append(number)
        for row in rows:
            if numbers[row.seq] != list(range(len(numbers[row.seq]))):
                tell(f"Booking {row.seq} has entries numbered {numbers[row.seq]}: one was removed or moved.")
            yield row, lines[row.seq]
        if not rows:
            return
        low = rows[-1].seq + 1


def _page(connection: Connection, table: Any, column: Any, low: int) -> Sequence[Any]:
    return connection.execute(select(table).where(column >= low).order_by(column).limit(_PAGE)).all()


def _rows(connection: Connection, table: Any) -> Iterator[Any]:
    """Yield a table's rows, in pages where the driver can."""
    yield from connection.execution_options(yield_per=_PAGE).execute(select(table))


def _head(connection: Connection, last: BookingRow) -> Iterator[str]:
    found = [tuple(row) for row in connection.execute(select(tables.head))]
    if found != [(1, last.seq, last.hash, last.at)]:
        yield f"The table head does not name the last booking, {last.seq}."


def _currencies(connection: Connection, replay: Replay) -> Iterator[str]:
    found = {row.code: row.scale for row in _rows(connection, tables.currencies)}
    for code in sorted(found.keys() | replay.scales.keys()):
        if found.get(code) != replay.scales.get(code):
            yield (
                f"Currency {code!r} has {found.get(code)} decimals in its table, "
                f"{replay.scales.get(code)} in its bookings."
            )


def _accounts(connection: Connection, replay: Replay) -> Iterator[str]:
    expected = dict(replay.accounts)
    sums: dict[str, int] = {}
    for row in _rows(connection, tables.accounts):
        balance, held = expected.pop((row.owner, row.currency), (None, None))
        if (row.balance, row.held) != (balance, held):
            yield (
                f"The account of {row.owner!r} in {row.currency!r} has balance {row.balance} and held {row.held} "
                f"units; its entries sum to {balance} and {held}."
            )
        if isinstance(row.balance, int):
            sums[row.currency] = sums.get(row.currency, 0) + row.balance
    for owner, currency in expected:
        yield f"The account of {owner!r} in {currency!r} is missing."
    for currency, (cash, revenue) in replay.sums.items():
        if cash != revenue + sums.get(currency, 0):
            yield f"In {currency!r}, cash of {cash} units is not revenue of {revenue} and the balances."


def _auctions(connection: Connection, replay: Replay) -> Iterator[str]:
    expected = dict(replay.auctions)
    for row in _rows(connection, tables.auctions):
        found, follows = AuctionRow.of(row), expected.pop(row.auction_id, None)
        erased = follows is not None and found.state != "held" and not found.nonce
        found = replace(found, nonce=follows.nonce if follows and erased else evidence_of(found.nonce))
        if found != follows:
            yield f"Auction {row.auction_id!r} stands as {_told(found)}; its bookings say {_told(follows)}."
    for auction_id in expected:
        yield f"Auction {auction_id!r} is missing among the auctions."


def _told(auction: AuctionRow | None) -> str:
    if auction is None:
        return "nothing"
    return ", ".join(f"{name} {value!r}" for name, value in vars(auction).items() if name != "auction_id")


def _receipts(connection: Connection) -> Iterator[str]:
    """Yield what is wrong with stored receipts; those that were erased are no difference."""
    last: str | None = None
    columns = tables.receipts.c
    while True:
        chosen = select(tables.receipts)
        if last is not None:
            chosen = chosen.where(columns.auction_id > last)
        page = connection.execute(chosen.order_by(columns.auction_id).limit(_PAGE)).all()
        if not page:
            return
        last = page[-1].auction_id
        charges = {row.auction_id: row for row in _charges(connection, [row.auction_id for row in page])}
        for receipt in page:
            charged = charges.get(receipt.auction_id)
            kept = (receipt.digest, evidence_of(receipt.body))
            if charged is None or kept != (charged.receipt, charged.evidence):
                yield (
                    f"The stored receipt of auction {receipt.auction_id!r} is not that of "
                    f"{'any booking' if charged is None else f'booking {charged.seq}'}."
                )


def _charges(connection: Connection, auctions: Sequence[str]) -> list[BookingRow]:
    chosen = select(tables.bookings).where(_b.auction_id.in_(auctions), _b.kind == "charge")
    return [BookingRow(*row) for row in connection.execute(chosen)]
