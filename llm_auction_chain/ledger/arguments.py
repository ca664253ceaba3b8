"""Checks of the arguments of ledger operations, before a statement is sent to the database."""

import re
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any

from llm_auction_chain.canonical_json import time_text
from llm_auction_chain.money import FINEST, in_millionths
from llm_auction_chain.validators import name_of_account, refuse, text, whole_number

LARGEST = 2**63 - 1  # of a BIGINT
_LONGEST_HOLD = timedelta(days=366)
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_LONGEST_NAME = 255  # characters: an index of PostgreSQL takes about 2,700 bytes


def checked_text(name: str, value: Any, *, empty: bool = True, most: int | None = None) -> str:
    """Return a text that a database and canonical JSON can hold, or raise `ConfigurationError`."""
    checked = text(name, value, empty=empty, most=most)
    if _UNSTORABLE.search(checked):
        raise refuse(name, "a text without null characters and half surrogates", value)
    return checked


def checked_name(name: str, value: Any) -> str:
    """Return a text that can be a key in the database, or raise `ConfigurationError`."""
    return checked_text(name, value, empty=False, most=_LONGEST_NAME)


def checked_amount(name: str, value: Any) -> Decimal:
    """Return an amount of at least 0 as an exact decimal, or raise `ConfigurationError`."""
    return _exact(name, value)[0]


def _exact(name: str, value: Any, *, negative: bool = False) -> tuple[Decimal, int]:
    """Return an amount as an exact decimal and in millionths, or raise `ConfigurationError`."""
    if isinstance(value, bool) or not isinstance(value, Decimal | int | str):
        raise refuse(name, "a Decimal, an int or a string such as '12.50'", value, "A float is not exact.")
    try:
        amount = Decimal(value)
        fits = (-LARGEST if negative else 0) <= amount <= LARGEST
        return amount, in_millionths(amount if fits else Decimal("NaN"))
    except (ValueError, ArithmeticError) as error:
        limits = f"at most {LARGEST}" + ("" if negative else " and at least 0")
        raise refuse(name, f"an amount of {limits}, with at most {FINEST} decimals", value) from error


def checked_amounts(name: str, amounts: Any, *, negative: bool = False) -> dict[str, int]:
    """Return amounts by owner, in millionths, or raise `ConfigurationError`."""
    if not isinstance(amounts, Mapping):
        raise refuse(name, "a mapping of owner to amount", amounts)
    checked = {
        name_of_account("An owner", owner): _exact(f"{name}[{owner!r}]", amount, negative=negative)[1]
        for owner, amount in amounts.items()
    }
    if len(checked) < len(amounts):
        raise refuse(name, "one amount for each owner", amounts, "Two spellings are of one name in Unicode's NFKC.")
    return checked


def checked_scales(scales: Any) -> dict[str, int]:
    """Return decimals by currency, or raise `ConfigurationError`."""
    if not isinstance(scales, Mapping | None):
        raise refuse("scales", "a mapping of currency to decimals such as {'EUR': 2}", scales)
    return {
        name_of_account("A currency", currency, empty=True): whole_number(
            f"scales[{currency!r}]", scale, below=FINEST + 1
        )
        for currency, scale in (scales or {}).items()
    }


def checked_hold_for(hold_for: Any) -> timedelta:
    """Return how long a hold lasts, or raise `ConfigurationError`."""
    if not isinstance(hold_for, timedelta) or not timedelta(0) < hold_for <= _LONGEST_HOLD:
        raise refuse("hold_for", f"a positive timedelta of at most {_LONGEST_HOLD.days} days", hold_for)
    return hold_for


def checked_time(name: str, moment: Any, later: timedelta = timedelta(0)) -> str:
    """Return a time, or one somewhat later, as text that sorts by time, or raise `ConfigurationError`."""
    try:
        return time_text(moment + later)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise refuse(name, "a datetime with a time zone, within the years 1 to 9999 in UTC", moment) from error
