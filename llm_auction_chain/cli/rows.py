"""Rows of the ledger as tables, CSV or JSON: amounts as exact decimals, one row written after another."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any
from unicodedata import category, normalize

from llm_auction_chain.cli.terminal import Column, open_console, write_line, write_table

if TYPE_CHECKING:
    import argparse
    from datetime import datetime

__all__ = ["FORMATS", "add_format", "guarded", "plain", "spelled", "write_object", "write_rows"]

FORMATS = ("table", "csv", "json")
_PAGE = 1000  # rows of a table: the widths of its columns follow from all of them
_FIGURES = frozenset({"seq", "amount", "balance", "held", "available"})
_FORMULA = ("=", "+", "-", "@", "'")  # and what looks like them, such as a full-width =
_UNSEEN = ("Cc", "Cf")  # of Unicode: control and format characters


def add_format(parser: "argparse.ArgumentParser") -> None:
    """Add `--format` to a command."""
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="table",
        help="table (the default, on a terminal or not), csv or json; amounts are exact decimals, in JSON as text. In "
        "CSV a text that begins with = + - @ or ' gets one more ' in front, so that no spreadsheet takes it for a "
        "formula",
    )


def write_rows(
    form: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, title: str, of_table: Sequence[str]
) -> None:
    """Write rows to standard output, each before the next is read.

    Args:
        form: `table`, `csv` or `json`.
        columns: of CSV and JSON.
        rows: by column: texts, whole numbers, decimals, moments, None.
        title: of the table.
        of_table: columns that the table shows; `about` is the auction and the note.
    """
    if form == "csv":
        _write_csv(columns, rows)
    elif form == "json":
        _write_json(columns, rows)
    else:
        _write_table(of_table, rows, title)


def write_object(value: Mapping[str, Any]) -> None:
    """Write one object of JSON to standard output."""
    import json

    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Return a value as plain JSON: amounts and moments as text.

    >>> from decimal import Decimal
    >>> plain(Decimal("1E+2")), plain(3), plain(None)
    ('100', 3, None)
    """
    return value if value is None or isinstance(value, int | str) else _text(value)


def spelled(moment: "datetime | None") -> str | None:
    """Return a time in UTC, to the microsecond, as the ledger keeps it."""
    from llm_auction_chain.canonical_json import time_text

    return None if moment is None else time_text(moment)


def guarded(text: str) -> str:
    """Return a text that a spreadsheet takes for a text; without one leading `'`, if it has one, it is the original.

    >>> guarded("=1+1"), guarded("'quoted"), guarded("plain")
    ("'=1+1", "''quoted", 'plain')
    """
    seen = (letter for letter in text if not letter.isspace() and category(letter) not in _UNSEEN)
    return f"'{text}" if normalize("NFKC", next(seen, " ")).startswith(_FORMULA) else text


def _text(value: Any) -> str:
    from decimal import Decimal

    return format(value, "f") if isinstance(value, Decimal) else str(spelled(value))


def _write_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    import csv

    _speak_utf8()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = (row[name] for name in columns)
        writer.writerow([guarded(cell) if isinstance(cell, str) else plain(cell) for cell in cells])


def _write_json(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    import json

    before = "[\n  "
    for row in rows:
        told = {name: plain(row[name]) for name in columns}
        sys.stdout.write(before + json.dumps(told, allow_nan=False))
        before = ",\n  "
    sys.stdout.write("[]\n" if before.startswith("[") else "\n]\n")


def _write_table(names: Sequence[str], rows: Iterable[Mapping[str, Any]], title: str) -> None:
    console = open_console(sys.stdout)
    columns = [Column(heading=name, figure=name in _FIGURES) for name in names]
    left = iter(rows)
    page = list(islice(left, _PAGE))
    if not page:
        write_line(console, f"{title}: nothing")
    while page:
        write_table(console, title, columns, [[_cell(row, name) for name in names] for row in page])
        page = list(islice(left, _PAGE))


def _cell(row: Mapping[str, Any], name: str) -> str:
    if name == "about":
        note = "" if row["kind"] == "hold" else row["note"]  # a hold's is the end of its time
        return " ".join(filter(None, (row["auction_id"], note)))
    if name == "at":
        return row["at"].strftime("%Y-%m-%d %H:%M") if row["at"] else ""
    return "" if row[name] is None else str(plain(row[name]))


def _speak_utf8() -> None:
    """Have names in CSV be themselves, whatever the terminal can show."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
