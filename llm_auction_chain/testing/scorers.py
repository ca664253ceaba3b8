"""The laws that every scorer must obey, as tests that a scorer's own test class inherits."""

import inspect
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from langchain_core.messages import AIMessage, BaseMessage

from llm_auction_chain.candidates.base import SequenceScorer

__all__ = ["ScorerConformance"]


class ScorerConformance:
    """Log-probabilities of all replies sum to one, and are those of the replies that are drawn.

    A scorer's test class inherits this one and overrides `scorer`, `prompts`, `every_reply` and `draw`, over a model
    small enough to enumerate. It needs no fixtures and no plugin.

    Attributes:
        tolerance: nats by which a log-probability may be off; 0 but for rounding.
        draws: how many replies the statistical law draws; it fails for a correct scorer with probability 1e-6.

    >>> from langchain_core.messages import HumanMessage
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> class TestMine(ScorerConformance):
    ...     def scorer(self):
    ...         return MarkovChatModel()
    ...     def prompts(self):
    ...         return [HumanMessage("Hi")], [HumanMessage("Hello")]
    ...     def every_reply(self):
    ...         return [AIMessage(text) for text in MarkovChatModel().enumerate()]
    ...     def draw(self, prompt, n):
    ...         return [one.message for one in MarkovChatModel().generate([prompt], n=n, seed=1).generations[0]]
    >>> TestMine().test_log_probabilities_of_all_replies_sum_to_one()
    """

    tolerance: float = 1e-6
    draws: int = 2000

    def scorer(self) -> SequenceScorer:
        """Return the scorer under test."""
        raise NotImplementedError

    def prompts(self) -> tuple[list[BaseMessage], list[BaseMessage]]:
        """Return two prompts."""
        raise NotImplementedError

    def every_reply(self) -> list[AIMessage]:
        """Return all replies that the model can give to either prompt, each with whatever the scorer reads of it."""
        raise NotImplementedError

    def draw(self, prompt: list[BaseMessage], n: int) -> list[AIMessage]:
        """Return n independent replies of the model, as the auction would draw them."""
        raise NotImplementedError

    def test_log_probabilities_of_all_replies_sum_to_one(self) -> None:
        """Nothing of the law is missing and nothing counted twice, under either prompt."""
        for prompt in self.prompts():
            scores = self._scores(prompt, self.every_reply())
            assert abs(math.log(math.fsum(np.exp(scores)))) <= self.tolerance

    def test_log_probabilities_agree_with_the_frequencies_of_draws(self) -> None:
        """Replies are drawn as often as they are likely: Hoeffding's bound for each, summed over all of them."""
        prompt, replies = self.prompts()[0], self.every_reply()
        chances = dict(zip(map(self._key, replies), np.exp(self._scores(prompt, replies)), strict=True))
        assert len(chances) == len(replies), "every_reply holds a reply twice"
        seen = Counter(map(self._key, self.draw(prompt, self.draws)))
        assert set(seen) <= set(chances), "a reply was drawn that every_reply does not hold"
        bound = math.sqrt(math.log(2 * len(chances) / 1e-6) / (2 * self.draws))
        for key, chance in chances.items():
            assert abs(seen[key] / self.draws - chance) <= bound, key

    def test_a_batch_is_scored_as_each_reply_alone(self) -> None:
        """What stands beside a reply does not matter."""
        prompt, replies = self.prompts()[1], self.every_reply()[:8]
        alone = [self._scores(prompt, [reply])[0] for reply in replies]
        np.testing.assert_allclose(self._scores(prompt, replies), alone, rtol=0, atol=self.tolerance)

    def test_the_order_of_replies_does_not_matter(self) -> None:
        """Scores follow their replies."""
        prompt, replies = self.prompts()[0], self.every_reply()
        backwards = self._scores(prompt, replies[::-1])[::-1]
        np.testing.assert_allclose(self._scores(prompt, replies), backwards, rtol=0, atol=self.tolerance)

    def test_no_replies_have_no_scores(self) -> None:
        """An empty batch is legal."""
        assert len(self.scorer().score(self.prompts()[0], [])) == 0

    def test_equal_replies_have_equal_scores(self) -> None:
        """A reply that comes twice is scored twice, the same."""
        first = self.every_reply()[0]
        scores = self._scores(self.prompts()[0], [first, first])
        np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=self.tolerance)

    async def test_the_async_twin_scores_the_same(self) -> None:
        """`ascore`, where there is one, is `score`, awaited."""
        prompt, replies = self.prompts()[0], self.every_reply()
        if inspect.iscoroutinefunction(verb := getattr(self.scorer(), "ascore", None)):
            scores = np.asarray(await verb(prompt, replies), dtype=np.float64)
            np.testing.assert_allclose(scores, self._scores(prompt, replies), rtol=0, atol=self.tolerance)

    def _scores(self, prompt: list[BaseMessage], replies: Sequence[AIMessage]) -> npt.NDArray[np.float64]:
        scores = np.asarray(self.scorer().score(prompt, replies), dtype=np.float64)
        assert scores.shape == (len(replies),)
        assert np.all(scores <= self.tolerance), "a log-probability is at most 0"
        return scores

    @staticmethod
    def _key(reply: AIMessage) -> object:
        """Return what tells replies apart: their tokens where these are known, else their text."""
        logprobs = reply.response_metadata.get("logprobs")
        ids = logprobs.get("token_ids") if isinstance(logprobs, dict) else None
        return tuple(ids) if ids is not None else str(reply.text)
