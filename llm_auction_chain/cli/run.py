"""`llm-auction run`: holds one auction and shows all of it."""

from argparse import Namespace
from dataclasses import fields
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from llm_auction_chain.cli.auction_tables import show
from llm_auction_chain.cli.tables import write_json
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.validators import refuse, text, whole_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_auction_chain.agents import Agent
    from llm_auction_chain.auction.events import Progress
    from llm_auction_chain.auction.result import AuctionResult

_T = TypeVar("_T")
DEFAULT_QUESTION = "How do I learn to play the guitar?"
_REWARDS = {"mention": "MentionReward", "regex": "RegexReward", "length": "LengthReward", "log_ratio": "LogRatioReward"}
_LABELS = {"candidates": "drawing candidates", "weights": "weighing them", "rewards": "asking agents"}


def add_run(commands: Any) -> None:
    """Add the command to those of the parser."""
    from llm_auction_chain.mechanism import PAYMENT_RULES

    run = commands.add_parser("run", help="hold one auction and show all of it")
    run.set_defaults(do=_run)
    run.add_argument("question", nargs="?", default=DEFAULT_QUESTION, metavar="QUESTION", help="what the user asks")
    about = "name, reward, owner, context, ... of each agent; a reward `module:function` is code, see --allow-code"
    run.add_argument("--agents", metavar="FILE.yaml", help=about)
    about = "import the modules that the agents file names, and run their functions: only for a file that you trust"
    run.add_argument("--allow-code", action="store_true", help=about)
    run.add_argument("--model", metavar="MODEL", help="a local path or hub id for transformers, or provider:model")
    run.add_argument("--candidates", type=int, default=16, metavar="M", help="replies to draw from (16)")
    run.add_argument("--tau", type=float, default=4.0, help="weight of the reference model, money per nat (4)")
    run.add_argument("--payment-rule", default="expected", metavar="RULE", help=", ".join(PAYMENT_RULES))
    run.add_argument("--seed", type=int, help="gives the same auction again")
    run.add_argument("--max-tokens", type=int, default=64, metavar="N", help="longest reply (64)")
    run.add_argument("--json", action="store_true", help="print the outcome as JSON")


def _run(options: Namespace) -> None:
    if not options.question.strip():
        raise ConfigurationError("The question is empty. Leave it out for the demo's.")
    try:
        options.question.encode()
    except UnicodeEncodeError as error:  # the shell passed bytes that are no text
        raise ConfigurationError("The question is not UTF-8.") from error
    whole_number("--max-tokens", options.max_tokens, least=1)
    for option, value in (("--agents", options.agents), ("--model", options.model)):
        if value is not None:
            text(option, value)
    result = _hold(options, Console(stderr=True))
    if options.json:
        write_json(_as_json(result))
    else:
        show(result, Console())


def _hold(options: Namespace, errors: Console) -> "AuctionResult":
    """Hold the auction, and show its progress. All settings are checked before the model is loaded."""
    from langchain_core.runnables import RunnablePassthrough

    from llm_auction_chain.interfaces.runnable import AuctionRunnable

    agents = load_agents(None if options.agents is None else Path(options.agents), allow_code=options.allow_code)
    rules = {"tau": options.tau, "payment_rule": options.payment_rule, "seed": options.seed}
    checked = AuctionRunnable(model=RunnablePassthrough(), agents=agents, n_candidates=options.candidates, **rules)
    texts = TextColumn("{task.description}"), TextColumn("{task.fields[rate]}")
    with Bars(texts[0], BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), texts[1], console=errors) as bars:
        loading = bars.add_task("loading the model", total=None, rate="")
        tasks: dict[str, Any] = {}

        def advance(progress: "Progress") -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(_LABELS[progress.stage], total=progress.total, rate="")
            bars.start_task(tasks[progress.stage])
            rate = f"{progress.tokens_per_second:,.0f} tokens/s" if progress.tokens_per_second else ""
            bars.update(tasks[progress.stage], completed=progress.done, total=progress.total, rate=rate)

        tasks["candidates"] = bars.add_task(_LABELS["candidates"], total=options.candidates, start=False, rate="")
        model = _load_model(options.model, options.max_tokens, bars, loading)
        bars.update(loading, total=1, completed=1)
        bars.start_task(tasks["candidates"])
        checked.model = model
        return checked.run(options.question, progress=advance)


