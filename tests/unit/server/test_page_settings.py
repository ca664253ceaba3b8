"""What the fields of the playground hold: the table of agents, and links."""

from dataclasses import replace

import pytest

from llm_auction_chain import Agent, AuctionRunnable, Billing, Ledger
from llm_auction_chain.rewards import MentionReward
from llm_auction_chain.server.page_settings import FieldError, Settings, agents_of, prepare, rows_of
from llm_auction_chain.testing import MarkovChatModel


def mentions(name, *phrases, value=2.0, **settings):
    return Agent(name, MentionReward(phrases, value=value), **settings)


def auction_of(*agents, **settings):
    return AuctionRunnable(model=MarkovChatModel(), agents=agents, **settings)


def test_the_table_begins_with_the_auctions_mentions_else_with_the_demo():
    assert rows_of(auction_of(mentions("B", "b", "bb", value=0.123456789, context="Bees"))) == [
        ["B", "Bees", "b, bb", "0.123456789"]
    ]
    assert [row[0] for row in rows_of(auction_of())] == ["EggCo", "OatCo", "BerryCo"]
    assert rows_of(auction_of(Agent("L", lambda prompt, reply: 1.0), mentions("K", "a,b"))) == []


def test_agents_of_other_kinds_stay_in_their_places():
    own = Agent("L", lambda prompt, reply: 1.0)
    auction = auction_of(mentions("B", "b"), own, mentions("C", "c"))
    agents = agents_of(auction, [["D", "", "d", "1"], ["C", "", "cc", "3"]])
    assert [agent.name for agent in agents] == ["L", "C", "D"]
    assert agents[0] is own
    assert agents[1].reward == MentionReward(["cc"], value=3.0)


def test_a_row_keeps_what_the_table_does_not_show():
    auction = auction_of(mentions("B", "b", owner="O", report_cap=9.0, categories=["bees"]))
    [agent] = agents_of(auction, [["B", "Bees", "b, bb", "3"]])
    assert (agent.owner, agent.report_cap, agent.categories, agent.context) == ("O", 9.0, ("bees",), "Bees")


def test_an_auction_whose_agents_come_from_a_function_keeps_it():
    def directory(prompt):
        return [mentions("B", "b")]

    auction = AuctionRunnable(model=MarkovChatModel(), agents=directory)
    assert rows_of(auction) == []
    assert agents_of(auction, [["C", "", "c", "1"]]) is directory


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["", "", "b", "1"], "Row 1: the name is empty"),
        (["B", "", " , ", "1"], r"Row 1 \(B\): there are no phrases"),
        (["B", "", "b", "much"], r"Row 1 \(B\): the value must be a number such as 2.5, got 'much'"),
        (["B", "", "b", "nan"], "the value must be a number"),
        (["B", "", "b", None], "the value must be a number such as 2.5, got ''"),
        (["B", "x" * 100_001, "b", "1"], r"Row 1 \(B\): .*context"),
    ],
)
def test_a_row_that_is_no_agent_is_refused_by_its_place(row, message):
    with pytest.raises(FieldError, match=message) as caught:
        agents_of(auction_of(), [row])
    assert caught.value.field == "agents"


def test_two_rows_of_one_name_are_refused_and_empty_rows_are_not_agents():
    with pytest.raises(FieldError, match="'B'"):
        agents_of(auction_of(), [["B", "", "b", "1"], ["B", "", "c", "1"]])
    with pytest.raises(FieldError, match="'L'"):
        agents_of(auction_of(Agent("L", lambda prompt, reply: 1.0)), [["L", "", "b", "1"]])
    assert agents_of(auction_of(), [["", None, "", ""], []]) == []


def test_an_auction_of_the_page_is_a_copy_that_tells_and_charges_nobody():
    events = []
    with Ledger("sqlite://") as ledger:
        auction = auction_of(mentions("B", "bb"), on_event=events.append, billing=Billing(ledger=ledger))
        copy = prepare(auction, replace(Settings.of("m", auction), tau=3.0, seed="7"))
        result = copy.run("Say")
    assert (result.settlement.tau, result.seed) == (3.0, 7)
    assert events == []
    assert copy.billing.ledger is None
    assert (auction.tau, auction.billing.ledger) == (1.0, ledger)


def test_a_link_holds_all_settings():
    auctions = {"llm-auction": auction_of()}
    settings = Settings(
        model="llm-auction", question="Eggs & ham #1? 100 %", agents=[["Bü", "a=b", "b, b&b", "2"]], candidates=9,
        tau=0.7, temperature=0.3, rule="pivot", seed="7",
    )  # fmt: skip
    assert Settings.of_link(settings.link(), auctions) == settings
    assert Settings.of_link("question=Hi", auctions) == replace(
        Settings.of("llm-auction", auctions["llm-auction"]), question="Hi"
    )


@pytest.mark.parametrize(
    "link",
    ["nonsense", "model=other", "question=Hi&key=1", "tau=-1", "candidates=many", "agents=[1]", "agents={", "tau=nan"],
)
def test_a_link_that_cannot_be_read_is_refused(link):
    with pytest.raises(FieldError, match="link"):
        Settings.of_link(link, {"llm-auction": auction_of()})
