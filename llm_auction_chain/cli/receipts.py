"""`llm-auction verify`: receipts and agents' views, computed again from themselves alone."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from llm_auction_chain.cli.terminal import Column, open_console, write_line, write_table
from llm_auction_chain.errors import ConfigurationError

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from llm_auction_chain.receipts import AgentView, Receipt, Verification

__all__ = ["add_verify"]


def add_verify(commands: Any) -> None:
    """Add the command to those of the parser."""
    verify = commands.add_parser(
        "verify",
        help="compute a receipt again from itself alone",
        description="Computes receipts and agents' views again from themselves alone: no clock, network or model. Exit "
        "code 0: all hold; 1: something differs; 2: the input cannot be read.",
    )
    verify.set_defaults(do=_verify)
    verify.add_argument("file", metavar="FILE", help="JSON of one, a list of them, or JSON Lines; - is standard input")
    verify.add_argument("--key", metavar="PUBLIC.pem", help="the Ed25519 public key that must have signed them")
    verify.add_argument("--json", action="store_true", help="print an object for one receipt, a list for several")


def _verify(options: "argparse.Namespace") -> int:
    from llm_auction_chain.receipts import load_public_key, verify

    key = None if options.key is None else load_public_key(options.key)
    where = "standard input" if options.file == "-" else options.file
    found = ((one, verify(one, public_key=key)) for one in _read(options.file, where))
    first = next(found, None)
    if first is None:
        raise ConfigurationError(f"{where} holds no receipt; give one that `result.receipt` or the ledger wrote.")
    second = next(found, None)
    if options.json:
        return _write_json(first, second, found)
    console = open_console(sys.stdout)
    if second is None:
        _show(console, *first, key_given=key is not None)
        return 0 if first[1].ok else 1
    return _sum_up(console, _all(first, second, found))


def _all(first: Any, second: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield second
    yield from rest


def _read(file: str, where: str) -> Iterator[Any]:
    """Yield what is read, line by line where each line is an object of its own."""
    from contextlib import nullcontext
    from pathlib import Path

    try:
        with nullcontext(sys.stdin) if file == "-" else Path(file).open(encoding="utf-8-sig") as stream:
            yield from _values(stream, where)
    except OSError as error:
        raise ConfigurationError(f"{where} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{where} is not UTF-8: {error}.") from error


def _values(stream: TextIO, where: str) -> Iterator[Any]:
    first = next((line for line in stream if line.strip()), "")
    try:
        loaded = _load(first, where) if first else None
    except ConfigurationError:  # the beginning of one document, or no JSON
        loaded = None
    if not isinstance(loaded, dict):
        whole = first + stream.read()
        if whole.strip():
            document = _load(whole, where)
            yield from document if isinstance(document, list) else [document]
        return
    yield loaded
    for line in stream:
        if line.strip():
            yield _load(line, where)


def _load(text: str, where: str) -> Any:
    """Return the value of a JSON text that has no key twice in one object."""
    from llm_auction_chain.canonical_json import loads

    try:
        return loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{where} is not JSON: {error}.") from error


def _write_json(first: Any, second: Any, rest: Iterator[Any]) -> int:
    import json

    if second is None:
        sys.stdout.write(json.dumps(_as_json(*first), indent=2, allow_nan=False) + "\n")
        return 0 if first[1].ok else 1
    before, ok = "[\n  ", True
    for one, found in _all(first, second, rest):
        sys.stdout.write(before + json.dumps(_as_json(one, found), allow_nan=False))
        before, ok = ",\n  ", ok and found.ok
    sys.stdout.write("\n]\n")
    return 0 if ok else 1


def _as_json(one: Any, found: "Verification") -> dict[str, Any]:
    from llm_auction_chain.canonical_json import printable

    return {
        "auction_id": printable(one.get("auction_id")) if isinstance(one, dict) else None,
        "schema": printable(one.get("schema")) if isinstance(one, dict) else None,
        "ok": found.ok,
        "differences": [
            {
                "field": each.field,
                "stated": printable(each.stated),
                "computed": printable(each.computed),
                "rule": each.rule,
            }
            for each in found.differences
        ],
        "more": found.more,
        "signed_by": found.signed_by,
    }


def _sum_up(console: "Console", all_found: Iterator[Any]) -> int:
    """Print a line for each that holds, what differs in the others, and how many are which."""
    counts = {True: 0, False: 0}
    for one, found in all_found:
        counts[found.ok] += 1
        name = str(one.get("auction_id", "without an id")) if isinstance(one, dict) else "no receipt"
        write_line(console, f"{'OK' if found.ok else 'DIFFERS'}  {name}", "" if found.ok else "bold red")
        _write_differences(console, found)
    read = f"{counts[True] + counts[False]} receipts"
    write_line(
        console, f"{read}: all OK" if not counts[False] else f"{read}: {counts[True]} OK, {counts[False]} differ"
    )
    return 1 if counts[False] else 0


def _show(console: "Console", one: Any, found: "Verification", *, key_given: bool) -> None:
    receipt = _shaped(one)
    if receipt is not None:
        _show_facts(console, receipt)
        signer = _signer(found, signed=receipt.signature is not None, key_given=key_given)
        write_line(console, f"signed     {signer}")
    if found.ok:
        write_line(console, "OK", "bold green")
        return
    count = len(found.differences) + found.more
    write_line(console, f"DIFFERS: {count} of what it states does not follow", "bold red")
    _write_differences(console, found)


def _write_differences(console: "Console", found: "Verification") -> None:
    for difference in found.differences:
        write_line(console, f"  {difference}")
    if found.more:
        write_line(console, f"  and {found.more} more")


def _signer(found: "Verification", *, signed: bool, key_given: bool) -> str:
    wrong = any(difference.field.startswith("signature") for difference in found.differences)
    if wrong or (signed and found.signed_by is None):
        return "not as it should be, see below"
    if found.signed_by is None:
        return "by nobody: whoever made it may have made all of it up"
    return f"by {found.signed_by}, {'the key given' if key_given else 'a key it names itself: check whose, by --key'}"


def _shaped(one: Any) -> "Receipt | AgentView | None":
    """Return the receipt, or the view; None where it has the shape of neither."""
    import json

    from llm_auction_chain.receipts import AgentView, Receipt

    for kind in (Receipt, AgentView):
        try:
            return kind.model_validate_json(json.dumps(one))
        except (ValueError, RecursionError):
            continue
    return None


def _show_facts(console: "Console", receipt: "Receipt | AgentView") -> None:
    from llm_auction_chain.receipts import Receipt

    full = isinstance(receipt, Receipt)
    owner = receipt.agents[0].owner if receipt.agents else ""
    write_line(console, f"auction    {receipt.auction_id}")
    write_line(console, f"time       {receipt.time}")
    write_line(console, f"kind       {'receipt: all of the auction' if full else 'view: what one owner may know'}")
    write_line(console, f"for        {'the platform and its auditor' if full else owner}")
    columns = [
        Column(heading="agent"),
        Column(heading="owner"),
        Column(heading="status"),
        Column(heading="expected", figure=True),
        Column(heading="charge", figure=True),
    ]
    rows = [[bid.agent, bid.owner, bid.status, f"{bid.expected:.6f}", bid.charge] for bid in receipt.agents]
    unit = f", in {receipt.currency}" if receipt.currency else ""
    write_table(console, f"Payments (rule: {receipt.payment_rule}{unit})", columns, rows)
    if isinstance(receipt, Receipt):
        write_line(console, f"revenue    {receipt.revenue}")
