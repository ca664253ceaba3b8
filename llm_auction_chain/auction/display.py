"""A result to look at: a few lines for a shell, small tables for a notebook."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from langchain_core.messages import HumanMessage

from llm_auction_chain.auction.explanation import AgentExplanation, shortened, why_left_out
from llm_auction_chain.money import as_text

if TYPE_CHECKING:
    from llm_auction_chain.auction.result import AuctionResult

__all__ = ["as_html", "by_effect", "summary", "with_count"]

_AGENTS = 5  # agents with a line of their own
_ROWS = 20  # agents, and candidates, with a row of their own
_LONGEST = 2000  # characters of a text on a page


def summary(result: "AuctionResult") -> str:
    """Return the auction in about ten lines: question, reply, payments, and which agents moved the reply.

    The agents that moved the draw most come first; beyond five they are only counted.
    """
    settlement = result.settlement
    unit = f" {result.currency}" if result.currency else ""
    moved = by_effect(result)
    lines = [f"Question: {shortened(question_of(result))}", f"Reply:    {shortened(result.text)}", _sponsors(result)]
    for agent in moved[:_AGENTS]:
        state = "" if agent.status == "reported" else f" ({agent.status})"
        cost = f"pays {agent.charge}{unit}" if agent.pays else "never pays"
        effect = "changed the reply" if agent.changed_the_reply else "same reply without it"
        lines.append(f"  {agent.agent}{state}: {cost}, moved the draw by {agent.influence:.1%}, {effect}")
    if len(moved) > _AGENTS:
        lines.append(f"  and {len(moved) - _AGENTS} more")
    if len(result.left_out) == 1:
        lines.append(f"  {why_left_out(result.left_out[0].as_dict())}")
    elif result.left_out:
        lines.append(f"  {len(result.left_out)} agents took no part")
    terms = f"tau {settlement.tau:g}, payment rule {settlement.payment_rule}"
    ess = f"effective sample size {settlement.diagnostics.ess_probabilities:.1f}"
    lines.append(f"Revenue {as_text(result.revenue)}{unit}, {terms}")
    lines.append(f"{result.distinct_replies} distinct replies of {result.draws} draws, {ess}")
    if result.warnings:
        lines.append(f"{len(result.warnings)} in result.warnings, the first: {shortened(result.warnings[0])}")
    return "\n".join([*lines, f"Seed {result.seed}, auction {result.auction_id}"])


def as_html(result: "AuctionResult") -> str:
    """Return the auction as HTML: question, reply, and tables of the agents and of the likeliest candidates.

    All texts are escaped. It has no style of colours, so it is legible on light and dark pages, and no script. The
    tables have captions and headings, which screen readers announce.
    """
    settlement = result.settlement
    unit = f" ({result.currency})" if result.currency else ""
    agents = [
        (
            agent.agent,
            agent.owner,
            agent.charge if agent.pays else "never pays",
            f"{agent.influence:.1%}",
            _cut(agent.reply_without) if agent.changed_the_reply else "the same",
            agent.status,
        )
        for agent in by_effect(result)[:_ROWS]
    ]
    order = sorted(range(len(result.candidates)), key=lambda j: -settlement.probabilities[j])
    candidates = [
        (
            f"{_cut(result.candidates[j].message.text)}{' (the reply)' if j == settlement.winner else ''}",
            str(result.candidates[j].draws),
            f"{settlement.probabilities[j]:.4f}",
        )
        for j in [*order[:_ROWS], *(j for j in order[_ROWS:] if j == settlement.winner)]
    ]
    title = with_count("Candidates", len(candidates), len(order))
    _question, _reply, *lines = summary(result).splitlines()
    notes = [line for line in lines if not line.startswith("  ")]
    parts = [
        f"<p><strong>Question:</strong> {_escaped(_cut(question_of(result)))}</p>",
        f"<p><strong>Reply:</strong> {_escaped(_cut(result.text))}</p>",
    ]
    if agents:
        heads = ("agent", "owner", f"pays{unit}", "moved the draw", "reply without it", "report")
        parts.append(_table(with_count("Agents", len(agents), len(result.agents)), heads, agents))
    parts += [
        _table(title, ("reply", "draws", "probability"), candidates),
        f"<p>{'<br>'.join(map(_escaped, [*notes, *(why_left_out(out.as_dict()) for out in result.left_out)]))}</p>",
    ]
    return f'<section aria-label="Auction">{"".join(parts)}</section>'


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column has the rows' headings."""
    head = "".join(f'<th scope="col">{_escaped(text)}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{_escaped(first)}</th>{"".join(f"<td>{_escaped(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return f"<table><caption>{_escaped(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def by_effect(result: "AuctionResult") -> list[AgentExplanation]:
    """Return what each agent did, those that moved the draw most first."""
    return sorted(result.explain().agents, key=lambda agent: -agent.influence)


def with_count(caption: str, rows: int, n: int, what: str = "") -> str:
    """Return the caption, with how many of them are shown where some are not."""
    return caption if rows == n else f"{caption}, {rows} of {n} {what}".rstrip()


def _cut(text: str) -> str:
    return f"{text[:_LONGEST]}…" if len(text) > _LONGEST else text


def _escaped(text: str) -> str:
    """Return a text as HTML shows it. Notebooks read mathematics between dollar signs, so these are spelled out."""
    return escape(text).replace("$", "<span>&#36;</span>")


def question_of(result: "AuctionResult") -> str:
    """Return the text of the user's last message, or of the last message where the user wrote none."""
    messages = [message for message in result.prompt if isinstance(message, HumanMessage)] or result.prompt
    return str(messages[-1].text) if messages else ""


def _sponsors(result: "AuctionResult") -> str:
    names = [agent.name for agent in result.sponsors]
    if not names:
        return "No agent that pays made it likelier."
    more = f" and {len(names) - _AGENTS} more" if len(names) > _AGENTS else ""
    return f"Sponsored by {', '.join(names[:_AGENTS])}{more}."
