"""Rules that choose a reply and charge for it, ours and others', over stored candidates: no model call, no draw.

A rule maps candidates and reports to an `Outcome`: the distribution of the reply, and what each agent pays for each
reply. Rules read `sources` to find the candidates that they may use, so one stored pool serves them all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.mechanism import PaymentRule, settle
from llm_auction_chain.mechanism.allocation import FloatArray, log_softmax
from llm_auction_chain.mechanism.settlement import check_tau
from llm_auction_chain.validators import refuse, whole_number

__all__ = [
    "BASELINES",
    "CONTEXT_PROMPT",
    "REFERENCE",
    "Candidates",
    "Outcome",
    "Rule",
    "after_policy",
    "best_of_n",
    "kl_to_reference",
    "largest_gain",
    "mosaic",
    "most_kl",
    "no_auction",
    "on_subsets",
    "rules_at",
    "segment_allocation",
    "segment_auction",
    "segment_prices",
    "soft_best_of_n",
    "sponsors_in_prompt",
    "utility_of",
    "vcg",
]

REFERENCE = -1
CONTEXT_PROMPT = -2

_TIE = 1e-12  # sums whose relative difference is smaller are equal: sums round
_SMALL = 1e-4  # below, a difference would lose digits that its series keeps
_HUGE = 1e300


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """Stored candidates of one question. The first axis of matrices is the agents, the last the candidates.

    Attributes:
        log_weights: (M,), `log pi_ref(y_j) - log pi_gen(y_j)` in nats. `pi_gen` is the mixture that the whole set was
            drawn from, so all are 0 where it is the reference. `-inf` for a reply that the reference never gives.
        rewards: (N, M), what each reply is truly worth to each agent, money.
        log_reference: (M,), `log pi_ref(y_j)` in nats; nan where it is unknown. No rule of this module needs it.
        sources: (M,), which condition drew the reply: -1 the reference, i >= 0 agent i's own policy, -2 the context
            prompt, other negative numbers other proposals.

    Raises:
        ConfigurationError: the shapes do not agree, a reward is not finite, or every log-weight is -inf.
    """

    log_weights: FloatArray
    rewards: FloatArray
    log_reference: FloatArray
    sources: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        for name in ("log_weights", "rewards", "log_reference"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        object.__setattr__(self, "sources", np.asarray(self.sources, dtype=np.int64))
        m = self.log_weights.size
        shapes = [getattr(self, name).shape for name in ("log_weights", "log_reference", "sources")]
        if not m or shapes != [(m,)] * 3 or self.rewards.ndim != 2 or self.rewards.shape[1] != m:  # noqa: PLR2004
            expected = "(M,), (M,) and (M,), beside rewards of shape (N, M)"
            raise refuse("shapes of log_weights, log_reference and sources", expected, [*shapes, self.rewards.shape])
        if not np.isfinite(self.rewards).all():
            raise ConfigurationError("rewards must be finite numbers, one for each agent and candidate.")
        if np.isnan(self.log_weights).any() or not np.isfinite(self.log_weights.max()):
            raise ConfigurationError("log_weights must be -inf or numbers, and not all -inf.")

    def take(self, chosen: npt.ArrayLike) -> "Candidates":
        """Return the candidates at these indices, or where this mask is true. Their log-weights stay as they are."""
        at = np.asarray(chosen)
        return Candidates(
            log_weights=self.log_weights[at],
            rewards=self.rewards[:, at],
            log_reference=self.log_reference[at],
            sources=self.sources[at],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a rule does with one set of candidates.

    Attributes:
        probabilities: (M,), the distribution of the returned reply.
        payments: (N, M), what agent i pays if reply j is returned, money. Where that payment is random, its mean.
    """

    probabilities: FloatArray
    payments: FloatArray

    def welfare(self, values: npt.ArrayLike) -> float:
        """Return `E_p[sum_i v_i]`, money: what the reply is worth to all agents together, given true values (N, M)."""
        return float(np.asarray(values, dtype=np.float64).sum(axis=0) @ self.probabilities)

    def expected_payments(self) -> FloatArray:
        """Return what each agent pays in expectation (N,), money."""
        return np.asarray(self.payments @ self.probabilities)

    def revenue(self) -> float:
        """Return the sum of the expected payments, money."""
        return float(self.expected_payments().sum())

    def utilities(self, values: npt.ArrayLike) -> FloatArray:
        """Return each agent's expected value less its expected payment (N,), money, given true values (N, M)."""
        return np.asarray((np.asarray(values, dtype=np.float64) - self.payments) @ self.probabilities)

    def payment_variances(self) -> FloatArray:
        """Return the variance over the returned reply of each agent's payment (N,), money squared.

        Where a payment is random given the reply (`pivot`, segment auction), the whole variance is larger.
        """
        spread = self.payments - self.expected_payments()[:, None]
        return np.asarray(np.square(spread) @ self.probabilities)


