"""How `llm-auction run` shows an auction."""

from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from llm_auction_chain.auction.explanation import why_left_out
from llm_auction_chain.cli import printable_lines
from llm_auction_chain.cli.tables import Column, write_line, write_table
from llm_auction_chain.mechanism.allocation import log_softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_auction_chain.auction.result import AuctionResult
    from llm_auction_chain.auction.tau_sweep import TauPoint
    from llm_auction_chain.candidates import Candidate

_AGENTS = 5  # agents with a line of their own
_LEAST, _MOST = 0.1, 1e5  # amounts between them are written with two decimals


def show(result: "AuctionResult", console: Console) -> None:
    """Print what a first look needs: the bids and what they do to the chances, the reply, and who pays for it."""
    _write_bids(result, console)
    _write_reply(result, console)
    cut = [str(j) for j, candidate in enumerate(result.candidates) if _is_cut(candidate)]
    lines = [*_effects(result), *_notes(result)]
    lines += [f"Replies cut by --max-tokens: {', '.join(cut)}"] if cut else []
    for line in lines:
        write_line(console, line)
    console.print()


def show_details(result: "AuctionResult", console: Console) -> None:
    """Print the candidates, the reply, what each agent pays, and the figures needed to check it."""
    _write_candidates(result, console)
    _write_reply(result, console)
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


def _write_reply(result: "AuctionResult", console: Console) -> None:
    reply = Text(printable_lines(result.reply.text))
    console.print(Panel(reply, title=f"The reply drawn: candidate {result.settlement.winner}"))


def _write_bids(result: "AuctionResult", console: Console) -> None:
    """Print what each agent bids on each candidate, or the sums of bids where names take too much room."""
    names = [agent.name for agent in result.agents]
    bids = result.rewards
    if sum(len(name) + 2 for name in names) > console.width // 2:
        names, bids = ["bids"], bids.sum(axis=0, keepdims=True)
    before = np.exp(log_softmax(result.log_weights))
    columns = [
        Column(heading="#", figure=True),
        Column(heading="reply", cut=True),
        *(Column(heading=name, figure=True) for name in names),
        *(Column(heading=name, figure=True) for name in ("before", "after") if names),
    ]
    rows = [
        [
            str(j),
            " ".join(candidate.message.text.split()),
            *(_amount(bid) if bid else "-" for bid in bids[:, j].tolist()),
            *(_percent(chances[j]) for chances in (before, result.settlement.probabilities) if names),
        ]
        for j, candidate in enumerate(result.candidates)
    ]
    title = f"{result.draws} {'reply' if result.draws == 1 else 'replies'} of the model"
    title += ", the bids on each, and its chance before and after them" if names else ""
    write_table(console, title, columns, rows, bold=result.settlement.winner)


def _effects(result: "AuctionResult") -> list[str]:
    """Return what each agent pays and what its bids did, those that pay most first."""
    winner, unit = result.settlement.winner, f" {result.currency}" if result.currency else ""
    order = np.lexsort((-result.settlement.influences, -result.settlement.payments)).tolist()
    agents, lines = result.explain().agents, []
    for i in order[:_AGENTS]:
        agent = agents[i]
        line = f"{agent.agent} pays {_amount(float(agent.charge))}{unit}" if agent.pays else f"{agent.agent} never pays"
        if result.rewards[i, winner] or float(agent.charge):
            chances = f"from {_percent(agent.probability_without)} to {_percent(agent.probability)}"
            line += f": its bids move the chance of this reply {chances}."
        else:
            line += ": it bids nothing on this reply."
        if agent.changed_the_reply:
            line += f" Without them: candidate {result.settlement.winners_without[i]}."
        lines.append(line)
    return [*lines, *([f"and {len(agents) - _AGENTS} more"] if len(agents) > _AGENTS else [])]


def _is_cut(candidate: "Candidate") -> bool:
    """Return whether a reply reached its longest length, as far as its model says it."""
    return candidate.message.response_metadata.get("finish_reason") == "length"


def _amount(amount: float) -> str:
    """Return an amount with two decimals, or with four digits where these say nothing."""
    plain = amount == 0 or _LEAST <= abs(amount) < _MOST
    return f"{amount:.2f}" if plain else f"{amount:.4g}"


def _percent(chance: float) -> str:
    """Return a probability in percent, which is 0% or 100% only for what is impossible or certain.

    >>> _percent(0.0), _percent(0.001), _percent(0.125), _percent(0.999), _percent(1.0)
    ('0%', '<1%', '12%', '>99%', '100%')
    """
    rounded = f"{round(chance, 9):.0%}"  # 12% on each CPU for one of eight, whose last digit they compute differently
    if rounded == "0%" and chance > 0:
        return "<1%"
    return ">99%" if rounded == "100%" and chance < 1 else rounded


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


def _notes(result: "AuctionResult") -> list[str]:
    """Return who took no full part, and why; the disclosure; and whether calls failed."""
    lines = [
        f"{agent.name} {report.reason}" if report.status == "capped"
        else f"{agent.name} abstains ({report.status}): {report.reason}"
        for agent, report in zip(result.agents, result.reports, strict=True)
        if report.status != "reported"
    ]  # fmt: skip
    lines += [why_left_out(out.as_dict()) for out in result.left_out]
    lines += [result.disclosure] if result.disclosure else []
    lines += [f"{len(result.failures)} model calls failed; settled on the others"] if result.failures else []
    return lines


def _lines(result: "AuctionResult") -> list[str]:
    """Return what stands below the tables."""
    settlement, diagnostics = result.settlement, result.settlement.diagnostics
    lines = _notes(result)
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
    return [*lines, f"seed {result.seed}   auction {result.auction_id}"]


def _letters(result: "AuctionResult") -> dict[str, str]:
    """Return the letter that stands for each component of the proposal in the table."""
    return {name: chr(ord("a") + k) for k, (name, _) in enumerate(result.components)}
