"""`overhead`: time, tokens and memory of an auction against one plain reply, against M and the number of agents."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata

from llm_auction_chain.auction.events import AuctionEvent, Progress
from llm_auction_chain.auction.settings import Sampling
from llm_auction_chain.experiments.config import ExperimentConfig
from llm_auction_chain.experiments.pools import Bench
from llm_auction_chain.experiments.questions import Question, Sponsor, builtin_questions
from llm_auction_chain.experiments.results import Figure, Findings, Series, Table, mean
from llm_auction_chain.experiments.store import Arrays
from llm_auction_chain.experiments.study import Experiment, Study
from llm_auction_chain.interfaces.runnable import AuctionRunnable
from llm_auction_chain.messages import total_usage
from llm_auction_chain.validators import choice

__all__ = ["EXPERIMENTS", "Costs", "Setting"]

T = TypeVar("T")
Floats = npt.NDArray[np.float64]

STAGES = ("drawing", "scoring", "asking", "settling", "recording", "the rest")
_AGENTS = (1, 2, 4, 8)
_M, _N = 16, 2  # of the ratios, and what does not vary where the other one does
_MIB = 2**20
_ENOUGH = 3  # different points, which a line needs to be tested on
_NOTES = """\
The paper counts M (L + n + 1) passes: M replies of L tokens, each scored once for the reference and for each agent. \
That is for log-ratio rewards, a model pass each; rewards that ask no model cost none, whatever n is.
Passes differ. A step of drawing is one token of each reply, and a local model takes it for all replies at once. \
Scoring reads whole replies at once, behind prompts that are read once for all replies; for weights it skips equal \
replies and log-probabilities that come with the draw. So the one slope is a summary; the two below it tell more.
The count is for the context prompt, the paper's proposal. The default of a local model draws most replies from a \
product of up to n + 1 prompts, each of which takes every step: passes that this count leaves out.
Without agents an auction draws one reply, so n begins at 1. Scored tokens are in no usage that models report.
Recording is the commitment and the receipt; there is no ledger, whose cost depends on its database.
Memory is the process's resident memory with the model, and with what it keeps of earlier auctions; not a GPU's.
All seconds are of one machine under its load at that time: compare ratios of one run only.""".splitlines()


class Setting(NamedTuple):
    """One auction.

    Attributes:
        family: of the rewards.
        proposal: what candidates are drawn from.
        m: candidates.
        n: agents.
    """

    family: str
    proposal: str
    m: int
    n: int


def _settings(config: ExperimentConfig) -> list[Setting]:
    """Return the auctions of a question, the small ones first: M varies with two agents, and n with the M of `_m`."""
    sizes = sorted({(m, _N) for m in config.n_candidates} | {(_m(config), n) for n in _AGENTS})
    return [Setting(family, name, m, n) for family in config.families for name in config.proposals for m, n in sizes]


def _m(config: ExperimentConfig) -> int:
    """Return 16, or the M that is nearest to it."""
    return min(config.n_candidates, key=lambda m: (abs(m - _M), m))


@dataclass(frozen=True, kw_only=True, eq=False)
class Costs:
    """What the auctions of a question and seed cost, each beside a plain reply that was timed right before it.

    Attributes:
        settings: (K,), of the auctions.
        stages: (K, 6), seconds of each of `STAGES`.
        tokens: (K, 2), that the model read and wrote, as it reports them; nan where it does not.
        memory: (K,), most memory of the process, MiB; nan where the system does not say it.
        reply_seconds: (K,), of the plain replies.
        reply_tokens: (K, 2), of the plain replies.
        reply_memory: (K,), of the plain replies, MiB.
    """

    settings: Sequence[Setting]
    stages: Floats
    tokens: Floats
    memory: Floats
    reply_seconds: Floats
    reply_tokens: Floats
    reply_memory: Floats

    @cached_property
    def seconds(self) -> Floats:
        """(K,), of each auction, with its receipt."""
        return np.asarray(self.stages.sum(axis=1))

    @cached_property
    def passes(self) -> Floats:
        """(K,), M (L + n + 1), where L is the mean length of a reply: the paper's count of model passes."""
        m, n = (np.array([getattr(one, name) for one in self.settings]) for name in ("m", "n"))
        return np.asarray(self.tokens[:, 1] + m * (n + 1))


