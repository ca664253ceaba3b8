"""Candidates and their weights through whole auctions, over a model whose every log-probability is known."""

import itertools
import math
from typing import ClassVar

import numpy as np
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from llm_auction_chain import (
    Agent,
    AuctionRunnable,
    AuctionWarning,
    CandidatesError,
    ConfigurationError,
    ContextProduct,
    ContextPrompt,
    DefensiveMixture,
    LogProbError,
    Reference,
    Sampling,
    ScoringError,
)
from llm_auction_chain.candidates.proposals import conditions_of
from llm_auction_chain.descriptions import descriptions_of
from llm_auction_chain.testing import MarkovChatModel

TILTS = {"TuneTown": (0.0, 1.5, 0.0), "StringSchool": (-1.0, 0.0, 1.0)}
MODEL = MarkovChatModel(length=3, tilts=TILTS)
MIXTURE = DefensiveMixture([(Reference(), 1), (ContextPrompt(), 1), (ContextProduct(0.3), 2)])
PROMPT = [HumanMessage("Speak")]


def agents(worth=1.0):
    return [
        Agent("TuneTown", lambda prompt, reply: worth * reply.text.count("b"), context="TuneTown sells guitars."),
        Agent("StringSchool", lambda prompt, reply: worth * (reply.text[-1] == "c"), context="StringSchool teaches."),
    ]


def auction(model=MODEL, **settings):
    return AuctionRunnable(model=model, **{"agents": agents(), "n_candidates": 16, "seed": 5, **settings})


def exact_log_weights(proposal, draws, tau=1.0):
    """Return the balance-heuristic weight of every reply by enumeration, for counts by component name."""
    descriptions = descriptions_of(agent.context for agent in agents())
    conditions, _ = conditions_of(proposal, PROMPT, descriptions, tau=tau, seed=0)
    laws = {condition.name: MODEL.enumerate(condition.prompts, condition.powers) for condition in conditions}
    total = sum(draws.values())
    return {
        text: log_p - math.log(sum(n / total * math.exp(laws[name][text]) for name, n in draws.items()))
        for text, log_p in laws["reference"].items()
    }


@pytest.mark.parametrize("proposal", [
    Reference(), ContextPrompt(), ContextProduct(), ContextProduct(0.4, joint=True), MIXTURE,
    DefensiveMixture([(Reference(), 1), (ContextPrompt(), 3)]),
])  # fmt: skip
@pytest.mark.parametrize("tau", [0.7, 4.0])
async def test_weights_are_those_of_enumeration(proposal, tau):
    for result in (
        auction(proposal=proposal, tau=tau).run("Speak"),
        await auction(proposal=proposal, tau=tau).arun("Speak"),
    ):
        exact = exact_log_weights(proposal, dict(result.components), tau)
        assert result.draws == sum(count for _, count in result.components) == 16
        for candidate in result.candidates:
            assert candidate.log_weight == pytest.approx(exact[candidate.message.text], abs=1e-12)


def test_counts_are_fixed_and_named_in_the_metadata():
    reply = auction(proposal=MIXTURE, tau=2.0).invoke("Speak")
    assert reply.response_metadata["auction"]["proposal"] == {
        "contexts": "used",
        "components": [
            {"component": "reference", "draws": 4},
            {"component": "context prompt", "draws": 4},
            {"component": "context product 0.3", "draws": 8},
        ],
    }


def test_the_default_with_contexts_is_a_mixture_that_bounds_the_weights():
    result = auction().run("Speak")
    draws = dict(result.components)
    assert len(draws) > 1
    assert max(c.log_weight for c in result.candidates) <= math.log(result.draws / draws["reference"]) + 1e-12
    assert result.settlement.diagnostics.ess_weights < result.draws


def test_without_contexts_nothing_is_scored():
    class Unscored(MarkovChatModel):
        def score(self, *args, **kwargs):
            raise AssertionError

        score_conditions = score

    plain = [Agent("A", lambda prompt, reply: 1.0)]
    result = auction(Unscored(), agents=plain, proposal=MIXTURE).run("Speak")
    assert result.components == (("reference", 16),)
    assert [one.log_weight for one in result.candidates] == pytest.approx([0.0] * result.distinct_replies, abs=1e-12)
    assert result.reply.response_metadata["auction"]["proposal"]["contexts"] == "none"


