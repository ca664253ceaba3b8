"""A stored result is the same result: figures, explanation, receipt, and studies that need no model and no agent."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from llm_auction_chain import Agent, AuctionResult, ConfigurationError, Disclosure, Policy, tau_sweep
from llm_auction_chain.experiments import best_response
from llm_auction_chain.ledger import Charge, ChargeLine
from llm_auction_chain.rewards import ClickReward
from tests.unit.auction.auctions import LIKES_B, LIKES_C, auction, both

SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "schemas" / "result-1.json").read_text("utf-8"))
FITS = jsonschema.Draft202012Validator(SCHEMA)


def restored(result):
    """Return the result after it was stored, which the published schema describes."""
    stored = json.loads(result.to_json())
    FITS.validate(stored)
    return AuctionResult.from_dict(stored)


def fails(prompt, reply):
    raise LookupError("no such reply")


CLICK = Agent("click", ClickReward(3.0, lambda prompt, reply: reply.text.count("b") / 4), report_cap=2.5)
TWINS = [Agent(name, LIKES_B.reward, owner="one", context="Sells.", categories=["music"]) for name in ("T1", "T2")]


@pytest.mark.parametrize("settings", [
    {},
    {"agents": []},
    {"agents": [*TWINS, CLICK, Agent("user", LIKES_C.reward, pays=False), Agent("late", fails)]},
    {"agents": [*TWINS, Agent("R", LIKES_B.reward, categories=["music"])],
     "policy": Policy(exclusive_categories={"music"})},
    {"policy": Policy(candidate_filter=lambda prompt, reply: not reply.text.startswith("a"))},
    {"disclosure": Disclosure(text="Ad: {sponsors}.", place="end"), "payment_rule": "influence", "tau": 0.3},
])  # fmt: skip
async def test_a_result_survives_storing(settings):
    for result in await both(auction(**settings)):
        again = restored(result)
        assert again.as_dict() == result.as_dict()
        assert (again.reply, again.prompt, again.candidates) == (result.reply, result.prompt, result.candidates)
        assert (again.text, again.payments, again.revenue) == (result.text, result.payments, result.revenue)
        assert again.receipt == result.receipt
        assert again.explain() == result.explain()
        assert str(again) == str(result)
        assert again.prices_per_click == result.prices_per_click
        assert (again.seed, again.draws, again.reports) == (result.seed, result.draws, result.reports)
        for name in ("probabilities", "log_probabilities", "counterfactuals", "noise", "payments", "steering"):
            np.testing.assert_array_equal(getattr(again.settlement, name), getattr(result.settlement, name))
        for agent, first in zip(again.agents, result.agents, strict=True):
            assert (agent.payer, agent.pays, agent.per_click) == (first.payer, first.pays, first.per_click)
            assert (agent.context, set(agent.categories)) == (first.context, set(first.categories))


def test_a_stored_result_can_be_studied_again():
    result = auction().run("x")
    again = restored(result)
    for one, other in zip(tau_sweep(again, [0.5, 1.0]), tau_sweep(result, [0.5, 1.0]), strict=True):
        assert (one.welfare, one.distance) == (other.welfare, other.distance)
    assert str(best_response(again, "B")) == str(best_response(result, "B"))


def test_its_agents_cannot_bid_again():
    again = restored(auction().run("x"))
    with pytest.raises(ConfigurationError, match="has no rewards of agents"):
        again.agents[0].reward.score([], [AIMessage("b")])


def test_messages_with_blocks_calls_and_what_json_does_not_have_are_stored():
    call = {"name": "buy", "args": {"what": "b"}, "id": "1", "type": "tool_call"}
    odd = {"at": datetime(2026, 1, 1, tzinfo=UTC), "tokens": {1, 2}, "score": float("nan")}
    replies = [AIMessage([{"type": "text", "text": text}], tool_calls=[call], response_metadata=odd) for text in "abab"]
    history = [SystemMessage("Be kind."), HumanMessage("Hi"), AIMessage("", tool_calls=[call])]
    model = FakeMessagesListChatModel(responses=replies)
    result = auction(model=model, n_candidates=4, on_tool_calls="auction").run([*history, HumanMessage("So?")])
    again = restored(result)
    assert again.prompt == result.prompt
    assert (again.text, again.reply.content, again.reply.tool_calls) == (result.text, result.reply.content, [call])
    assert again.reply.response_metadata["score"] == "nan"
    assert again.as_dict() == result.as_dict()


def test_failures_are_stored_by_their_text():
    result = auction().run("x")
    object.__setattr__(result, "failures", (TimeoutError("too slow"),))
    again = restored(result)
    assert list(map(str, again.failures)) == ["TimeoutError: too slow"]
    assert restored(again).as_dict() == result.as_dict()


def test_the_charge_is_stored_exactly():
    line = ChargeLine(owner="B", amount=Decimal("1.89"), residual=Decimal("-0.002194"))
    at = datetime(2026, 1, 1, 12, 0, 0, 1, tzinfo=UTC)
    charge = Charge(
        auction_id="a", currency="EUR", seq=3, hash="h", at=at, lines=(line,), total=Decimal("1.89"), receipt="r"
    )
    assert restored(auction().run("x").charged(charge)).charge == charge


@pytest.mark.parametrize(("change", "message"), [
    ({"schema": "llm_auction_chain.result/9"}, "must have the schema 'llm_auction_chain.result/1', got '.*/9'"),
    ({"seed": "seven"}, "cannot be read: .*'seven'"),
    ({"reports": []}, "cannot be read"),
    ({"reply": {"type": "human", "data": {"content": "b"}}}, "a reply must be an AI message, got 'human'"),
    ({"settlement": {}}, "has no 'probabilities'"),
])  # fmt: skip
def test_what_is_no_stored_result_is_refused(change, message):
    with pytest.raises(ConfigurationError, match=message):
        AuctionResult.from_dict({**auction().run("x").as_dict(), **change})
    with pytest.raises(ConfigurationError, match="must have the schema"):
        AuctionResult.from_dict([])


def test_from_dict_and_the_schema_need_the_same_keys():
    stored = auction().run("x").as_dict()
    derived = {"text", "payments", "revenue"}  # for readers of the JSON; a result computes them
    for name in stored.keys() - derived:
        without = {key: value for key, value in stored.items() if key != name}
        assert not FITS.is_valid(without)
        with pytest.raises(ConfigurationError):
            AuctionResult.from_dict(without)
    for name in derived:
        assert AuctionResult.from_dict({**stored, name: None}).as_dict() == stored
    for name in stored["settlement"]:
        without = {key: value for key, value in stored["settlement"].items() if key != name}
        assert not FITS.is_valid({**stored, "settlement": without})
        with pytest.raises(ConfigurationError):
            AuctionResult.from_dict({**stored, "settlement": without})


@pytest.mark.parametrize("change", [
    {"seed": 7}, {"revenue": 1.5}, {"prompt": "x"}, {"failures": [3]}, {"settlement": []}, {"charge": {}}, {"more": 1},
])  # fmt: skip
def test_the_schema_refuses_what_is_no_stored_result(change):
    stored = auction().run("x").as_dict()
    assert FITS.is_valid(stored)
    assert not FITS.is_valid({**stored, **change})


def test_a_json_text_can_be_indented():
    result = auction().run("x")
    assert result.to_json(indent=2).startswith('{\n  "schema": "llm_auction_chain.result/1",')
    assert json.loads(result.to_json()) == result.as_dict()
