"""Amounts of money are rounded by one rule, and sums are exact."""

from decimal import ROUND_UP, Context, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_auction_chain.money import (
    as_decimal,
    as_text,
    from_units,
    in_millionths,
    in_units,
    negated,
    plus,
    total,
    whole_units,
)

SCALES = st.integers(0, 6)
CHARGES = st.integers(-(10**30), 10**30).map(lambda millionths: Decimal(millionths).scaleb(-6, Context(prec=60)))


@pytest.mark.parametrize(("amount", "charge"), [
    (2.5e-6, "0.000002"), (3.5e-6, "0.000004"), (-2.5e-6, "-0.000002"), (0.1 + 0.2, "0.300000"), (-1e-9, "0.000000"),
    (-0.0, "0.000000"), (1e20, "100000000000000000000.000000"), (1.0000005, "1.000000"), (1.0000015, "1.000002"),
])  # fmt: skip
def test_charges_are_rounded_to_a_millionth_with_halves_to_even(amount, charge):
    assert as_text(as_decimal(amount)) == charge


@given(st.floats(-1e100, 1e100))
def test_a_charge_is_at_most_half_a_millionth_from_the_amount_as_python_writes_it(amount):
    assert abs(Fraction(as_decimal(amount)) - Fraction(repr(amount))) <= Fraction(1, 2_000_000)


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), -float("inf")])
def test_an_amount_that_is_not_finite_is_refused(amount):
    with pytest.raises(ValueError, match="must be finite"):
        as_decimal(amount)


@given(CHARGES, SCALES)
def test_units_and_residual_make_up_the_charge(charge, scale):
    units, residual = in_units(in_millionths(charge), scale)
    unit = 10 ** (6 - scale)
    assert Fraction(units * unit + residual, 10**6) == Fraction(charge)
    assert 2 * abs(residual) <= unit
    assert 2 * abs(residual) < unit or units % 2 == 0
    assert Fraction(from_units(units, scale)) == Fraction(units, 10**scale)


@pytest.mark.parametrize("amount", ["0.0000001", "NaN", "Infinity", "-Infinity"])
def test_what_has_no_whole_number_of_millionths_is_refused(amount):
    with pytest.raises(ValueError, match="at most 6 decimals"):
        in_millionths(Decimal(amount))


def test_an_amount_of_more_than_200_digits_is_refused():
    with pytest.raises(ArithmeticError):
        in_millionths(Decimal("1" * 201))


@given(st.decimals(0, 10**12, places=6), SCALES)
def test_cover_counts_whole_units_only(amount, scale):
    units = whole_units(amount, scale)
    assert Fraction(units, 10**scale) <= Fraction(amount) < Fraction(units + 1, 10**scale)


@given(st.lists(CHARGES, max_size=5))
def test_sums_are_exact_whatever_the_context_of_the_thread(charges):
    with localcontext(Context(prec=3, rounding=ROUND_UP)):
        summed = total(charges)
        opposite = negated(summed)
        text = as_text(as_decimal(1.23456789))
    assert Fraction(summed) == sum(map(Fraction, charges))
    assert plus(summed, opposite) == 0
    assert text == "1.234568"
    assert str(negated(Decimal("0.00"))) == "0.00"
    assert as_text(total([])) == "0.000000"


MONEY = st.floats(-1e100, 1e100)


@given(st.lists(MONEY, max_size=6))
def test_rounded_charges_add_up_to_the_last_digit(amounts):
    charges = [as_decimal(amount) for amount in amounts]
    assert total(charges) == sum(map(Fraction, map(as_text, charges)), Fraction(0))
    for amount, charge in zip(amounts, charges, strict=True):
        assert (
            abs(Fraction(as_text(charge)) - Fraction(amount)) <= Fraction(1, 2_000_000) + abs(Fraction(amount)) / 2**53
        )
        assert "e" not in as_text(charge).lower()
        assert as_text(charge) != "-0.000000"


def test_no_sum_of_money_is_infinite_or_nan():
    for amount in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be finite"):
            as_decimal(amount)