class Mute(BaseChatModel):
    """Draws from MODEL, one reply a call, and cannot say how likely it is."""

    calls: list = []  # noqa: RUF012 - pydantic copies it
    broken: str = "nothing"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        if any(self.broken in message.text for message in messages):
            raise ConnectionError("down")
        self.calls.append(kwargs)
        (generation,) = MODEL.generate([messages], seed=len(self.calls)).generations[0]
        message = AIMessage(generation.text, response_metadata={"finish_reason": "stop"})
        return ChatResult(generations=[ChatGeneration(message=message)])

    @property
    def _llm_type(self):
        return "mute"


def test_contexts_that_cannot_be_used_are_warned_about_and_said_in_the_metadata():
    with pytest.warns(AuctionWarning, match="contexts are not used"):
        result = auction(Mute()).run("Speak")
    said = result.reply.response_metadata["auction"]
    assert said["proposal"]["contexts"] == "unused"
    assert said["warnings"] == list(result.warnings) != []
    assert result.components == (("reference", 16),)
    assert auction(Mute(), proposal=Reference()).run("Speak").warnings == ()


def test_a_proposal_that_the_model_cannot_do_is_refused_with_a_remedy():
    with pytest.raises(ConfigurationError, match="scorer="):
        auction(Mute(), proposal=ContextPrompt()).run("Speak")
    with pytest.raises(ConfigurationError, match="logits"):
        auction(Mute(), sampling=Sampling(scorer=Scorer()), proposal=ContextProduct(0.3)).run("Speak")


class Scorer:
    """Scores MODEL's replies, and counts what it is asked."""

    def __init__(self, change=lambda scores: scores):
        self.asked, self.change = [], change

    def score(self, prompt, replies):
        self.asked.append([reply.text for reply in replies])
        return self.change(MODEL.score(prompt, replies))


class AsyncScorer(Scorer):
    async def ascore(self, prompt, replies):
        return self.score(prompt, replies)


async def test_a_scorer_of_ones_own_gives_the_same_weights():
    proposal = DefensiveMixture([(Reference(), 1), (ContextPrompt(), 3)])
    for scorer in (Scorer(), AsyncScorer()):
        runnable = auction(Mute(), sampling=Sampling(scorer=scorer), proposal=proposal)
        for result in (runnable.run("Speak"), await runnable.arun("Speak")):
            exact = exact_log_weights(proposal, {"reference": 4, "context prompt": 12})
            for candidate in result.candidates:
                assert candidate.log_weight == pytest.approx(exact[candidate.message.text], abs=1e-12)
    names = [name for name, _ in auction(Mute(), sampling=Sampling(scorer=Scorer())).run("Speak").components]
    assert names == ["reference", "context prompt"]


def test_equal_draws_are_scored_once():
    scorer = Scorer()
    result = auction(Mute(), sampling=Sampling(scorer=scorer)).run("Speak")
    assert len(scorer.asked) == 2
    for asked in scorer.asked:
        assert sorted(asked) == sorted({candidate.message.text for candidate in result.candidates})
    assert result.draws == 16 > result.distinct_replies


def test_a_figure_that_comes_with_a_reply_is_not_scored_again():
    """Every reply is drawn from the context prompt with its log-probability, so only the reference is scored."""
    scorer = Scorer()
    held = auction(proposal=ContextPrompt(), sampling=Sampling(scorer=scorer))
    result = held.run("Speak", logprobs=True)
    assert result.components == (("context prompt", 16),)
    assert [sorted(asked) for asked in scorer.asked] == [sorted(one.message.text for one in result.candidates)]
    exact = exact_log_weights(ContextPrompt(), {"context prompt": 16})
    for candidate in result.candidates:
        assert candidate.log_weight == pytest.approx(exact[candidate.message.text], abs=1e-12)


def test_a_figure_that_is_not_exact_is_scored():
    class Partial(Mute):
        def _generate(self, *args, **kwargs):
            result = super()._generate(*args, **kwargs)
            figures = {"token_logprobs": [-0.1], "basis": "sampler", "complete": False}
            result.generations[0].message.response_metadata["logprobs"] = figures
            return result

    result = auction(Partial(), sampling=Sampling(scorer=Scorer()), proposal=ContextPrompt()).run("Speak")
    exact = exact_log_weights(ContextPrompt(), {"context prompt": 16})
    for candidate in result.candidates:
        assert candidate.log_weight == pytest.approx(exact[candidate.message.text], abs=1e-12)


