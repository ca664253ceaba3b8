"""Copies of messages, one set per agent: what an agent does to its own reaches nobody else's."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Generic, TypeVar

from langchain_core.messages import BaseMessage

__all__ = ["Copies"]

M = TypeVar("M", bound=BaseMessage)
_set = object.__setattr__
_IMMUTABLE = (str, int, float, bool, bytes, type(None))


class Copies(Generic[M]):
    """Makes deep copies of the same messages, many times over.

    What can be shared is found once: texts and numbers are, dicts and lists are made anew. So a set costs an agent a
    twentieth of `model_copy(deep=True)`.

    >>> from langchain_core.messages import AIMessage
    >>> copies = Copies([AIMessage("Hi", additional_kwargs={"a": [1]})])
    >>> (mine,), (yours,) = copies.fresh(), copies.fresh()
    >>> mine.additional_kwargs["a"].append(2)
    >>> yours.additional_kwargs
    {'a': [1]}
    """

    def __init__(self, messages: Sequence[M]) -> None:
        self._makers = [_copier(message) for message in messages]

    def fresh(self) -> list[M]:
        """Return a set of copies that shares nothing mutable with any other."""
        return [make() for make in self._makers]


def _copier(message: M) -> Callable[[], M]:
    """Return what makes deep copies of a message as it is now."""
    original = _private(message)
    if original.__pydantic_extra__ or original.__pydantic_private__:  # beside the fields, and rare
        return lambda: original.model_copy(deep=True)
    kind, fields, known = type(original), original.__dict__, original.__pydantic_fields_set__
    try:
        makers = [(name, make) for name, value in fields.items() if (make := _maker(value)) is not None]
    except RecursionError:  # a value that holds itself
        return lambda: original.model_copy(deep=True)

    def copy() -> M:  # what pydantic's own copy does, with the fields that need it made anew on the way
        copied = kind.__new__(kind)
        own = fields.copy()
        for name, make in makers:
            own[name] = make()
        _set(copied, "__dict__", own)
        _set(copied, "__pydantic_fields_set__", known.copy())
        _set(copied, "__pydantic_extra__", {})
        _set(copied, "__pydantic_private__", None)
        return copied

    return copy


def _private(message: M) -> M:
    """Return a deep copy; what cannot be copied, a provider's own object say, is shared."""
    try:
        return message.model_copy(deep=True)
    except Exception:  # noqa: BLE001 - whatever copying it raises
        return message.model_copy()


def _deep(value: Any) -> Any:
    try:
        return deepcopy(value)
    except Exception:  # noqa: BLE001 - as above
        return value


def _maker(value: Any) -> Callable[[], Any] | None:
    """Return what makes a value anew, or None where it can be shared."""
    if type(value) in _IMMUTABLE:
        return None
    if type(value) is dict:
        items = {name: _maker(item) for name, item in value.items()}
        deep = {name: make for name, make in items.items() if make is not None}
        if not deep:
            return value.copy
        return lambda: {**value, **{name: make() for name, make in deep.items()}}
    if type(value) is list:
        makers = [_maker(item) for item in value]
        if all(make is None for make in makers):
            return value.copy
        pairs = list(zip(value, makers, strict=True))
        return lambda: [item if make is None else make() for item, make in pairs]
    return lambda: _deep(value)