Rule = Callable[[Candidates, FloatArray], Outcome]


def mosaic(payment_rule: PaymentRule = "expected", *, tau: float) -> Rule:
    """Return the rule of this package: `p = softmax(lw + sum_i b_i / tau)` and payments of mean `tau * KL(p || p_-i)`.

    Args:
        payment_rule: under `expected` every reply costs the same. Under `pivot` the payment depends on the noise of the
            draw, too; here it is its exact mean given the reply.
        tau: weight of the reference model, money per nat, above 0.

    Source: arXiv 2405.05905, sections 4 and 5.

    >>> bed = Candidates(log_weights=[0, 0], rewards=[[0, 2]], log_reference=[-1, -1], sources=[-1, -1])
    >>> outcome = mosaic(tau=1.0)(bed, bed.rewards)
    >>> outcome.probabilities.round(3).tolist(), outcome.payments.round(3).tolist()
    ([0.119, 0.881], [[0.328, 0.328]])
    >>> mosaic("pivot", tau=1.0)(bed, bed.rewards).payments.round(3).tolist()
    [[0.0, 0.372]]
    """

    def rule(candidates: Candidates, reports: FloatArray) -> Outcome:
        reports = _check(reports, candidates)
        settled = settle(reports, candidates.log_weights, tau=tau, payment_rule=payment_rule, seed=0)
        expected, p = settled.expected_payments[:, None], settled.probabilities
        if payment_rule == "proportional":
            value = (reports @ p)[:, None]
            payments = reports * np.minimum(np.divide(expected, value, out=np.zeros_like(value), where=value > 0), 1.0)
        elif payment_rule == "influence":  # what is left of the report is the contribution, whatever the reply
            payments = reports - settled.contributions[:, None]
        elif payment_rule == "pivot":
            payments = _mean_pivot(reports / tau, settled.log_probabilities) * tau
        else:
            payments = np.broadcast_to(expected, reports.shape)
        return Outcome(probabilities=p, payments=payments)

    return rule


def _mean_pivot(reports: FloatArray, log_p: FloatArray) -> FloatArray:
    r"""Return the mean of the `pivot` payment given the reply (N, M), for reports in nats: `r / tau`.

    Agent i pays `max_k (z_k - r_ik) - (z_j - r_ij)` if j is returned, with `z = log p + Gumbel noise`. Let
    `d_k = r_ij - r_ik`. The largest of z is independent of which one it is, so `exp(-max z)` is exponential and

        P(payment > t | j) = 1 - 1 / (1 + sum_{d_k > t} p_k * (exp(d_k - t) - 1))

    The mean is its integral over t > 0. Between two neighbours in the order of d, one plus the sum is
    `D(t) = B + C * exp(-t)` with `B = sum_{d_k <= t} p_k` and `C = sum_{d_k > t} p_k * exp(d_k)`. There the integral of
    `1 / D` from a to b is `log(1 + B * (exp(b - a) - 1) / D(a)) / B`.
    """
    live = np.flatnonzero(np.isfinite(log_p))
    means = np.zeros_like(reports)
    for i, report in enumerate(reports[:, live]):
        order = np.argsort(report, kind="stable")  # of d, descending
        ordered, log_q = report[order], log_p[live][order]
        below = np.logaddexp.accumulate(log_q[::-1])[::-1][1:]  # log B after the first, the first two, ...
        for j in range(len(live)):
            d = report[j] - ordered
            a, b = np.maximum(d[1:], 0.0), np.maximum(d[:-1], 0.0)
            above = np.logaddexp.accumulate(log_q + d)[:-1]  # log C
            length = b - a
            with np.errstate(divide="ignore"):
                grown = below + length + np.log(-np.expm1(-length)) - np.logaddexp(below, above - a)
                log_growth = np.where(grown < -30.0, grown, np.log(np.logaddexp(0.0, grown)))  # noqa: PLR2004
            means[i, live[j]] = np.clip((length - np.exp(log_growth - below)).sum(), 0.0, max(d[0], 0.0))
    return means