async def test_a_model_with_logits_leaves_the_scoring_to_a_scorer_of_ones_own():
    """Products of prompts are out of reach then: a scorer scores one prompt at a time."""

    class Unscored(MarkovChatModel):
        length: int = 3
        tilts: dict = TILTS

        def score(self, *args, **kwargs):
            raise AssertionError

        score_conditions = score

        def _generate(self, *args, logprobs=False, **kwargs):
            assert not logprobs  # the model does not score, so it need not report tokens
            return super()._generate(*args, **kwargs)

    scorer = Scorer()
    # the temperature is for the model's own scoring, and does not reach another scorer
    held = auction(Unscored().bind(temperature=1.0), sampling=Sampling(scorer=scorer))
    for result in (held.run("Speak"), await held.arun("Speak")):
        assert [name for name, _ in result.components] == ["reference", "context prompt"]
        exact = exact_log_weights(DefensiveMixture([(Reference(), 1), (ContextPrompt(), 1)]), dict(result.components))
        for candidate in result.candidates:
            assert candidate.log_weight == pytest.approx(exact[candidate.message.text], abs=1e-12)
    assert len(scorer.asked) == 4
    with pytest.raises(ConfigurationError, match="without a scorer of its own"):
        auction(Unscored(), sampling=Sampling(scorer=scorer), proposal=ContextProduct(0.3)).run("Speak")


@pytest.mark.parametrize(("change", "said"), [
    (lambda scores: scores[1:], "shape"),
    (lambda scores: [math.nan] * len(scores), "nan"),
    (lambda scores: [1.0] * len(scores), "at most 0"),
    (lambda scores: ["likely"] * len(scores), "one number per reply"),
    (lambda scores: None, "shape|number"),
])  # fmt: skip
def test_nonsense_of_a_scorer_is_an_error_and_no_weight(change, said):
    with pytest.raises(ScoringError, match=said):
        auction(Mute(), sampling=Sampling(scorer=Scorer(change))).run("Speak")


def test_a_scorer_of_another_law_is_found_out_where_that_shows():
    with pytest.raises(LogProbError, match="does not score the distribution"):
        auction(Mute(), sampling=Sampling(scorer=Scorer(lambda scores: [-math.inf] * len(scores)))).run("Speak")


def test_candidates_that_the_reference_cannot_say_are_an_error_when_there_are_no_others():
    class Impossible(Scorer):
        def score(self, prompt, replies):
            return [-math.inf if len(prompt) == 1 else -1.0] * len(replies)

    with pytest.raises(CandidatesError, match="Reference"):
        auction(Mute(), sampling=Sampling(scorer=Impossible()), proposal=ContextPrompt()).run("Speak")


def test_a_component_that_cannot_be_drawn_leaves_survivors_with_their_own_weights():
    """The survivors all come from the reference, so their weights are 0."""
    result = auction(Mute(broken="TuneTown"), sampling=Sampling(scorer=Scorer())).run("Speak")
    assert result.components == (("reference", 8),)
    assert len(result.failures) == 8
    assert [candidate.log_weight for candidate in result.candidates] == pytest.approx([0.0] * result.distinct_replies)
    with pytest.raises(CandidatesError, match="down"):
        auction(Mute(broken="TuneTown"), sampling=Sampling(scorer=Scorer(), min_candidates=9)).run("Speak")


@pytest.mark.parametrize("model", [MODEL, Mute()])
async def test_no_report_touches_candidates_or_weights_also_when_more_are_drawn(model):
    """The same seed with wildly different rewards: the same candidates and weights, bit for bit."""
    proposal = DefensiveMixture([(Reference(), 1), (ContextPrompt(), 3)])
    scorer = None if model is MODEL else Scorer()
    sampling = Sampling(min_ess=30.0, max_candidates=96, scorer=scorer)
    seen = []
    for k, worth in enumerate((0.0, 1.0, -1e6, 1e6, math.nan)):
        model = model if scorer is None else Mute()
        runnable = auction(model, sampling=sampling, agents=agents(worth), proposal=proposal)
        one_by_one = {"max_concurrency": 1}  # Mute's replies depend on the order of its calls
        result = runnable.run("Speak", one_by_one) if k % 2 or scorer else await runnable.arun("Speak")
        seen.append([(c.message.text, c.log_weight, c.draws, c.component) for c in result.candidates])
        assert 16 < result.draws <= 96
    assert all(one == seen[0] for one in seen)


