"""What the playground shows of an auction, as HTML in which the texts of others are escaped."""

import json
import math
from base64 import b64encode
from collections.abc import Collection, Sequence
from html import escape

from llm_auction_chain.auction.display import with_count
from llm_auction_chain.auction.explanation import shortened, why_left_out
from llm_auction_chain.auction.result import AuctionResult
from llm_auction_chain.interfaces.runnable import AuctionRunnable
from llm_auction_chain.receipts import verify
from llm_auction_chain.server.page_settings import mentions_of
from llm_auction_chain.server.what_if import WhatIf

__all__ = [
    "about_others",
    "alert",
    "bar",
    "links",
    "paragraph",
    "result_html",
    "verification_html",
    "what_if_html",
]

_CARDS, _ROWS, _AGENTS, _DIFFERENCES = 12, 12, 20, 8  # shown at once
_LEAST = 0.001  # of a probability that is shown as a number
_NO_RECEIPT = "This is no receipt: it must be the whole JSON text that the page or `receipt.as_dict()` gave."


def paragraph(message: str) -> str:
    """Return a message that is news."""
    return f"<p>{escape(message)}</p>"


def alert(message: str) -> str:
    """Return a message that is an error."""
    return f'<p class="wrong" role="alert">{escape(message)}</p>'


def links(result: AuctionResult, link: str) -> str:
    """Return the link that repeats the auction, and the receipt as a file. Neither is stored on the server."""
    receipt = b64encode(json.dumps(result.receipt.as_dict(), indent=2).encode()).decode()
    name = f"receipt-{result.auction_id}.json"
    return (
        f'<ul class="links"><li><a download="{escape(name)}" href="data:application/json;base64,{receipt}">'
        f'Download the receipt</a></li><li><a href="#{escape(link)}">Link to this auction</a> with the seed '
        f"{result.seed}: anyone with it sees the question, the agents and their values</li></ul>"
    )


def result_html(result: AuctionResult) -> str:
    """Return the reply, the agents and the candidates."""
    sponsors = ", ".join(agent.name for agent in result.sponsors)
    disclosure = result.disclosure or (f"Sponsored by {sponsors}." if sponsors else "Not sponsored.")
    notes = [*result.warnings, *(why_left_out(out.as_dict()) for out in result.left_out)]
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    winner, agents = result.settlement.winner, _agents_that_moved(result)
    order = sorted(range(len(result.candidates)), key=lambda j: -result.settlement.probabilities[j])
    first = [*order[:_CARDS], *(j for j in order[_CARDS:] if j == winner)]
    cards, others = ([_card(result, j, agents) for j in some] for some in (first, [j for j in order if j not in first]))
    more = f"<details><summary>{len(others)} less likely replies</summary><ol>{''.join(others)}</ol></details>"
    return (
        f'<section class="reply" aria-label="Reply"><h3>Reply</h3><blockquote>{escape(result.text)}</blockquote>'
        f"<p>{escape(disclosure)}</p></section>{f'<ul>{items}</ul>' if notes else ''}"
        f"{_agents_table(result, agents) if agents else '<p>No agent took part.</p>'}"
        f'<h3>Candidates</h3><ol class="cards">{"".join(cards)}</ol>{more if others else ""}'
    )


def _agents_that_moved(result: AuctionResult) -> list[int]:
    """Return the agents that moved the draw most, in the auction's order: all of them, unless they are many."""
    most = sorted(range(len(result.agents)), key=lambda i: -result.settlement.influences[i])[:_AGENTS]
    return sorted(most)


def _card(result: AuctionResult, j: int, agents: Sequence[int]) -> str:
    candidate, drawn = result.candidates[j], j == result.settlement.winner
    rewards = "".join(
        f"<div><dt>{escape(result.agents[i].name)}</dt><dd>{result.reports[i].rewards[j]:g}</dd></div>" for i in agents
    )
    times = "once" if candidate.draws == 1 else f"{candidate.draws} times"
    component = escape(candidate.component)
    excluded = ", forbidden by the platform's filter" if candidate.excluded else ""
    return (
        f'<li class="card{" drawn" if drawn else ""}">{"<strong>★ Drawn</strong>" if drawn else ""}'
        f'<p class="text">{escape(candidate.message.text)}</p>{bar(float(result.settlement.probabilities[j]))}'
        f'<p class="origin">Came {times}, from {component}{excluded}</p>'
        f'<dl class="rewards" aria-label="Rewards">{rewards}</dl></li>'
    )


