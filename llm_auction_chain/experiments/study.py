"""`run`: measures what an experiment needs, from the store where it can, and hands it to the analysis."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import yaml
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import Runnable

from llm_auction_chain.auction.progress_bar import progress_hook
from llm_auction_chain.candidates import Proposal, SequenceScorer
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.experiments import EXPERIMENTS
from llm_auction_chain.experiments.config import ExperimentConfig
from llm_auction_chain.experiments.pools import PROPOSALS, Bench, measure_pool, within_reach
from llm_auction_chain.experiments.questions import Question, builtin_questions, load_questions
from llm_auction_chain.experiments.results import Cost, Estimate, Findings, Summary, mean, ratio
from llm_auction_chain.experiments.store import Store
from llm_auction_chain.models.by_name import model_by_name
from llm_auction_chain.validators import choice, refuse

__all__ = ["Experiment", "Progress", "Study", "experiment_of", "load_config", "run"]

U = TypeVar("U")

STORE = "measurements.sqlite"
"""The file of measurements in the folder of a run. Experiments that share a folder share their draws."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        done: questions and seeds that are measured.
        total: of them all.
        seconds_left: an estimate, from those of this run; None before the first.
    """

    done: int
    total: int
    seconds_left: float | None
    label: ClassVar[str] = "measuring"

    @property
    def note(self) -> str:
        """What a bar shows beside the counts: the time left, where it can be estimated."""
        return "" if self.seconds_left is None else f"about {self.seconds_left:,.0f} s left"


@dataclass(frozen=True, kw_only=True)
class Study(Generic[U]):
    """All that an experiment measured: what its analysis works on, without a model.

    Attributes:
        config: of the experiment.
        questions: (Q,).
        units: (Q, S), the measurement of each question and seed; a `Pool` in most experiments.
        cost: of the measurements.
    """

    config: ExperimentConfig
    questions: tuple[Question, ...]
    units: tuple[tuple[U, ...], ...]
    cost: Cost

    def values(self, statistic: Callable[[U], npt.ArrayLike]) -> npt.NDArray[np.float64]:
        """Return a statistic of every unit, (Q, S, ...)."""
        return np.array([[statistic(unit) for unit in row] for row in self.units], dtype=np.float64)

    def mean(self, statistic: Callable[[U], float]) -> Estimate:
        """Return the mean of a statistic of the units, with its interval over questions and seeds."""
        return mean(self.values(statistic))

    def ratio(self, above: Callable[[U], float], below: Callable[[U], float]) -> Estimate:
        """Return the ratio of two means over the same units."""
        return ratio(self.values(above), self.values(below))

    def summary(self) -> Summary:
        """Return tables, figures and ratios of the experiment.

        Raises:
            ConfigurationError: the configuration does not measure what the experiment compares.
        """
        experiment = experiment_of(self.config.experiment)
        return Summary(
            experiment=self.config.experiment, claim=experiment.claim, findings=experiment.analyse(self), cost=self.cost
        )


@dataclass(frozen=True, kw_only=True)
class Experiment(Generic[U]):
    """One claim, what it takes to measure it, and how it is analysed.

    Attributes:
        claim: in a sentence.
        config: its own configuration.
        quick: settings of a run that takes less than a minute on two cores.
        analyse: a pure function of the study.
        measure: what is measured for a question and a seed; a pool of draws unless it says otherwise.
    """

    claim: str
    config: ExperimentConfig
    quick: Mapping[str, Any]
    analyse: Callable[[Study[U]], Findings]
    measure: Callable[[Bench, Question, int], U] = measure_pool  # type: ignore[assignment]


def experiment_of(name: str) -> Experiment[Any]:
    """Return an experiment by its name.

    Raises:
        ConfigurationError: there is none of that name.
    """
    module = import_module(f"{__package__}.{EXPERIMENTS[choice('experiment', name, choices=tuple(EXPERIMENTS))]}")
    experiment: Experiment[Any] = module.EXPERIMENTS[name]
    return experiment


def load_config(path: Path, *, experiment: str | None = None) -> ExperimentConfig:
    """Return an experiment's own configuration with the settings of a YAML file.

    Args:
        path: a mapping of settings. Paths in it are relative to the file.
        experiment: its name, where the file does not give one.

    Raises:
        ConfigurationError: the file cannot be read, or a setting is invalid.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise refuse(str(path), "a mapping of settings", loaded)
    settings = {str(name): value for name, value in loaded.items()}
    settings.update({name: path.parent / settings[name] for name in ("questions", "sponsors") if name in settings})
    name = settings.pop("experiment", experiment)
    if experiment not in (None, name):
        raise ConfigurationError(f"{path} is for the experiment {name!r}, not {experiment!r}.")
    try:
        return experiment_of(name).config.changed(**settings)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def run(
    config: ExperimentConfig | str,
    *,
    seed: int | Iterable[int] | None = None,
    quick: bool = False,
    model: Runnable[Any, Any] | None = None,
    scorer: SequenceScorer | None = None,
    judge: Runnable[Any, Any] | None = None,
    embeddings: Embeddings | None = None,
    proposals: Mapping[str, Proposal] | None = None,
    out: Path | str | None = None,
    progress: bool | Callable[[Progress], None] | None = None,
) -> Study[Any]:
    """Measure what an experiment needs, for every question and seed.

    Measurements are stored as soon as they are made. A run in the same folder goes on where the last one was stopped,
    and shares what it can with other experiments there. Proposals and families of rewards that need more than the model
    can do are left out, with a warning.

    Args:
        config: of the experiment, or its name for its own configuration.
        seed: one or several, in place of the configuration's.
        quick: whether the settings of a run that takes less than a minute replace those of the configuration.
        model: a chat model, in place of the configuration's. Give it the `max_tokens` that you want.
        scorer: says how likely replies are, for a model that cannot say it itself.
        judge: a chat model that grades replies.
        embeddings: for the relevance of replies to the question.
        proposals: further proposals, by the names that the configuration uses.
        out: a folder for what is measured. None keeps it in memory.
        progress: True shows a bar on standard error, in a shell or a notebook; a function is called after each question
            and seed.

    Raises:
        ConfigurationError: a setting is invalid, or the model cannot do what the configuration asks for.
        CandidatesError: a model call failed. Run again to go on.

    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> config = ExperimentConfig(experiment="welfare", n_questions=2, draws=4)
    >>> study = run(config, seed=range(2), model=MarkovChatModel(length=6))
    >>> [[pool.question.id for pool in row] for row in study.units]
    [['houseplants', 'houseplants'], ['dinner', 'dinner']]
    """
    config = experiment_of(config).config if isinstance(config, str) else config
    experiment = experiment_of(config.experiment)
    settings: dict[str, Any] = dict(experiment.quick) if quick else {}
    if seed is not None:
        settings["seeds"] = (seed,) if isinstance(seed, int) else tuple(seed)
    config = config.changed(**settings)
    questions = _questions(config)
    with Store(None if out is None else Path(out) / STORE) as store, progress_hook(progress=progress) as hook:
        bench = Bench(
            config=config,
            model=model_by_name(config.model, max_tokens=config.max_tokens) if model is None else model,
            store=store,
            scorer=scorer,
            judge=judge,
            embeddings=embeddings,
            proposals={**PROPOSALS, **(proposals or {})},
        )
        config = within_reach(bench)
        bench = replace(bench, config=config)
        places = [(question, seed) for question in questions for seed in config.seeds]
        units: list[Any] = []
        start, measured = time.perf_counter(), 0
        for done, (question, each) in enumerate(places, 1):
            reused = store.cost.reused
            units.append(experiment.measure(bench, question, each))
            measured += store.cost.reused == reused
            if hook is not None:
                left = (time.perf_counter() - start) / measured * (len(places) - done) if measured else None
                hook(Progress(done=done, total=len(places), seconds_left=left))
        seeds = len(config.seeds)
        rows = tuple(tuple(units[k : k + seeds]) for k in range(0, len(units), seeds))
        return Study(config=config, questions=questions, units=rows, cost=store.cost)


def _questions(config: ExperimentConfig) -> tuple[Question, ...]:
    if config.questions is None:
        return tuple(builtin_questions(domains=config.domains or None, limit=config.n_questions))
    loaded = load_questions(config.questions, sponsors_path=config.sponsors)
    kept = [question for question in loaded if not config.domains or question.domain in config.domains]
    if not kept:
        raise ConfigurationError(f"{config.questions} has no question of the domains {', '.join(config.domains)}.")
    return tuple(kept[: config.n_questions])
