"""What the site needs beyond mkdocs.yml: the recipes, which live beside docs/, and docstrings' doctests as code."""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File

_ROOT = Path(__file__).parents[1]
_DOCTEST = re.compile(r"^( *)>>> .*(?:\n.+)*", re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Add the recipes under `cookbook/`."""
    for path in sorted((_ROOT / "cookbook").glob("*.md")):
        files.append(File.generated(config, f"cookbook/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that are right in the repository into those that are right on the site."""
    if page.file.src_uri.startswith("cookbook/"):
        return markdown.replace("](../docs/", "](../")
    return re.sub(r"\]\(((?:\.\./)*)\.\./cookbook/", r"](\1cookbook/", markdown)


class Doctests(griffe.Extension):
    """Fence the doctests of docstrings: as Markdown, `>>>` would be a quotation in a quotation in a quotation."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence them before the docstring is read."""
        if obj.docstring is not None:
            obj.docstring.value = _DOCTEST.sub(r"\1```pycon\n\g<0>\n\1```", obj.docstring.value)
