"""LangChain's decision models judge by a `Score` question; langchain-core has them from 1.8.2 on."""

from typing import Any

import pytest
from langchain_core.decisions import BaseDecisionModel, ClassifierResponse, Score
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import Field

from llm_auction_chain import RewardError
from llm_auction_chain.rewards.judge import JudgeReward

PROMPT = [HumanMessage("How do I learn the guitar?")]
LEVELS = ["useless", "useful", "excellent"]


class ByLength(BaseDecisionModel):
    """Expects half a level per letter of the reply, so that five letters are past the best."""

    model: str = "by-length"
    asked: list[Any] = Field(default_factory=list)

    @property
    def _provider(self):
        return "tests"

    def _classify(self, state, questions):
        self.asked.append((state, questions))
        score = len(state["reply"]["text"]) / 2
        answer = {"type": "score", "score": score, "legend": dict(enumerate(LEVELS)), "probabilities": {},
                  "confidence": 1.0}  # fmt: skip
        return ClassifierResponse(model=self.model, answers=dict.fromkeys(questions, answer))


class Silent(ByLength):
    def _classify(self, state, questions):
        return ClassifierResponse(model=self.model, answers={})


class Vague(ByLength):
    def _classify(self, state, questions):
        answer = {"type": "noul", "noul": 0.5}
        return ClassifierResponse(model=self.model, answers=dict.fromkeys(questions, answer))


def replies(*texts):
    return [AIMessage(text) for text in texts]


async def test_an_expected_level_is_worth_its_share_of_the_value():
    reward = JudgeReward(ByLength(), "How useful?", value=4.0, levels=LEVELS)
    expected = [0.0, 1.0, 3.0, 4.0]
    assert reward.score(PROMPT, replies("", "a", "abc", "abcd")) == expected
    assert await reward.ascore(PROMPT, replies("", "a", "abc", "abcd")) == expected


def test_the_question_is_the_rubric_and_the_state_is_one_reply():
    judge = ByLength()
    JudgeReward(judge, "How useful?", levels=LEVELS).score(PROMPT, replies("a", "b"))
    assert [state["reply"]["text"] for state, _ in sorted(judge.asked, key=str)] == ["a", "b"]
    for state, questions in judge.asked:
        assert state["conversation"] == [{"role": "human", "text": "How do I learn the guitar?"}]
        assert list(questions.values()) == [Score(instructions="How useful?", criteria=LEVELS)]


@pytest.mark.parametrize("judge", [ByLength(), Silent(), Vague()])
def test_anything_but_a_level_is_an_error(judge):
    with pytest.raises(RewardError, match="reply 0"):
        JudgeReward(judge, "How useful?", levels=LEVELS).score(PROMPT, replies("abcde"))
