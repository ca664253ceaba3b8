"""The ledger's tables: what is booked is append-only and chained; accounts, auctions and currencies follow from it."""

from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, SmallInteger, Table, Text, UniqueConstraint

REVISION = "0001"  # of the newest migration; what a database is compared with at opening
VERSIONS = "ledger_version"  # not Alembic's own name: an application in the same database may have taken it

METADATA = MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "uq": "uq_%(table_name)s_%(column_0_name)s"}
)


def _key(name: str, kind: Any = Text) -> Column[Any]:
    return Column(name, kind, primary_key=True, autoincrement=False, nullable=False)


def _texts(*names: str) -> list[Column[str]]:
    return [Column(name, Text, nullable=False) for name in names]


def _numbers(*names: str) -> list[Column[int]]:
    return [Column(name, BigInteger, nullable=False) for name in names]


bookings = Table(
    "bookings",
    METADATA,
    _key("seq", BigInteger),
    *_texts("key", "kind"),
    Column("auction_id", Text),
    *_texts("currency"),
    Column("scale", SmallInteger, nullable=False),
    *_texts("at", "note", "request", "receipt", "evidence", "previous", "hash"),
    UniqueConstraint("key"),
    Index(None, "auction_id"),
    Index(None, "at"),
)
entries = Table(
    "entries",
    METADATA,
    _key("seq", BigInteger),
    _key("line", Integer),
    *_texts("owner"),
    *_numbers("amount", "held", "residual"),
    Index(None, "owner", "seq"),
)
currencies = Table("currencies", METADATA, _key("code"), Column("scale", SmallInteger, nullable=False))
accounts = Table("accounts", METADATA, _key("owner"), _key("currency"), *_numbers("balance", "held"))
auctions = Table(
    "auctions",
    METADATA,
    _key("auction_id"),
    *_texts("currency", "state"),
    Column("expires_at", Text),
    Column("hold_seq", BigInteger),
    Column("close_seq", BigInteger),
    Column("holds", Integer, nullable=False),
    *_texts("nonce"),
    Index(None, "state", "expires_at"),
)
receipts = Table("receipts", METADATA, _key("auction_id"), *_texts("digest", "body"))
head = Table("head", METADATA, _key("id", SmallInteger), *_numbers("seq"), *_texts("hash", "at"))