def _agents_table(result: AuctionResult, agents: Sequence[int]) -> str:
    unit = f" ({escape(result.currency)})" if result.currency else ""
    heads = ("agent", f"pays{unit}", "expected payment", "contribution", "influence", "report")
    head = "".join(f'<th scope="col">{one}</th>' for one in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(one.agent)}</th><td>{one.charge if one.pays else "never pays"}</td>'
        f"<td>{one.expected_payment:.4f}</td><td>{one.contribution:.4f}</td><td>{one.influence:.1%}</td>"
        f"<td>{one.status}</td></tr>"
        for one in map(result.explain().agents.__getitem__, agents)
    )
    title = with_count("Agents", len(agents), len(result.agents), "that moved the draw most")
    return (
        f'<h3 id="payments">{title}</h3><div class="scrolls" tabindex="0" role="region" aria-labelledby="payments">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def about_others(auction: AuctionRunnable) -> str:
    """Return which agents bid that are not in the table."""
    if not isinstance(auction.agents, Collection):
        return "<p>A function or directory chooses the agents for each question, so they cannot be edited here.</p>"
    others = [
        f"{escape(agent.name)} ({escape(type(agent.reward).__name__)})"
        for agent in auction.agents
        if not mentions_of(agent)
    ]
    return f"<p>These bid, too, and cannot be edited here: {', '.join(others)}.</p>" if others else ""


def what_if_html(result: AuctionResult, one: WhatIf) -> str:
    """Return the changed auction as HTML: what it is worth, the liar's curve, and the probabilities."""
    settlement, unit = one.point.settlement, f" {result.currency}" if result.currency else ""
    reply = escape(result.candidates[settlement.winner].message.text)
    same = "the same reply" if settlement.winner == result.settlement.winner else "another reply"
    facts = (
        ("Welfare, true and expected", f"{one.welfare:.3f}{unit}"),
        ("Expected revenue", f"{one.point.expected_revenue:.3f}{unit}"),
        ("Distance from the model", f"{one.point.distance:.3f} nats"),
    )
    items = "".join(f"<div><dt>{name}</dt><dd>{amount}</dd></div>" for name, amount in facts)
    order = sorted(range(len(result.candidates)), key=lambda j: -result.settlement.probabilities[j])
    rows = "".join(
        f'<li><span class="text">{escape(shortened(result.candidates[j].message.text, 80))}</span>'
        f"{bar(settlement.probabilities[j], result.settlement.probabilities[j])}</li>"
        for j in order[:_ROWS]
    )
    more = f"<p>And {len(order) - _ROWS} less likely replies.</p>" if len(order) > _ROWS else ""
    return (
        f"<p>{_sentence(result, one, unit)} With the same noise, the draw gives {same}: <q>{reply}</q></p>"
        f'<dl class="facts">{items}</dl>{_curve(one, unit) if one.liar else ""}'
        f'<h4>Probabilities (in the auction: the mark on each bar)</h4><ol class="chances">{rows}</ol>{more}'
    )


def bar(p: float, mark: float | None = None) -> str:
    """Return a probability as a bar with its number, and with another probability as a mark on it."""
    number = "less than 0.1 %" if 0.0 < p < _LEAST else f"{p:.1%}".replace("%", " %")
    other = "" if mark is None else f'<span class="mark" style="left:{100 * mark:.2f}%"></span>'
    return (
        f'<span class="chance"><span class="bar" aria-hidden="true"><span class="fill" style="width:{100 * p:.2f}%">'
        f"</span>{other}</span> <span>{number}</span></span>"
    )


def _sentence(result: AuctionResult, one: WhatIf, unit: str) -> str:
    if not one.liar:
        return "No agent pays, so none has a reason to lie."
    several = sum(agent.payer == one.owner for agent in result.agents)
    who = f"{escape(one.liar)}" if several == 1 else f"{escape(one.owner)}, with all {several} of its agents,"
    truth = f"With the truth, {who} expects {one.truthful:.3f}{unit}, after payment."
    if one.factor == 1.0:
        return truth
    loss = max(one.truthful - one.utility, 0.0)
    lie = f"With reports times {one.factor:g}, it expects {one.utility:.3f}{unit}: the lie loses {loss:.3f}{unit}."
    return f"{truth} <strong>{lie}</strong>"


def _curve(one: WhatIf, unit: str) -> str:
    """Return the owner's utility at each factor as a picture, with a text for those who do not see it."""
    low, high = min(one.curve), max(one.curve)
    span = high - low or 1.0

    def place(factor: float, utility: float) -> tuple[float, float]:
        share = (factor - one.factors[0]) / (one.factors[-1] - one.factors[0])
        return 40 + 400 * share, 30 + 120 * (high - utility) / span

    line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in zip(one.factors, one.curve, strict=True))
    (x, y), (at, top) = place(one.factor, one.utility), place(1.0, one.truthful)
    ticks = "".join(
        f'<text x="{place(k, low)[0]:.1f}" y="176" text-anchor="middle">{"truth" if k == 1 else f"times {k}"}</text>'
        for k in range(math.ceil(one.factors[0]), 4)
    )
    name = escape(one.liar if one.owner == one.liar else one.owner)
    about = f"Expected utility of {name} by the factor of its reports. It is {high:.3f}{unit} at the truth, factor 1"
    about += f", and {one.curve[0]:.3f} at {one.factors[0]:g}, {one.curve[-1]:.3f} at {one.factors[-1]:g}."
    return (
        f'<figure class="curve"><figcaption>Expected utility of {name}, true value less payment, by how much it '
        f'exaggerates</figcaption><svg viewBox="0 0 480 184" role="img" aria-label="{about}">'
        f'<line class="truth" x1="{at:.1f}" x2="{at:.1f}" y1="20" y2="160"/><polyline points="{line}"/>'
        f'<rect x="{at - 5:.1f}" y="{top - 5:.1f}" width="10" height="10"/><circle cx="{x:.1f}" cy="{y:.1f}" r="7"/>'
        f'<text x="{at + 10:.1f}" y="{top - 10:.1f}">{high:.3f}</text>{ticks}</svg>'
        "<p>The square is the truth, the circle the report.</p></figure>"
    )


def verification_html(receipt: str, change: str = "") -> str:
    """Return whether a receipt holds, and what differs."""
    verification = verify(receipt)
    if any(one.field == "receipt" and one.rule.startswith("not a receipt") for one in verification.differences):
        return alert(_NO_RECEIPT)
    before = f"<p>Changed {escape(change)}.</p>" if change else ""
    if verification.ok:
        return f'{before}<p class="right">✓ Valid: everything follows from the rest of the receipt.</p>'
    items = "".join(f"<li>{escape(str(one))}</li>" for one in verification.differences[:_DIFFERENCES])
    more = len(verification.differences) + verification.more - _DIFFERENCES
    items += f"<li>and {more} more</li>" if more > 0 else ""
    return (
        f'{before}<p class="wrong">✗ Refused. What does not follow from the rest:</p><ul class="reasons">{items}</ul>'
    )
