"""One spelling of JSON and of times, so that a digest is the same everywhere: RFC 8785, ISO 8601 in UTC."""

import hashlib
import json
import reprlib
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from math import isfinite
from typing import Any

import orjson
import rfc8785

__all__ = ["canonical", "digest", "loads", "printable", "time_text"]

_DEEPEST = 64
_LISTS = (list, tuple)
_PLAIN = frozenset({str, bool, type(None)})  # what needs no work
_COMPOUND = (dict, *_LISTS, Mapping)
_WHOLE = 2.0**53  # whole numbers below it are exact in JSON
_SMALL = 1e-4  # smaller fractions are written in another way
_spell = partial(orjson.dumps, option=orjson.OPT_SORT_KEYS)


def canonical(value: Any) -> bytes:
    """Return the canonical spelling of plain JSON.

    Args:
        value: dicts with text keys, lists, texts, finite floats, whole numbers below 2**53 in size, booleans, None.

    Raises:
        ValueError: the value contains something else.

    >>> canonical({"b": 1.0, "a": [True, None, "é"]}).decode()
    '{"a":[true,null,"é"],"b":1}'
    """
    try:
        return _spell(_as_orjson_spells_it(value))
    except (ValueError, TypeError):
        return rfc8785.dumps(value)


def _as_orjson_spells_it(value: Any) -> Any:
    """Return what `orjson`, which is much faster, spells as the canonical spelling of a value.

    Raises:
        ValueError: there is no such thing.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is float:
        if _SMALL <= abs(value) < _WHOLE and not value.is_integer():
            return value
        return int(value) if -_WHOLE < value < _WHOLE and value.is_integer() else orjson.Fragment(rfc8785.dumps(value))
    if kind is dict:
        if not all(map(str.isascii, value)):
            raise ValueError("the order of these keys is another one in UTF-16")
        return {key: one if type(one) in _PLAIN else _as_orjson_spells_it(one) for key, one in value.items()}
    if kind is list or kind is tuple:
        return [one if type(one) in _PLAIN else _as_orjson_spells_it(one) for one in value]
    if kind is int and -_WHOLE < value < _WHOLE:
        return value
    raise ValueError("a number or another value of a kind of its own")


def digest(value: Any, *, floats: bool = True) -> str:
    """Return the SHA-256 of the canonical spelling, as `sha256:` and hexadecimal digits.

    With `floats=False` it is faster; the value must then contain no floats, and its keys must be ASCII.

    >>> digest({"b": 1, "a": "é"}, floats=False) == digest({"a": "é", "b": 1.0})
    True
    """
    if floats:
        return f"sha256:{hashlib.sha256(canonical(value)).hexdigest()}"
    return f"sha256:{hashlib.sha256(_spell(value)).hexdigest()}"


def loads(text: str | bytes | bytearray) -> Any:
    """Return the value of a JSON text in which no object has a key twice.

    JSON parsers differ in which of two equal keys they keep, so a digest of such a text would mean nothing.

    Raises:
        ValueError: the text is not JSON, or an object has a key twice.
        RecursionError: it is nested too deeply.

    >>> loads('{"a": [1, null]}')
    {'a': [1, None]}
    >>> loads('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the key 'a' appears twice in one object
    """
    return json.loads(text, object_pairs_hook=_without_duplicates)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {reprlib.repr(key)} appears twice in one object")
    return read


def time_text(moment: datetime) -> str:
    """Return a time in ISO 8601, in UTC and to the microsecond. The order of such texts is the order of the times.

    Raises:
        ValueError: it has no time zone.
        OverflowError: it lies outside the years 1 to 9999 in UTC.

    >>> time_text(datetime(2026, 1, 2, tzinfo=UTC))
    '2026-01-02T00:00:00.000000Z'
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def printable(value: Any) -> Any:
    """Return a value as plain JSON that has a canonical spelling.

    Half surrogates become `?`, values that JSON does not have become their repr, and what is nested more than 64 levels
    deep becomes `...`: messages contain whatever models and tools put into them.

    >>> printable({"text": "a" + chr(0xD800), 1: (2**60, float("inf"))})
    {'text': 'a?', '1': ['1152921504606846976', 'inf']}
    """
    return _printable(value, _DEEPEST)


def _printable(value: Any, levels: int) -> Any:
    kind = type(value)
    if (kind is str and value.isascii()) or value is None or kind is bool:
        return value
    if (kind is int and -_WHOLE < value < _WHOLE) or (kind is float and isfinite(value)):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, _COMPOUND):
        return _printable_parts(value, levels - 1) if levels else "..."
    try:
        canonical(value)
    except ValueError:
        return _printable(_repr(value), 0)
    return value


def _printable_parts(value: Any, levels: int) -> Any:
    if isinstance(value, _LISTS):
        return [_printable(one, levels) for one in value]
    return {
        key if type(key) is str and key.isascii() else _printable_key(key): _printable(one, levels)
        for key, one in value.items()
    }


def _printable_key(key: Any) -> str:
    return str(_printable(key if isinstance(key, str) else repr(key), 0))


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python refuses to write a whole number of so many digits
        return hex(value) if isinstance(value, int) else f"<{type(value).__name__}>"
