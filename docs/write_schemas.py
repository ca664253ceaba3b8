"""Writes the JSON Schemas of what the package publishes into docs/schemas: `python docs/write_schemas.py`.

The descriptions are the docstrings of the fields. They are read here and not when the package is imported, since that
takes a tenth of a second.
"""

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import griffe
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from llm_auction_chain import AuctionResult
from llm_auction_chain.agents import Agent
from llm_auction_chain.auction.admission import LeftOut
from llm_auction_chain.auction.metadata import AuctionMetadata
from llm_auction_chain.auction.settings import GROUPS, AuctionSettings, Billing, Disclosure, Policy, Sampling
from llm_auction_chain.candidates import Candidate, Contexts
from llm_auction_chain.ledger import Charge, ChargeLine, Ledger
from llm_auction_chain.mechanism import Diagnostics, Settlement
from llm_auction_chain.mechanism.allocation import FloatArray
from llm_auction_chain.receipts import AgentView, Opening, Receipt
from llm_auction_chain.reports import Report
from llm_auction_chain.rewards.from_data import FORMS, REWARDS, required_settings, settings_of
from llm_auction_chain.server.access import Key
from llm_auction_chain.server.config import LEDGER_SETTINGS, ServerConfig
from llm_auction_chain.server.limits import Limits

_FOLDER = Path(__file__).parent / "schemas"


