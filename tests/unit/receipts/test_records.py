"""The format of receipts is the published one, and a view shows nothing of other owners.

Commitments are salted digests. That of a message covers its role, content and tool calls.
"""

import hashlib
import json
import math
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessage, HumanMessage, HumanMessageChunk
from pydantic import BaseModel

from llm_auction_chain import Agent, ConfigurationError, Policy
from llm_auction_chain.canonical_json import canonical, printable
from llm_auction_chain.mechanism.allocation import streams_of
from llm_auction_chain.receipts import AgentView, Receipt, verify
from llm_auction_chain.receipts.records import commitment, message_digest, salt_of
from tests.unit.receipts.examples import (
    MIXTURE,
    all_receipts,
    fails,
    hold_auction,
    receipt_of,
    rich_receipt,
)

ROOT = Path(__file__).parents[3]


MADE = all_receipts()
RECEIPT = MADE["pivot"]


FRESH = {"auction_id", "time", "salts", "hidden", "replies", "prompt", "reports", "opening", "digest", "receipt"}


def counts(letter, worth):
    return lambda prompt, reply: worth * reply.text.count(letter)


def test_views_of_auctions_that_differ_in_the_others_reports_alone_are_equal():
    mine, a, c = Agent("Mine", counts("b", 1.0)), counts("a", 0.5), counts("c", 2.0)
    one, other = (
        hold_auction([mine, Agent("P", first, report_cap=cap), Agent("Q", second)]).receipt
        for first, second, cap in [(a, c, None), (c, a, 9.0)]
    )
    assert one.agents[1].report == other.agents[2].report != other.agents[1].report
    seen, also = one.view("Mine").as_dict(), other.view("Mine").as_dict()
    assert {name: seen[name] for name in seen if name not in FRESH} == {
        name: also[name] for name in also if name not in FRESH
    }
    assert set(seen["hidden"]) == set(also["hidden"])


def test_a_view_contains_no_name_number_status_or_cap_of_another_owner():
    others = [
        Agent("Zebra", counts("a", 0.123456), owner="Zoo", report_cap=77.125, categories=["cars"], context="TuneTown"),
        Agent("Yak", fails),
        Agent("Gnu", counts("c", 0.0625), pays=False),
        Agent("Rival", counts("c", 1.0), categories=["cars"]),
    ]
    receipt = hold_auction(
        [Agent("Mine", counts("b", 1.0)), *others], policy=Policy(exclusive_categories=["cars"]), proposal=MIXTURE
    ).receipt
    told, text = (json.dumps(one.as_dict()) for one in (receipt, receipt.view("Mine")))
    secrets = {
        "Zebra",
        "Zoo",
        "Yak",
        "Gnu",
        "Rival",
        "77.125",
        "LookupError",
        '"error"',
        "cars",
        "context p",
        receipt.salt,
    }
    secrets |= {
        "components",
        "revenue",
        "left_out",
        "log_weights",
        *receipt.reports[1:],
        f'"{receipt.agents[1].charge}"',
    }
    for bid in receipt.agents[1:]:
        secrets |= {repr(figure) for figure in (*bid.report, bid.contribution, bid.expected) if figure % 0.5}
    for secret in secrets:
        assert secret in told
        assert secret not in text


def test_a_view_reveals_what_the_others_report_together_where_all_log_weights_are_equal():
    rng = np.random.default_rng(3)
    reports, drawn, tau = rng.normal(size=(3, 12)), rng.normal(size=12), 2.0
    for log_weights in (np.zeros(12), drawn):
        view = receipt_of(reports, log_weights, tau=tau).view("agent-0")
        others = tau * np.array(view.log_probabilities) - np.array(view.agents[0].report)
        error = others - reports[1:].sum(axis=0)
        assert (np.ptp(error) < 1e-12) == (log_weights is not drawn)
        assert np.ptp(error - tau * log_weights) < 1e-12


def test_a_view_reveals_neither_the_number_of_agents_nor_a_salt_of_others():
    few, many = (hold_auction([Agent("Mine", counts("b", 1.0)), *more]).receipt.view("Mine").as_dict() for more in [
        [], [Agent(str(k), counts("c", 0.0)) for k in range(5)],
    ])  # fmt: skip
    shape = {name: len(value) if isinstance(value, list | dict) else None for name, value in few.items()}
    assert {name: len(value) if isinstance(value, list | dict) else None for name, value in many.items()} == shape
    assert len(few["salts"]["reports"]) == len(many["salts"]["reports"]) == 1


