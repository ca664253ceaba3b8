"""An owner with its view, a proof and a head of the ledger: whether the ledger contains the view."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llm_auction_chain import Agent, AuctionRunnable, Billing
from llm_auction_chain.errors import ConfigurationError, LedgerError
from llm_auction_chain.receipts import AgentView, check_inclusion, prove, verify
from llm_auction_chain.testing import MarkovChatModel


def agents_of(owners):
    return [Agent(f"agent {n}", likes("abc"[n % 3]), owner=owner) for n, owner in enumerate(owners)]


def likes(letter):
    return lambda prompt, reply: float(reply.text.count(letter))


@pytest.fixture
def held(funded):
    """Hold an auction among owners, with bookings after it; return its receipt."""

    def hold(*owners, seed=7):
        settings = {"model": MarkovChatModel(), "agents": agents_of(owners), "report_cap": 2.0, "seed": seed}
        for owner in owners:
            funded.deposit(owner, 100, key=f"for {owner}")
        receipt = AuctionRunnable(billing=funded, **settings).run("Say something").receipt
        funded.deposit("A", 1)
        return receipt

    return hold


def test_every_owner_can_check_its_view_offline(funded, held):
    receipt = held("A", "B", "A", "C")
    held("A", "B", seed=8)
    head = funded.head().hash
    for n in range(4):
        view = json.loads(json.dumps(receipt.view(f"agent {n}").as_dict()))
        proof = json.loads(json.dumps(prove(funded, receipt.auction_id, f"agent {n}").as_dict()))
        assert verify(view).ok
        assert check_inclusion(view, proof, head) == ()


def test_a_proof_ends_at_the_head_that_the_owner_has_noted(funded, held):
    receipt = held("A", "B")
    noted = funded.head().hash
    held("A", "B", seed=8)
    proof = prove(funded, receipt.auction_id, "agent 0", head=noted)
    view = receipt.view("agent 0")
    assert check_inclusion(view, proof, noted) == ()
    assert [one.rule for one in check_inclusion(view, proof, funded.head().hash)] == ["the proof ends at another head"]
    with pytest.raises(LedgerError, match="No booking from"):
        prove(funded, receipt.auction_id, "agent 0", head="sha256:" + "0" * 64)


def forged(view, field, value):
    """Return a view with another value and the digest that goes with it."""
    changed = AgentView.from_dict({**view.as_dict(), field: value})
    return changed.model_copy(update={"digest": changed.computed_digest()})


def test_another_view_than_the_one_that_was_charged_is_found(funded, held):
    receipt, other = held("A", "B"), held("A", "B", seed=8)
    proof, head = prove(funded, receipt.auction_id, "agent 0"), funded.head().hash
    view = receipt.view("agent 0")
    nats = [value and value - 0.125 for value in view.log_probabilities]
    fields = {
        "winner": (view.winner + 1) % len(nats),
        "log_probabilities": nats,
        "opening": "sha256:" + "0" * 64,
        "reports": list(other.view("agent 0").reports),
        "receipt": other.digest,
    }
    for field, value in fields.items():
        [difference] = check_inclusion(forged(view, field, value), proof, head)
        assert difference.rule == "the proof does not lead there from the view"
    assert check_inclusion(receipt.view("agent 1"), proof, head)
    assert {one.field for one in check_inclusion(other.view("agent 0"), proof, head)} == {"auction_id", "head"}


def test_one_change_anywhere_in_a_proof_is_found(funded, held):
    receipt = held("A", "B")
    proof, head = prove(funded, receipt.auction_id, "agent 0").as_dict(), funded.head().hash
    view, zero = receipt.view("agent 0"), "sha256:" + "0" * 64
    steps = proof["path"]
    turned = [{**steps[0], "side": "left" if steps[0]["side"] == "right" else "right"}, *steps[1:]]
    changes = {
        "auction_id": ["other"],
        "path": [steps[1:], [{**steps[0], "other": zero}, *steps[1:]], turned],
        "rest": [zero],
        "previous": [zero, ""],
        "later": [[], proof["later"][1:], [zero, *proof["later"][1:]]],
        "head": [zero],
    }
    assert proof.keys() - changes.keys() == {"schema"}
    for field, values in changes.items():
        for value in values:
            assert check_inclusion(view, {**proof, field: value}, head), field
    for wrong in ({}, {**proof, "schema": "x"}, {**proof, "more": 1}, [proof], None):
        with pytest.raises(ConfigurationError, match="Inclusion"):
            check_inclusion(view, wrong, head)


def test_a_proof_tells_nothing_of_other_owners(funded, held):
    few, many = held("A", "B"), held(*"ABCDEFGH", seed=8)
    proofs = [prove(funded, receipt.auction_id, "agent 0").as_dict() for receipt in (few, many)]
    assert [len(proof["path"]) for proof in proofs] == [3, 3]
    assert few.leaves() == sorted(few.leaves())
    assert len(set(few.leaves())) == 8
    assert len(held(*"ABCDEFGHI", seed=9).leaves()) == 16
    assert not {text for text in ("agent 1", few.reports[1]) if text in json.dumps(proofs[0])}


def test_the_chain_still_verifies_and_finds_a_changed_root(funded, held, edit):
    held("A", "B")
    assert funded.verify().differences == []
    edit("UPDATE bookings SET views = :root WHERE kind = 'charge'", root="sha256:" + "0" * 64)
    [difference] = funded.verify().differences
    assert "its hash is not theirs" in difference


def test_without_a_stored_receipt_or_a_root_there_is_no_proof(funded, held, clock):
    receipt = held("A", "B")
    funded.charge("without views", {"A": 1}, receipt=receipt.as_dict())
    with pytest.raises(LedgerError, match="no root of views"):
        prove(funded, "without views", "agent 0")
    for auction_id in ("unknown", receipt.auction_id):
        clock.move(days=1)
        funded.erase_receipts(before=clock.now)
        with pytest.raises(LedgerError, match="No receipt of"):
            prove(funded, auction_id, "agent 0")


def test_receipts_are_stored_with_their_signatures_where_there_is_a_key(funded):
    key = Ed25519PrivateKey.generate()
    settings = {"model": MarkovChatModel(), "agents": agents_of("AB"), "report_cap": 2.0, "seed": 7}
    auction = AuctionRunnable(billing=Billing(ledger=funded, signing_key=key), **settings)
    receipt = auction.run("Say something").receipt
    stored = funded.receipt_of(receipt.auction_id)
    assert verify(stored, public_key=key.public_key()).ok
    assert funded.verify().differences == []
    proof = prove(funded, receipt.auction_id, "agent 1")
    assert check_inclusion(receipt.view("agent 1"), proof, funded.head().hash) == ()
    with pytest.raises(ConfigurationError, match="Ed25519PrivateKey"):
        Billing(ledger=funded, signing_key="a key")
