"""Agents: who bids for the reply, and which of them may meet in one auction."""

import math
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, SupportsFloat

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable

from llm_auction_chain.errors import ConfigurationError

__all__ = ["Agent", "cap_of", "check_agents", "check_cap", "check_categories", "without_rivals"]

_LONGEST = 255  # characters of a name


class ScoresReplies(Protocol):
    """Says what all replies of an auction are worth in one call, sync or async."""

    def score(self, prompt: list[BaseMessage], replies: list[AIMessage], /) -> Any:
        """Return one amount per reply."""


RewardLike = (
    Callable[[list[BaseMessage], AIMessage], SupportsFloat | Awaitable[SupportsFloat]]
    | ScoresReplies
    | Runnable[Any, Any]
)
"""What may be an agent's reward: `(prompt, reply) -> amount`, sync or async; an object with `score(prompt, replies)`,
which every `Reward` is; or a Runnable over `{"prompt": ..., "reply": ...}`."""


@dataclass(frozen=True)
class Agent:
    """Someone who would pay for some replies rather than others.

    Attributes:
        name: unique within an auction.
        reward: `(prompt, reply) -> float`, sync or async; or an object with `score(prompt, replies)`, one number per
            reply; or a Runnable over `{"prompt": ..., "reply": ...}`. What the reply is worth to the agent, in money.
        owner: who pays. Agents of one owner are one report and one payer; None: the agent itself.
        context: public description, frozen before the auction; holds no bid.
        pays: False for a player whose welfare counts and who is never charged: the user, the platform's own rules.
            Nothing makes it tell the truth, so its reward should be the platform's.
        report_cap: money; every reward is cut to within plus and minus this. None: the auction's cap.
        currency: the unit its rewards are in; None is the auction's. Another than the auction's is refused.
        categories: what the agent trades in, as the platform sees it; `exclusive_categories` of an auction go by it.

    Raises:
        ConfigurationError: a setting that no auction can ask; the message names it.

    >>> Agent(name="TuneTown", reward=lambda prompt, reply: 1.0).payer
    'TuneTown'
    """

    name: str
    reward: RewardLike = field(repr=False)  # what it bids is private, and a repr ends in traces
    owner: str | None = None
    context: str = ""
    pays: bool = True
    report_cap: float | None = None
    categories: Collection[str] = ()
    currency: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no auction can ask."""
        if not isinstance(self.name, str) or not self.name.strip():
            raise ConfigurationError(f"An agent's name is {self.name!r}; it must be a non-empty string.")
        for text in (self.name, self.owner or ""):
            # what a ledger can keep, so that no agent of somebody else's stops the auctions of all
            if len(text) > _LONGEST or "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
                raise ConfigurationError(
                    f"The name {text[:40]!r} has {len(text)} characters; give at most {_LONGEST}, none of them null or "
                    "half of a surrogate pair."
                )
        if self.owner is not None and (not isinstance(self.owner, str) or not self.owner.strip()):
            raise ConfigurationError(f"{self.name!r} has owner {self.owner!r}; give a non-empty string or None.")
        if not isinstance(self.context, str):
            raise ConfigurationError(
                f"{self.name!r} has a context of type {type(self.context).__name__}; give a string."
            )
        if not isinstance(self.pays, bool):
            raise ConfigurationError(f"{self.name!r} has pays={self.pays!r}; give True or False.")
        if self.currency is not None and (not isinstance(self.currency, str) or not self.currency.strip()):
            raise ConfigurationError(f"{self.name!r} has currency {self.currency!r}; give a non-empty string or None.")
        check_cap(self.report_cap, repr(self.name))
        object.__setattr__(self, "categories", check_categories(self.categories, repr(self.name)))
        if not (callable(self.reward) or callable(getattr(self.reward, "score", None)) or _is_runnable(self.reward)):
            raise ConfigurationError(
                f"{self.name!r} has reward {self.reward!r}; give a callable (prompt, reply) -> float, "
                "an object with score(prompt, replies), or a Runnable."
            )

    @property
    def payer(self) -> str:
        """The owner, or the agent itself where it has none."""
        return self.owner if self.owner is not None else self.name


def check_agents(agents: Iterable[Agent]) -> tuple[Agent, ...]:
    """Return the agents, or raise `ConfigurationError`: no agents, a name twice, an owner who pays only for some."""
    try:
        checked = tuple(agents)
    except TypeError as error:
        raise ConfigurationError(f"agents is {agents!r}; give a list of Agent.") from error
    seen: set[str] = set()
    pays: dict[str, bool] = {}
    for agent in checked:
        if not isinstance(agent, Agent):
            raise ConfigurationError(f"agents holds {agent!r}; every entry must be an Agent.")
        if agent.name in seen:
            raise ConfigurationError(f"Two agents are called {agent.name!r}; names must be unique within an auction.")
        seen.add(agent.name)
        if pays.setdefault(agent.payer, agent.pays) != agent.pays:
            raise ConfigurationError(
                f"{agent.payer!r} has agents that pay and agents that do not; give those that never pay an owner of "
                "their own."
            )
    return checked


def without_rivals(
    agents: Iterable[Agent], exclusive: Collection[str]
) -> tuple[tuple[Agent, ...], tuple[tuple[Agent, str], ...]]:
    """Return who takes part, and who does not with the category: of an exclusive one, only the first owner's agents.

    It knows names, owners and public categories: it runs before any report, and nothing that an agent reports can keep
    a rival out.

    >>> cars = [Agent(name, len, categories=["cars"]) for name in ("A", "B")]
    >>> taking_part, left_out = without_rivals([*cars, Agent("C", len)], {"cars"})
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


def cap_of(agent: Agent, report_cap: float | None) -> float | None:
    """Return what an agent's rewards are cut to: the lesser of its own cap and the auction's, None without either."""
    return min((cap for cap in (agent.report_cap, report_cap) if cap is not None), default=None)


def check_cap(cap: Any, whose: str) -> None:
    """Raise `ConfigurationError` unless it is a cap on reports, or None."""
    if cap is None:
        return
    if isinstance(cap, bool) or not isinstance(cap, int | float) or not 0 < cap < math.inf:
        raise ConfigurationError(f"report_cap of {whose} is {cap!r}; give an amount above 0, or None for no cap.")


def check_categories(categories: Any, whose: str) -> tuple[str, ...]:
    """Return categories as a tuple, or raise `ConfigurationError`."""
    if isinstance(categories, str) or not isinstance(categories, Collection):
        raise ConfigurationError(f"The categories of {whose} are {categories!r}; give a list of names.")
    if not all(isinstance(category, str) and category.strip() for category in categories):
        raise ConfigurationError(f"The categories of {whose} are {categories!r}; each must be a non-empty string.")
    return tuple(categories)


def _is_runnable(reward: object) -> bool:
    return callable(getattr(reward, "invoke", None)) and callable(getattr(reward, "ainvoke", None))