def test_a_view_replays_the_draw_and_not_the_candidates():
    receipt = rich_receipt(seed=2**60 + 3)
    view = receipt.view("Capped")
    assert verify(view).ok
    assert receipt.seed == str(2**60 + 3)
    text = json.dumps(view.as_dict())
    assert receipt.seed not in text
    assert str(streams_of(int(receipt.seed))[0]) not in text
    assert view.draw_seed == str(streams_of(int(receipt.seed))[1])
    assert salt_of(receipt.salt, "seed") not in text


def test_an_owner_sees_all_of_its_agents_in_one_view():
    receipt = rich_receipt()
    assert receipt.view("TuneTown") == receipt.view("StringSchool")
    assert [bid.agent for bid in receipt.view("TuneTown").agents] == ["TuneTown", "StringSchool"]
    with pytest.raises(ConfigurationError, match=r"'Rival' did not take part .* 'TuneTown', "):
        receipt.view("Rival")


def test_a_view_is_that_of_an_agent_however_its_name_is_spelled():
    receipt = hold_auction([Agent("Caf\u00e9", counts("b", 1.0))]).receipt
    assert receipt.view("Cafe\u0301") == receipt.view("Caf\u00e9")


def test_views_of_one_auction_agree_in_all_that_is_shared():
    receipt = rich_receipt()
    shared = [
        {name: value for name, value in receipt.view(bid.agent).as_dict().items() if name not in
         ("agents", "reports", "salts", "digest")} for bid in receipt.agents
    ]  # fmt: skip
    assert all(one == shared[0] for one in shared)
    assert shared[0]["receipt"] == receipt.digest


@pytest.fixture(scope="module")
def schemas():
    return runpy.run_path(str(ROOT / "docs" / "write_schemas.py"))["schemas"]()


def test_the_published_schemas_are_those_of_the_models(schemas):
    published = {path.name: json.loads(path.read_text("utf-8")) for path in (ROOT / "docs" / "schemas").iterdir()}
    assert published == schemas, "python docs/write_schemas.py writes them"


def test_the_schemas_describe_every_field_and_need_all_of_them(schemas):
    for name in ("receipt-1.json", "agent-view-1.json"):
        schema = schemas[name]
        for kind in (schema, *schema["$defs"].values()):
            assert set(kind["required"]) == set(kind["properties"])
            assert all(field["description"] for field in kind["properties"].values())


TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "number": (int, float),
    "integer": int,
}


