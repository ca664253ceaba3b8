"""Strategic agents: what a report other than the truth would have brought an agent."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.mechanism import PaymentRule, Settlement, settle
from llm_auction_chain.mechanism.allocation import FloatArray
from llm_auction_chain.validators import refuse, whole_number

if TYPE_CHECKING:
    from llm_auction_chain.auction.result import AuctionResult

__all__ = ["Misreport", "best_response", "misreport", "utilities"]

_STEPS = 40  # of an ascent; it mostly ends after a few
_HALVINGS = 10  # of a step that gains nothing
_NEAR = 1e-4  # distance of the reports that a slope is measured between, in spans of the truth or tau
_FAINT = 1e-4  # the slope at a less likely reply is mostly rounding
_PROGRESS = 1e-13  # an ascent ends where a step gains less than this share of the span


def utilities(
    values: npt.ArrayLike,
    reports: npt.ArrayLike,
    log_weights: npt.ArrayLike | None,
    tau: float,
    payment_rule: PaymentRule,
    owners: Sequence[Hashable] | None = None,
    pays: Sequence[bool] | None = None,
) -> FloatArray:
    """Return the expected utility of each agent's owner (N,), money: `E_p[v] - T`, summed over the owner's agents.

    Without owners it is the agent's own. The mean payment T over draws is the same under all four payment rules.

    Args:
        values: (N, M), what each candidate is truly worth to each agent, money, finite.
        reports: (N, M), what the agents report, money, finite.
        log_weights: (M,), nats; `-inf` for a candidate that is never drawn. None for all 0.
        tau: weight of the reference model, money per nat, above 0.
        payment_rule: one of `PAYMENT_RULES`. `proportional` refuses negative reports of agents that pay.
        owners: (N,), the owner of each agent. None if every agent is its own owner.
        pays: (N,), False for an agent that is never charged. None if all pay.

    Raises:
        ConfigurationError: tau, payment_rule, owners or pays is not valid, or values do not have the shape of reports.
        RewardError: reports or log-weights are not valid.

    >>> utilities([[0, 2]], [[0, 2]], None, 1.0, "expected").round(3).tolist()
    [1.434]
    >>> utilities([[0, 2]], [[0, 4]], None, 1.0, "expected").round(3).tolist()  # exaggerated
    [1.361]
    """
    settlement = settle(reports, log_weights, tau=tau, payment_rule=payment_rule, owners=owners, pays=pays, seed=0)
    worth = np.asarray(values, dtype=np.float64)
    if worth.shape != settlement.counterfactuals.shape or not np.isfinite(worth).all():
        raise refuse("values", f"finite numbers of shape {settlement.counterfactuals.shape}", values)
    return _utilities(settlement, worth, owners)


def _utilities(settlement: Settlement, values: FloatArray, owners: Sequence[Hashable] | None) -> FloatArray:
    own = values @ settlement.probabilities - settlement.expected_payments
    return np.asarray(own if owners is None else _per_owner(own, owners))


def _per_owner(amounts: FloatArray, owners: Sequence[Hashable]) -> FloatArray:
    """Return the sum of the amounts of each agent's owner (N,)."""
    totals: dict[Hashable, float] = {}
    for owner, amount in zip(owners, amounts.tolist(), strict=True):
        totals[owner] = totals.get(owner, 0.0) + amount
    return np.array([totals[owner] for owner in owners])


@dataclass(frozen=True, kw_only=True, eq=False)
class Misreport:
    """What another report of one agent would have done in an auction, if the report that it made is the truth.

    Amounts are of the agent's owner, which is settled as one. They are means over the draw of the reply, under every
    payment rule.

    Attributes:
        agent: its name.
        report: (M,), the other report as it would have counted, money.
        gain: `utility` less the utility of the truth, money. No report of an agent that pays gains: it loses
            `tau * KL(probabilities || the truth's probabilities)`.
        utility: expected value less expected payment, money.
        expected_payment: money.
        probabilities: (M,), the distribution of the reply.
    """

    agent: str
    report: tuple[float, ...]
    gain: float
    utility: float
    expected_payment: float
    probabilities: FloatArray


def misreport(result: "AuctionResult", agent: str, report: Sequence[float]) -> Misreport:
    """Return what an agent would have gained or lost by another report, without a model call.

    All other agents report what they did, the other agents of its owner included. The candidates stay the same: they
    never depend on reports. As in the auction, the report is cut to the agent's cap and bounds.

    Args:
        result: of the auction.
        agent: name of an agent that took part.
        report: (M,), one amount for each of `result.candidates`, money, finite.

    Raises:
        ConfigurationError: the agent did not take part, or the report is not one finite number per candidate.
        RewardError: the report has a negative amount under `proportional`, or one beyond 1e100.

    >>> from llm_auction_chain import Agent, AuctionRunnable
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> agents = [Agent(name, lambda prompt, reply, name=name: 2.0 * reply.text.count(name)) for name in "bc"]
    >>> result = AuctionRunnable(model=MarkovChatModel(), agents=agents, seed=7).run("Say something")
    >>> twice, silent = misreport(result, "b", 2 * result.rewards[0]), misreport(result, "b", 0 * result.rewards[0])
    >>> round(twice.gain, 3), round(silent.gain, 3), round(twice.expected_payment, 3)
    (-0.593, -0.721, 2.948)
    """
    return _Game.of(result, agent).play(report)


