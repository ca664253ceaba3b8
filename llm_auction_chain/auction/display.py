"""A result to look at: a few lines for a shell, small tables for a notebook."""

from collections.abc import Collection, Iterable, Sequence
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
    lines.append(f"Distinct replies: {result.distinct_replies} of {result.draws}, {ess}")
    if result.warnings:
        lines.append(f"{len(result.warnings)} in result.warnings, the first: {shortened(result.warnings[0])}")
    return "\n".join([*lines, f"Seed {result.seed}, auction {result.auction_id}"])


def as_html(result: "AuctionResult") -> str:
    """Return the auction as HTML: question, reply, and tables of the agents and of the likeliest candidates.

    All texts are escaped. It has no script and sets no colours, so it is legible on light and dark pages. The tables
    have captions and headings, which screen readers announce. On a narrow page the section scrolls, not the page.
    """
    settlement = result.settlement
    unit = f" ({result.currency})" if result.currency else ""
    agents = [
        (
            agent.agent,
            agent.owner,
            agent.charge if agent.pays else "never pays",
            f"{agent.influence:.1%}",
            agent.status,
            _cut(agent.reply_without) if agent.changed_the_reply else "the same",
        )
        for agent in by_effect(result)[:_ROWS]
    ]
    order = sorted(range(len(result.candidates)), key=lambda j: -settlement.probabilities[j])
    candidates = [
        (
            f"{settlement.probabilities[j]:.4f}",
            str(result.candidates[j].draws),
            f"{_cut(result.candidates[j].message.text)}{' (the reply)' if j == settlement.winner else ''}",
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
        heads = ("agent", "owner", f"pays{unit}", "moved the draw", "report", "reply without it")
        parts.append(
            _table(with_count("Agents", len(agents), len(result.agents)), heads, agents, names=0, numbers=(2, 3))
        )
    parts += [
        _table(title, ("probability", "draws", "reply"), candidates, names=2, numbers=(0, 1)),
        f"<p>{'<br>'.join(map(_escaped, [*notes, *(why_left_out(out.as_dict()) for out in result.left_out)]))}</p>",
    ]
    return f'<section aria-label="Auction" style="overflow-x:auto">{"".join(parts)}</section>'


def _table(
    caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], *, names: int, numbers: Collection[int]
) -> str:
    """Return a table.

    Args:
        caption: above it.
        heads: of the columns.
        rows: texts.
        names: the column that has the rows' headings.
        numbers: the columns that are aligned on the right.
    """
    styles = [
        f'style="text-align:{"right" if k in numbers else "left"};vertical-align:top;padding:0.2em 0.6em"'
        for k in range(len(heads))
    ]
    head = "".join(f'<th scope="col" {style}>{_escaped(text)}</th>' for style, text in zip(styles, heads, strict=True))

    def cell(k: int, text: str) -> str:
        if k != names:
            return f"<td {styles[k]}>{_escaped(text)}</td>"
        return f'<th scope="row" {styles[k][:-1]};font-weight:normal">{_escaped(text)}</th>'

    body = "".join(f"<tr>{''.join(cell(k, text) for k, text in enumerate(row))}</tr>" for row in rows)
    title = f'<caption style="text-align:left;font-weight:bold">{_escaped(caption)}</caption>'
    return f'<table style="margin:0 0 1em">{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


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
