"""The first tables, the end of an empty chain, and the triggers that keep what is booked as it is."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from llm_auction_chain.ledger.tables import key, numbers, texts

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables, the row of the empty chain, and the triggers."""
    chain = ("currency", "at", "note", "request", "receipt", "evidence", "previous", "hash")
    bookings: list[sa.Column[Any]] = [sa.Column("auction_id", sa.Text)]
    bookings += [sa.Column("scale", sa.SmallInteger, nullable=False), *texts(*chain)]
    unique = sa.UniqueConstraint("key", name="uq_bookings_key")
    op.create_table("bookings", key("seq", sa.BigInteger), *texts("key", "kind"), *bookings, unique)
    op.create_index("ix_bookings_auction_id", "bookings", ["auction_id"])
    op.create_index("ix_bookings_at", "bookings", ["at"])
    line = key("line", sa.Integer)
    op.create_table("entries", key("seq", sa.BigInteger), line, *texts("owner"), *numbers("amount", "held", "residual"))
    op.create_index("ix_entries_owner_seq", "entries", ["owner", "seq"])
    scale = sa.Column("scale", sa.SmallInteger, nullable=False)
    op.create_table("currencies", key("code"), scale)
    op.create_table("accounts", key("owner"), key("currency"), *numbers("balance", "held"))
    op.create_table(
        "auctions",
        key("auction_id"),
        *texts("currency", "state"),
        sa.Column("expires_at", sa.Text),
        sa.Column("hold_seq", sa.BigInteger),
        sa.Column("close_seq", sa.BigInteger),
        sa.Column("holds", sa.Integer, nullable=False),
        *texts("nonce"),
    )
    op.create_index("ix_auctions_state_expires_at", "auctions", ["state", "expires_at"])
    op.create_table("receipts", key("auction_id"), *texts("digest", "body", "reply"))
    head = op.create_table("head", key("id", sa.SmallInteger), *numbers("seq"), *texts("hash", "at"))
    op.bulk_insert(head, [{"id": 1, "seq": 0, "hash": "", "at": ""}])
    if op.get_bind().dialect.name == "sqlite":
        _refuse_in_sqlite()
    else:
        _refuse_in_postgresql()


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
