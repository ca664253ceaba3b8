"""The paper's experiments, on any model: questions and sponsors, what is measured once, and analyses of it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_auction_chain.experiments.baselines import BASELINES, Candidates, Outcome
    from llm_auction_chain.experiments.questions import Question, Sponsor, builtin_questions, load_questions

__all__ = ["BASELINES", "Candidates", "Outcome", "Question", "Sponsor", "builtin_questions", "load_questions"]

_NAMES = {
    "baselines": ("BASELINES", "Candidates", "Outcome"),
    "questions": ("Question", "Sponsor", "builtin_questions", "load_questions"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that importing the package costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
