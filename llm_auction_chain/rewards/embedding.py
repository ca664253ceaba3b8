"""A reward for replies that are close in meaning to a description."""

from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings
from typing_extensions import override

from llm_auction_chain.errors import RewardError
from llm_auction_chain.rewards.base import LONGEST_TEXT, Bounds, Prompt, Replies, WaitingReward
from llm_auction_chain.validators import number, refuse, text
from llm_auction_chain.waiting import Waiter

__all__ = ["EmbeddingReward"]


@dataclass(frozen=True)
class EmbeddingReward(WaitingReward):
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
    # The description's direction, after the first call. Threads that race compute the same one.
    _query: list[npt.NDArray[np.float64]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the settings."""
        if not isinstance(self.embeddings, Embeddings):
            raise refuse("EmbeddingReward.embeddings", "LangChain embeddings", self.embeddings)
        text("EmbeddingReward.description", self.description, most=LONGEST_TEXT)
        number("EmbeddingReward.value", self.value)
        number("EmbeddingReward.low", self.low, least=-1.0, most=1.0)
        number("EmbeddingReward.high", self.high, least=-1.0, most=1.0)
        if self.low >= self.high:
            raise refuse("EmbeddingReward.low", f"below high, which is {self.high:g}", self.low)

    @property
    @override
    def bounds(self) -> Bounds:
        return self._between(self.value)

    @override
    async def _score(self, prompt: Prompt, replies: Replies, waiter: Waiter) -> list[float]:
        has_text = [bool(reply.text.strip()) for reply in replies]  # providers refuse to embed nothing
        texts = [str(reply.text) for reply in compress(replies, has_text)]
        cosines = np.zeros(len(replies))
        if texts:
            embeddings, description = self.embeddings, self.description
            if not self._query:
                vector = await waiter.either(
                    lambda: embeddings.embed_query(description), lambda: embeddings.aembed_query(description)
                )
                self._query[:] = _directions([vector], 1)
            vectors = await waiter.either(
                lambda: embeddings.embed_documents(texts), lambda: embeddings.aembed_documents(texts)
            )
            directions, query = _directions(vectors, len(texts)), self._query[0]
            if directions.shape[1] != query.size:
                sizes = f"{directions.shape[1]} dimensions for a reply and {query.size} for the description"
                raise RewardError(f"The embeddings have {sizes}; use one model for both.")
            cosines[has_text] = directions @ query
        shares = np.clip((cosines - self.low) / (self.high - self.low), 0.0, 1.0)
        return [float(worth) for worth in self.value * shares]


def _directions(vectors: Any, count: int) -> npt.NDArray[np.float64]:
    """Return `count` vectors, (count, dimensions), each of length 1 or all zeros."""
    try:
        array = np.asarray(vectors, dtype=np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise RewardError("The embeddings are not vectors of one length.") from error
    if array.shape[:-1] != (count,) or not array.size or not np.isfinite(array).all():
        raise RewardError(f"The embeddings of {count} texts have shape {array.shape}, or numbers that are not finite.")
    # The largest number goes first, so that no square is infinite.
    for order in (np.inf, 2):
        norms = np.linalg.norm(array, order, axis=1, keepdims=True)
        array = array / np.where(norms > 0, norms, 1.0)
    return array
