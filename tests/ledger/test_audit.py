"""The audit: whatever is edited behind the ledger's back is found and said."""

# ruff: noqa: S608 - names of tables and columns, from the metadata

import sqlite3
from contextlib import closing
from shutil import copy

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import text

from llm_auction_chain.errors import LedgerError
from llm_auction_chain.ledger import Ledger, tables

RECEIPT = {"digest": "sha256:00", "winner": 1}


@pytest.fixture
def used(funded, clock):
    """A ledger with every kind of booking, and a row in every table."""
    funded.hold("held", {"A": 1})
    funded.hold("charged", {"A": 2, "B": 2})
    funded.charge("charged", {"A": "1.5", "B": -1}, receipt=RECEIPT)
    funded.hold("late", {"B": 1})
    clock.move(hours=1)
    funded.expire_holds()
    funded.hold("held", {"A": 1})
    funded.reverse("charged", owner="B")
    funded.void("voided")
    funded.cancel("cancelled")
    funded.withdraw("C", 5, key="out")
    return funded


def edits():
    """Yield every table, and every column of it."""
    for table in tables.METADATA.sorted_tables:
        for column in table.columns:
            yield pytest.param(table, column, id=f"{table.name}.{column.name}")


def keys_of(edit, table):
    return edit(f"SELECT {', '.join(column.name for column in table.primary_key)} FROM {table.name}")


def where(table):
    return " AND ".join(f"{column.name} = :key_{column.name}" for column in table.primary_key)


def bound(key):
    return {f"key_{name}": value for name, value in key.items()}


@pytest.mark.parametrize(("table", "column"), list(edits()))
def test_every_edit_of_a_column_of_any_row_is_found(used, edit, url, table, column):
    assert used.verify().ok
    number = column.type.python_type is int
    change = "{0} + 100" if number else "{0} || 'x'"
    keys = keys_of(edit, table)
    # the audit is one code for both: each row in SQLite, two in the slower one
    for key in keys if url.startswith("sqlite") else (keys[0], keys[-1]):
        name = column.name
        new = f"CASE WHEN {name} IS NULL THEN {'1' if number else repr('x')} ELSE {change.format(name)} END"
        old = edit(f"SELECT {name} FROM {table.name} WHERE {where(table)}", **bound(key))[0][name]
        assert edit(f"UPDATE {table.name} SET {name} = {new} WHERE {where(table)}", **bound(key)) == 1
        found = used.verify()
        assert not found.ok, (table.name, name, key)
        assert all(isinstance(one, str) for one in found.differences)
        moved = {**key, **({name: old + 100 if number else f"{old}x"} if name in key else {})}
        edit(f"UPDATE {table.name} SET {name} = :old WHERE {where(table)}", old=old, **bound(moved))
    assert used.verify().ok


@pytest.mark.parametrize("table", tables.METADATA.sorted_tables, ids=lambda table: table.name)
def test_every_row_that_is_deleted_is_missed_but_an_erased_receipt(used, edit, table):
    for key in keys_of(edit, table):
        old = edit(f"SELECT * FROM {table.name} WHERE {where(table)}", **bound(key))[0]
        edit(f"DELETE FROM {table.name} WHERE {where(table)}", **bound(key))
        assert used.verify().ok is (table is tables.receipts), (table.name, key)
        names = ", ".join(old)
        edit(f"INSERT INTO {table.name} ({names}) VALUES ({', '.join(f':{name}' for name in old)})", **old)
    assert used.verify().ok


def test_what_was_added_is_found(used, edit):
    edit("INSERT INTO accounts (owner, currency, balance, held) VALUES ('Z', '', 0, 0)")
    edit("INSERT INTO entries (seq, line, owner, amount, held, residual) VALUES (99, 0, 'Z', 5, 0, 0)")
    edit("INSERT INTO auctions (auction_id, currency, state, holds, nonce) VALUES ('Z', '', 'voided', 0, '')")
    edit("INSERT INTO currencies (code, scale) VALUES ('Z', 2)")
    edit("INSERT INTO receipts (auction_id, digest, body, reply) VALUES ('Z', 'd', 'no JSON', '')")
    edit("INSERT INTO head (id, seq, hash, at) VALUES (2, 1, '', '')")
    found = used.verify()
    assert len(found.differences) == 6


def test_the_number_of_the_booking_is_said(used, edit):
    edit("UPDATE entries SET amount = amount + 1 WHERE seq = 2")
    found = used.verify()
    assert any("Booking 2 or its entries" in one for one in found.differences)
    assert any("account of 'B'" in one for one in found.differences)


def test_a_booking_that_is_missing_is_said_by_its_number(used, edit):
    edit("DELETE FROM bookings WHERE seq = 3")
    edit("DELETE FROM entries WHERE seq = 3")
    found = used.verify().differences
    assert "Booking 3 is missing: 4 follows 2." in found
    assert "Booking 4 does not link to the hash of the one before it." in found


def test_the_state_of_an_auction_is_said_as_it_is_and_as_it_was_booked(used, edit):
    edit("UPDATE auctions SET state = 'voided' WHERE auction_id = 'held'")
    (said,) = used.verify().differences
    assert said.startswith("Auction 'held' is ")
    is_, was = said.split(" in its table, ")
    assert ("currency '', state 'voided'" in is_, "currency '', state 'held'" in was) == (True, True)
    edit("UPDATE auctions SET auction_id = 'other' WHERE auction_id = 'held'")
    other, missing = used.verify().differences
    assert other.endswith("in its table, nothing in its bookings.")
    assert missing == "Auction 'held' is missing from its table."


