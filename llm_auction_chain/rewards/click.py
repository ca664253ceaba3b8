"""A reward per click: what an advertiser pays for is that the user follows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from llm_auction_chain.errors import ConfigurationError, RewardError
from llm_auction_chain.rewards.base import Prompt, Replies, Reward, ascored, check_number, scored

__all__ = ["ClickReward"]

_LARGEST = 1e100


@dataclass(frozen=True)
class ClickReward(Reward):
    """Worth `value_per_click * click_through(reply)`, the predicted probability that the user clicks.

    The value is the agent's bid, the prediction the platform's. As an agent's whole reward it also gives the settlement
    a price per click, with which the agent pays only when the user does click: see `AuctionResult.prices_per_click`.

    Attributes:
        value_per_click: money.
        click_through: from 0 to 1 for each reply: a reward, or a plain function `(prompt, reply) -> float`.

    Raises:
        ConfigurationError: a value below 0, or a prediction that cannot be called.

    >>> from langchain_core.messages import AIMessage
    >>> reward = ClickReward(2.0, lambda prompt, reply: 0.25 if "guitar" in reply.text else 0.0)
    >>> reward.score([], [AIMessage("Buy a guitar"), AIMessage("Sing")])
    [0.5, 0.0]
    """

    value_per_click: float
    click_through: Any

    def __post_init__(self) -> None:
        """Refuse what predicts nothing."""
        check_number(self, "value_per_click", self.value_per_click, least=0.0, most=_LARGEST)
        if not isinstance(self.click_through, Reward) and not callable(self.click_through):
            raise ConfigurationError(
                f"ClickReward has click_through={self.click_through!r}; give a reward or a function (prompt, reply)."
            )

    @property
    @override
    def awaits(self) -> bool:
        return isinstance(self.click_through, Reward) and self.click_through.awaits

    @override
    def score(self, prompt: Prompt, replies: Replies) -> list[float]:
        return self._valued(scored(self.click_through, prompt, replies))

    @override
    async def ascore(self, prompt: Prompt, replies: Replies) -> list[float]:
        return self._valued(await ascored(self.click_through, prompt, replies))

    def _valued(self, predicted: Sequence[float]) -> list[float]:
        if not all(0.0 <= chance <= 1.0 for chance in predicted):
            raise RewardError("predicted a click-through outside 0..1; it is the probability of a click")
        return [self.value_per_click * float(chance) for chance in predicted]
