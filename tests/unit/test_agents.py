"""Agents: what their settings may be."""

import json
import math
import sys

import pytest
from langchain_core.runnables import RunnableLambda

from llm_auction_chain import Agent, ConfigurationError, MissingDependencyError, load_agents
from llm_auction_chain.agents import check_agents
from llm_auction_chain.rewards import ClickReward, MentionReward

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


def test_an_agent_from_a_dict_is_the_agent_from_its_settings():
    settings = {"name": "A", "owner": "O", "context": "Sells.", "pays": False, "report_cap": 2.0, "categories": ["c"]}
    agent = Agent.from_dict({**settings, "reward": {"mention": {"phrases": ["a"]}}})
    assert agent == Agent(**settings, reward=MentionReward(["a"]))


def test_an_agent_of_a_subclass_stays_one():
    class Own(Agent):
        pass

    assert type(Own.from_dict({"name": "A", "reward": {"mention": {"phrases": ["a"]}}})) is Own


@pytest.mark.parametrize(("data", "says"), [
    (3, "The agent must be a mapping with a name and a reward, got int."),
    ({"reward": {"webhook": {"secret": "s"}}}, "The agent must be a mapping with a name and a reward, got ['reward']."),
    ({"name": "A", "reward": {}, "bid": 3}, "The agent, 'A': an agent has no setting 'bid'."),
    ({"name": "A", "reward": {"mention": {}}}, "The agent, 'A': mention needs phrases."),
    ({"name": "A", "reward": "math:dist"}, "The agent, 'A': reward 'math:dist' names code, which would run."),
    ({"name": "A", "reward": {"mention": {"phrases": ["a"]}}, "pays": 2}, "The agent, 'A': pays of 'A' must be True"),
])  # fmt: skip
def test_an_error_of_data_names_the_agent_and_the_setting(data, says):
    with pytest.raises(ConfigurationError) as caught:
        Agent.from_dict(data)
    assert str(caught.value).startswith(says)


def test_agents_of_a_file_are_those_of_their_entries(tmp_path):
    entries = [{"name": name, "reward": {"mention": {"phrases": [name]}}} for name in ("A", "B")]
    for path in (tmp_path / "agents.json", tmp_path / "agents.yaml"):
        path.write_text(json.dumps({"agents": entries}))
        assert load_agents(path) == load_agents(str(path)) == [Agent.from_dict(entry) for entry in entries]
    path.write_text("- {name: A, reward: 'math:dist'}")
    assert load_agents(path, allow_code=True)[0].reward is math.dist
    with pytest.raises(ConfigurationError, match=r"agents.yaml, agent 1, 'A': reward 'math:dist' names code"):
        load_agents(path)


@pytest.mark.parametrize(("content", "says"), [
    (b"- {name: A, secret: swordfish: }", r"agents.yaml is not YAML: line 1, column \d+: "),
    (b"\xff", "agents.yaml is not UTF-8: "),
    (b"", "agents.yaml: write a list of agents under `agents:`"),
    (2 * b"- {name: A, reward: {mention: {phrases: [a]}}}\n", "agents.yaml: Two agents are called 'A'"),
])  # fmt: skip
def test_a_file_that_holds_no_agents_is_refused_without_its_lines(content, says, tmp_path):
    (tmp_path / "agents.yaml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=says) as caught:
        load_agents(tmp_path / "agents.yaml")
    assert "swordfish" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"none.yaml cannot be read: No such file"):
        load_agents(tmp_path / "none.yaml")
    with pytest.raises(ConfigurationError, match="cannot be read: embedded null"):
        load_agents("a\0b")


@pytest.mark.parametrize("path", [3, "", " ", b"agents.yaml"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ConfigurationError, match="The path of an agents file must be a path, got"):
        load_agents(path)


def test_without_the_extra_an_agents_file_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llm-auction-chain\[cli\]'"):
        load_agents(None)


def test_keywords_are_a_short_list_of_words_and_none_are_the_words_of_the_context():
    assert Agent("A", lambda prompt, reply: 1.0, keywords=["guitar", "lessons"]).keywords == ("guitar", "lessons")
    assert Agent("A", lambda prompt, reply: 1.0, keywords=()).keywords == ()
    assert Agent("A", lambda prompt, reply: 1.0, context="TuneTown sells guitars.").keywords is None
    data = {"name": "A", "reward": {"mention": {"phrases": ["guitar"]}}, "keywords": ["guitar"]}
    assert Agent.from_dict(data).keywords == ("guitar",)


@pytest.mark.parametrize("keywords", ["guitar", 3, ["guitar"] * 33, [""], [" "], [3], [None], ["x" * 101]])
def test_keywords_that_are_no_short_list_of_words_are_refused_by_the_agents_name(keywords):
    with pytest.raises(ConfigurationError, match="keywords of 'A'"):
        Agent("A", lambda prompt, reply: 1.0, keywords=keywords)
