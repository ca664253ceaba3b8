"""`llm-auction`: hold an auction from the shell."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_auction_chain.agents import Agent
from llm_auction_chain.auction import AuctionResult, Progress
from llm_auction_chain.errors import AuctionError, ConfigurationError, MissingDependencyError, PromptError
from llm_auction_chain.interfaces.runnable import AuctionRunnable
from llm_auction_chain.mechanism import PAYMENT_RULES
from llm_auction_chain.rewards import MentionReward

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["main"]

DEFAULT_QUESTION = "How do I learn to play the guitar?"
_BAD_INPUT = 2
_FAILED = 1
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 where the auction failed, 2 for bad input, 130 where it was interrupted."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        _run(options)
    except (ConfigurationError, MissingDependencyError, PromptError) as error:
        sys.stderr.write(f"llm-auction: {error}\n")
        return _BAD_INPUT
    except AuctionError as error:
        sys.stderr.write(f"llm-auction: {error}\n")
        return _FAILED
    except BrokenPipeError:
        return _FAILED
    except KeyboardInterrupt:
        sys.stderr.write("llm-auction: interrupted\n")
        return _INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llm-auction", description="Auctions over the replies of a language model.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="hold one auction and show all of it")
    run.add_argument("question", nargs="?", default=DEFAULT_QUESTION, metavar="QUESTION", help="what the user asks")
    run.add_argument("--agents", metavar="FILE.yaml", help="name, owner, context and reward of each agent")
    run.add_argument("--model", metavar="MODEL", help="a local path or hub id for transformers, or provider:model")
    run.add_argument("--candidates", type=int, default=16, metavar="M", help="replies to draw from (16)")
    run.add_argument("--tau", type=float, default=1.0, help="weight of the reference model, money per nat (1)")
    run.add_argument("--payment-rule", default="expected", metavar="RULE", help=", ".join(PAYMENT_RULES))
    run.add_argument("--seed", type=int, help="gives the same auction again")
    run.add_argument("--max-tokens", type=int, default=64, metavar="N", help="longest reply (64)")
    run.add_argument("--json", action="store_true", help="print the outcome as JSON")
    return parser


def _run(options: argparse.Namespace) -> None:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars
    except ImportError as error:
        raise MissingDependencyError("The command needs the cli extra: pip install 'llm-auction-chain[cli]'") from error
    if options.max_tokens < 1:
        raise ConfigurationError(f"--max-tokens is {options.max_tokens}; it must be at least 1.")
    agents = load_agents(Path(options.agents) if options.agents else None)
    errors = Console(stderr=True)
    with Bars(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=errors
    ) as bars:
        loading = bars.add_task("loading the model", total=None)
        tasks: dict[str, Any] = {}

        def show(progress: Progress) -> None:
            label = "drawing candidates" if progress.stage == "candidates" else "asking agents"
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(label, total=progress.total)
            bars.update(tasks[progress.stage], completed=progress.done, total=progress.total)

        model = _load_model(
            options.model,
            options.max_tokens,
            lambda done, total: show(Progress(stage="candidates", done=done, total=total)),
        )
        bars.update(loading, total=1, completed=1)
        auction = AuctionRunnable(
            model=model,
            agents=agents,
            n_candidates=options.candidates,
            tau=options.tau,
            payment_rule=options.payment_rule,
            seed=options.seed,
        )
        result = auction.run(options.question, progress=show)
    if options.json:
        sys.stdout.write(json.dumps(_as_json(result), indent=2, allow_nan=False) + "\n")
    else:
        _show(result, Console())


def _load_model(name: str | None, max_tokens: int, progress: Any) -> Any:
    provider, colon, _ = (name or "").partition(":")
    if name and colon and provider.isidentifier() and not Path(name).exists():
        try:
            from langchain.chat_models import init_chat_model
        except ImportError as error:
            raise MissingDependencyError(f"{name!r} needs langchain: pip install langchain") from error
        try:
            return init_chat_model(name, max_tokens=max_tokens)
        except ImportError as error:
            raise MissingDependencyError(str(error)) from error
        except Exception as error:
            raise ConfigurationError(f"The model {name!r} could not be set up: {error}") from error
    from llm_auction_chain.local.chat_model import ChatTransformers

    return ChatTransformers(model=name, max_tokens=max_tokens).bind(progress=progress)


def load_agents(path: Path | None) -> list[Agent]:
    """Return the agents of a YAML file; None reads the one that ships with the package.

    Raises:
        ConfigurationError: the file cannot be read or says something else than agents.
    """
    try:
        import yaml
    except ImportError as error:
        raise MissingDependencyError("Agents files need the cli extra: pip install 'llm-auction-chain[cli]'") from error
    where = "the default agents" if path is None else str(path)
    try:
        source = files("llm_auction_chain") / "agents.yaml" if path is None else path
        loaded = yaml.safe_load(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{where} cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{where} is not YAML: {error}") from error
    entries = loaded.get("agents") if isinstance(loaded, dict) else loaded
    if not isinstance(entries, list):
        raise ConfigurationError(f"{where}: write a list of agents under `agents:`.")
    return [_agent(entry, f"{where}, agent {number}") for number, entry in enumerate(entries, 1)]


def _agent(entry: Any, where: str) -> Agent:
    known = {"name", "owner", "context", "reward"}
    if not isinstance(entry, dict) or not {"name", "reward"} <= set(entry) <= known:
        raise ConfigurationError(f"{where}: write name and reward, and if you like owner and context; nothing else.")
    return Agent(
        name=entry["name"],
        reward=_reward(entry["reward"], where),
        owner=entry.get("owner"),
        context=entry.get("context", ""),
    )


def _reward(spec: Any, where: str) -> Any:
    if isinstance(spec, dict) and set(spec) == {"mention"} and isinstance(spec["mention"], dict):
        try:
            return MentionReward(**spec["mention"])
        except TypeError as error:
            raise ConfigurationError(f"{where}: mention takes phrases, value and at_most. {error}") from error
    if isinstance(spec, str) and ":" in spec:
        module, _, function = spec.partition(":")
        try:
            return getattr(import_module(module), function)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigurationError(f"{where}: reward {spec!r} cannot be imported: {error}.") from error
    raise ConfigurationError(f"{where}: reward is `mention: {{phrases, value, at_most}}` or `package.module:function`.")


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One agent's line, numbers only."""

    name: str
    contribution: float
    expected: float
    charged: float
    moved: float
    status: str


