"""The published JSON Schemas of receipts, made from the models."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from llm_auction_chain.receipts import fields
from llm_auction_chain.receipts.fields import Record
from llm_auction_chain.receipts.records import AgentView, Receipt

__all__ = ["schemas", "write_schemas"]

_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n        .*)*)", re.MULTILINE)


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of each kind of receipt, by file name.

    >>> sorted(schemas())
    ['agent-view-1.json', 'receipt-1.json']
    """
    kinds: dict[str, type[BaseModel]] = {"receipt-1.json": Receipt, "agent-view-1.json": AgentView}
    return {name: _schema(kind) for name, kind in kinds.items()}


def write_schemas(folder: str | Path) -> None:
    """Write the schemas into a folder: `write_schemas("docs/schemas")` where the models have changed."""
    for name, schema in schemas().items():
        Path(folder, name).write_text(f"{json.dumps(schema, indent=2)}\n", encoding="utf-8")


def _schema(kind: type[BaseModel]) -> dict[str, Any]:
    made = kind.model_json_schema(by_alias=True, mode="validation")
    for name, definition in made.get("$defs", {}).items():
        _describe(definition, getattr(fields, name))
    _describe(made, kind)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _describe(schema: dict[str, Any], kind: type[BaseModel]) -> None:
    """Say of a kind and of each of its fields what the docstrings say."""
    schema["description"] = _line((inspect.getdoc(kind) or "").partition("\n\n")[0])
    for base in kind.__mro__:
        if not issubclass(base, Record) or base is Record:
            continue
        listed = (inspect.getdoc(base) or "").partition("Attributes:\n")[2]
        for name, said in _ATTRIBUTE.findall(listed):
            field = schema["properties"].get(name.removesuffix("_"))
            if field is not None:
                field["description"] = _line(said)
                field.pop("title", None)


def _line(said: str) -> str:
    return " ".join(said.split())
