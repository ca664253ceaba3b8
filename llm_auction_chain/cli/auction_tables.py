"""How `llm-auction run` shows an auction."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from llm_auction_chain.auction.explanation import why_left_out
from llm_auction_chain.cli import printable_lines
from llm_auction_chain.cli.tables import Column, write_line, write_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_auction_chain.auction.result import AuctionResult
    from llm_auction_chain.auction.tau_sweep import TauPoint

_MOST = 1e5  # a reward from here on is written with an exponent


def show(result: "AuctionResult", console: Console) -> None:
    """Print the candidates, the reply, what each agent pays, and the figures needed to check it."""
    _write_candidates(result, console)
    reply = Text(printable_lines(result.reply.text))
    console.print(Panel(reply, title=f"The reply drawn: candidate {result.settlement.winner}"))
    if result.agents:
        _write_agents(result, console)
    for line in _lines(result):
        write_line(console, line)


def show_sweep(result: "AuctionResult", points: "Sequence[TauPoint]", console: Console) -> None:
    """Print the figures of the same candidates at other values of tau; the auction's own is in bold."""
    figures = [("tau", ""), ("welfare", ""), ("revenue", ""), ("distance in nats", "nats"), ("ESS", ""), ("drawn", "")]
    rows = [
        [
            f"{point.tau:g}",
            f"{point.welfare:.4f}",
            f"{point.expected_revenue:.4f}",
            f"{point.distance:.4f}",
            f"{point.settlement.diagnostics.ess_probabilities:.2f}",
            str(point.settlement.winner),
        ]
        for point in points
    ]
    own = next((k for k, point in enumerate(points) if point.tau == result.settlement.tau), None)
    columns = [Column(heading=name, short=short, figure=True) for name, short in figures]
    write_table(console, "The same candidates at other values of tau", columns, rows, bold=own)


def _write_candidates(result: "AuctionResult", console: Console) -> None:
    """Print the table of candidates. It has a column of draws only where candidates differ in them."""
    letters = _letters(result)
    several, merged = len(letters) > 1, result.draws > len(result.candidates)
    columns = [
        Column(heading="#", figure=True),
        Column(heading="reply", cut=True),
        *[Column(heading="drawn")] * (several or merged),
        Column(heading="log-weight", short="log w", figure=True),
        Column(heading="reward", figure=True),
        Column(heading="probability", short="p", figure=True),
    ]
    rows = []
    for j, candidate in enumerate(result.candidates):
        drawn = [letters[candidate.component]] if several else []
        drawn += [f"x{candidate.draws}"] if candidate.draws > 1 else []
        reward = sum(report.rewards[j] for report in result.reports)
        rows.append([
            str(j),
            " ".join(candidate.message.text.split()),
            *[" ".join(drawn)] * (several or merged),
            f"{candidate.log_weight:.2f}",
            f"{reward:.2f}" if abs(reward) < _MOST else f"{reward:.4g}",
            f"{result.settlement.probabilities[j]:.4f}",
        ])  # fmt: skip
    write_table(console, "Candidates", columns, rows, bold=result.settlement.winner)


def _write_agents(result: "AuctionResult", console: Console) -> None:
    settlement = result.settlement
    figures = {
        ("contribution", "contr"): settlement.contributions,
        ("expected payment", "expect"): settlement.expected_payments,
        ("charged", "paid"): settlement.payments,
        ("moved the draw", "moved"): settlement.influences,
    }
    names = [agent.name if agent.payer == agent.name else f"{agent.name} ({agent.payer})" for agent in result.agents]
    columns = [Column(heading="agent"), *(Column(heading=name, short=short, figure=True) for name, short in figures)]
    rows = [[name, *(f"{float(figure[i]):.4f}" for figure in figures.values())] for i, name in enumerate(names)]
    write_table(console, f"Agents (payment rule: {settlement.payment_rule})", columns, rows)


def _lines(result: "AuctionResult") -> list[str]:
    """Return what stands below the tables."""
    settlement, diagnostics = result.settlement, result.settlement.diagnostics
    lines = [
        f"{agent.name} {report.reason}" if report.status == "capped"
        else f"{agent.name} abstains ({report.status}): {report.reason}"
        for agent, report in zip(result.agents, result.reports, strict=True)
        if report.status != "reported"
    ]  # fmt: skip
    lines += [why_left_out(out.as_dict()) for out in result.left_out]
    lines += [result.disclosure] if result.disclosure else []
    unit = f" {result.currency}" if result.currency else ""
    lines.append(
        f"revenue {settlement.revenue:.4f}{unit}   tau {settlement.tau:g}   "
        f"log-normaliser {diagnostics.log_normaliser:.4f}"
    )
    lines.append(
        f"ESS {diagnostics.ess_probabilities:.2f} of {len(result.candidates)}   "
        f"weights {diagnostics.ess_weights:.2f} of {result.draws}   distinct replies {result.distinct_replies}"
    )
    letters = _letters(result)
    parts = [f"{letters[name]} {name} {count}" for name, count in result.components]
    if len(parts) > 1:
        lines.append("   ".join([f"draws {result.draws}", *parts]))
    else:
        lines += [f"draws {count}, all from the {name}" for name, count in result.components]
    if result.failures:
        lines.append(f"{len(result.failures)} model calls failed; settled on the others")
    return [*lines, f"seed {result.seed}   auction {result.auction_id}"]


def _letters(result: "AuctionResult") -> dict[str, str]:
    """Return the letter that stands for each component of the proposal in the table."""
    return {name: chr(ord("a") + k) for k, (name, _) in enumerate(result.components)}
