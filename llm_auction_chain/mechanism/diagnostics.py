"""How reliable the importance weights are: effective sample size, largest share, Pareto k-hat."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_auction_chain.mechanism.allocation import FloatArray, log_mass, log_softmax

__all__ = ["Diagnostics", "diagnose", "effective_sample_size", "pareto_k_hat"]

_MIN_DRAWS = 25  # fewer draws have no tail of five
_MIN_TAIL = 5
_TIE = 1e-12  # weights whose relative difference is smaller are equal: sums of logs round
_MIN_EXCESS = 1e-300  # the reciprocal of a smaller excess would overflow
_SQUARE_ROOT = 225  # from so many draws on the length of the tail grows like a square root
_FINE = 10_000  # a longer tail gets no finer grid, so that memory is bounded by the number of candidates


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """How concentrated the weights and the distribution of the reply are.

    Attributes:
        ess_weights: effective number of draws by their weights, from 1 to the number of draws. Near 1 means that one
            draw dominates.
        ess_probabilities: effective number of candidates by p, 1..M.
        largest_share: the largest normalised weight of a draw, 0..1.
        log_normaliser: `G_M = tau * log mean_j exp(lw_j + sum_i r_ij / tau)`, the mean over draws, money. Its expected
            value rises with M to J*, the welfare of the optimally fine-tuned model. `(J* - E[G_M]) / tau` nats bound
            the distance between the distribution of the reply and that of the optimally fine-tuned model.
        k_hat: Pareto shape of the tail of the weights. Above 0.7 the weights are unreliable (Vehtari et al. 2024,
            arXiv 1507.02646). None for fewer than 25 draws, or if the tail has fewer than five weights that differ and
            do not underflow.
    """

    ess_weights: float
    ess_probabilities: float
    largest_share: float
    log_normaliser: float
    k_hat: float | None


def diagnose(
    log_weights: FloatArray,
    p: FloatArray,
    scores: FloatArray,
    draws: npt.NDArray[np.int64] | None,
    *,
    tau: float,
    constant: float,
) -> Diagnostics:
    """Return the diagnostics of an auction.

    Args:
        log_weights: (M,), nats.
        p: (M,), the distribution of the reply.
        scores: (M,), `lw + sum_i r_i / tau - constant / tau`.
        draws: (M,), number of draws that each candidate stands for; None for one each.
        tau: money per nat.
        constant: money.
    """
    counts = np.ones(len(log_weights), dtype=np.int64) if draws is None else draws
    shares = np.exp(log_softmax(log_weights)) / counts
    return Diagnostics(
        ess_weights=float(1.0 / (counts * np.square(shares)).sum()),
        ess_probabilities=float(1.0 / np.square(p).sum()),
        largest_share=float(shares.max()),
        log_normaliser=float(tau * (log_mass(scores) - np.log(counts.sum()))) + constant,
        k_hat=None if counts.sum() < _MIN_DRAWS else pareto_k_hat(log_weights - np.log(counts), counts),
    )


def effective_sample_size(log_weights: FloatArray) -> float:
    """Return `(sum_j w_j)^2 / sum_j w_j^2`: M for equal weights, 1 if one weight is the whole sum.

    >>> effective_sample_size(np.zeros(16))
    16.0
    """
    weights = np.exp(log_softmax(np.asarray(log_weights, dtype=np.float64)))
    return float(1.0 / np.square(weights).sum())


def pareto_k_hat(log_weights: FloatArray, draws: npt.NDArray[np.int64] | None = None) -> float | None:
    """Return the shape of the generalised Pareto distribution that fits the largest weights.

    Args:
        log_weights: (M,), in nats; `-inf` allowed.
        draws: (M,), number of draws that have each weight; None for one each.

    Returns:
        k-hat, or None if no tail can be fitted: fewer than 25 draws, or fewer than five weights in the tail that differ
        and do not underflow.

    Source: Vehtari, Simpson, Gelman, Yao, Gabry 2024 (arXiv 1507.02646), section 3; fit by Zhang and Stephens 2009.

    >>> pareto_k_hat(np.zeros(8)) is None
    True
    """
    log_weights = np.asarray(log_weights, dtype=np.float64)
    m = len(log_weights) if draws is None else int(draws.sum())
    if m < _MIN_DRAWS:
        return None
    order = np.argsort(log_weights)
    shifted = log_weights[order] - log_weights.max()
    below = np.cumsum(np.ones(len(order), dtype=np.int64) if draws is None else draws[order])  # and equal ones
    length = m // 5 if m <= _SQUARE_ROOT else int(3.0 * np.sqrt(m))
    at = int(np.searchsorted(below, m - length - 1, side="right"))  # the largest draw that is not in the tail
    cutoff = np.exp(shifted[at])
    at += int(below[at] == m - length)
    excess, counts = np.exp(shifted[at:]) - cutoff, np.diff(below[at:], prepend=m - length)
    least = max(_MIN_EXCESS, _TIE * cutoff)
    if excess[_quartile(counts)] <= least:  # ties with the cutoff, or weights that underflow
        excess, counts = excess[excess > least], counts[excess > least]
    if counts.sum() < _MIN_TAIL or np.ptp(excess) <= _TIE * (excess[-1] + cutoff):
        return None
    with np.errstate(all="ignore"):
        k_hat, sigma = _fit_generalised_pareto(excess, counts)
    return float(k_hat) if np.isfinite(k_hat) and sigma > 0.0 else None


def _quartile(counts: npt.NDArray[np.int64]) -> int:
    below = np.cumsum(counts)
    return int(np.searchsorted(below, int(below[-1] / 4 + 0.5) - 1, side="right"))


def _fit_generalised_pareto(excess: FloatArray, counts: npt.NDArray[np.int64]) -> tuple[np.float64, np.float64]:
    """Return shape and scale that fit ascending excesses (K,), with a weakly informative prior on the shape."""
    n = int(counts.sum())
    grid_size = 30 + int(np.sqrt(min(n, _FINE)))
    grid = 1.0 - np.sqrt(grid_size / (np.arange(1, grid_size + 1) - 0.5))
    grid = grid / (3.0 * excess[_quartile(counts)]) + 1.0 / excess[-1]
    shape = np.log1p(-grid[:, None] * excess) @ counts / n
    profile = n * (np.log(-grid / shape) - shape - 1.0)
    weights = np.exp(profile - profile.max())
    weights /= weights.sum()
    keep = weights >= 10.0 * np.finfo(np.float64).eps
    b = (grid[keep] * weights[keep]).sum() / weights[keep].sum()
    k = np.log1p(-b * excess) @ counts / n
    return (n * k + 5.0) / (n + 10.0), -k / b
