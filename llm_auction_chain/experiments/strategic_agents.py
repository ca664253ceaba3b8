"""Agents that do more than misreport: false names, collusion, free riding, entry, and budgets for many auctions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product

import numpy as np
import numpy.typing as npt

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.experiments.baselines import Candidates
from llm_auction_chain.experiments.config import QUICK, ExperimentConfig
from llm_auction_chain.experiments.exact import divergence
from llm_auction_chain.experiments.pools import Pool
from llm_auction_chain.experiments.results import Cell, Figure, Findings, Series, Table, mean, ratio
from llm_auction_chain.experiments.study import Experiment, Study
from llm_auction_chain.mechanism import Settlement, settle
from llm_auction_chain.mechanism.payments import most_charged

__all__ = ["EXPERIMENTS", "auction_size", "auctions"]

Floats = npt.NDArray[np.float64]

_NAMES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TIMES = (1.0, 2.0, 4.0, 8.0)  # what an agent with false names may exaggerate by
_FACTORS = (0.0, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0)  # of the truth, in the reports of two colluders
_COPIES = (1, 2, 4, 8, 16, 32)
_HORIZON = 24  # auctions
_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the payments over the horizon that a budget covers
_PACES = (0.25, 0.5, 0.75, 0.9, 1.0, 1.25)  # of the truth, in the reports of an agent with a budget
_PROPOSAL = "reference"  # what strategies gain depends on it little; its weights add no noise
_ROUNDING = 1e-9


def auction_size(config: ExperimentConfig) -> int:
    """Return M of the analyses: the largest of `n_candidates` that two auctions of a pool can have."""
    return max((size for size in config.n_candidates if 2 * size <= config.draws), default=min(config.n_candidates))


def auctions(pool: Pool, proposal: str, m: int, family: str, *, centred: bool = True) -> Iterator[Candidates]:
    """Return the auctions of a pool, without candidates that the reference never gives.

    Args:
        pool: of one question and seed.
        proposal: of the candidates.
        m: their number.
        family: of the rewards.
        centred: whether each agent's least reward is made 0: a constant changes no payment under our rules.

    Raises:
        ConfigurationError: the pool has too few draws.
    """
    for _, one in pool.sets(proposal, m, family):
        kept = one.take(np.isfinite(one.log_weights))
        low = kept.rewards.min(axis=1, keepdims=True) if centred else 0.0
        yield Candidates(
            log_weights=kept.log_weights,
            rewards=kept.rewards - low,
            log_reference=kept.log_reference,
            sources=kept.sources,
        )


def _settle(reports: Floats, one: Candidates, tau: float, owners: Sequence[int] | None = None) -> Settlement:
    return settle(reports, one.log_weights, tau=tau, owners=owners, seed=0)


def _with(one: Candidates, agent: int, report: Floats) -> Floats:
    reports = one.rewards.copy()
    reports[agent] = report
    return reports


Statistic = Callable[[Candidates, float], list[Floats]]
"""From an auction and tau to a list with one array for each agent, pair or other subject of the analysis."""


def _measured(study: Study[Pool], statistic: Statistic, family: str) -> Floats:
    """Return the mean of a statistic over the subjects of a pool's auctions, (Q, S, ...).

    Raises:
        ConfigurationError: an auction has no subject.
    """
    config, m = study.config, auction_size(study.config)

    def of_pool(pool: Pool) -> Floats:
        subjects = [each for one in auctions(pool, _PROPOSAL, m, family) for each in statistic(one, config.tau)]
        if not subjects:
            raise ConfigurationError(
                f"The experiment {config.experiment!r} compares two agents, and {pool.question.id!r} has one sponsor."
            )
        return np.asarray(np.mean(subjects, axis=0))

    return study.values(of_pool)


def _title(text: str, study: Study[Pool], family: str) -> str:
    config = study.config
    return f"{text} ({family}, M = {auction_size(config)}, tau = {config.tau:g})"


Part = tuple[Table, tuple[Figure, ...], Mapping[str, float]]


def _of_families(study: Study[Pool], part: Callable[[str], Part], notes: Sequence[str]) -> Findings:
    """Return the findings of every family of rewards; the ratios are of the first in which they are defined."""
    parts = [part(family) for family in study.config.families]
    return Findings(
        tables=tuple(table for table, _, _ in parts),
        figures=tuple(figure for _, figures, _ in parts for figure in figures),
        ratios=next((ratios for _, _, ratios in parts if np.isfinite(list(ratios.values())).all()), parts[0][2]),
        notes=tuple(" ".join(note.split()) for note in notes),
    )


def false_names(study: Study[Pool]) -> Findings:
    """Return what an agent pays and gains that splits its report over k identities."""

    def statistic(one: Candidates, tau: float) -> list[Floats]:
        return [np.array([_of_names(one, agent, k, tau) for k in _NAMES]) for agent in range(len(one.rewards))]

    def part(family: str) -> Part:
        values = _measured(study, statistic, family)
        columns = (
            "identities k", "payment, other owners (money)", "gain (money)", "gain with the best exaggeration (money)",
            "payment, one owner (money)", "gain (money), one owner",
        )  # fmt: skip
        rows: list[tuple[Cell, ...]] = [
            (k, *(mean(values[:, :, at, c]) for c in range(5))) for at, k in enumerate(_NAMES)
        ]
        paid = [
            Series(label=label, x=_NAMES, y=[ratio(values[:, :, k, c], values[:, :, 0, c]) for k in range(len(_NAMES))])
            for label, c in (("an owner each", 0), ("one owner", 3))
        ]
        figure = Figure(
            name=f"false_names_{family}", title=f"False names avoid the payment, but not inside an owner ({family})",
            x_label="identities k", y_label="payment / payment under one name", series=tuple(paid), x_log=True,
        )  # fmt: skip
        table = Table(title=_title("One agent as k identities", study, family), columns=columns, rows=tuple(rows))
        honest = values[:, :, 0]
        return table, (figure,), {
            "payment_of_256_names": ratio(values[:, :, -1, 0], honest[..., 0]).value,
            "gain_of_256_names": ratio(values[:, :, -1, 2], honest[..., 1]).value,
            "payment_of_256_names_inside_an_owner": ratio(values[:, :, -1, 3], honest[..., 3]).value,
        }  # fmt: skip

    notes = (
        """Each identity reports 1/k of the truth. A gain is the utility less what silence would give. The best
        exaggeration is the best of 1, 2, 4 and 8 times the truth, split in the same way. The ratios are over one
        honest name.""",
        """MOSAIC is not false-name proof: identities with owners of their own drive the payment to 0, and then
        exaggeration costs little, too. Inside one owner reports are summed first, so k changes nothing. The rule is
        only as good as the platform's knowledge of who is behind an account.""",
    )
    return _of_families(study, part, notes)


