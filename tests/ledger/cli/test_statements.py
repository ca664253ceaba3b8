"""`llm-auction ledger balance | statement | export`: the same figures as tables, CSV and JSON."""

import csv
import io
import json
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from llm_auction_chain import Ledger


def rows_of(said):
    """Return the rows of CSV or JSON, every cell as text."""
    assert (said.code, said.err) == (0, "")
    if said.out.startswith(("[", "{")):
        loaded = json.loads(said.out, parse_float=pytest.fail, parse_constant=pytest.fail)
        told = loaded if isinstance(loaded, list) else loaded["entries"]
        return [{name: "" if cell is None else str(cell) for name, cell in row.items()} for row in told]
    return list(csv.DictReader(io.StringIO(said.out)))


@pytest.fixture
def ledger(booked):
    with Ledger(f"sqlite:///{booked}") as ledger:
        yield ledger


def test_balances_are_those_of_the_ledger_in_every_format(say, ledger):
    wanted = [
        {name: str(getattr(account, name)) for name in ("owner", "currency", "balance", "held", "available")}
        for account in ledger.accounts()
    ]
    as_csv, as_json = (rows_of(say("ledger", "balance", "--format", form)) for form in ("csv", "json"))
    assert as_csv == as_json
    assert [{**row, "balance": Decimal(row["balance"])} for row in as_csv] == [
        {**row, "balance": Decimal(row["balance"])} for row in wanted
    ]
    table = say("ledger", "balance").out
    assert all(cell in table for row in as_csv for cell in row.values())


def test_balance_takes_an_owner_and_a_currency(say, booked):
    assert [row["owner"] for row in rows_of(say("ledger", "balance", "C", "--format", "csv"))] == ["C"]
    assert [row["owner"] for row in rows_of(say("ledger", "balance", "--currency", "USD", "--format", "csv"))] == [
        "Other"
    ]
    said = say("ledger", "balance", "c")
    assert (said.code, said.out, "'c' has no account" in said.err) == (2, "", True)
    said = say("ledger", "balance", "C", "--currency", "USD")
    assert (said.code, "accounts in 'EUR'" in said.err) == (2, True)


def test_an_owner_and_a_currency_have_one_spelling(say, booked):
    wide = ("\uff23", "--currency", "\uff25\uff35\uff32", "--format", "csv")
    for command in ("balance", "statement"):
        assert say("ledger", command, *wide).out == say("ledger", command, "C", "--format", "csv").out


def test_nothing_booked_is_an_empty_table_list_and_file(say, path):
    say("ledger", "migrate")
    assert say("ledger", "balance").out == "Accounts: nothing\n"
    assert say("ledger", "export", "--format", "csv").out.count("\n") == 1
    assert json.loads(say("ledger", "export", "--format", "json").out) == []


@pytest.mark.parametrize("form", ["csv", "json"])
@pytest.mark.parametrize("owner", ["TuneTown", "C"])
def test_a_statement_runs_from_opening_to_closing_balance(say, ledger, owner, form):
    rows = rows_of(say("ledger", "statement", owner, "--format", form))
    if form == "csv":
        assert (rows[0]["kind"], rows[0]["balance"], rows[-1]["kind"]) == ("opening", "0.00", "closing")
        assert rows[-1]["balance"] == rows[-2]["balance"]
        rows = rows[1:-1]
    balance = Decimal(0)
    for row in rows:
        balance += Decimal(row["amount"])
        assert Decimal(row["balance"]) == balance
    assert balance == ledger.balance(owner, currency="EUR").balance
    assert {row["kind"] for row in rows} <= {"deposit", "withdrawal", "charge", "reversal"}
    assert len(rows) >= 4


def test_the_parts_of_a_statement_follow_one_another(say, path):
    months = [datetime(2026, month, 28, 23, 59, 59, 999999, UTC) for month in (1, 2, 3)]
    for amount, month in enumerate(months, 1):
        with Ledger(f"sqlite:///{path}", clock=lambda month=month: month) as ledger:
            ledger.deposit("A", amount)
    told = [
        json.loads(say("ledger", "statement", "A", "--month", f"2026-{month:02}", "--format", "json").out)
        for month in range(1, 13)
    ]
    assert [part["closing"] for part in told[:-1]] == [part["opening"] for part in told[1:]]
    assert [len(part["entries"]) for part in told] == [1, 1, 1] + [0] * 9
    assert (told[1]["since"], told[1]["until"]) == ("2026-02-01T00:00:00.000000Z", "2026-03-01T00:00:00.000000Z")
    assert (told[1]["opening"], told[1]["deposited"], told[1]["closing"]) == ("1.000000", "2.000000", "3.000000")
    exact = ("ledger", "statement", "A", "--format", "json")
    at = "2026-02-28T23:59:59.999999"
    assert len(json.loads(say(*exact, "--since", at).out)["entries"]) == 2
    assert len(json.loads(say(*exact, "--until", at).out)["entries"]) == 1
    assert len(json.loads(say(*exact, "--since", "2026-03-01T00:59:59.999999+01:00").out)["entries"]) == 2
    assert "2026-01-28 23:59" in say("ledger", "statement", "A", "--until", "2026-02-01").out


