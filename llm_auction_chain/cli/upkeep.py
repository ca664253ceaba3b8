"""Commands for those who look after a ledger."""

import json
import sys
from typing import TYPE_CHECKING, Any

from llm_auction_chain.cli.ledger_url import open_ledger
from llm_auction_chain.cli.periods import read_time
from llm_auction_chain.cli.rows import write_object
from llm_auction_chain.cli.terminal import shown
from llm_auction_chain.errors import ConfigurationError, LedgerError

if TYPE_CHECKING:
    import argparse

    from llm_auction_chain.ledger import Totals

__all__ = ["erase_receipts", "head", "migrate", "receipt", "verify"]


def verify(options: "argparse.Namespace") -> int:
    """Compute the chain again, and tell what differs."""
    with open_ledger(options) as ledger:
        audit = ledger.verify(head=options.head)
        totals = ledger.totals()
    sys.stdout.write(f"bookings  {audit.bookings}\nhead      {audit.head or 'none'}\n")
    for one in totals:
        sys.stdout.write(f"{_total(one)}\n")
    for difference in audit.differences:
        sys.stdout.write(f"  {shown(difference)}\n")
    sums = all(one.cash == one.revenue + one.balances for one in totals)
    ok = audit.ok and sums
    sys.stdout.write("OK\n" if ok else "DIFFERS\n")
    return 0 if ok else 1


def _total(one: "Totals") -> str:
    equals = "=" if one.cash == one.revenue + one.balances else "is not"
    sums = f"cash {one.cash:f} {equals} revenue {one.revenue:f} + balances {one.balances:f}"
    return f"{shown(one.currency):<8}  {sums}; held {one.held:f}; residual {one.residual:f}"


def head(options: "argparse.Namespace") -> int:
    """Print number and hash of the last booking."""
    with open_ledger(options) as ledger:
        found = ledger.head()
    sys.stdout.write(f"{found.seq} {found.hash}".rstrip() + "\n")
    return 0


def receipt(options: "argparse.Namespace") -> int:
    """Print the stored receipt of an auction, or an agent's view of it."""
    with open_ledger(options) as ledger:
        stored = ledger.receipt_of(options.auction)
        charged = ledger.charge_of(options.auction)
    if stored is None:
        why = "it was erased, or receipts are not kept" if charged else "no such auction was charged"
        raise LedgerError(f"No receipt of {options.auction!r} is stored: {why}.")
    write_object(stored if options.agent is None else _view(stored, options.agent))
    return 0


def _view(stored: dict[str, Any], agent: str) -> dict[str, Any]:
    from pydantic import ValidationError

    from llm_auction_chain.receipts import Receipt

    try:
        full = Receipt.model_validate_json(json.dumps(stored))
    except ValidationError as error:
        raise ConfigurationError("The stored receipt is of another make; it has no views.") from error
    return full.view(agent).as_dict()


def erase_receipts(options: "argparse.Namespace") -> int:
    """Delete stored receipts of charges before a time."""
    before = read_time(options.before, "--before")
    with open_ledger(options) as ledger:
        sys.stdout.write(f"erased  {ledger.erase_receipts(before)}\n")
    return 0


def migrate(options: "argparse.Namespace") -> int:
    """Bring the schema to the newest revision."""
    with open_ledger(options, creates=True) as ledger:
        ledger.migrate()
    sys.stderr.write("llm-auction: the schema is of the newest revision\n")
    return 0
