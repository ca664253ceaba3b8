"""Records on a terminal of any width: a table where it fits, else lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from llm_auction_chain.cli.auction_tables import lines_of
from llm_auction_chain.errors import MissingDependencyError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["Column", "open_console", "shown", "write_line", "write_table"]

_TEXT = 12  # columns of the terminal that a text gets at least, before lines take the place of the table


def open_console(stream: TextIO) -> "Console":
    """Return a console.

    Raises:
        MissingDependencyError: rich is not installed.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise MissingDependencyError("The command needs the cli extra: pip install 'llm-auction-chain[cli]'") from error
    return Console(file=stream)


def shown(text: str) -> str:
    r"""Return a text that moves no cursor and hides nothing: what cannot be printed is spelled out.

    >>> shown("a\x1b[2Jb\n")
    'a\\x1b[2Jb\\n'
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def write_line(console: "Console", text: str, style: str = "") -> None:
    """Print a text as it is, without markup; only a terminal breaks it, so that a line is a line to other programs."""
    from rich.text import Text

    console.print(Text(shown(text), style=style), soft_wrap=not console.is_terminal)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        heading: what stands above it.
        figure: whether it holds figures, which are never broken in two.
    """

    heading: str
    figure: bool = False


def write_table(console: "Console", title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print records as a table, or as lines where it leaves texts no room; each record is as long as `columns`."""
    from rich.text import Text

    rows = [[shown(cell) for cell in row] for row in rows]
    widest = [
        max(len(cell) for cell in (column.heading, *cells)) for column, *cells in zip(columns, *rows, strict=True)
    ]
    needed = [width if column.figure else min(width, _TEXT) for column, width in zip(columns, widest, strict=True)]
    if sum(needed) + 2 * len(needed) <= console.width:
        console.print(_table(title, columns, rows))
        return
    write_line(console, title, "italic")
    lines: list[str] = []
    for name, *cells in rows:
        facts = [f"{column.heading} {cell}" for column, cell in zip(columns[1:], cells, strict=True) if cell]
        lines += [name] * bool(name)
        lines += (f"  {line}" for line in lines_of(facts, console.width - 2))
    console.print(Text("\n".join(lines)), soft_wrap=not console.is_terminal)


def _table(title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title, style="italic"), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    for column in columns:
        if column.figure:
            table.add_column(column.heading, justify="right", no_wrap=True)
        else:
            table.add_column(column.heading, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
