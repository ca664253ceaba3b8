"""`llm-auction ledger`: which ledger, and the commands that book and that look after it."""

import os
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from llm_auction_chain.cli import printable_text
from llm_auction_chain.cli.tables import add_format, plain, write_json
from llm_auction_chain.errors import ConfigurationError, LedgerError
from llm_auction_chain.validators import digest_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from llm_auction_chain.ledger import Booking, Ledger, Totals

_URL = "database, as in sqlite:///file.db or postgresql+psycopg://user@host/database"
_VARIABLE = "LLM_AUCTION_LEDGER"
_DEFAULT_URL = "sqlite:///llm_auction.db"
_CREATE = ("deposit", "migrate")  # a ledger, where there is none


def add_command(
    commands: Any, name: str, do: "Callable[[Ledger, Namespace], int | None]", text: str, more: str = ""
) -> ArgumentParser:
    """Add a command of the ledger with its help, and what it does with the ledger; return its parser."""

    def run(options: Namespace) -> int | None:
        with _open(options) as ledger:
            return do(ledger, options)

    description = f"{text[0].upper()}{text[1:]}. {more}".strip()
    parser: ArgumentParser = commands.add_parser(name, help=text, description=description)
    parser.add_argument("--url", default=SUPPRESS, help=_URL)
    parser.set_defaults(do=run)
    return parser


def add_ledger(commands: Any) -> Any:
    """Add the command to those of the parser, and return what takes more commands of the ledger."""
    ledger = commands.add_parser(
        "ledger",
        help="deposits, balances, statements, and whether the books are right",
        description=f"What agents owe. The ledger is that of --url, else of the environment variable {_VARIABLE}, else "
        f"{_DEFAULT_URL}. Put a password into the environment: other users can read arguments in the list of "
        "processes. Only `deposit` and `migrate` create a ledger. Exit code 0: success; 1: refused, unavailable, or "
        "the verification shows a difference; 2: bad input.",
    )
    ledger.add_argument("--url", help=_URL)
    inner = ledger.add_subparsers(dest="ledger_command", required=True, metavar="COMMAND")
    _add_bookings(inner)
    _add_upkeep(inner)
    return inner


def _add_bookings(commands: Any) -> None:
    deposit = add_command(commands, "deposit", _move, "book money that comes in, and print the booking")
    withdraw = add_command(commands, "withdraw", _move, "book money that goes out, and print the booking")
    for parser in (deposit, withdraw):
        parser.add_argument("owner", metavar="OWNER", help="the account's owner")
        parser.add_argument("amount", metavar="AMOUNT", help="sum of money, such as 12.50")
        parser.add_argument("--currency", metavar="C", help="currency of the amount; '' for one without a name")
        parser.add_argument("--key", help="name of the booking, such as the bank's reference; the same key books once")
        parser.add_argument("--note", default="", metavar="TEXT", help="text that is kept with it")
    decimals = "decimals of the currency, 0 to 6, set by its first booking (6)"
    deposit.add_argument("--decimals", type=int, metavar="N", help=decimals)
    reverse = add_command(commands, "reverse", _reverse, "give back what an auction charged, and print the booking")
    reverse.add_argument("auction", metavar="AUCTION_ID", help="the auction that charged")
    reverse.add_argument("--owner", metavar="O", help="only this owner's line")
    reverse.add_argument("--reason", default="", metavar="TEXT", help="text that is kept with it")
    about = "release holds whose time is over, and print their auctions, one a line"
    expire_holds = add_command(commands, "expire-holds", _expire_holds, about)
    for parser in (deposit, withdraw, reverse, expire_holds):
        add_format(parser)


