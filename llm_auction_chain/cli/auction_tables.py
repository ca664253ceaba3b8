"""What the shell shows of an auction: tables that fit the terminal."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from llm_auction_chain.auction.result import AuctionResult

__all__ = ["lines_of", "show"]

_AGENT_HEADINGS = ("contribution", "expected payment", "charged", "moved the draw")
_SHORT_AGENT_HEADINGS = ("contr", "expect", "paid", "moved")
_LONGEST_WORD = 24  # of an agent's name, that is not broken in two
_WIDE = 80  # columns of a terminal from which headings are written out


def show(result: "AuctionResult", console: "Console") -> None:
    """Print candidates, the reply drawn, what every agent pays, and the figures needed to believe it."""
    from rich.panel import Panel
    from rich.text import Text

    wide = console.width >= _WIDE
    console.print(_candidates(result, wide=wide))
    console.print(Panel(Text(result.reply.text), title=f"The reply drawn: candidate {result.settlement.winner}"))
    for part in _agents(result, console.width):
        console.print(part)
    for agent, report in zip(result.agents, result.reports, strict=True):
        if report.status == "capped":
            console.print(Text(f"{agent.name} {report.reason}"))
        elif report.status != "reported":
            console.print(Text(f"{agent.name} abstains ({report.status}): {report.reason}"))
    for out in result.left_out:
        console.print(Text(f"{out.agent.name} takes no part: a rival in {out.category} does"))
    if result.disclosure:
        console.print(Text(result.disclosure))
    for facts in _facts(result):
        for line in lines_of(facts, console.width):
            console.print(Text(line))


def _facts(result: "AuctionResult") -> list[list[str]]:
    """Return what stands under the tables, line by line."""
    settlement, diagnostics = result.settlement, result.settlement.diagnostics
    marks = _marks(result)
    return [
        [
            f"revenue {settlement.revenue:.4f}{f' {result.currency}' if result.currency else ''}",
            f"tau {settlement.tau:g}",
            f"log-normaliser {diagnostics.log_normaliser:.4f}",
        ],
        [
            f"ESS {diagnostics.ess_probabilities:.2f} of {len(result.candidates)}",
            f"weights {diagnostics.ess_weights:.2f} of {result.draws}",
            f"distinct replies {result.distinct_replies}",
        ],
        [f"draws {result.draws}", *(f"{mark.letter} {mark.name} {mark.draws}" for mark in marks)]
        if len(marks) > 1
        else [f"draws {result.draws}, all from the {mark.name}" for mark in marks],
        [f"{len(result.failures)} model calls failed; settled on those that did not"] if result.failures else [],
        [f"seed {result.seed}", f"auction {result.auction_id}"],
    ]


class _Mark(NamedTuple):
    """A component of the proposal, by the letter that stands for it in the table."""

    letter: str
    name: str
    draws: int


def _marks(result: "AuctionResult") -> list[_Mark]:
    return [_Mark(chr(ord("a") + k), name, draws) for k, (name, draws) in enumerate(result.components)]


def _candidates(result: "AuctionResult", *, wide: bool) -> "Table":
    """Return the table of candidates; the column of draws is there only where it tells one from another."""
    from rich.text import Text

    letters = {mark.name: mark.letter for mark in _marks(result)}
    several, merged = len(letters) > 1, result.draws > len(result.candidates)
    headings = ["log-weight", "reward", "probability"] if wide else ["log w", "reward", "p"]
    shown = ["drawn"] if several or merged else []
    table = _table("Candidates", "reply", [*shown, *headings], wide=wide, number="#")
    for j, candidate in enumerate(result.candidates):
        drawn = letters.get(candidate.component, "") if several else ""
        drawn += f" x{candidate.draws}" if candidate.draws > 1 else ""
        table.add_row(
            str(j),
            Text(" ".join(candidate.message.text.split())),
            *(drawn.strip() for _ in shown),
            f"{candidate.log_weight:.2f}",
            _amount(sum(report.rewards[j] for report in result.reports)),
            f"{result.settlement.probabilities[j]:.{4 if wide else 3}f}",
            style="bold green" if j == result.settlement.winner else "",
        )
    return table


def _agents(result: "AuctionResult", width: int) -> "Iterator[Table | Text]":
    """Yield the table of agents, or lines where its figures leave no room for the names."""
    from rich.text import Text

    settlement = result.settlement
    wide = width >= _WIDE
    headings = _AGENT_HEADINGS if wide else _SHORT_AGENT_HEADINGS
    figures = (settlement.contributions, settlement.expected_payments, settlement.payments, settlement.influences)
    names = [agent.name if agent.payer == agent.name else f"{agent.name} ({agent.payer})" for agent in result.agents]
    rows = [[f"{float(figure[i]):.4f}" for figure in figures] for i in range(len(names))]
    title = f"Agents (payment rule: {settlement.payment_rule})"
    taken = [max(map(len, column)) + (2 if wide else 1) for column in zip(headings, *rows, strict=True)]
    longest = max((len(word) for name in names for word in name.split()), default=0)
    if width - sum(taken) < min(longest, _LONGEST_WORD):
        yield Text(title, style="italic")
        for name, row in zip(names, rows, strict=True):
            yield Text(name)
            facts = [f"{heading} {figure}" for heading, figure in zip(headings, row, strict=True)]
            yield from (Text(f"  {line}") for line in lines_of(facts, width - 2))
    elif names:
        table = _table(title, "agent", headings, wide=wide)
        for name, row in zip(names, rows, strict=True):
            table.add_row(Text(name), *row)
        yield table


def _amount(money: float) -> str:
    return f"{money:.2f}" if abs(money) < 1e5 else f"{money:.4g}"  # noqa: PLR2004 - the table has no room for more


def _table(title: str, text: str, figures: Sequence[str], *, wide: bool, number: str | None = None) -> "Table":
    """Return an empty table of one column of text, which takes the room that the figures leave."""
    from rich import box
    from rich.table import Table

    gap = (0, 1, 0, 0) if wide else 0
    table = Table(title=title, expand=True, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=gap)
    if number:
        table.add_column(number, justify="right", no_wrap=True)
        table.add_column(text, ratio=1, min_width=8, no_wrap=True, overflow="ellipsis")
    else:
        table.add_column(text, ratio=1, min_width=8, overflow="fold")
    for heading in figures:
        table.add_column(heading, justify="left" if heading == "drawn" else "right", overflow="fold")
    return table


def lines_of(facts: Sequence[str], width: int) -> list[str]:
    """Return the facts on as few lines as they fit, none broken in two."""
    lines: list[str] = []
    for fact in facts:
        if lines and len(lines[-1]) + 3 + len(fact) <= width:
            lines[-1] += f"   {fact}"
        else:
            lines.append(fact)
    return lines