def best_response(result: "AuctionResult", agent: str, *, seed: int = 0) -> Misreport:
    """Search for the report that brings an agent most, given the reports of all others, without a model call.

    The search measures utilities and assumes nothing about payments. It starts from reports that are not the truth
    (nothing, the double, one exaggerated reply, random ones) and climbs along the measured slope. Under the rules of
    this package it ends at the truth, up to a constant, with a gain that is 0 but for rounding: at most 1e-9 of what
    the truth spans. An agent that never pays can gain, since its reports cost it nothing.

    Args:
        result: of the auction. The agent's report in it is taken for the truth.
        agent: name of an agent that took part.
        seed: of the random reports, at least 0.

    Returns:
        The best report found, within the agent's cap and bounds, and its gain over the truth.

    Raises:
        ConfigurationError: the agent did not take part, or the seed is not a whole number.

    >>> from llm_auction_chain import Agent, AuctionRunnable
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> agent = Agent("b", lambda prompt, reply: 2.0 * reply.text.count("b"))
    >>> result = AuctionRunnable(model=MarkovChatModel(), agents=[agent], n_candidates=8, seed=7).run("Say something")
    >>> abs(best_response(result, "b").gain) < 1e-9
    True
    """
    game = _Game.of(result, agent)
    rng = np.random.default_rng(whole_number("seed", seed, least=0))
    truth, scale = game.values[game.agent], game.scale
    exaggerated = truth + 2.0 * scale * (np.arange(truth.size) == np.argmax(truth))
    random = truth + scale * rng.normal(size=(2, truth.size))
    starts = [0.0 * truth, 2.0 * truth, exaggerated, *random]
    return max((_ascend(game, start) for start in starts), key=lambda one: one.gain)


def _ascend(game: "_Game", start: FloatArray) -> Misreport:
    """Climb from a report along the slope of the utility. Each step is scaled by the probabilities of the replies."""
    best, near = game.play(game.allowed(start)), _NEAR * min(game.scale, game.tau)
    for _ in range(_STEPS):
        report, direction = np.array(best.report), np.zeros(len(best.report))
        for j in np.flatnonzero(best.probabilities > 0.0):
            moved = near * (np.arange(report.size) == j)
            up, down = (game.play(game.allowed(report + sign * moved)).gain for sign in (1.0, -1.0))
            direction[j] = game.tau * (up - down) / (2.0 * near * max(best.probabilities[j], _FAINT))
        tries = (game.play(game.allowed(report + direction / 2.0**k)) for k in range(_HALVINGS))
        better = next((one for one in tries if one.gain > best.gain + _PROGRESS * game.scale), None)
        if better is None:
            break
        best = better
    return best


@dataclass(frozen=True, kw_only=True, eq=False)
class _Game:
    """An auction in which one agent may report what it likes, and all others report what they did.

    Attributes:
        result: of the auction.
        agent: index of the agent.
        values: (N, M), the reports that were made, taken for the truth.
        log_weights: (M,), nats.
    """

    result: "AuctionResult"
    agent: int
    values: FloatArray
    log_weights: FloatArray

    @classmethod
    def of(cls, result: "AuctionResult", agent: str) -> "_Game":
        names = [one.name for one in result.agents]
        if agent not in names:
            took_part = ", ".join(map(repr, names)) or "no agent"
            raise ConfigurationError(f"{agent!r} did not take part in {result.auction_id}; {took_part} did.")
        return cls(result=result, agent=names.index(agent), values=result.rewards, log_weights=result.log_weights)

    @property
    def tau(self) -> float:
        return self.result.settlement.tau

    @property
    def scale(self) -> float:
        """What the truth spans over the candidates that may be drawn, money; tau where it spans nothing."""
        return float(np.ptp(self.values[self.agent, np.isfinite(self.log_weights)])) or self.tau

    def allowed(self, report: FloatArray) -> FloatArray:
        """Return the report without what the payment rule would refuse."""
        refuses = self.result.settlement.payment_rule == "proportional" and self.result.agents[self.agent].pays
        return np.maximum(report, 0.0) if refuses else report

    def play(self, report: Sequence[float] | FloatArray) -> Misreport:
        """Return what the report would have brought."""
        agents, actual, m = self.result.agents, self.result.settlement, len(self.log_weights)
        try:
            row = np.asarray(report, dtype=np.float64)
        except (TypeError, ValueError):
            row = np.empty(0)
        if row.shape != (m,) or not np.isfinite(row).all():
            raise refuse("report", f"{m} finite numbers, one per candidate", report)
        reports, bounds = self.values.copy(), self.result.receipt.agents[self.agent].bounds
        reports[self.agent] = row if bounds is None else np.clip(row, bounds[0], bounds[1])
        owners = [agent.payer for agent in agents]
        settlement = settle(
            reports,
            self.log_weights,
            tau=self.tau,
            payment_rule=actual.payment_rule,
            owners=owners,
            pays=[agent.pays for agent in agents],
            seed=0,
        )
        # a constant in the values changes no gain but would cost its digits
        constants = self.values[:, np.isfinite(self.log_weights)].min(axis=1)
        values = self.values - constants[:, None]
        utility, truthful = (_utilities(one, values, owners)[self.agent] for one in (settlement, actual))
        return Misreport(
            agent=agents[self.agent].name,
            report=tuple(reports[self.agent].tolist()),
            gain=float(utility - truthful),
            utility=float(utility + _per_owner(constants, owners)[self.agent]),
            expected_payment=float(_per_owner(settlement.expected_payments, owners)[self.agent]),
            probabilities=settlement.probabilities,
        )
