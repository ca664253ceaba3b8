"""Commit, then reveal: the receipt opens the commitment that agents received before they reported."""

import json

import pytest

from llm_auction_chain import Agent, AuctionRunnable
from llm_auction_chain.receipts import verify
from llm_auction_chain.receipts.records import commitment, opening_commitment, salt_of
from llm_auction_chain.rewards import ClickReward
from llm_auction_chain.rewards.base import asked_by
from llm_auction_chain.testing import MarkovChatModel
from tests.unit.receipts.examples import MIXTURE, crowd, hold_auction, no_b_first, with_new_digest

SALT = "5a" * 32


class Attentive:
    """A reward that keeps the commitment that it received and the report that it returned."""

    def __init__(self):
        self.received, self.reported = None, None

    def score(self, prompt, replies):
        self.received = asked_by.get().commitment
        self.reported = [2.0 * reply.text.count("b") for reply in replies]
        return self.reported


def attended():
    mine = Attentive()
    return mine, hold_auction([Agent("Mine", mine), *crowd()[:2]], proposal=MIXTURE).receipt


async def test_agents_receive_the_opening_before_they_report():
    mine, receipt = attended()
    assert mine.received == receipt.opening == receipt.view("Mine").opening
    events = []
    auction = AuctionRunnable(
        model=MarkovChatModel(), agents=[Agent("Mine", mine)], n_candidates=4, on_event=events.append
    )
    result = await auction.arun("x")
    (told,) = (event.data["commitment"] for event in events if event.name == "auction.candidates")
    assert mine.received == told == result.receipt.opening == result.reply.response_metadata["auction"]["commitment"]


@pytest.mark.parametrize("part", ["draw_seed", "tau", "replies", "seed", "weights", "draws", "agents"])
def test_an_agent_alone_detects_a_platform_that_changes_what_it_committed_to(part):
    mine, receipt = attended()
    view = receipt.view("Mine").as_dict()
    if part in view["hidden"]:
        view["hidden"][part] = commitment(SALT, "another")
    else:
        view[part] = {"draw_seed": "8", "tau": 2.0, "replies": view["replies"][::-1]}[part]
    assert "opening" in {difference.field for difference in verify(with_new_digest(view)).differences}
    # with a new opening the view is consistent, but the agent received another opening
    parts = {"terms": {name: view[name] for name in receipt.terms()}}
    parts |= {name: view[name] for name in ("draw_seed", "replies")}
    opened = {name: commitment(view["salts"][name], value) for name, value in parts.items()}
    view["opening"] = opening_commitment(view["auction_id"], {**opened, **view["hidden"]})
    assert "opening" not in {difference.field for difference in verify(with_new_digest(view)).differences}
    assert view["opening"] != mine.received


def test_an_agent_can_show_whether_its_report_was_used():
    mine, receipt = attended()
    view = receipt.view("Mine")
    assert list(view.agents[0].report) == mine.reported
    assert view.reports[0] == receipt.reports[0]  # the auditor finds it in the receipt
    cheated = view.model_copy(
        update={"agents": (view.agents[0].model_copy(update={"report": (9.0,) * len(mine.reported)}),)}
    )
    assert "reports[0]" in {difference.field for difference in verify(with_new_digest(cheated.as_dict())).differences}


def test_a_view_opens_the_replies_that_its_agents_saw_and_no_others():
    result = hold_auction(crowd(), policy=no_b_first)
    receipt, view = result.receipt, result.receipt.view("Capped")
    assert receipt.digest_of(*result.prompt, part="prompt") == receipt.prompt
    assert {candidate.excluded for candidate in result.candidates} == {True, False}
    for candidate, reply in zip(result.candidates, view.replies, strict=True):
        part = "unshown reply" if candidate.excluded else "reply"
        assert receipt.digest_of(candidate.message, part=part) == reply
        assert (view.digest_of(candidate.message) == reply) is not candidate.excluded
    every = json.dumps(view.as_dict())
    for part in ("prompt", "unshown reply", "draws", "weights", "agents", "report 0"):
        assert salt_of(receipt.salt, part) not in every


def test_no_two_commitments_of_an_auction_have_one_salt_and_no_two_auctions_one_commitment():
    (_, one), (_, other) = attended(), attended()
    flat = [*one.commitments().values(), *one.reports, *(candidate.reply for candidate in one.candidates), one.prompt]
    also = [*other.commitments().values(), *other.reports, *(c.reply for c in other.candidates), other.prompt]
    assert len(set(flat)) == len(flat)
    assert not set(flat) & set(also)


def test_a_cap_that_is_a_whole_number_beyond_those_of_json_is_a_float():
    receipt = hold_auction([Agent("A", lambda prompt, reply: 1.0, report_cap=10**20)]).receipt
    assert verify(receipt).ok
    assert verify(receipt.view("A")).ok
    assert receipt.agents[0].report_cap == 1e20


FORGED = {
    "agent": "Another", "owner": "Another", "pays": False, "report_cap": 99.0, "bounds": [0.0, 9.0],
    "status": "capped", "reason": "none", "report": [0.0] * 9, "click_through": [1.0] * 9, "value_per_click": 5.0,
}  # fmt: skip


@pytest.mark.parametrize("field", FORGED)
def test_the_commitment_to_a_report_fixes_the_agent_its_terms_and_its_report(field):
    receipt = hold_auction([Agent("Clicks", ClickReward(4.0, lambda prompt, reply: 0.2))]).receipt
    for one in (receipt, receipt.view("Clicks")):
        forged = one.as_dict()
        assert forged["agents"][0][field] != FORGED[field]
        forged["agents"][0][field] = FORGED[field]
        assert "reports[0]" in {difference.field for difference in verify(with_new_digest(forged)).differences}


def test_the_commitment_to_a_report_does_not_depend_on_the_outcome():
    bid = hold_auction([Agent("A", lambda prompt, reply: 1.0)]).receipt.agents[0]
    outcome = dict.fromkeys(("contribution", "expected", "payment", "price_per_click"), 9.0)
    outcome |= {"most_expected": None, "steering": 9.0, "most_steering": None, "charge": "9.000000"}
    assert bid.model_copy(update=outcome).committed("x") == bid.committed("x")
    assert set(bid.committed("x")) == {"auction_id", *FORGED}
