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

_BLOCK = 48 * 1024  # entries worked on at once, so that they stay in the processor's cache
_OTHERS = 32  # rows whose leave-one-out sums are one product of matrices
_FAINT = 1e-4  # a KL below this share of the sums it is the difference of is summed from non-negative terms instead
_WIDE = 250.0  # above this reward (in tau) exponentials may overflow, or p may have underflowed where q did not


def leave_one_out(
    rewards: FloatArray, log_weights: FloatArray, tau: float, log_p: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the laws without each agent, and each agent's expected payment and contribution.

    `p_-i` is proportional to `c = p * exp(-r_i / tau)`, so one exponential per entry gives the law, and with
    `KL(p || p_-i) = E_p[r_i] / tau + log sum_j c_j` the payment. Where that difference would lose digits, and where
    exponentials would overflow, a row is computed from sums that never contained the agent instead, its KL term by
    term.

    Args:
        rewards: (N, M), finite.
        log_weights: (M,), finite.
        tau: above 0.
        log_p: (M,), the law with everybody.

    Returns:
        Counterfactual laws (N, M); expected payments T (N,) in money; contributions U (N,) in money.
    """
    n, m = rewards.shape
    laws, mean, masses = np.empty((n, m)), np.empty(n), np.empty(n)
    low, high = rewards.min(axis=1), rewards.max(axis=1)
    # a constant in a report changes no law and no payment, but costs digits: a large one is taken out
    constant = np.where(np.maximum(np.abs(low), np.abs(high)) > 2.0 * (high - low), low, 0.0)
    shifted = bool(constant.any())
    p = np.exp(log_p)
    mode = int(np.argmax(p))
    elsewhere = np.ones(m)  # sums over all candidates but the mode keep their digits where p is nearly one candidate
    elsewhere[mode] = 0.0
    p_elsewhere = p * elsewhere
    rest = p_elsewhere.sum()
    at_mode = (rewards[:, mode] - constant) / tau
    size = max(1, min(n, _BLOCK // m))
    buffer = np.empty((size, m))  # reused by every block
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        for start in range(0, n, size):
            block = rewards[start : start + size]
            rows = slice(start, start + len(block))
            if shifted:
                block = block - constant[rows, None]
            a = np.multiply(block, -1.0 / tau, out=buffer[: len(block)])
            np.matmul(a, p_elsewhere, out=mean[rows])
            a += log_p
            np.exp(a, out=a)
            mass = np.matmul(a, elsewhere, out=masses[rows])
            np.multiply(a, (1.0 / (mass + a[:, mode]))[:, None], out=laws[rows])
        growth = masses * np.exp(at_mode) - rest  # E_p[exp((r_mode - r) / tau)] - 1
        # log sum_j c_j with the report set to 0 at the mode
        gain = np.where(growth > -0.5, np.log1p(growth), np.log(masses + p[mode] * np.exp(-at_mode)) + at_mode)  # noqa: PLR2004
        kl = gain - (mean + at_mode * rest)
        spread = high / tau - low / tau
        reach = np.maximum(np.abs(high - constant), np.abs(low - constant)) / tau
        near = reach <= _WIDE
        faint = np.flatnonzero(near & ~(kl > _FAINT * rest * (1.0 + spread)))
    for start in range(0, len(faint), size):
        few = faint[start : start + size]
        own = (rewards[few] - rewards[few, mode, None]) / tau
        gain[few] = np.log1p(np.expm1(-own) @ p)
        kl[few] = _divergence(p, own + gain[few, None], laws[few])
    utility = constant + tau * (at_mode - gain)
    _from_others(rewards, log_weights, tau, log_p, ~near, (laws, kl, utility))
    idle = spread == 0.0
    kl[idle], laws[idle], utility[idle] = 0.0, p, low[idle]
    return laws, np.minimum(tau * kl, high - low), np.maximum(utility, low)


def _from_others(
    rewards: FloatArray,
    log_weights: FloatArray,
    tau: float,
    log_p: FloatArray,
    chosen: "np.ndarray[tuple[int], np.dtype[np.bool_]]",
    out: tuple[FloatArray, FloatArray, FloatArray],
) -> None:
    """Overwrite the rows `chosen` of `out` from sums over the other agents, in log space."""
    if not chosen.any():
        return
    laws, kl, utility = out
    p = np.exp(log_p)
    mode = int(np.argmax(log_p))
    starts = range(0, len(rewards), _OTHERS)
    sums = np.stack([(rewards[k : k + _OTHERS] - rewards[k : k + _OTHERS, mode, None]).sum(axis=0) for k in starts])
    after = np.zeros_like(sums)  # of the blocks after each block
    after[:-1] = np.cumsum(sums[:0:-1], axis=0)[::-1]
    before = np.zeros(rewards.shape[1])
    for k, start in enumerate(starts):
        rows = np.flatnonzero(chosen[start : start + _OTHERS])
        if rows.size:
            block = rewards[start : start + _OTHERS]
            block = block - block[:, mode, None]  # 0 at the mode, so that its terms keep their digits
            own = block[rows] / tau
            others = (1.0 - np.eye(len(block)))[rows] @ block
            log_q = log_softmax(log_weights - log_weights[mode] + (others + (before + after[k])) / tau)
            gain = _log_sum_exp(own + log_q)
            rows += start
            laws[rows] = np.exp(log_q)
            kl[rows] = _divergence(p, own - gain[:, None], laws[rows])
            utility[rows] = rewards[rows, mode] + tau * gain
        before = before + sums[k]


def _log_sum_exp(values: FloatArray) -> FloatArray:
    top = values.max(axis=-1, keepdims=True)
    return np.asarray(top[..., 0] + np.log(np.exp(values - top).sum(axis=-1)))


def _divergence(p: FloatArray, d: FloatArray, q: FloatArray) -> FloatArray:
    """Return `KL(p || q)` for `d = log p - log q`, as a sum of terms `p*d - p + q >= 0` along the last axis.

    The form in q is used only where d < -1: it keeps what p lost to underflow. Nearer to 0 it would cancel, and the
    form in p does not; there, too, a series takes over before `d + expm1(-d)` cancels.
    """
    near, far = np.abs(d) < 1e-2, d < -1.0  # noqa: PLR2004
    x = np.clip(d, -1e-2, 1e-2)
    terms = x * x * (0.5 - x * (1 / 6 - x * (1 / 24 - x * (1 / 120 - x / 720))))
    if not near.all():
        clipped = np.maximum(d, -1.0)
        terms = np.where(near, terms, clipped + np.expm1(-clipped))
    terms *= p
    if far.any():
        terms = np.where(far, q * (1.0 + (d - 1.0) * np.exp(np.minimum(d, 0.0))), terms)
    return np.asarray(terms.sum(axis=-1))


def charge(  # noqa: PLR0913
    rule: PaymentRule,
    rewards: FloatArray,
    *,
    scores: FloatArray,
    noise: FloatArray,
    winner: int,
    tau: float,
    p: FloatArray,
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
        p: (M,), the law of the draw.
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
        expected_reward = rewards @ p
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
