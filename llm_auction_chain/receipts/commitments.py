"""Commitments: salted digests that fix a value and reveal nothing about it until the salt is known."""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import BaseMessage

from llm_auction_chain.canonical_json import digest, digest_without_floats, printable

__all__ = ["commitment", "message_digest", "opening_commitment", "report_salt", "salt_of"]


def salt_of(salt: str, part: str) -> str:
    """Return the salt of one part of a receipt: HMAC-SHA256 of the part's name. It reveals no other part's salt."""
    return hmac.new(bytes.fromhex(salt), part.encode(), hashlib.sha256).hexdigest()


def report_salt(salt: str, position: int) -> str:
    """Return the salt of the report of the agent at a position in the receipt."""
    return salt_of(salt, f"report {position}")


def commitment(salt: str, value: Any, *, floats: bool = True) -> str:
    """Return the commitment to plain JSON: the SHA-256 of `{"salt": ..., "value": ...}` in its canonical spelling.

    With `floats=False` it is faster; the value must then contain no floats.

    >>> commitment("00" * 32, [1.0]) == commitment("00" * 32, [1], floats=False)
    True
    """
    salted = {"salt": salt, "value": value}
    return digest(salted) if floats else digest_without_floats(salted)


def opening_commitment(auction_id: str, commitments: Mapping[str, str]) -> str:
    """Return one commitment to all parts of an opening, given the commitment to each part by name."""
    return digest({"auction_id": auction_id, **commitments})


def message_digest(salt: str, *messages: BaseMessage) -> str:
    """Return a commitment to the role, content and tool calls of messages. Ids and metadata do not count."""
    contents = [_content(message) for message in messages]
    plain = all(type(one["content"]) is str and "calls" not in one for one in contents)
    return commitment(salt, contents, floats=not plain)


def _content(message: BaseMessage) -> dict[str, Any]:
    calls = getattr(message, "tool_calls", None) or []
    role = getattr(message, "role", message.type.removesuffix("MessageChunk").lower())
    content = {"role": printable(role), "content": printable(message.content)}
    return {**content, "calls": [printable([call["name"], call["args"]]) for call in calls]} if calls else content
