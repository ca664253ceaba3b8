"""Agents: who bids for the reply."""

from dataclasses import dataclass
from typing import Any

from llm_auction_chain.errors import ConfigurationError

__all__ = ["Agent"]


@dataclass(frozen=True)
class Agent:
    """Someone who would pay for some replies rather than others.

    Attributes:
        name: unique within an auction.
        reward: `(prompt, reply) -> float`, sync or async; or an object with `score(prompt, replies)`, one number per
            reply; or a Runnable over `{"prompt": ..., "reply": ...}`. What the reply is worth to the agent, in money.
        owner: who pays. Agents of one owner are one report and one payer; None: the agent itself.
        context: public description, frozen before the auction; holds no bid.

    Raises:
        ConfigurationError: an empty name, or a reward that cannot be called.

    >>> Agent(name="TuneTown", reward=lambda prompt, reply: 1.0).payer
    'TuneTown'
    """

    name: str
    reward: Any
    owner: str | None = None
    context: str = ""

    def __post_init__(self) -> None:
        """Refuse what no auction can ask."""
        if not isinstance(self.name, str) or not self.name.strip():
            raise ConfigurationError(f"An agent's name is {self.name!r}; it must be a non-empty string.")
        if self.owner is not None and (not isinstance(self.owner, str) or not self.owner.strip()):
            raise ConfigurationError(f"{self.name!r} has owner {self.owner!r}; give a non-empty string or None.")
        if not isinstance(self.context, str):
            raise ConfigurationError(
                f"{self.name!r} has a context of type {type(self.context).__name__}; give a string."
            )
        if not (callable(self.reward) or callable(getattr(self.reward, "score", None)) or _is_runnable(self.reward)):
            raise ConfigurationError(
                f"{self.name!r} has reward {self.reward!r}; give a callable (prompt, reply) -> float, "
                "an object with score(prompt, replies), or a Runnable."
            )

    @property
    def payer(self) -> str:
        """The owner, or the agent itself where it has none."""
        return self.owner if self.owner is not None else self.name


def _is_runnable(reward: object) -> bool:
    return callable(getattr(reward, "invoke", None)) and callable(getattr(reward, "ainvoke", None))
