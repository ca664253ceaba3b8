"""Commands that book: each prints what it booked."""

import sys
from typing import TYPE_CHECKING

from llm_auction_chain.cli.ledger_url import open_ledger
from llm_auction_chain.cli.terminal import shown

if TYPE_CHECKING:
    import argparse

    from llm_auction_chain.ledger import Booking, Ledger

__all__ = ["deposit", "expire_holds", "reverse", "withdraw"]


def deposit(options: "argparse.Namespace") -> int:
    """Book money that came."""
    scales = {} if options.decimals is None else {options.currency: options.decimals}
    with open_ledger(options, creates=True, scales=scales) as ledger:
        last = ledger.head().seq
        booked = ledger.deposit(
            options.owner, options.amount, currency=options.currency, key=options.key, note=options.note
        )
        _print(ledger, booked, last)
    return 0


def withdraw(options: "argparse.Namespace") -> int:
    """Book money that went."""
    with open_ledger(options) as ledger:
        last = ledger.head().seq
        booked = ledger.withdraw(
            options.owner, options.amount, currency=options.currency, key=options.key, note=options.note
        )
        _print(ledger, booked, last)
    return 0


def reverse(options: "argparse.Namespace") -> int:
    """Give back what an auction was charged."""
    with open_ledger(options) as ledger:
        last = ledger.head().seq
        booked = ledger.reverse(options.auction, owner=options.owner, reason=options.reason)
        _print(ledger, booked, last)
    return 0


def expire_holds(options: "argparse.Namespace") -> int:
    """Release holds whose time is over."""
    with open_ledger(options) as ledger:
        for auction in ledger.expire_holds():
            sys.stdout.write(f"{shown(auction)}\n")
    return 0


def _print(ledger: "Ledger", booked: "Booking", last: int) -> None:
    """Print a booking and the balances after it; `last` is the number of the last booking before it was asked for."""
    if booked.seq <= last:
        sys.stderr.write(f"llm-auction: booked before, at {booked.at:%Y-%m-%d %H:%M:%S} UTC; nothing was booked now\n")
    lines = [f"booking     {booked.seq}", f"hash        {booked.hash}"]
    for entry in booked.entries:
        account = ledger.balance(entry.owner, currency=entry.currency)
        unit = f" {shown(entry.currency)}" if entry.currency else ""
        lines.append(f"{booked.kind:<10}  {entry.amount:f}{unit}, {shown(entry.owner)}")
        lines.append(f"balance     {account.balance:f}{unit}")
    sys.stdout.write("\n".join(lines) + "\n")
