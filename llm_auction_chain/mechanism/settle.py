"""`settle`: from reports and weights to a reply and its payments. The one entry to the mechanism."""

import math
import secrets
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from numbers import Real

import numpy as np
import numpy.typing as npt

from llm_auction_chain.errors import ConfigurationError, RewardError
from llm_auction_chain.mechanism.allocation import FloatArray, draw, log_softmax
from llm_auction_chain.mechanism.diagnostics import Diagnostics, diagnose
from llm_auction_chain.mechanism.payments import PAYMENT_RULES, PaymentRule, charge, leave_one_out, owner_shares

__all__ = ["LARGEST_REWARD", "Settlement", "check_payment_rule", "check_tau", "settle"]

LARGEST_REWARD = 1e100  # sums and quotients of such numbers stay within float64
_TAU_RANGE = (1e-100, 1e100)
_MOST_DRAWS = 2**31


@dataclass(frozen=True, kw_only=True, eq=False)
class Settlement:
    """What one auction decided, and why. Arrays are read-only; N agents, M candidates; money in the agents' unit.

    Attributes:
        probabilities: (M,), p, the law the reply was drawn from.
        log_probabilities: (M,), log p, nats; finite where p underflows to 0, `-inf` for what is never drawn.
        counterfactuals: (N, M), p_-i, the law without agent i (and without its owner's other agents).
        winner: index of the drawn candidate.
        noise: (M,), the Gumbel noise of the draw.
        expected_payments: (N,), T_i = tau * KL(p || p_-i), money; 0 for an agent that never pays.
        payments: (N,), charged for this draw, money.
        contributions: (N,), U_i = G(b) - G(b_-i), what each adds to welfare, money; for one that pays, also what it
            gains: E_p[r_i] - T_i.
        revenue: the sum of `payments`, money.
        diagnostics: how far weights and law are concentrated.
        tau: weight of the reference model, money per nat.
        payment_rule: the rule that `payments` follow.
        seed: gives this draw again; None where an `rng` was handed in.
    """

    probabilities: FloatArray
    log_probabilities: FloatArray
    counterfactuals: FloatArray
    winner: int
    noise: FloatArray
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

    @cached_property
    def winners_without(self) -> npt.NDArray[np.int64]:
        """(N,), the candidate that the same noise draws from p_-i: the reply as it would be without each agent."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.argmax(np.log(self.counterfactuals) + self.noise, axis=1), dtype=np.int64)


def settle(
    rewards: npt.ArrayLike,
    log_weights: npt.ArrayLike | None = None,
    *,
    tau: float,
    payment_rule: PaymentRule = "expected",
    owners: Sequence[Hashable] | None = None,
    pays: Sequence[bool] | None = None,
    draws: npt.ArrayLike | None = None,
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
            is shared in proportion to what each would pay alone, equally where that is no more than rounding. None:
            every agent pays for itself.
        pays: (N,), False for a player whose welfare counts and who is never charged: the user, the platform. What the
            others pay stays the Clarke payment against that welfare. Agents of one owner all pay, or none does.
        draws: (M,), how many equal draws each candidate stands for, its log-weight being theirs by log-add-exp. None:
            one each. Only the diagnostics, which speak of draws, depend on it.
        rng: the source of the draw; excludes `seed`.
        seed: replays a draw. With neither, a fresh seed is taken and kept in the result.

    Raises:
        ConfigurationError: tau, payment rule, owners, pays, draws, rng or seed that no auction can run with.
        RewardError: rewards or log-weights of wrong shape, not finite, or, where the agent pays, negative under
            `proportional`.

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
    free = _check_pays(pays, groups, n)
    counts = _check_draws(draws, m)
    rng, seed = _generator(rng, seed)

    dead = np.isneginf(weights)
    if dead.any():  # what is never drawn copies what can be: its rewards count for nothing
        reports = reports.take(np.where(dead, np.argmin(dead), np.arange(m)), axis=1)
    paying = reports if groups is None else _sum_by(groups, reports)
    total, constant = _total(reports, weights, tau)
    scores = weights + total / tau
    log_p = log_softmax(scores)
    p = np.exp(log_p)
    without = leave_one_out(paying, weights, tau, log_p)
    winner, noise = draw(scores, rng)
    mode = int(np.argmax(log_p))
    charged = paying if free is None else _chargeable(paying, free, groups)
    paid = charge(rule, charged, scores=scores, noise=noise, winner=winner, tau=tau, mode=mode, without=without)
    laws, expected, contributions = without.laws, without.expected, without.contributions
    if groups is not None:
        alone = leave_one_out(reports, weights, tau, log_p).expected
        shares = owner_shares(groups, alone, np.ptp(reports, axis=1), tau)
        laws = laws[groups]
        expected, paid = expected[groups] * shares, paid[groups] * shares
        contributions = np.einsum("ij,j->i", reports, p) - expected
    if free is not None:
        expected, paid = np.where(free, 0.0, expected), np.where(free, 0.0, paid)
    for array in (p, log_p, laws, noise, expected, paid, contributions):
        array.setflags(write=False)
    return Settlement(
        probabilities=p,
        log_probabilities=log_p,
        counterfactuals=laws,
        winner=winner,
        noise=noise,
        expected_payments=expected,
        payments=paid,
        contributions=contributions,
        revenue=float(paid.sum()),
        diagnostics=diagnose(weights, p, scores, counts, tau=tau, constant=constant),
        tau=tau,
        payment_rule=rule,
        seed=seed,
    )


def check_tau(tau: float) -> float:
    """Return tau as a float, or raise `ConfigurationError`."""
    try:
        number = _numbers(tau)
        value = math.nan if number.ndim else number.item()
    except (TypeError, ValueError):
        value = math.nan
    except OverflowError:
        value = tau = math.inf
    if not _TAU_RANGE[0] <= value <= _TAU_RANGE[1]:
        raise ConfigurationError(
            f"tau is {tau!r}; it must be a finite number above 0 (within 1e-100..1e100). "
            "Small tau: the agents decide; large tau: the reference model does."
        )
    return value


def check_payment_rule(rule: str) -> PaymentRule:
    """Return the payment rule, or raise `ConfigurationError`."""
    if isinstance(rule, str):
        for known in PAYMENT_RULES:
            if rule == known:
                return known
    raise ConfigurationError(f"payment_rule is {rule!r}; choose one of {', '.join(map(repr, PAYMENT_RULES))}.")


def _check_matrix(rewards: npt.ArrayLike, log_weights: npt.ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    try:
        reports = _numbers(rewards)
    except (TypeError, ValueError, OverflowError) as error:
        raise RewardError(
            "rewards must be a matrix of numbers of at most 1e100 in size, one row per agent, one column per candidate."
        ) from error
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


def _numbers(values: npt.ArrayLike) -> FloatArray:
    """Return values as float64, or raise: NumPy would take flags, texts and dates for numbers, too."""
    given = np.asarray(values) if hasattr(values, "__array__") else np.asarray(values, dtype=object)
    if given.dtype == object:
        for kind in set(map(type, given.flat)):
            if not issubclass(kind, Real | Decimal) or issubclass(kind, bool | np.timedelta64):
                raise TypeError(f"{kind.__name__} is not a number")
    elif given.dtype.kind not in "iuf":
        raise TypeError(f"{given.dtype} is not a type of numbers")
    return np.asarray(given, dtype=np.float64, order="C")


def _check_finite(reports: FloatArray) -> None:
    if reports.min(initial=0.0) >= -LARGEST_REWARD and reports.max(initial=0.0) <= LARGEST_REWARD:  # false for nan
        return
    refused = np.argwhere(~(np.abs(reports) <= LARGEST_REWARD))
    i, j = refused[0]
    raise RewardError(
        f"Agent {i} reported {reports[i, j]} for candidate {j}; rewards must be finite and at most 1e100 in size."
    )


def _check_weights(log_weights: npt.ArrayLike, m: int) -> FloatArray:
    try:
        weights = _numbers(log_weights)
    except (TypeError, ValueError, OverflowError) as error:
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
    index: dict[Hashable, int] = {}
    try:
        groups = np.array([index.setdefault(owner, len(index)) for owner in owners], dtype=np.int64)
    except TypeError as error:
        raise ConfigurationError(f"owners is {owners!r}; give a list of names, one per agent.") from error
    if isinstance(owners, str) or len(groups) != n:
        raise ConfigurationError(f"owners has {len(groups)} entries for {n} agents; give one owner per agent.")
    return None if len(index) == n else groups


def _check_pays(
    pays: Sequence[bool] | None, groups: "np.ndarray[tuple[int], np.dtype[np.int64]] | None", n: int
) -> npt.NDArray[np.bool_] | None:
    """Return who never pays, (N,), or None where everybody does."""
    if pays is None:
        return None
    paying = np.asarray(pays)
    if paying.shape != (n,) or (n and paying.dtype != np.bool_):
        raise ConfigurationError(f"pays is {pays!r}; give True or False for each of the {n} agents.")
    if n == 0 or paying.all():
        return None
    if groups is not None and len(set(zip(groups.tolist(), paying.tolist(), strict=True))) > groups.max() + 1:
        raise ConfigurationError("An owner has agents that pay and agents that do not; give the latter another owner.")
    return ~paying


def _chargeable(
    paying: FloatArray, free: npt.NDArray[np.bool_], groups: "np.ndarray[tuple[int], np.dtype[np.int64]] | None"
) -> FloatArray:
    """Return the payers' reports with those that are never charged set to 0."""
    spared = np.zeros(len(paying), dtype=bool)
    spared[np.arange(len(paying)) if groups is None else groups] = free
    return np.where(spared[:, None], 0.0, paying)


