"""Writes the JSON Schemas of receipts and of agents files into docs/schemas: `python docs/write_schemas.py`.

The descriptions are the docstrings of the fields. They are read here and not when the package is imported, since that
takes a tenth of a second.
"""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_type_hints

import griffe
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from llm_auction_chain.agents import Agent
from llm_auction_chain.receipts import AgentView, Receipt
from llm_auction_chain.rewards.from_data import FORMS, REWARDS, required_settings, settings_of

_FOLDER = Path(__file__).parent / "schemas"


class _WithoutTitles(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        """Return False: a title would only repeat the field's name."""
        return False


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of each kind of receipt and of an agents file, by file name."""
    records = griffe.load("llm_auction_chain.receipts.records", search_paths=[_FOLDER.parents[1]])
    return {
        "receipt-1.json": _schema(Receipt, records),
        "agent-view-1.json": _schema(AgentView, records),
        "agents-1.json": _agents_file(),
    }


def _schema(model: type[BaseModel], records: Any) -> dict[str, Any]:
    schema = model.model_json_schema(schema_generator=_WithoutTitles)
    for name, part in {model.__name__: schema, **schema["$defs"]}.items():
        part["description"] = part["description"].partition("\n\n")[0]  # without the example
        fields = {field.removesuffix("_"): member for field, member in records[name].all_members.items()}
        for field, description in part["properties"].items():
            description["description"] = " ".join(fields[field].docstring.value.split())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _agents_file() -> dict[str, Any]:
    """Return the schema of an agents file, by which editors complete it."""
    agent = _settings(Agent, [field.name for field in dataclasses.fields(Agent)], ["name", "reward"], {})
    agent["properties"]["reward"] = {
        "anyOf": [{"$ref": "#/$defs/Reward"}, {"$ref": "#/$defs/Function"}],
        "description": "What a reply is worth to the agent, in money.",
    }
    agents = {"type": "array", "items": {"$ref": "#/$defs/Agent"}, "description": "The agents, in their order."}
    in_mapping = {"type": "object", "properties": {"agents": agents}, "required": ["agents"]}
    function = "`package.module:function`, a callable (prompt, reply) -> float. It needs `--allow-code`."
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {
            "Agent": agent,
            "Reward": _one_of(REWARDS, "A ready-made reward with its settings."),
            "ClickThrough": {
                "anyOf": [
                    _one_of([kind for kind in REWARDS if kind != "click"], "A reward from 0 to 1."),
                    {"$ref": "#/$defs/Function"},
                ]
            },
            "Function": {"type": "string", "pattern": ":", "description": function},
            **{
                reward.__name__: _settings(
                    reward,
                    settings_of(kind),
                    required_settings(kind),
                    {name: form for (of, name), form in FORMS.items() if of == kind},
                )
                for kind, reward in REWARDS.items()
            },
        },
        "description": "The agents of an auction, as `load_agents` reads them.",
        "anyOf": [{**in_mapping, "additionalProperties": False}, agents],
    }


def _one_of(kinds: Any, description: str) -> dict[str, Any]:
    """Return the schema of a mapping from the name of one reward to its settings."""
    names = {kind: {"$ref": f"#/$defs/{REWARDS[kind].__name__}"} for kind in kinds}
    one = {"minProperties": 1, "maxProperties": 1, "additionalProperties": False}
    return {"type": "object", "description": description, "properties": names, **one}


def _settings(kind: Any, names: list[str], required: list[str], forms: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the settings of a dataclass; the descriptions are in its docstring."""
    module = griffe.load(kind.__module__, search_paths=[_FOLDER.parents[1]])
    sections = module[kind.__name__].docstring.parse("google", warnings=False)
    docs = {one.name: one.description for part in sections if part.kind.value == "attributes" for one in part.value}
    hints, defaults = get_type_hints(kind), {field.name: field.default for field in dataclasses.fields(kind)}
    properties = {}
    for name in names:
        if form := forms.get(name):
            properties[name] = {**form.schema, "description": form.description}
        elif name != "reward":
            hint = list[str] if hints[name] == Collection[str] else hints[name]  # for pydantic
            schema = _plain(TypeAdapter(hint).json_schema())
            if defaults[name] not in (dataclasses.MISSING, None):
                schema["default"] = json.loads(json.dumps(defaults[name]))
            description = " ".join(docs[name].split())
            properties[name] = {**schema, "description": description[:1].upper() + description[1:]}
        else:
            properties[name] = {}
    return {
        "type": "object",
        "description": sections[0].value.partition("\n")[0],
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema without a path beside a text, which is the same in data."""
    kinds = [one for one in schema.get("anyOf", []) if one.get("format") != "path"]
    return kinds[0] if len(kinds) == 1 else schema


if __name__ == "__main__":
    for name, schema in schemas().items():
        (_FOLDER / name).write_text(f"{json.dumps(schema, indent=2)}\n", encoding="utf-8")
