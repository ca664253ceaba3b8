"""What commands print: tables on a terminal of any width, and rows as CSV or JSON.

Amounts are exact decimals. Each row is written before the next is read. Texts move no cursor and hide nothing.
"""

import csv
import json
import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import islice
from typing import Any
from unicodedata import category, normalize

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm_auction_chain.canonical_json import time_text
from llm_auction_chain.cli import printable_text

_NARROWEST = 12  # characters: a table may break words longer than this
_PAGE = 1000  # rows of a table: the widths of its columns follow from all of them
_FIGURES = frozenset({"seq", "amount", "balance", "held", "available"})
_FORMULA = ("=", "+", "-", "@", "'")  # and letters that look like them, such as a full-width =
_UNSEEN = ("Cc", "Cf")  # of Unicode: control and format characters
_ENDS = re.compile(r"([;\t\r\n])")  # of cells, where lists are separated by semicolons or tabs


def add_format(parser: ArgumentParser, about: str = "", *, csv: bool = False) -> None:
    """Add `--format`, which is the same option in every command, and what its help says besides."""
    forms = ("table", "csv", "json") if csv else ("table", "json")
    usual = "how data is printed (default: table, on a terminal or not)"
    parser.add_argument("--format", choices=forms, default="table", help="; ".join(filter(None, (usual, about))))


def write_line(console: Console, text: str, style: str = "") -> None:
    """Print a text without markup. Only a terminal breaks it: a line is a line to other programs."""
    console.print(Text(printable_text(text), style=style), soft_wrap=not console.is_terminal)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table. `short` is its heading where the table has little room; empty for the same."""

    heading: str
    short: str = ""
    figure: bool = False  # never broken in two
    cut: bool = False  # a text that is too long ends in an ellipsis, instead of taking several lines


def write_table(
    console: Console, title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], *, bold: int | None = None
) -> None:
    """Print rows as a table, the row `bold` in bold. Where figures leave texts no room, print each row as a record."""
    rows = [[printable_text(cell) for cell in row] for row in rows]
    short = [column.short or column.heading for column in columns]
    for names in ([column.heading for column in columns], short):
        table = _table(title, columns, names, rows, bold)
        if console.measure(table, options=console.options.update(max_width=sys.maxsize)).minimum <= console.width:
            for column in table.columns:
                column.max_width = None
            table.expand = any(column.cut for column in columns)
            console.print(table)
            return
    write_line(console, title, "italic")
    width = max(map(len, short[1:]))
    for k, (name, *cells) in enumerate(rows):
        lines = [f"  {heading:<{width}} {cell}" for heading, cell in zip(short[1:], cells, strict=True) if cell]
        for line in filter(None, (name, *lines)):
            write_line(console, line, "bold green" if k == bold else "")


def _table(
    title: str, columns: Sequence[Column], headings: Sequence[str], rows: Sequence[Sequence[str]], bold: int | None
) -> Table:
    """Return the table with its texts at their narrowest."""
    table = Table(
        title=Text(printable_text(title), style="italic"), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False,
        pad_edge=False,
    )  # fmt: skip
    for k, column in enumerate(columns):
        widest = max(len(cell) for cell in (headings[k], *(row[k] for row in rows)))
        table.add_column(
            headings[k],
            justify="right" if column.figure else "left",
            no_wrap=column.figure or column.cut,
            overflow="ellipsis" if column.cut else "fold",
            min_width=widest if column.figure else None,
            max_width=None if column.figure else _NARROWEST,
            ratio=1 if column.cut else None,  # the room that the others leave
        )
    for k, row in enumerate(rows):
        table.add_row(*map(Text, row), style="bold green" if k == bold else "")
    return table


def write_rows(
    form: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, title: str, of_table: Sequence[str]
) -> None:
    """Write rows to standard output, as a `table` of the columns `of_table`, or all `columns` as `csv` or `json`.

    Cells are texts, whole numbers, decimals, times or None. A table's column `about` is the auction and the note.
    """
    if form == "csv":
        _write_csv(columns, rows)
    elif form == "json":
        write_list({name: plain(row[name]) for name in columns} for row in rows)
    else:
        _write_pages(of_table, rows, title)


def write_json(value: Mapping[str, Any]) -> None:
    """Write one object of JSON to standard output."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_list(values: Iterable[Mapping[str, Any]]) -> None:
    """Write a list of JSON to standard output, one object a line."""
    before = "[\n  "
    for value in values:
        sys.stdout.write(before + json.dumps(value, allow_nan=False))
        before = ",\n  "
    sys.stdout.write("[]\n" if before.startswith("[") else "\n]\n")


def plain(value: Any) -> Any:
    """Return a value as plain JSON: amounts and times as text, times as the ledger keeps them.

    >>> plain(Decimal("1E+2")), plain(3), plain(None)
    ('100', 3, None)
    """
    if value is None or isinstance(value, int | str):
        return value
    return format(value, "f") if isinstance(value, Decimal) else time_text(value)


def minute(time: datetime) -> str:
    """Return a time in UTC to the minute, for people.

    >>> from datetime import UTC
    >>> minute(datetime(2026, 11, 2, 9, 30, 59, tzinfo=UTC))
    '2026-11-02 09:30'
    """
    return str(plain(time))[:16].replace("T", " ")


def guarded(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula: the same text, or with one `'` in front.

    Spreadsheets of many countries begin a new cell behind a semicolon, quoted or not: so does the text.

    >>> guarded("=1+1"), guarded("'quoted"), guarded("plain"), guarded("a;=1+1")
    ("'=1+1", "''quoted", 'plain', "a;'=1+1")
    """
    return "".join(map(_guarded_cell, _ENDS.split(text)))


def _guarded_cell(text: str) -> str:
    visible = (letter for letter in text if not letter.isspace() and letter != '"' and category(letter) not in _UNSEEN)
    return f"'{text}" if normalize("NFKC", next(visible, " ")).startswith(_FORMULA) else text


def _write_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")  # names are themselves, whatever the terminal can show
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = (row[name] for name in columns)
        writer.writerow([guarded(printable_text(cell)) if isinstance(cell, str) else plain(cell) for cell in cells])


def _write_pages(names: Sequence[str], rows: Iterable[Mapping[str, Any]], title: str) -> None:
    console = Console()
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
        note = "" if row["kind"] == "hold" else row["note"]  # a hold's note is its end
        return " ".join(filter(None, (row["auction_id"], note)))
    if row[name] is None:
        return ""
    return minute(row["at"]) if name == "at" else str(plain(row[name]))