def _of_names(one: Candidates, agent: int, k: int, tau: float) -> tuple[float, ...]:
    """Return payment, gain, gain with the best exaggeration, and payment and gain inside an owner, money."""
    truth, others = one.rewards[agent], np.delete(one.rewards, agent, axis=0)
    free = float(truth @ _settle(others, one, tau).probabilities)

    def outcome(times: float, *, owned: bool) -> tuple[float, float]:
        reports = np.concatenate([np.tile(times * truth / k, (k, 1)), others])
        owners = [0] * k + list(range(1, len(others) + 1)) if owned else None
        settled = _settle(reports, one, tau, owners)
        paid = float(settled.expected_payments[:k].sum())
        return paid, float(truth @ settled.probabilities) - paid - free

    apart = [outcome(times, owned=False) for times in _TIMES]
    return *apart[0], max(gain for _, gain in apart), *outcome(1.0, owned=True)


def collusion(study: Study[Pool]) -> Findings:
    """Return what two agents gain together that report multiples of the truth."""
    honest = _FACTORS.index(1.0)

    def statistic(one: Candidates, tau: float) -> list[Floats]:
        return [_of_pair(one, pair, tau) for pair in combinations(range(len(one.rewards)), 2)]

    def part(family: str) -> Part:
        values = _measured(study, statistic, family)
        scale = values[:, :, honest, 2]
        columns = (
            "both report", "gain of both, two owners (money)", "/ payments of both if honest",
            "share of pairs that gain",
            "payments of both (money)", "payments of all (money)", "gain of both, one owner (money)",
        )  # fmt: skip
        labels = [f"{factor:g} times the truth" for factor in _FACTORS] + ["the best other pair of factors"]
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (
                label, mean(values[:, :, k, 0]), ratio(values[:, :, k, 0], scale),
                *(mean(values[:, :, k, c]) for c in (1, 2, 3, 4)),
            )
            for k, label in enumerate(labels)
        )  # fmt: skip
        lines = [
            Series(label=label, x=_FACTORS, y=[mean(values[:, :, k, c]) for k in range(len(_FACTORS))])
            for label, c in (("two owners", 0), ("one owner", 4))
        ]
        figure = Figure(
            name=f"collusion_{family}", title=f"What two agents gain together ({family})",
            x_label="report / truth, of both", y_label="gain of both (money)", series=tuple(lines),
        )  # fmt: skip
        table = Table(title=_title("Two agents together", study, family), columns=columns, rows=rows)
        return table, (figure,), {
            "joint_gain": ratio(values[:, :, -1, 0], scale).value,
            "joint_gain_inside_an_owner": ratio(values[:, :, -1, 4], scale).value,
        }  # fmt: skip

    notes = (
        """Gains are over honesty, the mean over all pairs. The best pair of factors is chosen for each pair, among
        all combinations of the factors above but honesty; a cleverer search would find more. The ratios
        are of that pair, over the payments of both if honest.""",
        """Two agents of different owners can gain. Rivals save payments if both shade. Friends save some if both
        exaggerate, since then neither alone changes much. Truth is a best report for one payer, not for a coalition, as
        in every Clarke mechanism. Inside an owner the two are one payer, and no joint report gains.""",
    )
    return _of_families(study, part, notes)


