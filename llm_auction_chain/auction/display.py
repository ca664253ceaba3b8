"""A result to look at: a few lines for a shell."""

from typing import TYPE_CHECKING

from langchain_core.messages import HumanMessage

from llm_auction_chain.auction.explanation import shortened, why_left_out
from llm_auction_chain.money import as_text

if TYPE_CHECKING:
    from llm_auction_chain.auction.result import AuctionResult

__all__ = ["summary"]

_AGENTS = 5  # agents with a line of their own


def summary(result: "AuctionResult") -> str:
    """Return the auction in about ten lines: question, reply, payments, and which agents moved the reply.

    The agents that moved the draw most come first; beyond five they are only counted.
    """
    settlement = result.settlement
    unit = f" {result.currency}" if result.currency else ""
    moved = sorted(result.explain().agents, key=lambda agent: -agent.influence)
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