def test_a_nonce_may_be_erased_when_its_auction_is_closed_and_not_before(used, edit):
    edit("UPDATE auctions SET nonce = '' WHERE auction_id = 'charged'")
    assert used.verify().ok
    edit("UPDATE auctions SET nonce = '' WHERE auction_id = 'held'")
    (said,) = used.verify().differences
    assert said.startswith("Auction 'held'")


def test_a_head_noted_elsewhere_must_be_in_the_chain(used):
    noted = used.head().hash
    assert used.verify(head=noted).head == noted
    used.deposit("A", 1)
    assert used.verify(head=noted).ok
    assert used.verify(head="").ok
    found = used.verify(head="sha256:ff")
    assert not found.ok
    assert "sha256:ff" in found.differences[0]


def test_erased_receipts_leave_their_digest(used, clock):
    assert used.receipt_of("charged") == RECEIPT
    assert used.erase_receipts(clock.now.replace(year=2020)) == 0
    assert used.erase_receipts(clock.now) == 1
    assert used.receipt_of("charged") is None
    assert used.charge_of("charged").receipt == "sha256:00"
    assert used.verify().ok


def test_receipts_may_be_kept_elsewhere(url):
    with Ledger(url, keep_receipts=False, credit=5) as ledger:
        first = ledger.charge("x", {"A": 1}, receipt=RECEIPT)
        assert ledger.receipt_of("x") is None
        assert ledger.charge("x", {"A": 1}, receipt=RECEIPT) == first
        assert ledger.verify().ok


def test_an_audit_reads_page_by_page(used, monkeypatch):
    whole = used.verify()
    monkeypatch.setattr("llm_auction_chain.ledger.audit._PAGE", 2)
    assert used.verify() == whole
    assert whole.bookings == used.head().seq


@pytest.mark.parametrize("statement", ["UPDATE {} SET seq = seq", "DELETE FROM {}"])
@pytest.mark.parametrize("table", ["bookings", "entries"])
def test_the_database_itself_refuses_to_change_what_is_booked(used, url, table, statement):
    engine = create_engine(url)
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(text(statement.format(table)))
    engine.dispose()
    assert used.verify().ok


@pytest.mark.parametrize(
    "edited",
    [
        "bookings SET seq = 'x'",
        "bookings SET at = x'ff'",
        "bookings SET scale = -1000000000000000000",
        "bookings SET note = cast(x'ff' AS TEXT)",
        "entries SET amount = 'x'",
        "entries SET seq = 'x'",
        "accounts SET balance = x'00'",
        "auctions SET holds = 'x'",
        "receipts SET body = '[]'",
    ],
)
def test_a_file_full_of_nonsense_is_reported_and_raises_nothing(empty_file, tmp_path, edited):
    copy(empty_file, tmp_path / "ledger.db")
    with Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", credit=9) as ledger:
        ledger.charge("x", {"A": 1, "B": 2}, receipt=RECEIPT)
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection, connection:
            for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                connection.execute(f"DROP TRIGGER {trigger}")
            connection.execute(f"UPDATE {edited} WHERE rowid = 1")
        found = ledger.verify()
        assert not found.ok
        assert all(isinstance(one, str) for one in found.differences)


@pytest.mark.parametrize(("edited", "calls"), [
    ("accounts SET balance = 'x'", ["balance", "accounts", "deposit"]),
    ("accounts SET held = x'ff'", ["balance", "accounts"]),
    ("entries SET amount = 'x'", ["entries", "statement", "charge_of"]),
    ("bookings SET at = 'soon'", ["entries", "statement", "charge_of"]),
    ("bookings SET scale = 'x'", ["entries", "charge_of"]),
    ("currencies SET scale = 'x'", ["balance", "statement", "totals", "deposit"]),
    ("head SET at = x'ff'", ["deposit"]),
    ("auctions SET state = 'x'", ["hold"]),
    ("receipts SET body = '7'", ["receipt_of"]),
    ("receipts SET body = '{'", ["receipt_of"]),
])  # fmt: skip
def test_a_value_that_the_ledger_never_writes_is_our_error_in_every_call(empty_file, tmp_path, edited, calls):
    copy(empty_file, tmp_path / "ledger.db")
    ask = {
        "balance": lambda ledger: ledger.balance("A"),
        "accounts": lambda ledger: ledger.accounts(),
        "entries": lambda ledger: list(ledger.entries()),
        "statement": lambda ledger: ledger.statement("A"),
        "totals": lambda ledger: ledger.totals(),
        "charge_of": lambda ledger: ledger.charge_of("x"),
        "receipt_of": lambda ledger: ledger.receipt_of("x"),
        "deposit": lambda ledger: ledger.deposit("A", 1),
        "hold": lambda ledger: ledger.hold("x", {"A": 1}),
    }
    with Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", credit=9) as ledger:
        ledger.charge("x", {"A": 1}, receipt=RECEIPT)
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection, connection:
            for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                connection.execute(f"DROP TRIGGER {trigger}")
            connection.execute(f"UPDATE {edited}")
        ledger.close()
        for call in calls:
            with pytest.raises(LedgerError, match="never writes"):
                ask[call](ledger)