def _check(reports: npt.ArrayLike, candidates: Candidates) -> FloatArray:
    matrix = np.asarray(reports, dtype=np.float64)
    if matrix.shape != candidates.rewards.shape or not np.isfinite(matrix).all():
        raise refuse("reports", f"finite numbers of shape {candidates.rewards.shape}", matrix)
    return matrix


def no_auction(candidates: Candidates, reports: FloatArray) -> Outcome:
    """Return the reference's own distribution, `softmax(lw)`. No agent pays.

    >>> bed = Candidates(log_weights=[0, 0], rewards=[[0, 2]], log_reference=[-1, -1], sources=[-1, -1])
    >>> no_auction(bed, bed.rewards).welfare(bed.rewards)
    1.0
    """
    return _free(np.exp(log_softmax(candidates.log_weights)), _check(reports, candidates))


def sponsors_in_prompt(candidates: Candidates, reports: FloatArray) -> Outcome:
    """Return one reply of the prompt that describes all agents, without weights and without payments.

    Raises:
        ConfigurationError: no candidate comes from the context prompt (-2).
    """
    return _free(_share(_from(CONTEXT_PROMPT, candidates)), _check(reports, candidates))


def best_of_n(price: str = "first price") -> Rule:
    """Return the rule that always takes the largest sum of reports. Ties are shared as the reference would share them.

    Args:
        price: under `first price` each agent pays its report for the returned reply, as in the menu auction of Bernheim
            and Whinston (1986). Under `pay your bid` it pays for the change alone: its report less the mean of its
            report under the reference. Neither is ever below 0, and under neither is honesty an agent's best report.

    Raises:
        ConfigurationError: another price.

    >>> bed = Candidates(log_weights=[0, 0], rewards=[[0, 2]], log_reference=[-1, -1], sources=[-1, -1])
    >>> [best_of_n(price)(bed, bed.rewards).revenue() for price in ("first price", "pay your bid")]
    [2.0, 1.0]
    """
    if price not in ("first price", "pay your bid"):
        raise refuse("price", "'first price' or 'pay your bid'", price)

    def rule(candidates: Candidates, reports: FloatArray) -> Outcome:
        reports = _check(reports, candidates)
        free = np.exp(log_softmax(candidates.log_weights))
        already = (reports @ free)[:, None] if price == "pay your bid" else 0.0
        return Outcome(probabilities=_argmax(candidates, reports), payments=np.maximum(reports - already, 0.0))

    return rule


def vcg(candidates: Candidates, reports: FloatArray) -> Outcome:
    """Take the largest sum of reports; each agent pays what the others lose by it (the Clarke pivot).

    It is truthful, and the limit of `mosaic` for tau to 0: the candidates alone keep the reply near the reference.

    >>> bed = Candidates(
    ...     log_weights=[0, 0], rewards=[[0, 3], [2, 0]], log_reference=[-1, -1], sources=[-1, -1]
    ... )
    >>> vcg(bed, bed.rewards).payments.tolist()
    [[0.0, 2.0], [3.0, 0.0]]
    """
    reports = _check(reports, candidates)
    others = reports.sum(axis=0) - reports
    best = others[:, np.isfinite(candidates.log_weights)].max(axis=1, keepdims=True)
    return Outcome(probabilities=_argmax(candidates, reports), payments=np.maximum(best - others, 0.0))


def soft_best_of_n(*, tau: float, free: bool = False) -> Rule:
    """Return the rule that draws from `softmax(sum_i b_i / tau)` over draws of the reference.

    Args:
        tau: money per nat, above 0.
        free: False if each agent pays its report for the returned reply, at least 0. True if no agent pays.

    Raises:
        ConfigurationError: tau is not valid. From the rule: no candidate comes from the reference (-1).

    The distribution is that of `mosaic` with the reference as the proposal; the payments are what differs.
    """
    tau = check_tau(tau)

    def rule(candidates: Candidates, reports: FloatArray) -> Outcome:
        reports = _check(reports, candidates)
        scores = np.where(_from(REFERENCE, candidates), reports.sum(axis=0) / tau, -np.inf)
        paid = np.zeros_like(reports) if free else np.maximum(reports, 0.0)
        return Outcome(probabilities=np.exp(log_softmax(scores)), payments=paid)

    return rule


