"""What callers hand over, checked before anything is asked of the database."""

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.money import FINEST, in_units

__all__ = [
    "LARGEST",
    "checked_amount",
    "checked_amounts",
    "checked_hold_for",
    "checked_name",
    "checked_scales",
    "checked_text",
    "units",
]

LARGEST = 2**63 - 1  # of a BIGINT
_LONGEST_HOLD = timedelta(days=366)
_SHOWN = 80  # characters of a value that a message repeats
_LONGEST = 255  # characters of a name: PostgreSQL's indexes hold no more than some 2,700 bytes


def checked_text(value: Any, name: str) -> str:
    """Return a text that a database and canonical JSON can hold, or raise `ConfigurationError`."""
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} is {value!r}; give a string.")
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigurationError(f"{name} is {value!r}; take out the null characters and half surrogates.")
    return value


def checked_name(value: Any, name: str, *, empty: bool = False) -> str:
    """Return a text that names something, or raise `ConfigurationError`."""
    text = checked_text(value, name)
    if not empty and not text.strip():
        raise ConfigurationError(f"{name} is {text!r}; give a non-empty string.")
    if len(text) > _LONGEST:
        raise ConfigurationError(f"{name} has {len(text)} characters; give at most {_LONGEST}.")
    return text


def checked_amount(value: Any, name: str, *, negative: bool = False) -> Decimal:
    """Return an amount as it was meant, or raise `ConfigurationError`."""
    if isinstance(value, float):
        raise ConfigurationError(
            f"{name} is the float {value!r}, which is no exact amount; give a Decimal or a string."
        )
    if isinstance(value, bool) or not isinstance(value, Decimal | int | str):
        raise ConfigurationError(f"{name} is {value!r}; give a Decimal, an int or a string.")
    try:
        amount = Decimal(value)
    except ArithmeticError as error:
        raise ConfigurationError(f"{name} is {_shown(value)}; give a number, such as '12.50'.") from error
    if not amount.is_finite() or amount.copy_abs() > LARGEST:  # abs() would round it
        raise ConfigurationError(f"{name} is {_shown(value)}; give a finite amount below {LARGEST}.")
    if amount < 0 and not negative:
        raise ConfigurationError(f"{name} is {_shown(value)}; give an amount of at least 0.")
    try:
        in_units(amount, FINEST)
    except (ValueError, ArithmeticError) as error:
        raise ConfigurationError(f"{name} is {_shown(value)}; give at most {FINEST} decimals.") from error
    return amount


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python spells no whole number of 5,000 digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def checked_amounts(amounts: Any, name: str, *, negative: bool = False) -> dict[str, Decimal]:
    """Return amounts by owner, or raise `ConfigurationError`."""
    if not isinstance(amounts, Mapping):
        raise ConfigurationError(f"{name} is {amounts!r}; give a mapping of owner to amount.")
    return {
        checked_name(owner, "An owner"): checked_amount(amount, f"{name}[{owner!r}]", negative=negative)
        for owner, amount in amounts.items()
    }


def checked_scales(scales: Any) -> dict[str, int]:
    """Return the decimals by currency, or raise `ConfigurationError`."""
    if not isinstance(scales, Mapping | None):
        raise ConfigurationError(f"scales is {scales!r}; give a mapping of currency to decimals, such as {{'EUR': 2}}.")
    for currency, scale in (scales or {}).items():
        checked_name(currency, "A currency", empty=True)
        if isinstance(scale, bool) or not isinstance(scale, int) or not 0 <= scale <= FINEST:
            raise ConfigurationError(f"scales[{currency!r}] is {scale!r}; give 0 to {FINEST} decimals.")
    return dict(scales or {})


def checked_hold_for(hold_for: Any) -> timedelta:
    """Return how long holds stand, or raise `ConfigurationError`."""
    if not isinstance(hold_for, timedelta) or not timedelta(0) < hold_for <= _LONGEST_HOLD:
        raise ConfigurationError(f"hold_for is {hold_for!r}; give a positive timedelta of a year at most.")
    return hold_for


def units(amount: Decimal, scale: int, name: str, *, exact: bool = False) -> tuple[int, int]:
    """Return an amount in units of the currency and its residual in millionths.

    Args:
        amount: of at most six decimals.
        scale: the currency's decimals.
        name: whose it is, for the message.
        exact: whether a residual is refused.

    Raises:
        ConfigurationError: it has a residual that is refused, or does not fit into 64 bits.
    """
    whole, residual = in_units(amount, scale)
    if exact and residual:
        raise ConfigurationError(f"{name} is {amount}; the currency has {scale} decimals.")
    if abs(whole) > LARGEST:
        raise ConfigurationError(f"{name} is {amount}; at {scale} decimals it does not fit into 64 bits.")
    return whole, residual
