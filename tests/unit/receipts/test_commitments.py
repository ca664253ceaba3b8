"""Commitments are salted digests. That of a message covers its role, content and tool calls."""

import hashlib
import json

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessage, HumanMessage, HumanMessageChunk

from llm_auction_chain.canonical_json import canonical, printable
from llm_auction_chain.receipts.commitments import commitment, message_digest

SALT = "5a" * 32


def test_a_commitment_is_a_plain_sha256():
    made = hashlib.sha256(b'{"salt":"' + SALT.encode() + b'","value":[0.5,null,"x"]}').hexdigest()
    assert commitment(SALT, [0.5, None, "x"]) == f"sha256:{made}"


SAME = [
    (AIMessage("a"), AIMessageChunk("a")),
    (HumanMessage("a"), HumanMessageChunk(content="a")),
    (AIMessage("a", id="1"), AIMessage("a", id="2", response_metadata={"model": "x"})),
    (AIMessage("", tool_calls=[{"name": "f", "args": {"x": 1, "y": 2}, "id": "1"}]),
     AIMessage("", tool_calls=[{"name": "f", "args": {"y": 2, "x": 1.0}, "id": "2"}])),
]  # fmt: skip


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


OTHER = [
    (AIMessage("a"), AIMessage("b")),
    (AIMessage("a"), HumanMessage("a")),
    (ChatMessage("a", role="critic"), ChatMessage("a", role="poet")),
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
