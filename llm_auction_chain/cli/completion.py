"""`llm-auction completion`: the script that completes commands, options and files in a shell."""

import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Iterator
from typing import Any

from llm_auction_chain.errors import MissingDependencyError

_FILES = ("FILE", "FILE.yaml", "MODEL", "PUBLIC.pem")  # metavars of what may be a path


def add_completion(commands: Any, parser: ArgumentParser) -> None:
    """Add the command to those of the parser, which it completes."""
    completion = commands.add_parser(
        "completion",
        help="print the script that completes commands, options and files in your shell",
        description='Prints a script. In ~/.bashrc, `eval "$(llm-auction completion bash)"` loads it; in ~/.zshrc, the '
        "same line with zsh, below compinit. Faster: write it to a file that the shell loads at its start.",
    )
    completion.add_argument("shell", metavar="SHELL", choices=("bash", "zsh"), help="bash or zsh")
    completion.set_defaults(do=lambda options: _print(parser, options))


def parsers_of(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    """Yield the parser and those of its commands, and of their commands."""
    yield parser
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to read what was added
        if isinstance(action, _SubParsersAction):
            for inner in action.choices.values():
                yield from parsers_of(inner)


def _print(parser: ArgumentParser, options: Namespace) -> None:
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise MissingDependencyError("Completion needs the cli extra: pip install 'llm-auction-chain[cli]'") from error
    for one in parsers_of(parser):
        one.description = None  # what a command's help says is short enough for a list
        for action in one._actions:  # noqa: SLF001
            if action.metavar in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # the name is shtab's
            elif action.metavar == "DIR":
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    sys.stdout.write(f"{shtab.complete(parser, options.shell)}\n")
