"""Which agents take part, how many candidates, which seeds: decided before any candidate is drawn, from no report."""

import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig

from llm_auction_chain.agents import Agent, of_another_kind
from llm_auction_chain.auction.billing import Tab, most_owed
from llm_auction_chain.auction.events import AuctionEvent, ProgressHook
from llm_auction_chain.candidates import Size, name_of
from llm_auction_chain.errors import ConfigurationError, LedgerError, PromptError
from llm_auction_chain.mechanism.allocation import streams_of
from llm_auction_chain.receipts.records import salt_of
from llm_auction_chain.validators import refuse
from llm_auction_chain.waiting import Waiter

if TYPE_CHECKING:
    from llm_auction_chain.auction.settings import AuctionSettings

__all__ = ["SEEDS", "Admitted", "Call", "LeftOut", "LeftOutReason", "admit", "open_tab", "size_of", "without_rivals"]

LeftOutReason = Literal["category", "owner", "currency", "cap", "cover", "ledger"]
SEEDS = 2**128
_ONE = Size(n=1, most=1, min_ess=0.0, fewest=1)  # without agents, one has the distribution of the reference model


@dataclass(frozen=True, kw_only=True)
class Call:
    """What one call of an auction carries, beside the settings.

    Attributes:
        prompt: the user's messages.
        agents: those that would take part.
        bypassed: whether there are none because the model may call tools or no user reads its reply.
        auction_id: the id that the ledger books under. The same call again has the same id, and is charged once.
        config: of the runs below the auction's; losing replies reach no stream through it.
        seed: replays the auction; None takes a fresh one.
        model_kwargs: keywords for the model.
        traced: whether each model call is a run of its own. False where only the caller's run may count.
        notify: awaited with an event after every stage; None where nothing listens.
        progress: called while candidates and reports come in.
    """

    prompt: Sequence[BaseMessage]
    agents: Sequence[Agent]
    bypassed: bool = False
    auction_id: str
    config: RunnableConfig
    seed: int | None = None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    traced: bool = True
    notify: Callable[[AuctionEvent], Awaitable[None]] | None = None
    progress: ProgressHook | None = None


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """An agent that took no part.

    Attributes:
        agent: the agent.
        category: the exclusive category that another owner holds; empty for other reasons.
        reason: `category`; `owner` where its owner's other agents pay and it does not, or per click, or the reverse;
            `currency` where its rewards are in another than the auction's; `cap` where what its owner could owe has no
            limit, or is more than a ledger holds; `cover` where its owner's account does not cover that; `ledger` where
            the ledger failed.
    """

    agent: Agent
    category: str = ""
    reason: LeftOutReason = "category"

    def as_dict(self) -> dict[str, str]:
        """Return it as plain JSON."""
        return {"agent": self.agent.name, "reason": self.reason, "category": self.category}


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """An auction before its first candidate.

    Attributes:
        auction_id: unique.
        time: now, ISO 8601 in UTC.
        model: the model's name in the receipt.
        prompt: the user's messages.
        agents: those that take part.
        left_out: those that do not, and why.
        failure: why the ledger holds nothing; None where it did not fail.
        currency: unit of all amounts.
        size: how many candidates are drawn.
        bypassed: whether no agent takes part because the model may call tools or no user reads its reply.
        seed: of the auction.
        salt: of its commitments.
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
    size: Size
    bypassed: bool
    seed: int
    salt: str
    seed_of_candidates: int
    seed_of_draw: int


def open_tab(settings: "AuctionSettings", call: Call, waiter: Waiter) -> Tab:
    """Return the bookings of a call's auction, which begin with a hold of the most that every owner may owe.

    Raises:
        PromptError: there is nothing to reply to.
        ConfigurationError: the auction has no currency, and its agents have different ones.
    """
    if not call.prompt or _is_blank(call.prompt[-1]):
        raise PromptError("The prompt is empty; its last message must have content.")
    billing, currency = settings.billing, _one_currency(settings.billing.currency, call.agents)
    odd = _odd(call.agents)
    agents = [
        agent
        for agent in call.agents
        if billing.ledger and agent.currency in (None, currency) and agent.name not in odd
    ]
    most, unlimited = most_owed(agents, settings.report_cap, settings.payment_rule, settings.tau)
    return Tab(
        billing.ledger,
        call.auction_id,
        most,
        waiter,
        unlimited=unlimited,
        currency=currency,
        on_error=billing.on_error,
        signing_key=billing.signing_key,
    )


def admit(settings: "AuctionSettings", call: Call, tab: "Tab") -> Admitted:
    """Admit the agents that have cover and are in no exclusive category already taken.

    Without a seed in the call, the hold's nonce gives one, the same in every retry; without a hold, it is fresh.
    """
    left_out, covered, odd = [], [], _odd(call.agents)
    for agent in call.agents:
        if agent.name in odd:
            left_out.append(LeftOut(agent=agent, reason="owner"))
        elif agent.currency not in (None, tab.currency):
            left_out.append(LeftOut(agent=agent, reason="currency"))
        elif agent.pays and agent.payer in tab.unlimited:
            left_out.append(LeftOut(agent=agent, reason="cap"))
        elif agent.pays and agent.payer in tab.without_cover:
            left_out.append(LeftOut(agent=agent, reason="cover" if tab.failure is None else "ledger"))
        else:
            covered.append(agent)
    fresh = secrets.randbits(53) if tab.nonce is None else int(salt_of(tab.nonce, "seed"), 16) >> 203
    seed = fresh if call.seed is None else call.seed
    of_candidates, of_draw = streams_of(seed)
    taking_part, rivals = without_rivals(covered, settings.policy.exclusive_categories)
    return Admitted(
        auction_id=call.auction_id,
        time=datetime.now(UTC).isoformat(timespec="microseconds"),
        model=name_of(settings.model, call.config),
        prompt=tuple(call.prompt),
        agents=taking_part,
        left_out=(*left_out, *(LeftOut(agent=agent, category=category) for agent, category in rivals)),
        failure=tab.failure,
        currency=tab.currency,
        size=size_of(settings) if taking_part or settings.policy.candidate_filter else _ONE,
        bypassed=call.bypassed,
        seed=seed,
        salt=secrets.token_hex(32) if tab.nonce is None else salt_of(tab.nonce, "salt"),
        seed_of_candidates=of_candidates,
        seed_of_draw=of_draw,
    )


def without_rivals(
    agents: Iterable[Agent], exclusive: Collection[str]
) -> tuple[tuple[Agent, ...], tuple[tuple[Agent, str], ...]]:
    """Return the agents that take part, and those that do not with the category that excludes them.

    Of each exclusive category, only the first owner's agents take part. This depends on public settings alone, before
    any report: no report can keep a rival out.

    >>> from llm_auction_chain import Agent
    >>> cars = [Agent(name, max, categories=["cars"]) for name in ("A", "B")]
    >>> taking_part, left_out = without_rivals([*cars, Agent("C", max)], {"cars"})
    >>> [agent.name for agent in taking_part], [(agent.name, category) for agent, category in left_out]
    (['A', 'C'], [('B', 'cars')])
    """
    holders: dict[str, str] = {}
    taking_part, left_out = [], []
    for agent in agents:
        held = [category for category in agent.categories if category in exclusive]
        taken = [category for category in held if holders.get(category, agent.payer) != agent.payer]
        if taken:
            left_out.append((agent, taken[0]))
            continue
        taking_part.append(agent)
        holders.update(dict.fromkeys(held, agent.payer))
    return tuple(taking_part), tuple(left_out)


def size_of(settings: "AuctionSettings") -> Size:
    """Return how many candidates are drawn.

    Raises:
        ConfigurationError: the settings exclude one another.
    """
    n, sampling = settings.n_candidates, settings.sampling
    most, min_ess, fewest = sampling.max_candidates, sampling.min_ess, sampling.min_candidates
    if fewest > n:
        raise refuse("min_candidates", f"at most n_candidates, which is {n}", fewest)
    if most is not None and most < n:
        raise refuse("max_candidates", f"at least n_candidates, which is {n}", most)
    if min_ess is None:
        if most not in (None, n):
            raise refuse("max_candidates", f"{n} where min_ess is not set", most, "Only min_ess draws further rounds.")
        return Size(n=n, most=n, min_ess=0.0, fewest=fewest)
    most = 4 * n if most is None else most
    if min_ess > most:
        raise refuse("min_ess", f"at most max_candidates, which is {most}", min_ess)
    return Size(n=n, most=most, min_ess=min_ess, fewest=fewest)


def _odd(agents: Sequence[Agent]) -> set[str]:
    """Return the names of the agents of another kind than their owner's first."""
    return {agent.name for agent in of_another_kind(agents)} if any(agent.owner for agent in agents) else set()


def _one_currency(currency: str, agents: Sequence[Agent]) -> str:
    """Return the unit of all amounts: the auction's, else the one that agents name."""
    named = {agent.currency: agent.name for agent in agents if agent.currency}
    if not currency and len(named) > 1:
        listed = ", ".join(f"{name!r} {unit}" for unit, name in named.items())
        raise ConfigurationError(f"agents use different currencies: {listed}. Name the auction's in billing.")
    return currency or next(iter(named), "") or ""


def _is_blank(message: BaseMessage) -> bool:
    """Return whether a message has no word, no picture and no tool call."""
    blocks = [message.content] if isinstance(message.content, str) else message.content
    parts = [block if isinstance(block, str) else block.get("text", block) for block in blocks]
    has_content = any(part.strip() if isinstance(part, str) else part for part in parts)
    return not has_content and not getattr(message, "tool_calls", None) and message.type != "tool"
