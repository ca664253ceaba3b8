"""Who takes part is decided before any report: rivals, currencies, players that never pay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_auction_chain import Agent, AuctionWarning, Billing, ConfigurationError, Ledger, Policy
from llm_auction_chain.auction.admission import without_rivals
from llm_auction_chain.rewards import ClickReward
from tests.unit.auction.auctions import LIKES_B, LIKES_C, auction, both

CATEGORIES = st.lists(st.sampled_from(["cars", "air", "food"]), unique=True, max_size=2)


CROWD = st.lists(st.tuples(CATEGORIES, st.sampled_from([None, "one", "two"])), max_size=8)


@given(CROWD, st.sets(st.sampled_from(["cars", "air"])))
def test_no_exclusive_category_has_two_owners_and_nobody_is_left_out_for_nothing(crowd, exclusive):
    agents = [Agent(str(k), max, owner=owner, categories=held) for k, (held, owner) in enumerate(crowd)]
    taking_part, left_out = without_rivals(agents, exclusive)
    for category in exclusive:
        assert len({agent.payer for agent in taking_part if category in agent.categories}) <= 1
    for agent, category in left_out:
        holders = [other for other in taking_part if category in other.categories]
        assert category in exclusive
        assert holders
        assert agents.index(holders[0]) < agents.index(agent)
        assert agent.payer != holders[0].payer
    assert {agent.name for agent in taking_part} | {agent.name for agent, _ in left_out} == {a.name for a in agents}


async def test_a_rival_left_out_is_named_and_never_asked():
    def never(prompt, reply):
        raise AssertionError

    agents = [Agent("First", LIKES_B.reward, categories=["cars"]), Agent("Second", never, categories=["cars"])]
    for result in await both(auction(agents, policy=Policy(exclusive_categories=["cars"]), on_agent_error="raise")):
        assert [agent.name for agent in result.agents] == ["First"]
        left_out = [{"agent": "Second", "reason": "category", "category": "cars"}]
        assert result.reply.response_metadata["auction"]["left_out"] == left_out
    assert len(auction([LIKES_B, LIKES_C], policy=Policy(exclusive_categories=["cars"])).run("x").agents) == 2


async def test_an_auction_counts_in_one_currency():
    euros, dollars = Agent("E", LIKES_B.reward, currency="EUR"), Agent("D", LIKES_C.reward, currency="USD")
    for result in await both(auction([euros, LIKES_C])):
        assert result.currency == result.reply.response_metadata["auction"]["currency"] == "EUR"
    assert auction([LIKES_B], billing=Billing(currency="GBP")).run("x").currency == "GBP"
    assert auction([LIKES_B]).run("x").currency == ""
    with pytest.raises(ConfigurationError, match=r"agents use different currencies: .*USD"):
        auction([euros, dollars]).run("x")
    with pytest.warns(AuctionWarning, match="E took no part: their rewards are in another currency"):
        result = auction([euros, dollars], billing=Billing(currency="USD")).run("x")
    assert [agent.name for agent in result.agents] == ["D"]
    assert [out.as_dict() for out in result.left_out] == [{"agent": "E", "reason": "currency", "category": ""}]


def test_nothing_is_held_for_an_agent_of_another_kind_than_its_owners_first():
    ledger = Ledger("sqlite://")
    ledger.deposit("O", 3)
    clicks = Agent("clicks", ClickReward(2.0, lambda prompt, reply: 0.5), owner="O")
    for cap in (None, 100.0):
        odd = Agent("odd", LIKES_B.reward, owner="O", report_cap=cap)
        with pytest.warns(AuctionWarning, match="odd took no part: of one owner's agents"):
            result = auction(lambda _, odd=odd: [clicks, odd], billing=ledger).run("x")
        assert [agent.name for agent in result.agents] == ["clicks"]


def test_an_agent_of_another_kind_than_its_owners_first_is_left_out_and_the_others_are_auctioned():
    clicks = Agent("clicks", ClickReward(2.0, lambda prompt, reply: 0.5), owner="O")
    odd = [Agent("plain", LIKES_B.reward, owner="O"), Agent("free", LIKES_B.reward, owner="C", pays=False)]
    with pytest.warns(AuctionWarning, match="plain, free took no part: of one owner's agents all pay or none does"):
        result = auction(lambda _: [clicks, LIKES_C, *odd]).run("x")
    assert [agent.name for agent in result.agents] == ["clicks", "C"]
    assert [out.reason for out in result.left_out] == ["owner", "owner"]
    for one in odd:
        with pytest.raises(ConfigurationError, match="give each kind an owner of its own"):
            auction([clicks, LIKES_C, one])
