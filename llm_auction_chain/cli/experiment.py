"""`llm-auction experiment`: runs one of the paper's experiments and prints what it finds."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from llm_auction_chain.cli import printable_lines
from llm_auction_chain.cli.tables import add_format
from llm_auction_chain.errors import ConfigurationError

if TYPE_CHECKING:
    from llm_auction_chain.experiments.study import Progress

_OUT = "experiments"


def add_experiment(commands: Any) -> None:
    """Add the command to those of the parser."""
    from llm_auction_chain.experiments import EXPERIMENTS

    command = commands.add_parser(
        "experiment",
        help="run one of the paper's experiments",
        description="Runs one of the paper's experiments, prints what it finds, and writes tables, figures and "
        "measurements to a folder. It needs the extra `experiments`.",
    )
    command.set_defaults(do=_run)
    command.add_argument("name", metavar="NAME", choices=tuple(EXPERIMENTS), help=f"one of {', '.join(EXPERIMENTS)}")
    command.add_argument("--quick", action="store_true", help="fewer questions and draws: less than a minute")
    about = "where measurements, tables and figures go; a stopped run goes on there (default: %(default)s)"
    command.add_argument("--out", metavar="DIR", type=Path, default=Path(_OUT), help=about)
    command.add_argument("--config", metavar="FILE", type=Path, help="YAML with settings of the experiment")
    command.add_argument("--model", metavar="MODEL", help="a local path or hub id for transformers, or provider:model")
    command.add_argument("--judge", metavar="MODEL", help="a chat model that grades replies, as for --model")
    command.add_argument("--seeds", type=int, metavar="N", help="repetitions of the whole experiment, seeds 0 to N - 1")
    command.add_argument("--questions", type=int, metavar="N", help="the first questions only")
    add_format(command, "in JSON the ratios alone, which are the last line of the table too")


def _run(options: Namespace) -> None:
    from llm_auction_chain.experiments.study import experiment_of, load_config, run
    from llm_auction_chain.models.by_name import model_by_name
    from llm_auction_chain.models.local.embeddings import StaticEmbeddings
    from llm_auction_chain.validators import whole_number

    config = experiment_of(options.name).config
    if options.config is not None:
        config = load_config(options.config, experiment=options.name)
    if options.quick:
        config = config.changed(**experiment_of(options.name).quick)
    if options.questions is not None:
        whole_number("--questions", options.questions, least=1)
    changes = {"model": options.model, "n_questions": options.questions}
    if options.seeds is not None:
        changes["seeds"] = tuple(range(whole_number("--seeds", options.seeds, least=1)))
    config = config.changed(**{name: value for name, value in changes.items() if value is not None})
    judge = None if options.judge is None else model_by_name(options.judge, max_tokens=config.max_tokens)
    if options.out.exists() and not options.out.is_dir():
        raise ConfigurationError(f"--out {options.out} is a file. Name a folder.")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, TextColumn("{task.fields[left]}"), console=Console(stderr=True)) as bars:
        task = bars.add_task("measuring", total=None, left="")

        def advance(progress: "Progress") -> None:
            bars.update(task, completed=progress.done, total=progress.total, left=progress.note)

        study = run(config, judge=judge, embeddings=StaticEmbeddings(), out=options.out, progress=advance)
        bars.update(task, description="analysing")
        summary = study.summary()
        written = summary.save(options.out)
    console = Console()
    text = summary.json_line if options.format == "json" else str(summary)
    console.print(printable_lines(text), markup=False, highlight=False, soft_wrap=True)
    Console(stderr=True).print(f"Wrote {', '.join(path.name for path in written)} to {options.out}.", soft_wrap=True)
