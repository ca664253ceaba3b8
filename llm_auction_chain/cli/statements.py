"""`llm-auction ledger balance`, `statement` and `export`: accounts and entries, over a period."""

from argparse import Namespace
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from llm_auction_chain.cli.ledger import add_command, read_time
from llm_auction_chain.cli.tables import add_format, minute, plain, write_json, write_rows
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.money import negated, plus
from llm_auction_chain.validators import name_of_account

if TYPE_CHECKING:
    from llm_auction_chain.ledger import Account, Entry, Ledger, Statement

_OF_ACCOUNTS = ("owner", "currency", "balance", "held", "available")
_OF_STATEMENTS = ("at", "seq", "kind", "auction_id", "note", "amount", "residual", "balance")
_OF_ENTRIES = ("seq", "line", "at", "kind", "auction_id", "owner", "currency")
_OF_EXPORTS = (*_OF_ENTRIES, "debit", "credit", "amount", "residual", "held", "note")
_FORMATS = """amounts are exact decimals, in JSON as text. In CSV control characters are spelled out, and a text that
begins with = + - @ or ' gets one more ' in front, at its start and behind each semicolon, so that no spreadsheet takes
it for a formula"""
_CASH = ("deposit", "withdrawal")
_REVENUE = ("charge", "reversal")


def add_statements(commands: Any) -> None:
    """Add the commands to those of the ledger."""
    about = "balance, held and available money of accounts"
    more = "Available is the balance less what is held. Credit that an application grants is not counted."
    balance = add_command(commands, "balance", _balance, about, more)
    balance.add_argument("owner", nargs="?", metavar="OWNER", help="the account's owner; all owners without it")
    about = "an account over a period: opening balance, entries with running balance, closing balance"
    more = "Holds and releases move no money and are left out; `export` has them."
    statement = add_command(commands, "statement", _statement, about, more)
    statement.add_argument("owner", metavar="OWNER", help="the account's owner")
    about = "all entries, with the accounts of debit and credit: owner:NAME, cash, revenue"
    more = """Rows are written as they are read. `amount` moves from debit to credit; `amount` + `residual` is the exact
charge; `held` is the change of what is held, which moves no money."""
    export = add_command(commands, "export", _export, about, more)
    export.add_argument("--owner", metavar="O", help="only this owner's")
    for parser in (balance, statement, export):
        parser.add_argument("--currency", metavar="C", help="only this currency")
        add_format(parser, _FORMATS, csv=True)
    for parser in (statement, export):
        parser.add_argument("--since", metavar="DATE", help="ISO date or time, inclusive; UTC without a zone")
        parser.add_argument("--until", metavar="DATE", help="ISO date or time, exclusive; UTC without a zone")
        parser.add_argument("--month", metavar="YYYY-MM", help="month in UTC, in place of --since and --until")


def _balance(ledger: "Ledger", options: Namespace) -> None:
    accounts = _accounts(ledger, options.owner, options.currency)
    write_rows(options.format, _OF_ACCOUNTS, map(vars, accounts), title="Accounts", of_table=_OF_ACCOUNTS)


def _accounts(ledger: "Ledger", owner: str | None, currency: str | None) -> "list[Account]":
    """Return the accounts of an owner and a currency, or of all. An owner without one may be mistyped."""
    owner = None if owner is None else name_of_account("OWNER", owner)
    currency = None if currency is None else name_of_account("--currency", currency, empty=True)
    of_owner = [account for account in ledger.accounts() if owner in (None, account.owner)]
    accounts = [account for account in of_owner if currency in (None, account.currency)]
    if owner is not None and not accounts:
        others = f"; there are accounts in {', '.join(repr(one.currency) for one in of_owner)}" if of_owner else ""
        unit = "" if currency is None else f" in {currency!r}"
        raise ConfigurationError(f"{owner!r} has no account{unit}{others}. `llm-auction ledger balance` lists all.")
    return accounts