class _WithoutTitles(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        """Return False: a title would only repeat the field's name."""
        return False


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schemas of what the package publishes and of the files that it reads, by file name."""
    return {
        "receipt-1.json": _schema(Receipt),
        "agent-view-1.json": _schema(AgentView),
        "agents-1.json": _agents_file(),
        "metadata-1.json": _schema(AuctionMetadata),
        "result-1.json": _stored_result(),
        "server-1.json": _server_file(),
    }


def _schema(model: Any) -> dict[str, Any]:
    """Return the schema of a model or a typed dictionary; the descriptions are the docstrings of its fields."""
    module = _source(model)
    schema = TypeAdapter(model).json_schema(schema_generator=_WithoutTitles)
    for name, part in {model.__name__: schema, **schema["$defs"]}.items():
        part["description"] = part["description"].partition("\n\n")[0]  # without the example
        fields = {field.removesuffix("_"): member for field, member in module[name].all_members.items()}
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
    docs, hints = _docs(kind), get_type_hints(kind)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    properties = {}
    for name in names:
        if form := forms.get(name):
            properties[name] = {**form.schema, "description": form.description}
        elif name != "reward":
            schema = _json_type(hints[name])
            if defaults[name] not in (dataclasses.MISSING, None):
                schema["default"] = json.loads(json.dumps(defaults[name]))
            properties[name] = {**schema, "description": docs[name]}
        else:
            properties[name] = {}
    return {**_object(docs[""], properties), "required": required}


def _stored_result() -> dict[str, Any]:
    """Return the schema of a result as `AuctionResult.as_dict` stores it."""
    amount = {"type": "string", "pattern": r"^-?\d+(\.\d+)?$"}
    seed = {"type": "string", "pattern": r"^\d+$"}
    nats = {"anyOf": [{"type": "number"}, {"type": "null"}]}
    mapping = {"type": "object"}
    message = _object("A message, as LangChain's `messages_to_dict` writes it.", {"type": _TEXT, "data": mapping})
    component = _object("A component of the proposal.", {"component": _TEXT, "draws": {"type": "integer"}})
    agent = {
        "agent": {**_TEXT, "description": "The agent's name."},
        **_fields(Agent, ["owner", "context", "keywords", "pays", "report_cap", "currency", "categories"]),
        "per_click": {"type": "boolean", "description": "Whether it pays per click."},
    }
    settlement = {
        "diagnostics": _ref("Diagnostics"),
        "seed": {"anyOf": [seed, {"type": "null"}]},
        "log_probabilities": {"type": "array", "items": nats},
        "counterfactuals": {"type": "array", "items": _json_type(FloatArray)},
    }
    booked = {"lines": _list("ChargeLine"), "total": amount, "at": {**_TEXT, "format": "date-time"}}
    types = {
        "schema": {"const": "llm_auction_chain.result/1", "type": "string"},
        "text": _TEXT,
        "payments": {"type": "object", "additionalProperties": amount},
        "revenue": amount,
        "auction_id": _TEXT,
        "contexts": _json_type(Contexts),
        "proposal_reason": _TEXT,
        "usage": {"anyOf": [mapping, {"type": "null"}]},
        "currency": _TEXT,
        "disclosure": _TEXT,
        "bypassed": {"type": "boolean"},
        "prompt": _list("Message"),
        "reply": _ref("Message"),
        "candidates": _list("Candidate"),
        "components": _list("Component"),
        "agents": _list("Agent"),
        "left_out": _list("LeftOut"),
        "reports": _list("Report"),
        "settlement": _ref("Settlement"),
        "usages": {"type": "object", "additionalProperties": mapping},
        "failures": {"type": "array", "items": _TEXT},
        "warnings": {"type": "array", "items": _TEXT},
        "seed": seed,
        "opening": _ref("Opening"),
        "charge": {"anyOf": [_ref("Charge"), {"type": "null"}]},
    }
    docs = {"schema": "Name and version of this schema.", **_docs(AuctionResult)}
    about = (
        "Everything about one auction, as `AuctionResult.as_dict` stores it and `AuctionResult.from_dict` reads it. "
        "Amounts to bill and seeds are texts of digits, and minus infinity is null."
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {
            "Message": message,
            "Candidate": _record(Candidate, {"message": _ref("Message"), "log_weight": nats}),
            "Component": component,
            "Agent": _object("An agent without its reward, which is code.", agent),
            "LeftOut": _object(_docs(LeftOut)[""], {**agent, **_fields(LeftOut, ["reason", "category"])}),
            "Report": _record(Report),
            "Settlement": _record(Settlement, settlement),
            "Diagnostics": _record(Diagnostics),
            "Opening": _record(Opening, {"parts": mapping}),
            "Charge": _record(Charge, booked),
            "ChargeLine": _record(ChargeLine, {"amount": amount, "residual": amount}),
        },
        **_object(about, {name: {**schema, "description": docs[name]} for name, schema in types.items()}),
    }


def _server_file() -> dict[str, Any]:
    """Return the schema of the configuration file of a server, by which editors complete it."""
    file = _agents_file()
    agents = {"anyOf": [_TEXT, {"type": "array", "items": _ref("Agent")}]}
    auction = _checked(AuctionSettings, {"model": _ref("Model"), "agents": agents}, without=("proposal", "on_event"))
    properties = auction["properties"]
    properties["model"]["description"] = "The name of a model, or a mapping; without it, the embedded model."
    properties["agents"]["description"] = "The path of an agents file, or the agents; without it, nothing bids."
    allow_code = "Whether you trust the agents, which may then name functions as rewards."
    properties["allow_code"] = {"type": "boolean", "default": False, "description": allow_code}
    name = "A path or hub id for transformers, `vllm:model`, or `provider:model`. Without it, the embedded model."
    settings = {"type": "object", "properties": {"name": {**_TEXT, "description": name}}}
    model = {"description": "A name, or a mapping from `name` and other settings of the model to their values."}
    types = {"url": _VALUE, "scales": _counts(6), "credit": {"type": ["integer", "string"]}, "hold_for": _SECONDS}
    types["keep_receipts"] = {"type": "boolean"}
    ledger = {name: {**types[name], "description": _docs(Ledger)[name]} for name in LEDGER_SETTINGS}
    ledger["hold_for"]["description"] = "Seconds that a hold lasts before it is released."
    server = _checked(
        ServerConfig,
        {
            "models": {"type": "object", "minProperties": 1, "additionalProperties": _ref("Auction")},
            "ledger": {"anyOf": [*_VALUE["anyOf"], _ref("Ledger")]},
            "keys": _list("Key"),
            "limits": _ref("Limits"),
            "secret": _VALUE,
        },
    )
    policy = {"fallback": {"type": ["string", "null"]}, "exclusive_categories": {"type": "array", "items": _TEXT}}
    return {
        "$schema": file["$schema"],
        "$defs": {
            **file["$defs"],
            "Auction": auction,
            "Model": {**model, "anyOf": [_TEXT, settings, {"type": "null"}]},
            "Environment": _object(
                "The value of an environment variable.", {"env": {**_TEXT, "description": "Its name."}}
            ),
            "Sampling": _checked(Sampling, without=("scorer",)),
            "Policy": _checked(Policy, policy, without=("candidate_filter",)),
            "Billing": _checked(Billing, without=("ledger", "signing_key")),
            "Disclosure": _checked(Disclosure),
            "Ledger": {**_object(_docs(Ledger)[""], ledger), "required": ["url"]},
            "Limits": _checked(Limits),
            "Key": {**_record(Key), "required": ["role", "name", "digest"]},
        },
        **server,
        "required": ["models"],
    }


def _checked(kind: Any, types: Mapping[str, Any] | None = None, *, without: Collection[str] = ()) -> dict[str, Any]:
    """Return the schema of a CheckedModel as a file writes it. Types are those that data has in another form."""
    docs, types = _docs(kind), {**{name: _ref(group.__name__) for name, group in GROUPS.items()}, **(types or {})}
    properties = {}
    for name, field in kind.model_fields.items():
        if name not in without:
            has_default = isinstance(field.default, str | int | float | bool)
            default = {"default": field.default} if has_default else {}
            properties[name] = {
                **(types.get(name) or _json_type(field.annotation)),
                **default,
                "description": docs[name],
            }
    return {**_object(docs[""], properties), "required": []}


_TEXT = {"type": "string"}
_VALUE: dict[str, Any] = {"anyOf": [_TEXT, {"$ref": "#/$defs/Environment"}]}
_SECONDS = {"type": "number", "exclusiveMinimum": 0}


def _counts(most: int) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": most}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def _list(name: str) -> dict[str, Any]:
    return {"type": "array", "items": _ref(name)}


def _record(kind: Any, types: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the schema of a dataclass as it is stored. Types are those of its fields that JSON has in another form."""
    return _object(_docs(kind)[""], _fields(kind, [field.name for field in dataclasses.fields(kind)], types))


def _fields(kind: Any, names: Iterable[str], types: Mapping[str, Any] | None = None) -> dict[str, Any]:
    docs, hints, types = _docs(kind), get_type_hints(kind), types or {}
    return {
        name: {**(types.get(name) or _json_type(hints[name])), **({"description": docs[name]} if name in docs else {})}
        for name in names
    }


def _object(description: str, properties: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has all of these properties and no other."""
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


@cache
def _package() -> Any:
    return griffe.load("llm_auction_chain", search_paths=[_FOLDER.parents[1]])


def _source(kind: Any) -> Any:
    """Return the module of a class, as griffe reads it."""
    return _package()[kind.__module__.partition(".")[2]]


def _docs(kind: Any) -> dict[str, str]:
    """Return the descriptions of a class's attributes, arguments and properties, and its first line under no name."""
    source = _source(kind)[kind.__name__]
    sections = source.docstring.parse("google", warnings=False)
    lists = [part.value for part in sections if part.kind.value in ("attributes", "parameters")]
    texts = {one.name: one.description for part in lists for one in part}
    properties = {name: one.docstring.value for name, one in source.members.items() if one.docstring}
    lines = {name: " ".join(text.split("\n\n")[0].split()) for name, text in {**properties, **texts}.items()}
    return {
        "": sections[0].value.partition("\n")[0],
        **{name: f"{it[:1].upper()}{it[1:]}" for name, it in lines.items()},
    }


def _json_type(hint: Any) -> dict[str, Any]:
    """Return the schema of a type."""
    if hint == FloatArray:
        return {"type": "array", "items": {"type": "number"}}
    lists = {Collection[str]: list[str], Collection[str] | None: list[str] | None}
    return _plain(TypeAdapter(lists.get(hint, hint)).json_schema())


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema without a path beside a text, which is the same in data."""
    kinds = [one for one in schema.get("anyOf", []) if one.get("format") != "path"]
    return kinds[0] if len(kinds) == 1 else schema


if __name__ == "__main__":
    for name, schema in schemas().items():
        (_FOLDER / name).write_text(f"{json.dumps(schema, indent=2)}\n", encoding="utf-8")