def satisfies(value, schema, root):  # noqa: PLR0911 - one a kind
    """Return whether JSON satisfies a schema; only the keywords of our schemas are implemented."""
    if "$ref" in schema:
        return satisfies(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        return any(satisfies(value, one, root) for one in schema["anyOf"])
    known = {
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "minItems",
        "maxItems",
        "pattern",
        "enum",
        "const",
    }
    known |= {"minimum", "maximum", "exclusiveMaximum", "description", "title", "$defs", "$schema"}
    assert set(schema) <= known
    kind = schema["type"]
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return False
    if kind == "object":
        listed = schema["properties"]
        return set(schema["required"]) <= set(value) <= set(listed) and all(
            satisfies(inner, listed[name], root) for name, inner in value.items()
        )
    if kind == "array":
        fits = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return fits and all(satisfies(one, schema["items"], root) for one in value)
    if kind in ("number", "integer"):
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        return low <= value <= high and value < schema.get("exclusiveMaximum", math.inf)
    fits = re.search(schema.get("pattern", ""), value) if kind == "string" else True
    return bool(fits) and value in schema.get("enum", [value]) and value == schema.get("const", value)


def test_receipts_and_views_satisfy_their_schemas_and_no_other(schemas):
    full, view = schemas["receipt-1.json"], schemas["agent-view-1.json"]
    for made in MADE.values():
        of_view = "agent_view" in made["schema"]
        assert satisfies(made, full, full) is not of_view
        assert satisfies(made, view, view) is of_view
    assert not satisfies({**RECEIPT, "tau": "1"}, full, full)
    assert rich_receipt().schema_ == RECEIPT["schema"]


@pytest.mark.parametrize("told", [{}, {"schema": "llm_auction_chain.receipt/1"}, {"digest": object()}])
def test_from_dict_refuses_what_is_not_a_receipt(told):
    with pytest.raises(ConfigurationError, match="verify tells"):
        Receipt.from_dict(told)
    honest = rich_receipt(seed=1)
    assert Receipt.from_dict(honest.as_dict()) == honest


class Envelope(BaseModel):
    record: Receipt | AgentView


@pytest.mark.parametrize("record", [rich_receipt(), rich_receipt().view("TuneTown")], ids=["receipt", "view"])
def test_what_pydantic_dumps_is_the_receipt(record):
    plain = record.as_dict()
    for dumped in (
        record.model_dump(mode="json"),
        json.loads(record.model_dump_json()),
        json.loads(json.dumps(record.model_dump())),
        Envelope(record=record).model_dump(mode="json")["record"],
        json.loads(Envelope(record=record).model_dump_json())["record"],
    ):
        assert dumped == plain
        assert verify(dumped).ok
        assert type(record).model_validate(dumped) == record
    assert type(record).model_validate(record.model_dump()) == record


SALT = "5a" * 32


def test_a_commitment_is_a_plain_sha256():
    made = hashlib.sha256(b'{"salt":"' + SALT.encode() + b'","value":[0.5,null,"x"]}').hexdigest()
    assert commitment(SALT, [0.5, None, "x"]) == f"sha256:{made}"


SAME = [
    (AIMessage("a"), AIMessageChunk("a")),
    (HumanMessage("a"), HumanMessageChunk(content="a")),
    (HumanMessage("a", role="critic"), ChatMessage("a", role="critic")),
    (AIMessage("a", id="1"), AIMessage("a", id="2", response_metadata={"model": "x"})),
    (AIMessage("", tool_calls=[{"name": "f", "args": {"x": 1, "y": 2}, "id": "1"}]),
     AIMessage("", tool_calls=[{"name": "f", "args": {"y": 2, "x": 1.0}, "id": "2"}])),
]  # fmt: skip


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


OTHER = [
    (AIMessage("a"), AIMessage("b")),
    (AIMessage("a"), HumanMessage("a")),
    (ChatMessage("a", role="critic"), ChatMessage("a", role="poet")),
    (ChatMessage("a", role=""), ChatMessage("a", role="chat")),
    (HumanMessage("a", role="critic"), HumanMessage("a")),
    (AIMessage("a"), AIMessage([{"type": "text", "text": "a"}])),
    (HumanMessage([PICTURE]), HumanMessage([{**PICTURE, "image_url": {"url": "data:image/png;base64,AAAB"}}])),
    (AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}]), AIMessage("")),
    (AIMessage("", tool_calls=[{"name": "f", "args": {"x": 1}, "id": "1"}]),
     AIMessage("", tool_calls=[{"name": "f", "args": {"x": 2}, "id": "1"}])),
]  # fmt: skip


def test_the_digest_of_a_message_is_of_what_it_says_and_of_nothing_else():
    for one, other in SAME:
        assert message_digest(SALT, one) == message_digest(SALT, other)
    for one, other in OTHER:
        assert message_digest(SALT, one) != message_digest(SALT, other)
    assert message_digest(SALT, *OTHER[0]) != message_digest(SALT, *OTHER[0][::-1])
    assert message_digest(SALT, OTHER[0][0]) != message_digest("00" * 32, OTHER[0][0])


def nested(depth):
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize("said", [
    "half \ud800 a pair", {"\udc00": "\ud800"}, {"n": 2**80, "x": float("nan")}, {"b": b"\xff", 1: {2}}, nested(300),
    {"n": 10**5000}, (1, None, True), object,
])  # fmt: skip
def test_every_message_has_a_digest(said):
    message = AIMessage("", tool_calls=[{"name": "f", "args": {"said": said}, "id": "1"}])
    assert message_digest(SALT, message) == message_digest(SALT, message)
    json.loads(canonical(printable(said)))
