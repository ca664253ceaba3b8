"""The hash chain: the same bookings give the same hashes, in this version and in later ones."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from llm_auction_chain.ledger import Head, Ledger
from llm_auction_chain.ledger.chain import BookingRow, Line, evidence_of, hash_of, key_of, request_of

ROW = BookingRow(
    seq=2**60,
    key="charge:x",
    kind="charge",
    auction_id="x",
    currency="EUR",
    scale=2,
    at="2026-03-01T12:00:00.000000+00:00",
    note="n",
    request="r",
    receipt="sha256:00",
    evidence="e",
    previous="p",
)
LINES = [Line("A", -12, -250, -5000), Line("B", 1, 0, 0)]


def test_a_hash_covers_every_column_and_every_entry():
    assert hash_of(ROW, LINES) == "sha256:2ad3fbb2a6f9c707384b5b95b41ff7c2b067372dd06c6749c39f1bbd19303988"
    assert hash_of(ROW._replace(hash="h"), LINES) == hash_of(ROW, LINES)
    changed = [ROW._replace(**{name: 7 if name in ("seq", "scale") else "7"}) for name in ROW._fields if name != "hash"]
    others = [LINES[::-1], LINES[:1], *([LINES[0]._replace(**{name: 7})] for name in Line._fields)]
    hashes = {hash_of(row, LINES) for row in changed} | {hash_of(ROW, lines) for lines in others}
    assert len(hashes - {hash_of(ROW, LINES)}) == len(changed) + len(others)


def test_a_booking_from_before_there_were_roots_of_views_keeps_its_hash():
    old = ROW._replace(views=None)
    assert hash_of(old, LINES) == "sha256:bb355a48c3b01c5a8d58b666affbcba3751a3692ba47426577436dfd6ebff2c8"
    assert hash_of(old._replace(hash="h"), LINES) == hash_of(old, LINES) != hash_of(ROW, LINES)


def test_an_auction_without_an_id_is_not_one_of_that_name():
    assert hash_of(ROW._replace(auction_id=None), LINES) != hash_of(ROW._replace(auction_id="None"), LINES)


def test_evidence_is_a_digest_and_of_nothing_it_is_nothing():
    assert evidence_of("") == ""
    assert evidence_of("é") == "sha256:4a99557e4033c3539de2eb65472017cad5f9557f7a0625a09f1c3f6e2ba69c4c"


def test_keys_of_different_parts_differ():
    parts = [("a", "b"), ("a:b",), ("a%3Ab",), ("a", "*"), ("a", "%2A"), ("a",), ("a", "2")]
    keys = [key_of("hold", *part) for part in parts]
    assert len(set(keys)) == len(parts)
    assert key_of("hold", "a:*%", number=3) == "hold:a%3A%2A%25:3"


def test_a_request_is_the_same_for_equal_amounts_in_any_order():
    one = request_of("charge", "x", "EUR", {"A": 1_500_000, "B": 0, "C": 2_000_000}, "reply")
    assert one == request_of("charge", "x", "EUR", {"C": 2_000_000, "A": 1_500_000}, "reply")
    assert one == "sha256:51b48b357cdeba3a053c885d77561ce5a6f76f24dfdf0d3698d5fa97297a88bf"
    others = [
        request_of("hold", "x", "EUR", {"A": 1_500_000, "C": 2_000_000}, "reply"),
        request_of("charge", "y", "EUR", {"A": 1_500_000, "C": 2_000_000}, "reply"),
        request_of("charge", "x", "USD", {"A": 1_500_000, "C": 2_000_000}, "reply"),
        request_of("charge", "x", "EUR", {"A": 1_400_000, "C": 2_000_000}, "reply"),
        request_of("charge", "x", "EUR", {"A": 1_500_000, "C": 2_000_000}),
    ]
    assert len({one, *others}) == 6
    nothing = {"A": 0}
    assert request_of("hold", "x", "EUR", nothing) != request_of("hold", "x", "EUR", {})


@pytest.fixture
def book(monkeypatch):
    """A ledger with every kind of booking, at a fixed time and with fixed nonces."""
    monkeypatch.setattr("secrets.token_hex", lambda n: "ab" * n)
    times = iter([datetime(2026, 3, 1, 12, minute, tzinfo=UTC) for minute in range(60)])
    with Ledger("sqlite://", scales={"EUR": 2}, clock=lambda: next(times)) as ledger:
        ledger.deposit("A", 100, currency="EUR", key="bank-1", note="wire")
        ledger.withdraw("A", 1, currency="EUR", key="bank-2")
        for auction in ("charged", "voided", "late"):
            ledger.hold(auction, {"A": Decimal("2.50"), "B": Decimal(1)}, currency="EUR")
        receipt = {"digest": "sha256:00", "winner": 1}
        for call in ("1", "2"):
            ledger.charge("charged", {"A": "0.125"}, currency="EUR", reply="r", receipt={**receipt, "digest": call})
        ledger.cancel("charged", receipt="1", reason="lost")
        ledger.reverse("charged", owner="A", reason="a mistake")
        ledger.void("voided", reason="no reply")
        ledger.hold("voided", {"A": Decimal("2.50"), "B": Decimal(1)}, currency="EUR")
        ledger.cancel("unknown")
        ledger.expire_holds(now=datetime(2026, 3, 2, tzinfo=UTC))
        yield ledger


def test_the_same_bookings_give_the_same_chain(book):
    """A repeated request is recognised by digests that an earlier version has stored."""
    assert book.verify().ok
    assert book.head() == Head(seq=14, hash="sha256:96c8341adc3254303b1ccd84db7628f21b05693e6081b0bf983b5592fec5bc18")