def _rows(result: AuctionResult) -> list[_Row]:
    settlement = result.settlement
    return [
        _Row(
            name=agent.name if agent.payer == agent.name else f"{agent.name} ({agent.payer})",
            contribution=float(settlement.contributions[i]),
            expected=float(settlement.expected_payments[i]),
            charged=float(settlement.payments[i]),
            moved=float(settlement.influences[i]),
            status=report.status if not report.reason else f"{report.status}: {report.reason}",
        )
        for i, (agent, report) in enumerate(zip(result.agents, result.reports, strict=True))
    ]


def _as_json(result: AuctionResult) -> dict[str, Any]:
    """Return all of the auction, rewards included: whoever runs the command is the platform."""
    return {
        **result.reply.response_metadata["auction"],
        "reply": result.reply.text,
        "usage": result.usage,
        "influences": result.settlement.influences.tolist(),
        "candidates": [
            {
                "text": candidate.message.text,
                "log_weight": candidate.log_weight,
                "rewards": [report.rewards[j] for report in result.reports],
                "probability": float(result.settlement.probabilities[j]),
            }
            for j, candidate in enumerate(result.candidates)
        ],
    }


def _show(result: AuctionResult, console: "Console") -> None:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    settlement = result.settlement
    table = Table(title="Candidates", expand=True)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("reply", ratio=1, no_wrap=True, overflow="ellipsis")
    for name in ("log-weight", "reward", "probability"):
        table.add_column(name, justify="right", no_wrap=True)
    for j, candidate in enumerate(result.candidates):
        table.add_row(
            str(j),
            Text(" ".join(candidate.message.text.split())),
            f"{candidate.log_weight:.2f}",
            f"{sum(report.rewards[j] for report in result.reports):.2f}",
            f"{settlement.probabilities[j]:.4f}",
            style="bold green" if j == settlement.winner else "",
        )
    console.print(table)
    console.print(Panel(Text(result.reply.text), title=f"The reply drawn: candidate {settlement.winner}"))
    paying = Table(title=f"Agents (payment rule: {settlement.payment_rule})", expand=True)
    paying.add_column("agent", ratio=1, min_width=12)
    for name in ("contri-\nbution", "expected\npayment", "charged", "moved\nthe draw"):
        paying.add_column(name, justify="right", no_wrap=True)
    paying.add_column("status", max_width=24)
    for row in _rows(result):
        paying.add_row(
            Text(row.name),
            f"{row.contribution:.4f}",
            f"{row.expected:.4f}",
            f"{row.charged:.4f}",
            f"{row.moved:.4f}",
            Text(row.status),
        )
    console.print(paying)
    diagnostics = settlement.diagnostics
    console.print(
        f"revenue {settlement.revenue:.4f}   tau {settlement.tau:g}   "
        f"ESS {diagnostics.ess_probabilities:.2f} of {len(result.candidates)} "
        f"(weights {diagnostics.ess_weights:.2f})   distinct replies {result.distinct_replies}"
    )
    if result.failures:
        console.print(
            f"{len(result.failures)} model calls failed; settled on the {len(result.candidates)} that did not"
        )
    console.print(f"seed {result.seed}   auction {result.auction_id}")


if __name__ == "__main__":
    sys.exit(main())
