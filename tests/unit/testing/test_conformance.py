"""The conformance classes accept what keeps the laws, and fail what breaks one."""

import itertools

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from llm_auction_chain import ChatTransformers
from llm_auction_chain.testing import MarkovChatModel, ScorerConformance
from tests.tiny import WORDS

MARKOV = MarkovChatModel(tilts={"TuneTown": (0.0, 2.0, -1.0)})


class TestMarkov(ScorerConformance):
    def scorer(self):
        return MARKOV

    def prompts(self):
        return [HumanMessage("Hi")], [SystemMessage("TuneTown sells guitars."), HumanMessage("Hi")]

    def every_reply(self):
        return [AIMessage(text) for text in MARKOV.enumerate()]

    def draw(self, prompt, n):
        return [generation.message for generation in MARKOV.generate([prompt], n=n, seed=3).generations[0]]


LONGEST = 3


class TestChatTransformers(ScorerConformance):
    tolerance = 1e-4  # float32
    settings: dict = {}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _model(self, seven_words):
        self.model = ChatTransformers(
            model=seven_words, dtype="float32", device="cpu", max_tokens=LONGEST, seed=2, **self.settings
        )

    def scorer(self):
        return self.model

    def prompts(self):
        return [HumanMessage("Hi")], [SystemMessage("no no"), HumanMessage("Hi")]

    def every_reply(self):
        going = range(1, len(WORDS))
        ended = [(*head, 0) for n in range(LONGEST) for head in itertools.product(going, repeat=n)]
        return [reply(ids) for ids in (*ended, *itertools.product(going, repeat=LONGEST))]

    def draw(self, prompt, n):
        result = self.model.generate([prompt], n=n, logprobs=True)
        return [generation.message for generation in result.generations[0]]


class TestChatTransformersSharpened(TestChatTransformers):
    settings = {"temperature": 0.6, "top_p": 0.8}  # noqa: RUF012


def reply(ids):
    logprobs = {"token_ids": list(ids), "token_logprobs": [0.0] * len(ids), "basis": "sampler", "complete": True}
    return AIMessage(" ".join(WORDS[k] for k in ids), response_metadata={"logprobs": logprobs})


class Halved(MarkovChatModel):
    """Wrong in every score."""

    def score(self, prompt, replies):
        return [score / 2 for score in super().score(prompt, replies)]


class Tempered(MarkovChatModel):
    """A law, but not the one that is drawn from."""

    start: tuple[float, ...] = (0.1, 0.8, 0.1)


class ByPlace(MarkovChatModel):
    """Gives every reply the score of another."""

    def score(self, prompt, replies):
        return super().score(prompt, replies)[:1] * len(replies)


class Forgetful(MarkovChatModel):
    async def ascore(self, prompt, replies):
        return [0.0] * len(replies)


@pytest.mark.parametrize(("scorer", "law"), [
    (Halved(), "log_probabilities_of_all_replies_sum_to_one"),
    (Tempered(), "log_probabilities_agree_with_the_frequencies_of_draws"),
    (ByPlace(), "a_batch_is_scored_as_each_reply_alone"),
    (ByPlace(), "the_order_of_replies_does_not_matter"),
])  # fmt: skip
def test_a_scorer_that_breaks_a_law_is_found_out(scorer, law):
    case = TestMarkov()
    case.scorer = lambda: scorer
    with pytest.raises(AssertionError):
        getattr(case, f"test_{law}")()


def test_a_wrong_async_score_is_found_out():
    case = TestMarkov()
    case.scorer = Forgetful
    with pytest.raises(AssertionError):
        case.test_sync_and_async_give_the_same_scores()
