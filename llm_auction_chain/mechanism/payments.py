"""Contributions, expected payments and the four payment rules.

With `G(b) = tau * logsumexp(lw + sum_k b_k / tau)`:

    U_i = G(b) - G(b_-i)                           contribution
    T_i = E_p[r_i] - U_i = tau * KL(p || p_-i)     expected payment, a sum of non-negative terms
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import expm1, factorial, log
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from llm_auction_chain.errors import RewardError
from llm_auction_chain.mechanism.allocation import FloatArray

__all__ = [
    "PAYMENT_RULES",
    "LeaveOneOut",
    "PaymentRule",
    "charge",
    "leave_one_out",
    "most_charged",
    "owner_shares",
    "price_per_click",
    "span_within",
]

PaymentRule = Literal["expected", "proportional", "influence", "pivot"]
PAYMENT_RULES: tuple[PaymentRule, ...] = get_args(PaymentRule)

_NO_CLICK = 1e-6  # with a smaller probability of a click, the payment itself is due
_BLOCK = 48 * 1024  # entries computed at a time, so that they stay in the processor's cache
_OTHERS = 8  # rows whose leave-one-out sums are one product of matrices
_FAINT = 1e-4  # a KL below this share of the sums whose difference it is gets summed from non-negative terms
_WIDE = 2048.0  # dividing a report of more tau out of p would cost the counterfactual too many digits
_DEEP = -707.0  # exponentials of smaller numbers are subnormal and slow; they count as 0
_TINY = 1 / 512  # if no report spans more (in tau), nearly every KL is faint, and a short series replaces exp
_GENTLE = 1 / 16  # if no report spans more (in tau), expm1 keeps more digits than exp
_NEAR = 1 / 32  # exp(-y) - 1 + y comes from its series for |y| up to this, from expm1 beyond
_SERIES = [(-1.0) ** k / factorial(k + 2) for k in range(8)]


@dataclass(frozen=True, kw_only=True, eq=False)
class LeaveOneOut:
    """The auction without each agent, compared with the auction as it is.

    Attributes:
        counterfactuals: (N, M), p_-i.
        expected: (N,), T, money.
        contributions: (N,), U, money.
        pull: (N,), `tau * log(p / p_-i)` at the most likely candidate, money.
        steering: (N,), the largest `|log p_j - log p_-i,j|`, nats.
    """

    counterfactuals: FloatArray
    expected: FloatArray
    contributions: FloatArray
    pull: FloatArray
    steering: FloatArray


def leave_one_out(
    rewards: FloatArray,
    log_weights: FloatArray,
    tau: float,
    log_p: FloatArray,
    bounds: tuple[FloatArray, FloatArray] | None = None,
) -> LeaveOneOut:
    """Return the counterfactual, the expected payment and the contribution of each agent.

    `p_-i` is proportional to `c = p * exp(-r_i / tau)`. One exponential per entry gives the counterfactual, and
    `KL(p || p_-i) = E_p[r_i] / tau + log sum_j c_j` gives the payment. If that difference would lose digits, the KL is
    summed term by term; if no report is large enough for anything else, a series replaces all exponentials. If
    exponentials would overflow, the row comes from sums over the other agents.

    Args:
        rewards: (N, M), finite.
        log_weights: (M,), finite or `-inf`.
        tau: above 0.
        log_p: (M,), the distribution with all agents.
        bounds: the least and the largest reward of each agent, (N,) each, if they are known.
    """
    low, high = bounds or (rewards.min(axis=1), rewards.max(axis=1))
    spread = (high - low) / tau
    full = _Distribution(log_p)
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        if spread.max(initial=0.0) <= _TINY:
            without, kl, gain = np.empty(rewards.shape), np.empty(len(rewards)), np.empty(len(rewards))
            _term_by_term(rewards, tau, full, np.arange(len(rewards)), (without, kl, gain), tiny=True)
        else:
            without, kl, gain, faint = _divide_out(rewards, tau, full, low, high)
            wide = (spread > _WIDE) | ~np.isfinite(gain)
            if (some := faint & ~wide).any():
                _term_by_term(rewards, tau, full, np.flatnonzero(some), (without, kl, gain), tiny=False)
            if wide.any():
                _from_others(rewards, log_weights, tau, full, wide, (without, kl, gain))
    if (idle := spread == 0.0).any():
        kl[idle], without[idle], gain[idle] = 0.0, full.p, 0.0
    at_mode = rewards[:, full.mode]
    furthest = np.maximum((high - at_mode) / tau + gain, (at_mode - low) / tau - gain)
    return LeaveOneOut(
        counterfactuals=without,
        expected=np.minimum(tau * kl, high - low),
        contributions=np.maximum(at_mode - tau * gain, low),
        pull=tau * gain,
        steering=furthest.clip(0.0, spread),
    )


class _Distribution:
    """The distribution with all agents. Sums without the mode keep their digits if p is nearly one candidate."""

    def __init__(self, log_p: FloatArray) -> None:
        self.log_p = log_p
        self.p = np.exp(log_p)
        self.mode = int(np.argmax(log_p))
        self.elsewhere = np.ones(len(log_p))
        self.elsewhere[self.mode] = 0.0
        self.p_elsewhere = self.p * self.elsewhere
        self.rest = self.p_elsewhere.sum()


def _divide_out(
    rewards: FloatArray, tau: float, full: _Distribution, low: FloatArray, high: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """Divide each report out of p.

    Returns:
        Counterfactuals, KL, `gain = log(p / p_-i)` at the mode, and the rows whose KL lost digits. Rows that overflow
        are not finite.
    """
    n, m = rewards.shape
    without, mean, masses, growth = np.empty((n, m)), np.zeros(n), np.zeros(n), np.zeros(n)
    spread = (high - low) / tau
    wide = spread > _WIDE
    gentle, reach = bool(spread.max(initial=0.0) <= _GENTLE), spread[~wide].max(initial=100.0)
    # a constant in a report changes no probability and no payment but costs digits: subtract a large one
    large = np.maximum(np.abs(low), np.abs(high)) > np.minimum(2.0 * (high - low), 100.0 * tau)
    zero = np.where(gentle | large, rewards[:, full.mode], 0.0)
    shifted, deep = bool(zero.any()), bool(full.log_p.min() - reach < _DEEP)
    for rows in _blocks(0 if wide.all() else n, m):
        block = rewards[rows] - zero[rows, None] if shifted else rewards[rows]
        c = np.multiply(block, -1.0 / tau, out=without[rows])
        mean[rows] = _dot(c, full.p_elsewhere)
        if gentle:
            np.expm1(c, out=c)
            growth[rows] = _dot(c, full.p_elsewhere)
            c += 1.0
            c *= full.p
        else:
            c += full.log_p
            _exp(c, deep=deep)
        masses[rows] = _dot(c, full.elsewhere)
        c *= (1.0 / (masses[rows] + c[:, full.mode]))[:, None]
    at_mode = (rewards[:, full.mode] - zero) / tau
    if not gentle:  # E_p[exp((r_mode - r) / tau)] - 1
        growth = masses * np.exp(at_mode) - full.rest
    gain = np.log1p(growth)
    if (far := ~(growth > -0.5)).any():  # noqa: PLR2004 - log sum_j c_j with the report set to 0 at the mode
        gain[far] = (np.log(masses + full.p[full.mode] * np.exp(-at_mode)) + at_mode)[far]
    kl = gain - (mean + at_mode * full.rest)
    rounding = spread if gentle else 1.0 + spread - np.log(full.rest)  # of a term of either sum
    return without, kl, gain, kl < _FAINT * full.rest * rounding


def _term_by_term(
    rewards: FloatArray,
    tau: float,
    full: _Distribution,
    chosen: npt.NDArray[np.intp],
    out: tuple[FloatArray, FloatArray, FloatArray],
    *,
    tiny: bool,
) -> None:
    """Overwrite KL and gain of the chosen rows: `KL = log1p(E_p[exp(-y) - 1 + y])` for `y = (r_i - E_p[r_i]) / tau`.

    With `tiny` no y is beyond `_TINY`, and the same terms give the counterfactuals.
    """
    without, kl, gain = out
    for rows in _blocks(len(chosen), rewards.shape[1]):
        few = chosen[rows]
        y = rewards[few]
        y -= rewards[few, full.mode, None]
        y *= 1.0 / tau
        drift = _dot(y, full.p)
        y -= drift[:, None]
        if tiny:
            terms = _terms(y, _TINY)
            excess = _dot(terms, full.p)
            terms -= y  # exp(-y) - 1
            terms += 1.0
            terms *= full.p
            np.multiply(terms, (1.0 / (1.0 + excess))[:, None], out=without[rows])  # all are chosen
        else:
            excess = _excess(full.p, y, without[few] * np.exp(kl[few, None]) if y.min() < -1.0 else None)
        kl[few] = np.log1p(excess)
        gain[few] = kl[few] - drift


def _rows(m: int) -> int:
    return max(1, _BLOCK // m)


def _blocks(n: int, m: int) -> Iterator[slice]:
    return (slice(start, start + _rows(m)) for start in range(0, n, _rows(m)))


def _dot(matrix: FloatArray, column: FloatArray) -> FloatArray:
    """Return `matrix @ column`, row by row: BLAS would wait for a second thread, which costs more than it saves."""
    return np.asarray(np.matmul(matrix[:, None, :], column)[:, 0])


def _exp(values: FloatArray, *, deep: bool) -> None:
    """Replace values by their exponentials. With `deep`, values may be below -707; their exponentials become 0."""
    if deep:
        np.maximum(values, _DEEP, out=values)
    np.exp(values, out=values)
    if deep:
        values -= np.exp(_DEEP)


def _from_others(
    rewards: FloatArray,
    log_weights: FloatArray,
    tau: float,
    full: _Distribution,
    chosen: npt.NDArray[np.bool_],
    out: tuple[FloatArray, FloatArray, FloatArray],
) -> None:
    """Overwrite the chosen rows of counterfactuals, KL and gain, from sums over the other agents in log space."""
    without, kl, gain = out
    (n, m), mode, support = rewards.shape, full.mode, np.flatnonzero(full.p)
    elsewhere, apart = (full.p == 0.0).astype(np.float64), np.empty(n)
    height = min(max(1, _rows(m) // _OTHERS), -(-n // _OTHERS))  # of a block, in groups of rows
    parts = [slice(start, min(n, start + height * _OTHERS)) for start in range(0, n, height * _OTHERS)]
    centred, block = np.zeros((2, height, _OTHERS, m))  # reused by every block

    def centre(rows: slice) -> None:
        """Write the rows, 0 at the mode so that its terms keep their digits, and rows of 0 that fill up the block."""
        lines, count = centred.reshape(-1, m), rows.stop - rows.start
        np.subtract(rewards[rows], rewards[rows, mode, None], out=lines[:count])
        lines[count:] = 0.0

    sums = np.empty((len(parts) * height, m))  # of each group of rows
    for k, rows in enumerate(parts):
        centre(rows)
        centred.sum(axis=1, out=sums[k * height : (k + 1) * height])
    others, before, after = np.empty_like(sums), tau * (log_weights - log_weights[mode]), np.zeros(m)
    for k in range(len(sums)):  # the sums of all groups but each, without a difference that would cost digits
        others[k] = before
        before += sums[k]
    for k in reversed(range(len(sums))):
        others[k] += after
        after += sums[k]
    for k, rows in enumerate(parts):
        some = chosen[rows]
        if not some.any():
            continue
        centre(rows)
        np.matmul(1.0 - np.eye(_OTHERS), centred, out=block)
        block += others[k * height : (k + 1) * height, None]
        c = block.reshape(-1, m)[: len(some)]
        top = c.max(axis=1)
        c -= top[:, None]
        c *= 1.0 / tau
        _exp(c, deep=True)
        apart[rows] = _dot(c, elsewhere)
        total = apart[rows] + c[:, support].sum(axis=1)
        apart[rows] /= total
        np.multiply(c, (1.0 / total)[:, None], out=without[rows], where=True if some.all() else some[:, None])
        np.copyto(gain[rows], full.log_p[mode] + top / tau + np.log(total), where=some)
    wide = np.flatnonzero(chosen)
    for rows in _blocks(len(wide), len(support)):
        few = wide[rows]
        y = rewards[few[:, None], support]
        y -= rewards[few, mode, None]
        y /= tau
        y += gain[few, None]
        kl[few] = _excess(full.p[support], y, without[few[:, None], support]) + apart[few]


def _terms(y: FloatArray, reach: float) -> FloatArray:
    """Return `exp(-y) - 1 + y`, without cancellation, for y from -reach to reach."""
    x = y if reach <= _NEAR else np.clip(y, -_NEAR, _NEAR)
    needed = [term for k, term in enumerate(_SERIES) if k == 0 or abs(term) * min(reach, _NEAR) ** k > 1e-17]  # noqa: PLR2004
    terms: FloatArray = needed.pop() * x
    for term in reversed(needed):
        terms += term
        terms *= x
    terms *= x
    if reach > _NEAR:
        clipped = np.maximum(y, -1.0)
        np.copyto(terms, clipped + np.expm1(-clipped), where=np.abs(y) > _NEAR)
    return terms


def _excess(p: FloatArray, y: FloatArray, grown: FloatArray | None) -> FloatArray:
    """Return `sum_j p_j * (exp(-y_j) - 1 + y_j)`, a sum of non-negative terms, along the last axis.

    With `y = log p - log q` this is `KL(p || q)`; with `y = x - E_p[x]` it is `E_p[exp(-y)] - 1`.
    `grown` is `p * exp(-y)` from another source: it is right even where p underflows. It is used only where y < -1,
    since the difference would cancel nearer to 0. It may be None if y is at least -1 everywhere.
    """
    terms = _terms(y, max(-y.min(), y.max()))
    if grown is None:
        return _dot(terms, p)
    return np.asarray(np.where(y < -1.0, grown - p * (1.0 - y), p * terms).sum(axis=-1))


def charge(
    rule: PaymentRule,
    rewards: FloatArray,
    *,
    p: FloatArray,
    scores: FloatArray,
    noise: FloatArray,
    winner: int,
    tau: float,
    mode: int,
    without: LeaveOneOut,
) -> FloatArray:
    """Return what each agent is charged for this draw. Its expected value over draws is T under every rule.

    Args:
        rule: one of `PAYMENT_RULES`.
        rewards: (N, M), finite. A constant in a report matters under `proportional` alone.
        p: (M,), the distribution with all agents.
        scores: (M,), `lw + sum_i r_i / tau`.
        noise: (M,), the Gumbel noise of the draw.
        winner: index of the winner.
        tau: above 0.
        mode: index of the most likely candidate.
        without: the auction without each agent.

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
                "Rewards must be at least 0 under payment_rule='proportional', and a report is negative. "
                "Use 'expected', 'influence' or 'pivot', or add a constant to the report."
            )
        value = _dot(rewards, p)
        share = np.divide(expected, value, out=np.zeros_like(expected), where=value > 0)
        return np.asarray(drawn * np.minimum(share, 1.0))
    if rule == "influence":
        return np.asarray((drawn - rewards[:, mode]) + without.pull)
    paid = np.empty(len(rewards))
    gap = tau * ((scores - scores[winner]) + (noise - noise[winner]))
    for rows in _blocks(*rewards.shape):
        # what the others lose by this winner: max_j (z_j - r_ij) - (z_j* - r_ij*)
        lost = drawn[rows, None] - rewards[rows]
        lost += gap
        paid[rows] = lost.max(axis=1)
    return np.clip(paid, 0.0, drawn - rewards.min(axis=1))


