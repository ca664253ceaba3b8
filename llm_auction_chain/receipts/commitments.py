"""Commitments: salted digests that fix a value and reveal nothing about it until the salt is known."""

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from llm_auction_chain.canonical_json import digest, digest_without_floats, printable

_WITH_FLOATS = frozenset({"terms", "weights", "agents"})  # parts of an opening


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


def part_commitments(salt: str, parts: Mapping[str, Any]) -> dict[str, str]:
    """Return the commitment to each part of an opening, by name, each with a salt of its own."""
    salted = {name: {"salt": salt_of(salt, name), "value": part} for name, part in parts.items()}
    return {
        name: digest(value) if name in _WITH_FLOATS else digest_without_floats(value) for name, value in salted.items()
    }


def message_digest(salt: str, *messages: BaseMessage) -> str:
    """Return a commitment to the role, content and tool calls of messages. Ids and metadata do not count."""
    return _digests_of_messages([(salt, messages)])[0]


def message_digests(salt: str, parts: Iterable[tuple[str, Sequence[BaseMessage]]]) -> list[str]:
    """Return the digest of each pair of a part's name and messages, with the part's own salt."""
    salts: dict[str, str] = {}
    return _digests_of_messages(
        [(salts.get(part) or salts.setdefault(part, salt_of(salt, part)), messages) for part, messages in parts]
    )


def _digests_of_messages(salted: Sequence[tuple[str, Sequence[BaseMessage]]]) -> list[str]:
    values = [value for _, messages in salted for message in messages for value in _values(message)]
    plain = iter([printable(value) for value in values])
    contents = [[_content(message, plain) for message in messages] for _, messages in salted]
    texts = all(type(one["content"]) is str and "calls" not in one for content in contents for one in content)
    digest_of = digest_without_floats if texts else digest
    pairs = zip(salted, contents, strict=True)
    return [digest_of({"salt": salt, "value": content}) for (salt, _), content in pairs]


def _values(message: BaseMessage) -> list[Any]:
    """Return the values of a message that its digest covers."""
    role = getattr(message, "role", message.type.removesuffix("MessageChunk").lower())
    return [role, message.content, *([call["name"], call["args"]] for call in _calls(message))]


def _content(message: BaseMessage, values: Iterator[Any]) -> dict[str, Any]:
    """Return the part of a message that its digest covers, from the plain values in the order of `_values`."""
    content: dict[str, Any] = {"role": next(values), "content": next(values)}
    calls = [next(values) for _ in _calls(message)]
    return {**content, "calls": calls} if calls else content


def _calls(message: BaseMessage) -> Sequence[Any]:
    return getattr(message, "tool_calls", None) or ()
