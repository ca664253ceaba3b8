"""Checks of settings, with errors in one voice: "n_candidates must be a whole number of at least 1, got '4'."."""

import inspect
import math
import re
import unicodedata
from collections.abc import Callable, Collection
from functools import lru_cache
from numbers import Real
from types import FunctionType, MethodType
from typing import Any

from llm_auction_chain.errors import ConfigurationError

__all__ = [
    "Check",
    "choice",
    "digest_text",
    "name_of_account",
    "number",
    "optional",
    "refuse",
    "takes",
    "text",
    "whole_number",
]

Check = Callable[[str, Any], Any]
"""From a setting's name and value to the value, or a `ConfigurationError`."""

_LONGEST_NAME = 255  # characters: an index of PostgreSQL takes about 2,700 bytes
_BLANK = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    r"\U00016fe4\U0001d159\U000e0100-\U000e01ef]"
)  # printable, yet blank


def refuse(name: str, expected: str, value: object, hint: str = "") -> ConfigurationError:
    """Return the error that says what a setting must be, what it is, and what to do where that is not plain.

    >>> str(refuse("tau", "a number above 0", -1))
    'tau must be a number above 0, got -1.'
    """
    try:
        shown = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a larger number"
    except ValueError:  # it has more digits than Python writes
        shown = "a larger number"
    return ConfigurationError(f"{name} must be {expected}, got {shown[:200]}." + (f" {hint}" if hint else ""))


def optional(check: Check) -> Check:
    """Return a check that also allows None."""
    return lambda name, value: None if value is None else check(name, value)


def whole_number(name: str, value: object, *, least: int = 0, below: int | None = None) -> int:
    """Return the value if it is a whole number from `least` up to, and not including, `below`.

    Raises:
        ConfigurationError: it is not.

    >>> whole_number("n_candidates", 4, least=1)
    4
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (below is not None and value >= below):
        bits = 0 if below is None else below.bit_length() - 1
        limit = "" if below is None else f" and below {f'2**{bits}' if below == 2**bits > 1 << 16 else below}"
        raise refuse(name, f"a whole number of at least {least}{limit}", value)
    return value


def number(
    name: str, value: object, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf
) -> float:
    """Return the value as a float if it is a finite number within the limits.

    Raises:
        ConfigurationError: it is not.

    >>> number("tau", 2, above=0)
    2.0
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    try:
        amount = float(value) if is_number else math.nan  # type: ignore[arg-type]
    except OverflowError:
        amount = math.inf
    if not (math.isfinite(amount) and amount > above and least <= amount <= most):
        limits = [f"above {above:g}"] if above > -math.inf else []
        limits += [f"of at least {least:g}"] if least > -math.inf else []
        limits += [f"at most {most:g}" if limits else f"of at most {most:g}"] if most < math.inf else []
        kind = "a number" if limits else "a finite number"
        raise refuse(name, " ".join([kind, " and ".join(limits)]).rstrip(), value)
    return amount


def choice(name: str, value: Any, choices: Collection[Any]) -> Any:
    """Return the value if it is one of the choices.

    Raises:
        ConfigurationError: it is not.

    >>> choice("on_error", "raise", ("reference", "raise"))
    'raise'
    """
    if not any(type(value) is type(option) and value == option for option in choices):
        raise refuse(name, " or ".join(map(repr, choices)), value)
    return value


def text(name: str, value: object, *, empty: bool = False, most: int | None = None) -> str:
    """Return the value if it is a string of at most `most` characters, and not a blank one unless `empty` allows it.

    Raises:
        ConfigurationError: it is not.
    """
    if not isinstance(value, str) or not (empty or value.strip()):
        raise refuse(name, "a text" if empty else "a text that is not blank", value)
    if most is not None and len(value) > most:
        raise refuse(name, f"a text of at most {most} characters", f"{value[:40]}...", f"It has {len(value)}.")
    return value


def digest_text(name: str, value: object, hint: str = "") -> str:
    """Return the value if it is a SHA-256 digest as this package writes it.

    Raises:
        ConfigurationError: it is not.
    """
    if not isinstance(value, str) or not re.fullmatch("sha256:[0-9a-f]{64}", value):
        raise refuse(name, "`sha256:` and 64 hexadecimal digits", value, hint)
    return value


def takes(name: str, function: Callable[..., Any], arguments: str) -> None:
    """Refuse a function that cannot be called with these arguments, such as "(prompt, reply)".

    Raises:
        ConfigurationError: it cannot.

    >>> takes("reward", lambda prompt, reply: 1.0, "(prompt, reply)")
    """
    if _takes_plainly(function, arguments.count(",") + 1):
        return
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some of C have none
        return
    try:
        signature.bind(*arguments.split(","))
    except TypeError as error:
        raise refuse(name, f"a function of {arguments}", function, f"It has {error}.") from None


def _takes_plainly(function: Callable[..., Any], count: int) -> bool:
    """Return whether a plain function takes `count` arguments; False also where only `inspect`, slower, can tell."""
    inner = function.__func__ if isinstance(function, MethodType) else function
    if not isinstance(inner, FunctionType) or vars(inner):  # a decorator may state another signature
        return False
    most = inner.__code__.co_argcount - (inner is not function)
    return most - len(inner.__defaults__ or ()) <= count <= most and not inner.__code__.co_kwonlyargcount


def name_of_account(name: str, value: object, *, empty: bool = False) -> str:
    """Return a name of an agent, an owner, a category or a currency in NFKC, in which it has one spelling.

    Raises:
        ConfigurationError: it is blank, begins or ends with a blank, has an invisible character or over 255 characters.

    >>> name_of_account("owner", "Cafe\u0301") == "Caf\u00e9"
    True
    """
    # Sorting marks takes quadratic time. No letter in NFKC stands for more than four characters.
    normal = _visible(text(name, value, empty=empty)[: 4 * _LONGEST_NAME + 1])
    if normal is None:
        expected = f"at most {_LONGEST_NAME} visible characters, without a blank at either end"
        raise refuse(name, expected, value)
    return normal


@lru_cache(maxsize=1 << 12)  # the same owners are charged again and again
def _visible(value: str) -> str | None:
    """Return a name in NFKC, None where it cannot be one."""
    normal = unicodedata.normalize("NFKC", value)
    if len(normal) > _LONGEST_NAME or normal != normal.strip() or not normal.isprintable() or _BLANK.search(normal):
        return None
    return normal
