"""Every ready-made reward keeps the laws of `RewardConformance`."""

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from pydantic import BaseModel

from llm_auction_chain import rewards
from llm_auction_chain.rewards import (
    ClickReward,
    EmbeddingReward,
    JudgeReward,
    LengthReward,
    LogRatioReward,
    MentionReward,
    ParsedReward,
    RegexReward,
    RewardModelReward,
    WebhookReward,
)
from llm_auction_chain.testing import MarkovChatModel, RewardConformance
from tests.unit.rewards.bidder import SECRET, Bidder, honest
from tests.unit.rewards.test_reward_model import WORDS, save


class TestMention(RewardConformance):
    def reward(self):
        return MentionReward(["TuneTown"], value=2.0)


class TestRegex(RewardConformance):
    def reward(self):
        return RegexReward(r"https?://tunetown\.example/\w+", value=2.0)


class TestLength(RewardConformance):
    def reward(self):
        return LengthReward(target=4, tolerance=4)


def click_through(prompt, reply):
    return 0.25 if "guitars" in reply.text else 0.0


class TestClick(RewardConformance):
    def reward(self):
        return ClickReward(2.0, click_through)


class TestEmbedding(RewardConformance):
    def reward(self):
        return EmbeddingReward(DeterministicFakeEmbedding(size=8), "guitar lessons", value=2.0)


class Judge(GenericFakeChatModel):
    """Grades a reply by the length of what it reads."""

    def with_structured_output(self, schema, **settings):
        return RunnableLambda(lambda messages: schema(level=len(messages[-1].text) % 5))


class TestJudge(RewardConformance):
    copies = False  # the judge's answers are a lambda's

    def reward(self):
        return JudgeReward(Judge(messages=iter([])), "Does the reply help to learn the guitar?", value=2.0)


class TestLogRatio(RewardConformance):
    def reward(self):
        return LogRatioReward("Praise b.", scorer=MarkovChatModel(tilts={"Praise b.": (0.0, 1.0, 0.0)}))

    def replies(self):
        return [AIMessage("ab"), AIMessage("bb"), AIMessage("ca")]


class TestRewardModel(RewardConformance):
    tolerance = 1e-5  # float32

    @pytest.fixture(autouse=True)
    def _model(self, tmp_path):
        self.path = save("llama", tmp_path)

    def reward(self):
        return RewardModelReward(self.path, value=5.0, device="cpu", dtype="float32")

    def prompt(self):
        return [HumanMessage("guitar lessons ?")]

    def replies(self):
        return [AIMessage(text) for text in ("guitar", "lessons are great fun", WORDS[-1])]


class TestWebhook(RewardConformance):
    @pytest.fixture(autouse=True)
    def _bidder(self):
        with Bidder(honest) as bidder:
            self.url = bidder.url
            yield

    def reward(self):
        return WebhookReward(self.url, SECRET, timeout=20.0, allow_http=True, allow_private=True)

    def private(self):
        return [SECRET]


class Lesson(BaseModel):
    """A guitar lesson."""

    school: str


def worth_of(prompt, lesson):
    return 2.0 * len(lesson.school)


class TestParsed(RewardConformance):
    def reward(self):
        return ParsedReward(Lesson, worth_of)

    def replies(self):
        called = {"name": "Lesson", "args": {"school": "StringSchool"}, "id": "1"}
        return [AIMessage('{"school": "TuneTown"}'), AIMessage("", tool_calls=[called]), AIMessage("I do not know.")]


class TestCombined(RewardConformance):
    def reward(self):
        return MentionReward(["TuneTown"], value=2.0) * 0.5 + LengthReward(target=4, tolerance=4) + click_through


def test_no_ready_made_reward_is_left_out():
    cases = [kind for kind in RewardConformance.__subclasses__() if kind.__module__ == __name__]
    names = {name for kind in cases for name in kind.reward.__code__.co_names}
    assert {name for name in rewards.__all__ if name.endswith("Reward")} - {"Reward"} <= names