def span_within(low: float, high: float, rule: PaymentRule, *, pays: bool = True) -> float:
    """Return the most that an agent's report from `low` to `high` spans, money.

    `proportional` refuses negative reports of agents that pay.

    >>> span_within(-1.0, 2.0, "expected"), span_within(-1.0, 2.0, "proportional")
    (3.0, 2.0)
    """
    low = max(low, 0.0) if pays and rule == "proportional" else low
    return max(high - low, 0.0)


def most_charged(rule: PaymentRule, span: float, tau: float) -> float:
    """Return the most that a rule charges an owner whose reports span at most this much, money: a tight bound.

    With `a = span / tau` and `u = a / (1 - exp(-a))` it is `tau * (u - 1 - log u)` under `expected`, which is at most
    `span**2 / (8 * tau)`, and `tau * (a - 1 + exp(-a))` under `proportional`. Under `influence` and `pivot` it is the
    span.

    Args:
        rule: one of `PAYMENT_RULES`.
        span: `max_j r_ij - min_j r_ij` of the sum of the owner's reports, money, at least 0.
        tau: above 0.

    >>> [round(most_charged(rule, 2.0, 1.0), 4) for rule in PAYMENT_RULES]
    [0.4745, 1.1353, 2.0, 2.0]
    """
    a = span / tau
    if rule in ("influence", "pivot") or a > _WIDE:
        return span
    if rule == "proportional":
        return min(span, tau * (a + expm1(-a) if a > _NEAR else a * a / 2.0))
    u = -a / expm1(-a) if a > _NEAR else 1.0
    return min(span, tau * (u - 1.0 - log(u) if a > _NEAR else a * a / 8.0))


