"""A reward for replies that are close in meaning to a description."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings
from typing_extensions import override

from llm_auction_chain.errors import ConfigurationError, RewardError
from llm_auction_chain.rewards.base import Prompt, Replies, Reward, check_number

__all__ = ["EmbeddingReward"]


@dataclass(frozen=True)
class EmbeddingReward(Reward):
    """Worth `value * clip((cosine - low) / (high - low), 0, 1)`, with the reply's cosine to a description.

    All replies are embedded in one call, as documents; the description is embedded once, as a query. A reply without
    text is not embedded, and its cosine is 0, as is that of a vector of zeros.

    Attributes:
        embeddings: any LangChain embeddings.
        description: what a reply should be about.
        value: money at a cosine of `high` and above.
        low: the cosine up to which a reply is worth nothing. Models differ in what unrelated texts have.
        high: the cosine from which a reply is worth all of it.

    Raises:
        ConfigurationError: no embeddings, no description, or not -1 <= low < high <= 1.
        RewardError: from `score`, the embeddings are not one finite vector for every text, all of one length.

    >>> from langchain_core.embeddings import DeterministicFakeEmbedding
    >>> from langchain_core.messages import AIMessage
    >>> reward = EmbeddingReward(DeterministicFakeEmbedding(size=8), "guitar lessons", value=2.0)
    >>> reward.score([], [AIMessage("guitar lessons"), AIMessage("")])
    [2.0, 0.0]
    """

    embeddings: Embeddings
    description: str
    value: float = 1.0
    low: float = 0.0
    high: float = 1.0
    # The description's direction, once known. Threads that meet here ask for it more than once, to the same end.
    _query: list[npt.NDArray[np.float64]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what nothing can be compared with."""
        if not isinstance(self.embeddings, Embeddings):
            raise ConfigurationError(f"EmbeddingReward has embeddings {self.embeddings!r}; give LangChain embeddings.")
        if not isinstance(self.description, str) or not self.description.strip():
            raise ConfigurationError(f"EmbeddingReward has description={self.description!r}; say what to be close to.")
        check_number(self, "value", self.value)
        check_number(self, "low", self.low, least=-1.0, most=1.0)
        check_number(self, "high", self.high, least=-1.0, most=1.0)
        if self.low >= self.high:
            raise ConfigurationError(f"EmbeddingReward has low={self.low:g} and high={self.high:g}; low must be less.")

    @property
    @override
    def awaits(self) -> bool:
        return True

    @override
    def score(self, prompt: Prompt, replies: Replies) -> list[float]:
        texts = _texts(replies)
        if texts and not self._query:
            self._query[:] = _directions([self.embeddings.embed_query(self.description)], 1)
        return self._worth(replies, self.embeddings.embed_documents(texts) if texts else [])

    @override
    async def ascore(self, prompt: Prompt, replies: Replies) -> list[float]:
        texts = _texts(replies)
        if texts and not self._query:
            self._query[:] = _directions([await self.embeddings.aembed_query(self.description)], 1)
        return self._worth(replies, await self.embeddings.aembed_documents(texts) if texts else [])

    def _worth(self, replies: Replies, documents: Sequence[Sequence[float]]) -> list[float]:
        """Return what the replies are worth, given a vector for each that has text."""
        has_text = np.array([bool(_texts([reply])) for reply in replies], dtype=bool)
        cosines = np.zeros(len(replies))
        if has_text.any():
            directions = _directions(documents, int(has_text.sum()))
            if directions.shape[1] != len(self._query[0]):
                raise RewardError(
                    f"The embeddings have {directions.shape[1]} dimensions for a reply and {len(self._query[0])} for "
                    "the description; use one model for both."
                )
            cosines[has_text] = directions @ self._query[0]
        shares = np.clip((cosines - self.low) / (self.high - self.low), 0.0, 1.0)
        return [float(worth) for worth in self.value * shares]


def _texts(replies: Replies) -> list[str]:
    """Return the texts that there are; providers refuse to embed nothing."""
    return [str(reply.text) for reply in replies if reply.text.strip()]


def _directions(vectors: Any, count: int) -> npt.NDArray[np.float64]:
    """Return `count` vectors, (count, dimensions), each of length 1 or all zeros."""
    try:
        array = np.asarray(vectors, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RewardError(f"The embeddings are not vectors of one length: {error}") from error
    if array.shape[:-1] != (count,) or not array.size or not np.isfinite(array).all():
        raise RewardError(f"The embeddings of {count} texts have shape {array.shape}, or numbers that are not finite.")
    # The largest number goes first, so that no square is infinite.
    for order in (np.inf, 2):
        norms = np.linalg.norm(array, order, axis=1, keepdims=True)
        array = array / np.where(norms > 0, norms, 1.0)
    return array
