"""Real replies, of every kind, carry what the published schema says, and nothing that it does not say."""

import json
import re
import warnings
from functools import reduce
from itertools import pairwise
from operator import add
from pathlib import Path
from typing import get_type_hints

import jsonschema
import pytest
from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage

from llm_auction_chain import Agent, AuctionWarning, Billing, ChatAuction, Disclosure, Policy, public_reply
from llm_auction_chain.auction.metadata import AuctionMetadata, PaymentMetadata
from llm_auction_chain.ledger import Ledger
from llm_auction_chain.rewards import ClickReward
from tests.unit.auction.auctions import LIKES_B, LIKES_C, WORDS, auction

DOCS = Path(__file__).parents[3] / "docs"
SCHEMA = json.loads((DOCS / "schemas" / "metadata-1.json").read_text("utf-8"))
for part in (SCHEMA, *SCHEMA["$defs"].values()):
    part["additionalProperties"] = False  # a later version may add keys; this one has none that it does not describe
CALL = {"name": "buy", "args": {}, "id": "1", "type": "tool_call"}
CLICK = Agent("click", ClickReward(3.0, lambda prompt, reply: reply.text.count("b") / 4), report_cap=2.5)


def check(reply):
    """Return a reply's metadata, which fit the schema, as plain JSON does too."""
    metadata = reply.response_metadata["auction"]
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(metadata, allow_nan=False)))
    return metadata


def fails(prompt, reply):
    raise LookupError("no such reply")


def books(*owners):
    ledger = Ledger("sqlite://")
    for owner in owners:
        ledger.deposit(owner, 100)
    return ledger


AUCTIONS = {
    "plain": {},
    "no agents": {"agents": []},
    "a click, a failure, one that never pays": {
        "agents": [CLICK, Agent("late", fails), Agent("user", LIKES_C.reward, pays=False)]
    },
    "a disclosure": {"disclosure": Disclosure(text="Ad: {sponsors}.", place="end")},
    "a category": {
        "agents": [Agent(name, LIKES_B.reward, categories=["music"], context="Sells music.") for name in ("B", "R")],
        "policy": Policy(exclusive_categories={"music"}),
    },
    "a filter and many draws": {
        "policy": Policy(candidate_filter=lambda prompt, reply: not reply.text.startswith("a")), "n_candidates": 64
    },
    "a fallback": {"policy": Policy(candidate_filter=lambda prompt, reply: False, fallback="Sorry.")},
    "calls of tools": {
        "model": FakeMessagesListChatModel(responses=[AIMessage("", tool_calls=[CALL])]), "n_candidates": 2
    },
    "another rule and currency": {"payment_rule": "influence", "billing": Billing(currency="EUR"), "seed": 2**100},
}  # fmt: skip


@pytest.mark.parametrize("settings", AUCTIONS.values(), ids=AUCTIONS)
@pytest.mark.parametrize("interface", [type(auction()), ChatAuction])
async def test_a_reply_of_any_call_satisfies_the_schema(interface, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AuctionWarning)
        runnable = interface(
            **{"model": WORDS, "agents": [LIKES_B, LIKES_C], "n_candidates": 16, "seed": 7, **settings}
        )
        replies = [runnable.invoke("x"), await runnable.ainvoke("x"), runnable.run("x").reply]
        replies.append(reduce(add, runnable.stream("x")))
        replies.append(reduce(add, [chunk async for chunk in runnable.astream("x")]))
        own = [{**check(reply), "auction_id": "", "commitment": ""} for reply in replies]
    assert all(one == other for one, other in pairwise(own))


def test_every_kind_of_outcome_is_among_those_replies():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AuctionWarning)
        replies = {name: check(auction(**settings).invoke("x")) for name, settings in AUCTIONS.items()}
    click, late, user = replies["a click, a failure, one that never pays"]["payments"]
    assert set(click) == set(get_type_hints(PaymentMetadata))
    assert set(click) - set(late) == {"per_click", "per_click_decimal"}
    assert not user["pays"]
    assert replies["a disclosure"]["disclosure"].startswith("Ad: ")
    assert [out["reason"] for out in replies["a category"]["left_out"]] == ["category"]
    assert replies["a filter and many draws"]["diagnostics"]["excluded_replies"] > 0
    assert replies["a filter and many draws"]["diagnostics"]["k_hat"] is None
    assert replies["a fallback"]["probabilities"][replies["a fallback"]["winner"]] == 1.0
    assert replies["calls of tools"]["bypassed"]
    assert replies["another rule and currency"]["seed"] == 2**100


async def test_charged_replies_and_agents_that_a_ledger_refuses_satisfy_the_schema():
    capped = [Agent(name, LIKES_B.reward, report_cap=2.0) for name in ("B", "poor")]
    chain = auction(lambda _: [*capped, LIKES_C], billing=books("B"))
    config = {"configurable": {"idempotency_key": "k"}}
    with pytest.warns(AuctionWarning, match="took no part"):
        replies = [chain.invoke("x", config), chain.invoke("x", config), await chain.ainvoke("x")]
    for metadata in map(check, replies):
        assert {out["agent"]: out["reason"] for out in metadata["left_out"]} == {"poor": "cover", "C": "cap"}
        assert set(metadata["charge"]) == {"seq", "hash", "receipt"}
    first, again = (reply.response_metadata["auction"]["charge"] for reply in replies[:2])
    assert first == again


def test_a_public_reply_has_only_what_a_user_may_know():
    reply = auction(disclosure="Ad: {sponsors}.").invoke("x")
    metadata = check(reply)
    left = public_reply(reply).response_metadata["auction"]
    assert left == {name: metadata[name] for name in ("sponsored", "disclosure")}


WORDS_OF = {"string": "text", "integer": "whole number", "number": "number", "boolean": "bool", "null": "null"}


def kind_of(schema):
    """Return the type of a value in the words of the page."""
    if "anyOf" in schema:
        return " or ".join(map(kind_of, schema["anyOf"]))
    if "$ref" in schema:
        return "object"
    return f"list of {kind_of(schema['items'])}s" if schema["type"] == "array" else WORDS_OF[schema["type"]]


def test_the_page_lists_every_key_with_its_type():
    def keys(schema, prefix=""):
        for name, one in schema["properties"].items():
            yield f"{prefix}{name}", kind_of(one)
            inner = [one, one.get("items", {}), *one.get("anyOf", [])]
            for ref in (part["$ref"] for part in inner if "$ref" in part):
                mark = "[]" if one.get("type") == "array" else ""
                yield from keys(SCHEMA["$defs"][ref.rpartition("/")[2]], f"{prefix}{name}{mark}.")

    page = (DOCS / "reference" / "metadata.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w.\[\]]+)` \| ([^|]+?) \| [^|]+ \| [^|]+ \|$", page, re.MULTILINE)
    assert rows == [*keys(SCHEMA)]
    assert set(get_type_hints(AuctionMetadata)) == set(SCHEMA["properties"]) == set(SCHEMA["required"])