def _load_model(name: str | None, max_tokens: int, bars: Bars, loading: Any) -> Any:
    from llm_auction_chain.models.by_name import model_by_name

    model = model_by_name(name, max_tokens=max_tokens)
    if load := getattr(model, "load", None):
        from llm_auction_chain.models.local.weights import embedded_model_is_converted, embedded_model_path

        if name is None and not embedded_model_is_converted():
            bars.update(loading, description="converting the embedded model (once)")
            embedded_model_path()
            bars.update(loading, description="loading the model")
        load()
    return model


def load_agents(path: Path | None, *, allow_code: bool = False) -> "list[Agent]":
    """Return the agents of a YAML file; None reads the one that ships with the package.

    Only `allow_code` lets the file name functions, whose modules are imported.
    """
    where = "the default agents" if path is None else str(path)
    try:
        source = files("llm_auction_chain") / "agents.yaml" if path is None else path
        loaded = yaml.load(source.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader
    except OSError as error:
        raise ConfigurationError(f"{where} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # PyYAML lets errors of its constructors pass, as for the date 2026-02-30
        raise ConfigurationError(f"{where} is not YAML: {error}") from error
    if isinstance(loaded, dict):
        _refuse_unknown(loaded, ["agents"], f"{where}: it")
    entries = loaded.get("agents") if isinstance(loaded, dict) else loaded
    if not isinstance(entries, list):
        raise ConfigurationError(f"{where}: write a list of agents under `agents:`.")
    return [_agent(entry, f"{where}, agent {number}", allow_code=allow_code) for number, entry in enumerate(entries, 1)]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader. It refuses a key that is written twice, of which YAML would take the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        keys: set[str] = set()
        for key, _ in node.value:
            if key.value in keys:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                )
            keys.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _agent(entry: Any, where: str, *, allow_code: bool) -> "Agent":
    from llm_auction_chain.agents import Agent

    if isinstance(entry, dict):
        where = f"{where}, {entry['name']!r}" if "name" in entry else where
        _refuse_unknown(entry, [field.name for field in fields(Agent)], f"{where}: an agent")
    if not isinstance(entry, dict) or not {"name", "reward"} <= entry.keys():
        raise refuse(where, "a mapping with a name and a reward", entry)
    reward = _reward(entry["reward"], where, allow_code=allow_code)
    return _made(Agent, {**entry, "reward": reward}, where)


def _reward(spec: Any, where: str, *, allow_code: bool) -> Any:
    if isinstance(spec, dict) and spec:
        _refuse_unknown(spec, list(_REWARDS), f"{where}: reward")
        (kind, settings), *more = spec.items()
        if isinstance(settings, dict) and not more:
            reward = getattr(import_module("llm_auction_chain.rewards"), _REWARDS[kind])
            _refuse_unknown(settings, [field.name for field in fields(reward) if field.init], f"{where}: {kind}")
            return _made(reward, settings, where)
    if isinstance(spec, str) and ":" in spec:
        if not allow_code:
            raise ConfigurationError(
                f"{where}: reward {spec!r} names code, which would run. If you trust the file, give --allow-code."
            )
        module, _, function = spec.partition(":")
        try:
            return getattr(import_module(module), function)
        except (Exception, SystemExit) as error:  # the module is the user's own code
            reason = f"{type(error).__name__}: {error}"
            raise ConfigurationError(f"{where}: reward {spec!r} cannot be imported: {reason}.") from error
    raise ConfigurationError(
        f"{where}: reward is one of {', '.join(_REWARDS)} with its settings, as in `mention: {{phrases: [guitar], "
        "value: 2.0}`, or `package.module:function` under --allow-code."
    )


def _refuse_unknown(given: "Mapping[Any, Any]", names: "Sequence[str]", subject: str) -> None:
    """Refuse keys that are misspelled or belong elsewhere."""
    if unknown := [key for key in given if key not in names]:
        raise ConfigurationError(f"{subject} has no setting {unknown[0]!r}. It has {', '.join(names)}.")


def _made(kind: type[_T], settings: "Mapping[str, Any]", where: str) -> _T:
    """Return an object with these settings. Errors name the file and the agent."""
    try:
        return kind(**settings)
    except (TypeError, ConfigurationError) as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _as_json(result: "AuctionResult") -> dict[str, Any]:
    """Return all of the auction, with the private rewards: the command is for the platform."""
    return {
        **result.reply.response_metadata["auction"],
        "reply": result.reply.text,
        "usage": result.usage,
        "influences": result.settlement.influences.tolist(),
        "candidates": [
            {
                "text": candidate.message.text,
                "draws": candidate.draws,
                "component": candidate.component,
                "log_weight": candidate.log_weight,
                "rewards": [report.rewards[j] for report in result.reports],
                "probability": float(result.settlement.probabilities[j]),
            }
            for j, candidate in enumerate(result.candidates)
        ],
    }
