"""The first tables, the end of an empty chain, and the triggers that keep what is booked as it is."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make all of it."""
    _make_the_chain()
    _make_what_follows()
    op.bulk_insert(
        sa.table("head", sa.column("id"), sa.column("seq"), sa.column("hash"), sa.column("at")),
        [{"id": 1, "seq": 0, "hash": "", "at": ""}],
    )
    if op.get_bind().dialect.name == "sqlite":
        _refuse_in_sqlite()
    else:
        _refuse_in_postgresql()


def _make_the_chain() -> None:
    texts = ("currency", "at", "note", "request", "receipt", "evidence", "previous", "hash")
    op.create_table(
        "bookings",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("auction_id", sa.Text),
        sa.Column("scale", sa.SmallInteger, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in texts),
        sa.UniqueConstraint("key", name="uq_bookings_key"),
    )
    op.create_index("ix_bookings_auction_id", "bookings", ["auction_id"])
    op.create_index("ix_bookings_at", "bookings", ["at"])
    op.create_table(
        "entries",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("line", sa.Integer, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("amount", "held", "residual")),
    )
    op.create_index("ix_entries_owner_seq", "entries", ["owner", "seq"])
    op.create_table(
        "head",
        sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
    )


def _make_what_follows() -> None:
    op.create_table(
        "currencies",
        sa.Column("code", sa.Text, primary_key=True, nullable=False),
        sa.Column("scale", sa.SmallInteger, nullable=False),
    )
    op.create_table(
        "accounts",
        sa.Column("owner", sa.Text, primary_key=True, nullable=False),
        sa.Column("currency", sa.Text, primary_key=True, nullable=False),
        sa.Column("balance", sa.BigInteger, nullable=False),
        sa.Column("held", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "auctions",
        sa.Column("auction_id", sa.Text, primary_key=True, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("expires_at", sa.Text),
        sa.Column("hold_seq", sa.BigInteger),
        sa.Column("close_seq", sa.BigInteger),
        sa.Column("holds", sa.Integer, nullable=False),
        sa.Column("nonce", sa.Text, nullable=False),
    )
    op.create_index("ix_auctions_state_expires_at", "auctions", ["state", "expires_at"])
    op.create_table(
        "receipts",
        sa.Column("auction_id", sa.Text, primary_key=True, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )


def _refuse_in_sqlite() -> None:
    for table in ("bookings", "entries"):
        for event in ("update", "delete"):
            op.execute(
                f"CREATE TRIGGER {table}_refuse_{event} BEFORE {event.upper()} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} are append-only: book a reversal'); END"
            )


def _refuse_in_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% are append-only: book a reversal', TG_TABLE_NAME; END $$"
    )
    for table in ("bookings", "entries"):
        op.execute(
            f"CREATE TRIGGER {table}_refuse BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse()"
        )
