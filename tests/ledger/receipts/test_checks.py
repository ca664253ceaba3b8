"""Every change of a receipt is a difference, and nearly every change with a new digest is one, too."""

import json

import pytest

from llm_auction_chain.receipts import verify
from tests.unit.receipts.examples import all_receipts, changes_of, rich_receipt, with_new_digest

MADE = all_receipts()
CHANGED = [name for name in MADE if name not in ("expected", "proportional", "influence")]
RECEIPTS = ("pivot", "fallback", "alone")
# Nothing in a view determines the digest of the full receipt, the salt of a message that the view does not contain, or
# which of two replies that are worth the same to the agent the others made likelier.
UNBOUND_IN_VIEWS = {"receipt", "salts.reply", "log_probabilities"}


@pytest.mark.parametrize("name", MADE)
def test_a_receipt_from_an_auction_is_valid(name):
    assert verify(MADE[name]).differences == ()


@pytest.mark.parametrize("name", CHANGED)
def test_one_change_anywhere_is_a_difference(name):
    tried = 0
    for path, forged in changes_of(MADE[name]):
        tried += 1
        assert not verify(forged).ok, path
    assert tried > 100


@pytest.mark.parametrize("name", CHANGED)
def test_a_forger_who_makes_a_new_digest_is_detected_except_in_these_fields(name):
    missed = set()
    for path, forged in changes_of(MADE[name]):
        if path[:1] not in ((), ("digest",)) and verify(with_new_digest(forged)).ok:
            missed.add(".".join(path) if path[0] == "salts" else path[0])
    if name in RECEIPTS:
        assert missed == set()
    else:
        assert {"receipt", "salts.reply"} <= missed <= UNBOUND_IN_VIEWS


FIGURES = [
    "winner", "revenue", "log_weights[0]", "log_probabilities[1]", "probabilities[1]", "agents[2].report",
    "agents[2].contribution", "agents[2].expected", "agents[2].payment", "agents[2].charge",
    "agents[4].price_per_click", "tau", "time", "library", "model", "seed", "opening", "salt", "reports[3]",
]  # fmt: skip


@pytest.mark.parametrize("field", FIGURES)
def test_a_difference_is_at_the_changed_field_or_at_its_commitment(field):
    bound = {"tau": "opening", "time": "opening", "library": "opening", "model": "opening", "seed": "opening"}
    bound |= {"log_weights[0]": "opening", "agents[2].report": "reports[2]", "salt": "opening"}
    told = set()
    for path, forged in changes_of(MADE["pivot"]):
        spelled = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")
        if spelled == field or spelled.startswith(f"{field}["):
            found = {difference.field for difference in verify(with_new_digest(forged)).differences}
            assert any(name.startswith((field, bound.get(field, field), "len(")) for name in found), (path, found)
            told |= found
    assert told


def test_a_forger_with_the_salt_is_detected_only_by_the_opening_that_agents_received():
    honest, forged = rich_receipt(seed=1), rich_receipt(seed=2)
    swapped = {**forged.as_dict(), "auction_id": honest.auction_id}
    assert not verify(swapped).ok
    remade = forged.as_dict()
    assert verify(remade).ok  # a different auction also has a valid receipt
    assert remade["opening"] != honest.opening  # the agents know the opening
    assert remade["digest"] != honest.digest  # a ledger and a signature preserve the digest


def test_a_text_is_read_like_a_dict_and_duplicate_keys_are_refused():
    text = json.dumps(MADE["pivot"])
    assert verify(text).ok
    assert verify(text.encode()).ok
    (found,) = verify(text.replace('{"library"', '{"winner": 0, "library"', 1)).differences
    assert "appears twice in one object" in str(found)
