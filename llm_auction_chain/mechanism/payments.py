"""Contributions, expected payments and the four payment rules.

With `G(b) = tau * logsumexp(lw + sum_k b_k / tau)`:

    U_i = G(b) - G(b_-i)                           contribution
    T_i = E_p[r_i] - U_i = tau * KL(p || p_-i)     expected payment, a sum of non-negative terms
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import factorial
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from llm_auction_chain.errors import RewardError
from llm_auction_chain.mechanism.allocation import FloatArray

__all__ = ["PAYMENT_RULES", "LeaveOneOut", "PaymentRule", "charge", "leave_one_out", "owner_shares", "price_per_click"]

PaymentRule = Literal["expected", "proportional", "influence", "pivot"]
PAYMENT_RULES: tuple[PaymentRule, ...] = get_args(PaymentRule)

_NO_CLICK = 1e-9  # a click less likely than this is none
_BLOCK = 24 * 1024  # entries worked on at once, so that they stay in the processor's cache
_OTHERS = 8  # rows whose leave-one-out sums are one product of matrices
_FAINT = 1e-4  # a KL below this share of the sums it is the difference of is summed from non-negative terms instead
_WIDE = 2048.0  # a report of more tau than this, divided out of p, would cost the law without it too many digits
_DEEP = -707.0  # exponentials of less leave the normal numbers, are slow, and count as 0
_GENTLE = 1 / 16  # where no report spans more (in tau), expm1 keeps more digits than exp
_ROUNDING = 1e-14  # share of the spread, and of its square over tau, below which a payment has no digits
_NEAR = 1 / 32  # up to here exp(-y) - 1 + y is computed by its series, beyond from expm1
_SERIES = [(-1.0) ** k / factorial(k + 2) for k in range(8)]


@dataclass(frozen=True, kw_only=True, eq=False)
class LeaveOneOut:
    """What would have happened without each agent.

    Attributes:
        laws: (N, M), p_-i.
        expected: (N,), T, money.
        contributions: (N,), U, money.
        pull: (N,), `tau * log(p / p_-i)` at the likeliest candidate, money.
    """

    laws: FloatArray
    expected: FloatArray
    contributions: FloatArray
    pull: FloatArray


def leave_one_out(rewards: FloatArray, log_weights: FloatArray, tau: float, log_p: FloatArray) -> LeaveOneOut:
    """Return the laws without each agent, and each agent's expected payment and contribution.

    `p_-i` is proportional to `c = p * exp(-r_i / tau)`, so one exponential per entry gives the law, and with
    `KL(p || p_-i) = E_p[r_i] / tau + log sum_j c_j` the payment. Where that difference would lose digits the KL is
    summed term by term, and where exponentials would overflow a row comes from sums that never contained the agent.

    Args:
        rewards: (N, M), finite.
        log_weights: (M,), finite or `-inf`.
        tau: above 0.
        log_p: (M,), the law with everybody.
    """
    low, high = rewards.min(axis=1), rewards.max(axis=1)
    spread = (high - low) / tau
    law = _Law(log_p)
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        laws, kl, gain, faint = _divide_out(rewards, tau, law, low, high)
        wide = (spread > _WIDE) | ~np.isfinite(gain)
        _term_by_term(rewards, tau, law, np.flatnonzero(faint & ~wide), (laws, kl, gain))
        if wide.any():
            _from_others(rewards, log_weights, tau, law, wide, (laws, kl, gain))
    idle = spread == 0.0
    kl[idle], laws[idle], gain[idle] = 0.0, law.p, 0.0
    return LeaveOneOut(
        laws=laws,
        expected=np.minimum(tau * kl, high - low),
        contributions=np.maximum(rewards[:, law.mode] - tau * gain, low),
        pull=tau * gain,
    )


class _Law:
    """The law with everybody, and its sums without the mode: they keep digits where p is nearly one candidate."""

    def __init__(self, log_p: FloatArray) -> None:
        self.log_p = log_p
        self.p = np.exp(log_p)
        self.mode = int(np.argmax(log_p))
        self.elsewhere = np.ones(len(log_p))
        self.elsewhere[self.mode] = 0.0
        self.p_elsewhere = self.p * self.elsewhere
        self.rest = self.p_elsewhere.sum()


def _divide_out(
    rewards: FloatArray, tau: float, law: _Law, low: FloatArray, high: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """Return laws, KL, `gain = log(p / p_-i)` at the mode, and where the KL lost digits: each report divided out of p.

    Rows that overflow are not finite.
    """
    n, m = rewards.shape
    laws, mean, masses, growth = np.empty((n, m)), np.empty(n), np.empty(n), np.empty(n)
    spread = (high - low) / tau
    gentle, reach = bool(spread.max(initial=0.0) <= _GENTLE), spread[spread <= _WIDE].max(initial=100.0)
    # a constant in a report changes no law and no payment, but costs digits: a large one is taken out
    large = np.maximum(np.abs(low), np.abs(high)) > np.minimum(2.0 * (high - low), 100.0 * tau)
    zero = np.where(gentle | large, rewards[:, law.mode], 0.0)
    shifted, deep = bool(zero.any()), bool(law.log_p.min() - reach < _DEEP)
    buffer = np.empty((min(n, _rows(m)), m))  # reused by every block
    for rows in _blocks(n, m):
        block = rewards[rows] - zero[rows, None] if shifted else rewards[rows]
        c = np.multiply(block, -1.0 / tau, out=buffer[: len(block)])
        mean[rows] = _dot(c, law.p_elsewhere)
        if gentle:
            np.expm1(c, out=c)
            growth[rows] = _dot(c, law.p_elsewhere)
            c += 1.0
            c *= law.p
        else:
            c += law.log_p
            _exp(c, deep=deep)
        masses[rows] = _dot(c, law.elsewhere)
        np.multiply(c, (1.0 / (masses[rows] + c[:, law.mode]))[:, None], out=laws[rows])
    at_mode = (rewards[:, law.mode] - zero) / tau
    if not gentle:  # E_p[exp((r_mode - r) / tau)] - 1
        growth = masses * np.exp(at_mode) - law.rest
    # log sum_j c_j with the report set to 0 at the mode
    absolute = np.log(masses + law.p[law.mode] * np.exp(-at_mode)) + at_mode
    gain = np.where(growth > -0.5, np.log1p(growth), absolute)  # noqa: PLR2004
    kl = gain - (mean + at_mode * law.rest)
    rounding = spread if gentle else 1.0 + spread - np.log(law.rest)  # of a term of either sum, in its last digits
    return laws, kl, gain, kl < _FAINT * law.rest * rounding


def _term_by_term(
    rewards: FloatArray,
    tau: float,
    law: _Law,
    chosen: npt.NDArray[np.intp],
    out: tuple[FloatArray, FloatArray, FloatArray],
) -> None:
    """Overwrite KL and gain of rows: `KL = log1p(E_p[exp(-y) - 1 + y])` for `y = (r_i - E_p[r_i]) / tau`."""
    laws, kl, gain = out
    for rows in _blocks(len(chosen), rewards.shape[1]):
        few = chosen[rows]
        y = rewards[few]
        y -= rewards[few, law.mode, None]
        y /= tau
        drift = _dot(y, law.p)
        y -= drift[:, None]
        grown = laws[few] * np.exp(kl[few, None]) if y.min() < -1.0 else None
        kl[few] = np.log1p(_excess(law.p, y, grown))
        gain[few] = kl[few] - drift


def _rows(m: int) -> int:
    return max(1, _BLOCK // m)


def _blocks(n: int, m: int) -> Iterator[slice]:
    return (slice(start, start + _rows(m)) for start in range(0, n, _rows(m)))


def _dot(matrix: FloatArray, column: FloatArray) -> FloatArray:
    """Return `matrix @ column`, row by row: BLAS would wait for a second thread, which costs more than it brings."""
    return np.asarray(np.matmul(matrix[:, None, :], column)[:, 0])


def _exp(values: FloatArray, *, deep: bool) -> None:
    """Replace values by their exponentials; `deep` where some may be below -707, whose exponentials are then 0."""
    if deep:
        np.maximum(values, _DEEP, out=values)
    np.exp(values, out=values)
    if deep:
        values -= np.exp(_DEEP)


def _from_others(
    rewards: FloatArray,
    log_weights: FloatArray,
    tau: float,
    law: _Law,
    chosen: npt.NDArray[np.bool_],
    out: tuple[FloatArray, FloatArray, FloatArray],
) -> None:
    """Overwrite the rows `chosen` of laws, KL and gain from sums over the other agents, in log space."""
    laws, kl, gain = out
    mode = law.mode
    weights = log_weights - log_weights[mode]
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
            c = (1.0 - np.eye(len(block)))[rows] @ block
            c += before + after[k]
            c /= tau
            c += weights
            top = c.max(axis=1)
            c -= top[:, None]
            _exp(c, deep=True)
            total = c.sum(axis=1)
            c /= total[:, None]
            d = block[rows] / tau
            rows += start
            laws[rows], gain[rows] = c, law.log_p[mode] + top + np.log(total)
            d += gain[rows, None]
            kl[rows] = _excess(law.p, d, c)
        before = before + sums[k]


def _excess(p: FloatArray, y: FloatArray, grown: FloatArray | None) -> FloatArray:
    """Return `sum_j p_j * (exp(-y_j) - 1 + y_j)`, a sum of non-negative terms, along the last axis.

    With `y = log p - log q` this is `KL(p || q)`; with `y = x - E_p[x]` it is `E_p[exp(-y)] - 1`.
    `grown`, which is `p * exp(-y)` from another source, keeps what p lost to underflow; it is used only where y < -1,
    since nearer to 0 the difference would cancel. None: y is nowhere less than -1.
    """
    reach = max(-y.min(), y.max())
    x = y if reach <= _NEAR else np.clip(y, -_NEAR, _NEAR)
    needed = [term for k, term in enumerate(_SERIES) if k == 0 or abs(term) * min(reach, _NEAR) ** k > 1e-17]  # noqa: PLR2004
    terms = needed.pop() * x
    for term in reversed(needed):
        terms += term
        terms *= x
    terms *= x
    if reach > _NEAR:
        clipped = np.maximum(y, -1.0)
        np.copyto(terms, clipped + np.expm1(-clipped), where=np.abs(y) > _NEAR)
    if grown is None:
        return _dot(terms, p)
    return np.asarray(np.where(y < -1.0, grown - p * (1.0 - y), p * terms).sum(axis=-1))


def charge(
    rule: PaymentRule,
    rewards: FloatArray,
    *,
    scores: FloatArray,
    noise: FloatArray,
    winner: int,
    tau: float,
    mode: int,
    without: LeaveOneOut,
) -> FloatArray:
    """Return what each agent is charged for this draw; over draws every rule has mean T.

    Args:
        rule: one of `PAYMENT_RULES`.
        rewards: (N, M), finite.
        scores: (M,), `lw + sum_i r_i / tau`.
        noise: (M,), the Gumbel noise of the draw.
        winner: the index drawn.
        tau: above 0.
        mode: index of the likeliest candidate.
        without: what would have happened without each agent.

    Raises:
        RewardError: `proportional` with a negative reward.
    """
    expected = without.expected
    if rule == "expected" or not rewards.size:
        return expected.copy()
    drawn = rewards[:, winner]
    if rule == "proportional":
        if (rewards < 0).any():
            raise RewardError(
                "payment_rule='proportional' needs rewards >= 0, and a report is negative. "
                "Use 'expected', 'influence' or 'pivot', or shift the report."
            )
        value = without.contributions + expected  # E_p[r]
        share = np.divide(expected, value, out=np.zeros_like(expected), where=value > 0)
        return np.asarray(drawn * np.minimum(share, 1.0))
    if rule == "influence":
        return np.asarray((drawn - rewards[:, mode]) + without.pull)
    paid = np.empty(len(rewards))
    gap = tau * ((scores - scores[winner]) + (noise - noise[winner]))
    for rows in _blocks(*rewards.shape):
        # what the others lose because the winner is not theirs: max_j (z_j - r_ij) - (z_j* - r_ij*)
        lost = drawn[rows, None] - rewards[rows]
        lost += gap
        paid[rows] = lost.max(axis=1)
    return np.clip(paid, 0.0, drawn - rewards.min(axis=1))


def owner_shares(groups: npt.NDArray[np.int64], alone: FloatArray, spreads: FloatArray, tau: float) -> FloatArray:
    """Return each agent's share of its owner's payment: in proportion to `alone`, equal where that is rounding.

    Args:
        groups: (N,), the owner of each agent, numbered from 0.
        alone: (N,), what each would pay as its own owner, money.
        spreads: (N,), `max_j r_ij - min_j r_ij`, money.
        tau: above 0.

    >>> owner_shares(np.array([0, 0, 1, 1]), np.array([1.0, 3.0, 0.0, 1e-17]), np.ones(4), 1.0).tolist()
    [0.25, 0.75, 0.5, 0.5]
    """
    rounding = _ROUNDING * spreads * np.minimum(1.0, spreads / tau)
    totals, noise = (np.bincount(groups, weights=each)[groups] for each in (alone, rounding))
    equal = 1.0 / np.bincount(groups)[groups]
    return np.asarray(np.divide(alone, totals, out=equal, where=totals > noise))


def price_per_click(
    rule: PaymentRule, *, expected: float, paid: float, probabilities: FloatArray, clicks: npt.ArrayLike, winner: int
) -> float | None:
    """Return what is charged when the user clicks, in place of the payment: on average over clicks it is the payment.

    Under `expected` and `proportional` it is `T_i / E_p[click-through]`, under `pivot` and `influence` the payment over
    the drawn reply's click-through. None where no click is expected.

    Args:
        rule: one of `PAYMENT_RULES`.
        expected: T_i, money.
        paid: the payment for this draw, money.
        probabilities: (M,), p.
        clicks: (M,), the predicted probability of a click on every candidate.
        winner: the index drawn.

    >>> price_per_click("expected", expected=1.0, paid=1.0, probabilities=np.ones(1), clicks=[0.5], winner=0)
    2.0
    """
    chances = np.asarray(clicks, dtype=np.float64)
    on_average = rule in ("expected", "proportional")
    amount, chance = (expected, float(probabilities @ chances)) if on_average else (paid, float(chances[winner]))
    return amount / chance if chance > _NO_CLICK else None
