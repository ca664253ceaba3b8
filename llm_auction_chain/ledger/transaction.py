"""One transaction that writes: the lock of all writers, the rows it has read, and the bookings it appends."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Table, bindparam, select
from sqlalchemy.exc import DBAPIError

from llm_auction_chain.errors import ConfigurationError, LedgerError, LedgerUnavailableError
from llm_auction_chain.ledger import statements, tables
from llm_auction_chain.ledger.arguments import LARGEST, checked_time
from llm_auction_chain.ledger.chain import BookingRow, Line, hash_of
from llm_auction_chain.ledger.database import reading
from llm_auction_chain.ledger.groups import Outcome
from llm_auction_chain.money import FINEST, from_units, in_units, whole_units

SET_SCALE = ("deposit", "withdrawal", "hold", "charge")  # kinds of bookings that fix the decimals of a new currency


class Booked(NamedTuple):
    """A booking and its entries, in order."""

    row: BookingRow
    lines: list[Line]


class Operation(NamedTuple):
    """A function of `operations`, and its arguments behind the writer."""

    verb: Callable[..., Any]
    args: tuple[Any, ...]
    more: Mapping[str, Any]


class Reads(NamedTuple):
    """What a group of operations is known to need, so that one round trip reads it."""

    auctions: list[str]
    accounts: list[tuple[str, str]]  # owner and currency
    held: list[str]  # auctions whose holds are needed


class AuctionRow(NamedTuple):
    """A row of `auctions`, in the order of the table's columns: the state of one auction."""

    auction_id: str
    currency: str
    state: str = ""  # `held`, `charged`, `voided`, `expired`, `cancelled` or `reversed`; empty for an unknown auction
    expires_at: str | None = None  # end of its latest hold
    hold_seq: int | None = None  # booking of its latest hold
    close_seq: int | None = None  # booking that closed it; the charge where there was one
    holds: int = 0  # number of its holds
    nonce: str = ""  # made with the first hold and kept by all


_SCALE = select(tables.currencies.c.scale).where(tables.currencies.c.code == bindparam("code"))
_LINES = (
    select(*tables.entries.c["seq", "owner", "amount", "held", "residual"])
    .where(tables.entries.c.seq.in_(bindparam("seqs", expanding=True)))
    .order_by(tables.entries.c.seq, tables.entries.c.line)
)
_b = tables.bookings.c


def lines_of(connection: Connection, seqs: Sequence[int]) -> dict[int, list[Line]]:
    """Return the entries of several bookings."""
    lines: dict[int, list[Line]] = {seq: [] for seq in seqs}
    if lines:
        for seq, *line in connection.execute(_LINES, {"seqs": list(seqs)}):
            lines[seq].append(Line(*line))
    return lines


def booked(connection: Connection, *conditions: ColumnElement[bool], limit: int | None = None) -> list[Booked]:
    """Return the bookings that meet all conditions, with their entries, in order; the first ones up to a limit."""
    query = select(tables.bookings).where(*conditions).order_by(_b.seq).limit(limit)
    rows = [BookingRow(*row) for row in connection.execute(query)]
    lines = lines_of(connection, [row.seq for row in rows])
    return [Booked(row, lines[row.seq]) for row in rows]


def by_key(connection: Connection, key: str) -> Booked | None:
    """Return the booking with a key, if there is one."""
    return next(iter(booked(connection, _b.key == key)), None)


