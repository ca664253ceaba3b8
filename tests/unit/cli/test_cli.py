"""`llm-auction` itself: how it starts, and what it says of itself."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from llm_auction_chain import cli
from llm_auction_chain.cli import main
from llm_auction_chain.cli.completion import parsers_of


def test_the_version_is_that_of_the_distribution(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"llm-auction {version('llm-auction-chain')}\n"


def test_every_command_with_a_format_spells_it_alike():
    formats = [
        action
        for command in parsers_of(cli._parser())
        for action in command._actions
        if "--format" in action.option_strings
    ]
    assert len(formats) == 14
    assert {(action.default, *sorted(action.choices)) for action in formats} == {
        ("table", "json", "table"),
        ("table", "csv", "json", "table"),
    }


def test_the_package_is_the_command():
    command = [sys.executable, "-m", "llm_auction_chain", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own code
    assert done.stdout == f"llm-auction {version('llm-auction-chain')}\n"
