"""One transaction that writes: the lock of all writers, the rows it has read, and the bookings it appends."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Dialect, bindparam, insert, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from llm_auction_chain.errors import ConfigurationError, LedgerError, LedgerUnavailableError
from llm_auction_chain.ledger import tables
from llm_auction_chain.ledger.arguments import LARGEST, checked_time
from llm_auction_chain.ledger.chain import BookingRow, Line, hash_of
from llm_auction_chain.money import FINEST, in_units, whole_units

_AT_ONCE = 1000  # parameters of one statement; a database takes tens of thousands


class Booked(NamedTuple):
    """A booking and its entries, in order."""

    row: BookingRow
    lines: list[Line]


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


def _upsert(table: Any) -> dict[str, Any]:
    """Return the statement that inserts or updates rows, by dialect."""
    statements: dict[str, Any] = {}
    for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql)):
        statement = dialect.insert(table)
        new = {column.name: statement.excluded[column.name] for column in table.columns if not column.primary_key}
        statements[name] = statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=new)
    return statements


_HEAD = select(tables.head).where(tables.head.c.id == 1).with_for_update()
_PLACE: dict[str, Any] = {name: bindparam(name) for name in ("seq", "hash", "at")}
_NEXT = update(tables.head).where(tables.head.c.id == literal_column("1")).values(_PLACE)
_a = tables.accounts.c
_ACCOUNTS = select(tables.accounts).where(
    _a.currency == bindparam("of"), _a.owner.in_(bindparam("owners", expanding=True))
)
_AUCTION = select(tables.auctions).where(tables.auctions.c.auction_id == bindparam("auction_id"))
_INSERT_BOOKINGS, _INSERT_ENTRIES = insert(tables.bookings), insert(tables.entries)
_INSERT_RECEIPTS = insert(tables.receipts)
_UPSERT_ACCOUNTS, _UPSERT_AUCTIONS = _upsert(tables.accounts), _upsert(tables.auctions)
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


def booked(connection: Connection, *conditions: ColumnElement[bool]) -> list[Booked]:
    """Return the bookings that meet all conditions, with their entries, in order."""
    query = select(tables.bookings).where(*conditions).order_by(_b.seq)
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
    """

    def __init__(
        self, connection: Connection, scales: Mapping[str, int], credit: Decimal, now: datetime, known: dict[str, int]
    ) -> None:
        self.connection = connection
        self.now = now
        self._scales = scales
        self._credit = credit
        self._known = known
        head = connection.execute(_HEAD).one_or_none()
        if head is None:
            raise LedgerUnavailableError("The ledger's table head has lost its row. Run verify, and restore a backup.")
        self._seq, self._hash = head.seq, head.hash
        self.at: str = max(checked_time("The clock's time", now), head.at)
        self._accounts: dict[tuple[str, str], list[int]] = {}
        self._auctions: dict[str, AuctionRow] = {}
        self._booked: list[Booked] = []
        self._receipts: list[dict[str, str]] = []

    def auction(self, auction_id: str, currency: str = "") -> AuctionRow:
        """Return the state of an auction."""
        row = self.connection.execute(_AUCTION, {"auction_id": auction_id}).one_or_none()
        return AuctionRow(auction_id, currency) if row is None else AuctionRow(*row)

    def set_auction(self, auction: AuctionRow, **changes: Any) -> None:
        """Write the new state of an auction."""
        self._auctions[auction.auction_id] = auction._replace(**changes)

    def keep(self, auction_id: str, digest: str, body: str, reply: str) -> None:
        """Store the body of a receipt and the reply."""
        self._receipts.append({"auction_id": auction_id, "digest": digest, "body": body, "reply": reply})

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
        wanted = self._scales.get(currency)
        stored = self._known.get(currency)
        if stored is None:
            stored = self.connection.execute(_SCALE, {"code": currency}).scalar()
        if stored is None:
            scale = FINEST if wanted is None else wanted
            self.connection.execute(insert(tables.currencies), {"code": currency, "scale": scale})
            return scale
        self._known[currency] = stored
        if wanted is not None and wanted != stored:
            raise ConfigurationError(
                f"scales[{currency!r}] must be {stored}, as in this ledger's first booking, got {wanted}. Change it, "
                "or begin another ledger."
            )
        return stored

    def load(self, owners: Iterable[str], currency: str) -> None:
        """Read accounts that this transaction has not read yet."""
        missing = [owner for owner in owners if (owner, currency) not in self._accounts]
        self._accounts.update({(owner, currency): [0, 0] for owner in missing})
        for start in range(0, len(missing), _AT_ONCE):
            values = {"of": currency, "owners": missing[start : start + _AT_ONCE]}
            for row in self.connection.execute(_ACCOUNTS, values):
                self._accounts[row.owner, currency] = [row.balance, row.held]

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
        row = row._replace(seq=self._seq + 1, at=self.at, previous=self._hash)
        row = row._replace(hash=hash_of(row, lines))
        self.load((line.owner for line in lines), row.currency)
        for line in lines:
            account = self._accounts[line.owner, row.currency]
            account[0] += line.amount
            account[1] += line.held
            if max(abs(account[0]), abs(account[1])) > LARGEST:
                raise LedgerError(f"The balance of {line.owner!r} would not fit into 64 bits. Open another account.")
        self._booked.append(Booked(row, list(lines)))
        self._seq, self._hash = row.seq, row.hash
        return self._booked[-1]

    def flush(self) -> None:
        """Write what was appended, each table in one statement."""
        if not self._booked:
            return
        name = self.connection.dialect.name
        entries = [
            {"seq": row.seq, "line": number, **line._asdict()}
            for row, lines in self._booked
            for number, line in enumerate(lines)
        ]
        touched = sorted({(line.owner, row.currency) for row, lines in self._booked for line in lines})
        columns = ("owner", "currency", "balance", "held")
        accounts = [dict(zip(columns, (*account, *self._accounts[account]), strict=True)) for account in touched]
        with _pipeline(self.connection):
            self._send(_INSERT_BOOKINGS, [row._asdict() for row, _ in self._booked])
            self._send(_INSERT_ENTRIES, entries)
            self._send(_UPSERT_ACCOUNTS[name], accounts)
            self._send(_UPSERT_AUCTIONS[name], [auction._asdict() for auction in self._auctions.values()])
            self._send(_INSERT_RECEIPTS, self._receipts)
            self._send(_NEXT, [{"seq": self._seq, "hash": self._hash, "at": self.at}])

    def _send(self, statement: Any, rows: list[dict[str, Any]]) -> None:
        if rows:
            # SQLAlchemy would look the statement's text up each time, which takes longer than SQLite takes to write
            self.connection.exec_driver_sql(_sql(statement, self.connection.dialect), rows)


