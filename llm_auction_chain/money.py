"""Amounts of money: decimals rounded to a millionth by one rule, and whole units such as cents."""

import math
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal, Inexact
from functools import reduce

__all__ = [
    "FINEST",
    "as_decimal",
    "as_text",
    "charges_of",
    "from_units",
    "in_millionths",
    "in_units",
    "negated",
    "plus",
    "total",
    "whole_units",
]

FINEST = 6  # decimals of a charge, and the most a currency has
_SMALLEST = Decimal("0.000001")
_ZERO = Decimal(0)
# Own contexts, because a caller may have changed the rounding of the thread's context.
_DIGITS = Context(prec=200, rounding=ROUND_HALF_EVEN)  # enough for all digits of rewards of up to 1e100
_EXACT = Context(prec=200, traps=[Inexact])


def as_decimal(amount: float) -> Decimal:
    """Return an amount rounded to a millionth of its unit, halves to even; 0 instead of -0.

    Raises:
        ValueError: the amount is not finite.

    >>> as_decimal(0.1 + 0.2), as_decimal(-1e-9), as_decimal(2.5e-6)
    (Decimal('0.300000'), Decimal('0.000000'), Decimal('0.000002'))
    """
    if not math.isfinite(amount):
        raise ValueError(f"an amount of money must be finite, got {amount}")
    return _rounded(Decimal(repr(float(amount))))


def _rounded(amount: Decimal) -> Decimal:
    rounded = amount.quantize(_SMALLEST, context=_DIGITS)
    return rounded or abs(rounded)  # no -0


def charges_of(payments: Sequence[float], owners: Sequence[str]) -> tuple[Decimal, ...]:
    """Return what is charged for each agent: its owner's payment, rounded once, in parts that sum to it.

    >>> charges_of([4e-7, 2.0, 4e-7, 4e-7], ["O", "P", "O", "O"])
    (Decimal('0.000000'), Decimal('2.000000'), Decimal('0.000001'), Decimal('0.000000'))
    """
    due: dict[str, tuple[Decimal, Decimal]] = {}  # by owner: the sum so far, and the same rounded
    charges = []
    for owner, payment in zip(owners, payments, strict=True):
        before, charged = due.get(owner, (_ZERO, _ZERO))
        after = _DIGITS.add(before, Decimal(repr(float(payment))))
        due[owner] = after, _rounded(after)
        charges.append(_DIGITS.subtract(due[owner][1], charged))
    return tuple(charges)


def as_text(amount: Decimal) -> str:
    """Return an amount as plain digits, without an exponent.

    >>> as_text(as_decimal(1e-6)), as_text(as_decimal(1e20))
    ('0.000001', '100000000000000000000.000000')
    """
    return format(amount, "f")


def in_millionths(amount: Decimal) -> int:
    """Return an amount of at most six decimals as whole millionths.

    Raises:
        ValueError: the amount is not finite or has more decimals.
        ArithmeticError: it has too many digits for an exact result.

    >>> in_millionths(Decimal("-1.25"))
    -1250000
    """
    scaled = amount.scaleb(FINEST, context=_EXACT) if amount.is_finite() else None
    if scaled is None or scaled != (millionths := int(scaled)):
        raise ValueError(f"an amount must have at most {FINEST} decimals, got {amount}")
    return millionths


def in_units(millionths: int, scale: int) -> tuple[int, int]:
    """Return a charge as whole units of `10**-scale`, halves to even, and the residual of the rounding in millionths.

    `units * 10**(6 - scale) + residual` is exactly the charge in millionths.

    >>> in_units(125_000, 2), in_units(-1_000_001, 6)
    ((12, 5000), (-1000001, 0))
    """
    unit = 10 ** (FINEST - scale)
    units, rest = divmod(millionths, unit)
    if 2 * rest > unit or (2 * rest == unit and units % 2):
        units += 1
    return units, millionths - units * unit


def from_units(units: int, scale: int) -> Decimal:
    """Return whole units of `10**-scale` as a decimal.

    >>> from_units(-1234, 2)
    Decimal('-12.34')
    """
    return Decimal(units).scaleb(-scale, context=_DIGITS)


def whole_units(amount: Decimal, scale: int) -> int:
    """Return the number of whole units of `10**-scale` in an amount of at least 0, rounded down.

    >>> whole_units(Decimal("0.129"), 2), whole_units(Decimal(3), 0)
    (12, 3)
    """
    return int(amount.scaleb(scale, context=_DIGITS))


def negated(amount: Decimal) -> Decimal:
    """Return an amount with the opposite sign, exactly; 0 instead of -0.

    >>> negated(Decimal("1.50")), negated(Decimal("0.00"))
    (Decimal('-1.50'), Decimal('0.00'))
    """
    return _DIGITS.minus(amount)


def plus(*amounts: Decimal) -> Decimal:
    """Return an exact sum. It has as many decimals as the amount with the most.

    >>> plus(Decimal("9.88"), Decimal(1), Decimal("-0.005"))
    Decimal('10.875')
    """
    return reduce(_DIGITS.add, amounts)


def total(amounts: Iterable[Decimal]) -> Decimal:
    """Return the exact sum of charges.

    >>> total([as_decimal(0.1)] * 3)
    Decimal('0.300000')
    """
    return plus(as_decimal(0.0), *amounts)
