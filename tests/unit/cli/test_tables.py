"""Tables and rows: nothing vanishes on any terminal, no figure is broken, no text acts."""

import csv
import io
import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llm_auction_chain.cli.tables import (
    Column,
    guarded,
    minute,
    plain,
    printable_text,
    write_line,
    write_rows,
    write_table,
)

COLUMNS = [Column(heading="name"), Column(heading="a long heading", short="short", figure=True)]


def table(width, rows, columns=COLUMNS, **settings):
    console = Console(width=width, color_system=None, force_terminal=True)
    with console.capture() as captured:
        write_table(console, "Title", columns, rows, **settings)
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    return [line.rstrip() for line in lines]


def test_a_table_shortens_its_headings_before_it_becomes_records():
    rows = [["OwnerOfOneWord", "123.45"], ["B", "0"]]
    assert table(40, rows)[1].split() == ["name", "a", "long", "heading"]
    assert table(22, rows)[1].split() == ["name", "short"]
    assert table(16, rows) == ["Title", "OwnerOfOneWord", "  short 123.45", "B", "  short 0"]


def test_an_empty_cell_takes_no_line_of_a_record():
    columns = [*COLUMNS, Column(heading="more")]
    assert table(16, [["A", "1", ""], ["", "2", "x"]], columns) == ["Title", "A", "  short 1", "  short 2", "  more  x"]


@given(st.lists(st.tuples(st.text(), st.decimals(places=2, min_value=-(10**6), max_value=10**6)), min_size=1))
def test_no_figure_is_broken_at_any_width(rows):
    for width in (24, 40, 80):
        words = " ".join(table(width, [[name, str(figure)] for name, figure in rows])).split()
        assert all(str(figure) in words for _, figure in rows)


@given(st.text())
def test_a_printable_text_holds_nothing_that_acts_on_a_terminal(text):
    assert printable_text(text).isprintable()
    if text.isprintable():
        assert printable_text(text) == text


def test_a_line_is_no_markup_and_only_a_terminal_breaks_it():
    for terminal in (True, False):
        console = Console(width=10, color_system=None, force_terminal=terminal)
        with console.capture() as captured:
            write_line(console, "[red]one two three[/red]")
        assert len(captured.get().splitlines()) == (4 if terminal else 1)
        assert "[red]" in captured.get()


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_rows_hold_exact_decimals_in_every_format(form, capsys):
    at = datetime(2026, 11, 2, 9, 30, 0, 1, tzinfo=UTC)
    rows = [{"at": at, "owner": "A", "amount": Decimal("0.000001"), "held": None}]
    write_rows(form, ["at", "owner", "amount", "held"], rows, title="Rows", of_table=["at", "owner", "amount"])
    out = capsys.readouterr().out
    assert "0.000001" in out
    assert minute(at) in out.replace("T", " ")
    if form == "json":
        assert json.loads(out) == [{"at": plain(at), "owner": "A", "amount": "0.000001", "held": None}]


@pytest.mark.parametrize(("form", "out"), [("table", "Rows: nothing\n"), ("csv", "a\n"), ("json", "[]\n")])
def test_no_rows_are_an_empty_table_file_and_list(form, out, capsys):
    write_rows(form, ["a"], [], title="Rows", of_table=["a"])
    assert capsys.readouterr().out == out


PIECES = st.lists(st.sampled_from([";", "\t", "\n", "\r", "=", "-", "'", '"', " ", "\u200b", "\uff1d", "a"])).map(
    "".join
)


@given(st.text() | PIECES, st.text() | PIECES)
def test_guarded_texts_stay_apart_and_hold_no_formula_in_any_cell(one, other):
    assert (guarded(one) == guarded(other)) == (one == other)
    assert re.sub(r"(^|(?<=[;\t\r\n]))'", "", guarded(one)) == one or "'" in one
    for cell in re.split(r"[;\t\r\n]", guarded(one)):
        assert not normalize("NFKC", cell.strip(' "\u200b')).startswith(("=", "+", "-", "@"))


@pytest.mark.parametrize(
    "text", ["ok;=1+1", "ok\t=1+1", "a;b; -1", 'ok;"=1+1"', "ok;\u200b@SUM(A1)", "\x1b[2J;+1", "\x9b1A"]
)
def test_a_csv_has_no_formula_behind_any_separator_and_no_escape(text, capsys):
    write_rows("csv", ["owner", "held"], [{"owner": text, "held": None}], title="Rows", of_table=["owner"])
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable()
    for separator in ",;\t|":
        cells = [cell for row in csv.reader(io.StringIO(out), delimiter=separator) for cell in row]
        assert not [cell for cell in cells if normalize("NFKC", cell.strip(' "')).startswith(("=", "+", "-", "@"))]


def test_a_title_moves_no_cursor():
    assert table(60, [["a", "1"]])[0] == "Title"
    console = Console(width=60, color_system=None, force_terminal=True)
    with console.capture() as captured:
        write_table(console, "in \x1b]0;EUR\x07", COLUMNS, [["a", "1"]])
    assert "in \\x1b]0;EUR\\x07" in captured.get()
    assert "\x1b" not in captured.get()


@pytest.mark.parametrize("text", [" =1", "\uff1dcmd", "\ufeff=1", "\u200b\uff0b1"])
def test_what_looks_like_a_formula_is_guarded(text):
    assert guarded(text) == f"'{text}"
