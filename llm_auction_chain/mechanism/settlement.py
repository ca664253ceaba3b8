"""`settle` turns reports and weights into a winner and payments. It is the only entry to the mechanism."""

import math
import secrets
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from numbers import Real
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_auction_chain.errors import ConfigurationError, RewardError
from llm_auction_chain.mechanism.allocation import FloatArray, draw, log_softmax
from llm_auction_chain.mechanism.diagnostics import Diagnostics, diagnose
from llm_auction_chain.mechanism.payments import PAYMENT_RULES, PaymentRule, charge, leave_one_out, owner_shares
from llm_auction_chain.validators import refuse

__all__ = ["LARGEST_REWARD", "Settlement", "check_tau", "settle"]

LARGEST_REWARD = 1e100  # sums and quotients of such numbers fit into float64
_TAU_RANGE = (1e-100, 1e100)
_MOST_DRAWS = 2**31


@dataclass(frozen=True, kw_only=True, eq=False)
class Settlement:
    """The result of one auction of N agents over M candidates. Arrays are read-only; money is in the agents' unit.

    Attributes:
        probabilities: (M,), p, the distribution of the reply.
        log_probabilities: (M,), log p, nats; finite even where p underflows to 0, `-inf` for a candidate that is never
            drawn.
        counterfactuals: (N, M), p_-i, the distribution without agent i and the other agents of its owner.
        winner: index of the candidate that was drawn.
        noise: (M,), the Gumbel noise of the draw.
        expected_payments: (N,), T_i = tau * KL(p || p_-i), money; 0 for an agent that never pays.
        payments: (N,), the payments for this draw, money.
        contributions: (N,), U_i = G(b) - G(b_-i), what each agent adds to welfare, money. For an agent that pays it
            is also the expected gain, E_p[r_i] - T_i.
        steering: (N,), the largest |log p_j - log p_-i,j| over the candidates, nats. It is at most s / tau, where s is
            what the reports of the agent's owner span.
        revenue: the sum of `payments`, money.
        diagnostics: how reliable the weights are.
        tau: weight of the reference model, money per nat.
        payment_rule: the rule that `payments` follow.
        seed: the seed that repeats this draw; None if `rng` was passed.
    """

    probabilities: FloatArray
    log_probabilities: FloatArray
    counterfactuals: FloatArray
    winner: int
    noise: FloatArray
    expected_payments: FloatArray
    payments: FloatArray
    contributions: FloatArray
    steering: FloatArray
    revenue: float
    diagnostics: Diagnostics
    tau: float
    payment_rule: PaymentRule
    seed: int | None

    @cached_property
    def influences(self) -> FloatArray:
        """(N,), total variation distance between p and p_-i, 0..1: how much each agent changed the distribution."""
        moved: FloatArray = np.abs(self.counterfactuals - self.probabilities).sum(axis=1) / 2.0
        return np.minimum(moved, 1.0)

    @cached_property
    def winners_without(self) -> npt.NDArray[np.int64]:
        """(N,), the winner without each agent, for the same noise."""
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
    """Draw a winner from `p = softmax(lw + sum_i r_i / tau)` and charge `T_i = tau * KL(p || p_-i)` in expectation.

    The truth is every agent's best report, for every finite set of candidates: a misreport loses exactly
    `tau * KL(p(misreport) || p(truth))`.

    Args:
        rewards: (N, M), reports in money, finite; N may be 0 (shape (0, M)).
        log_weights: (M,), `log pi_ref(y_j) - log pi_gen(y_j)` in nats; None for all 0. A candidate with `-inf` is never
            drawn.
        tau: weight of the reference model, money per nat, above 0.
        payment_rule: `expected`, `proportional`, `influence` or `pivot`.
        owners: (N,), the owner of each agent. The reports of one owner are summed, and the owner pays for the sum. The
            division of its payment among its agents is for display: in proportion to the spans of their reports. None
            if every agent is its own owner.
        pays: (N,), False for an agent that is never charged although its welfare counts, such as the user or the
            platform. The others still pay the Clarke payment for that welfare. Either all agents of an owner pay or
            none does.
        draws: (M,), number of equal draws that each candidate stands for; its log-weight is the log-add-exp of theirs.
            None for one each. Only the diagnostics depend on it.
        rng: the source of randomness; excludes `seed`.
        seed: seed of the draw. Without `rng` and `seed` a fresh seed is used. The result contains the seed.

    Raises:
        ConfigurationError: tau, payment_rule, owners, pays, draws, rng or seed is not valid.
        RewardError: rewards or log-weights have the wrong shape or are not finite, or an agent that pays has a negative
            reward under `proportional`.

    Source: arXiv 2405.05905, sections 4 and 5; `pivot` is the Gumbel form of the same distribution.

    >>> outcome = settle([[0.0, 2.0]], tau=1.0, seed=7)
    >>> outcome.probabilities.round(3).tolist(), outcome.expected_payments.round(3).tolist()
    ([0.119, 0.881], [0.328])
    """
    tau = check_tau(tau)
    if not isinstance(payment_rule, str) or payment_rule not in PAYMENT_RULES:
        raise refuse("payment_rule", " or ".join(map(repr, PAYMENT_RULES)), payment_rule)
    reports, weights, summary = _check_matrix(rewards, log_weights)
    n, m = reports.shape
    groups = _group(owners, n)
    free = _check_pays(pays, groups, n)
    counts = _check_draws(draws, m)
    rng, seed = _generator(rng, seed)

    if weights.min() == -math.inf:
        # rewards for a candidate that is never drawn do not count: copy those of one that can be drawn
        dead = np.isneginf(weights)
        reports = reports.take(np.where(dead, np.argmin(dead), np.arange(m)), axis=1)
        summary = _summarise(reports)
    total, constant = _total(reports, summary.total, weights, tau)
    scores = weights + total / tau
    log_p = log_softmax(scores)
    p, mode = np.exp(log_p), int(np.argmax(log_p))
    # a constant in a report changes no payment but would cost digits of an owner's sum
    paying = reports if groups is None else sum_by(groups, reports - reports[:, mode, None])
    without = leave_one_out(paying, weights, tau, log_p, summary[:2] if groups is None else None)
    winner, noise = draw(scores, rng)
    charged = paying if groups is None or payment_rule != "proportional" else sum_by(groups, reports)
    charged = charged if free is None else _chargeable(charged, free, groups)
    paid = charge(
        payment_rule, charged, p=p, scores=scores, noise=noise, winner=winner, tau=tau, mode=mode, without=without
    )
    counterfactuals, expected, contributions = without.counterfactuals, without.expected, without.contributions
    steering = without.steering
    if groups is not None:
        shares = owner_shares(groups, summary.high - summary.low)
        counterfactuals, steering = counterfactuals[groups], steering[groups]
        expected, paid = expected[groups] * shares, paid[groups] * shares
        contributions = np.einsum("ij,j->i", reports, p) - expected
    if free is not None:
        expected, paid = np.where(free, 0.0, expected), np.where(free, 0.0, paid)
    for array in (p, log_p, counterfactuals, noise, expected, paid, contributions, steering):
        array.setflags(write=False)
    return Settlement(
        probabilities=p,
        log_probabilities=log_p,
        counterfactuals=counterfactuals,
        winner=winner,
        noise=noise,
        expected_payments=expected,
        payments=paid,
        contributions=contributions,
        steering=steering,
        revenue=float(paid.sum()),
        diagnostics=diagnose(weights, p, scores, counts, tau=tau, constant=constant),
        tau=tau,
        payment_rule=payment_rule,
        seed=seed,
    )


