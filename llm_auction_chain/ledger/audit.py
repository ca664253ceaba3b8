"""The audit: it reads the chain from its beginning, and compares all other tables with what follows from the chain."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Select, select
from sqlalchemy.exc import DBAPIError

from llm_auction_chain.ledger import tables
from llm_auction_chain.ledger.chain import BookingRow, Line, evidence_of, hash_of
from llm_auction_chain.ledger.records import Audit
from llm_auction_chain.ledger.transaction import SET_SCALE, AuctionRow

_PAGE = 1000
_UNREADABLE = (TypeError, ValueError, ArithmeticError, AttributeError)
_STATE_AFTER = {"charge": "charged", "void": "voided", "expiry": "expired", "cancellation": "cancelled"}
_CHANGE_BALANCE = ("deposit", "withdrawal", "charge", "reversal")
_CHANGE_HELD = ("hold", "charge", "void", "expiry", "cancellation")
_b, _e = tables.bookings.c, tables.entries.c


def verify(connection: Connection, *, head: str | None = None) -> Audit:
    """Return the differences between the chain, its hashes, and all that follows from it; `head` must be in it."""
    differences: list[str] = []
    replay = _Replay(differences.append)
    of_tables = (check(connection, replay) for check in (_head, _currencies, _accounts, _auctions))
    for section in (replay.read(connection, head), *of_tables, _receipts(connection)):
        try:
            differences.extend(section)
        except _UNREADABLE as error:
            differences.append(f"A table has an unreadable value: {error}.")
        except DBAPIError as error:
            # Python, not SQLite, refuses a text that cannot be decoded, so there is no error code
            if not isinstance(error.orig, sqlite3.Error) or hasattr(error.orig, "sqlite_errorname"):
                raise
            differences.append(f"A table has an unreadable value: {error.orig}.")
    return Audit(ok=not differences, differences=differences, bookings=replay.count, head=replay.last.hash)


class _Replay:
    """Reads the chain and repeats its bookings. It calls `report` with each difference that is no ledger's doing."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self.last = BookingRow()
        self.count = 0
        self.accounts: dict[tuple[str, str], tuple[int, int]] = {}  # balance and held by owner and currency
        self.auctions: dict[str, AuctionRow] = {}  # with the digest of the nonce in place of the nonce
        self.scales: dict[str, int] = {}  # decimals by currency
        self.sums: dict[str, tuple[int, int]] = {}  # cash and revenue by currency
        self._unreversed: dict[str, int] = {}

    def read(self, connection: Connection, head: str | None) -> Iterator[str]:
        """Yield the differences in bookings and entries; `head` is a hash that must be among them."""
        has_head = head in (None, "")
        for row, lines in _chain(connection, self._report):
            self.count += 1
            try:
                yield from _links(row, self.last)
                if hash_of(row, lines) != row.hash:
                    yield f"Booking {row.seq} or its entries were changed: its hash is not theirs."
                self._book(row, lines)
            except _UNREADABLE as error:
                yield f"Booking {row.seq} cannot be read: {error}."
            has_head, self.last = has_head or row.hash == head, row
        if not has_head:
            yield f"The hash {head!r}, noted elsewhere, is not in the chain: bookings were changed or removed."

    def _book(self, row: BookingRow, lines: Sequence[Line]) -> None:
        if row.kind in SET_SCALE and self.scales.setdefault(row.currency, row.scale) != row.scale:
            self._report(f"Booking {row.seq} has {row.scale} decimals, the currency {self.scales[row.currency]}.")
        for line in lines:
            balance, held = self.accounts.get((line.owner, row.currency), (0, 0))
            self.accounts[line.owner, row.currency] = balance + line.amount, held + line.held
            if held + line.held < 0:
                self._report(f"Booking {row.seq} releases more of {line.owner!r} than was held.")
            if (line.amount and row.kind not in _CHANGE_BALANCE) or (line.held and row.kind not in _CHANGE_HELD):
                self._report(f"Booking {row.seq} changes what a {row.kind} does not change.")
        moved = sum(line.amount for line in lines)
        cash, revenue = self.sums.get(row.currency, (0, 0))
        if row.kind in ("deposit", "withdrawal"):
            self.sums[row.currency] = cash + moved, revenue
        elif lines:
            self.sums[row.currency] = cash, revenue - moved
        if row.auction_id is not None:
            self._set_state(row, row.auction_id, len(lines))

    def _set_state(self, row: BookingRow, auction_id: str, lines: int) -> None:
        auction = self.auctions.get(auction_id, AuctionRow(auction_id, row.currency))
        if row.kind == "hold":
            holds = auction.holds + 1
            auction = AuctionRow(auction_id, row.currency, "held", row.note, row.seq, None, holds, row.evidence)
        elif row.kind in _STATE_AFTER:
            auction = auction._replace(state=_STATE_AFTER[row.kind], close_seq=row.seq)
        if row.kind == "charge":
            self._unreversed[auction_id] = lines
        elif row.kind == "reversal":
            self._unreversed[auction_id] = self._unreversed.get(auction_id, 0) - lines
            if self._unreversed[auction_id] == 0:
                auction = auction._replace(state="reversed")
        self.auctions[auction_id] = auction


