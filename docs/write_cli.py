"""Writes the page of the command line from the help of its commands: `python docs/write_cli.py`."""

import re
from argparse import Action, ArgumentParser, HelpFormatter, _SubParsersAction
from pathlib import Path
from textwrap import fill

from llm_auction_chain.cli import command_parser
from llm_auction_chain.cli.completion import parsers_of

_PAGE = Path(__file__).parent / "reference" / "cli.md"
_CODE_OR_OPTION = re.compile(r"`([^`]*)`|((?<![\w-])--\w[\w-]*)")
_INTRODUCTION = """# Command line

The extra `cli` brings the command `llm-auction`, which is also `python -m llm_auction_chain`.

```console
$ llm-auction run "Which guitar suits a beginner?" --agents agents.yaml --receipt receipt.json
$ llm-auction verify receipt.json
$ llm-auction chat --agents agents.yaml --model openai:gpt-4o-mini
$ llm-auction serve --config server.yaml
```

Data goes to standard output; progress, warnings and errors go to standard error. Exit code 0 is success, 1 a failure or
a difference that a verification shows, 2 bad input, and 130 an interrupt. All settings are checked before a model is
loaded. No message repeats the password of a database URL, and no text of an agent or a model controls the terminal.

`--format json` prints JSON in every command that prints data. For completion, see
[`llm-auction completion`](#llm-auction-completion).
"""


def page() -> str:
    """Return the page: a section for each command, with its usage, its arguments and its options."""
    return "\n".join(
        [_INTRODUCTION, *(_section(one) for one in parsers_of(command_parser()) if one.prog != "llm-auction")]
    )


def _section(command: ArgumentParser) -> str:
    formatter = command._get_formatter()  # noqa: SLF001 - fills in the defaults
    actions = [action for action in command._actions if "--help" not in action.option_strings]  # noqa: SLF001
    inner = next((action for action in actions if isinstance(action, _SubParsersAction)), None)
    options = [action for action in actions if action.option_strings]
    arguments = [action for action in actions if not action.option_strings and action is not inner]
    required = [_name(action) for action in options if action.required]
    usage = [command.prog, *required, "[OPTIONS]", *map(_usage, arguments), *(["COMMAND ..."] if inner else [])]
    level = "#" * len(command.prog.split())
    description = fill(_CODE_OR_OPTION.sub(r"`\1\2`", command.description or ""), 120)
    parts = [f"{level} {command.prog}", description, f"```console\n$ {' '.join(usage)}\n```"]
    parts += [_table(title, rows, formatter) for title, rows in (("argument", arguments), ("option", options)) if rows]
    return "".join(f"{part}\n\n" for part in parts).rstrip("\n") + "\n"


def _name(action: Action) -> str:
    """Return an option with its value."""
    choices = "{" + ",".join(action.choices) + "}" if action.choices else action.dest.upper()
    value = "" if action.nargs == 0 else f" {action.metavar or choices}"
    return action.option_strings[-1] + value if action.option_strings else str(value).strip()


def _usage(argument: Action) -> str:
    return {"?": "[{}]", "+": "{} ..."}.get(str(argument.nargs), "{}").format(_name(argument))


def _table(title: str, actions: list[Action], formatter: HelpFormatter) -> str:
    rows = [f"| `{_name(action)}` | {_sentence(formatter._expand_help(action))} |" for action in actions]  # noqa: SLF001
    return "\n".join([f"| {title} | meaning |", "|---|---|", *rows])


def _sentence(text: str) -> str:
    text = _CODE_OR_OPTION.sub(r"`\1\2`", " ".join(text.split()))
    return f"{text[:1].upper()}{text[1:]}."


if __name__ == "__main__":
    _PAGE.write_text(page(), encoding="utf-8")
