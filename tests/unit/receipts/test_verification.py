"""Garbage and hostile values are differences, not errors, and differences read well."""

import contextlib
import copy
import json
import math
import re
import tracemalloc
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_auction_chain import AuctionRunnable, ConfigurationError
from llm_auction_chain.receipts import AgentView, Receipt, verify
from llm_auction_chain.testing import MarkovChatModel
from tests.unit.receipts.examples import all_receipts, receipt_of, with_new_digest

MADE = all_receipts()


RECEIPT, VIEW = MADE["pivot"], MADE["pivot User"]


def nested(depth, kind=list):
    inner = 1
    for _ in range(depth):
        inner = [inner] if kind is list else {"schema": inner}
    return inner


def endless():
    loop = {}
    loop["agents"] = loop
    return loop


GARBAGE = [
    None, True, 3, 2.5, "", "{", "null", "[]", "[1]", "no receipt", b"\xff\xfe", [], {}, {1: 2}, {None: 1}, set(),
    b"{}", Receipt, AgentView, math.nan, 10**5000, [RECEIPT], {"schema": None}, {"schema": 10**5000}, nested(100_000),
    nested(100_000, dict), endless(), json.dumps([RECEIPT]), "[" * 100_000, '{"a":' * 100_000, "NaN", '{"tau": NaN}',
    '{"winner": 1' + "0" * 5000 + "}", types.MappingProxyType(RECEIPT) | {"more": 1}, RECEIPT["agents"], "\ud800",
    Receipt.model_construct(), Receipt.model_construct(**{**RECEIPT, "agents": 3}), AgentView.model_construct(salts=1),
    bytearray(b"x"), memoryview(b"x"), np.zeros(3), Path("receipt.json"),
]  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda one: type(one).__name__)
def test_garbage_of_any_shape_is_a_difference(garbage):
    found = verify(garbage)
    assert not found.ok
    assert found.signed_by is None
    for difference in found.differences:
        assert str(difference).isprintable()


def test_other_json_of_this_package_is_named():
    result = AuctionRunnable(model=MarkovChatModel(), agents=[], seed=7).run("Say something")
    outcome = result.reply.response_metadata["auction"]
    for value in (outcome, json.dumps(outcome), types.MappingProxyType(outcome)):
        (difference,) = verify(value).differences
        assert (difference.field, difference.rule) == ("receipt", "not a receipt: this is an outcome")


@pytest.mark.parametrize("names", [["agents"], ["agents", "candidates", "components", "left_out"], ["unknown"]])
def test_hostile_lists_give_few_differences_and_cost_little_memory(names):
    text = json.dumps({"schema": RECEIPT["schema"], **{name: [{}] * 40_000 for name in names}})
    tracemalloc.start()
    found = verify(text)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.differences) <= 100
    assert most < 150 * len(text)
    values = verify({**RECEIPT, "probabilities": ["x"] * 40_000, "log_weights": [{}] * 40_000})
    assert [difference.field for difference in values.differences] == ["log_weights[0]", "probabilities[0]"]


def test_the_first_hundred_differences_are_listed_and_the_others_counted():
    found = verify({**RECEIPT, **{f"more {k}": k for k in range(150)}})
    assert (len(found.differences), found.more, found.ok) == (100, 50, False)
    wide = receipt_of(np.zeros((1, 500)), np.zeros(500), tau=1.0).as_dict()
    found = verify(with_new_digest({**wide, "log_probabilities": [-1.0] * 500}))
    assert (len(found.differences), found.more) == (100, 900)  # of each log-probability, and each probability


def test_counts_near_their_limit_cost_no_memory():
    receipt = receipt_of([[1.0, 2.0]], [0.0, 0.0], tau=1.0).as_dict()
    most = 2**31 - 1
    for candidate in receipt["candidates"]:
        candidate["draws"] = most
    receipt["components"] = [{"component": name, "draws": most} for name in "ab"]
    text = json.dumps(receipt)
    tracemalloc.start()
    found = verify(text)
    _, used = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not found.ok
    assert used < 150 * len(text)


def test_a_valid_receipt_of_another_auction_is_not_the_expected_one():
    for expected in (RECEIPT, VIEW):
        known = {"auction_id": expected["auction_id"], "opening": expected["opening"]}
        assert verify(expected, **known).ok
        for one in MADE.values():
            if one["auction_id"] != expected["auction_id"]:
                assert verify(one).ok
                found = verify(one, **known)
                assert [difference.field for difference in found.differences] == ["auction_id", "opening"]
                assert [one.field for one in verify(one, opening=known["opening"]).differences] == ["opening"]
    assert str(verify(RECEIPT, auction_id="x").differences[0]).endswith("; it should be 'x'")
    assert verify({**RECEIPT, "auction_id": "x?"}, auction_id="x\ud800").differences[0].field == "digest"


