"""`llm-auction run`: holds one auction and shows all of it."""

import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from llm_auction_chain.cli.auction_tables import show, show_details, show_sweep
from llm_auction_chain.cli.files import whole_file
from llm_auction_chain.cli.tables import add_format, write_json, write_line
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.models.by_name import EMBEDDED, model_by_name
from llm_auction_chain.validators import number, text, whole_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_core.language_models import LanguageModelInput

    from llm_auction_chain.auction.events import Progress
    from llm_auction_chain.auction.result import AuctionResult
    from llm_auction_chain.auction.tau_sweep import TauPoint
    from llm_auction_chain.interfaces.runnable import AuctionRunnable

DEFAULT_QUESTION = "Suggest a healthy breakfast in one sentence."
_MODEL = "local path or hub id for transformers, vllm:model, or provider:model; without it, the embedded model"
_FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of tau, for the sweep


def add_run(commands: Any) -> None:
    """Add the command to those of the parser."""
    run = commands.add_parser(
        "run",
        help="hold one auction and show all of it",
        description="Holds one auction, and prints the candidates, the reply, and what each agent pays. Without "
        "arguments it is a demo: three agents, and a small language model that runs on your CPU.",
    )
    run.set_defaults(do=_run)
    run.add_argument("question", nargs="?", default=DEFAULT_QUESTION, metavar="QUESTION", help="what the user asks")
    add_settings(run)
    about = "show log-weights, contributions, expected payments and effective sample sizes, too"
    run.add_argument("--details", action="store_true", help=about)
    about = "settle the same candidates at other values of tau, too: welfare, revenue, distance from the model"
    run.add_argument("--tau-sweep", action="store_true", help=about)
    about = "write the receipt as JSON, for `llm-auction verify`; it has all reports, so keep it to yourself"
    run.add_argument("--receipt", metavar="FILE", type=Path, help=about)
    about = "write the whole result as JSON, for `AuctionResult.from_dict`; it has all reports, too"
    run.add_argument("--save", metavar="FILE", type=Path, help=about)
    add_format(run)


def add_settings(command: ArgumentParser) -> None:
    """Add the settings of an auction."""
    from llm_auction_chain.mechanism import PAYMENT_RULES

    about = "file of agents: name, reward, owner, context, ...; a reward `module:function` is code, see --allow-code"
    command.add_argument("--agents", metavar="FILE.yaml", help=about)
    about = "import the modules that the agents file names, and run their functions: only for a file that you trust"
    command.add_argument("--allow-code", action="store_true", help=about)
    command.add_argument("--model", metavar="MODEL", help=_MODEL)
    command.add_argument("--candidates", type=int, default=8, metavar="M", help="how many replies to draw (8)")
    command.add_argument("--tau", type=float, default=4.0, help="weight of the reference model, money per nat (4)")
    command.add_argument("--currency", metavar="C", help="unit of rewards, payments and tau, such as EUR")
    about = f"how the charge follows from the draw: {', '.join(PAYMENT_RULES)} (proportional)"
    command.add_argument("--payment-rule", default="proportional", metavar="RULE", help=about)
    command.add_argument("--seed", type=int, help="a number; the same one gives the same auction again")
    command.add_argument("--max-tokens", type=int, default=64, metavar="N", help="most tokens of a reply (64)")
    about = f"the lower, the likelier the model's replies ({EMBEDDED['temperature']} for the embedded model)"
    command.add_argument("--temperature", type=float, metavar="T", help=about)
    command.add_argument("--top-p", type=float, metavar="P", help="sample only the likeliest tokens that make up P")


def _run(options: Namespace) -> None:
    question = checked_question(options.question)
    auction = checked_auction(options)
    console = Console()
    named = [os.path.realpath(path) for path in (options.agents, options.receipt, options.save) if path is not None]
    if len({*named}) < len(named):
        raise ConfigurationError("Two of --agents, --receipt and --save are the same file. Name another one.")
    with ExitStack() as files:
        paths = {"--receipt": options.receipt, "--save": options.save}
        written = {name: files.enter_context(whole_file(name, path)) for name, path in paths.items() if path}
        if options.format != "json":
            write_line(console, f"Question: {question}", "bold")
            if auction.agents:
                write_line(console, "Agents bid on what the model may say. Bids move the chances; one reply is drawn.")
        with progress_bars() as bars:
            load_model(auction, options, bars)
            result = hold(auction, question, bars)
        if file := written.get("--receipt"):
            file.write(f"{json.dumps(result.receipt.as_dict(), indent=2, allow_nan=False)}\n")
        if file := written.get("--save"):
            file.write(f"{result.to_json(indent=2)}\n")
    points = _swept(result) if options.tau_sweep else ()
    if options.format == "json":
        write_json({**_as_json(result), **({"tau_sweep": [_point(point) for point in points]} if points else {})})
    else:
        (show_details if options.details else show)(result, console)
        if points:
            show_sweep(result, points, console)
        elif not options.details:
            for line in _legend(options, result.seed):
                write_line(console, line, "dim")


