"""Agents: what their settings may be."""

import pytest

from llm_auction_chain import Agent, ConfigurationError
from llm_auction_chain.agents import check_agents
from llm_auction_chain.rewards import ClickReward

BLANK = [
    "half \ud800",
    "null \0",
    "x" * 256,
    "O ",
    " O",
    "O\n",
    "O\u200b",
    "\u3164",
    "O\u00ad",
    "O\ufe0f",
    "O\u2800",
    "O\u202e",
]


@pytest.mark.parametrize("name", BLANK)
def test_names_that_look_like_others_are_refused(name):
    for names in ({"name": name}, {"name": "A", "owner": name}, {"name": "A", "categories": [name]}):
        with pytest.raises(ConfigurationError, match="must be at most 255 visible characters"):
            Agent(**{"reward": len, **names})


@pytest.mark.parametrize("spelling", ["Cafe\u0301", "Caf\u00e9", "\uff23\uff41\uff46\u00e9"])
def test_one_name_has_one_spelling(spelling):
    agent = Agent(spelling, len, owner=spelling, categories=[spelling], currency=spelling)
    assert {agent.name, agent.payer, *agent.categories, agent.currency} == {"Caf\u00e9"}
    with pytest.raises(ConfigurationError, match="Two agents are called"):
        check_agents([agent, Agent("Caf\u00e9", len)])
    assert Agent("CAF\u00c9", len).name != agent.name


def test_an_owner_pays_per_click_for_all_of_its_agents_or_for_none():
    clicks = [Agent(name, ClickReward(2.0, len), owner="O") for name in ("A", "B")]
    assert check_agents(clicks) == tuple(clicks)
    with pytest.raises(ConfigurationError, match="'O' has agents that pay and agents that do not"):
        check_agents([*clicks, Agent("C", len, owner="O")])