@pytest.mark.parametrize(
    ("period", "says"),
    [
        (["--since", "yesterday"], "--since"),
        (["--until", "2026-02-30"], "--until"),
        (["--month", "2026-13"], "--month"),
        (["--month", "9999-12"], "--month"),
        (["--month", "2026-01", "--since", "2026-01-01"], "leave out"),
        (["--since", "2026-02-01", "--until", "2026-01-01"], "swap"),
        (["--since", "0001-01-01T00:00+14:00"], "--since"),
    ],
)
def test_a_period_that_is_none_is_exit_code_2(say, booked, period, says):
    said = say("ledger", "statement", "C", *period)
    assert (said.code, said.out) == (2, "")
    assert says in said.err


def test_a_statement_in_several_currencies_asks_which(say, ledger):
    ledger.deposit("C", 1, currency="USD")
    said = say("ledger", "statement", "C")
    assert (said.code, "'EUR', 'USD'" in said.err) == (2, True)
    assert "USD" in say("ledger", "statement", "C", "--currency", "USD").out
    assert say("ledger", "statement", "Nobody").code == 2


@pytest.mark.parametrize("form", ["csv", "json"])
def test_debits_and_credits_of_an_export_make_the_totals(say, ledger, form):
    rows = rows_of(say("ledger", "export", "--format", form))
    assert len(rows) == len(list(ledger.entries()))
    balances, exact = Counter(), Counter()
    for row in rows:
        assert Decimal(row["amount"]) >= 0
        assert bool(row["debit"]) == bool(row["credit"]) == (row["kind"] not in ("hold", "void"))
        for account, sign in ((row["debit"], -1), (row["credit"], 1)):
            balances[account, row["currency"]] += sign * Decimal(row["amount"])
            exact[account, row["currency"]] += sign * (Decimal(row["amount"]) + Decimal(row["residual"]))
    for totals in ledger.totals():
        assert balances["revenue", totals.currency] == totals.revenue
        assert exact["revenue", totals.currency] == totals.revenue + totals.residual
        assert -balances["cash", totals.currency] == totals.cash
    for account in ledger.accounts():
        assert balances[f"owner:{account.owner}", account.currency] == account.balance


def test_an_export_takes_owner_currency_and_period(say, booked):
    chosen = ("ledger", "export", "--format", "csv")
    assert {row["owner"] for row in rows_of(say(*chosen, "--owner", "C"))} == {"C"}
    assert {row["currency"] for row in rows_of(say(*chosen, "--currency", "USD"))} == {"USD"}
    assert rows_of(say(*chosen, "--month", "2001-01")) == []
    assert "owner:TuneTown" in say("ledger", "export").out


def test_an_export_is_written_while_it_is_read(say, booked, monkeypatch):
    read = []

    def entries(self, **chosen):
        for entry in whole(self, **chosen):
            read.append(entry)
            yield entry

    class Stream(io.StringIO):
        def write(self, text):
            if '"seq"' in text:
                seen.append(len(read))
            return super().write(text)

    whole, seen = Ledger.entries, []
    monkeypatch.setattr(Ledger, "entries", entries)
    monkeypatch.setattr("sys.stdout", Stream())
    say("ledger", "export", "--format", "json")
    assert seen == list(range(1, len(read) + 1))


def test_no_text_is_a_formula_to_a_spreadsheet(say, path):
    for name in ("=1+1", "+1", "-1", "@A1", "'quoted", "plain=1", "\uff1dcmd"):
        for note in (f"{name}!", "\t=1", "\ufeff=1"):
            assert say("ledger", "deposit", f"--note={note}", "--", name, "1").code == 0
    assert {row["owner"] for row in rows_of(say("ledger", "export", "--format", "json"))} >= {"=1+1", "-1"}
    say("ledger", "withdraw", "plain=1", "0.5")
    for command in (["balance"], ["export"], ["statement", "--", "=1+1"]):
        said = say("ledger", command[0], "--format", "csv", *command[1:])
        cells = [cell for row in csv.reader(io.StringIO(said.out)) for cell in row]
        assert not [cell for cell in cells if cell.strip().startswith(("=", "+", "@"))]
        for cell in cells:
            assert not cell.startswith("-") or Decimal(cell) < 0
    assert "'=1+1" in [row["owner"] for row in rows_of(say("ledger", "balance", "--format", "csv"))]


@pytest.mark.parametrize("width", [24, 40, 80, 120])
@pytest.mark.parametrize("command", [["balance"], ["statement", "TuneTown"], ["export"]])
def test_no_figure_is_broken_on_a_narrow_terminal(say_on_terminal, say, booked, width, command):
    figures = [row.get("balance") or row["amount"] for row in rows_of(say("ledger", *command, "--format", "csv"))]
    said = say_on_terminal(width, "ledger", *command)
    assert max(map(len, said.out.splitlines())) <= width
    words = said.out.split()
    assert all(figure in words for figure in figures)
