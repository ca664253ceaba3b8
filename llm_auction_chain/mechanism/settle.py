"""`settle`: from reports and weights to a reply and its payments. The one entry to the mechanism."""

import secrets
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from llm_auction_chain.errors import ConfigurationError, RewardError
from llm_auction_chain.mechanism.allocation import FloatArray, draw, log_softmax
from llm_auction_chain.mechanism.diagnostics import Diagnostics, diagnose
from llm_auction_chain.mechanism.payments import PAYMENT_RULES, PaymentRule, charge, leave_one_out

__all__ = ["LARGEST_REWARD", "Settlement", "check_payment_rule", "check_tau", "settle"]

LARGEST_REWARD = 1e100  # sums and quotients of such numbers stay within float64
_TAU_RANGE = (1e-100, 1e100)


@dataclass(frozen=True, kw_only=True, eq=False)
class Settlement:
    """What one auction decided, and why. Arrays are read-only; N agents, M candidates; money in the agents' unit.

    Attributes:
        probabilities: (M,), p, the law the reply was drawn from.
        counterfactuals: (N, M), p_-i, the law without agent i (and without its owner's other agents).
        winner: index of the drawn candidate.
        expected_payments: (N,), T_i = tau * KL(p || p_-i), money.
        payments: (N,), charged for this draw, money.
        contributions: (N,), U_i = E_p[r_i] - T_i, money.
        revenue: the sum of `payments`, money.
        diagnostics: how far weights and law are concentrated.
        tau: weight of the reference model, money per nat.
        payment_rule: the rule that `payments` follow.
        seed: gives this draw again; None where an `rng` was handed in.
    """

    probabilities: FloatArray
    counterfactuals: FloatArray
    winner: int
    expected_payments: FloatArray
    payments: FloatArray
    contributions: FloatArray
    revenue: float
    diagnostics: Diagnostics
    tau: float
    payment_rule: PaymentRule
    seed: int | None

    @cached_property
    def influences(self) -> FloatArray:
        """(N,), total variation between p and p_-i: how far each agent moved the draw, 0..1."""
        moved: FloatArray = np.abs(self.counterfactuals - self.probabilities).sum(axis=1) / 2.0
        return np.minimum(moved, 1.0)


def settle(
    rewards: npt.ArrayLike,
    log_weights: npt.ArrayLike | None = None,
    *,
    tau: float,
    payment_rule: PaymentRule = "expected",
    owners: Sequence[Hashable] | None = None,
    rng: np.random.Generator | None = None,
    seed: int | None = None,
) -> Settlement:
    """Draw from `p = softmax(lw + sum_i r_i / tau)` and charge payments with mean `T_i = tau * KL(p || p_-i)`.

    Truth is every agent's best report for every finite set of candidates: a misreport loses exactly
    `tau * KL(p(misreport) || p(truth))`.

    Args:
        rewards: (N, M), reports in money, finite; N may be 0 (shape (0, M)).
        log_weights: (M,), `log pi_ref(y_j) - log pi_gen(y_j)` in nats; None means all 0. `-inf` is never drawn.
        tau: weight of the reference model, money per nat, above 0.
        payment_rule: `expected`, `proportional`, `influence` or `pivot`.
        owners: (N,), who pays for each agent; agents of one owner are summed into one report, and the owner's payment
            is shared in proportion to what each would pay alone. None: every agent pays for itself.
        rng: the source of the draw; excludes `seed`.
        seed: replays a draw. With neither, a fresh seed is taken and kept in the result.

    Raises:
        ConfigurationError: tau, payment rule, owners, rng or seed that no auction can run with.
        RewardError: rewards or log-weights of wrong shape, not finite, or negative under `proportional`.

    Source: arXiv 2405.05905, sections 4 and 5; `pivot` is the Gumbel form of the same law.

    >>> outcome = settle([[0.0, 2.0]], tau=1.0, seed=7)
    >>> outcome.probabilities.round(3).tolist(), outcome.expected_payments.round(3).tolist()
    ([0.119, 0.881], [0.328])
    """
    tau = check_tau(tau)
    rule = check_payment_rule(payment_rule)
    reports, weights = _check_matrix(rewards, log_weights)
    n, m = reports.shape
    groups = _group(owners, n)
    rng, seed = _generator(rng, seed)

    support = np.flatnonzero(weights > -np.inf)
    whole = len(support) == m
    reports_in = reports if whole else reports[:, support]
    lw = weights if whole else weights[support]
    paying = reports_in if groups is None else _sum_by(groups, reports_in)

    scores = lw + _total(reports_in) / tau
    log_p = log_softmax(scores)
    p = np.exp(log_p)
    laws, expected, contributions = leave_one_out(paying, lw, tau, log_p)
    winner, noise = draw(scores, rng)
    paid = charge(
        rule,
        paying,
        scores=scores,
        noise=noise,
        winner=winner,
        tau=tau,
        p=p,
        expected=expected,
        contributions=contributions,
    )
    if groups is not None:
        shares = _shares(groups, leave_one_out(reports_in, lw, tau, log_p)[1])
        laws = laws[groups]
        expected, paid = expected[groups] * shares, paid[groups] * shares
        contributions = reports_in @ p - expected
    if not whole:
        p, laws = _scatter(p, support, m), _scatter(laws, support, m)
    for array in (p, laws, expected, paid, contributions):
        array.setflags(write=False)
    return Settlement(
        probabilities=p,
        counterfactuals=laws,
        winner=int(support[winner]),
        expected_payments=expected,
        payments=paid,
        contributions=contributions,
        revenue=float(paid.sum()),
        diagnostics=diagnose(weights, p),
        tau=tau,
        payment_rule=rule,
        seed=seed,
    )


