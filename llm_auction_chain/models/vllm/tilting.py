"""Keyword tilts on a vLLM server: a logit bias on the tokens of keywords, and what the server's figures say of them.

The server returns the log-probabilities of these tokens at every place of a reply. From them follow those of the reply
under the reference and under every tilt of its prompt, so nothing is scored. Depending on its `--logprobs-mode` the
figures are those before the bias (raw) or after it (processed); `is_processed` says which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.messages import AIMessage

from llm_auction_chain.candidates.proposals import Condition
from llm_auction_chain.candidates.tilts import Tilt, TokenTilts
from llm_auction_chain.descriptions import Keywords
from llm_auction_chain.errors import ConfigurationError, ScoringError

__all__ = [
    "MOST_TOKENS",
    "VOCABULARY",
    "ServerTilts",
    "check_drawable",
    "columns_of",
    "is_processed",
    "probe_of",
    "special_tokens",
]

FloatArray = npt.NDArray[np.float64]
MOST_TOKENS = 64
"""Tokens that begin keywords, of all agents together: the server writes all of them at every place of a reply."""
VOCABULARY = 50_000
"""A server does not say how large its vocabulary is. Its first thousand tokens count as common."""
_LARGE_BIAS = 100.0
_NEAR_ZERO = -0.01  # nats: with the largest bias, a token's log-probability after it is 0
_PROBED = 2  # tokens: the model itself may be certain of one


def check_drawable(conditions: Sequence[Condition]) -> None:
    """Raise `ConfigurationError` unless a server can draw from the conditions and say how likely replies are."""
    first = conditions[0].prompts
    if len(first) > 1 or any(condition.prompts != first for condition in conditions):
        raise ConfigurationError(
            "On a vLLM server, keyword tilts stand in one mixture with the reference alone. Leave other components out."
        )
    if any(condition.tilt is not None and condition.tilt.until_said for condition in conditions):
        raise ConfigurationError(
            "A vLLM server tilts whole replies only. Use KeywordTilt(1.0, until_said=False), or a local model."
        )


def special_tokens(tokens: Mapping[str, tuple[int, str]]) -> set[int]:
    """Return the tokens that mark turns in a chat template, such as `<|im_end|>` or `[INST]`."""
    return {token for token, text in tokens.values() if text[:1] in ("<", "[") and text[-1:] in (">", "]")}


def probe_of(columns: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return the settings of requests whose answers show whether the server's figures contain a logit bias."""
    rarest = [int(token) for token in (*columns[::-1], int(columns[-1]) + 1, int(columns[-1]) + 2)][:_PROBED]
    return [{**_figures_of([token]), "logit_bias": {str(token): _LARGE_BIAS}} for token in rarest]


def is_processed(replies: Sequence[AIMessage]) -> bool:
    """Return whether figures contain the logit bias, by the replies to `probe_of`."""
    return all(reply.response_metadata["logprobs"]["token_logprobs"][0] > _NEAR_ZERO for reply in replies)


def _figures_of(tokens: Sequence[int]) -> dict[str, Any]:
    return {"logprob_token_ids": list(tokens), "return_tokens_as_token_ids": True}


@dataclass(frozen=True, kw_only=True)
class ServerTilts:
    """The tilts of one request's conditions.

    Attributes:
        conditions: (C,), of one prompt: as it stands, or tilted.
        tokens: of each agent's keywords.
    """

    conditions: Sequence[Condition]
    tokens: Mapping[Keywords, Sequence[int]]

    @property
    def _tilts(self) -> list[Tilt]:
        return [condition.tilt for condition in self.conditions if condition.tilt is not None]

    @property
    def token_tilts(self) -> TokenTilts:
        """The tilts in the server's tokens."""
        return TokenTilts(self._tilts, [[self.tokens[own] for own in tilt.keywords] for tilt in self._tilts])

    def settings(self, condition: Condition) -> dict[str, Any]:
        """Return what a request adds to draw from a condition."""
        tilts = self.token_tilts
        settings = _figures_of(tilts.columns.tolist())
        if condition.tilt is not None:
            bias = self._bias(condition.tilt)
            settings["logit_bias"] = {
                str(k): v for k, v in zip(tilts.columns.tolist(), bias.tolist(), strict=True) if v
            }
        return settings

    def _bias(self, tilt: Tilt) -> FloatArray:
        tilts = self.token_tilts
        return np.asarray(tilts.bias(tilts.start(1), self._tilts.index(tilt), slice(None))[0])

    def complete(self, reply: AIMessage, condition: Condition, columns: FloatArray, *, processed: bool) -> None:
        """Put the log-probabilities of a reply under each condition into its metadata.

        Args:
            reply: drawn under the condition; its tokens' figures are the server's, and become those of the condition.
            condition: one of the conditions.
            columns: the server's figures of the tilts' tokens before each token, (tokens, K), nats.
            processed: whether the server's figures contain the logit bias.
        """
        known = reply.response_metadata["logprobs"]
        ids = np.array(known["token_ids"], dtype=np.int64)
        values = np.array(known["token_logprobs"], dtype=np.float64)
        tilts = self.token_tilts
        bias = np.zeros(len(tilts.columns)) if condition.tilt is None else self._bias(condition.tilt)
        of_token = (ids[:, None] == tilts.columns) @ bias
        if processed:
            # p' = p * exp(bias) / Z, so Z = 1 / (1 - sum_K p' * (1 - exp(-bias)))
            log_z = -np.log1p(-np.minimum(np.exp(columns) @ -np.expm1(-bias), 1 - 1e-12))
            reference, columns = values + log_z - of_token, columns + log_z[:, None] - bias
        else:
            log_z = np.log1p(np.exp(columns) @ np.expm1(bias))
            reference = values
        ratios = tilts.log_ratios([ids], [columns])[0]
        totals = iter(reference.sum() + ratios)
        known["token_logprobs"] = np.minimum(reference + of_token - log_z, 0.0).tolist()
        known["condition_totals"] = [
            min(0.0, float(reference.sum() if one.tilt is None else next(totals))) for one in self.conditions
        ]


def columns_of(reply: AIMessage, tokens: Sequence[int]) -> FloatArray:
    """Return the server's figures of some tokens at every place of a reply, (tokens, K), nats; they leave the metadata.

    Raises:
        ScoringError: the server did not send them.
    """
    places = reply.response_metadata["logprobs"].pop("of_tokens")
    if not all(place.keys() >= set(tokens) for place in places):
        raise ScoringError(
            "The server did not send the log-probabilities of keywords: it does not know logprob_token_ids. Use a "
            "newer vLLM, or proposal=Reference()."
        )
    return np.array([[place[token] for token in tokens] for place in places], dtype=np.float64).reshape(
        len(places), len(tokens)
    )
