"""A chat model small enough to enumerate."""

import secrets
from itertools import pairwise, product
from typing import Any, ClassVar

import numpy as np
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult

__all__ = ["MarkovChatModel"]


class MarkovChatModel(BaseChatModel):
    """Replies are words of a Markov chain: `log pi(y) = log start[y_1] + sum_t log transition[y_t-1, y_t]`.

    Attributes:
        vocabulary: K one-character tokens.
        start: (K,), the law of the first token.
        transition: (K, K), each row the law of the next token.
        length: tokens of a reply: K**length replies in all.

    >>> replies = MarkovChatModel().enumerate()
    >>> len(replies), round(float(np.exp(list(replies.values())).sum()), 12)
    (9, 1.0)
    """

    native_n: ClassVar[bool] = True

    vocabulary: str = "abc"
    start: tuple[float, ...] = (0.5, 0.2, 0.3)
    transition: tuple[tuple[float, ...], ...] = ((0.6, 0.1, 0.3), (0.2, 0.5, 0.3), (0.4, 0.2, 0.4))
    length: int = 2

    def enumerate(self) -> dict[str, float]:
        """Return every reply with its log-probability in nats."""
        first, following = np.log(self.start), np.log(self.transition)
        replies = {}
        for tokens in product(range(len(self.vocabulary)), repeat=self.length):
            steps = sum(following[a, b] for a, b in pairwise(tokens))
            replies["".join(self.vocabulary[token] for token in tokens)] = float(first[tokens[0]] + steps)
        return replies

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        *,
        n: int = 1,
        seed: int | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> ChatResult:
        rng = np.random.default_rng(secrets.randbits(53) if seed is None else seed)
        replies = self.enumerate()
        texts = list(replies)
        law = np.exp(list(replies.values()))
        drawn = rng.choice(len(texts), size=n, p=law / law.sum())
        read, written = len(messages), n * self.length
        generations = []
        for k, index in enumerate(drawn):
            usage = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
            message = AIMessage(
                content=texts[index],
                response_metadata={"model_name": "markov", "finish_reason": "stop"},
                usage_metadata=usage if k == 0 else None,
            )
            generations.append(ChatGeneration(message=message))
        return ChatResult(generations=generations)

    @property
    def _llm_type(self) -> str:
        return "markov"