def check_tau(tau: float) -> float:
    """Return tau as a float if it is a number above 0.

    Raises:
        ConfigurationError: it is not.
    """
    if type(tau) is float and _TAU_RANGE[0] <= tau <= _TAU_RANGE[1]:
        return tau
    try:
        number = _numbers(tau)
        value = math.nan if number.ndim else number.item()
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not _TAU_RANGE[0] <= value <= _TAU_RANGE[1]:
        hint = "With a small tau the agents decide, with a large tau the reference model."
        raise refuse("tau", "a number above 0, from 1e-100 to 1e100", tau, hint)
    return value


class _Summary(NamedTuple):
    """The least and the largest reward of each report (N,), and the sum of the reports (M,)."""

    low: FloatArray
    high: FloatArray
    total: FloatArray


def _summarise(reports: FloatArray) -> _Summary:
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers that are refused later
        return _Summary(reports.min(axis=1), reports.max(axis=1), reports.sum(axis=0))


def _check_matrix(rewards: npt.ArrayLike, log_weights: npt.ArrayLike | None) -> tuple[FloatArray, FloatArray, _Summary]:
    """Return reports, log-weights and a summary of the reports, in float64."""
    try:
        reports = _numbers(rewards)
    except (TypeError, ValueError, OverflowError) as error:
        raise RewardError(
            "rewards must be a matrix of numbers from -1e100 to 1e100, with a row per agent and a column per candidate."
        ) from error
    if reports.ndim != 2:  # noqa: PLR2004
        raise RewardError(
            f"rewards must have shape (agents, candidates), got {reports.shape}. "
            "Without agents pass an array of shape (0, candidates)."
        )
    _n, m = reports.shape
    if m == 0:
        raise RewardError("rewards must have at least one column: there is no candidate to draw.")
    summary = _summarise(reports)
    _check_finite(reports, summary)
    weights = np.zeros(m) if log_weights is None else _check_weights(log_weights, m)
    return reports, weights, summary


def _numbers(values: npt.ArrayLike) -> FloatArray:
    """Return values as float64, or raise. NumPy alone would accept booleans, texts and dates."""
    array = np.asarray(values) if hasattr(values, "__array__") else np.asarray(values, dtype=object)
    if array.dtype == object:
        for kind in set(map(type, array.flat)):
            if not issubclass(kind, Real | Decimal) or issubclass(kind, bool | np.timedelta64):
                raise TypeError(f"{kind.__name__} is not a number")
    elif array.dtype.kind not in "iuf":
        raise TypeError(f"{array.dtype} is not a type of numbers")
    return np.asarray(array, dtype=np.float64, order="C")


