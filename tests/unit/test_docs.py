"""The site: a strict build, every public name in the reference, every page in the menu, nothing from other servers."""

import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

import llm_auction_chain
from llm_auction_chain import errors, experiments, ledger, mechanism, receipts, rewards, testing

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site, strictly: a link to a page or heading that is not there, or a name griffe cannot find, fails."""
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "docs/build_site.py", str(built)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    return built / "site"


class Page(HTMLParser):
    """A built page: its ids, its links, and what a browser loads with it."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loaded = set(), set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        if tag == "a" and "href" in attrs:
            self.links.add(attrs["href"])
        self.loaded.add(attrs.get("src") or (attrs.get("href") if tag == "link" else None))


page_at = cache(Page)


def documents():
    """Return the sources of pages, by their names on the site."""
    pages = {str(path.relative_to(ROOT / "docs")): path for path in (ROOT / "docs").rglob("*.md")}
    return pages | {f"cookbook/{path.name}": path for path in (ROOT / "cookbook").glob("*.md")}


PACKAGES = (llm_auction_chain, experiments, ledger, mechanism, receipts, rewards, testing)
CONSTANTS = {"BASELINES", "EXPERIMENTS", "GENERATOR", "MECHANISM", "PAYMENT_RULES", "PROPOSALS", "RUBRICS"}


@pytest.fixture(scope="module")
def described(site):
    """Return the names that the reference describes, each where it is defined and where it is imported from."""
    return {name for page in (site / "reference").glob("*.html") for name in page_at(page).ids}


def test_every_public_name_is_in_the_reference(described):
    names = {f"{package.__name__}.{name}" for package in PACKAGES for name in set(package.__all__) - CONSTANTS}
    assert names - described - {"llm_auction_chain.ledger.Ledger"} == set()  # which is llm_auction_chain.Ledger


def test_methods_that_classes_inherit_are_in_the_reference(described):
    for kind in (llm_auction_chain.AuctionRunnable, llm_auction_chain.ChatAuction):
        base = next(base for base in kind.__mro__ if base.__name__ == "AuctionBase")
        methods = {name for name, member in vars(base).items() if not name.startswith("_") and member.__doc__}
        methods = {name for name in methods if callable(getattr(base, name)) or name == "reference"}
        methods -= {"Config", "model_post_init", "lc_attributes"}
        assert {"run", "arun", "batch", "abatch", "bind_tools"} < methods
        assert {f"llm_auction_chain.{kind.__name__}.{name}" for name in methods} - described == set()


def test_errors_say_when_they_are_raised_and_what_to_do():
    for name in errors.__all__:
        assert getattr(errors, name).__doc__.count("\n\n") > 0, name


def test_every_page_and_recipe_is_in_the_menu(site):
    menu = {link.removeprefix("./") for link in page_at(site / "index.html").links}
    assert {name.replace(".md", ".html") for name in documents()} - menu == set()


def test_links_hold_on_the_site_as_in_the_repository(site):
    for name, path in documents().items():
        text = path.read_text(encoding="utf-8")
        targets = {link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link} - {""}
        assert [link for link in targets if not (path.parent / link).exists()] == []
        page = site / name.replace(".md", ".html")
        for link in page_at(page).links:
            target, _, anchor = link.partition("#")
            if "://" in link or not target:
                continue
            there = page.parent / target
            assert there.exists(), (name, link)
            assert not anchor or anchor in page_at(there.resolve()).ids, (name, link)


def test_the_site_loads_nothing_from_other_servers(site):
    pages = [*site.rglob("*.html")]
    assert len(pages) > len(documents())
    for page in pages:
        assert [source for source in page_at(page).loaded if source and "//" in source] == []


def test_doctests_are_shown_as_code(site):
    shown = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    assert shown.count('class="gp"') > 20
    assert "<blockquote>" not in shown


def test_formulas_are_mathml(site):
    assert (site / "concepts" / "mechanism.html").read_text(encoding="utf-8").count("<math") > 20
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        article = text[text.index("<article") : text.index("</article>")] if "<article" in text else ""
        assert "$" not in re.sub(r"<(code|pre)\b.*?</\1>", "", article, flags=re.DOTALL), page


def test_agent_recipes_are_short():
    for name in ("langgraph_node", "agent_with_middleware", "deep_agent"):
        lines = (ROOT / "cookbook" / f"{name}.md").read_text(encoding="utf-8").splitlines()
        assert len(lines) < 60


def test_a_test_that_a_page_names_exists():
    named = 0
    for path in documents().values():
        for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", path.read_text(encoding="utf-8")):
            assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), test
            named += 1
    assert named > 10