def _add_upkeep(commands: Any) -> None:
    about = "compute the chain again, and print bookings, head, and totals: cash = revenue + balances"
    verify = add_command(commands, "verify", _verify, about)
    verify.add_argument("--head", metavar="HASH", help="hash that `head` printed before; it must be in the chain")
    about = "print number and hash of the last booking: noted elsewhere, it fixes all before it"
    head = add_command(commands, "head", _head, about)
    receipt = add_command(commands, "receipt", _receipt, "print the stored receipt of an auction, JSON for `verify`")
    receipt.add_argument("auction", metavar="AUCTION_ID", help="the auction of the receipt")
    receipt.add_argument("--agent", metavar="NAME", help="the view of this agent, without other agents' reports")
    about = "print the proof that the ledger contains an agent's view, JSON for `verify --inclusion`"
    proof = add_command(commands, "proof", _proof, about)
    proof.add_argument("auction", metavar="AUCTION_ID", help="the auction of the view")
    proof.add_argument("--agent", required=True, metavar="NAME", help="the agent whose owner has the view")
    proof.add_argument("--head", metavar="HASH", help="head that the owner has noted; the last booking without it")
    about = "delete stored receipts; the chain keeps their digests and verifies"
    erase = add_command(commands, "erase-receipts", _erase_receipts, about)
    erase.add_argument(
        "--before",
        required=True,
        metavar="DATE",
        help="ISO date or time: of auctions charged before it",
    )
    for parser in (verify, head, erase):
        add_format(parser)
    add_command(commands, "migrate", _migrate, "bring the schema to the newest revision; back up the database before")


def _move(ledger: "Ledger", options: Namespace) -> None:
    """Deposit or withdraw. A deposit without a currency is a mistake where the ledger has currencies with names."""
    move = ledger.deposit if options.ledger_command == "deposit" else ledger.withdraw
    names = [repr(one.currency) for one in ledger.totals() if one.currency] if options.currency is None else []
    repeated = options.key is not None and ledger.has_booked("deposit", options.key)
    if names and options.ledger_command == "deposit" and not repeated:
        raise ConfigurationError(
            f"Give --currency: the ledger has accounts in {', '.join(names)}. Without a name: --currency ''."
        )
    about = {"currency": options.currency or "", "key": options.key, "note": options.note}
    _book(ledger, options, lambda: move(options.owner, options.amount, **about))


def _reverse(ledger: "Ledger", options: Namespace) -> None:
    _book(ledger, options, lambda: ledger.reverse(options.auction, owner=options.owner, reason=options.reason))


def _book(ledger: "Ledger", options: Namespace, book: "Callable[[], Booking]") -> None:
    """Book, and print the booking and the balances after it."""
    last = ledger.head().seq
    booking = book()
    if booking.seq <= last:
        at = f"{booking.at:%Y-%m-%d %H:%M:%S} UTC"
        sys.stderr.write(f"llm-auction: booked before, at {at}; nothing was booked now\n")
    lines, entries = [f"booking     {booking.seq}", f"hash        {booking.hash}"], []
    for entry in booking.entries:
        account = ledger.balance(entry.owner, currency=entry.currency)
        unit = f" {entry.currency}" if entry.currency else ""
        lines.append(f"{booking.kind:<10}  {entry.amount:f}{unit}, {entry.owner}")
        lines.append(f"balance     {account.balance:f}{unit}")
        entries.append({"owner": entry.owner, "amount": plain(entry.amount), "balance": plain(account.balance)})
    data = {name: plain(getattr(booking, name)) for name in ("seq", "hash", "kind", "at", "currency")}
    _write(options, {**data, "entries": entries}, lines)


def _write(options: Namespace, data: "Mapping[str, Any]", lines: "Iterable[str]") -> None:
    """Write the data as JSON, or the lines. Whatever a ledger holds, they move no cursor and hide nothing."""
    if options.format == "json":
        write_json(data)
    else:
        sys.stdout.writelines(f"{printable_text(line)}\n" for line in lines)


def _expire_holds(ledger: "Ledger", options: Namespace) -> None:
    expired = ledger.expire_holds()
    _write(options, {"expired": expired}, expired)


