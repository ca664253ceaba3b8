"""`llm-auction run`: holds one auction and shows all of it."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from llm_auction_chain.cli.auction_tables import show
from llm_auction_chain.cli.tables import add_format, write_json
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.validators import text, whole_number

if TYPE_CHECKING:
    from llm_auction_chain.auction.events import Progress
    from llm_auction_chain.auction.result import AuctionResult

DEFAULT_QUESTION = "How do I learn to play the guitar?"
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
    add_format(run)


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
    if options.format == "json":
        write_json(_as_json(result))
    else:
        show(result, Console())


def _hold(options: Namespace, errors: Console) -> "AuctionResult":
    """Hold the auction, and show its progress. All settings are checked before the model is loaded."""
    from langchain_core.runnables import RunnablePassthrough

    from llm_auction_chain.agents import load_agents
    from llm_auction_chain.interfaces.runnable import AuctionRunnable

    agents = load_agents(options.agents, allow_code=options.allow_code)
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
