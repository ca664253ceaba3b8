"""Who enters an auction, and with which seeds: decided before any candidate is drawn, and from no report."""

import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from langchain_core.messages import BaseMessage

from llm_auction_chain.agents import Agent, without_rivals
from llm_auction_chain.auction.billing import Tab
from llm_auction_chain.auction.result import LeftOut
from llm_auction_chain.canonical_json import time_text
from llm_auction_chain.errors import ConfigurationError, LedgerError, PromptError
from llm_auction_chain.mechanism.allocation import streams_of
from llm_auction_chain.receipts.commitments import salt_of

__all__ = ["Opened", "check_prompt", "check_seed", "one_currency", "open_up"]

_SEEDS = 2**128


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An auction before any candidate.

    Attributes:
        auction_id: unique.
        time: now, ISO 8601 in UTC.
        model: what a receipt calls the model.
        prompt: the user's messages.
        agents: who takes part.
        left_out: who does not, and why.
        failure: why the ledger held nothing; None where it did what it was asked.
        currency: unit of all amounts.
        bypassed: whether nobody takes part, because tools are offered.
        seed: of the auction.
        salt: opens its commitments.
        seed_of_candidates: of the draws of candidates.
        seed_of_draw: of the draw among them.
    """

    auction_id: str
    time: str
    model: str
    prompt: tuple[BaseMessage, ...]
    agents: tuple[Agent, ...]
    left_out: tuple[LeftOut, ...]
    failure: LedgerError | None
    currency: str
    bypassed: bool
    seed: int
    salt: str
    seed_of_candidates: int
    seed_of_draw: int


def open_up(
    prompt: Sequence[BaseMessage],
    agents: Sequence[Agent],
    tab: Tab,
    *,
    seed: int | None,
    model: str,
    exclusive: Collection[str],
    currency: str,
    bypassed: bool,
) -> Opened:
    """Return the auction that agents enter who are covered, and no rivals of those before them.

    Args:
        prompt: the user's messages.
        agents: those who would take part.
        tab: what is held for them.
        seed: replays it; None makes one of the hold's nonce, the same in every try, or takes a fresh one.
        model: what a receipt calls the model.
        exclusive: categories of which one owner at most takes part.
        currency: unit of all amounts.
        bypassed: whether tools are offered, so that nobody takes part.

    Raises:
        ConfigurationError: the seed is no seed.
    """
    if seed is None:
        seed = secrets.randbits(53) if tab.nonce is None else int(salt_of(tab.nonce, "seed"), 16) >> 203
    seed = check_seed(seed)
    of_candidates, of_draw = streams_of(seed)
    covered = [agent for agent in agents if not agent.pays or agent.payer not in tab.without_cover]
    without = [agent for agent in agents if agent.pays and agent.payer in tab.without_cover]
    reason: Literal["cover", "ledger"] = "cover" if tab.failure is None else "ledger"
    taking_part, rivals = without_rivals(covered, exclusive)
    return Opened(
        auction_id=tab.auction_id,
        time=time_text(datetime.now(UTC), "+00:00"),
        model=model,
        prompt=tuple(prompt),
        agents=taking_part,
        left_out=(
            *(LeftOut(agent=agent, category="", reason=reason) for agent in without),
            *(LeftOut(agent=agent, category=category, reason="category") for agent, category in rivals),
        ),
        failure=tab.failure,
        currency=currency,
        bypassed=bypassed,
        seed=seed,
        salt=secrets.token_hex(32) if tab.nonce is None else salt_of(tab.nonce, "salt"),
        seed_of_candidates=of_candidates,
        seed_of_draw=of_draw,
    )


def check_prompt(prompt: Sequence[BaseMessage]) -> None:
    """Raise `PromptError` where there is nothing to reply to."""
    if not prompt or _is_blank(prompt[-1]):
        raise PromptError("The prompt is empty; its last message must have content.")


def check_seed(seed: object) -> int:
    """Return the seed, or raise `ConfigurationError`."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _SEEDS:
        told = "larger" if isinstance(seed, int) and seed > 0 else repr(seed)  # Python spells no number of 5,000 digits
        raise ConfigurationError(f"seed is {told}; it must be a whole number of at least 0 and below 2**128.")
    return seed


def one_currency(currency: str, agents: Iterable[Agent]) -> str:
    """Return the unit of all amounts, or raise `ConfigurationError` where agents count in different ones."""
    known = {currency: "the auction"} if currency else {}
    for agent in agents:
        if agent.currency:
            known.setdefault(agent.currency, repr(agent.name))
    if len(known) > 1:
        units = ", ".join(f"{whose} in {unit}" for unit, whose in known.items())
        raise ConfigurationError(f"An auction has one unit of money, and here count {units}. Convert them before.")
    return next(iter(known), "")


def _is_blank(message: BaseMessage) -> bool:
    """Whether a message says nothing: no word, no picture, no call."""
    parts = [message.content] if isinstance(message.content, str) else message.content
    spoken = [part if isinstance(part, str) else part.get("text", part) for part in parts]
    says = any(part.strip() if isinstance(part, str) else part for part in spoken)
    return not says and not getattr(message, "tool_calls", None) and message.type != "tool"
