"""`welfare`: what sponsors gain and the platform earns, against tau and M."""

from collections.abc import Callable

from llm_auction_chain.experiments.baselines import Candidates, Outcome, mosaic
from llm_auction_chain.experiments.config import ExperimentConfig
from llm_auction_chain.experiments.pools import Pool
from llm_auction_chain.experiments.results import Figure, Findings, Series, Table
from llm_auction_chain.experiments.study import Experiment, Study

__all__ = ["EXPERIMENTS"]

Statistic = Callable[[Outcome, Candidates], float]


def _over_sets(proposal: str, m: int, family: str, tau: float, statistic: Statistic) -> Callable[[Pool], float]:
    """Return the mean of a statistic over the auctions that a pool has draws for."""
    rule = mosaic(tau=tau)

    def of_pool(pool: Pool) -> float:
        sets = [candidates for _, candidates in pool.sets(proposal, m, family)]
        return sum(statistic(rule(each, each.rewards), each) for each in sets) / len(sets)

    return of_pool


def _welfare(outcome: Outcome, candidates: Candidates) -> float:
    return outcome.welfare(candidates.rewards)


def _revenue(outcome: Outcome, _: Candidates) -> float:
    return outcome.revenue()


def analyse(study: Study[Pool]) -> Findings:
    """Return welfare and revenue of every proposal, against tau at the largest M."""
    config, rows, series = study.config, [], []
    m, family = max(config.n_candidates), config.families[0]
    for proposal in config.proposals:
        figures = []
        for tau in config.taus:
            worth, paid = (
                study.mean(_over_sets(proposal, m, family, tau, statistic)) for statistic in (_welfare, _revenue)
            )
            rows.append((proposal, tau, worth, paid))
            figures.append(worth)
        series.append(Series(label=proposal, x=config.taus, y=figures))
    table = Table(
        title=f"M = {m}, {family}", columns=("proposal", "tau (money/nat)", "welfare (money)", "revenue (money)"),
        rows=tuple(rows),
    )  # fmt: skip
    figure = Figure(
        name="welfare", title="What replies are worth to sponsors", x_label="tau (money per nat)",
        y_label="welfare (money)", series=tuple(series), x_log=True,
    )  # fmt: skip
    return Findings(tables=(table,), figures=(figure,))


EXPERIMENTS = {
    "welfare": Experiment(
        claim="The auction raises what replies are worth to sponsors, and what the platform earns.",
        config=ExperimentConfig(experiment="welfare"),
        quick={"n_questions": 2, "draws": 8, "max_tokens": 16, "n_candidates": (2, 8)},
        analyse=analyse,
    )
}