def owner_shares(groups: npt.NDArray[np.int64], spans: FloatArray) -> FloatArray:
    """Return each agent's share of its owner's payment: proportional to the span of its report, for display.

    Args:
        groups: (N,), the number of each agent's owner, from 0.
        spans: (N,), `max_j r_ij - min_j r_ij`, money. Where those of an owner are all 0, the shares are equal.

    >>> owner_shares(np.array([0, 0, 1, 1]), np.array([1.0, 3.0, 0.0, 0.0])).tolist()
    [0.25, 0.75, 0.5, 0.5]
    """
    totals = np.bincount(groups, weights=spans)[groups]
    return np.asarray(np.divide(spans, totals, out=1.0 / np.bincount(groups)[groups], where=totals > 0.0))


def price_per_click(
    rule: PaymentRule, *, expected: float, paid: float, probabilities: FloatArray, clicks: npt.ArrayLike, winner: int
) -> float | None:
    """Return the charge for a click, which replaces the payment. Its expected value over clicks is the payment.

    Under `expected` and `proportional` it is `T_i / E_p[click-through]`. Under `pivot` and `influence` it is the
    payment divided by the click-through of the winner. It is None where that chance is below a millionth: then the
    payment itself is due.

    Args:
        rule: one of `PAYMENT_RULES`.
        expected: T_i, money.
        paid: the payment for this draw, money.
        probabilities: (M,), p.
        clicks: (M,), predicted probability of a click on each candidate.
        winner: index of the winner.

    >>> price_per_click("expected", expected=1.0, paid=1.0, probabilities=np.ones(1), clicks=[0.5], winner=0)
    2.0
    """
    chances = np.asarray(clicks, dtype=np.float64)
    on_average = rule in ("expected", "proportional")
    amount, chance = (expected, float(probabilities @ chances)) if on_average else (paid, float(chances[winner]))
    return amount / chance if chance > _NO_CLICK else None