def _verify(ledger: "Ledger", options: Namespace) -> int:
    if options.head is not None:
        digest_text("--head", options.head, "`llm-auction ledger head` prints it behind the number.")
    audit, totals = ledger.verify(head=options.head), ledger.totals()
    ok = audit.ok and all(one.cash == one.revenue + one.balances for one in totals)
    lines = [f"bookings  {audit.bookings}", f"head      {audit.head or 'none'}", *map(_total, totals)]
    lines += [f"  {difference}" for difference in audit.differences]
    sums = [{name: plain(value) for name, value in vars(one).items()} for one in totals]
    _write(options, {**vars(audit), "ok": ok, "totals": sums}, [*lines, "OK" if ok else "DIFFERS"])
    return 0 if ok else 1


def _total(one: "Totals") -> str:
    equals = "=" if one.cash == one.revenue + one.balances else "is not"
    sums = f"cash {one.cash:f} {equals} revenue {one.revenue:f} + balances {one.balances:f}"
    return f"{one.currency:<8}  {sums}; held {one.held:f}; residual {one.residual:f}"


def _head(ledger: "Ledger", options: Namespace) -> None:
    head = ledger.head()
    _write(options, vars(head), [f"{head.seq} {head.hash}".rstrip()])


def _receipt(ledger: "Ledger", options: Namespace) -> None:
    from llm_auction_chain.receipts import Receipt

    stored = ledger.receipt_of(options.auction)
    if stored is None:
        charged = ledger.charge_of(options.auction)
        reason = "it was erased, or the ledger keeps none" if charged else "no auction of this id was charged"
        raise LedgerError(f"No receipt of {options.auction!r} is stored: {reason}.")
    write_json(stored if options.agent is None else Receipt.from_dict(stored).view(options.agent).as_dict())


def _proof(ledger: "Ledger", options: Namespace) -> None:
    from llm_auction_chain.receipts import prove

    head = None if options.head is None else digest_text("--head", options.head)
    write_json(prove(ledger, options.auction, options.agent, head=head).as_dict())


def _erase_receipts(ledger: "Ledger", options: Namespace) -> None:
    erased = ledger.erase_receipts(read_time(options.before, "--before"))
    _write(options, {"erased": erased}, [f"erased  {erased}"])


def _migrate(ledger: "Ledger", _: Namespace) -> None:
    ledger.migrate()
    sys.stderr.write("llm-auction: the schema has the newest revision\n")


def _open(options: Namespace) -> "Ledger":
    """Return the ledger of `--url`, else of the environment, else of the file `llm_auction.db`.

    There must be one, except for commands that create it: the path may be mistyped.
    """
    from llm_auction_chain.ledger import Ledger

    url = (os.environ.get(_VARIABLE) or _DEFAULT_URL) if options.url is None else options.url
    decimals = getattr(options, "decimals", None)
    ledger = Ledger(url, scales=None if decimals is None else {options.currency or "": decimals})

    from llm_auction_chain.ledger.database import Database, in_memory

    database = Database(url)
    if in_memory(database.url):
        raise ConfigurationError("The ledger is a database in memory, which ends with the command. Name a file.")
    if options.ledger_command not in _CREATE and not database.has_ledger():
        raise ConfigurationError(
            f"There is no ledger in {database}. Check the URL; `llm-auction ledger deposit` or `migrate` creates one."
        )
    return ledger


def read_time(text: str, option: str) -> datetime:
    """Return the ISO date (its first moment) or time that an option gives. Without a zone it is UTC.

    >>> read_time("2026-11-02", "--since").isoformat(), read_time("2026-11-02T01:00+02:00", "--since").isoformat()
    ('2026-11-02T00:00:00+00:00', '2026-11-01T23:00:00+00:00')
    """
    try:
        time = datetime.fromisoformat(text.strip())
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(
            f"{option} must be a date such as 2026-11-01 or a time such as 2026-11-01T12:00+01:00, got {text!r}."
        ) from error
