"""What an agent returned, read as amounts of money; every attribute of it may be the agent's own code."""

import math
import numbers
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from decimal import Decimal
from itertools import islice
from typing import Any

__all__ = ["InvalidReportError", "amounts_of"]

_LARGEST = 1e100


class InvalidReportError(Exception):
    """A report that is none: the rule it breaks, for everybody, and the detail, for the developer."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule = rule


def amounts_of(value: Any, n_replies: int, *, refuse_negative: bool) -> tuple[float, ...]:
    """Return the report as numbers. What is read of it may be the agent's own code, so this runs behind the guard.

    Raises:
        InvalidReportError: it is no finite number for every reply.
    """
    if isinstance(value, str | bytes | bytearray | Mapping | AbstractSet) or not isinstance(value, Iterable):
        raise _invalid(f"returned {_type(value)}; score must return one number per reply, as a list")
    values = list(islice(value, n_replies + 1))
    if len(values) != n_replies:
        count = len(values) if len(values) < n_replies else f"more than {n_replies}"
        raise _invalid(f"returned {count} rewards for {n_replies} replies; return one per reply")
    rewards = []
    for j, item in enumerate(values):
        number = item if type(item) is float else _number(item)
        if number is None:
            raise _invalid(f"reported {_type(item)} for candidate {j}; rewards must be numbers, in money")
        if not -_LARGEST <= number <= _LARGEST:  # nan too
            raise _invalid("reported a reward out of range; rewards must be finite, at most 1e100", number, j)
        if refuse_negative and number < 0:
            raise _invalid("reported a reward out of range; payment_rule='proportional' needs rewards >= 0", number, j)
        rewards.append(number)
    return tuple(rewards)


def _invalid(rule: str, number: float | None = None, j: int = 0) -> InvalidReportError:
    """Return the error of a broken rule; the number, for the developer, replaces what is before the semicolon."""
    _, _, must = rule.partition("; ")
    return InvalidReportError(rule, f"{rule}." if number is None else f"reported {number} for candidate {j}; {must}.")


def _type(item: Any) -> str:
    return str(type(item).__name__)


def _number(item: Any) -> float | None:
    """Return the number an agent meant, or None: bool, strings, None and complex numbers are not amounts of money."""
    scalar = getattr(item, "shape", None) == () and hasattr(item, "item")  # of NumPy or torch
    if scalar and getattr(getattr(item, "dtype", None), "kind", "f") in "biuf":
        item = item.item()
    if isinstance(item, bool) or not isinstance(item, numbers.Real | Decimal):
        return None
    try:
        return float(item)
    except (OverflowError, ValueError):
        return math.inf
