"""The demo: the stories that the quickstart tells, word for word, and replies that end by themselves."""

import json
import re
from pathlib import Path

import pytest

from llm_auction_chain.cli import main

QUICKSTART = Path(__file__).parents[2] / "docs" / "quickstart.md"
STORY = re.compile(r"```console\n\$ llm-auction run --seed (\d+)\n(?:\.\.\.\n)?(.*?)```\n", re.DOTALL)
STORIES = [story.groups() for story in STORY.finditer(QUICKSTART.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("seed", "shown"), STORIES)
def test_the_quickstart_shows_what_the_demo_prints(seed, shown, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["run", "--seed", seed]) == 0
    printed = "".join(f"{line.rstrip()}\n" for line in capsys.readouterr().out.splitlines())
    assert shown in printed


def test_the_stories_are_a_bid_that_decides_one_that_loses_and_none():
    payers = [re.findall(r"^(\w+) pays (?!0\.00)", shown, re.MULTILINE) for _, shown in STORIES]
    assert payers == [["OatCo", "BerryCo"], ["EggCo"], []]


def test_nearly_all_replies_end_by_themselves_at_the_demo_s_settings(capsys, tmp_path):
    saved = tmp_path / "result.json"
    assert main(["run", "--candidates", "48", "--seed", "1", "--save", str(saved)]) == 0
    cut = re.findall(r"(?<=cut by --max-tokens: ).*", capsys.readouterr().out)
    assert len("".join(cut).split()) <= 4
    assert len(json.loads(saved.read_text())["candidates"]) > 40
