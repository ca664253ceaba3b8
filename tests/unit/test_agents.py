"""Agents: what their settings may be."""

import pytest
from langchain_core.runnables import RunnableLambda

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
    "O\U000e0100",
    "O\U000e01ef",
    "O\U0001d159",
    "O" + "\u0327\u0301" * 50_000,  # sorting the marks would take seconds
]


@pytest.mark.parametrize("name", BLANK, ids=range(len(BLANK)))
def test_names_that_look_like_others_are_refused(name):
    for names in ({"name": name}, {"name": "A", "owner": name}, {"name": "A", "categories": [name]}):
        with pytest.raises(ConfigurationError, match="must be at most 255 visible characters"):
            Agent(**{"reward": max, **names})


@pytest.mark.parametrize("spelling", ["Cafe\u0301", "Caf\u00e9", "\uff23\uff41\uff46\u00e9"])
def test_one_name_has_one_spelling(spelling):
    agent = Agent(spelling, max, owner=spelling, categories=[spelling], currency=spelling)
    assert {agent.name, agent.payer, *agent.categories, agent.currency} == {"Caf\u00e9"}
    with pytest.raises(ConfigurationError, match="Two agents are called"):
        check_agents([agent, Agent("Caf\u00e9", max)])
    assert Agent("CAF\u00c9", max).name != agent.name


def test_an_owner_pays_per_click_for_all_of_its_agents_or_for_none():
    clicks = [Agent(name, ClickReward(2.0, max), owner="O") for name in ("A", "B")]
    assert check_agents(clicks) == tuple(clicks)
    with pytest.raises(ConfigurationError, match="'O' has agents that pay and agents that do not"):
        check_agents([*clicks, Agent("C", max, owner="O")])


class Scores:
    def __init__(self, score):
        self.score = score


@pytest.mark.parametrize("reward", [
    lambda reply: 1.0, lambda: 1.0, lambda prompt, reply, *, third: 1.0, len, Scores(lambda replies: [1.0]),
])  # fmt: skip
def test_a_reward_that_cannot_be_called_with_prompt_and_reply_is_refused_at_once(reward):
    with pytest.raises(ConfigurationError, match=r"reward of 'A' must be a function of \(prompt, repl(y|ies)\), got"):
        Agent("A", reward)


@pytest.mark.parametrize("reward", [
    lambda *both: 1.0, lambda prompt, reply, third=3: 1.0, max, RunnableLambda(lambda asked: 1.0),
    Scores(lambda prompt, replies: [1.0]),
])  # fmt: skip
def test_a_reward_that_can_be_called_is_taken(reward):
    assert Agent("A", reward).reward is reward


def test_a_description_of_a_whole_book_is_refused():
    with pytest.raises(ConfigurationError, match="context of 'A' must be a text of at most 100000 characters"):
        Agent("A", max, context="x" * 100_001)
