"""The notebook of docs/ replays the stored run of the experiments, without a model."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parents[2] / "docs"


def test_the_notebook_replays_the_stored_run():
    notebook = nbformat.read(DOCS / "experiments.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": DOCS}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/svg+xml" in output.get("data", {}) for output in shown) == 3
    assert sum("text/markdown" in output.get("data", {}) for output in shown) == 4
    assert any('"largest_gain"' in output.get("text", "") for output in shown)
