"""`llm-auction completion`: what the scripts complete, in a real shell where there is one."""

import shutil
import subprocess
import sys

import pytest

from llm_auction_chain.cli import main

ASK = """
source ./script
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_shtab_llm_auction "$1" "${@: -1}" "${@: -2:1}" 2>/dev/null
echo "${COMPREPLY[*]}"
"""


def script(shell, capsys):
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["r"], "run"),
        (["run", "--te"], "--temperature"),
        (["run", "Which song?", "--sa"], "--save"),
        (["run", "--format", ""], "table json"),
        (["run", "--agents", "my"], "my_agents.yaml"),
        (["experiment", "wel"], "welfare"),
        (["experiment", "welfare", "--out", "my"], "my_folder"),
        (["ledger", "--url", "sqlite:///x.db", "bal"], "balance"),
        (["ledger", "balance", "--format", ""], "table csv json"),
        (["serve", "--no"], "--no-keys"),
        (["keys", "new", "--role", "o"], "owner operator"),
        (["completion", "z"], "zsh"),
    ],
)
def test_bash_completes_commands_options_choices_files_and_folders(words, completed, capsys, tmp_path):
    (tmp_path / "script").write_text(script("bash", capsys))
    (tmp_path / "my_folder").mkdir()
    if "--out" not in words:
        (tmp_path / "my_agents.yaml").touch()
        (tmp_path / "my_folder").rmdir()
    command = ["/bin/bash", "--norc", "-c", ASK, "bash", "llm-auction", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)  # noqa: S603 - our own code
    assert done.stdout == f"{completed}\n"


def test_zsh_has_every_command_with_its_short_help(capsys, tmp_path):
    (tmp_path / "script").write_text(script("zsh", capsys))
    text = (tmp_path / "script").read_text()
    assert text.startswith("#compdef llm-auction\n")
    assert "run:'hold one auction and show all of it'" in text
    assert "'talk with the model, while agents bid for every reply'" in text
    if zsh := shutil.which("zsh"):
        subprocess.run([zsh, "-n", tmp_path / "script"], check=True)  # noqa: S603 - its syntax


def test_without_the_extra_the_error_names_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'llm-auction-chain[cli]'" in capsys.readouterr().err
