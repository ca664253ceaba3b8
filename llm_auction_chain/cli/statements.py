"""Commands that tell of accounts and entries."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llm_auction_chain.cli.ledger_url import open_ledger
from llm_auction_chain.cli.periods import period_of
from llm_auction_chain.cli.rows import plain, spelled, write_object, write_rows
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.money import negated, plus

if TYPE_CHECKING:
    import argparse

    from llm_auction_chain.ledger import Account, Entry, Ledger, Statement

__all__ = ["balance", "export", "statement"]

_OF_ACCOUNTS = ("owner", "currency", "balance", "held", "available")
_OF_STATEMENTS = ("at", "seq", "kind", "auction_id", "note", "amount", "residual", "balance")
_OF_EXPORTS = (
    "seq",
    "line",
    "at",
    "kind",
    "auction_id",
    "owner",
    "currency",
    "debit",
    "credit",
    "amount",
    "residual",
    "held",
    "note",
)
_CASH = ("deposit", "withdrawal")
_REVENUE = ("charge", "reversal")


def balance(options: "argparse.Namespace") -> int:
    """Tell how accounts stand."""
    with open_ledger(options) as ledger:
        chosen = _accounts(ledger, options.owner, options.currency)
    rows = ({name: getattr(account, name) for name in _OF_ACCOUNTS} for account in chosen)
    write_rows(options.format, _OF_ACCOUNTS, rows, title="Accounts", of_table=_OF_ACCOUNTS)
    return 0


def _accounts(ledger: "Ledger", owner: str | None, currency: str | None) -> "list[Account]":
    """Return the accounts that are asked for.

    Raises:
        ConfigurationError: the owner has none: the name may be mistyped.
    """
    found = [account for account in ledger.accounts() if owner in (None, account.owner)]
    chosen = [account for account in found if currency in (None, account.currency)]
    if owner is not None and not chosen:
        others = f"; there are accounts in {', '.join(repr(one.currency) for one in found)}" if found else ""
        unit = "" if currency is None else f" in {currency!r}"
        raise ConfigurationError(f"{owner!r} has no account{unit}{others}. `llm-auction ledger balance` lists all.")
    return chosen


def statement(options: "argparse.Namespace") -> int:
    """Tell of an account over a time."""
    since, until = period_of(options)
    with open_ledger(options) as ledger:
        accounts = _accounts(ledger, options.owner, options.currency)
        if len(accounts) > 1:
            currencies = ", ".join(repr(account.currency) for account in accounts)
            raise ConfigurationError(f"{options.owner!r} has accounts in {currencies}; say which by --currency.")
        told = ledger.statement(options.owner, currency=accounts[0].currency, since=since, until=until)
    if options.format == "json":
        entries = [{name: plain(row[name]) for name in _OF_STATEMENTS} for row in _moves(told)]
        amounts = {name: plain(getattr(told, name)) for name in ("opening", "deposited", "charged", "closing")}
        period = {"since": spelled(since), "until": spelled(until)}
        write_object({"owner": told.owner, "currency": told.currency, **period, **amounts, "entries": entries})
        return 0
    write_rows(
        options.format,
        _OF_STATEMENTS,
        _bounded(told),
        title=_title(told),
        of_table=("at", "kind", "about", "amount", "balance"),
    )
    return 0


def _title(told: "Statement") -> str:
    bounds = [("since", told.since), ("until", told.until)]
    period = "".join(f", {word} {moment:%Y-%m-%d %H:%M} UTC" for word, moment in bounds if moment)
    return f"{told.owner}{f', in {told.currency}' if told.currency else ''}{period}"


def _moves(told: "Statement") -> Iterator[dict[str, Any]]:
    """Yield the entries that may move money, each with the balance after it."""
    balance = told.opening
    for entry in told.entries:
        balance = plus(balance, entry.amount)
        if entry.kind in _CASH + _REVENUE:
            yield {
                **{name: getattr(entry, name) for name in _OF_STATEMENTS if name != "balance"},
                "balance": balance,
            }


def _bounded(told: "Statement") -> Iterator[dict[str, Any]]:
    """Yield the opening balance, the entries, the closing balance."""
    nothing = dict.fromkeys(_OF_STATEMENTS)
    yield {**nothing, "at": told.since, "kind": "opening", "balance": told.opening}
    yield from _moves(told)
    yield {**nothing, "at": told.until, "kind": "closing", "balance": told.closing}


def export(options: "argparse.Namespace") -> int:
    """Tell all entries, as they are read."""
    since, until = period_of(options)
    with open_ledger(options) as ledger:
        found = ledger.entries(owner=options.owner, currency=options.currency, since=since, until=until)
        write_rows(
            options.format,
            _OF_EXPORTS,
            map(_exported, found),
            title="Entries",
            of_table=("seq", "at", "kind", "about", "debit", "credit", "amount", "currency", "held"),
        )
    return 0


def _exported(entry: "Entry") -> dict[str, Any]:
    """Return an entry with the accounts of debit and credit, and what was moved between them."""
    debit = credit = None
    sign = -1 if entry.amount < 0 or (entry.amount == 0 and entry.residual < 0) else 1
    if entry.kind in _CASH + _REVENUE:
        accounts = ("cash" if entry.kind in _CASH else "revenue", f"owner:{entry.owner}")
        debit, credit = accounts[::sign]
    same = {name: getattr(entry, name) for name in ("seq", "line", "at", "kind", "auction_id", "owner", "currency")}
    moved = (entry.amount, entry.residual) if sign > 0 else (negated(entry.amount), negated(entry.residual))
    amounts = {"amount": moved[0], "residual": moved[1], "held": entry.held}
    return {**same, "debit": debit, "credit": credit, **amounts, "note": entry.note}
