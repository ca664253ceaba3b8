"""The notebooks of docs/ run from the first cell to the last, and show what they say."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parents[2] / "docs"


def outputs(name):
    """Return the outputs of a notebook of docs/, run in its folder."""
    path = DOCS / name
    notebook = nbformat.read(path, as_version=4)
    assert [cell for cell in notebook.cells if cell.get("outputs")] == []
    resources = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def shown_as(kind, shown):
    return [output["data"][kind] for output in shown if kind in output.get("data", {})]


def test_the_notebook_replays_the_stored_run():
    shown = outputs("experiments.ipynb")
    assert len(shown_as("image/svg+xml", shown)) == 3
    assert len(shown_as("text/markdown", shown)) == 4
    assert any('"largest_gain"' in output.get("text", "") for output in shown)


def test_the_first_auction_is_shown_from_all_sides():
    shown = outputs("tutorials/first_auction.ipynb")
    assert len(shown_as("image/png", shown)) == 2
    assert any("<table" in html for html in shown_as("text/html", shown))
    assert sum("TuneTown" in output.get("text", "") for output in shown) == 1
