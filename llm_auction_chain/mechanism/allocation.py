"""The distribution over candidates and the draw from it.

The reply has the distribution `p = softmax(lw + sum_i r_i / tau)`. Without agent i it is
`p_-i = softmax(lw + sum_{k != i} r_k / tau)`, over the same candidates.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["FloatArray", "draw", "log_mass", "log_softmax", "streams_of"]

FloatArray = npt.NDArray[np.float64]


def log_softmax(scores: FloatArray) -> FloatArray:
    """Return `scores - logsumexp(scores)` along the last axis, without overflow.

    Args:
        scores: (..., M), each row with at least one finite entry; `-inf` means probability 0.

    Returns:
        Log-probabilities of the same shape, in nats.

    >>> np.exp(log_softmax(np.array([1e6, 1e6, -np.inf]))).tolist()
    [0.5, 0.5, 0.0]
    """
    shifted: FloatArray = scores - scores.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def log_mass(scores: FloatArray) -> float:
    """Return `log sum_j exp(s_j)`, without overflow.

    >>> round(log_mass(np.array([1000.0, 1000.0, -np.inf])), 3)
    1000.693
    """
    top = scores.max()
    return float(top + np.log(np.exp(scores - top).sum()))


def draw(scores: FloatArray, rng: np.random.Generator) -> tuple[int, FloatArray]:
    """Draw `argmax_j (s_j + g_j)` with `g_j ~ Gumbel(0, 1)`, which has exactly the distribution `softmax(s)`.

    The payment rule `pivot` needs the noise of the draw. All payment rules share one draw, so a seed gives the same
    winner under each of them.

    Args:
        scores: (M,), `s = lw + sum_i r_i / tau`.
        rng: source of the noise.

    Returns:
        Index of the winner, and the noise, (M,).
    """
    noise = -np.log(rng.standard_exponential(scores.shape[0]))
    return int(np.argmax(scores + noise)), noise


def streams_of(seed: int) -> tuple[int, int]:
    """Return two seeds, one for an auction's candidates and one for its draw. Neither reveals the other.

    >>> streams_of(7)
    (8261862981338701, 298210822139840)
    """
    of_candidates, of_draw = (int(state) >> 11 for state in np.random.SeedSequence(seed).generate_state(2, np.uint64))
    return of_candidates, of_draw
