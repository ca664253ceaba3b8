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

_BLOCK = 32  # rows worked on at once: a block of 1,000 candidates stays in the processor's cache
_FAINT = 1e-3  # a KL below this share of the spread is summed anew from non-negative terms: the difference lost digits
_UNDONE = -0.95  # E_p[exp(-a)] - 1 below this: the agent made its winner, and 1 + x has lost digits
_WIDE = 500.0  # above this spread (in tau) exp(-r / tau) may overflow: the row is done in log space


def leave_one_out(
    rewards: FloatArray, log_weights: FloatArray, tau: float, log_p: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return the laws without each agent, and each agent's expected payment, contribution and influence.

    `p_-i` is proportional to `p * exp(-r_i / tau)`, so one exponential per entry gives all four. Rows whose spread
    is too wide for that are computed from leave-one-out sums in log space instead.

    Args:
        rewards: (N, M), finite.
        log_weights: (M,), finite.
        tau: above 0.
        log_p: (M,), the law with everybody.

    Returns:
        Counterfactual laws (N, M); expected payments T (N,) in money; contributions U (N,) in money; total
        variation between p and each law (N,).
    """
    n, m = rewards.shape
    laws = np.empty((n, m))
    payments, contributions, influences = np.empty(n), np.empty(n), np.empty(n)
    p = np.exp(log_p)
    mode = int(np.argmax(p))
    buffers = np.empty((2, min(_BLOCK, n), m))  # reused by every block, so that they stay in cache
    wide: list[int] = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for start in range(0, n, _BLOCK):
            block = rewards[start : start + _BLOCK]
            rows = slice(start, start + len(block))
            a, x = buffers[:, : len(block)]
            low, high = block.min(axis=1), block.max(axis=1)
            spread = high / tau - low / tau
            # a = (r_mode - r) / tau, x = exp(a) - 1, u = -log E_p[exp(a)], q / p = exp(a + u)
            np.subtract(block[:, mode : mode + 1], block, out=a)
            a *= 1.0 / tau
            np.expm1(a, out=x)
            mean_tilt = x @ p
            u = -np.log1p(mean_tilt)
            kl = -(a @ p + u)  # E_p[log p - log q]
            # |a| has mean at most spread * (1 - p_mode), for a is 0 at the mode: that bounds what kl was rounded by
            faint = np.flatnonzero(~(kl > _FAINT * (1.0 - p[mode]) * spread) & (spread > 0.0))
            kl[faint] = [_divergence(p, d) for d in -(a[faint] + u[faint, None])]
            kl[spread == 0.0] = 0.0
            x *= np.exp(u)[:, None]
            x += np.expm1(u)[:, None]  # q / p - 1
            np.multiply(x, p, out=laws[rows])
            laws[rows] += p
            influences[rows] = np.abs(x, out=x) @ p / 2.0
            payments[rows] = np.minimum(tau * kl, high - low)
            contributions[rows] = np.maximum(block[:, mode] + tau * u, low)
            wide.extend((start + np.flatnonzero((spread > _WIDE) | ~(mean_tilt > _UNDONE))).tolist())
    if wide:
        _wide_rows(rewards, log_weights, tau, log_p, np.array(wide), (laws, payments, contributions, influences))
    return laws, payments, contributions, influences


def _wide_rows(
    rewards: FloatArray,
    log_weights: FloatArray,
    tau: float,
    log_p: FloatArray,
    wide: "np.ndarray[tuple[int], np.dtype[np.int64]]",
    out: tuple[FloatArray, FloatArray, FloatArray, FloatArray],
) -> None:
    """Overwrite the rows `wide` of `out`, in log space and from sums that never contained the agent."""
    laws, payments, contributions, influences = out
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
        kl = _divergence(p, d, q)
        spread = rewards[row].max() - rewards[row].min()
        payments[row] = min(tau * kl, spread)
        contributions[row] = max(rewards[row, mode] + tau * utility, rewards[row].min())
        influences[row] = np.abs(q - p).sum() / 2.0


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


def _divergence(p: FloatArray, d: FloatArray, q: FloatArray | None = None) -> float:
    """Return `KL(p || q)` for `d = log p - log q`, as a sum of terms `p*d - p + q >= 0`.

    The form in q, where q is given, is used only where d < -1: it keeps what p lost to underflow. Nearer to 0 it would
    cancel, and the form in p does not; there, too, a series takes over before `d + expm1(-d)` cancels.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        terms = d + np.expm1(-d)
        small = np.abs(d) < 1e-2  # noqa: PLR2004
        near = d[small]
        terms[small] = near * near * (0.5 - near * (1 / 6 - near * (1 / 24 - near * (1 / 120 - near / 720))))
        terms *= p
        if q is not None:
            far = d < -1.0
            terms[far] = q[far] * (1.0 + (d[far] - 1.0) * np.exp(d[far]))
        return float(np.maximum(terms, 0.0).sum())


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
