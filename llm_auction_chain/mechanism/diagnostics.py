"""How far the weights can be trusted: effective sample size, largest share, Pareto k-hat."""

from dataclasses import dataclass

import numpy as np

from llm_auction_chain.mechanism.allocation import FloatArray, log_softmax

__all__ = ["Diagnostics", "diagnose", "effective_sample_size", "pareto_smooth"]

_FEWEST = 25  # draws below which a tail of five cannot be taken
_CUT = 225  # draws from which the tail grows like a square root


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """How many candidates the weights are really worth.

    Attributes:
        ess_weights: effective sample size of the log-weights, in candidates, 1..M.
        ess_probabilities: effective sample size of p, in candidates, 1..M.
        largest_share: the largest normalised weight, 0..1.
        k_hat: Pareto shape of the weights' tail; None below 25 candidates or where all weights of the tail are equal.
            Above 0.7 the weights are not to be trusted (Vehtari et al. 2024, arXiv 1507.02646).
    """

    ess_weights: float
    ess_probabilities: float
    largest_share: float
    k_hat: float | None


def diagnose(log_weights: FloatArray, p: FloatArray) -> Diagnostics:
    """Return the diagnostics of log-weights (M,) and of the law p (M,) that was drawn from."""
    weights = np.exp(log_softmax(log_weights))
    return Diagnostics(
        ess_weights=effective_sample_size(log_weights),
        ess_probabilities=float(1.0 / np.square(p).sum()),
        largest_share=float(weights.max()),
        k_hat=pareto_smooth(log_weights)[1],
    )


def effective_sample_size(log_weights: FloatArray) -> float:
    """Return `(sum_j w_j)^2 / sum_j w_j^2`, in candidates: M for equal weights, 1 where one weight is all.

    >>> effective_sample_size(np.zeros(16))
    16.0
    """
    weights = np.exp(log_softmax(np.asarray(log_weights, dtype=np.float64)))
    return float(1.0 / np.square(weights).sum())


def pareto_smooth(log_weights: FloatArray) -> tuple[FloatArray, float | None]:
    """Replace the largest weights by the expected order statistics of a generalised Pareto law fitted to them.

    Smoothing depends on the weights alone, never on a report, so truth stays dominant.

    Args:
        log_weights: (M,), in nats; `-inf` allowed.

    Returns:
        Normalised smoothed log-weights (M,), and k-hat: None, with the weights only normalised, where no tail can be
        fitted (fewer than 25 draws, or a tail of equal weights).

    Source: Vehtari, Simpson, Gelman, Yao, Gabry 2024 (arXiv 1507.02646), section 3; fit by Zhang and Stephens 2009.

    >>> pareto_smooth(np.zeros(8))[1] is None
    True
    """
    log_weights = np.asarray(log_weights, dtype=np.float64)
    normalised = log_softmax(log_weights)
    m = log_weights.shape[0]
    if m < _FEWEST:
        return normalised, None
    shifted = log_weights - log_weights.max()
    length = m // 5 if m <= _CUT else int(3.0 * np.sqrt(m))
    order = np.argsort(shifted, kind="stable")
    tail = order[m - length :]
    cutoff = max(float(shifted[order[m - length - 1]]), float(np.log(np.finfo(np.float64).tiny)))
    excess = np.exp(shifted[tail]) - np.exp(cutoff)
    if not np.all(shifted[tail] > cutoff) or np.ptp(excess) == 0.0:
        keep = shifted[tail] > cutoff
        tail, excess = tail[keep], excess[keep]
        if len(tail) < 5 or np.ptp(excess) == 0.0:  # noqa: PLR2004
            return normalised, None
    k_hat, sigma = _fit_generalised_pareto(excess)
    if not np.isfinite(k_hat):
        return normalised, None
    quantiles = (np.arange(len(tail)) + 0.5) / len(tail)
    shifted[tail] = np.minimum(np.log(_quantile(quantiles, k_hat, sigma) + np.exp(cutoff)), 0.0)
    return log_softmax(shifted), k_hat


def _fit_generalised_pareto(excess: FloatArray) -> tuple[float, float]:
    """Return shape and scale for ascending excesses (n,), with the weakly informative prior on the shape."""
    n = len(excess)
    grid_size = 30 + int(np.sqrt(n))
    grid = 1.0 - np.sqrt(grid_size / (np.arange(1, grid_size + 1) - 0.5))
    grid = grid / (3.0 * excess[int(n / 4 + 0.5) - 1]) + 1.0 / excess[-1]
    shape = np.log1p(-grid[:, None] * excess).mean(axis=1)
    profile = n * (np.log(-grid / shape) - shape - 1.0)
    weights = 1.0 / np.exp(profile - profile[:, None]).sum(axis=1)
    keep = weights >= 10.0 * np.finfo(np.float64).eps
    weights = weights[keep] / weights[keep].sum()
    b = float((grid[keep] * weights).sum())
    k = float(np.log1p(-b * excess).mean())
    return (n * k + 5.0) / (n + 10.0), -k / b


def _quantile(probabilities: FloatArray, shape: float, scale: float) -> FloatArray:
    if abs(shape) < np.finfo(np.float64).eps:
        return np.asarray(-scale * np.log1p(-probabilities))
    return np.asarray(scale * np.expm1(-shape * np.log1p(-probabilities)) / shape)
