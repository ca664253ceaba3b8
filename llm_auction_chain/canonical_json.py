"""One spelling of plain JSON, so that its digest is the same everywhere: JSON Canonicalization Scheme, RFC 8785."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import rfc8785

__all__ = ["canonical", "digest", "digest_without_floats", "printable"]

_DEEPEST = 64


def canonical(value: Any) -> bytes:
    """Return plain JSON as its one canonical spelling.

    Args:
        value: dicts with text keys, lists, texts, finite floats, whole numbers below 2**53 in size, flags, None.

    Raises:
        ValueError: it is something else.

    >>> canonical({"b": 1.0, "a": [True, None, "é"]}).decode()
    '{"a":[true,null,"é"],"b":1}'
    """
    return rfc8785.dumps(value)


def digest(value: Any) -> str:
    """Return the SHA-256 of the canonical spelling, as `sha256:` and hexadecimal digits.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2.0, "b": 1.0})
    True
    """
    return f"sha256:{hashlib.sha256(canonical(value)).hexdigest()}"


def digest_without_floats(value: Any) -> str:
    """Return the same as `digest`, ten times as fast, for values without floats whose keys are ASCII.

    >>> digest_without_floats({"b": ["é", None], "a": "1"}) == digest({"a": "1", "b": ["é", None]})
    True
    """
    spelled = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(spelled.encode()).hexdigest()}"


def printable(value: Any) -> Any:
    """Return a value as plain JSON with a canonical spelling: half surrogates replaced, what is unknown as its repr.

    Messages hold what models and tools put into them. What lies more than 64 levels deep is cut to `...`.

    >>> printable({"text": "a" + chr(0xD800), 1: (2**60, float("inf"))})
    {'text': 'a?', '1': ['1152921504606846976', 'inf']}
    """
    return _printable(value, _DEEPEST)


def _printable(value: Any, levels: int) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping | list | tuple) and not levels:
        return "..."
    if isinstance(value, Mapping):
        return {
            _printable(key if isinstance(key, str) else repr(key), 0): _printable(one, levels - 1)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [_printable(one, levels - 1) for one in value]
    try:
        canonical(value)
    except ValueError:
        return _printable(_repr(value), 0)
    return value


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return hex(value) if isinstance(value, int) else f"<{type(value).__name__}>"
