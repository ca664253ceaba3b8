"""The documents whose examples run: the README, the pages of docs/ and the recipes of cookbook/."""

import contextlib
import io
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "cookbook").glob("*.md"))]
    if "```python" in path.read_text(encoding="utf-8") and "VLLM_URL" not in path.read_text(encoding="utf-8")
    if path.name != "auctions_on_ray.md"  # make test-ray
]
# They take many replies of the embedded model, or a second and more: make test-models runs them.
SLOW = {
    "cookbook/ads_in_a_chain.md",
    "cookbook/agent_with_middleware.md",
    "cookbook/context_priors.md",
    "cookbook/thousands_of_agents.md",
    "cookbook/user_and_house_rules.md",
    "docs/experiments.md",
    "docs/how_to/performance.md",
    "docs/tutorials/ads_in_a_chat_app.md",
    "docs/tutorials/rag_with_history.md",
}
EXAMPLE = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)


def run_examples(document):
    """Run the blocks of a document one after the other, and compare what each prints with the block that shows it."""
    examples = [*EXAMPLE.finditer((ROOT / document).read_text(encoding="utf-8"))]
    assert examples
    names = {}
    for example in examples:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(example["code"], document, "exec"), names)  # noqa: S102
        if example["output"] is not None:
            assert printed.getvalue() == example["output"]
