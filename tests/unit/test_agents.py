"""Agents: what their settings may be."""

import pytest

from llm_auction_chain import Agent, ConfigurationError
from llm_auction_chain.agents import check_agents
from llm_auction_chain.rewards import ClickReward


@pytest.mark.parametrize("name", ["half \ud800", "null \0", "x" * 256])
def test_names_that_no_ledger_holds_are_refused(name):
    for names in ({"name": name}, {"name": "A", "owner": name}):
        with pytest.raises(ConfigurationError, match="at most 255"):
            Agent(reward=len, **names)


def test_an_owner_pays_per_click_for_all_of_its_agents_or_for_none():
    clicks = [Agent(name, ClickReward(2.0, len), owner="O") for name in ("A", "B")]
    assert check_agents(clicks) == tuple(clicks)
    with pytest.raises(ConfigurationError, match="'O' has agents that pay per click and agents that do not"):
        check_agents([*clicks, Agent("C", len, owner="O")])
