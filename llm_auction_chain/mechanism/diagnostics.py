"""How far the weights can be trusted: effective sample size, largest share, Pareto k-hat."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_auction_chain.mechanism.allocation import FloatArray, log_mass, log_softmax

__all__ = ["Diagnostics", "diagnose", "effective_sample_size", "pareto_smooth"]

_FEWEST = 25  # draws below which a tail of five cannot be taken
_SHORTEST = 5  # draws that make a tail
_TIE = 1e-12  # weights that differ by less (relatively) are equal: sums of logs round
_LEAST = 1e-300  # the reciprocal of a smaller excess would overflow
_CUT = 225  # draws from which the tail grows like a square root


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """How many candidates the weights are really worth.

    Attributes:
        ess_weights: effective sample size of the log-weights, in draws, from 1 to the number of draws.
        ess_probabilities: effective sample size of p, in candidates, 1..M.
        largest_share: the largest normalised weight of a draw, 0..1.
        log_normaliser: `G_M = tau * log mean_j exp(lw_j + sum_i r_ij / tau)`, the mean over draws, money. Its mean
            rises with M to J*, the welfare of the optimally fine-tuned model, and `(J* - E[G_M]) / tau` nats bound the
            distance of the returned reply's law from that model's.
        k_hat: Pareto shape of the weights' tail; None below 25 draws or where the tail has no five weights that differ
            and do not underflow. Above 0.7 the weights are not to be trusted (Vehtari et al. 2024, arXiv 1507.02646).
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
    """Return how far weights and law are concentrated, and the log-normaliser.

    Args:
        log_weights: (M,), nats.
        p: (M,), the law that was drawn from.
        scores: `lw + sum_i r_i / tau` where lw is finite, less `constant / tau`.
        draws: (M,), how many draws each candidate stands for; None: one each.
        tau: money per nat.
        constant: what was taken out of every score, money.
    """
    each = log_weights if draws is None else np.repeat(log_weights - np.log(draws), draws)
    return Diagnostics(
        ess_weights=effective_sample_size(each),
        ess_probabilities=float(1.0 / np.square(p).sum()),
        largest_share=float(np.exp(log_softmax(each)).max()),
        log_normaliser=float(tau * (log_mass(scores) - np.log(len(each)))) + constant,
        k_hat=pareto_smooth(each)[1],
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
        fitted (fewer than 25 draws, or a tail with no five weights that differ and do not underflow).

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
    cutoff = np.exp(shifted[order[m - length - 1]])
    excess = np.exp(shifted[tail]) - cutoff
    least = max(_LEAST, _TIE * cutoff)
    if excess[_quartile(length)] <= least:  # ties with the cutoff, or weights that underflow
        tail, excess = tail[excess > least], excess[excess > least]
    if len(tail) < _SHORTEST or np.ptp(excess) <= _TIE * (excess[-1] + cutoff):
        return normalised, None
    with np.errstate(all="ignore"):
        k_hat, sigma = _fit_generalised_pareto(excess)
        if not (np.isfinite(k_hat) and sigma > 0.0):
            return normalised, None
        quantiles = (np.arange(len(tail)) + 0.5) / len(tail)
        shifted[tail] = np.minimum(np.log(_quantile(quantiles, k_hat, sigma) + cutoff), 0.0)
    return log_softmax(shifted), float(k_hat)


def _quartile(n: int) -> int:
    return int(n / 4 + 0.5) - 1


def _fit_generalised_pareto(excess: FloatArray) -> tuple[np.float64, np.float64]:
    """Return shape and scale for ascending excesses (n,), with the weakly informative prior on the shape."""
    n = len(excess)
    grid_size = 30 + int(np.sqrt(n))
    grid = 1.0 - np.sqrt(grid_size / (np.arange(1, grid_size + 1) - 0.5))
    grid = grid / (3.0 * excess[_quartile(n)]) + 1.0 / excess[-1]
    shape = np.log1p(-grid[:, None] * excess).mean(axis=1)
    profile = n * (np.log(-grid / shape) - shape - 1.0)
    weights = np.exp(profile - profile.max())
    weights /= weights.sum()
    keep = weights >= 10.0 * np.finfo(np.float64).eps
    b = (grid[keep] * weights[keep]).sum() / weights[keep].sum()
    k = np.log1p(-b * excess).mean()
    return (n * k + 5.0) / (n + 10.0), -k / b


def _quantile(probabilities: FloatArray, shape: np.float64, scale: np.float64) -> FloatArray:
    if abs(shape) < np.finfo(np.float64).eps:
        return np.asarray(-scale * np.log1p(-probabilities))
    return np.asarray(scale * np.expm1(-shape * np.log1p(-probabilities)) / shape)
