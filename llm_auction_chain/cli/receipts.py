"""`llm-auction verify`: computes receipts and agents' views again, from themselves alone."""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from llm_auction_chain.canonical_json import loads, printable
from llm_auction_chain.cli.tables import Column, add_format, write_json, write_line, write_list, write_table
from llm_auction_chain.errors import ConfigurationError

if TYPE_CHECKING:
    from llm_auction_chain.receipts import AgentView, Receipt, Verification


def add_verify(commands: Any) -> None:
    """Add the command to those of the parser."""
    verify = commands.add_parser(
        "verify",
        help="compute a receipt again from itself alone",
        description="Computes receipts and agents' views again from themselves alone: no clock, network or model. Exit "
        "code 0: all hold; 1: something differs; 2: the input cannot be read, or is no receipt.",
    )
    verify.set_defaults(do=_verify)
    about = "a receipt or a view as JSON, a list of them, or JSON Lines; - is standard input"
    verify.add_argument("files", nargs="+", metavar="FILE", help=about)
    verify.add_argument("--auction-id", metavar="ID", help="id of the auction that they must be of")
    about = "commitment that agents received, which they must open"
    verify.add_argument("--opening", metavar="DIGEST", help=about)
    verify.add_argument("--key", metavar="PUBLIC.pem", help="Ed25519 public key that must have signed them")
    about = "proof, from `llm-auction ledger proof`, that a ledger contains the view"
    verify.add_argument("--inclusion", metavar="PROOF.json", help=about)
    verify.add_argument("--head", metavar="HASH", help="head of that ledger, as noted, at which the proof must end")
    add_format(verify, "in JSON an object for one receipt, a list for several")


def _verify(options: Namespace) -> int:
    from llm_auction_chain.receipts import load_public_key, verify

    key = None if options.key is None else load_public_key(options.key)
    expected = {"auction_id": options.auction_id, "opening": options.opening, "public_key": key}
    errors: dict[str, None] = {}
    included = _check_of_inclusion(options)
    results = (
        (source, value, included(value, verify(value, **expected)))
        for source, value in _receipts(options.files, errors)
    )
    first = list(islice(results, 2))
    if len(options.files) > 1 or len(first) > 1:
        write = _write_list if options.format == "json" else _write_lines
        code = write(chain(first, results), with_files=len(options.files) > 1)
    else:
        code = 0
        for _, value, verification in first:
            code = 0 if verification.ok else 1
            if options.format == "json":
                write_json(_as_json(value, verification))
            else:
                _show(Console(), value, verification, key_given=key is not None)
    if errors:
        raise ConfigurationError("\n".join(errors))
    return code


def _check_of_inclusion(options: Namespace) -> "Callable[[Any, Verification], Verification]":
    """Return what adds the differences of the view's inclusion in a ledger, if that is asked for."""
    from llm_auction_chain.receipts import check_inclusion

    if (options.inclusion is None) != (options.head is None):
        raise ConfigurationError("Give both --inclusion and --head: a proof holds for a head of the ledger.")
    if options.inclusion is None:
        return lambda _, verification: verification
    proofs = list(_read(options.inclusion, options.inclusion))
    if len(proofs) != 1:
        raise ConfigurationError(f"{options.inclusion} must contain one proof, got {len(proofs)}.")

    def included(view: Any, verification: "Verification") -> "Verification":
        differences = check_inclusion(view, proofs[0], options.head) if verification.ok else ()
        return replace(verification, differences=verification.differences + differences)

    return included


def _receipts(files: Sequence[str], errors: dict[str, None]) -> Iterator[tuple[str, Any]]:
    """Yield the values that may be receipts, each with the name of its file. Note what else there is as errors."""
    from llm_auction_chain.receipts.verification import other_kind

    for file in files:
        source = "standard input" if file == "-" else file
        is_empty = True
        try:
            for value in _read(file, source):
                is_empty = False
                kind = other_kind(value)
                if kind is None:
                    yield source, value
                    continue
                errors[f"{source}: this is {kind}, not a receipt. Give what `result.receipt` or the ledger wrote."] = (
                    None
                )
            if is_empty:
                errors[f"{source} holds no receipt. Give one that `result.receipt` or the ledger wrote."] = None
        except ConfigurationError as error:
            errors[str(error)] = None


def _read(file: str, source: str) -> Iterator[Any]:
    """Yield the values of a file: one, those of a list, or those of JSON Lines as they are read."""
    try:
        with nullcontext(sys.stdin) if file == "-" else Path(file).open(encoding="utf-8-sig") as stream:
            yield from _values(stream, source)
    except OSError as error:
        raise ConfigurationError(f"{source} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{source} is not UTF-8: {error}.") from error