class _Clock:
    """Hears of an auction's stages and notes when each of them ends."""

    def __init__(self) -> None:
        self.ends = {"begin": time.perf_counter()}

    def on_event(self, event: AuctionEvent) -> None:
        self.ends[event.name] = time.perf_counter()

    def on_progress(self, progress: Progress) -> None:
        if progress.done == progress.total:
            self.ends[progress.stage] = time.perf_counter()

    def stages(self) -> list[float]:
        """Return seconds of each stage. The receipt is part of recording, after the auction's end."""
        ends = self.ends
        drawn = ends["candidates"]
        scored = max(drawn, ends.get("weights", drawn))
        commitment, reports, settlement = (ends[f"auction.{name}"] for name in ("candidates", "scored", "settled"))
        recorded = commitment - scored + ends["receipt"] - ends["reply"]
        rest = ends["auction.started"] - ends["begin"] + ends["reply"] - settlement
        return [
            drawn - ends["auction.started"], scored - drawn, reports - commitment, settlement - reports, recorded, rest,
        ]  # fmt: skip


def measure(bench: Bench, question: Question, seed: int) -> Costs:
    """Hold the auctions of a question, or return what they cost when they were held.

    Where an auction has more agents than the question has sponsors, those of the package's other questions take part.

    Raises:
        ConfigurationError: a proposal or a family of rewards needs more than model, scorer and judge can do.
        CandidatesError: a draw failed.
        RewardError: an agent failed.
    """
    config, settings = bench.config, _settings(bench.config)
    sponsors = list(islice(_sponsors(question), max(one.n for one in settings)))
    depends_on = {
        "measures": "overhead",
        "model": bench.identity,
        "max_tokens": config.max_tokens,
        "question": question.text,
        "sponsors": sponsors,
        "settings": settings,
        "tau": config.tau,
        "seed": seed,
    }
    arrays = bench.store.get(depends_on, lambda: _hold(bench, question, sponsors, settings, seed))
    return Costs(settings=settings, **arrays)


def _sponsors(question: Question) -> Iterator[Sponsor]:
    """Yield a question's sponsors, then others, each name and each context once."""
    seen: set[str] = set()
    for one in (question, *builtin_questions()):
        for sponsor in one.sponsors:
            if not seen & {sponsor.name, sponsor.context}:
                yield sponsor
            seen |= {sponsor.name, sponsor.context}


