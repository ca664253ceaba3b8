"""Keyword tilts on a vLLM server: a logit bias on the tokens of keywords, and what the server's figures say of them.

The server returns the log-probabilities of these tokens at every place of a reply. From them follow those of the reply
under the reference and under every tilt of its prompt, so nothing is scored. Depending on its `--logprobs-mode` the
figures are those before the bias (raw) or after it (processed); `is_processed` says which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.messages import AIMessage

from llm_auction_chain.candidates.proposals import Condition
from llm_auction_chain.candidates.tilts import Tilt, TokenTilts, equal_parts, tokens_that_begin
from llm_auction_chain.descriptions import Keywords
from llm_auction_chain.errors import ConfigurationError, ScoringError

__all__ = ["ServerTilts", "beginnings_of", "check_drawable", "is_processed", "probe_of"]

FloatArray = npt.NDArray[np.float64]
_MOST_TOKENS = 64  # that begin keywords, of all agents: the server writes all of them at every place of a reply
_VOCABULARY = 50_000  # a server does not say how large it is, so its first thousand tokens count as common
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


def beginnings_of(keywords: Keywords, tokens: Mapping[str, tuple[int, str]]) -> list[int]:
    """Return the tokens that begin an agent's keywords, the rarest first, from the first token of each spelling.

    Tokens that mark turns in a chat template, such as `<|im_end|>` or `[INST]`, are left out.
    """
    special = {token for token, text in tokens.values() if text[:1] in ("<", "[") and text[-1:] in (">", "]")}
    return tokens_that_begin(keywords, tokens, size=_VOCABULARY, special=special)


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
        beginnings: the tokens that begin each agent's keywords, the rarest first.
    """

    conditions: Sequence[Condition]
    beginnings: Mapping[Keywords, Sequence[int]]

    @cached_property
    def _tilts(self) -> list[Tilt]:
        return [condition.tilt for condition in self.conditions if condition.tilt is not None]

    @cached_property
    def _token_tilts(self) -> TokenTilts:
        agents = sorted(self.beginnings)
        tokens = dict(zip(agents, equal_parts([self.beginnings[own] for own in agents], _MOST_TOKENS), strict=True))
        return TokenTilts(self._tilts, [[tokens[own] for own in tilt.keywords] for tilt in self._tilts])

    @property
    def columns(self) -> npt.NDArray[np.int64]:
        """(K,), the tokens of all tilts, sorted."""
        return self._token_tilts.columns

    def settings(self, condition: Condition) -> dict[str, Any]:
        """Return what a request adds to draw from a condition."""
        bias = zip(self.columns.tolist(), self._bias(condition).tolist(), strict=True)
        biased = {str(token): nats for token, nats in bias if nats}
        return {**_figures_of(self.columns.tolist()), **({"logit_bias": biased} if biased else {})}

    def _bias(self, condition: Condition) -> FloatArray:
        """Return what a condition adds to the logits of the columns, (K,), nats."""
        if condition.tilt is None:
            return np.zeros(len(self.columns))
        tilts = self._token_tilts
        return np.asarray(tilts.bias(tilts.start(1), self._tilts.index(condition.tilt), slice(None))[0])

    def complete(self, reply: AIMessage, condition: Condition, *, processed: bool) -> None:
        """Put the log-probabilities of a reply under each condition into its metadata, in place of the server's.

        Args:
            reply: drawn under the condition.
            condition: one of the conditions.
            processed: whether the server's figures contain the logit bias.

        Raises:
            ScoringError: the server did not send the figures of the columns.
        """
        known = reply.response_metadata["logprobs"]
        columns = self._figures(known.pop("of_tokens"))
        ids = np.array(known["token_ids"], dtype=np.int64)
        values = np.array(known["token_logprobs"], dtype=np.float64)
        bias = self._bias(condition)
        of_token = (ids[:, None] == self.columns) @ bias
        if processed:
            # p' = p * exp(bias) / Z, so Z = 1 / (1 - sum_K p' * (1 - exp(-bias)))
            log_z = -np.log1p(-np.minimum(np.exp(columns) @ -np.expm1(-bias), 1 - 1e-12))
            reference, columns = values + log_z - of_token, columns + log_z[:, None] - bias
        else:
            log_z = np.log1p(np.exp(columns) @ np.expm1(bias))
            reference = values
        ratios = iter(self._token_tilts.log_ratios([ids], [columns])[0])
        totals = [reference.sum() + (0.0 if one.tilt is None else next(ratios)) for one in self.conditions]
        known["token_logprobs"] = np.minimum(reference + of_token - log_z, 0.0).tolist()
        known["condition_totals"] = [min(0.0, float(total)) for total in totals]

    def _figures(self, places: Sequence[Mapping[int, float]]) -> FloatArray:
        """Return the server's figures of the columns before each token, (tokens, K), nats."""
        tokens = self.columns.tolist()
        if not all(place.keys() >= set(tokens) for place in places):
            raise ScoringError(
                "The server did not send the log-probabilities of keywords: it does not know logprob_token_ids. Use a "
                "newer vLLM, or proposal=Reference()."
            )
        figures = [[place[token] for token in tokens] for place in places]
        return np.array(figures, dtype=np.float64).reshape(len(places), len(tokens))
