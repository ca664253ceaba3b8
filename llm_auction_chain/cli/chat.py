"""`llm-auction chat`: a conversation in which agents bid for every reply."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rich.console import Console

from llm_auction_chain.cli import fail
from llm_auction_chain.cli.run import add_settings, checked_auction, checked_question, hold, load_model, progress_bars
from llm_auction_chain.cli.tables import Column, add_format, write_line, write_table
from llm_auction_chain.errors import AuctionError, ConfigurationError
from llm_auction_chain.money import as_text, plus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_auction_chain.auction.result import AuctionResult

_PROMPT = "> "


def add_chat(commands: Any) -> None:
    """Add the command to those of the parser."""
    chat = commands.add_parser(
        "chat",
        help="talk with the model, while agents bid for every reply",
        description="Reads what you say, a line at a time, and prints the reply and what each agent pays for it. Model "
        "and agents read the whole conversation. An empty line is ignored; Ctrl-D ends the conversation with the sums. "
        "Exit code 1: a reply failed, and the conversation went on without it.",
    )
    chat.set_defaults(do=_chat)
    add_settings(chat)
    add_format(chat, "in JSON one object a line: of each reply, and at last of the sums")


def _chat(options: Namespace) -> int:
    from langchain_core.messages import BaseMessage, HumanMessage

    from llm_auction_chain.messages import public_reply

    auction = checked_auction(options)
    with progress_bars() as bars:
        load_model(auction, options, bars)
    write = _write_json if options.format == "json" else _write_text
    history: list[BaseMessage] = []
    paid: dict[str, Decimal] = {}
    code = 0
    try:
        for line in _lines():
            prompt = [*history, HumanMessage(line)]
            try:
                with progress_bars() as bars:
                    result = hold(auction, prompt, bars)
            except AuctionError as error:
                code = fail(str(error), 1)
                continue
            history = [*prompt, public_reply(result.reply)]
            paid = {name: plus(paid.get(name, Decimal(0)), due) for name, due in result.payments.items()}
            write(result)
    finally:
        if history:
            _write_sums(paid, len(history) // 2, as_json=options.format == "json")
    return code


def _lines() -> Iterator[str]:
    """Yield what the user says, until the end of standard input. Only a terminal shows a prompt."""
    if sys.stdin is None:  # closed by the shell
        return
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if on_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401 - arrow keys edit the line
    while True:
        try:
            line = input(_PROMPT if on_terminal else "")
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"Standard input is not UTF-8: {error}.") from error
        except (EOFError, KeyboardInterrupt) as end:
            if on_terminal:
                sys.stdout.write("\n")
            if isinstance(end, KeyboardInterrupt):
                raise
            return
        if line.strip():
            yield checked_question(line)


def _write_text(result: "AuctionResult") -> None:
    console = Console()
    for line in result.text.expandtabs().splitlines():
        write_line(console, line)
    payments = ", ".join(f"{name} {as_text(due)}" for name, due in result.payments.items()) or "none"
    unit = f" {result.currency}" if result.currency else ""
    sponsors = ", ".join(agent.name for agent in result.sponsors)
    sponsored = f"; sponsored by {sponsors}" if sponsors else ""
    write_line(console, f"  payments: {payments}{unit}{sponsored}", "dim")


def _write_json(result: "AuctionResult") -> None:
    data = {
        "auction_id": result.auction_id,
        "reply": result.text,
        "sponsors": [agent.name for agent in result.sponsors],
        "payments": {name: as_text(due) for name, due in result.payments.items()},
        "currency": result.currency,
    }
    _write_line_of_json(data)


def _write_sums(paid: "Mapping[str, Decimal]", replies: int, *, as_json: bool) -> None:
    """Write what each agent paid for all replies."""
    sums = {name: as_text(due) for name, due in paid.items()}
    if as_json:
        _write_line_of_json({"replies": replies, "paid": sums})
    elif sums:
        columns = [Column(heading="agent"), Column(heading="paid", figure=True)]
        write_table(
            Console(),
            "Paid in all",
            columns,
            [[*one] for one in sums.items()],
        )


def _write_line_of_json(data: "Mapping[str, Any]") -> None:
    sys.stdout.write(f"{json.dumps(data)}\n")
    sys.stdout.flush()  # for a program that asks again after it has read
