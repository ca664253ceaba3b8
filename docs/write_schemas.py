"""Writes the JSON Schemas of receipts into docs/schemas: `python docs/write_schemas.py` after a change of the models.

The descriptions are the docstrings under the fields. They are read here and not when the package is imported, since
that takes a tenth of a second.
"""

import json
from pathlib import Path
from typing import Any

import griffe
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from llm_auction_chain.receipts import AgentView, Receipt

_FOLDER = Path(__file__).parent / "schemas"


class _WithoutTitles(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        """Return False: a title would only repeat the field's name."""
        return False


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of each kind of receipt, by file name."""
    records = griffe.load("llm_auction_chain.receipts.records", search_paths=[_FOLDER.parents[1]])
    return {"receipt-1.json": _schema(Receipt, records), "agent-view-1.json": _schema(AgentView, records)}


def _schema(model: type[BaseModel], records: Any) -> dict[str, Any]:
    schema = model.model_json_schema(schema_generator=_WithoutTitles)
    for name, part in {model.__name__: schema, **schema["$defs"]}.items():
        part["description"] = part["description"].partition("\n\n")[0]  # without the example
        fields = {field.removesuffix("_"): member for field, member in records[name].all_members.items()}
        for field, description in part["properties"].items():
            description["description"] = " ".join(fields[field].docstring.value.split())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


if __name__ == "__main__":
    for name, schema in schemas().items():
        (_FOLDER / name).write_text(f"{json.dumps(schema, indent=2)}\n", encoding="utf-8")
