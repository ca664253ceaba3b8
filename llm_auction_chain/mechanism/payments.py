"""Contributions, expected payments and the four payment rules.

With `G(b) = tau * logsumexp(lw + sum_k b_k / tau)`:

    U_i = G(b) - G(b_-i)                           contribution
    T_i = E_p[r_i] - U_i = tau * KL(p || p_-i)     expected payment, a sum of non-negative terms
"""

from typing import Literal, get_args

import numpy as np

from llm_auction_chain.errors import RewardError
from llm_auction_chain.mechanism.allocation import FloatArray, log_softmax

__all__ = ["PAYMENT_RULES", "PaymentRule", "charge", "leave_one_out"]

PaymentRule = Literal["expected", "proportional", "influence", "pivot"]
PAYMENT_RULES: tuple[PaymentRule, ...] = get_args(PaymentRule)

_BLOCK = 16  # rows worked on at once: a block of 1,000 candidates stays in the processor's cache
_NARROW = 1e-4  # below this spread (in tau) the terms of the KL come from their series
_WIDE = 500.0  # above this spread (in tau) exp(-r / tau) may overflow: the row is done in log space


def leave_one_out(
    rewards: FloatArray, log_weights: FloatArray, tau: float, log_p: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the laws without each agent, their expected payments and their contributions.

    `p_-i` is proportional to `p * exp(-r_i / tau)`, so one exponential per entry gives all three. Rows whose spread
    is too wide for that are computed from leave-one-out sums in log space instead.

    Args:
        rewards: (N, M), finite.
        log_weights: (M,), finite.
        tau: above 0.
        log_p: (M,), the law with everybody.

    Returns:
        Counterfactual laws (N, M); expected payments T (N,) in money; contributions U (N,) in money.
    """
    n, m = rewards.shape
    laws = np.empty((n, m))
    payments = np.empty(n)
    contributions = np.empty(n)
    p = np.exp(log_p)
    mode = int(np.argmax(p))
    wide: list[int] = []
    for start in range(0, n, _BLOCK):
        rows = slice(start, min(start + _BLOCK, n))
        block = rewards[rows]
        low, high = block.min(axis=1), block.max(axis=1)
        spread = high / tau - low / tau
        shifted = (block - block[:, mode : mode + 1]) / tau
        with np.errstate(over="ignore", invalid="ignore"):
            tilt = np.expm1(-shifted)
            mean_tilt = tilt @ p
            utility = -np.log1p(mean_tilt)
            # q / p - 1, and from it the non-negative terms of KL(p || q) divided by p: d - 1 + exp(-d)
            ratio = np.exp(utility)[:, None] * tilt
            ratio += np.expm1(utility)[:, None]
            d = shifted - utility[:, None]
            np.add(ratio, 1.0, out=tilt)
            np.multiply(tilt, p, out=laws[rows])
            ratio += d
            np.maximum(ratio, 0.0, out=ratio)
            kl = ratio @ p
        narrow = spread < _NARROW
        if narrow.any():
            near = d[narrow]
            kl[narrow] = (near * near * (0.5 - near / 6.0 + near * near / 24.0)) @ p
        payments[rows] = np.minimum(tau * kl, high - low)
        contributions[rows] = np.maximum(block[:, mode] + tau * utility, low)
        wide.extend((start + np.flatnonzero((spread > _WIDE) | ~(mean_tilt > -0.95))).tolist())  # noqa: PLR2004
    if wide:
        _wide_rows(rewards, log_weights, tau, log_p, np.array(wide), (laws, payments, contributions))
    return laws, payments, contributions


def _wide_rows(  # noqa: PLR0913
    rewards: FloatArray,
    log_weights: FloatArray,
    tau: float,
    log_p: FloatArray,
    wide: "np.ndarray[tuple[int], np.dtype[np.int64]]",
    out: tuple[FloatArray, FloatArray, FloatArray],
) -> None:
    """Overwrite the rows `wide` of `out`, in log space and from sums that never contained the agent."""
    laws, payments, contributions = out
    p = np.exp(log_p)
    mode = int(np.argmax(log_p))
    centred_weights = log_weights - log_weights[mode]
    # One running sum of the agents before; the agents after are summed backwards, block by block of wide rows.
    after = _suffix_sums(rewards, wide, mode)
    before = np.zeros(rewards.shape[1])
    at = 0
    for k, row in enumerate(wide):
        for other in range(at, row):
            before += rewards[other] - rewards[other, mode]
        at = int(row)
        own = (rewards[row] - rewards[row, mode]) / tau
        others = centred_weights + (before + after[k]) / tau
        log_q = log_softmax(others)
        # log p relative to q with the agent's own report restored: d = log p - log q without the lost digits of p
        utility = _log_mean_exp(own, log_q)
        d = own - utility
        q = np.exp(log_q)
        laws[row] = q
        kl = _divergence(p, q, d)
        spread = rewards[row].max() - rewards[row].min()
        payments[row] = min(tau * kl, spread)
        contributions[row] = max(rewards[row, mode] + tau * utility, rewards[row].min())


def _suffix_sums(rewards: FloatArray, wide: "np.ndarray[tuple[int], np.dtype[np.int64]]", mode: int) -> FloatArray:
    sums = np.empty((len(wide), rewards.shape[1]))
    running = np.zeros(rewards.shape[1])
    at = rewards.shape[0]
    for k in range(len(wide) - 1, -1, -1):
        for other in range(at - 1, int(wide[k]), -1):
            running += rewards[other] - rewards[other, mode]
        at = int(wide[k]) + 1
        sums[k] = running
        running = running + (rewards[wide[k]] - rewards[wide[k], mode])
        at = int(wide[k])
    return sums


def _log_mean_exp(values: FloatArray, log_q: FloatArray) -> float:
    terms = values + log_q
    top = terms.max()
    return float(top + np.log(np.exp(terms - top).sum()))


def _divergence(p: FloatArray, q: FloatArray, d: FloatArray) -> float:
    """Return `KL(p || q)` for `d = log p - log q`, as a sum of terms `p*d - p + q >= 0`.

    The form in q is used only where d < -1: it keeps what p lost to underflow. Nearer to 0 it would cancel, and the
    form in p does not.
    """
    far = d < -1.0
    near_d = np.where(far, 0.0, d)
    far_d = np.where(far, d, -1.0)
    small = np.abs(near_d) < 1e-3  # noqa: PLR2004
    series = near_d * near_d * (0.5 - near_d / 6.0 + near_d * near_d / 24.0)
    exact = near_d + np.expm1(-near_d)
    near_terms = p * np.where(small, series, exact)
    far_terms = q * (1.0 + (far_d - 1.0) * np.exp(far_d))
    return float(np.maximum(np.where(far, far_terms, near_terms), 0.0).sum())


def charge(  # noqa: PLR0913
    rule: PaymentRule,
    rewards: FloatArray,
    *,
    scores: FloatArray,
    noise: FloatArray,
    winner: int,
    tau: float,
    expected_reward: FloatArray,
    expected: FloatArray,
    contributions: FloatArray,
) -> FloatArray:
    """Return what each agent is charged for this draw; over draws every rule has mean `expected`.

    Args:
        rule: one of `PAYMENT_RULES`.
        rewards: (N, M), finite.
        scores: (M,), `lw + sum_i r_i / tau`.
        noise: (M,), the Gumbel noise of the draw.
        winner: the index drawn.
        tau: above 0.
        expected_reward: (N,), `E_p[r_i]`.
        expected: (N,), T.
        contributions: (N,), U.

    Raises:
        RewardError: `proportional` with a negative reward.
    """
    if rule == "expected" or not rewards.size:
        return expected.copy()
    drawn = rewards[:, winner]
    if rule == "proportional":
        if (rewards < 0).any():
            raise RewardError(
                "payment_rule='proportional' needs rewards >= 0, and a report is negative. "
                "Use 'expected', 'influence' or 'pivot', or shift the report."
            )
        share = np.divide(expected, expected_reward, out=np.zeros_like(expected), where=expected_reward > 0)
        return np.asarray(drawn * np.minimum(share, 1.0))
    if rule == "influence":
        return np.asarray(drawn - contributions)
    paid = np.empty(len(rewards))
    gap = (scores - scores[winner]) + (noise - noise[winner])
    for i, reward in enumerate(rewards):
        # what the others lose because the winner is not theirs: max_j (z_j - r_ij) - (z_j* - r_ij*)
        paid[i] = np.max(tau * gap + (drawn[i] - reward))
    return np.clip(paid, 0.0, drawn - rewards.min(axis=1))
