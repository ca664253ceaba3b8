"""The candidates of one auction settled again: at another tau, and with an owner that lies. It calls no model."""

import math
from dataclasses import dataclass, replace
from html import escape

import numpy as np

from llm_auction_chain.auction.explanation import shortened
from llm_auction_chain.auction.result import AuctionResult
from llm_auction_chain.auction.tau_sweep import TauPoint, tau_sweep
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.experiments.strategies import utilities
from llm_auction_chain.mechanism.allocation import FloatArray

__all__ = ["FACTORS", "WhatIf", "as_html", "bar", "liars_of", "what_if"]

FACTORS = tuple(step / 10 for step in range(-10, 31))
"""By which a liar's reports are multiplied in its curve; 1 is the truth."""
_ROWS = 12  # candidates with a bar
_LEAST = 0.001  # of a probability that is shown as a number


@dataclass(frozen=True, kw_only=True, eq=False)
class WhatIf:
    """One auction at another tau, where one owner multiplies its reports.

    The reports that were made are taken for the truth. Utilities are true: the expected true value less the expected
    payment, which is the same under every payment rule.

    Attributes:
        point: probabilities, draw and payments of the changed reports; the noise of the draw is that of the auction.
        welfare: what the replies are truly worth to all agents together, in the mean, money.
        liar: name of the agent whose owner lies; empty where none does.
        owner: the liar's owner. All agents of an owner lie together, as they are one payer.
        factor: by which the owner's reports are multiplied, 1 for the truth.
        utility: of the owner with these reports, money.
        factors: (K,), those of the curve.
        curve: (K,), the owner's utility at each of them, money. For an owner that pays it is largest at 1.
    """

    point: TauPoint
    welfare: float
    liar: str
    owner: str
    factor: float
    utility: float
    factors: tuple[float, ...]
    curve: tuple[float, ...]

    @property
    def truthful(self) -> float:
        """The owner's utility with the truth, money."""
        return self.curve[self.factors.index(1.0)] if self.liar else 0.0


def liars_of(result: AuctionResult) -> list[str]:
    """Return the agents that may lie: those that pay. The others have no reason to be honest."""
    return [agent.name for agent in result.agents if agent.pays]


def what_if(result: AuctionResult, *, tau: float, liar: str = "", factor: float = 1.0) -> WhatIf:
    """Settle an auction's candidates again.

    Args:
        result: of the auction.
        tau: weight of the reference model, money per nat, above 0.
        liar: an agent that pays, whose owner lies; empty for none.
        factor: of the owner's reports. A report cap still holds.

    Raises:
        ConfigurationError: tau is not a number above 0, or the liar did not take part.
        RewardError: the payment rule is `proportional`, and the lie is negative.

    >>> from llm_auction_chain import Agent, AuctionRunnable
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> agent = Agent("B", lambda prompt, reply: 2.0 * reply.text.count("b"))
    >>> result = AuctionRunnable(model=MarkovChatModel(), agents=[agent], seed=7).run("Say something")
    >>> lie = what_if(result, tau=1.0, liar="B", factor=2.0)
    >>> lie.utility < lie.truthful == max(lie.curve)
    True
    """
    if liar and liar not in liars_of(result):
        raise ConfigurationError(f"{liar!r} is not an agent of this auction that pays.")
    owners = [agent.payer for agent in result.agents]
    i = next((i for i, agent in enumerate(result.agents) if agent.name == liar), -1)
    owner = owners[i] if liar else ""
    rewards = _scale(result, owner, factor)
    reports = tuple(
        replace(report, rewards=tuple(row)) for report, row in zip(result.reports, rewards.tolist(), strict=True)
    )
    [point] = tau_sweep(replace(result, reports=reports), [tau])

    def utility(reports: FloatArray) -> float:
        pays = [agent.pays for agent in result.agents]
        return float(utilities(result.rewards, reports, result.log_weights, tau, "expected", owners, pays)[i])

    factors = FACTORS if result.settlement.payment_rule != "proportional" else [x for x in FACTORS if x >= 0]
    return WhatIf(
        point=point,
        welfare=float(point.settlement.probabilities @ result.rewards.sum(axis=0)),
        liar=liar,
        owner=owner,
        factor=factor,
        utility=utility(rewards) if liar else 0.0,
        factors=tuple(factors),
        curve=tuple(utility(_scale(result, owner, each)) for each in factors) if liar else (),
    )


def _scale(result: AuctionResult, owner: str, factor: float) -> FloatArray:
    """Return the reports (N, M) with those of an owner multiplied, each within its agent's cap."""
    factors = [[factor if agent.payer == owner else 1.0] for agent in result.agents]
    scaled = result.rewards * np.reshape(factors, (len(result.agents), 1))
    caps = [math.inf if bid.report_cap is None else float(bid.report_cap) for bid in result.receipt.agents]
    limits = np.reshape(caps, (len(caps), 1))
    return np.asarray(np.clip(scaled, -limits, limits))


def as_html(result: AuctionResult, one: WhatIf) -> str:
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
