"""An explanation of one auction, as text and as data: why this reply, and why this price."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["AgentExplanation", "Explanation", "shortened", "why_left_out"]

_MANY = 1e6  # larger ratios of probabilities are shown as this
_REASONS = {
    "category": "another owner holds the category ",
    "owner": "its owner's other agents pay and it does not, or not per click, or the reverse",
    "currency": "its rewards are in another currency",
    "cap": "it has no report_cap, or one that no ledger can hold",
    "cover": "its owner's account does not cover the most that it may owe",
    "ledger": "the ledger failed",
}
_SHORT = 60  # characters of a reply in a line of text


@dataclass(frozen=True, kw_only=True)
class AgentExplanation:
    """The influence of one agent on one auction.

    Attributes:
        agent: its name.
        owner: the payer.
        pays: whether it is ever charged.
        status: of its report: `reported`, or what went wrong.
        influence: total variation between p and p_-i, from 0 to 1: how far it moved the draw.
        probability: p of the reply drawn.
        probability_without: p_-i of the reply drawn.
        reply_without: the reply that the same noise draws without its owner's agents.
        changed_the_reply: whether that reply differs.
        contribution: money; what it adds to welfare, and its own gain if it pays.
        payment: money, for this draw.
        expected_payment: money, on average over draws.
        most_expected_payment: money; the most that the expected payments of its owner's agents can sum to, by their
            bounds and tau alone. None where one of them has no bounds.
        steering: the largest |log p_j - log p_-i,j| over the candidates, nats.
        most_steering: the most that `steering` can be, s / tau with s the sum of what the bounds of its owner's agents
            span: no reply becomes likelier or less likely by more than a factor of e^(s / tau). None without bounds.
        charge: the payment as it is billed, a decimal in digits.
        price_per_click: money; None unless its reward is a `ClickReward` and a click is possible.
    """

    agent: str
    owner: str
    pays: bool
    status: str
    influence: float
    probability: float
    probability_without: float
    reply_without: str
    changed_the_reply: bool
    contribution: float
    payment: float
    expected_payment: float
    most_expected_payment: float | None
    steering: float
    most_steering: float | None
    charge: str
    price_per_click: float | None

    def __str__(self) -> str:
        """Return two or three lines, the last of them only for an agent with bounds."""
        moved = f"moved the draw by {self.influence:.1%}"
        made = f"made this reply {_times(self.probability, self.probability_without)}"
        if self.changed_the_reply:
            instead = f"Without it: {shortened(self.reply_without)}"
        else:
            instead = "Without it the same reply would have been drawn."
        cost = f"pays {self.charge}" if self.pays else "never pays"
        state = "" if self.status == "reported" else f" ({self.status})"
        click = "" if self.price_per_click is None else f", or {self.price_per_click:.6f} per click"
        line = f"{self.agent}{state}: {moved}, {made}; {cost}{click}; contributes {self.contribution:.6f}."
        return f"{line}\n  {instead}{self._limits()}"

    def _limits(self) -> str:
        """Return a line with what the owner cannot exceed; nothing without bounds."""
        nats, most = self.most_steering, self.most_expected_payment
        if nats is None or most is None:
            return ""
        factor = f"{math.exp(nats):.2f}" if nats <= math.log(_MANY) else f"e^{nats:.6g}"
        cost = f", and pays at most {most:.6f} on average" if self.pays else ""
        owner = "It" if self.owner == self.agent else f"Its owner, {self.owner},"
        return f"\n  {owner} can change no reply's probability by more than a factor of {factor}{cost}."


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """One auction in words: `str()` gives the text, `as_dict()` the data.

    Attributes:
        auction_id: the auction.
        reply: the text drawn.
        sponsored: whether an agent that pays made this reply likelier.
        sponsors: their names.
        currency: the unit of all amounts; empty where it has no name.
        agents: one explanation each, in the auction's order.
        left_out: name, reason and category of agents that took no part.
    """

    auction_id: str
    reply: str
    sponsored: bool
    sponsors: tuple[str, ...]
    currency: str
    agents: tuple[AgentExplanation, ...]
    left_out: tuple[Mapping[str, str], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        data = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}

    def __str__(self) -> str:
        """Return a few lines for people."""
        unit = f" Amounts are in {self.currency}." if self.currency else ""
        who = f"Sponsored by {', '.join(self.sponsors)}." if self.sponsored else "No agent that pays made it likelier."
        lines = [f"Reply: {shortened(self.reply)}", f"{who}{unit}", *map(str, self.agents)]
        lines += map(why_left_out, self.left_out)
        return "\n".join(lines)


def why_left_out(out: Mapping[str, str]) -> str:
    """Return why an agent took no part, in a sentence.

    >>> why_left_out({"agent": "A", "reason": "category", "category": "music"})
    'A took no part: another owner holds the category music.'
    """
    return f"{out['agent']} took no part: {_REASONS[out['reason']]}{out['category']}."


def _times(probability: float, without: float) -> str:
    if without <= 0.0:
        return "possible" if probability > 0.0 else "no likelier"
    return f"{min(probability / without, _MANY):.2f} times as likely"


def shortened(text: str, longest: int = _SHORT) -> str:
    r"""Return a text in quotes on one line, cut after some characters, with control characters spelled out.

    >>> print(shortened("a\nb \x1b[2J"))
    "a b \x1b[2J"
    """
    line = " ".join(text[: 100 * longest].split())
    cut = line if len(line) <= longest else f"{line[: longest - 1]}…"
    plain = "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in cut)
    return f'"{plain}"'