def _links(row: BookingRow, last: BookingRow) -> Iterator[str]:
    if row.seq != last.seq + 1:
        yield f"Booking {last.seq + 1} is missing: {row.seq} follows {last.seq}."
    if row.previous != last.hash:
        yield f"Booking {row.seq} does not link to the hash of the one before it."
    if row.at < last.at:
        yield f"Booking {row.seq} is dated before the one before it."


def _chain(connection: Connection, report: Callable[[str], None]) -> Iterator[tuple[BookingRow, list[Line]]]:
    """Yield bookings with their entries, a page at a time, and report entries without a booking."""
    low = -(2**63)
    while True:
        page = select(tables.bookings).where(_b.seq >= low).order_by(_b.seq).limit(_PAGE)
        rows = [BookingRow(*row) for row in connection.execute(page)]
        bounds = (_e.seq >= low) & (_e.seq <= rows[-1].seq) if rows else _e.seq >= low
        lines: dict[int, list[Line]] = {row.seq: [] for row in rows}
        numbers: dict[int, list[int]] = {row.seq: [] for row in rows}
        for seq, number, *line in connection.execute(select(tables.entries).where(bounds).order_by(_e.seq, _e.line)):
            if seq not in lines:
                report(f"Entry {number} of booking {seq} has no booking.")
                continue
            lines[seq].append(Line(*line))
            numbers[seq].append(number)
        for row in rows:
            if numbers[row.seq] != list(range(len(numbers[row.seq]))):
                report(f"Booking {row.seq} has entries numbered {numbers[row.seq]}: one was removed or moved.")
            yield row, lines[row.seq]
        if not rows:
            return
        low = rows[-1].seq + 1


def _rows(connection: Connection, query: Select[Any]) -> Iterator[Any]:
    """Yield the rows of a query, in pages where the driver can."""
    yield from connection.execution_options(yield_per=_PAGE).execute(query)


def _head(connection: Connection, replay: _Replay) -> Iterator[str]:
    rows, last = [tuple(row) for row in connection.execute(select(tables.head))], replay.last
    if rows != [(1, last.seq, last.hash, last.at)]:
        yield f"The table head does not name the last booking, {last.seq}."


def _currencies(connection: Connection, replay: _Replay) -> Iterator[str]:
    stored = {row.code: row.scale for row in _rows(connection, select(tables.currencies))}
    for code in sorted(stored.keys() | replay.scales.keys()):
        table, bookings = stored.get(code), replay.scales.get(code)
        if table != bookings:
            yield f"Currency {code!r} has {table} decimals in its table, {bookings} in its bookings."


def _accounts(connection: Connection, replay: _Replay) -> Iterator[str]:
    expected = dict(replay.accounts)
    sums: dict[str, int] = {}
    for row in _rows(connection, select(tables.accounts)):
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


def _auctions(connection: Connection, replay: _Replay) -> Iterator[str]:
    expected = dict(replay.auctions)
    for row in _rows(connection, select(tables.auctions)):
        stored, booked = AuctionRow(*row), expected.pop(row.auction_id, None)
        erased = booked is not None and stored.state != "held" and not stored.nonce
        stored = stored._replace(nonce=booked.nonce if booked and erased else evidence_of(stored.nonce))
        if stored != booked:
            yield f"Auction {row.auction_id!r} is {_spelled(stored)} in its table, {_spelled(booked)} in its bookings."
    for auction_id in expected:
        yield f"Auction {auction_id!r} is missing from its table."


def _spelled(auction: AuctionRow | None) -> str:
    if auction is None:
        return "nothing"
    return ", ".join(f"{name} {value!r}" for name, value in auction._asdict().items() if name != "auction_id")


def _receipts(connection: Connection) -> Iterator[str]:
    """Yield the differences in stored receipts; an erased one is no difference."""
    of_charge = (_b.auction_id == tables.receipts.c.auction_id) & (_b.kind == "charge")
    charges = select(tables.receipts, _b.seq, _b.receipt, _b.evidence).outerjoin(tables.bookings, of_charge)
    for row in _rows(connection, charges.order_by(tables.receipts.c.auction_id)):
        if (row.digest, evidence_of(row.body, row.reply)) != (row.receipt, row.evidence):
            booking = "any booking" if row.seq is None else f"booking {row.seq}"
            yield f"The stored receipt of auction {row.auction_id!r} is not that of {booking}."
