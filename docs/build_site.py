"""Build the site: `python docs/build_site.py FOLDER` writes it to FOLDER/site.

The pages are those of docs/ and cookbook/, and a reference made from docstrings. A link, an anchor or a name that leads
nowhere is an error.
"""

import re
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import griffe
import zensical
from latex2mathml.converter import convert_to_element
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor

_ROOT = Path(__file__).parents[1]
_DOCTEST = re.compile(r"^( *)>>> .*(?:\n.+)*", re.MULTILINE)


def gather(pages: Path) -> None:
    """Copy docs/ and cookbook/ to one folder, with the links between the two as they are there."""
    shutil.copytree(_ROOT / "docs", pages, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copytree(_ROOT / "cookbook", pages / "cookbook", ignore=shutil.ignore_patterns("__pycache__"))
    for page in pages.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        if page.parent.name == "cookbook":
            text = text.replace("](../docs/", "](../")
        else:
            text = re.sub(r"\]\(((?:\.\./)*)\.\./cookbook/", r"](\1cookbook/", text)
        page.write_text(text, encoding="utf-8")


class _Formula(InlineProcessor):
    """`$x$` within a line, `$$x$$` as a line of its own."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element, int, int]:  # noqa: ARG002, N802
        """Return the formula as MathML, in an element that scrolls where it is wider than the page."""
        formula, display = (m["block"], "block") if m["block"] else (m["inline"], "inline")
        math = convert_to_element(formula.strip(), display=display)
        if unknown := [text for text in math.itertext() if text.startswith("\\")]:
            raise ValueError(f"{unknown[0]} in the formula {formula} is no command of latex2mathml.")
        element = Element("span", {"class": f"formula-{display}"})
        element.append(math)
        return element, m.start(0), m.end(0)


class Formulas(Extension):
    """Formulas of pages, as MathML, which browsers draw without a script."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Find formulas after code, in which `$` is itself, and before backslashes and `_` have a meaning."""
        pattern = r"\$\$(?P<block>[^$]+)\$\$|(?<![\\$\w])\$(?P<inline>[^\s$](?:[^$]*[^\s$\\])?)\$(?![\d$])"
        md.inlinePatterns.register(_Formula(pattern, md), "formula", 185)


def makeExtension(**_: Any) -> Formulas:  # noqa: N802 - Markdown's name for it
    """Return the extension of Markdown that this module is."""
    return Formulas()


class Doctests(griffe.Extension):
    """Fence the doctests of docstrings: as Markdown, `>>>` would be a quotation in a quotation in a quotation."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence them before the docstring is read."""
        if obj.docstring is not None:
            obj.docstring.value = _DOCTEST.sub(r"\1```pycon\n\g<0>\n\1```", obj.docstring.value)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for old in ("pages", "site"):
        shutil.rmtree(folder / old, ignore_errors=True)
    gather(folder / "pages")
    shutil.copy(_ROOT / "zensical.toml", folder)
    sys.path.insert(0, str(_ROOT))  # the docstrings of this checkout, whatever is installed
    zensical.build(str(folder.resolve() / "zensical.toml"), {"clean": True, "strict": True})