def _hold(
    bench: Bench, question: Question, sponsors: Sequence[Sponsor], settings: Sequence[Setting], seed: int
) -> tuple[Arrays, UsageMetadata | None]:
    usages: list[UsageMetadata] = []

    def plain() -> tuple[float, UsageMetadata | None]:
        start = time.perf_counter()
        reply = bench.model.invoke(question.text)
        return time.perf_counter() - start, reply.usage_metadata if isinstance(reply, AIMessage) else None

    def auction(setting: Setting) -> tuple[list[float], UsageMetadata | None]:
        clock = _Clock()
        runnable = AuctionRunnable(
            model=bench.model,
            agents=[one.agent(setting.family, judge=bench.judge) for one in sponsors[: setting.n]],
            n_candidates=setting.m,
            tau=bench.config.tau,
            proposal=bench.proposals[choice("proposals", setting.proposal, choices=tuple(bench.proposals))],
            seed=seed,
            reward_timeout=None,
            on_agent_error="raise",
            on_event=clock.on_event,
            sampling=Sampling(scorer=bench.scorer, min_candidates=setting.m),
        )
        clock.ends["begin"] = time.perf_counter()
        result = runnable.run(question.text, progress=clock.on_progress)
        clock.ends["reply"] = time.perf_counter()
        result.receipt.digest  # noqa: B018 - makes the receipt
        clock.ends["receipt"] = time.perf_counter()
        return clock.stages(), result.usage

    plain()  # whatever is loaded, compiled or cached at first use does not count
    auction(settings[0])
    rows = []
    for setting in settings:
        (alone, of_reply), at_reply = _with_peak(plain)
        (stages, of_auction), at_auction = _with_peak(lambda setting=setting: auction(setting))  # type: ignore[misc]
        usages += [one for one in (of_reply, of_auction) if one]
        rows.append((stages, _tokens(of_auction), at_auction, alone, _tokens(of_reply), at_reply))
    names = ("stages", "tokens", "memory", "reply_seconds", "reply_tokens", "reply_memory")
    arrays = {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    return arrays, total_usage(usages) if usages else None


def _tokens(usage: UsageMetadata | None) -> tuple[float, float]:
    return (usage["input_tokens"], usage["output_tokens"]) if usage else (math.nan, math.nan)


def _with_peak(work: Callable[[], T]) -> tuple[T, float]:
    """Return the result of a work and the most memory that the process held meanwhile, MiB.

    It is resident memory, with the model's weights: `tracemalloc` does not see tensors, and the maximum of `getrusage`
    never falls again. Linux can start its maximum anew; elsewhere this is nan.
    """
    own = Path("/proc/self")
    try:
        (own / "clear_refs").write_text("5", encoding="ascii")  # man 5 proc: resets VmHWM
    except OSError:
        return work(), math.nan
    result = work()
    peaks = [line for line in (own / "status").read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")]
    return result, int(peaks[0].split()[1]) * 1024 / _MIB if peaks else math.nan


def analyse(study: Study[Costs]) -> Findings:
    """Return what auctions cost, by stage, and how well the paper's count of passes explains it."""
    settings = study.units[0][0].settings
    m, first = _m(study.config), settings[0]
    chosen = settings.index(Setting(first.family, first.proposal, m, _N))
    times = study.ratio(lambda one: one.seconds[chosen], lambda one: one.reply_seconds.mean())
    tokens = study.ratio(lambda one: one.tokens[chosen, 1], lambda one: one.reply_tokens[:, 1].mean())
    kinds = list(dict.fromkeys((one.family, one.proposal) for one in settings))
    count = study.ratio(lambda one: one.passes[chosen], lambda one: one.reply_tokens[:, 1].mean())
    sentence = (
        f"The ratios are of M = {m}, n = {_N}, {first.family}, {first.proposal!r}. Against one plain reply an auction "
        f"takes {times} times the seconds (by the paper's count {count} times the passes) and {tokens} times the "
        "written tokens. The two took turns in one run."
    )
    return Findings(
        tables=(_totals(study), _stages(study), _fits(study, kinds)),
        figures=_figures(study, kinds, m),
        ratios={"auction_vs_one_reply": times.value, "tokens_written_vs_one_reply": tokens.value},
        notes=(sentence, *_NOTES),
    )


def _totals(study: Study[Costs]) -> Table:
    def row(k: int, setting: Setting) -> tuple[Any, ...]:
        seconds = study.mean(lambda one: one.seconds[k])
        times = study.ratio(lambda one: one.seconds[k], lambda one: one.reply_seconds.mean())
        used = [study.mean(lambda one, t=t: one.tokens[k, t]) for t in range(2)]  # type: ignore[misc]
        return (*setting, seconds, times, *used, study.mean(lambda one: one.memory[k]))

    plain: tuple[Any, ...] = (
        study.mean(lambda one: one.reply_seconds.mean()), 1.0,
        *(study.mean(lambda one, t=t: one.reply_tokens[:, t].mean()) for t in range(2)),  # type: ignore[misc]
        study.mean(lambda one: one.reply_memory[0]),
    )  # fmt: skip
    return Table(
        title="Auctions and a plain reply",
        columns=(
            "rewards", "proposal", "M", "n", "seconds", "times one plain reply", "tokens read", "tokens written",
            "most memory (MiB)",
        ),
        rows=(("plain reply", "", 1, 0, *plain), *(row(*each) for each in enumerate(study.units[0][0].settings))),
    )  # fmt: skip


def _stages(study: Study[Costs]) -> Table:
    return Table(
        title="Seconds of each stage",
        columns=("rewards", "proposal", "M", "n", *STAGES),
        rows=tuple(
            (*setting, *(study.mean(lambda one, k=k, s=s: one.stages[k, s]) for s in range(len(STAGES))))  # type: ignore[misc]
            for k, setting in enumerate(study.units[0][0].settings)
        ),
    )


def _fits(study: Study[Costs], kinds: Sequence[tuple[str, str]]) -> Table:
    """Return least-squares lines through the auctions of each question and seed."""
    rows: list[tuple[Any, ...]] = []
    for kind in kinds:
        at = [k for k, one in enumerate(study.units[0][0].settings) if one[:2] == kind]
        lines: dict[str, Callable[[Costs], tuple[Floats, Floats]]] = {
            "auction, by M (L + n + 1)": lambda one, at=at: (one.passes[at], one.seconds[at]),  # type: ignore[misc]
            "drawing, by M L": lambda one, at=at: (one.tokens[at, 1], one.stages[at, 0]),  # type: ignore[misc]
            "scoring and asking, by M (n + 1)": lambda one, at=at: (  # type: ignore[misc]
                (one.passes - one.tokens[:, 1])[at],
                one.stages[at, 1:3].sum(axis=1),
            ),
        }
        for name, points in lines.items():
            fits = study.values(lambda one, points=points: _line(*points(one)))  # type: ignore[misc]
            rows.append((*kind, name, mean(1e3 * fits[..., 0]), mean(fits[..., 1]), mean(fits[..., 2])))
    return Table(
        title="Least squares, seconds = fixed + slope x passes, over M and n",
        columns=("rewards", "proposal", "line", "slope (ms per pass)", "fixed (s)", "R squared"),
        rows=tuple(rows),
    )


def _line(x: Floats, y: Floats) -> tuple[float, float, float]:
    """Return slope, intercept and R squared of a least-squares line; nan where there are too few different points.

    >>> [round(each, 6) for each in _line(np.array([1.0, 2.0, 3.0]), np.array([3.0, 5.0, 7.0]))]
    [2.0, 1.0, 1.0]
    """
    if not np.isfinite(x).all() or len(np.unique(x)) < _ENOUGH or not y.std() > 0:
        return math.nan, math.nan, math.nan
    slope, fixed = np.polyfit(x, y, 1)
    return float(slope), float(fixed), float(1 - np.square(y - fixed - slope * x).sum() / np.square(y - y.mean()).sum())


def _figures(study: Study[Costs], kinds: Sequence[tuple[str, str]], m: int) -> tuple[Figure, ...]:
    settings = study.units[0][0].settings

    def against(name: str, kept: Callable[[Setting], bool]) -> tuple[Series, ...]:
        lines = []
        for kind in kinds:
            places = [k for k, one in enumerate(settings) if one[:2] == kind and kept(one)]
            times = [study.ratio(lambda one, k=k: one.seconds[k], lambda one: one.reply_seconds.mean()) for k in places]  # type: ignore[misc]
            lines.append(Series(label=", ".join(kind), x=[getattr(settings[k], name) for k in places], y=times))
        return tuple(lines)

    typical = [settings.index(Setting(*kind, m, _N)) for kind in kinds]
    passes = study.values(lambda one: one.passes).reshape(-1, len(settings))
    seconds = study.values(lambda one: one.seconds).reshape(-1, len(settings))
    at = [[k for k, one in enumerate(settings) if one[:2] == kind] for kind in kinds]
    return (
        Figure(
            name="overhead_candidates", title=f"An auction against M (n = {_N})", x_label="candidates M",
            y_label="seconds, times one plain reply", series=against("m", lambda one: one.n == _N), x_log=True,
        ),
        Figure(
            name="overhead_agents", title=f"An auction against the number of agents (M = {m})", x_label="agents n",
            y_label="seconds, times one plain reply", series=against("n", lambda one: one.m == m),
        ),
        Figure(
            name="overhead_stages", title=f"Where the time goes (M = {m}, n = {_N})", x_label="seconds", y_label="",
            kind="bars",
            series=tuple(
                Series(
                    label=", ".join(kind), x=STAGES,
                    y=[study.mean(lambda one, k=k, s=s: one.stages[k, s]) for s in range(len(STAGES))],  # type: ignore[misc]
                )
                for k, kind in zip(typical, kinds, strict=True)
            ),
        ),
        Figure(
            name="overhead_passes", title="Seconds against the paper's count of passes", x_label="M (L + n + 1)",
            y_label="seconds of an auction", kind="points",
            series=tuple(
                Series(label=", ".join(kind), x=passes[:, k].ravel().tolist(), y=seconds[:, k].ravel().tolist())
                for kind, k in zip(kinds, at, strict=True)
            ),
        ),
    )  # fmt: skip


EXPERIMENTS = {
    "overhead": Experiment(
        claim="An auction costs about M (L + n + 1) passes of the model; one plain reply costs L.",
        config=ExperimentConfig(
            experiment="overhead", families=("log_ratio", "mentions"), proposals=("product mixture", "context prompt")
        ),
        quick={
            "n_questions": 1,
            "seeds": (0, 1),
            "max_tokens": 8,
            "families": ("log_ratio",),
            "proposals": ("context prompt",),
            "n_candidates": (1, 4, 16),
        },
        analyse=analyse,
        measure=measure,
    )
}
