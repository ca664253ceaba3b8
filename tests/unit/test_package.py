"""The house: public names, import cost, documents that run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import llm_auction_chain

ROOT = Path(__file__).parents[2]


def test_all_is_sorted_and_can_be_imported():
    assert llm_auction_chain.__all__ == sorted(llm_auction_chain.__all__) == dir(llm_auction_chain)
    for name in llm_auction_chain.__all__:
        assert getattr(llm_auction_chain, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = llm_auction_chain.nothing


@pytest.mark.parametrize(
    "what", ["import llm_auction_chain", "from llm_auction_chain import Agent, AuctionRunnable, ChatTransformers"]
)
def test_importing_loads_nothing_heavy(what):
    heavy = ("torch", "transformers", "langchain.agents", "sqlalchemy")
    code = f"import sys; {what}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


def test_an_import_of_all_names_needs_no_extra():
    libraries = ("langchain", "langgraph", "opentelemetry", "regex", "rich", "sqlalchemy", "torch", "transformers")
    code = f"""import sys
sys.modules.update(dict.fromkeys({libraries}))
from llm_auction_chain import *
import llm_auction_chain
for name in ("AuctionMiddleware", "Ledger"):
    try:
        getattr(llm_auction_chain, name)
    except MissingDependencyError as error:
        print(error)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert "llm-auction-chain[agents]" in done.stdout
    assert "llm-auction-chain[ledger]" in done.stdout


DOCUMENTS = [
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "cookbook").glob("*.md"))]
    if "```python" in path.read_text(encoding="utf-8") and "VLLM_URL" not in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_examples_of_the_documents_run(document):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, document, "exec"), names)  # noqa: S102