@cache
def _sql(statement: Any, dialect: Dialect) -> str:
    """Return a statement's text for the driver, with named parameters."""
    return str(statement.compile(dialect=sqlite.dialect(paramstyle="named") if dialect.name == "sqlite" else dialect))


@contextmanager
def _pipeline(connection: Connection) -> Iterator[None]:
    """Run several statements in one round trip (PostgreSQL's pipeline mode). Errors come at the end."""
    if connection.dialect.name != "postgresql":
        yield
        return
    from psycopg import Error

    driver = connection.connection.driver_connection
    try:
        with driver.pipeline():  # type: ignore[union-attr]
            yield
    except Error as error:
        lost = bool(getattr(driver, "broken", False))
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            "a booking", None, error, Error, connection_invalidated=lost, dialect=connection.dialect
        ) from error


def units_of(amounts: Mapping[str, Decimal], scale: int) -> dict[str, tuple[int, int]]:
    """Return amounts by owner in units of the currency, with residuals in millionths."""
    units = {owner: in_units(amount, scale) for owner, amount in amounts.items()}
    for owner, (whole, _) in units.items():
        if abs(whole) > LARGEST:
            raise ConfigurationError(
                f"The amount of {owner!r}, {amounts[owner]}, does not fit into 64 bits at {scale} decimals."
            )
    return units
