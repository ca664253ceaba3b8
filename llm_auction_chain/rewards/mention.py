"""A reward for replies that mention something."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from langchain_core.messages import AIMessage, BaseMessage

from llm_auction_chain.errors import ConfigurationError

__all__ = ["MentionReward"]


@dataclass(frozen=True)
class MentionReward:
    """Worth `value * min(mentions, at_most)`: every mention of a phrase as whole words, in any case.

    Attributes:
        phrases: what to look for.
        value: money per mention.
        at_most: mentions beyond this many are worth nothing more.

    Raises:
        ConfigurationError: no phrases, an empty phrase, or `at_most` below 1.

    >>> MentionReward(["guitar"], value=2.0, at_most=1).score([], [AIMessage("A guitar, my guitar!"), AIMessage("Hi")])
    [2.0, 0.0]
    """

    phrases: Sequence[str]
    value: float = 1.0
    at_most: int = 1

    def __post_init__(self) -> None:
        """Refuse what can never be mentioned."""
        if isinstance(self.phrases, str) or not self.phrases:
            raise ConfigurationError("MentionReward needs a list of phrases, with at least one.")
        if not all(isinstance(phrase, str) and phrase.strip() for phrase in self.phrases):
            raise ConfigurationError(
                f"MentionReward has phrases {list(self.phrases)!r}; each must be a non-empty string."
            )
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise ConfigurationError(f"MentionReward has value {self.value!r}; give a number.")
        if isinstance(self.at_most, bool) or not isinstance(self.at_most, int) or self.at_most < 1:
            raise ConfigurationError(f"MentionReward has at_most={self.at_most!r}; give a whole number of at least 1.")

    def score(self, prompt: Sequence[BaseMessage], replies: Sequence[AIMessage]) -> list[float]:  # noqa: ARG002
        """Return what each reply is worth, in money."""
        longest_first = sorted(self.phrases, key=len, reverse=True)
        pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)
        return [self.value * min(len(pattern.findall(reply.text)), self.at_most) for reply in replies]
