"""Charges: once, whole, exact, and given back at most once."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_auction_chain.errors import ChargeConflictError, ConfigurationError, CoverError, DeliveredError
from llm_auction_chain.ledger import ChargeLine, Ledger

RECEIPT = {"digest": "sha256:00", "winner": 1, "law": [0.25, 0.75], "texts": ["é", "\u0000"]}


@pytest.mark.parametrize("held", [True, False])
def test_a_charge_repeated_returns_the_first_and_another_is_refused(funded, held):
    if held:
        funded.hold("x", {"A": Decimal(10), "B": Decimal(10)})
    first = funded.charge("x", {"A": Decimal("1.5"), "B": Decimal("-0.5")}, receipt=RECEIPT)
    assert first.lines[0] == ChargeLine(owner="A", amount=Decimal("1.500000"), residual=Decimal(0))
    assert (first.total, first.receipt) == (1, "sha256:00")
    assert funded.charge("x", {"B": "-0.50", "A": "1.5"}, receipt=RECEIPT) == first == funded.charge_of("x")
    assert funded.charge("x", {"A": "1.5", "B": "-0.5"}, receipt={"digest": "of another try"}) == first
    assert funded.receipt_of("x") == RECEIPT
    for amounts in ({"A": 1}, {"A": "1.5"}, {}):
        with pytest.raises(DeliveredError, match="another outcome"):
            funded.charge("x", amounts, receipt=RECEIPT)
    with pytest.raises(DeliveredError, match="another outcome"):
        funded.charge("x", {"A": "1.5", "B": "-0.5"}, receipt=RECEIPT, currency="EUR")
    assert [funded.balance(owner).balance for owner in "AB"] == [Decimal("98.5"), Decimal("100.5")]
    assert funded.verify().ok


def test_a_charge_releases_the_whole_hold(funded):
    funded.hold("x", {"A": Decimal(10), "B": Decimal(10)})
    charge = funded.charge("x", {"A": Decimal(3)})
    assert [(line.owner, line.amount) for line in charge.lines] == [("A", 3), ("B", 0)]
    assert [(account.balance, account.held) for account in funded.accounts()] == [(97, 0), (100, 0), (100, 0)]


@pytest.mark.parametrize("amounts", [{"A": "10.000001"}, {"A": "-10.000001"}, {"A": 1, "B": 1}, {"C": 0}])
def test_a_charge_beyond_its_hold_is_refused_and_the_hold_stands(funded, amounts):
    funded.hold("x", {"A": Decimal(10), "B": Decimal(1000)})
    with pytest.raises(CoverError):
        funded.charge("x", amounts)
    assert funded.balance("A").held == 10
    assert funded.charge("x", {"A": 10}).total == 10


def test_a_charge_of_another_currency_than_its_hold_is_refused(funded):
    funded.hold("x", {"A": Decimal(10)})
    with pytest.raises(ChargeConflictError):
        funded.charge("x", {"A": 1}, currency="EUR")


def test_without_cover_of_one_owner_nothing_is_booked(funded):
    before = funded.head()
    with pytest.raises(CoverError, match=r"\['B', 'new'\]"):
        funded.charge("x", {"A": 1, "B": 101, "new": 1})
    assert funded.head() == before
    assert funded.balance("A").balance == 100
    assert funded.charge_of("x") is None
    funded.charge("x", {"A": 1, "new": -1})
    assert funded.balance("new").balance == 1


@pytest.mark.parametrize("amounts", [{}, {"A": 0}])
def test_a_charge_of_nothing_is_booked_and_closes_the_auction(funded, amounts):
    assert funded.charge("x", amounts).total == 0
    assert funded.charge("x", amounts) == funded.charge_of("x")
    with pytest.raises(ChargeConflictError, match="Reverse it"):
        funded.void("x")
    funded.cancel("x")
    assert funded.verify().ok


def test_a_void_closes_an_auction_never_seen_and_twice_is_once(funded):
    for _ in range(2):
        funded.void("x", reason="no reply")
    assert funded.head().seq == 4
    with pytest.raises(ChargeConflictError, match="was voided"):
        funded.charge("x", {"A": 1})
    assert [entry.note for entry in funded.entries()] == ["", "", ""]
    assert funded.hold("x", {"A": 1}).amounts == {"A": 1}
    assert funded.verify().ok


def test_a_charge_stands_as_long_as_one_call_delivers_on_it(funded):
    def charge(call):
        return funded.charge("x", {"A": 3}, receipt={"digest": call})

    first = charge("call 1")
    assert charge("call 2") == charge("call 1") == first
    funded.cancel("x", receipt="call 1")
    funded.cancel("x", receipt="call 1")  # its answer was lost
    funded.cancel("x", receipt="a call that never was")
    assert charge("call 3") == first
    funded.cancel("x", receipt="call 2")
    assert funded.balance("A").balance == 97
    assert charge("call 2") == first  # asked once more, and delivered
    funded.cancel("x", receipt="call 3")
    assert funded.balance("A").balance == 97
    funded.cancel("x", receipt="call 2")
    assert funded.balance("A").balance == 100
    with pytest.raises(ChargeConflictError):
        charge("call 4")
    assert funded.verify().ok


def test_what_was_voided_before_it_was_held_takes_the_currency_of_its_hold(ledger):
    ledger.deposit("A", 10, currency="EUR")
    ledger.void("x")
    ledger.hold("x", {"A": 4}, currency="EUR")
    ledger.void("x")
    assert ledger.hold("x", {"A": 4}, currency="EUR").amounts == {"A": 4}
    assert ledger.charge("x", {"A": 1}, currency="EUR").total == 1
    assert [(account.currency, account.balance, account.held) for account in ledger.accounts()] == [("EUR", 9, 0)]
    assert ledger.verify().ok


def test_a_charge_is_reversed_once_as_a_whole(funded):
    funded.charge("x", {"A": 3, "B": -1})
    first = funded.reverse("x", reason="a mistake")
    assert [(entry.owner, entry.amount) for entry in first.entries] == [("A", 3), ("B", -1)]
    assert funded.reverse("x") == funded.reverse("x", owner="A") == first
    assert [account.balance for account in funded.accounts()] == [100, 100, 100]
    assert (first.key, first.note) == ("reversal:x:*", "a mistake")
    assert funded.charge_of("x").total == 2
    with pytest.raises(ChargeConflictError, match="reversed"):
        funded.charge("x", {"A": 3, "B": -1})
    assert funded.verify().ok


def test_lines_are_reversed_one_by_one_and_never_doubled(funded):
    funded.charge("x", {"A": 3, "B": 2, "*": -1})
    star = funded.reverse("x", owner="*")
    assert star.key == "reversal:x:%2A"
    for again in (funded.charge, funded.hold):
        with pytest.raises(ChargeConflictError, match="a part of it reversed"):
            again("x", {"A": 3, "B": 2, "*": -1} if again == funded.charge else {"A": 3})
    one = funded.reverse("x", owner="A")
    rest = funded.reverse("x")
    assert [entry.owner for entry in rest.entries] == ["B"]
    assert (funded.reverse("x", owner="A"), funded.reverse("x", owner="B"), funded.reverse("x")) == (one, rest, rest)
    assert all(account.balance in (0, 100) for account in funded.accounts())
    with pytest.raises(ChargeConflictError, match="'C'"):
        funded.reverse("x", owner="C")
    for nothing in ("unknown", "void"):
        funded.void("void")
        with pytest.raises(ChargeConflictError, match="has not been charged"):
            funded.reverse(nothing)
    assert funded.verify().ok


def test_a_charge_whose_lines_were_reversed_one_by_one_is_reversed(funded):
    funded.charge("x", {"A": 3, "B": 2})
    funded.reverse("x", owner="A")
    last = funded.reverse("x", owner="B")
    assert funded.reverse("x") == last
    with pytest.raises(ChargeConflictError, match="charged and reversed"):
        funded.charge("x", {"A": 3, "B": 2})


def test_ids_with_colons_do_not_meet(funded):
    funded.charge("a:b", {"A": 1})
    funded.charge("a", {"b:A": 0, "A": 1})
    funded.reverse("a:b", owner="A")
    funded.reverse("a", owner="b:A")
    assert funded.balance("A").balance == 99


EXACT = st.integers(-3_000_000, 3_000_000).map(lambda millionths: Decimal(millionths).scaleb(-6))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(amounts=st.lists(EXACT, max_size=4), scale=st.integers(0, 6))
def test_units_and_residuals_are_the_exact_charge(amounts, scale):
    asked = {f"owner {number}": amount for number, amount in enumerate(amounts)}
    with Ledger("sqlite://", scales={"": scale}, credit=10) as ledger:
        charge = ledger.charge("x", asked)
        assert {line.owner: line.amount + line.residual for line in charge.lines} == asked
        for line in charge.lines:
            assert (Fraction(line.amount) * 10**scale).denominator == 1
        totals = ledger.totals()[0]
        assert totals.revenue + totals.residual == sum(amounts)
        assert totals.cash == totals.revenue + totals.balances == 0
        assert ledger.verify().ok


def test_halves_go_to_the_even_unit_and_the_residual_is_kept(ledger):
    ledger.deposit("A", "1", currency="EUR")
    ledger.hold("x", {"A": Decimal("0.125")}, currency="EUR")
    line = ledger.charge("x", {"A": Decimal("0.125")}, currency="EUR").lines[0]
    assert (line.amount, line.residual) == (Decimal("0.12"), Decimal("0.005"))
    assert ledger.totals()[0].residual == Decimal("0.005")
    ledger.reverse("x")
    assert ledger.totals()[0].residual == 0


@pytest.mark.parametrize("auction", ["", " ", None, 7, "a\0", "a\ud800", "a" * 256])
def test_a_bad_id_is_refused(ledger, auction):
    for operation in (ledger.void, ledger.cancel, ledger.reverse, ledger.charge_of, ledger.receipt_of):
        with pytest.raises(ConfigurationError):
            operation(auction)
    for operation in (ledger.hold, ledger.charge):
        with pytest.raises(ConfigurationError):
            operation(auction, {})
    assert ledger.head().seq == 0


@pytest.mark.parametrize(
    "amount",
    [
        0.5,
        "0.0000001",
        "NaN",
        "Infinity",
        "1e300",
        "1E+1000000",
        "1E-2000000",
        "1." + 250 * "0" + "1",
        pytest.param(10**5000, id="5,001 digits"),
        2**63,
        Decimal(9223372036855),
        "x",
        None,
        True,
    ],
)
def test_a_bad_amount_is_refused(ledger, amount):
    with pytest.raises(ConfigurationError):
        ledger.charge("x", {"A": amount})
    with pytest.raises(ConfigurationError) as told:
        ledger.deposit("A", amount)
    assert len(str(told.value)) < 400
    assert ledger.head().seq == 0


def test_two_spellings_of_one_owner_are_not_two_amounts(ledger):
    for verb in (ledger.hold, ledger.charge):
        with pytest.raises(ConfigurationError, match="must be one amount for each owner"):
            verb("x", {"Caf\u00e9": 1, "Cafe\u0301": 2})
    assert ledger.head().seq == 0


def test_a_receipt_that_is_none_is_refused(ledger):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for receipt in ({"digest": "d", "deep": deep}, {"digest": 5}, ["digest"], {"digest": "d", "nan": float("nan")}):
        with pytest.raises(ConfigurationError, match="receipt"):
            ledger.charge("x", {"A": 0}, receipt=receipt)
    with pytest.raises(ConfigurationError, match="receipt"):
        ledger.cancel("x", receipt=["A"])
    assert ledger.head().seq == 0


def test_a_float_is_refused_with_the_reason(ledger):
    with pytest.raises(ConfigurationError, match="A float is not exact"):
        ledger.deposit("A", 0.1)
