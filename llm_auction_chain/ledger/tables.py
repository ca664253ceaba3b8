"""The ledger's tables: what is booked is append-only and chained; accounts, auctions and currencies follow from it."""

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, SmallInteger, Table, Text, UniqueConstraint

REVISION = "0001"  # of the newest migration; what a database is compared with at opening
VERSIONS = "ledger_version"  # not Alembic's own name: an application in the same database may have taken it

METADATA = MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "uq": "uq_%(table_name)s_%(column_0_name)s"}
)


def _whole(name: str, *, key: bool = False) -> Column[int]:
    return Column(name, BigInteger, primary_key=key, autoincrement=False, nullable=False)


def _text(name: str, *, key: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=key, nullable=False)


bookings = Table(
    "bookings",
    METADATA,
    _whole("seq", key=True),
    _text("key"),
    _text("kind"),
    Column("auction_id", Text),
    _text("currency"),
    Column("scale", SmallInteger, nullable=False),
    _text("at"),
    _text("note"),
    _text("request"),
    _text("receipt"),
    _text("evidence"),
    _text("previous"),
    _text("hash"),
    UniqueConstraint("key"),
    Index(None, "auction_id"),
    Index(None, "at"),
)
entries = Table(
    "entries",
    METADATA,
    _whole("seq", key=True),
    Column("line", Integer, primary_key=True, autoincrement=False, nullable=False),
    _text("owner"),
    _whole("amount"),
    _whole("held"),
    _whole("residual"),
    Index(None, "owner", "seq"),
)
currencies = Table("currencies", METADATA, _text("code", key=True), Column("scale", SmallInteger, nullable=False))
accounts = Table(
    "accounts", METADATA, _text("owner", key=True), _text("currency", key=True), _whole("balance"), _whole("held")
)
auctions = Table(
    "auctions",
    METADATA,
    _text("auction_id", key=True),
    _text("currency"),
    _text("state"),
    Column("expires_at", Text),
    Column("hold_seq", BigInteger),
    Column("close_seq", BigInteger),
    Column("holds", Integer, nullable=False),
    _text("nonce"),
    Index(None, "state", "expires_at"),
)
receipts = Table("receipts", METADATA, _text("auction_id", key=True), _text("digest"), _text("body"))
head = Table(
    "head",
    METADATA,
    Column("id", SmallInteger, primary_key=True, autoincrement=False, nullable=False),
    _whole("seq"),
    _text("hash"),
    _text("at"),
)
