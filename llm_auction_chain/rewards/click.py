"""A reward per click, for advertisers that pay when the user follows the reply."""

from collections.abc import Callable
from dataclasses import dataclass

from langchain_core.messages import AIMessage, BaseMessage
from typing_extensions import override

from llm_auction_chain.errors import RewardError
from llm_auction_chain.rewards.base import Bounds, Prompt, Replies, Reward, WaitingReward, amounts_of_part
from llm_auction_chain.validators import number, refuse, takes
from llm_auction_chain.waiting import Waiter

__all__ = ["ClickReward"]

_LARGEST = 1e9  # with the least click-through that has a price, far more than any bid


@dataclass(frozen=True)
class ClickReward(WaitingReward):
    """Worth `value_per_click * click_through(reply)`, the predicted probability that the user clicks.

    The value is the agent's bid, the prediction is the platform's. As an agent's whole reward it also gives the
    settlement a price per click, which the agent pays only if the user clicks: see `AuctionResult.prices_per_click`.

    Attributes:
        value_per_click: money, at most 1e9.
        click_through: from 0 to 1 for each reply: a reward, or a plain function `(prompt, reply) -> float`.

    Raises:
        ConfigurationError: a value below 0, or a prediction that cannot be called with (prompt, reply).

    >>> from langchain_core.messages import AIMessage
    >>> reward = ClickReward(2.0, lambda prompt, reply: 0.25 if "guitar" in reply.text else 0.0)
    >>> reward.score([], [AIMessage("Buy a guitar"), AIMessage("Sing")])
    [0.5, 0.0]
    """

    value_per_click: float
    click_through: Reward | Callable[[list[BaseMessage], AIMessage], float]

    def __post_init__(self) -> None:
        """Check the settings."""
        number("ClickReward.value_per_click", self.value_per_click, least=0.0, most=_LARGEST)
        if not isinstance(self.click_through, Reward):
            if not callable(self.click_through):
                raise refuse("ClickReward.click_through", "a reward or a function (prompt, reply)", self.click_through)
            takes("ClickReward.click_through", self.click_through, "(prompt, reply)")
        self._note_size([self.click_through])

    @property
    @override
    def bounds(self) -> Bounds:
        return self._between(self.value_per_click)

    @property
    @override
    def awaits(self) -> bool:
        return isinstance(self.click_through, Reward) and self.click_through.awaits

    @override
    async def _score(self, prompt: Prompt, replies: Replies, waiter: Waiter) -> list[float]:
        chances = await amounts_of_part(self.click_through, prompt, replies, waiter)
        if not all(0.0 <= chance <= 1.0 for chance in chances):
            raise RewardError("predicted a click-through outside 0..1; it is the probability of a click")
        return [self.value_per_click * float(chance) for chance in chances]
