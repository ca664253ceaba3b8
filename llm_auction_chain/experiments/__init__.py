"""The paper's experiments, its baselines and its critics: measured once, analysed as often as wanted.

`run` draws and scores what an experiment needs, and its study gives tables, figures and ratios:

    print(run("convergence", quick=True).summary())
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_auction_chain.experiments.baselines import BASELINES, Candidates, Outcome
    from llm_auction_chain.experiments.config import ExperimentConfig
    from llm_auction_chain.experiments.pools import PROPOSALS, RUBRICS, Pool
    from llm_auction_chain.experiments.questions import Question, Sponsor, builtin_questions, load_questions
    from llm_auction_chain.experiments.results import Estimate, Figure, Findings, Series, Summary, Table
    from llm_auction_chain.experiments.strategies import Misreport, best_response, misreport, utilities
    from llm_auction_chain.experiments.study import Study, load_config, run
    from llm_auction_chain.experiments.users import TauPoint, choose_tau, frontier

__all__ = [
    "BASELINES",
    "EXPERIMENTS",
    "PROPOSALS",
    "RUBRICS",
    "Candidates",
    "Estimate",
    "ExperimentConfig",
    "Figure",
    "Findings",
    "Misreport",
    "Outcome",
    "Pool",
    "Question",
    "Series",
    "Sponsor",
    "Study",
    "Summary",
    "Table",
    "TauPoint",
    "best_response",
    "builtin_questions",
    "choose_tau",
    "frontier",
    "load_config",
    "load_questions",
    "misreport",
    "run",
    "utilities",
]

EXPERIMENTS: Mapping[str, str] = {
    "convergence": "convergence",
    "proposals": "proposals",
    "welfare": "welfare",
    "users": "users",
    "overhead": "overhead",
    "misreports": "misreports",
    "false_names": "strategic_agents",
    "collusion": "strategic_agents",
    "free_riding": "strategic_agents",
    "entry": "strategic_agents",
    "budgets": "strategic_agents",
    "steering": "steering",
}
"""The module of each experiment."""

_NAMES = {
    "baselines": ("BASELINES", "Candidates", "Outcome"),
    "config": ("ExperimentConfig",),
    "pools": ("PROPOSALS", "RUBRICS", "Pool"),
    "questions": ("Question", "Sponsor", "builtin_questions", "load_questions"),
    "results": ("Estimate", "Figure", "Findings", "Series", "Summary", "Table"),
    "strategies": ("Misreport", "best_response", "misreport", "utilities"),
    "study": ("Study", "load_config", "run"),
    "users": ("TauPoint", "choose_tau", "frontier"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
