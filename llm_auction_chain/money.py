"""Amounts of money as they are charged: decimals of a millionth of the unit, by one rounding rule."""

import math
from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Context, Decimal

__all__ = ["as_decimal", "as_text", "total"]

_SMALLEST = Decimal("0.000001")
_DIGITS = Context(prec=200, rounding=ROUND_HALF_EVEN)  # rewards of up to 1e100 keep all of theirs


def as_decimal(amount: float) -> Decimal:
    """Return an amount rounded to a millionth of its unit, halves to the even digit; never -0.

    Each charge is rounded by itself, and sums are sums of rounded charges, so that they agree to the last digit.

    >>> as_decimal(0.1 + 0.2), as_decimal(-1e-9), as_decimal(2.5e-6)
    (Decimal('0.300000'), Decimal('0.000000'), Decimal('0.000002'))
    """
    if not math.isfinite(amount):
        raise ValueError(f"{amount} is no amount of money")
    rounded = Decimal(repr(float(amount))).quantize(_SMALLEST, context=_DIGITS)
    return abs(rounded) if rounded == 0 else rounded


def as_text(amount: Decimal) -> str:
    """Return an amount as plain digits, without an exponent.

    >>> as_text(as_decimal(1e-6)), as_text(as_decimal(1e20))
    ('0.000001', '100000000000000000000.000000')
    """
    return format(amount, "f")


def total(amounts: Iterable[Decimal]) -> Decimal:
    """Return the sum of charges, exact.

    >>> total([as_decimal(0.1)] * 3)
    Decimal('0.300000')
    """
    summed = as_decimal(0.0)
    for amount in amounts:
        summed = _DIGITS.add(summed, amount)
    return summed
