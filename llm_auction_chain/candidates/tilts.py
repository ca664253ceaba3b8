"""Keyword tilts: proposals that raise the odds of agents' keywords, and follow from the reference's own logits.

A tilt draws every token v from

    pi_ref(v) * exp(delta * [v begins a keyword of an agent that has none yet]) / Z,   Z = 1 + (exp(delta) - 1) * q,

where q is the reference's probability of all these tokens. So one pass over a prompt and its reply gives the
log-probability of the reply under the reference and under every tilt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_auction_chain.descriptions import Keywords

__all__ = ["Tilt", "TiltState", "TokenTilts"]

FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Tilt:
    """How much likelier the tokens that begin keywords become.

    Attributes:
        keywords: (N,), sorted, one for each agent that has some.
        strength: delta, nats; not negative.
        until_said: whether an agent's keywords are tilted only until a token begins one of them.
    """

    keywords: tuple[Keywords, ...]
    strength: float
    until_said: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class TiltState:
    """What the tilts of R replies depend on, and their log-probabilities so far. T tilts, N agents.

    Attributes:
        said: (R, N), whether a token of the reply began a keyword of the agent.
        log_ratios: (R, T), nats: log-probability of the reply under the tilt, minus that under the reference.
    """

    said: Mask
    log_ratios: FloatArray

    def select(self, rows: Sequence[int]) -> "TiltState":
        """Return the state of some of the replies."""
        kept = np.asarray(rows, dtype=np.int64)
        return TiltState(said=self.said[kept], log_ratios=self.log_ratios[kept])


class TokenTilts:
    """Tilts of one prompt, in the tokens of a model.

    Args:
        tilts: (T,).
        tokens: for each agent of each tilt the tokens that begin its keywords; (T, N_t).

    Attributes:
        columns: (K,), the tokens of all tilts, sorted. Methods take the reference's log-probabilities of these.
    """

    def __init__(self, tilts: Sequence[Tilt], tokens: Sequence[Sequence[Sequence[int]]]) -> None:
        agents = [(t, set(own)) for t, several in enumerate(tokens) for own in several]
        self.columns: npt.NDArray[np.int64] = np.array(sorted(set().union(*(own for _, own in agents))), dtype=np.int64)
        self._members = np.array([np.isin(self.columns, list(own)) for _, own in agents], dtype=bool)
        self._members = self._members.reshape(len(agents), len(self.columns))
        self._agents_of = np.array([[t == tilt for t, _ in agents] for tilt in range(len(tilts))], dtype=bool)
        self._agents_of = self._agents_of.reshape(len(tilts), len(agents))
        self._strengths = np.array([tilt.strength for tilt in tilts], dtype=np.float64)
        self._until_said = np.array([tilt.until_said for tilt in tilts], dtype=bool)

    def start(self, rows: int) -> TiltState:
        """Return the state of replies without a token."""
        agents, tilts = len(self._members), len(self._strengths)
        return TiltState(said=np.zeros((rows, agents), dtype=bool), log_ratios=np.zeros((rows, tilts)))

    def bias(self, state: TiltState, tilt: int, rows: slice | npt.NDArray[np.int64]) -> FloatArray:
        """Return what a tilt adds to the logits of the columns for the next token, (rows, K), nats."""
        return np.asarray(self._strengths[tilt] * self._tilted(state, tilt, rows))

    def step(
        self, state: TiltState, rows: npt.NDArray[np.int64], tokens: npt.ArrayLike, log_columns: npt.ArrayLike
    ) -> None:
        """Add a token to some replies of a state.

        Args:
            state: is changed.
            rows: (R',), the places of the replies.
            tokens: (R',), the next token of each.
            log_columns: (R', K), the reference's log-probabilities of the columns at this place, nats.
        """
        begins = np.asarray(tokens)[:, None] == self.columns
        probabilities = np.exp(np.asarray(log_columns, dtype=np.float64))
        for tilt, strength in enumerate(self._strengths):
            tilted = self._tilted(state, tilt, rows)
            q = np.minimum((probabilities * tilted).sum(axis=1), 1.0)
            state.log_ratios[rows, tilt] += strength * (begins & tilted).any(axis=1) - np.log1p(np.expm1(strength) * q)
        state.said[rows] |= begins @ self._members.T

    def log_ratios(self, replies: Sequence[npt.ArrayLike], log_columns: Sequence[npt.ArrayLike]) -> FloatArray:
        """Return the log-probabilities of whole replies under each tilt, minus those under the reference; (M, T), nats.

        Args:
            replies: (M,), the tokens of each.
            log_columns: (M,), the reference's log-probabilities of the columns before each token, (tokens, K), nats.
        """
        tokens, figures = [np.asarray(reply) for reply in replies], [np.asarray(own) for own in log_columns]
        state, lengths = self.start(len(tokens)), np.array([len(reply) for reply in tokens], dtype=np.int64)
        for place in range(lengths.max(initial=0)):
            rows = np.flatnonzero(lengths > place)
            self.step(state, rows, [tokens[row][place] for row in rows], [figures[row][place] for row in rows])
        return state.log_ratios

    def _tilted(self, state: TiltState, tilt: int, rows: slice | npt.NDArray[np.int64]) -> Mask:
        """Return which columns are tilted for the next token, (rows, K)."""
        agents = self._agents_of[tilt] & ~(state.said[rows] & self._until_said[tilt])
        tilted: Mask = agents @ self._members
        return tilted