def after_policy(candidates: Candidates, reports: FloatArray) -> Outcome:
    """Return the best reply of the agent whose best reply is worth most to it, at the second highest such value.

    Each agent chooses among the draws of its own policy by its own report; that reply's report is its bid. Only the
    winner pays. If no bid is above 0, the reply is that of `no_auction`. Ties are shared equally.

    Raises:
        ConfigurationError: an agent has no candidate from its own policy (source i).

    Source: "after-policy" of arXiv 2608.27382. It is truthful only if no agent cares for another's reply.

    >>> bed = Candidates(
    ...     log_weights=[0, 0, 0], rewards=[[1, 3, 0], [0, 0, 2]], log_reference=[-1, -1, -1], sources=[0, 0, 1]
    ... )
    >>> outcome = after_policy(bed, bed.rewards)
    >>> outcome.probabilities.tolist(), outcome.revenue()
    ([0.0, 1.0, 0.0], 2.0)
    """
    reports = _check(reports, candidates)
    own = _own(candidates)
    bids = np.where(own, reports, -np.inf).max(axis=1, initial=-np.inf)
    if not bids.max(initial=0.0) > 0.0:
        return no_auction(candidates, reports)
    best = own & (reports == bids[:, None])  # the replies that each agent would show
    wins = (bids == bids.max()) / (bids == bids.max()).sum()
    prices = [np.delete(bids, i).max(initial=0.0) for i in range(len(bids))]
    return Outcome(
        probabilities=wins @ (best / best.sum(axis=1, keepdims=True)), payments=own * np.array(prices)[:, None]
    )


def segment_auction(relevance: npt.ArrayLike | None = None) -> Rule:
    """Return the segment auction of one segment: agent i wins with probability proportional to relevance times bid.

    An approximation over stored candidates: the ad that wins is a uniform draw from the replies of the winner's own
    policy, and an agent's bid is the mean of its reports for them, at least 0. Only the winner pays, and pays the mean
    of the perturbed second price (`segment_prices`). If no bid is above 0, the reply is that of `no_auction`.

    Args:
        relevance: (N,), how relevant each agent's ad is to the question, at least 0, from anything but reports. None
            for 1 each.

    Raises:
        ConfigurationError: from the rule: relevance does not have shape (N,) or is negative, or an agent has no
            candidate from its own policy (source i).

    Source: arXiv 2406.09459, single allocation. It is truthful only if no agent cares for another's reply.
    """

    def rule(candidates: Candidates, reports: FloatArray) -> Outcome:
        reports = _check(reports, candidates)
        own = _own(candidates)
        drawn = own / np.maximum(own.sum(axis=1, keepdims=True), 1)
        bids = np.maximum((drawn * reports).sum(axis=1), 0.0)
        relevant = np.ones(len(bids)) if relevance is None else np.asarray(relevance, dtype=np.float64)
        if relevant.shape != bids.shape or not (np.isfinite(relevant) & (relevant >= 0.0)).all():
            raise refuse("relevance", f"{len(bids)} numbers of at least 0, one per agent", relevance)
        if not (bids * relevant).sum() > 0.0:
            return no_auction(candidates, reports)
        return Outcome(
            probabilities=segment_allocation(bids, relevant) @ drawn,
            payments=own * segment_prices(bids, relevant)[:, None],
        )

    return rule


def segment_allocation(bids: npt.ArrayLike, relevance: npt.ArrayLike) -> FloatArray:
    """Return each ad's probability of winning a segment (N,): `q_i * b_i / sum_k q_k * b_k`, with a sum above 0.

    >>> segment_allocation([3, 3, 2, 2], [0.36, 0.87, 0.31, 0.26]).round(2).tolist()
    [0.22, 0.54, 0.13, 0.11]
    """
    scores = np.asarray(bids, dtype=np.float64) * np.asarray(relevance, dtype=np.float64)
    return np.asarray(scores / scores.sum())


def segment_prices(bids: npt.ArrayLike, relevance: npt.ArrayLike) -> FloatArray:
    """Return what each agent pays for a segment that it wins (N,), in the mean over the noise.

    The winner has the largest `q_i * b_i * exp(Gumbel noise)` and pays the lowest bid with which it would still win.
    With `u = q_i * b_i / (sum of the others)` the mean is `b_i * ((1 + u) * log(1 + u) - u) / u**2`: half the bid for
    a small chance of winning, nothing without a rival.

    Source: arXiv 2406.09459, single allocation; the mean follows from Myerson's formula.

    >>> segment_prices([1.0, 1.0], [1.0, 1.0]).round(4).tolist()
    [0.3863, 0.3863]
    """
    bids = np.asarray(bids, dtype=np.float64)
    scores = bids * np.asarray(relevance, dtype=np.float64)
    others = (1.0 - np.eye(len(scores))) @ scores
    with np.errstate(over="ignore"):
        u = np.minimum(np.divide(scores, others, out=np.zeros_like(scores), where=others > 0.0), _HUGE)
    few, many = np.minimum(u, _SMALL), np.maximum(u, _SMALL)
    shares = np.where(u < _SMALL, 0.5 - few / 6.0 + few**2 / 12.0, ((1.0 + 1.0 / many) * np.log1p(many) - 1.0) / many)
    return np.where(others > 0.0, bids * shares, 0.0)