def check_tau(tau: float) -> float:
    """Return tau as a float, or raise `ConfigurationError`."""
    try:
        value = float(tau)
    except (TypeError, ValueError):
        value = float("nan")
    if isinstance(tau, bool | str) or not _TAU_RANGE[0] <= value <= _TAU_RANGE[1]:
        raise ConfigurationError(
            f"tau is {tau!r}; it must be a finite number above 0 (within 1e-100..1e100). "
            "Small tau: the agents decide; large tau: the reference model does."
        )
    return value


def check_payment_rule(rule: str) -> PaymentRule:
    """Return the payment rule, or raise `ConfigurationError`."""
    for known in PAYMENT_RULES:
        if rule == known:
            return known
    raise ConfigurationError(f"payment_rule is {rule!r}; choose one of {', '.join(map(repr, PAYMENT_RULES))}.")


def _check_matrix(rewards: npt.ArrayLike, log_weights: npt.ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    no_matrix = "rewards must be a matrix of numbers, one row per agent, one column per candidate."
    try:
        given = np.asarray(rewards)
        nonsense = given.dtype.kind in "bSUc" or (given.dtype == object and _has_nonsense(given))
        reports = np.empty((0, 1)) if nonsense else np.ascontiguousarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RewardError(no_matrix) from error
    if nonsense:
        raise RewardError(no_matrix)
    if reports.ndim != 2:  # noqa: PLR2004
        raise RewardError(
            f"rewards have shape {reports.shape}; they must have shape (agents, candidates). "
            "Without agents pass an array of shape (0, candidates)."
        )
    _n, m = reports.shape
    if m == 0:
        raise RewardError("There are no candidates to draw from; rewards need at least one column.")
    _check_finite(reports)
    weights = np.zeros(m) if log_weights is None else _check_weights(log_weights, m)
    return reports, weights


def _has_nonsense(values: npt.NDArray[np.object_]) -> bool:
    return any(value is None or isinstance(value, bool | str | bytes) for value in values.flat)


def _check_finite(reports: FloatArray) -> None:
    if np.vdot(reports, reports) <= LARGEST_REWARD**2:  # one pass; false for nan
        return
    refused = np.argwhere(~(np.abs(reports) <= LARGEST_REWARD))
    if not len(refused):
        return
    i, j = refused[0]
    raise RewardError(
        f"Agent {i} reported {reports[i, j]} for candidate {j}; rewards must be finite and at most 1e100 in size."
    )


def _check_weights(log_weights: npt.ArrayLike, m: int) -> FloatArray:
    try:
        weights = np.asarray(log_weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RewardError("log_weights must be numbers, one per candidate.") from error
    if weights.shape != (m,):
        raise RewardError(f"log_weights have shape {weights.shape}; with {m} candidates they must have shape ({m},).")
    if np.isnan(weights).any() or weights.max() > LARGEST_REWARD:
        raise RewardError("log_weights must be numbers or -inf; one is nan, +inf or beyond 1e100.")
    if weights.max() < -LARGEST_REWARD:
        raise RewardError("Every log_weight is -inf: no candidate can be drawn.")
    return np.where(weights < -LARGEST_REWARD, -np.inf, weights)


def _group(owners: Sequence[Hashable] | None, n: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]] | None":
    if owners is None:
        return None
    if len(owners) != n:
        raise ConfigurationError(f"owners has {len(owners)} entries for {n} agents; give one owner per agent.")
    index: dict[Hashable, int] = {}
    groups = np.array([index.setdefault(owner, len(index)) for owner in owners], dtype=np.int64)
    return None if len(index) == n else groups


def _generator(rng: np.random.Generator | None, seed: int | None) -> tuple[np.random.Generator, int | None]:
    if rng is not None:
        if seed is not None:
            raise ConfigurationError("Give rng or seed, not both.")
        return rng, None
    if seed is None:
        seed = secrets.randbits(53)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigurationError(f"seed is {seed!r}; it must be a whole number of at least 0.")
    return np.random.default_rng(int(seed)), int(seed)


def _sum_by(groups: npt.NDArray[np.int64], reports: FloatArray) -> FloatArray:
    totals = np.zeros((int(groups.max()) + 1, reports.shape[1]))
    for group, report in zip(groups, reports, strict=True):
        totals[group] += report
    return totals


def _total(reports: FloatArray) -> FloatArray:
    """Return the summed report (M,) up to a constant, without the digits that large constants would cost."""
    total = np.ones(len(reports)) @ reports
    if np.abs(reports[:, 0]).sum() > 32.0 * np.ptp(total):
        total = (reports - reports[:, :1]).sum(axis=0)
    return np.asarray(total)


def _shares(groups: npt.NDArray[np.int64], alone: FloatArray) -> FloatArray:
    totals = np.bincount(groups, weights=alone)[groups]
    equal = 1.0 / np.bincount(groups)[groups]
    return np.asarray(np.divide(alone, totals, out=equal, where=totals > 0))


def _scatter(values: FloatArray, support: npt.NDArray[np.int64], m: int) -> FloatArray:
    full = np.zeros((*values.shape[:-1], m))
    full[..., support] = values
    return full
