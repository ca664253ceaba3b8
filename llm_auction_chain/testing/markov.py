"""A chat model small enough to enumerate."""

import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise, product
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import ConfigDict, model_validator

from llm_auction_chain.candidates.proposals import Condition
from llm_auction_chain.candidates.tilts import Tilt, TokenTilts
from llm_auction_chain.checked_model import CheckedModel
from llm_auction_chain.validators import Check, refuse, whole_number

Prompt = Sequence[BaseMessage]
FloatArray = npt.NDArray[np.float64]

_ROUNDING = 1e-9  # by which the sum of a distribution may miss 1


class MarkovChatModel(CheckedModel, BaseChatModel):
    """Replies are words of a Markov chain: `log pi(y) = log start[y_1] + sum_t log transition[y_t-1, y_t]`.

    A phrase of `tilts` that the prompt contains adds `tilts[phrase]` to the logits of every token. So replies depend on
    agents' descriptions, and the probability of each reply is known under every condition.

    Attributes:
        vocabulary: K one-character tokens, all different.
        start: (K,), probabilities of the first token; 0 for one that is impossible under every prompt.
        transition: (K, K), each row the probabilities of the next token, 0 as in `start`.
        length: tokens of a reply, at least 1: K**length replies in all.
        tilts: phrase to (K,), finite, nats.

    Raises:
        ConfigurationError: the settings are not a Markov chain; the message names the field.

    >>> replies = MarkovChatModel().enumerate()
    >>> len(replies), round(float(np.exp(list(replies.values())).sum()), 12)
    (9, 1.0)
    """

    model_config = ConfigDict(extra="ignore", strict=False)

    native_n: ClassVar[bool] = True
    checks: ClassVar[Mapping[str, Check]] = {"length": partial(whole_number, least=1)}

    vocabulary: str = "abc"
    start: tuple[float, ...] = (0.5, 0.2, 0.3)
    transition: tuple[tuple[float, ...], ...] = ((0.6, 0.1, 0.3), (0.2, 0.5, 0.3), (0.4, 0.2, 0.4))
    length: int = 2
    tilts: Mapping[str, tuple[float, ...]] = {}

    @model_validator(mode="after")
    def _check_chain(self) -> Self:
        k = len(self.vocabulary)
        if k < 1 or len(set(self.vocabulary)) < k:
            raise refuse("vocabulary", "at least one character, each once", self.vocabulary)
        if len(self.transition) != k:
            raise refuse("transition", f"{k} rows, one per token", self.transition)
        _check_distribution("start", self.start, k)
        for token, row in zip(self.vocabulary, self.transition, strict=True):
            _check_distribution(f"transition after {token!r}", row, k)
        for phrase, tilt in self.tilts.items():
            if len(tilt) != k or not np.all(np.isfinite(tilt)):
                raise refuse(f"tilts[{phrase!r}]", f"{k} finite numbers, one per token", tilt)
        return self

    def enumerate(self, prompts: Sequence[Prompt] = ((),), powers: Sequence[float] = (1.0,)) -> dict[str, float]:
        """Return every reply with its log-probability in nats.

        Tokens follow `prod_k pi(token | prompts[k]) ** powers[k]`; by default the model under an empty prompt.
        """
        first, following = self.log_probabilities(prompts, powers)
        replies = {}
        for tokens in product(range(len(self.vocabulary)), repeat=self.length):
            steps = sum(following[a, b] for a, b in pairwise(tokens))
            replies["".join(self.vocabulary[token] for token in tokens)] = float(first[tokens[0]] + steps)
        return replies

    def log_probabilities(
        self, prompts: Sequence[Prompt] = ((),), powers: Sequence[float] = (1.0,)
    ) -> tuple[FloatArray, FloatArray]:
        """Return log-probabilities of the first token (K,) and of the next one (K, K), nats, as `enumerate` uses them.

        An impossible token is so under every prompt, and stays so under every power, 0 and negative ones too.
        """
        chances = np.array([self.start, *self.transition])
        plain = np.full_like(chances, -np.inf)
        np.log(chances, out=plain, where=chances > 0)
        combined = np.where(chances > 0, 0.0, -np.inf)
        for prompt, power in zip(prompts, powers, strict=True):
            text = "\n".join(message.text for message in prompt)
            tilt = sum((np.asarray(tilt) for phrase, tilt in self.tilts.items() if phrase in text), np.zeros(1))
            combined += power * np.where(chances > 0, _log_softmax(plain + tilt), 0.0)
        combined = _log_softmax(combined)
        return combined[0], combined[1:]

    def score(self, prompt: Prompt, replies: Sequence[AIMessage]) -> list[float]:
        """Return `log pi(reply | prompt)`, nats; `-inf` for a text that is not a reply of this model."""
        return self.score_conditions([Condition(name="prompt", prompts=(tuple(prompt),))], replies)[0]

    def score_conditions(
        self,
        conditions: Sequence[Condition],
        replies: Sequence[AIMessage],
        *,
        wanted: Sequence[Sequence[bool]] | None = None,  # noqa: ARG002 - all of them cost nothing
    ) -> list[list[float]]:
        """Return `log pi_c(reply)` (C, M), nats."""
        return [[self._log_prob(str(reply.text), condition) for reply in replies] for condition in conditions]

    def _log_prob(self, text: str, condition: Condition) -> float:
        first, following = self.log_probabilities(condition.prompts, condition.powers)
        tokens = [self.vocabulary.find(letter) for letter in text]
        if len(tokens) != self.length or min(tokens) < 0:
            return -np.inf
        rows = np.array([first, *(following[token] for token in tokens[:-1])])
        total = float(sum(row[token] for row, token in zip(rows, tokens, strict=True)))
        if condition.tilt is None or total == -np.inf:
            return total
        tilts = self._tilts(condition.tilt)
        return total + float(tilts.log_ratios([tokens], [rows[:, tilts.columns]])[0, 0])

    def _tilts(self, tilt: Tilt) -> TokenTilts:
        """Return a tilt in tokens, which are letters: those that begin its keywords."""
        firsts = [{word[0].lower() for word in keywords.words} for keywords in tilt.keywords]
        return TokenTilts(
            [tilt], [[[k for k, letter in enumerate(self.vocabulary) if letter in own] for own in firsts]]
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        *,
        n: int = 1,
        seed: int | None = None,
        logprobs: bool = False,
        conditions: Sequence[tuple[Condition, int]] | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> ChatResult:
        rng = np.random.default_rng(secrets.randbits(53) if seed is None else seed)
        plain = Condition(name="messages", prompts=(tuple(messages),))
        wanted = [(plain, n)] if conditions is None else conditions
        drawn = [row for condition, count in wanted for row in self._draw(condition, count, rng)]
        prompts = [prompt for condition, count in wanted if count for prompt in condition.prompts]
        read, written = sum(map(len, prompts)), len(drawn) * self.length
        usage = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
        generations = []
        for k, (tokens, values) in enumerate(drawn):
            metadata: dict[str, Any] = {"model_name": "markov", "finish_reason": "stop"}
            if logprobs:
                known = {"token_ids": tokens, "token_logprobs": values}
                metadata["logprobs"] = {**known, "basis": "sampler", "complete": True}
            message = AIMessage(
                content="".join(self.vocabulary[token] for token in tokens),
                response_metadata=metadata,
                usage_metadata=usage if k == 0 else None,
            )
            generations.append(ChatGeneration(message=message))
        return ChatResult(generations=generations)

    def _draw(self, condition: Condition, n: int, rng: np.random.Generator) -> list[tuple[list[int], list[float]]]:
        """Return n replies: their tokens and the tokens' log-probabilities."""
        first, following = self.log_probabilities(condition.prompts, condition.powers)
        tilts = self._tilts(condition.tilt) if condition.tilt is not None else TokenTilts([], [])
        drawn = []
        for _ in range(n):
            tokens: list[int] = []
            values: list[float] = []
            state = tilts.start(1)
            for _ in range(self.length):
                plain = following[tokens[-1]] if tokens else first
                log_probs = plain.copy()
                if condition.tilt is not None:
                    log_probs[tilts.columns] += tilts.bias(state, 0, slice(None))[0]
                    log_probs = _log_softmax(log_probs)
                tokens.append(int(rng.choice(len(log_probs), p=np.exp(log_probs))))
                values.append(float(log_probs[tokens[-1]]))
                tilts.step(state, np.arange(1), tokens[-1:], plain[None, tilts.columns])
            drawn.append((tokens, values))
        return drawn

    @property
    def _llm_type(self) -> str:
        return "markov"


def _log_softmax(logits: FloatArray) -> FloatArray:
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))


def _check_distribution(name: str, probabilities: Sequence[float], k: int) -> None:
    total = float(np.sum(probabilities))
    if len(probabilities) != k or not min(probabilities) >= 0 or not abs(total - 1.0) <= _ROUNDING:
        raise refuse(name, f"{k} probabilities of at least 0, one per token, that sum to 1", tuple(probabilities))