BASELINES: Mapping[str, Rule] = MappingProxyType(
    {
        "no auction": no_auction,
        "sponsors in the prompt": sponsors_in_prompt,
        "best of n, first price": best_of_n("first price"),
        "best of n, pay your bid": best_of_n("pay your bid"),
        "VCG": vcg,
        "segment auction": segment_auction(),
        "after-policy": after_policy,
    }
)
"""The rules without a tau, by the names that tables show."""


def rules_at(tau: float) -> dict[str, Rule]:
    """Return every rule by the name that tables show: those that depend on tau, at this tau, and `BASELINES`.

    >>> list(rules_at(1.0))[:4]
    ['MOSAIC', 'MOSAIC, pivot', 'soft best of n, first price', 'soft best of n, free']
    """
    return {
        "MOSAIC": mosaic(tau=tau),
        "MOSAIC, pivot": mosaic("pivot", tau=tau),
        "soft best of n, first price": soft_best_of_n(tau=tau),
        "soft best of n, free": soft_best_of_n(tau=tau, free=True),
        **BASELINES,
    }


def on_subsets(rule: Rule, counts: Mapping[int, int], *, repeats: int = 256, seed: int = 0) -> Rule:
    """Return the rule that applies another to random subsets of a pool: the mean over many small auctions.

    The subsets depend on the seed and the sources alone, so a rule that is truthful stays so. The outcome is one
    distribution over the whole pool, which has less noise and makes `kl_to_reference` much less biased.

    Args:
        rule: the rule for one subset.
        counts: source to number of candidates in a subset. The pool's log-weights must be those of a mixture with these
            shares: a pool of twenty draws of each of two sources suits `{-1: 4, -2: 4}`.
        repeats: number of subsets. Few of them add to `kl_to_reference` up to about `pool / (2 * repeats)` nats.
        seed: seed of the subsets.

    Raises:
        ConfigurationError: a count or repeats is below 1. From the rule: the pool has too few candidates of a source.

    >>> bed = Candidates(log_weights=[0] * 4, rewards=[[0, 1, 2, 3]], log_reference=[-1] * 4, sources=[-1] * 4)
    >>> outcome = on_subsets(best_of_n(), {-1: 2}, repeats=1000)(bed, bed.rewards)
    >>> outcome.probabilities.round(1).tolist()  # exactly 0, 1/6, 2/6, 3/6
    [0.0, 0.2, 0.3, 0.5]
    """
    for source, count in counts.items():
        whole_number(f"counts[{source}]", count, least=1)
    whole_number("repeats", repeats, least=1)

    def averaged(candidates: Candidates, reports: FloatArray) -> Outcome:
        reports = _check(reports, candidates)
        homes = {source: np.flatnonzero(candidates.sources == source) for source in counts}
        for source, home in homes.items():
            if len(home) < counts[source]:
                raise refuse(f"counts[{source}]", f"at most the {len(home)} candidates of the pool", counts[source])
        rng = np.random.default_rng(seed)
        p, paid = np.zeros(reports.shape[1]), np.zeros_like(reports)
        for _ in range(repeats):
            at = np.sort(np.concatenate([rng.choice(home, counts[s], replace=False) for s, home in homes.items()]))
            outcome = rule(candidates.take(at), reports[:, at])
            p[at] += outcome.probabilities
            paid[:, at] += outcome.probabilities * outcome.payments
        return Outcome(probabilities=p / repeats, payments=np.divide(paid, p, out=np.zeros_like(paid), where=p > 0.0))

    return averaged


