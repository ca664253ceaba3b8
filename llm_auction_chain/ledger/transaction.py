"""One transaction that books: the lock, what it has read, and what it appends to the chain."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Dialect, bindparam, insert, literal, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite

from llm_auction_chain.errors import ConfigurationError, LedgerError, LedgerUnavailableError
from llm_auction_chain.ledger import tables
from llm_auction_chain.ledger.batches import in_one_go
from llm_auction_chain.ledger.chain import BookingRow, Line, hash_of, spell_time
from llm_auction_chain.ledger.checks import LARGEST, units
from llm_auction_chain.money import FINEST, whole_units

__all__ = ["AuctionRow", "Booked", "Writer"]


_AT_ONCE = 1000  # parameters of one statement; a database takes some ten thousands


class Booked(NamedTuple):
    """A booking and its entries, in order."""

    row: BookingRow
    lines: list[Line]


@dataclass(frozen=True, kw_only=True)
class AuctionRow:
    """How an auction stands.

    Attributes:
        auction_id: which.
        currency: of its amounts.
        state: `held`, `charged`, `voided`, `expired`, `cancelled` or `reversed`.
        expires_at: when its latest hold ends.
        hold_seq: booking of its latest hold.
        close_seq: booking that closed it: of its charge, where it was charged.
        holds: how many there were.
        nonce: made with the first of them, kept by all.
    """

    auction_id: str
    currency: str
    state: str
    expires_at: str | None = None
    hold_seq: int | None = None
    close_seq: int | None = None
    holds: int = 0
    nonce: str = ""

    @classmethod
    def of(cls, row: Any) -> "AuctionRow":
        """Return a row of the table."""
        return cls(
            auction_id=row.auction_id,
            currency=row.currency,
            state=row.state,
            expires_at=row.expires_at,
            hold_seq=row.hold_seq,
            close_seq=row.close_seq,
            holds=row.holds,
            nonce=row.nonce,
        )


def _upsert(table: Any) -> dict[str, Any]:
    """Return the statement that writes rows whether or not they are there, by dialect."""
    made: dict[str, Any] = {}
    for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql)):
        statement = dialect.insert(table)
        new = {column.name: statement.excluded[column.name] for column in table.columns if not column.primary_key}
        made[name] = statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=new)
    return made


_HEAD = select(tables.head).where(tables.head.c.id == 1).with_for_update()
_NEXT = (
    update(tables.head)
    .where(tables.head.c.id == literal_column("1"))
    .values(seq=bindparam("seq"), hash=bindparam("hash"), at=bindparam("at"))
)
_STANDING = select(tables.auctions, *tables.accounts.c["owner", "balance", "held"]).select_from(
    select(literal(1).label("one"))
    .subquery()
    .outerjoin(tables.auctions, tables.auctions.c.auction_id == bindparam("auction_id"))
    .outerjoin(
        tables.accounts,
        (tables.accounts.c.currency == bindparam("of"))
        & tables.accounts.c.owner.in_(bindparam("owners", expanding=True)),
    )
)
_INSERT_BOOKINGS, _INSERT_ENTRIES = insert(tables.bookings), insert(tables.entries)
_INSERT_RECEIPTS = insert(tables.receipts)
_SCALE = select(tables.currencies.c.scale).where(tables.currencies.c.code == bindparam("code"))
_ACCOUNTS = select(tables.accounts).where(
    tables.accounts.c.currency == bindparam("currency"),
    tables.accounts.c.owner.in_(bindparam("owners", expanding=True)),
)
_BOOKINGS = select(tables.bookings).order_by(tables.bookings.c.seq)
_LINES = (
    select(*tables.entries.c["seq", "owner", "amount", "held", "residual"])
    .where(tables.entries.c.seq.in_(bindparam("seqs", expanding=True)))
    .order_by(tables.entries.c.seq, tables.entries.c.line)
)
_BY_SEQ = _BOOKINGS.where(tables.bookings.c.seq == bindparam("seq"))
_BY_KEY = _BOOKINGS.where(tables.bookings.c.key == bindparam("key"))
_OF_AUCTION = tables.bookings.c.auction_id == bindparam("auction_id")
_REVERSALS = _BOOKINGS.where(_OF_AUCTION, tables.bookings.c.kind == "reversal")
_SHARES = (
    select(*tables.bookings.c["kind", "receipt"])
    .where(_OF_AUCTION, tables.bookings.c.kind.in_(("charge", "repeat", "failure")))
    .order_by(tables.bookings.c.seq)
)


@cache
def _spelled(statement: Any, dialect: Dialect) -> str:
    """Return a statement as the driver takes it, with named parameters."""
    return str(statement.compile(dialect=sqlite.dialect(paramstyle="named") if dialect.name == "sqlite" else dialect))


_UPSERT_ACCOUNTS = _upsert(tables.accounts)
_UPSERT_AUCTIONS = _upsert(tables.auctions)


def booked(connection: Connection, statement: Any, values: Mapping[str, Any]) -> list[Booked]:
    """Return the bookings that a statement finds, with their entries."""
    rows = [BookingRow(*row) for row in connection.execute(statement, values)]
    lines: dict[int, list[Line]] = {row.seq: [] for row in rows}
    if rows:
        for seq, *line in connection.execute(_LINES, {"seqs": list(lines)}):
            lines[seq].append(Line(*line))
    return [Booked(row, lines[row.seq]) for row in rows]


class Writer:
    """Holds the one lock of all writers from its making to the end of the transaction.

    Args:
        connection: in a transaction of its own.
        scales: decimals by currency, as the caller sets them.
        credit: by how much a balance may fall below what it must cover.
        now: the caller's time.
        known: decimals by currency that earlier transactions have seen, which never change; it adds to them.

    Attributes:
        connection: of the transaction.
        now: the caller's time.
        at: when its bookings are: now, or the time of the last one where that is later.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        scales: Mapping[str, int],
        credit: Decimal,
        now: datetime,
        known: dict[str, int],
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
        self.at: str = max(spell_time(now, "The clock's time"), head.at)
        self._accounts: dict[tuple[str, str], list[int]] = {}
        self._auctions: dict[str, AuctionRow] = {}
        self._booked: list[Booked] = []
        self._receipts: list[dict[str, str]] = []

    def auction(self, auction_id: str, owners: Collection[str] = (), currency: str = "") -> AuctionRow | None:
        """Return how an auction stands, None where it was never seen, and read its owners' accounts with it."""
        asked = list(owners)[:_AT_ONCE]
        rows = self.connection.execute(_STANDING, {"auction_id": auction_id, "of": currency, "owners": asked}).all()
        self._accounts.update({(owner, currency): [0, 0] for owner in asked})
        self._accounts.update({(row.owner, currency): [row.balance, row.held] for row in rows if row.owner is not None})
        return None if rows[0].auction_id is None else AuctionRow.of(rows[0])

    def set_auction(self, auction: AuctionRow, **changes: Any) -> None:
        """Write how an auction stands from now on."""
        self._auctions[auction.auction_id] = replace(auction, **changes)

    def keep_receipt(self, auction_id: str, digest: str, body: str) -> None:
        """Store the body of a receipt."""
        self._receipts.append({"auction_id": auction_id, "digest": digest, "body": body})

    def of_seq(self, seq: int) -> Booked:
        """Return a booking by its number."""
        found = booked(self.connection, _BY_SEQ, {"seq": seq})
        if not found:
            raise LedgerError(f"Booking {seq} is not in the ledger. Run verify, and restore a backup.")
        return found[0]

    def of_key(self, key: str) -> Booked | None:
        """Return a booking by its key, if there is one."""
        return next(iter(booked(self.connection, _BY_KEY, {"key": key})), None)

    def reversals(self, auction_id: str) -> list[Booked]:
        """Return what was reversed of an auction, in order."""
        return booked(self.connection, _REVERSALS, {"auction_id": auction_id})

    def shares(self, auction_id: str) -> list[tuple[str, str]]:
        """Return kind and receipt of an auction's charge, and of what was booked of other calls on it, in order."""
        return [(kind, receipt) for kind, receipt in self.connection.execute(_SHARES, {"auction_id": auction_id})]

    def lines_of(self, seqs: Sequence[int]) -> dict[int, list[Line]]:
        """Return the entries of several bookings."""
        lines: dict[int, list[Line]] = {seq: [] for seq in seqs}
        for seq, *line in self.connection.execute(_LINES, {"seqs": list(seqs)}):
            lines[seq].append(Line(*line))
        return lines

    def scale(self, currency: str) -> int:
        """Return a currency's decimals, which its first booking sets.

        Raises:
            ConfigurationError: the caller sets others.
        """
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
                f"scales says {wanted} decimals for currency {currency!r}, and the ledger was begun with {stored}. "
                "Set that, or begin another ledger."
            )
        return stored

    def load(self, owners: Iterable[str], currency: str) -> None:
        """Read accounts, so that their balances are known."""
        missing = [owner for owner in owners if (owner, currency) not in self._accounts]
        self._accounts.update({(owner, currency): [0, 0] for owner in missing})
        for start in range(0, len(missing), _AT_ONCE):
            owners = missing[start : start + _AT_ONCE]
            for row in self.connection.execute(_ACCOUNTS, {"currency": currency, "owners": owners}):
                self._accounts[row.owner, currency] = [row.balance, row.held]

    def free(self, owner: str, currency: str) -> int:
        """Return the units of a loaded account that nothing holds, without credit."""
        balance, held = self._accounts[owner, currency]
        return balance - held

    def covers(self, owner: str, currency: str, scale: int, amount: int) -> bool:
        """Return whether a loaded account covers so many units."""
        return self.free(owner, currency) + whole_units(self._credit, scale) >= amount

    def append(
        self,
        kind: str,
        key: str,
        lines: Sequence[Line],
        *,
        auction_id: str | None = None,
        currency: str,
        scale: int,
        request: str = "",
        note: str = "",
        receipt: str = "",
        evidence: str = "",
    ) -> Booked:
        """Append a booking and move what its entries say.

        Raises:
            LedgerError: a balance would not fit into 64 bits.
        """
        row = BookingRow(
            self._seq + 1, key, kind, auction_id, currency, scale, self.at, note, request, receipt, evidence,
            self._hash, "",
        )  # fmt: skip
        row = row._replace(hash=hash_of(row, lines))
        self.load((line.owner for line in lines), currency)
        for line in lines:
            account = self._accounts[line.owner, currency]
            account[0] += line.amount
            account[1] += line.held
            if max(abs(account[0]), abs(account[1])) > LARGEST:
                raise LedgerError(f"The balance of {line.owner!r} would not fit into 64 bits. Open another account.")
        self._booked.append(Booked(row, list(lines)))
        self._seq, self._hash = row.seq, row.hash
        return self._booked[-1]

    def flush(self) -> None:
        """Write what was appended; each table once."""
        if self._booked:
            with in_one_go(self.connection):
                self._flush()

    def _flush(self) -> None:
        name = self.connection.dialect.name
        self._send(_INSERT_BOOKINGS, [row._asdict() for row, _ in self._booked])
        entries = [
            {"seq": row.seq, "line": number, **line._asdict()}
            for row, lines in self._booked
            for number, line in enumerate(lines)
        ]
        touched = {(line.owner, row.currency) for row, lines in self._booked for line in lines}
        if entries:
            self._send(_INSERT_ENTRIES, entries)
            moved = [(*account, *self._accounts[account]) for account in sorted(touched)]
            columns = ("owner", "currency", "balance", "held")
            self._send(_UPSERT_ACCOUNTS[name], [dict(zip(columns, one, strict=True)) for one in moved])
        if self._auctions:
            self._send(_UPSERT_AUCTIONS[name], [vars(auction) for auction in self._auctions.values()])
        if self._receipts:
            self._send(_INSERT_RECEIPTS, self._receipts)
        self._send(_NEXT, [{"seq": self._seq, "hash": self._hash, "at": self.at}])

    def _send(self, statement: Any, rows: list[dict[str, Any]]) -> None:
        # SQLAlchemy would look the statement's text up each time, which takes longer than SQLite takes to write
        self.connection.exec_driver_sql(_spelled(statement, self.connection.dialect), rows)


def units_of(amounts: Mapping[str, Decimal], scale: int, *, exact: bool = False) -> dict[str, tuple[int, int]]:
    """Return amounts in units and residuals, by owner."""
    return {owner: units(amount, scale, f"The amount of {owner!r}", exact=exact) for owner, amount in amounts.items()}
