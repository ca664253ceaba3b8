"""Canonical JSON and times: one spelling, whatever the value."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from llm_auction_chain.canonical_json import canonical, digest, loads, printable, time_text


def test_printable_leaves_plain_json_as_it_is():
    plain = {"a": [1, 2.5, None, True, "é", {"b": []}]}
    assert printable(plain) == plain
    assert digest(plain) == digest(json.loads(json.dumps(plain)))


def nested(depth):
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize("value", [
    "half \ud800 a pair", {"\udc00": "\ud800"}, {"n": 2**80, "x": float("nan")}, {"b": b"\xff", 1: {2}}, nested(300),
    {"n": 10**5000}, (1, None, True), object,
])  # fmt: skip
def test_whatever_a_value_is_it_becomes_json_with_a_canonical_spelling(value):
    plain = printable(value)
    assert json.loads(canonical(plain)) == plain
    assert printable(plain) == plain


def test_64_levels_are_kept_and_deeper_ones_are_cut():
    assert printable(nested(63)) == nested(63)
    cut = printable(nested(80))
    for _ in range(64):
        (cut,) = cut
    assert cut == "..."


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(1 - 2**53, 2**53 - 1) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abz_:09", max_size=3), inner, max_size=4),
    max_leaves=12,
)


NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([
    -0.0, 1.0, 2.0**53, 9.1e15, 1e16, 1e21, 1e-4, 9.9e-5, 1e-6, 1e-7, 0.1, 123456.789, 5e-324
])  # fmt: skip
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
ANY = st.recursive(
    VALUES | NUMBERS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)


@given(value=ANY)
def test_the_spelling_is_that_of_rfc_8785(value):
    assert canonical(value) == rfc8785.dumps(value)


@pytest.mark.parametrize("value", [float("nan"), -float("inf"), 2**53, {1: 2}, {1, 2}, "\ud800", [b"a"], object])
def test_what_has_no_canonical_spelling_is_refused(value):
    with pytest.raises(ValueError, match=r"."):
        canonical({"in": [value]})


@given(value=VALUES)
def test_the_fast_digest_is_the_digest(value):
    assert digest(value, floats=False) == digest(value)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"x": 1, "y": 2, "x": 3}}]', b'{"a": 1, "\\u0061": 2}'])
def test_a_key_that_appears_twice_in_one_object_is_refused(text):
    with pytest.raises(ValueError, match=r"the key '[ax]' appears twice in one object"):
        loads(text)


def test_a_key_may_appear_in_several_objects():
    assert loads('[{"a": 1}, {"a": {"a": 2}}]') == [{"a": 1}, {"a": {"a": 2}}]


def test_a_long_key_that_appears_twice_does_not_fill_the_message():
    key = "\x1b" + "k" * 10_000
    with pytest.raises(ValueError, match="appears twice") as refused:
        loads(f"{{{json.dumps(key)}: 1, {json.dumps(key)}: 2}}")
    assert len(str(refused.value)) < 100
    assert str(refused.value).isprintable()


def test_times_are_in_utc_with_microseconds_and_sort_as_text():
    moments = [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(2026, 1, 2, 1, tzinfo=timezone(timedelta(hours=2))),
        datetime(2026, 1, 1, 23, 0, 0, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ]
    texts = [time_text(moment) for moment in moments]
    assert texts == sorted(texts)
    assert texts[:3] == ["0001-01-01T00:00:00.000000Z", "2026-01-01T23:00:00.000000Z", "2026-01-01T23:00:00.000001Z"]
    assert [datetime.fromisoformat(text) for text in texts] == moments


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="has no time zone"):
        time_text(datetime(2026, 1, 1))  # noqa: DTZ001
