"""A click is worth its bid times its probability."""

import asyncio

import pytest
from langchain_core.messages import AIMessage

from llm_auction_chain import ConfigurationError, RewardError
from llm_auction_chain.rewards import ClickReward, LogRatioReward, MentionReward
from llm_auction_chain.testing import MarkovChatModel

REPLIES = [AIMessage("a guitar"), AIMessage("a song")]


@pytest.fixture(params=["blocking", "awaiting"])
def score(request):
    if request.param == "blocking":
        return lambda reward: list(reward.score([], REPLIES))
    return lambda reward: list(asyncio.run(reward.ascore([], REPLIES)))


@pytest.mark.parametrize("prediction", [
    lambda prompt, reply: 0.25 if "guitar" in reply.text else 0.0, MentionReward(["guitar"], 0.25),
    0.25 * MentionReward(["guitar"]),
])  # fmt: skip
def test_a_reply_is_worth_the_bid_times_the_predicted_clicks(score, prediction):
    assert score(ClickReward(2.0, prediction)) == [0.5, 0.0]
    assert score(ClickReward(0.0, prediction)) == [0.0, 0.0]


@pytest.mark.parametrize("chance", [-1e-9, 1.0 + 1e-9, float("nan")])
def test_a_prediction_that_is_no_probability_is_no_report(score, chance):
    with pytest.raises(RewardError, match=r"outside 0\.\.1"):
        score(ClickReward(2.0, lambda prompt, reply: chance))


def test_a_certain_click_and_none_are_probabilities(score):
    assert score(ClickReward(2.0, MentionReward(["guitar"]))) == [2.0, 0.0]


def test_it_is_awaited_if_its_prediction_is():
    assert ClickReward(1.0, LogRatioReward("Sing.", scorer=MarkovChatModel())).awaits
    assert not ClickReward(1.0, MentionReward(["guitar"])).awaits
    assert not ClickReward(1.0, lambda prompt, reply: 0.5).awaits


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 1e101, "2", True, None])
def test_a_bid_is_a_finite_amount_of_at_least_nothing(value):
    with pytest.raises(ConfigurationError, match=r"ClickReward\.value_per_click must be a number"):
        ClickReward(value, lambda prompt, reply: 0.5)


def test_a_prediction_must_be_callable():
    with pytest.raises(ConfigurationError, match=r"ClickReward\.click_through must be a reward or a function"):
        ClickReward(1.0, 0.5)
