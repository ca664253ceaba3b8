"""The configuration of an experiment: frozen, from Python or YAML."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict

from llm_auction_chain.checked_model import CheckedModel
from llm_auction_chain.experiments import EXPERIMENTS
from llm_auction_chain.mechanism import PAYMENT_RULES, PaymentRule
from llm_auction_chain.validators import Check, choice, number, optional, refuse, whole_number

__all__ = ["QUICK", "ExperimentConfig", "Family"]

Family = Literal["mentions", "log_ratio", "judge"]
QUICK: Mapping[str, Any] = {
    "domains": ("money", "learning"),
    "n_questions": 2,
    "draws": 8,
    "max_tokens": 12,
    "proposals": ("reference", "context prompt", "product mixture"),
    "n_candidates": (2, 4, 8),
}
"""Settings of a quick run. Experiments that have them share their draws."""


def _each(check: Check) -> Check:
    """Check every item of a list, which must have one."""

    def check_all(name: str, value: Any) -> Any:
        items = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
        if not items:
            raise refuse(name, "a list of at least one", value)
        return tuple(check(name, item) for item in items)

    return check_all


class ExperimentConfig(CheckedModel):
    """What an experiment measures, and where its analysis looks.

    Only the first group changes what models and judges are asked. The second one is analysed from what is stored, so
    changing it costs nothing.

    Raises:
        ConfigurationError: a setting is invalid; the message names it.

    >>> config = ExperimentConfig(experiment="convergence", n_questions=2)
    >>> config.model_copy(update={"tau": 2.0}).tau
    2.0
    """

    model_config = ConfigDict(frozen=True, strict=False)

    checks: ClassVar[Mapping[str, Check]] = {
        "experiment": partial(choice, choices=tuple(EXPERIMENTS)),
        "n_questions": optional(whole_number),
        "max_tokens": partial(whole_number, least=1),
        "draws": partial(whole_number, least=1),
        "draw_tau": partial(number, above=0),
        "families": _each(partial(choice, choices=("mentions", "log_ratio", "judge"))),
        "n_candidates": _each(partial(whole_number, least=1)),
        "tau": partial(number, above=0),
        "taus": _each(partial(number, above=0)),
        "payment_rules": _each(partial(choice, choices=PAYMENT_RULES)),
        "seeds": _each(whole_number),
    }

    experiment: str
    """Its name, a key of `EXPERIMENTS`."""

    questions: Path | None = None
    """A JSONL or YAML file of questions, see `load_questions`. None takes those that ship with the package."""
    sponsors: Path | None = None
    """A JSONL file of advertisers, where the questions stand in one of their own."""
    domains: tuple[str, ...] = ()
    """Only questions of these domains; all if empty."""
    n_questions: int | None = None
    """The first questions only. None takes all."""
    model: str | None = None
    """A local path or hub id for transformers, or `provider:model`. None is the embedded model."""
    max_tokens: int = 48
    """Longest reply, tokens."""
    families: tuple[Family, ...] = ("mentions", "log_ratio")
    """What sponsors pay for: phrases in the reply, `log pi_i - log pi_ref`, or the grade of a judge."""
    proposals: tuple[str, ...] = ("reference", "context prompt", "product, strength 1/4", "product mixture")
    """What candidates are drawn from; names of `PROPOSALS`, or of those given to `run`."""
    draws: int = 32
    """Replies from every condition, for each question and seed."""
    draw_tau: float = 1.0
    """The tau that proposals are made for. The weights of their draws hold at every tau."""
    seeds: tuple[int, ...] = (0,)
    """Of the draws. Each is a repetition of the whole experiment."""

    n_candidates: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """M, candidates of an auction; at most `draws`."""
    tau: float = 1.0
    """Weight of the reference where it does not vary, money per nat."""
    taus: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """Weights of the reference where they vary."""
    payment_rules: tuple[PaymentRule, ...] = PAYMENT_RULES
    """How owners are charged."""

    @property
    def main_proposal(self) -> str:
        """The product mixture, or the first proposal where the model cannot draw from it."""
        return "product mixture" if "product mixture" in self.proposals else self.proposals[0]

    def changed(self, **settings: Any) -> Self:
        """Return the configuration with other settings, checked as in the constructor.

        Raises:
            ConfigurationError: a setting is invalid.
        """
        return type(self)(**{**dict(self), **settings})
