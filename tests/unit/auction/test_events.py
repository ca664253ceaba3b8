"""Events hold counts and numbers of an auction, and no text, no report and no candidate."""

import json

import pytest
from langchain_core.messages import AIMessage

from llm_auction_chain import Agent, AuctionRunnable, CandidatesError
from llm_auction_chain.auction.events import Progress, candidates, scored
from llm_auction_chain.candidates import Candidate, Drawn
from llm_auction_chain.reports import Report
from tests.unit.auction.auctions import LIKES_B, WORDS, auction

NAMES = ["auction.started", "auction.candidates", "auction.scored", "auction.settled"]


async def test_each_stage_is_one_event_in_order_of_plain_json():
    for call in ("run", "arun"):
        events = []
        fails = Agent("secret", lambda prompt, reply: 1 / 0)
        held = getattr(auction([LIKES_B, fails], on_event=events.append), call)("secret")
        result = await held if call == "arun" else held
        assert [event.name for event in events] == NAMES
        assert {event.data["auction_id"] for event in events} == {result.auction_id}
        text = json.dumps([dict(event.data) for event in events], allow_nan=False)
        assert "secret" not in text
        assert not [one for one in result.candidates if f'"{one.message.text}"' in text]
        assert events[2].data["statuses"] == {"reported": 1, "error": 1}
        assert events[3].data["revenue"] == result.settlement.revenue


def test_an_auction_that_fails_has_no_event_of_its_end():
    class Broken(type(WORDS)):
        def _generate(self, *args, **kwargs):
            raise ConnectionError

    events = []
    with pytest.raises(CandidatesError):
        AuctionRunnable(model=Broken(length=3), agents=[LIKES_B], on_event=events.append).run("x")
    assert [event.name for event in events] == NAMES[:1]


def test_the_event_of_the_candidates_counts_draws_replies_exclusions_and_failures():
    replies = (
        Candidate(message=AIMessage("a"), draws=2),
        Candidate(message=AIMessage("b"), draws=1, excluded=True, log_weight=-float("inf")),
    )
    drawn = Drawn(
        candidates=replies, components=(("reference", 2), ("told", 1)), causes=(OSError(),), usages={}, usage=None
    )
    data = candidates("id", drawn, "sha256:0").data
    assert data == {
        "auction_id": "id", "candidates": 3, "distinct_replies": 2, "excluded_replies": 1, "failed_calls": 1,
        "input_tokens": None, "output_tokens": None, "commitment": "sha256:0",
    }  # fmt: skip


def test_an_agent_whose_report_is_cut_to_its_cap_has_reported():
    reports = [Report(rewards=(1.0,), status=status) for status in ("reported", "capped", "timeout")]
    data = scored("id", reports).data
    assert (data["reported"], data["abstained"]) == (2, 1)
    assert data["statuses"] == {"reported": 1, "capped": 1, "timeout": 1}


def test_progress_of_rewards_counts_from_zero_up_to_the_number_of_agents():
    steps = []
    step = Progress.of_rewards(steps.append, 3)
    for done in (1, 3):
        step(done)
    assert steps == [Progress(stage="rewards", done=done, total=3) for done in (0, 1, 3)]
