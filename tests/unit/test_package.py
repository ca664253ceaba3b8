"""The house: public names, import cost, documents that run."""

import re
import subprocess
import sys
import tomllib
from xml.etree import ElementTree as ET

import pytest
import yaml

import llm_auction_chain
from tests.documents import DOCUMENTS, EXAMPLE, ROOT, SLOW, run_examples


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
    heavy = ("torch", "transformers", "langchain.agents", "sqlalchemy", "matplotlib", "tqdm", "ray", "pyarrow")
    code = f"import sys; {what}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


def test_an_import_of_all_names_needs_no_extra():
    libraries = (
        "langchain", "langgraph", "matplotlib", "opentelemetry", "ray", "regex", "rich", "sqlalchemy", "torch", "tqdm",
        "transformers",
    )  # fmt: skip
    code = f"""import sys
sys.modules.update(dict.fromkeys({libraries}))
from llm_auction_chain import *
import llm_auction_chain
for name in ("AuctionMiddleware", "Ledger", "plot_tau_sweep"):
    try:
        getattr(llm_auction_chain, name)
    except MissingDependencyError as error:
        print(error)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert "llm-auction-chain[agents]" in done.stdout
    assert "llm-auction-chain[ledger]" in done.stdout
    assert "llm-auction-chain[plot]" in done.stdout


@pytest.mark.parametrize("document", sorted({*DOCUMENTS} - SLOW))
def test_the_examples_of_the_documents_run_and_print_what_is_shown(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where examples may leave a file
    run_examples(document)


def test_an_output_block_is_compared_wherever_there_is_one():
    for document in ["README.md", *DOCUMENTS]:
        text = (ROOT / document).read_text(encoding="utf-8")
        shown = [example for example in EXAMPLE.finditer(text) if example["output"] is not None]
        assert len(shown) == text.count("```text\n"), document
        assert document != "README.md" or len(shown) == 2


def test_the_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert "docs/img/flow.svg" in links
    for link in links:
        path, _, anchor = link.partition("#")
        target = ROOT / (path or "README.md")
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


def test_the_readme_lists_every_extra():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    listed = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)))
    assert sorted(listed) == sorted(extras.keys() - {"dev"})


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert f"version = {{{project['version']}}}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/2405.05905"


def test_the_picture_is_legible_in_dark_mode_and_says_what_it_shows():
    picture = (ROOT / "docs/img/flow.svg").read_text(encoding="utf-8")
    image = ET.fromstring(picture)  # noqa: S314
    classes = {element.get("class", "").split(" ")[0] for element in image.iter()} - {""}
    assert "prefers-color-scheme: dark" in picture
    assert classes - set(re.findall(r"^    \.(\w+) ", picture, re.MULTILINE)) == set()
    payments = re.findall(r"^(\w+) pays ([\d.]+)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(payments) == 2
    for agent, amount in payments:
        assert f">{agent} pays {float(amount):.2f}<" in picture
    assert {"title", "desc"} < {element.tag.split("}")[1] for element in image.iter()}
    assert "#" not in "".join(element.get("fill", "") for element in image.iter())