def largest_gain(rule: Rule, candidates: Candidates, agent: int, misreports: npt.ArrayLike) -> float:
    """Return what the best of these misreports gains an agent over the truth, in expected utility, money.

    The truth is `candidates.rewards`, and the other agents report it. The gain is negative if every misreport loses.

    Args:
        rule: the rule to test.
        candidates: of one question.
        agent: index of the agent.
        misreports: (K, M), what the agent reports in place of its rewards.

    >>> bed = Candidates(log_weights=[0, 0], rewards=[[0, 2]], log_reference=[-1, -1], sources=[-1, -1])
    >>> largest_gain(best_of_n("first price"), bed, 0, [[0, 1.0], [0, 0.25]])
    1.75
    """
    lies = np.asarray(misreports, dtype=np.float64)
    honest = utility_of(rule, candidates, agent, candidates.rewards[agent])
    return max(utility_of(rule, candidates, agent, lie) for lie in lies) - honest


def utility_of(rule: Rule, candidates: Candidates, agent: int, report: FloatArray) -> float:
    """Return the expected utility of an agent that reports this (M,) while the others report the truth, money."""
    reports = candidates.rewards.copy()
    reports[agent] = report
    return float(rule(candidates, reports).utilities(candidates.rewards)[agent])


def kl_to_reference(outcome: Outcome, candidates: Candidates) -> float:
    """Return an estimate of `KL(distribution of the returned reply || pi_ref)`, what the user loses, in nats.

    The estimate is `sum_j p_j * (log(M * p_j) - lw_j)` over M candidates. Its mean over candidate sets is never below
    the true divergence (Jensen), as long as `lw` compares the reference with the mixture that the set was drawn from.

    - Average it over sets and questions. A single estimate may be negative; that is noise.
    - It is too large where p depends on chance: the draw of the other candidates, or of the source. For `argmax` over M
      draws of the reference it is `log M`, while the divergence is at most `most_kl(M)`. For draws of one prompt
      (`sponsors_in_prompt`) it has no bias, if that prompt's draws are the whole set.
    - Outcomes of many subsets (`on_subsets`) of a pool much larger than a subset have little bias.
    - It measures the distance from the reference, not from what `no_auction` returns on these candidates.
    - Nats compare distributions: they do not say what a user thinks of a reply.

    Where all replies can be enumerated, take the exact divergence.

    Returns:
        Nats; infinite if a reply is returned that the reference never gives.

    >>> bed = Candidates(log_weights=[0] * 4, rewards=[[0, 1, 2, 3]], log_reference=[-1] * 4, sources=[-1] * 4)
    >>> kl_to_reference(no_auction(bed, bed.rewards), bed), round(kl_to_reference(vcg(bed, bed.rewards), bed), 3)
    (0.0, 1.386)
    """
    drawn = outcome.probabilities > 0.0
    p = outcome.probabilities[drawn]
    return float(p @ (np.log(len(drawn) * p) - candidates.log_weights[drawn]))


def most_kl(n_candidates: int) -> float:
    """Return the largest divergence from the reference that any choice among its own draws can cause: nats.

    It is `log M - (M - 1) / M`, and best-of-n over replies without ties attains it.

    >>> round(most_kl(16), 3)
    1.835
    """
    m = whole_number("n_candidates", n_candidates, least=1)
    return float(np.log(m) - (m - 1) / m)


def _argmax(candidates: Candidates, reports: FloatArray) -> FloatArray:
    """Return the distribution over the candidates with the largest sum of reports, by their weights."""
    total = np.where(np.isfinite(candidates.log_weights), reports.sum(axis=0), -np.inf)
    rounding = _TIE * np.abs(reports).sum(axis=0).max(initial=0.0)
    tied = total >= total.max() - rounding
    return np.exp(log_softmax(np.where(tied, candidates.log_weights, -np.inf)))


def _share(chosen: npt.NDArray[np.bool_]) -> FloatArray:
    return np.asarray(chosen / chosen.sum())


def _free(p: FloatArray, reports: FloatArray) -> Outcome:
    return Outcome(probabilities=p, payments=np.zeros_like(reports))


def _from(source: int, candidates: Candidates) -> npt.NDArray[np.bool_]:
    """Return which candidates this condition drew, (M,).

    Raises:
        ConfigurationError: none.
    """
    chosen = np.asarray(candidates.sources == source)
    if not chosen.any():
        condition = {REFERENCE: "the reference", CONTEXT_PROMPT: "the context prompt"}.get(source)
        condition = condition or f"the policy of agent {source}"
        raise ConfigurationError(f"No candidate comes from {condition} ({source}), and this rule needs one.")
    return chosen


def _own(candidates: Candidates) -> npt.NDArray[np.bool_]:
    """Return which candidates come from each agent's own policy, (N, M)."""
    masks = [_from(i, candidates) for i in range(len(candidates.rewards))]
    return np.array(masks, dtype=bool).reshape(candidates.rewards.shape)