def _values(stream: TextIO, source: str) -> Iterator[Any]:
    first = next((line for line in stream if line.strip()), "")
    try:
        loaded = _load(first, source) if first else None
    except ConfigurationError:  # the beginning of one document, or no JSON
        loaded = None
    if not isinstance(loaded, dict):
        whole = first + stream.read()
        if whole.strip():
            document = _load(whole, source)
            yield from document if isinstance(document, list) else [document]
        return
    yield loaded
    for line in stream:
        if line.strip():
            yield _load(line, source)


def _load(text: str, source: str) -> Any:
    try:
        return loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{source} is not JSON: {error}.") from error


def _as_json(value: Any, verification: "Verification") -> dict[str, Any]:
    return {
        "auction_id": printable(value.get("auction_id")) if isinstance(value, dict) else None,
        "schema": printable(value.get("schema")) if isinstance(value, dict) else None,
        "ok": verification.ok,
        "differences": [
            {"field": one.field, "stated": printable(one.stated), "computed": printable(one.computed), "rule": one.rule}
            for one in verification.differences
        ],
        "more": verification.more,
        "signed_by": verification.signed_by,
    }


def _write_list(results: "Iterable[tuple[str, Any, Verification]]", *, with_files: bool) -> int:
    codes = {0}

    def objects() -> Iterator[dict[str, Any]]:
        for source, value, verification in results:
            codes.add(0 if verification.ok else 1)
            yield {**_as_json(value, verification), **({"file": source} if with_files else {})}

    write_list(objects())
    return max(codes)


def _write_lines(results: "Iterable[tuple[str, Any, Verification]]", *, with_files: bool) -> int:
    """Print a line for each, the differences, and the counts."""
    console, counts = Console(), {True: 0, False: 0}
    for source, value, verification in results:
        counts[verification.ok] += 1
        name = str(value.get("auction_id", "without an id")) if isinstance(value, dict) else "no receipt"
        style = "" if verification.ok else "bold red"
        file = f"  {source}" if with_files else ""
        write_line(console, f"{'OK' if verification.ok else 'DIFFERS'}  {name}{file}", style)
        _write_differences(console, verification)
    outcome = "all OK" if not counts[False] else f"{counts[True]} OK, {counts[False]} differ"
    write_line(console, f"{counts[True] + counts[False]} receipts: {outcome}")
    return 1 if counts[False] else 0


def _show(console: Console, value: Any, verification: "Verification", *, key_given: bool) -> None:
    receipt = _parsed(value)
    if receipt is not None:
        _show_facts(console, receipt)
        signer = _signer(verification, signed=receipt.signature is not None, key_given=key_given)
        write_line(console, f"signed     {signer}")
    if verification.ok:
        write_line(console, "OK", "bold green")
        return
    count = len(verification.differences) + verification.more
    write_line(console, f"DIFFERS: {count} of its statements do not follow from the rest", "bold red")
    _write_differences(console, verification)


def _write_differences(console: Console, verification: "Verification") -> None:
    for difference in verification.differences:
        write_line(console, f"  {difference}")
    if verification.more:
        write_line(console, f"  and {verification.more} more")


def _signer(verification: "Verification", *, signed: bool, key_given: bool) -> str:
    wrong = any(difference.field.startswith("signature") for difference in verification.differences)
    if wrong or (signed and verification.signed_by is None):
        return "not as it should be, see below"
    if verification.signed_by is None:
        return "no: its maker may have invented all of it"
    return f"by {verification.signed_by}, {'the key given' if key_given else 'a key that it names: check it by --key'}"


def _parsed(value: Any) -> "Receipt | AgentView | None":
    """Return the receipt or the view; None where it is neither."""
    from llm_auction_chain.receipts import AgentView, Receipt

    for kind in (Receipt, AgentView):
        with suppress(ConfigurationError):
            return kind.from_dict(value)
    return None


def _show_facts(console: Console, receipt: "Receipt | AgentView") -> None:
    from llm_auction_chain.receipts import Receipt

    full = isinstance(receipt, Receipt)
    owner = receipt.agents[0].owner if receipt.agents else ""
    write_line(console, f"auction    {receipt.auction_id}")
    write_line(console, f"time       {receipt.time}")
    write_line(console, f"kind       {'receipt: all of the auction' if full else 'view: what one owner may know'}")
    write_line(console, f"for        {'the platform and its auditor' if full else owner}")
    columns = [Column(heading=name) for name in ("agent", "owner", "status")]
    columns += [Column(heading=name, figure=True) for name in ("expected", "charge")]
    rows = [[bid.agent, bid.owner, bid.status, f"{bid.expected:.6f}", bid.charge] for bid in receipt.agents]
    unit = f", in {receipt.currency}" if receipt.currency else ""
    write_table(console, f"Payments (rule: {receipt.payment_rule}{unit})", columns, rows)
    if isinstance(receipt, Receipt):
        write_line(console, f"revenue    {receipt.revenue}")
