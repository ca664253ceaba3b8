"""Commitments: a digest that fixes a value before it is shown, and tells nothing of it until its salt is known."""

import hashlib
import hmac
from typing import Any

from langchain_core.messages import BaseMessage

from llm_auction_chain.canonical_json import digest, digest_without_floats, printable

__all__ = ["commitment", "message_digest", "salt_of"]


def salt_of(salt: str, part: str) -> str:
    """Return the salt of one part, HMAC-SHA256 of its name: whoever knows it knows no other part's.

    Args:
        salt: the auction's, hexadecimal.
        part: name of what is committed to.
    """
    return hmac.new(bytes.fromhex(salt), part.encode(), hashlib.sha256).hexdigest()


def commitment(salt: str, value: Any, *, floats: bool = True) -> str:
    """Return the commitment to plain JSON, the SHA-256 of `{"salt": ..., "value": ...}` in its canonical spelling.

    Without floats in it, it is found faster.

    >>> commitment("00" * 32, [1.0]) == commitment("00" * 32, [1], floats=False)
    True
    """
    salted = {"salt": salt, "value": value}
    return digest(salted) if floats else digest_without_floats(salted)


def message_digest(salt: str, *messages: BaseMessage) -> str:
    """Return a commitment to what messages say: role, content and tool calls, not their ids and metadata."""
    said = [_said(message) for message in messages]
    plain = all(type(one["content"]) is str and "calls" not in one for one in said)
    return commitment(salt, said, floats=not plain)


def _said(message: BaseMessage) -> dict[str, Any]:
    calls = getattr(message, "tool_calls", None) or []
    role = getattr(message, "role", message.type.removesuffix("MessageChunk").lower())
    said = {"role": printable(role), "content": printable(message.content)}
    return {**said, "calls": [printable([call["name"], call["args"]]) for call in calls]} if calls else said
