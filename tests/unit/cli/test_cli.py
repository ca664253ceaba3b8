"""`llm-auction` itself: how it starts, and what it says of itself."""

import runpy
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from llm_auction_chain import cli
from llm_auction_chain.cli import main
from llm_auction_chain.cli.completion import parsers_of

DOCS = Path(__file__).parents[3] / "docs"


def test_the_version_is_that_of_the_distribution(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"llm-auction {version('llm-auction-chain')}\n"


def test_help_loads_nothing_heavy():
    heavy = ("torch", "transformers", "langchain_core.language_models", "matplotlib", "pandas", "sqlalchemy", "shtab")
    code = f"""import sys
from llm_auction_chain.cli import main
try:
    main(["run", "--help"])
finally:
    print([name for name in {heavy} if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_with_a_format_spells_it_alike():
    formats = [
        action
        for command in parsers_of(cli.command_parser())
        for action in command._actions
        if "--format" in action.option_strings
    ]
    assert len(formats) == 15
    assert {(action.default, *sorted(action.choices)) for action in formats} == {
        ("table", "json", "table"),
        ("table", "csv", "json", "table"),
    }


def test_the_page_of_the_command_line_is_the_commands_help():
    page = runpy.run_path(str(DOCS / "write_cli.py"))["page"]()
    assert (DOCS / "reference" / "cli.md").read_text("utf-8") == page, "python docs/write_cli.py writes it"
    for command in parsers_of(cli.command_parser()):
        assert command.description
        assert all(action.help for action in command._actions if action.metavar != "COMMAND"), command.prog


def test_the_package_is_the_command():
    command = [sys.executable, "-m", "llm_auction_chain", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own code
    assert done.stdout == f"llm-auction {version('llm-auction-chain')}\n"


def test_leaving_collects_nothing_of_what_was_loaded():
    code = """
import atexit, gc
from llm_auction_chain.cli import main
atexit.register(lambda: print(gc.get_freeze_count() > 0))  # runs after what `main` registers
main(["verify", "none.json"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - our own code
    assert done.stdout == "True\n"