def _check_draws(draws: npt.ArrayLike | None, m: int) -> npt.NDArray[np.int64] | None:
    if draws is None:
        return None
    try:
        counts = _numbers(draws)
    except (TypeError, ValueError, OverflowError):
        counts = np.empty(0)
    if counts.shape != (m,) or not np.all((counts >= 1) & (counts <= _MOST_DRAWS) & (counts == np.floor(counts))):
        raise ConfigurationError(f"draws is {draws!r}; with {m} candidates give {m} whole numbers of at least 1.")
    return counts.astype(np.int64)


def _generator(rng: np.random.Generator | None, seed: int | None) -> tuple[np.random.Generator, int | None]:
    if rng is not None:
        if seed is not None:
            raise ConfigurationError("Give rng or seed, not both.")
        if not isinstance(rng, np.random.Generator):
            raise ConfigurationError(f"rng is {rng!r}; give a NumPy Generator, or the number as seed.")
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


def _total(reports: FloatArray, weights: FloatArray, tau: float) -> tuple[FloatArray, float]:
    """Return the summed report (M,) less a constant, and that constant: large ones would cost digits."""
    total, constant = reports.sum(axis=0), 0.0
    if np.abs(reports[:, 0]).sum() > 32.0 * np.ptp(total):
        total, constant = (reports - reports[:, :1]).sum(axis=0), float(reports[:, 0].sum())
    best = total[np.argmax(weights + total / tau)]
    return np.asarray(total - best), float(constant + best)
