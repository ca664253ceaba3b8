"""The ledger's tables: what is booked is append-only and chained; accounts, auctions and currencies follow from it."""

from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, SmallInteger, Table, Text, UniqueConstraint

REVISION = "0002"  # of the newest migration; what a database is compared with at opening
VERSIONS = "ledger_version"  # not Alembic's own name: an application in the same database may have taken it

METADATA = MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "uq": "uq_%(table_name)s_%(column_0_name)s"}
)


def key(name: str, kind: Any = Text) -> Column[Any]:
    """Return a column of the primary key."""
    return Column(name, kind, primary_key=True, autoincrement=False, nullable=False)


def texts(*names: str) -> list[Column[str]]:
    """Return columns of texts."""
    return [Column(name, Text, nullable=False) for name in names]


def numbers(*names: str) -> list[Column[int]]:
    """Return columns of whole numbers of 64 bits."""
    return [Column(name, BigInteger, nullable=False) for name in names]


bookings = Table(
    "bookings",
    METADATA,
    key("seq", BigInteger),
    *texts("key", "kind"),
    Column("auction_id", Text),
    *texts("currency"),
    Column("scale", SmallInteger, nullable=False),
    *texts("at", "note", "request", "receipt", "evidence", "previous", "hash"),
    Column("views", Text),
    UniqueConstraint("key"),
    Index(None, "auction_id"),
    Index(None, "at"),
)
entries = Table(
    "entries",
    METADATA,
    key("seq", BigInteger),
    key("line", Integer),
    *texts("owner"),
    *numbers("amount", "held", "residual"),
    Index(None, "owner", "seq"),
)
currencies = Table("currencies", METADATA, key("code"), Column("scale", SmallInteger, nullable=False))
accounts = Table("accounts", METADATA, key("owner"), key("currency"), *numbers("balance", "held"))
auctions = Table(
    "auctions",
    METADATA,
    key("auction_id"),
    *texts("currency", "state"),
    Column("expires_at", Text),
    Column("hold_seq", BigInteger),
    Column("close_seq", BigInteger),
    Column("holds", Integer, nullable=False),
    *texts("nonce"),
    Index(None, "state", "expires_at"),
)
receipts = Table("receipts", METADATA, key("auction_id"), *texts("digest", "body", "reply"))
head = Table("head", METADATA, key("id", SmallInteger), *numbers("seq"), *texts("hash", "at"))