class Writer:
    """Reads and appends within one transaction. It holds the lock of all writers until the transaction ends.

    `scales`, `credit` and `now` are the caller's. `known` are decimals by currency that earlier transactions have read;
    they never change, and the writer adds to them. Bookings are dated `at`: now, or as the last one if that is later.
    What is booked is written by `flush`, and before whatever a query must see.
    `reads` is read together with the end of the chain.
    """

    def __init__(
        self,
        transaction: statements.Transaction,
        scales: Mapping[str, int],
        credit: Decimal,
        now: datetime,
        known: dict[str, int],
        reads: Reads,
    ) -> None:
        self._transaction = transaction
        self.now = now
        self._scales = scales
        self._credit = credit
        self._known = known
        self._new_scales: dict[str, int] = {}
        self._accounts = dict.fromkeys(reads.accounts, (0, 0))  # balance and held
        self._auctions: dict[str, AuctionRow | None] = dict.fromkeys(reads.auctions)
        head, (found, balances, entries) = transaction.lock(
            (statements.AUCTIONS, [(auction_id,) for auction_id in self._auctions]),
            (statements.ACCOUNTS, list(self._accounts)),
            (statements.HELD, [(auction_id,) for auction_id in reads.held]),
        )
        if head is None:
            raise LedgerUnavailableError("The ledger's table head has lost its row. Run verify, and restore a backup.")
        _, self.seq, self._hash, last = head
        self.at: str = max(checked_time("The clock's time", now), last)
        self._auctions.update((row[0], AuctionRow(*row)) for row in found)
        self._accounts.update(((owner, currency), (balance, of)) for owner, currency, balance, of in balances)
        holds = [self._auctions.get(auction_id) for auction_id in reads.held]
        self._lines: dict[int, list[Line]] = {
            hold.hold_seq: [] for hold in holds if hold is not None and hold.hold_seq is not None
        }
        for seq, _, *line in entries:
            self._lines[seq].append(Line(*line))
        self._booked: list[Booked] = []
        self._moved: dict[tuple[str, str], None] = {}  # accounts that bookings have changed
        self._changed: dict[str, AuctionRow] = {}
        self._receipts: list[tuple[str, str, str, str]] = []

    @property
    def connection(self) -> Connection:
        """The connection, for queries: they see what was booked."""
        self.flush()
        return self._transaction.connection

    def run(self, operation: Operation) -> Outcome:
        """Return what an operation returns, or what it raises where it has booked nothing."""
        before = self.seq
        try:
            with reading():
                return operation.verb(self, *operation.args, **operation.more), None
        except (DBAPIError, self._transaction.errors):
            raise
        except Exception as error:
            if self.seq != before:
                raise
            return None, error

    def auction(self, auction_id: str, currency: str = "") -> AuctionRow:
        """Return the state of an auction."""
        if auction_id not in self._auctions:
            [rows] = self._transaction.fetch((statements.AUCTIONS, [(auction_id,)]))
            self._auctions[auction_id] = AuctionRow(*rows[0]) if rows else None
        return self._auctions[auction_id] or AuctionRow(auction_id, currency)

    def set_auction(self, auction: AuctionRow, **changes: Any) -> None:
        """Write the new state of an auction."""
        self._auctions[auction.auction_id] = self._changed[auction.auction_id] = auction._replace(**changes)

    def keep(self, auction_id: str, digest: str, body: str, reply: str) -> None:
        """Store the body of a receipt and the reply."""
        self._receipts.append((auction_id, digest, body, reply))

    def lines(self, seqs: Iterable[int]) -> dict[int, list[Line]]:
        """Return the entries of several bookings."""
        wanted = dict.fromkeys(seqs)
        if missing := [seq for seq in wanted if seq not in self._lines]:
            self._lines.update(lines_of(self.connection, missing))
        return {seq: self._lines[seq] for seq in wanted}

    def of_seq(self, seq: int) -> Booked:
        """Return a booking by its number."""
        bookings = booked(self.connection, _b.seq == seq)
        if not bookings:
            raise LedgerError(f"Booking {seq} is not in the ledger. Run verify, and restore a backup.")
        return bookings[0]

    def reversals(self, auction_id: str) -> list[Booked]:
        """Return the reversals of an auction, in order."""
        return booked(self.connection, _b.auction_id == auction_id, _b.kind == "reversal")

    def shares(self, auction_id: str) -> list[tuple[str, str]]:
        """Return kind and receipt of an auction's charge, repeats and failures, in order."""
        kinds = _b.kind.in_(("charge", "repeat", "failure"))
        query = select(_b.kind, _b.receipt).where(_b.auction_id == auction_id, kinds).order_by(_b.seq)
        return [(kind, receipt) for kind, receipt in self.connection.execute(query)]

    def scale(self, currency: str) -> int:
        """Return a currency's decimals, which its first booking sets. The caller's setting must agree."""
        if currency in self._new_scales:
            return self._new_scales[currency]
        wanted = self._scales.get(currency)
        stored = self._known.get(currency)
        if stored is None:
            stored = self.connection.execute(_SCALE, {"code": currency}).scalar()
        if stored is None:
            return self._new_scales.setdefault(currency, FINEST if wanted is None else wanted)  # stored if it is used
        self._known[currency] = stored
        if wanted is not None and wanted != stored:
            raise ConfigurationError(
                f"scales[{currency!r}] must be {stored}, as in this ledger's first booking, got {wanted}. Change it, "
                "or begin another ledger."
            )
        return stored

    def load(self, owners: Iterable[str], currency: str) -> None:
        """Read accounts that this transaction has not read yet."""
        missing = {(owner, currency): (0, 0) for owner in owners if (owner, currency) not in self._accounts}
        if missing:
            [rows] = self._transaction.fetch((statements.ACCOUNTS, list(missing)))
            self._accounts |= missing
            self._accounts.update(((owner, currency), (balance, held)) for owner, _, balance, held in rows)

    def free(self, owner: str, currency: str) -> int:
        """Return the units of a loaded account that are not on hold, without credit."""
        balance, held = self._accounts[owner, currency]
        return balance - held

    def covered(self, amounts: Mapping[str, int], currency: str, scale: int) -> dict[str, int]:
        """Return the amounts, in units, that their owners' accounts and credit cover."""
        self.load(amounts, currency)
        credit = whole_units(self._credit, scale)
        return {owner: amount for owner, amount in amounts.items() if self.free(owner, currency) + credit >= amount}

    def append(self, row: BookingRow, lines: Sequence[Line]) -> Booked:
        """Give a booking its place at the end of the chain, and change the accounts of its entries."""
        row = row._replace(seq=self.seq + 1, at=self.at, previous=self._hash)
        row = row._replace(hash=hash_of(row, lines))
        currency = row.currency
        self.load((line.owner for line in lines), currency)
        accounts = {}
        for owner, amount, more, _ in lines:
            balance, held = self._accounts[owner, currency]
            accounts[owner, currency] = balance + amount, held + more
            if not (-LARGEST <= balance + amount <= LARGEST and -LARGEST <= held + more <= LARGEST):
                raise LedgerError(f"The balance of {owner!r} would not fit into 64 bits. Open another account.")
        self._accounts |= accounts
        self._moved |= dict.fromkeys(accounts)
        booking = Booked(row, list(lines))
        self._booked.append(booking)
        self._lines[row.seq] = booking.lines
        self.seq, self._hash = row.seq, row.hash
        return booking

    def flush(self, *, last: bool = False) -> None:
        """Write what was appended, each table in one statement. With `last`, the transaction may end with it."""
        if not self._booked:
            return
        used = {row.currency for row, _ in self._booked if row.kind in SET_SCALE}
        rows: dict[Table, statements.Rows] = {
            tables.bookings: [row for row, _ in self._booked],
            tables.entries: [(row.seq, n, *line) for row, lines in self._booked for n, line in enumerate(lines)],
            tables.accounts: [(*account, *self._accounts[account]) for account in self._moved],
            tables.auctions: list(self._changed.values()),
            tables.receipts: self._receipts,
            tables.currencies: [(code, scale) for code, scale in self._new_scales.items() if code in used],
            tables.head: [(1, self.seq, self._hash, self.at)],
        }
        self._transaction.store(rows, last=last)
        self._booked, self._moved, self._changed, self._receipts = [], {}, {}, []


def units_of(amounts: Mapping[str, int], scale: int) -> dict[str, tuple[int, int]]:
    """Return amounts by owner, given in millionths, in units of the currency, with residuals in millionths."""
    units = {owner: in_units(amount, scale) for owner, amount in amounts.items()}
    for owner, (whole, _) in units.items():
        if abs(whole) > LARGEST:
            amount = from_units(amounts[owner], FINEST)
            raise ConfigurationError(
                f"The amount of {owner!r}, {amount}, does not fit into 64 bits at {scale} decimals."
            )
    return units