def _of_pair(one: Candidates, pair: tuple[int, int], tau: float) -> Floats:
    """Return what two agents gain, for each factor and the best pair of other factors: (factors + 1, 5).

    The last axis is the joint gain over honesty and whether it is above 0, the payments of both and of all, and the
    joint gain over honesty inside an owner; money.
    """
    i, j = pair
    owners = [i if agent == j else agent for agent in range(len(one.rewards))]

    def outcome(factors: tuple[float, ...], of: list[int] | None) -> Floats:
        reports = one.rewards.copy()
        reports[list(pair)] *= np.array(factors)[:, None]
        settled = _settle(reports, one, tau, of)
        paid = settled.expected_payments
        worth = float((one.rewards[i] + one.rewards[j]) @ settled.probabilities)
        return np.array([worth - paid[i] - paid[j], paid[i] + paid[j], paid.sum()])

    grid = list(product(_FACTORS, repeat=2))
    apart = {factors: outcome(factors, None) for factors in grid}
    inside = {factors: outcome(factors, owners) for factors in grid}
    equal, lying = [(factor, factor) for factor in _FACTORS], [factors for factors in grid if factors != (1.0, 1.0)]
    best, best_inside = (max(lying, key=lambda factors: outcomes[factors][0]) for outcomes in (apart, inside))
    honest, honest_inside = apart[1.0, 1.0], inside[1.0, 1.0]
    rows = []
    for a, b in zip([*equal, best], [*equal, best_inside], strict=True):
        gain = apart[a][0] - honest[0]
        rows.append((gain, gain > _ROUNDING, *apart[a][1:], inside[b][0] - honest_inside[0]))
    return np.array(rows)


