"""The programs of cookbook/ run, and are those that the tutorials build."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "cookbook").glob("*.py"))
SLOW = {"rag_with_history"}  # on the embedded model; the test of its tutorial runs the same statements
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def statements(code):
    """Return a program's statements and its imports, without what it does only when it is started."""
    rest, imports = [], set()
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            imports |= {(getattr(statement, "module", None), one.name) for one in statement.names}
        elif not (isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test)):
            rest.append(ast.unparse(statement))
    return rest, imports


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_what_its_tutorial_builds(recipe):
    tutorial = (ROOT / "docs" / "tutorials" / f"{recipe.stem}.md").read_text(encoding="utf-8")
    assert f"](../../cookbook/{recipe.name})" in tutorial
    shown, imported = statements("\n".join(CODE.findall(tutorial)))
    (docstring, *parts), needed = statements(recipe.read_text(encoding="utf-8"))
    assert "pip install" in docstring
    places = iter(shown)
    assert [part for part in parts if part not in places] == []  # all of them, in this order
    assert needed - imported == set()


def test_recipes_are_short():
    assert [recipe.name for recipe in RECIPES if len(recipe.read_text(encoding="utf-8").splitlines()) >= 80] == []


@pytest.mark.parametrize("recipe", [one for one in RECIPES if one.stem not in SLOW], ids=lambda path: path.stem)
def test_a_recipe_runs_and_its_parts_keep_their_laws(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location(recipe.stem, recipe)
    program = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, recipe.stem, program)
    spec.loader.exec_module(program)
    cases = [case for name, case in vars(program).items() if name.startswith("Test") and isinstance(case, type)]
    for case in cases:
        for law in filter(lambda name: name.startswith("test_"), dir(case)):
            getattr(case(), law)()
    assert len(cases) == (3 if recipe.stem == "your_own_parts" else 0)
