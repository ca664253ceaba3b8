"""`llm-auction ledger`: its commands, and what each takes."""

from typing import TYPE_CHECKING, Any

from llm_auction_chain.cli import bookings, statements, upkeep
from llm_auction_chain.cli.ledger_url import DEFAULT_URL, VARIABLE
from llm_auction_chain.cli.rows import add_format

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

__all__ = ["add_ledger"]

_URL = "sqlite:///file.db, or postgresql+psycopg://user@host/database"


def add_ledger(commands: Any) -> None:
    """Add the command, with commands of its own, to those of the parser."""
    ledger = commands.add_parser(
        "ledger",
        help="deposits, balances, statements, and whether the books are right",
        description=f"What agents owe. The ledger is that of --url, else of the environment variable {VARIABLE}, else "
        f"{DEFAULT_URL}. A password belongs into the environment: an argument is seen in the list of processes. Only "
        "`deposit` and `migrate` begin a ledger where there is none. Exit code 0: done; 1: refused, unavailable, or "
        "what was verified differs; 2: bad input.",
    )
    ledger.add_argument("--url", help=_URL)
    inner = _Commands(ledger.add_subparsers(dest="ledger_command", required=True, metavar="COMMAND"))
    _add_bookings(inner)
    _add_statements(inner)
    _add_upkeep(inner)


class _Commands:
    """Adds commands, each of which takes `--url`, too."""

    def __init__(self, commands: Any) -> None:
        self._commands = commands

    def add(
        self, name: str, do: "Callable[[argparse.Namespace], int]", text: str, *, more: str = ""
    ) -> "argparse.ArgumentParser":
        import argparse

        described = f"{text[0].upper()}{text[1:]}. {more}".strip()
        parser: argparse.ArgumentParser = self._commands.add_parser(name, help=text, description=described)
        parser.add_argument("--url", default=argparse.SUPPRESS, help=_URL)
        parser.set_defaults(do=do)
        return parser


def _add_bookings(commands: _Commands) -> None:
    deposit = commands.add("deposit", bookings.deposit, "book money that came, and print the booking")
    withdraw = commands.add("withdraw", bookings.withdraw, "book money that went, and print the booking")
    for parser in (deposit, withdraw):
        parser.add_argument("owner", metavar="OWNER", help="whose account")
        parser.add_argument("amount", metavar="AMOUNT", help="such as 12.50")
        parser.add_argument("--currency", default="", metavar="C", help="of the amount; one without a name if left out")
        parser.add_argument("--key", help="books it once however often it is asked, such as the bank's reference")
        parser.add_argument("--note", default="", metavar="TEXT", help="kept with it")
    deposit.add_argument(
        "--decimals",
        type=int,
        metavar="N",
        help="decimals of the currency, 0 to 6, set by its first booking; 6 where nothing is said",
    )
    reverse = commands.add("reverse", bookings.reverse, "give back what an auction was charged, and print the booking")
    reverse.add_argument("auction", metavar="AUCTION_ID")
    reverse.add_argument("--owner", metavar="O", help="only this owner's line")
    reverse.add_argument("--reason", default="", metavar="TEXT", help="kept with it")
    commands.add(
        "expire-holds", bookings.expire_holds, "release holds whose time is over, and print their auctions, one a line"
    )


def _add_statements(commands: _Commands) -> None:
    balance = commands.add(
        "balance",
        statements.balance,
        "how accounts stand: balance, held, available",
        more="What is available is the balance less what is held; credit that an application grants is not counted.",
    )
    balance.add_argument("owner", nargs="?", metavar="OWNER", help="whose; everybody's if left out")
    statement = commands.add(
        "statement",
        statements.statement,
        "an account over a time: opening balance, entries with running balance, closing balance",
        more="What only holds or releases cover moves no money and is left out; `export` has it.",
    )
    statement.add_argument("owner", metavar="OWNER", help="whose account")
    export = commands.add(
        "export",
        statements.export,
        "all entries, with the accounts of debit and credit: owner:NAME, cash, revenue",
        more="One row after another, however many. `amount` was moved from debit to credit; `amount` + `residual` is "
        "the exact charge; `held` is the change of what is held, which moves no money.",
    )
    export.add_argument("--owner", metavar="O", help="only this owner's")
    for parser in (balance, statement, export):
        parser.add_argument("--currency", metavar="C", help="only this currency")
        add_format(parser)
    for parser in (statement, export):
        parser.add_argument("--since", metavar="DATE", help="ISO date or time, inclusive; UTC where no zone is said")
        parser.add_argument("--until", metavar="DATE", help="the same, exclusive")
        parser.add_argument("--month", metavar="2026-11", help="a month in UTC, in place of the two")


def _add_upkeep(commands: _Commands) -> None:
    verify = commands.add(
        "verify",
        upkeep.verify,
        "compute the chain again, and print bookings, head, and totals: cash = revenue + balances",
    )
    verify.add_argument("--head", metavar="HASH", help="one that `head` printed at some time; it must be in the chain")
    commands.add(
        "head", upkeep.head, "print number and hash of the last booking: noted elsewhere, it fixes all before it"
    )
    receipt = commands.add("receipt", upkeep.receipt, "print the stored receipt of an auction, JSON for `verify`")
    receipt.add_argument("auction", metavar="AUCTION_ID")
    receipt.add_argument("--agent", metavar="NAME", help="the view of this agent: nobody else's report in it")
    erase = commands.add(
        "erase-receipts", upkeep.erase_receipts, "delete stored receipts; the chain keeps their digests and verifies"
    )
    erase.add_argument("--before", required=True, metavar="DATE", help="of auctions charged before; ISO date or time")
    commands.add("migrate", upkeep.migrate, "bring the schema to the newest revision; back the database up before")