def free_riding(study: Study[Pool]) -> Findings:
    """Return what each of n equal agents pays and gains."""

    def statistic(one: Candidates, tau: float) -> list[Floats]:
        return [np.array([_of_copies(truth, one, n, tau) for n in _COPIES]) for truth in one.rewards]

    def part(family: str) -> Part:
        values = _measured(study, statistic, family)
        columns = (
            "agents n", "payment of each (money)", "revenue (money)", "value to each, over no auction (money)",
            "utility of each (money)", "utility of one that stays silent (money)",
        )  # fmt: skip
        rows: list[tuple[Cell, ...]] = [
            (n, *(mean(values[:, :, k, c]) for c in range(5))) for k, n in enumerate(_COPIES)
        ]
        lines = [
            Series(label=label, x=_COPIES, y=[mean(values[:, :, k, c]) for k in range(len(_COPIES))])
            for label, c in (("payment of each", 0), ("revenue", 1), ("value to each", 2))
        ]
        figure = Figure(
            name=f"free_riding_{family}", title=f"n equal agents pay for what the others would not bring ({family})",
            x_label="agents n", y_label="money", series=tuple(lines), x_log=True,
        )  # fmt: skip
        table = Table(title=_title("n equal agents, no others", study, family), columns=columns, rows=tuple(rows))
        return table, (figure,), {
            f"{name}_of_{n}": ratio(values[:, :, _COPIES.index(n), c], values[:, :, 0, c]).value
            for name, n, c in (("payment_of_each", 4, 0), ("revenue", 4, 1), ("revenue", 32, 1))
        }  # fmt: skip

    notes = (
        """Each question's agents in turn are copied n times, each copy with an owner of its own, without other agents.
        Utilities are over no auction. The ratios are over the figures of one agent.""",
        """Each pays for the difference that it alone makes. While n agents are too few to decide the reply, payments
        and revenue may rise with n; when they are enough, one more or less changes nothing, so payments vanish and
        revenue with them. Then staying silent costs little, too, and an agent for whom taking part has a cost may stay
        away.
        Honesty stays a best report for every n.""",
    )
    return _of_families(study, part, notes)


def _of_copies(truth: Floats, one: Candidates, n: int, tau: float) -> tuple[float, ...]:
    """Return payment, revenue, value, utility and utility of silence of one of n agents with this truth (M,), money."""
    settled = _settle(np.tile(truth, (n, 1)), one, tau)
    values = truth @ settled.probabilities, truth @ settled.counterfactuals[0]
    base = float(truth @ _settle(truth[None][:0], one, tau).probabilities)
    paid = float(settled.expected_payments[0])
    return paid, n * paid, float(values[0]) - base, float(values[0]) - base - paid, float(values[1]) - base


def entry(study: Study[Pool]) -> Findings:
    """Return what a new agent changes for the others, with the same candidates."""

    def statistic(one: Candidates, tau: float) -> list[Floats]:
        return [_of_entrant(one, agent, tau)[0] for agent in range(len(one.rewards)) if len(one.rewards) > 1]

    def part(family: str) -> Part:
        values = _measured(study, statistic, family)
        labels = (
            "payment of each of the others (money)", "utility of each of the others (money)", "revenue (money)",
            "user's loss: KL to the weights alone (nats)",
        )  # fmt: skip
        pairs = [(values[:, :, 2 * k], values[:, :, 2 * k + 1]) for k in range(len(labels))]
        rows: list[tuple[Cell, ...]] = [
            (label, mean(before), mean(after), mean(after - before))
            for label, (before, after) in zip(labels, pairs, strict=True)
        ]
        rows.append(("share of the others that gain", "", mean(values[:, :, -1]), ""))
        table = Table(
            title=_title("A new agent", study, family),
            columns=("in the mean", "before it", "with it", "change"),
            rows=tuple(rows),
        )
        figure = _entry_figure(study, family)
        return table, (figure,), {"revenue_with_entrant": ratio(pairs[2][1], pairs[2][0]).value}

    notes = (
        """Each agent in turn is the new one. Utilities are over no auction. The newcomer
        changes no candidate, since they come from the reference; under a proposal that knows descriptions it would.""",
        """A newcomer may help or harm: those whose reports rise where its reports rise gain, the others lose. Revenue
        may fall with it, since friends pay less: the Clarke payment is not monotone in the number of agents.""",
    )
    return _of_families(study, part, notes)


