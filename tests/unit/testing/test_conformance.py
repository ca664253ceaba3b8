"""The conformance classes accept what keeps the laws, and fail what breaks one."""

import itertools
import math
import threading

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from llm_auction_chain import ChatTransformers, ContextPrompt
from llm_auction_chain.candidates.proposals import Condition
from llm_auction_chain.rewards import MentionReward, Reward
from llm_auction_chain.testing import MarkovChatModel, ProposalConformance, RewardConformance, ScorerConformance
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


class Rewards(RewardConformance):
    """The laws over a reward that a test chooses."""

    def __init__(self, reward):
        self.reward = lambda: reward


class ByLength(Reward):
    def score(self, prompt, replies):
        return [float(len(reply.text)) for reply in replies]


class OneTooFew(ByLength):
    def score(self, prompt, replies):
        return super().score(prompt, replies)[1:]


class Infinite(ByLength):
    def score(self, prompt, replies):
        return [math.inf for _ in replies]


class Counting(ByLength):
    calls = 0

    def score(self, prompt, replies):
        self.calls += 1
        return [float(self.calls) for _ in replies]


class ByRank(ByLength):
    def score(self, prompt, replies):
        return [float(k) for k in range(len(replies))]


class Relative(ByLength):
    def score(self, prompt, replies):
        amounts = super().score(prompt, replies)
        return [amount / max(sum(amounts), 1.0) for amount in amounts]


class Hasty(ByLength):
    async def ascore(self, prompt, replies):
        return [0.0 for _ in replies]


class Vandal(ByLength):
    def score(self, prompt, replies):
        for reply in replies:
            reply.content = "mine"
        return super().score(prompt, replies)


class Attached(ByLength):
    def __init__(self):
        self.lock = threading.Lock()


@pytest.mark.parametrize(("reward", "law"), [
    (OneTooFew(), "each_reply_gets_one_finite_amount"),
    (Infinite(), "each_reply_gets_one_finite_amount"),
    (Counting(), "a_second_call_gives_the_same_amounts"),
    (ByRank(), "the_order_of_replies_does_not_matter"),
    (ByRank(), "equal_replies_get_equal_amounts"),
    (Relative(), "a_reply_alone_gets_the_amount_that_it_gets_in_a_batch"),
    (Hasty(), "sync_and_async_give_the_same_amounts"),
    (Vandal(), "prompt_and_replies_stay_as_they_are"),
    (Attached(), "a_copy_gives_the_same_amounts"),
])  # fmt: skip
def test_a_reward_that_breaks_a_law_is_found_out(reward, law):
    with pytest.raises((AssertionError, TypeError)):
        getattr(Rewards(reward), f"test_{law}")()
    getattr(Rewards(ByLength()), f"test_{law}")()


def test_a_repr_with_a_secret_is_found_out():
    case = Rewards(MentionReward(["hush"]))
    case.test_the_repr_shows_nothing_private()
    case.private = lambda: ["hush"]
    with pytest.raises(AssertionError):
        case.test_the_repr_shows_nothing_private()


class Proposals(ProposalConformance):
    """The laws over a proposal that a test chooses."""

    def __init__(self, proposal):
        self.proposal = lambda: proposal


class Told(ContextPrompt):
    """A prompt with the descriptions as a test puts them."""

    def text(self, descriptions, seed):
        return " ".join(sorted(descriptions))

    def condition(self, inputs):
        system = SystemMessage(self.text(inputs.descriptions, inputs.seed))
        return Condition(name="described", prompts=((system, *inputs.prompt),))


class InOrder(Told):
    def text(self, descriptions, seed):
        return " ".join(descriptions)


class Changing(Told):
    turns = itertools.cycle(["TuneTown", "StringSchool"])

    def text(self, descriptions, seed):
        return next(self.turns)


class Powerless(Told):
    def condition(self, inputs):
        return Condition(name="powerless", prompts=(inputs.prompt,), powers=(math.nan,))


class Writing(Told):
    def condition(self, inputs):
        inputs.prompt[0].content = "mine"
        return super().condition(inputs)


class First(Told):
    def text(self, descriptions, seed):
        return descriptions[0]


@pytest.mark.parametrize(("proposal", "law"), [
    (Powerless(), "conditions_are_well_formed"),
    (Changing(), "the_same_seed_gives_the_same_conditions"),
    (InOrder(), "the_order_of_descriptions_does_not_matter"),
    (First(), "no_agents_are_legal"),
    (Writing(), "the_prompt_stays_as_it_is"),
    (Told(), "the_context_is_bounded"),
    (Changing(), "weights_follow_from_the_conditions"),
])  # fmt: skip
def test_a_proposal_that_breaks_a_law_is_found_out(proposal, law):
    with pytest.raises((AssertionError, IndexError)):
        getattr(Proposals(proposal), f"test_{law}")()
    getattr(Proposals(ContextPrompt()), f"test_{law}")()


def test_a_proposal_that_sees_a_report_is_found_out(monkeypatch):
    case, bids = Proposals(Told()), []
    monkeypatch.setattr(Told, "text", lambda self, descriptions, seed: "TuneTown" if max(bids) > 1 else "")
    auction = case._auction
    case._auction = lambda *, rewards: (bids.append(max(rewards)), auction(rewards=rewards))[1]
    with pytest.raises(AssertionError):
        case.test_reports_change_neither_candidates_nor_weights()
