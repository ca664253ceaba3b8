"""Keyword tilts: proposals that raise the odds of agents' keywords, and follow from the reference's own logits.

A tilt draws every token v from

    pi_ref(v) * exp(delta * [v begins a keyword of an agent that has none yet]) / Z,   Z = 1 + (exp(delta) - 1) * q,

where q is the reference's probability of all these tokens. So one pass over a prompt and its reply gives the
log-probability of the reply under the reference and under every tilt.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_auction_chain.descriptions import Keywords

__all__ = ["MOST_TOKENS", "Tilt", "TiltState", "TokenTilts", "equal_parts", "spellings_of", "tokens_that_begin"]

MOST_TOKENS = 1024
"""Tokens that begin keywords, of all agents together. A vLLM server takes no more."""
_COMMON = 50  # tokenizers number tokens by frequency: the first fiftieth of a vocabulary are its common words
_SHORTEST = 4  # letters of a token that stands for a longer word

FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def spellings_of(word: str) -> list[str]:
    """Return a word as it may begin in a reply: with and without a space, as written, in lower case, capitalised.

    >>> spellings_of("guitar")
    [' Guitar', ' guitar', 'Guitar', 'guitar']
    """
    forms = {word, word.lower(), word.capitalize()}
    return sorted(f"{before}{form}" for form in forms for before in ("", " "))


def tokens_that_begin(
    keywords: Keywords, tokens: Mapping[str, tuple[int, str]], *, size: int, special: Collection[int]
) -> list[int]:
    """Return the tokens that begin the keywords, the rarest first.

    The first token of a spelling counts if it is the whole word or at least four letters of it. Of words that the agent
    did not choose, those that begin with a common token are left out.

    Args:
        keywords: of one agent.
        tokens: the first token of each spelling, with its text.
        size: of the vocabulary.
        special: tokens with a meaning of their own, such as the end token.

    >>> tokens = {" guitar": (900, " guitar"), " Guitar": (7, " G"), "guitar": (80, "guit"), "Guitar": (8, "G")}
    >>> tokens_that_begin(Keywords(("guitar",)), tokens, size=1000, special=())
    [900, 80]
    """
    common = 0 if keywords.chosen else size // _COMMON
    beginnings = set()
    for word in keywords.words:
        if tokens.get(f" {word.lower()}", (common, ""))[0] < common:
            continue
        for spelling in spellings_of(word):
            token, text = tokens.get(spelling, (-1, ""))
            begins = text.strip() == spelling.strip()
            begins = begins or (len(text.strip()) >= _SHORTEST and spelling.strip().startswith(text.strip()))
            if begins and token >= common and token not in special:
                beginnings.add(token)
    return sorted(beginnings, reverse=True)


def equal_parts(tokens: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Return the first tokens of each agent, at most `most` in all, in equal parts as large as there is room for.

    >>> equal_parts([[9, 8, 7], [5], [4, 3]], 5), equal_parts([[9], [8], [7]], 2)
    ([[9, 8], [5], [4, 3]], [[9], [8], []])
    """
    longest = max(map(len, tokens), default=0)
    parts = (part for part in range(longest, 0, -1) if sum(min(len(own), part) for own in tokens) <= most)
    part = next(parts, 1)
    return [list(own[:part]) if place < most else [] for place, own in enumerate(tokens)]


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
        done: (R, N), whether a token of the reply began a keyword of the agent.
        log_ratios: (R, T), nats: log-probability of the reply under the tilt, minus that under the reference.
    """

    done: Mask
    log_ratios: FloatArray

    def select(self, rows: Sequence[int]) -> "TiltState":
        """Return the state of some of the replies."""
        kept = np.asarray(rows, dtype=np.int64)
        return TiltState(done=self.done[kept], log_ratios=self.log_ratios[kept])


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
        # as numbers, whose products are much faster than those of truth values
        self._members = np.array([np.isin(self.columns, list(own)) for _, own in agents], dtype=np.float32)
        self._members = self._members.reshape(len(agents), len(self.columns))
        self._agents_of = np.array([[t == tilt for t, _ in agents] for tilt in range(len(tilts))], dtype=bool)
        self._agents_of = self._agents_of.reshape(len(tilts), len(agents))
        self._strengths = np.array([tilt.strength for tilt in tilts], dtype=np.float64)
        self._until_said = np.array([tilt.until_said for tilt in tilts], dtype=bool)

    def start(self, rows: int) -> TiltState:
        """Return the state of replies without a token."""
        agents, tilts = len(self._members), len(self._strengths)
        return TiltState(done=np.zeros((rows, agents), dtype=bool), log_ratios=np.zeros((rows, tilts)))

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
        state.done[rows] |= begins.astype(np.float32) @ self._members.T > 0

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
        agents = self._agents_of[tilt] & ~(state.done[rows] & self._until_said[tilt])
        tilted: Mask = agents.astype(np.float32) @ self._members > 0
        return tilted