def _of_entrant(one: Candidates, entrant: int, tau: float) -> tuple[Floats, Floats]:
    """Return what a newcomer changes, and for each of the others why.

    Returns:
        (9,): payment and utility of the others in the mean, revenue and user's loss, each before and after; and the
        share of the others that gain. (N - 1, 2): the covariance of each one's report with the newcomer's, and the
        change of its utility.
    """
    others = np.delete(one.rewards, entrant, axis=0)
    free, before, after = (_settle(reports, one, tau) for reports in (others[:0], others, one.rewards))
    paid = before.expected_payments, np.delete(after.expected_payments, entrant)
    gained = [
        others @ (settled.probabilities - free.probabilities) - payments
        for settled, payments in zip((before, after), paid, strict=True)
    ]
    change = gained[1] - gained[0]
    losses = [divergence(settled.probabilities, free.probabilities) for settled in (before, after)]
    figures = np.array(
        [
            *(payments.mean() for payments in paid), *(each.mean() for each in gained), before.revenue,
            after.expected_payments.sum(), *losses, (change > 0).mean(),
        ]
    )  # fmt: skip
    apart = one.rewards[entrant] - one.rewards[entrant] @ before.probabilities
    return figures, np.column_stack([others @ (apart * before.probabilities), change])


def _entry_figure(study: Study[Pool], family: str) -> Figure:
    m = auction_size(study.config)
    points = [
        _of_entrant(one, agent, study.config.tau)[1]
        for row in study.units
        for pool in row
        for one in [next(auctions(pool, _PROPOSAL, m, family))]
        for agent in range(len(one.rewards))
    ]
    x, y = np.concatenate(points).T
    return Figure(
        name=f"entry_{family}", title=f"A newcomer helps those who like the same replies ({family})",
        x_label="covariance of its report and the newcomer's (money squared)",
        y_label="change of an agent's utility (money)",
        series=(Series(label="an agent and a newcomer", x=x.tolist(), y=y.tolist()),), kind="points",
    )  # fmt: skip


def budgets(study: Study[Pool]) -> Findings:
    """Return what an agent gains by shading over many auctions, where its owner's cover runs out before their end."""
    config, m, honest = study.config, auction_size(study.config), _PACES.index(1.0)

    def part(family: str) -> Part:
        def of_pool(pool: Pool) -> Floats:
            sequence = list(auctions(pool, _PROPOSAL, m, family))
            agents = range(len(sequence[0].rewards))
            return np.asarray(np.mean([_of_budgets(sequence, agent, config.tau) for agent in agents], axis=0))

        values = study.values(of_pool)
        goal = values[:, :, -1, honest, 1]  # honesty whose budget never ends
        rows: list[tuple[Cell, ...]] = []
        lines = []
        for s, share in enumerate(_SHARES):
            gains = [
                [ratio(values[:, :, s, k, c] - values[:, :, s, honest, c], goal) for k in range(len(_PACES))]
                for c in (1, 2)
            ]
            lines.append(Series(label=f"budget for {share:.0%}", x=_PACES, y=gains[0]))
            rows += [
                (share, pace, mean(values[:, :, s, k, 0]), ratio(values[:, :, s, k, 1], goal), gains[0][k], gains[1][k])
                for k, pace in enumerate(_PACES)
            ]
        figure = Figure(
            name=f"budgets_{family}", title=f"What shading gains where the budget ends ({family})",
            x_label="report / truth", y_label="gain over honesty / value of honesty without a limit",
            series=tuple(lines),
        )  # fmt: skip
        table = Table(
            title=_title(f"A budget over {_HORIZON} auctions", study, family),
            columns=(
                "budget / payments of honesty", "report / truth", "share of the auctions entered",
                "utility / without a limit", "gain over honesty", "gain, cap shaded too",
            ),
            rows=tuple(rows),
        )  # fmt: skip
        limitless = goal.mean() or np.nan
        gained = (values[..., 1] - values[:, :, :, honest, None, 1]).mean(axis=(0, 1))
        best = dict(zip(_SHARES, np.delete(gained, honest, axis=1).max(axis=1) / limitless, strict=True))
        return table, (figure,), {
            "gain_with_half_the_budget": float(best[0.5]),
            "gain_with_the_whole_budget": float(best[1.0]),
        }  # fmt: skip

    notes = (
        f"""An agent takes part in {_HORIZON} auctions, those of a pool in turn, and reports the same multiple of the
        truth in each. It enters an auction if its cover holds the most that its cap lets it owe (the ledger's rule,
        payment rule expected), and pays the expected payment. Its budget is one hold and a share of what honesty would
        pay over all auctions. Others report the truth and always have cover. Gains are over the gain of honesty without
        a limit; the ratios are of the best report that is not the truth.""",
        """In each auction that it enters honesty is best, and where the budget reaches to the end it is best over all
        of them. Where the budget ends before, money spent now has a price later, and shading gains: a smaller report
        pays less for each auction and enters more of them. So truthfulness holds for one auction, not for a sequence
        under a budget. A lower cap may gain once more, since less must be held.""",
        """What may close it: an owner with a budget takes part in a share of the auctions by lot, or the platform
        scales its reports for it (pacing). Neither is measured here.""",
    )
    return _of_families(study, part, notes)