def _statement(ledger: "Ledger", options: Namespace) -> None:
    since, until = _period(options)
    accounts = _accounts(ledger, options.owner, options.currency)
    if len(accounts) > 1:
        currencies = ", ".join(repr(account.currency) for account in accounts)
        raise ConfigurationError(f"{options.owner!r} has accounts in {currencies}. Choose one by --currency.")
    statement = ledger.statement(options.owner, currency=accounts[0].currency, since=since, until=until)
    if options.format == "json":
        entries = [{name: plain(row[name]) for name in _OF_STATEMENTS} for row in _with_balances(statement)]
        names = ("owner", "currency", "since", "until", "opening", "deposited", "charged", "closing")
        write_json({**{name: plain(getattr(statement, name)) for name in names}, "entries": entries})
        return
    bounds = [("since", since), ("until", until)]
    period = "".join(f", {word} {minute(time)} UTC" for word, time in bounds if time)
    title = f"{statement.owner}{f', in {statement.currency}' if statement.currency else ''}{period}"
    of_table = ("at", "kind", "about", "amount", "balance")
    write_rows(options.format, _OF_STATEMENTS, _with_bounds(statement), title=title, of_table=of_table)


def _with_balances(statement: "Statement") -> Iterator[dict[str, Any]]:
    """Yield the entries that may move money, each with the balance after it."""
    balance = statement.opening
    for entry in statement.entries:
        balance = plus(balance, entry.amount)
        if entry.kind in _CASH + _REVENUE:
            yield {**vars(entry), "balance": balance}


def _with_bounds(statement: "Statement") -> Iterator[dict[str, Any]]:
    """Yield the opening balance, the entries, the closing balance."""
    nothing = dict.fromkeys(_OF_STATEMENTS)
    yield {**nothing, "at": statement.since, "kind": "opening", "balance": statement.opening}
    yield from _with_balances(statement)
    yield {**nothing, "at": statement.until, "kind": "closing", "balance": statement.closing}


def _export(ledger: "Ledger", options: Namespace) -> None:
    since, until = _period(options)
    entries = ledger.entries(owner=options.owner, currency=options.currency, since=since, until=until)
    of_table = ("seq", "at", "kind", "about", "debit", "credit", "amount", "currency", "held")
    write_rows(options.format, _OF_EXPORTS, map(_exported, entries), title="Entries", of_table=of_table)


def _exported(entry: "Entry") -> dict[str, Any]:
    """Return an entry with the accounts of debit and credit, and the amount that moves between them."""
    debit = credit = None
    sign = -1 if entry.amount < 0 or (entry.amount == 0 and entry.residual < 0) else 1
    if entry.kind in _CASH + _REVENUE:
        accounts = ("cash" if entry.kind in _CASH else "revenue", f"owner:{entry.owner}")
        debit, credit = accounts[::sign]
    amount, residual = (entry.amount, entry.residual) if sign > 0 else (negated(entry.amount), negated(entry.residual))
    return {**vars(entry), "debit": debit, "credit": credit, "amount": amount, "residual": residual}


def _period(options: Namespace) -> tuple[datetime | None, datetime | None]:
    """Return the first moment of a period, and the first one after it; None is open."""
    if options.month is not None:
        if options.since is not None or options.until is not None:
            raise ConfigurationError("--month is a period of its own; leave out --since and --until.")
        return _month(options.month)
    since = None if options.since is None else read_time(options.since, "--since")
    until = None if options.until is None else read_time(options.until, "--until")
    if since is not None and until is not None and since > until:
        raise ConfigurationError(f"--since {options.since} is after --until {options.until}; swap them.")
    return since, until


def _month(text: str) -> tuple[datetime, datetime]:
    try:
        since = datetime.strptime(text.strip(), "%Y-%m").replace(tzinfo=UTC)
        years, month = divmod(since.month, 12)
        return since, since.replace(year=since.year + years, month=month + 1)
    except ValueError as error:
        raise ConfigurationError(f"--month must be a year and a month, such as 2026-11, got {text!r}.") from error