def test_draws_go_on_until_the_weights_are_worth_enough():
    result = auction(sampling=Sampling(min_ess=40.0, max_candidates=400)).run("Speak")
    assert result.settlement.diagnostics.ess_weights >= 40
    assert result.draws % 16 == 0
    assert result.reply.response_metadata["auction"]["diagnostics"]["candidates"] == result.draws
    short = auction(sampling=Sampling(min_ess=40.0, max_candidates=40), proposal=ContextPrompt()).run("Speak")
    assert short.draws == 40
    assert short.settlement.diagnostics.ess_weights < 40


def test_a_reply_keeps_token_log_probabilities_only_where_they_were_asked_for():
    assert "logprobs" not in auction().invoke("Speak").response_metadata
    assert "logprobs" in auction().invoke("Speak", logprobs=True).response_metadata
    assert "logprobs" in auction(MODEL.bind(logprobs=True)).invoke("Speak").response_metadata


def test_progress_counts_draws_weights_and_agents():
    seen = []
    auction(sampling=Sampling(min_ess=40.0, max_candidates=64), proposal=ContextPrompt()).run(
        "Speak", progress=seen.append
    )
    stages = [stage for stage, _ in itertools.groupby(seen, key=lambda event: event.stage)]
    assert stages[:2] == ["candidates", "weights"]
    assert stages[-1] == "rewards"
    drawn = [event for event in seen if event.stage == "candidates"]
    assert drawn[-1].done == drawn[-1].total


class Tokens(BaseChatModel):
    """Draws one text, spelled by one token or by two, with the log-probability of each spelling."""

    native_n: ClassVar[bool] = True

    def _generate(self, messages, stop=None, run_manager=None, *, n=1, **kwargs):
        spellings = [((7,), (-1.0,)), ((3, 4), (-0.5, -1.5))]
        replies = []
        for k in range(n):
            ids, values = spellings[k % 2]
            figures = {"token_ids": ids, "token_logprobs": values, "basis": "sampler", "complete": True}
            replies.append(AIMessage("same", response_metadata={"logprobs": figures}))
        return ChatResult(generations=[ChatGeneration(message=reply) for reply in replies])

    def score(self, prompt, replies):
        """Return the figure of each spelling under the reference, 3 nats below the sampler's for two tokens."""
        ids = [reply.response_metadata["logprobs"]["token_ids"] for reply in replies]
        return [-2.0 if len(tokens) == 1 else -5.0 for tokens in ids]

    @property
    def _llm_type(self):
        return "tokens"


def test_equal_texts_of_different_tokens_are_one_candidate_with_the_mean_of_their_weights():
    with pytest.warns(AuctionWarning, match="the same reply"):
        result = auction(Tokens(), proposal=ContextPrompt(), n_candidates=4).run("Speak")
    (candidate,) = result.candidates
    assert candidate.draws == 4
    weights = [-2.0 - -1.0, -5.0 - -2.0]
    assert candidate.log_weight == pytest.approx(math.log(sum(map(math.exp, weights)) / 2), abs=1e-12)
    assert candidate.merged_log_weight == pytest.approx(np.logaddexp.reduce([*weights, *weights]), abs=1e-12)


def test_usage_is_the_sum_over_all_rounds():
    result = auction(proposal=Reference(), sampling=Sampling(min_ess=40.0, max_candidates=80)).run("Speak")
    assert result.draws == 48
    usage = result.reply.usage_metadata
    assert (usage["input_tokens"], usage["output_tokens"]) == (3, 48 * MODEL.length)


def test_a_round_whose_effective_sample_size_is_just_enough_is_the_last():
    sampling = Sampling(min_ess=16, max_candidates=64)
    assert auction(proposal=Reference(), sampling=sampling).run("Speak").draws == 16
    with pytest.raises(ConfigurationError, match="min_ess"):
        auction(sampling=Sampling(min_ess=65, max_candidates=64))