def _of_budgets(sequence: Sequence[Candidates], agent: int, tau: float) -> Floats:
    """Return, for each budget and pace, what a sequence of auctions brings: (shares, paces, 3).

    The last axis is the share of the auctions entered, and the gain over never entering with the cap of the truth and
    with a cap shaded like the report, money per auction.
    """
    offers = np.array([[_of_offer(one, agent, pace, tau) for pace in _PACES] for one in sequence])
    offers = offers[np.arange(_HORIZON) % len(sequence)]  # (auctions, paces, payment and gain)
    cap = max(float(np.ptp(one.rewards[agent])) for one in sequence)
    whole = float(offers[:, _PACES.index(1.0), 0].sum())
    results = np.empty((len(_SHARES), len(_PACES), 3))
    for s, share in enumerate(_SHARES):
        budget = most_charged("expected", cap, tau) + share * whole
        for k, pace in enumerate(_PACES):
            entered, gain = _run_down(offers[:, k], budget, most_charged("expected", max(pace, 1.0) * cap, tau))
            results[s, k] = entered, gain, _run_down(offers[:, k], budget, most_charged("expected", pace * cap, tau))[1]
    return results


def _of_offer(one: Candidates, agent: int, pace: float, tau: float) -> tuple[float, float]:
    """Return the expected payment and the gain over not taking part, for a multiple of the truth; money."""
    truth = one.rewards[agent]
    settled = _settle(_with(one, agent, pace * truth), one, tau)
    paid = float(settled.expected_payments[agent])
    return paid, float(truth @ (settled.probabilities - settled.counterfactuals[agent])) - paid


def _run_down(offers: Floats, budget: float, hold: float) -> tuple[float, float]:
    """Return the share of the auctions that are entered while the budget holds the most owed, and the gain per auction.

    >>> _run_down(np.array([[1.0, 2.0]] * 4), budget=3.0, hold=1.5)
    (0.5, 1.0)
    """
    entered, gain = 0, 0.0
    for payment, gained in offers.tolist():
        if budget >= hold * (1.0 - 1e-12):  # sums of payments round
            entered, gain, budget = entered + 1, gain + gained, budget - payment
    return entered / len(offers), gain / len(offers)


def _experiment(name: str, claim: str, analyse: Callable[[Study[Pool]], Findings]) -> Experiment[Pool]:
    return Experiment(claim=claim, config=ExperimentConfig(experiment=name), quick=QUICK, analyse=analyse)


EXPERIMENTS = {
    "false_names": _experiment(
        "false_names", "An agent with many names pays less, unless they have one owner.", false_names
    ),
    "collusion": _experiment("collusion", "Two agents can gain together, unless they have one owner.", collusion),
    "free_riding": _experiment(
        "free_riding",
        "Each of n equal agents pays for the change that it alone makes, which vanishes as n grows.",
        free_riding,
    ),
    "entry": _experiment("entry", "A new agent helps those who like the same replies and costs the others.", entry),
    "budgets": _experiment(
        "budgets", "Truth is best in each auction, and over many only where the budget reaches to the end.", budgets
    ),
}