def _check_finite(reports: FloatArray, summary: _Summary) -> None:
    least, largest = summary.low.min(initial=0.0), summary.high.max(initial=0.0)
    if least >= -LARGEST_REWARD and largest <= LARGEST_REWARD:  # false for nan
        return
    i, j = np.argwhere(~(np.abs(reports) <= LARGEST_REWARD))[0]
    raise RewardError(
        f"rewards must be numbers from -1e100 to 1e100, got {reports[i, j]} of agent {i} for candidate {j}."
    )


def _check_weights(log_weights: npt.ArrayLike, m: int) -> FloatArray:
    try:
        weights = _numbers(log_weights)
    except (TypeError, ValueError, OverflowError) as error:
        raise RewardError("log_weights must be a list of numbers, one per candidate.") from error
    if weights.shape != (m,):
        raise RewardError(f"log_weights must have shape ({m},) for {m} candidates, got {weights.shape}.")
    largest = weights.max()
    if not largest <= LARGEST_REWARD:  # nan too
        raise RewardError("log_weights must be -inf or numbers of at most 1e100; one is nan or larger.")
    if largest < -LARGEST_REWARD:
        raise RewardError("log_weights must not all be -inf: no candidate could be drawn.")
    return np.where(weights < -LARGEST_REWARD, -np.inf, weights)


def _group(owners: Sequence[Hashable] | None, n: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]] | None":
    if owners is None:
        return None
    index: dict[Hashable, int] = {}
    try:
        groups = np.array([index.setdefault(owner, len(index)) for owner in owners], dtype=np.int64)
    except TypeError as error:
        raise refuse("owners", "a list with one name per agent", owners) from error
    if isinstance(owners, str) or len(groups) != n:
        raise refuse("owners", f"a list with one name for each of the {n} agents", owners)
    return None if len(index) == n else groups


def _check_pays(
    pays: Sequence[bool] | None, groups: "np.ndarray[tuple[int], np.dtype[np.int64]] | None", n: int
) -> npt.NDArray[np.bool_] | None:
    """Return which agents never pay, (N,), or None if all pay."""
    if pays is None:
        return None
    paying = np.asarray(pays)
    if paying.shape != (n,) or (n and paying.dtype != np.bool_):
        raise refuse("pays", f"True or False for each of the {n} agents", pays)
    if n == 0 or paying.all():
        return None
    if groups is not None and len(set(zip(groups.tolist(), paying.tolist(), strict=True))) > groups.max() + 1:
        raise ConfigurationError(
            "An owner has agents that pay and agents that never pay. Give the latter another owner."
        )
    return ~paying


def _chargeable(
    paying: FloatArray, free: npt.NDArray[np.bool_], groups: "np.ndarray[tuple[int], np.dtype[np.int64]] | None"
) -> FloatArray:
    """Return the owners' reports, with 0 for owners that are never charged."""
    exempt = np.zeros(len(paying), dtype=bool)
    exempt[np.arange(len(paying)) if groups is None else groups] = free
    return np.where(exempt[:, None], 0.0, paying)


def _check_draws(draws: npt.ArrayLike | None, m: int) -> npt.NDArray[np.int64] | None:
    if draws is None:
        return None
    try:
        counts = _numbers(draws)
    except (TypeError, ValueError, OverflowError):
        counts = np.empty(0)
    if counts.shape != (m,) or not (1.0 <= counts.min() <= counts.max() <= _MOST_DRAWS) or (counts % 1.0).any():
        raise refuse("draws", f"{m} whole numbers of at least 1, one per candidate", draws)
    return counts.astype(np.int64)


def _generator(rng: np.random.Generator | None, seed: int | None) -> tuple[np.random.Generator, int | None]:
    if rng is not None:
        if seed is not None:
            raise ConfigurationError("Pass rng or seed, not both.")
        if not isinstance(rng, np.random.Generator):
            raise refuse("rng", "a NumPy Generator", rng, "Pass a number as seed.")
        return rng, None
    if seed is None:
        seed = secrets.randbits(53)
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise refuse("seed", "a whole number of at least 0", seed)
    return np.random.default_rng(int(seed)), int(seed)


def sum_by(groups: npt.NDArray[np.int64], reports: FloatArray) -> FloatArray:
    """Return the sums (owners, M) of reports (N, M), given the number of each agent's owner (N,)."""
    totals = np.zeros((int(groups.max()) + 1, reports.shape[1]))
    for group, report in zip(groups, reports, strict=True):
        totals[group] += report
    return totals


def _total(reports: FloatArray, total: FloatArray, weights: FloatArray, tau: float) -> tuple[FloatArray, float]:
    """Return the sum of the reports (M,) less a constant, and that constant: a large one would cost digits."""
    constant = 0.0
    if np.abs(reports[:, 0]).sum() > 32.0 * np.ptp(total):
        total, constant = (reports - reports[:, :1]).sum(axis=0), float(reports[:, 0].sum())
    best = total[np.argmax(weights + total / tau)]
    return np.asarray(total - best), float(constant + best)