def checked_question(question: str) -> str:
    """Return the question, unless there is none or it is no text."""
    if not question.strip():
        raise ConfigurationError("The question is empty. Leave it out for the demo's.")
    try:
        question.encode()
    except UnicodeEncodeError as error:  # the shell passed bytes that are no text
        raise ConfigurationError("The question is not UTF-8.") from error
    return question


def checked_auction(options: Namespace) -> "AuctionRunnable":
    """Return the auction of the options, all of them checked. Its model comes with `load_model`."""
    from langchain_core.runnables import RunnablePassthrough

    from llm_auction_chain.agents import load_agents
    from llm_auction_chain.auction.settings import Billing
    from llm_auction_chain.interfaces.runnable import AuctionRunnable

    whole_number("--candidates", options.candidates, least=1)
    whole_number("--max-tokens", options.max_tokens, least=1)
    for option, value in (("--agents", options.agents), ("--model", options.model)):
        if value is not None:
            text(option, value)
    if options.temperature is not None:
        number("--temperature", options.temperature, least=0)
    if options.top_p is not None:
        number("--top-p", options.top_p, above=0, most=1)
    return AuctionRunnable(
        model=RunnablePassthrough(),
        agents=load_agents(options.agents, allow_code=options.allow_code),
        n_candidates=options.candidates,
        tau=options.tau,
        payment_rule=options.payment_rule,
        seed=options.seed,
        billing=Billing(currency=options.currency or ""),
    )


def progress_bars(*, quiet: bool = False) -> Bars:
    """Return bars on standard error, or hidden ones. On a terminal they vanish at the end."""
    texts = TextColumn("{task.description}"), TextColumn("{task.fields[rate]}")
    columns = (texts[0], BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), texts[1])
    console = Console(stderr=True, quiet=quiet)
    return Bars(*columns, console=console, transient=console.is_terminal)


def load_model(auction: "AuctionRunnable", options: Namespace, bars: Bars) -> None:
    """Load the model of the options into the auction."""
    loading = bars.add_task("loading the model", total=None, rate="")
    model = _load_model(options.model, options.max_tokens, bars, loading)
    bars.update(loading, total=1, completed=1)
    sampling = {"temperature": options.temperature, "top_p": options.top_p}
    sampling = {name: value for name, value in sampling.items() if value is not None}
    auction.model = model.bind(**sampling) if sampling else model


def hold(auction: "AuctionRunnable", prompt: "LanguageModelInput", bars: Bars) -> "AuctionResult":
    """Hold the auction, and show its progress."""
    tasks: dict[str, Any] = {}

    def advance(progress: "Progress") -> None:
        if progress.stage not in tasks:
            tasks[progress.stage] = bars.add_task(progress.label, total=progress.total, rate="")
        bars.update(tasks[progress.stage], completed=progress.done, total=progress.total, rate=progress.note)

    return auction.run(prompt, progress=advance)


def _load_model(name: str | None, max_tokens: int, bars: Bars, loading: Any) -> Any:
    model = model_by_name(name, max_tokens=max_tokens, **(EMBEDDED if name is None else {}))
    load_weights(model, bars, loading)
    return model


def load_weights(model: Any, bars: Bars, loading: Any) -> None:
    """Load the weights of a model on this machine; another has none."""
    if load := getattr(model, "load", None):
        from llm_auction_chain.models.local.weights import embedded_model_is_converted, embedded_model_path

        if model.model is None and not embedded_model_is_converted():
            bars.update(loading, description="converting the embedded model, once: about 20 seconds")
            embedded_model_path()
            bars.update(loading, description="loading the model")
        load()


def _legend(options: Namespace, seed: int) -> Iterator[str]:
    """Yield how to read the auction, and what to try next."""
    yield "An agent pays for how far its bids moved the draw, so honest bids serve it best."
    if options.model is None:
        temperature = EMBEDDED["temperature"] if options.temperature is None else options.temperature
        yield f"Chances are those of the model at temperature {temperature:g}, and exact for it."
    yield f"Next: --details --seed {seed} (all figures), --agents FILE.yaml (your own bidders)"


def _swept(result: "AuctionResult") -> "Sequence[TauPoint]":
    from llm_auction_chain.auction.tau_sweep import tau_sweep

    return tau_sweep(result, [result.settlement.tau * factor for factor in _FACTORS])


def _point(point: "TauPoint") -> dict[str, Any]:
    return {
        "tau": point.tau,
        "welfare": point.welfare,
        "expected_revenue": point.expected_revenue,
        "distance": point.distance,
        "ess": point.settlement.diagnostics.ess_probabilities,
        "winner": point.settlement.winner,
        "probabilities": point.settlement.probabilities.tolist(),
    }


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