@pytest.mark.parametrize("expected", [
    {"auction_id": ""}, {"auction_id": 3}, {"opening": ""}, {"opening": "0" * 64}, {"opening": b"x"},
    {"opening": "sha256:" + "g" * 64}, {"opening": "sha256:" + "0" * 64 + "\n"},
])  # fmt: skip
def test_an_expectation_that_no_receipt_can_meet_is_refused(expected):
    with pytest.raises(ConfigurationError, match=f"{next(iter(expected))} must be"):
        verify(RECEIPT, **expected)


def test_a_python_field_name_is_unknown_in_a_receipt():
    told = {"schema_" if name == "schema" else name: value for name, value in RECEIPT.items()}
    assert {difference.field for difference in verify(told).differences} == {"schema", "schema_"}
    with pytest.raises(ConfigurationError):
        Receipt.from_dict(told)


VERSION_1 = json.loads(Path(__file__).with_name("version_1.json").read_text("utf-8"))


@pytest.mark.parametrize("name", VERSION_1)
def test_old_receipts_of_version_1_stay_valid(name):
    assert verify(VERSION_1[name]).differences == ()
    kind = AgentView if name == "view" else Receipt
    assert kind.from_dict(VERSION_1[name]).as_dict() == VERSION_1[name]


HOSTILE = [
    math.nan, math.inf, -math.inf, 10**400, -(10**400), 2**53, 2**63, 10**30, -1, -0.5, 1e308, -1e308, 5e-324, "1", "",
    "\ud800", "\x1b[2J", None, True, [], [[]], {}, {"a": {}}, [None], [1e308, 1e308], nested(2000), 10**5000, b"",
    object(), "9" * 5000, "sha256:" + "0" * 64, "0" * 64, [0.0] * 3, [[0.0]],
]  # fmt: skip


def placed(receipt, value):
    """Yield the receipt with the value in every place at any depth."""
    for name in receipt:
        yield {**receipt, name: value}
    for name in ("agents", "candidates", "components", "salts", "hidden", "left_out"):
        inner = receipt.get(name)
        for key in (inner if isinstance(inner, dict) else inner[0]) if inner else ():
            forged = copy.deepcopy(receipt)
            (forged[name] if isinstance(inner, dict) else forged[name][0])[key] = value
            yield forged


@pytest.mark.parametrize("receipt", [RECEIPT, VIEW], ids=["receipt", "view"])
@pytest.mark.parametrize("k", range(len(HOSTILE)))
def test_no_value_in_any_place_makes_verification_fail(receipt, k):
    for forged in placed(receipt, HOSTILE[k]):
        for difference in verify(forged).differences:
            assert str(difference).isprintable()
        with contextlib.suppress(ValueError, RecursionError):  # what has no digest cannot get a new one
            forged["digest"] = with_new_digest(forged)["digest"]
        verify(forged)


NUMBERS = st.one_of(st.floats(), st.integers(-(2**60), 2**60), st.sampled_from([1e-100, 1e100, -1e100, 1e300, 5e-324]))


@given(st.data())
def test_no_numbers_make_verification_fail(data):
    forged = copy.deepcopy(data.draw(st.sampled_from([RECEIPT, VIEW])))
    m = len(forged["log_probabilities"])
    rows = st.lists(st.one_of(NUMBERS, st.none()), min_size=m, max_size=m)
    forged["log_probabilities"] = data.draw(rows)
    forged["tau"] = data.draw(NUMBERS)
    forged["agents"][0]["report"] = data.draw(st.lists(NUMBERS, min_size=m, max_size=m))
    forged["payment_rule"] = data.draw(st.sampled_from(["expected", "proportional", "influence", "pivot"]))
    if "log_weights" in forged:
        forged["log_weights"] = data.draw(rows)
    assert not verify(forged).ok


def test_differences_read_well():
    told = [str(one) for one in verify({**RECEIPT, "winner": 1}).differences]
    assert re.fullmatch(r"digest is 'sha256:\w+\.\.\.\w+'; computed from the rest: 'sha256:\w+\.\.\.\w+'", told[0])
    assert told[1:] == [f"winner is 1; computed from the rest: {RECEIPT['winner']}"]
    assert [str(one) for one in verify({**RECEIPT, "tau": -1.0}).differences] == [
        "tau is -1.0; it should be at least 1e-100"
    ]
    missing = {name: value for name, value in RECEIPT.items() if name != "tau"}
    assert [str(one) for one in verify(missing).differences] == ["tau is None; it is missing"]
    (told,) = verify({**RECEIPT, "\x1b[31mred\n": "\x1b[2J"}).differences
    assert str(told) == r"['\x1b[31mred\n'] is '\x1b[2J'; receipts have no such field"
    (told,) = verify(None).differences
    assert str(told) == (
        "receipt is 'NoneType'; not a receipt: pass the object, its JSON as a dict or its JSON as a text, not NoneType"
    )
    for name in ("agents", "candidates", "probabilities"):
        assert all(len(str(one)) < 250 for one in verify({**RECEIPT, name: RECEIPT[name] * 40}).differences)
