"""Candidates and their weights through whole auctions, over a model whose every log-probability is known."""

import itertools
import math
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda

from llm_auction_chain import (
    Agent,
    AuctionRunnable,
    AuctionWarning,
    CandidatesError,
    ConfigurationError,
    ContextProduct,
    ContextPrompt,
    ContextWindowError,
    DefensiveMixture,
    LogitsError,
    LogProbError,
    Policy,
    Reference,
    Sampling,
    ScoringError,
)
from llm_auction_chain.candidates import CandidateFilter, Size, Source, draw, make_plan
from llm_auction_chain.candidates.drawing import _identity
from llm_auction_chain.candidates.proposals import ProposalInputs, conditions_of
from llm_auction_chain.descriptions import descriptions_of, keywords_of
from llm_auction_chain.receipts import verify
from llm_auction_chain.rewards import ClickReward, MentionReward
from llm_auction_chain.testing import MarkovChatModel
from llm_auction_chain.waiting import AWAITING, BLOCKING, run

TILTS = {"TuneTown": (0.0, 1.5, 0.0), "StringSchool": (-1.0, 0.0, 1.0)}
MODEL = MarkovChatModel(length=3, tilts=TILTS)
HALVES = DefensiveMixture([(Reference(), 1), (ContextPrompt(), 1)])
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
    conditions, _ = conditions_of(
        proposal, ProposalInputs(prompt=tuple(PROMPT), descriptions=tuple(descriptions), tau=tau)
    )
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
        "reason": "it is the auction's setting",
        "components": [
            {"component": "reference", "draws": 4},
            {"component": "context prompt", "draws": 4},
            {"component": "context product 0.3", "draws": 8},
        ],
    }


def test_the_default_with_keywords_is_a_mixture_that_bounds_the_weights():
    result = auction(agents=[Agent(one.name, one.reward, keywords=["bees"]) for one in agents()]).run("Speak")
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


def test_equal_draws_are_scored_once():
    scorer = Scorer()
    result = auction(Mute(), sampling=Sampling(scorer=scorer), proposal=HALVES).run("Speak")
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
    held = auction(Unscored().bind(temperature=1.0), sampling=Sampling(scorer=scorer), proposal=HALVES)
    for result in (held.run("Speak"), await held.arun("Speak")):
        assert [name for name, _ in result.components] == ["reference", "context prompt"]
        exact = exact_log_weights(HALVES, dict(result.components))
        for candidate in result.candidates:
            assert candidate.log_weight == pytest.approx(exact[candidate.message.text], abs=1e-12)
    assert len(scorer.asked) == 4
    with pytest.raises(ConfigurationError, match="without a scorer of its own"):
        auction(Unscored(), sampling=Sampling(scorer=scorer), proposal=ContextProduct(0.3)).run("Speak")


@pytest.mark.parametrize(("change", "said"), [
    (lambda scores: scores[1:], "shape"),
    (lambda scores: [math.nan] * len(scores), "no log-probability"),
    (lambda scores: [1.0] * len(scores), "at most 0"),
    (lambda scores: ["likely"] * len(scores), "one log-probability per reply"),
    (lambda scores: None, "shape|number"),
])  # fmt: skip
def test_nonsense_of_a_scorer_is_an_error_and_no_weight(change, said):
    with pytest.raises(ScoringError, match=said):
        auction(Mute(), sampling=Sampling(scorer=Scorer(change)), proposal=HALVES).run("Speak")


def test_a_scorer_of_another_law_is_found_out_where_that_shows():
    scorer = Scorer(lambda scores: [-math.inf] * len(scores))
    with pytest.raises(LogProbError, match="does not score the distribution"):
        auction(Mute(), sampling=Sampling(scorer=scorer), proposal=HALVES).run("Speak")


def test_candidates_that_the_reference_cannot_say_are_an_error_when_there_are_no_others():
    class Impossible(Scorer):
        def score(self, prompt, replies):
            return [-math.inf if len(prompt) == 1 else -1.0] * len(replies)

    with pytest.raises(CandidatesError, match="Reference"):
        auction(Mute(), sampling=Sampling(scorer=Impossible()), proposal=ContextPrompt()).run("Speak")


def test_a_component_that_cannot_be_drawn_leaves_survivors_with_their_own_weights():
    """The survivors all come from the reference, so their weights are 0."""
    result = auction(Mute(broken="TuneTown"), sampling=Sampling(scorer=Scorer()), proposal=HALVES).run("Speak")
    assert result.components == (("reference", 8),)
    assert len(result.failures) == 8
    assert [candidate.log_weight for candidate in result.candidates] == pytest.approx([0.0] * result.distinct_replies)
    sampling = Sampling(scorer=Scorer(), min_candidates=9)
    with pytest.raises(CandidatesError, match="down"):
        auction(Mute(broken="TuneTown"), sampling=sampling, proposal=HALVES).run("Speak")


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


class Script(BaseChatModel):
    """Draws these messages in their order, and raises those that are errors; keeps how it is called."""

    script: list
    asked: list = []  # noqa: RUF012 - pydantic copies it

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.asked.append(kwargs)
        message = self.script[len(self.asked) - 1]
        if isinstance(message, Exception):
            raise message
        return ChatResult(generations=[ChatGeneration(message=message)])

    @property
    def _llm_type(self):
        return "script"


class Scored(Script):
    """The same, and says how likely its replies are; keeps the sampler's settings that it is told."""

    laws: list = []  # noqa: RUF012 - pydantic copies it

    def score(self, prompt, replies, **law):
        self.laws.append(law)
        return [-1.0 * len(prompt)] * len(replies)


def plan_of(model, n, *, most=None, contexts=(), **settings):
    """Return the plan of n draws a round."""
    size = Size(n=n, most=most or n, min_ess=1e9 if most else 0.0, fewest=settings.pop("fewest", 1))
    source = Source(model, {}, native_n=False, kwargs={})
    inputs = ProposalInputs(
        prompt=tuple(PROMPT),
        descriptions=tuple(descriptions_of(contexts)),
        keywords=tuple(sorted(map(keywords_of, contexts))),
        seed=settings.pop("seed", 0),
        log_ratios=settings.pop("log_ratios", "none"),
    )
    return make_plan(source, inputs=inputs, size=size, **{"scorer": None, "proposal": None, **settings})


def drawn(*script, **settings):
    """Return what is drawn from a script, one reply after the other."""
    plan = plan_of(Script(script=list(script)), settings.pop("n", len(script)), **settings)
    return run(draw(plan, BLOCKING, config={"max_concurrency": 1}))


SHOPS = [f"Shop {k} sells things." for k in range(6)]


def test_a_plan_draws_from_the_best_that_a_model_can_do():
    names = [[condition.name for condition in plan_of(model, 2, contexts=SHOPS[:1]).conditions]
             for model in (MODEL, Scored(script=[]), Script(script=[]))]  # fmt: skip
    assert names == [["reference", "tilt 2 until said"], ["reference"], ["reference"]]
    names = [[condition.name for condition in plan_of(model, 2, contexts=SHOPS[:1], log_ratios="all").conditions]
             for model in (MODEL, Scored(script=[]), Script(script=[]))]  # fmt: skip
    assert names == [["reference", "context product 1"], ["reference", "context prompt"], ["reference"]]
    assert [plan_of(MODEL, 2, contexts=contexts).contexts for contexts in ((), SHOPS)] == ["none", "used"]
    assert plan_of(Script(script=[]), 2, contexts=SHOPS).contexts == "unused"


def test_a_plans_seed_shuffles_the_descriptions_and_their_order_does_not():
    def block(seed, contexts):
        return (
            plan_of(MODEL, 2, contexts=contexts, seed=seed, proposal=ContextPrompt()).conditions[1].prompts[0][0].text
        )

    assert len({block(seed, SHOPS) for seed in range(5)}) == 5
    assert block(1, SHOPS) == block(1, SHOPS[::-1])


def test_a_plan_asks_for_tokens_that_are_needed_of_a_model_that_scores():
    assert not plan_of(MODEL, 2).tokens
    assert plan_of(MODEL, 2, log_ratios="all").tokens
    assert plan_of(MODEL, 2, contexts=SHOPS).tokens
    assert not plan_of(Script(script=[]), 2, log_ratios="all").tokens


class NoSystem(MarkovChatModel):
    """Cannot read a prompt with a system message; `late` says whether it is drawing or scoring that fails."""

    error: Exception = ConfigurationError("No system messages.")
    late: bool = False

    def _read(self, prompts):
        if any(message.type == "system" for prompt in prompts for message in prompt):
            raise self.error

    def _generate(self, messages, stop=None, run_manager=None, *, conditions=None, **kwargs):
        if not self.late:
            self._read([messages, *(prompt for condition, _ in conditions or () for prompt in condition.prompts)])
        return super()._generate(messages, stop, run_manager, conditions=conditions, **kwargs)

    def score_conditions(self, conditions, replies, **kwargs):
        self._read(prompt for condition in conditions for prompt in condition.prompts)
        return super().score_conditions(conditions, replies, **kwargs)


@pytest.mark.parametrize("proposal", [HALVES, ContextPrompt(), MIXTURE])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "error", [ConfigurationError("No system messages."), ContextWindowError("Too long."), LogitsError("No numbers.")]
)
async def test_a_description_that_the_model_cannot_read_costs_nobody_the_reply(error, late, proposal):
    """All is drawn from the reference, as without descriptions, and a warning says so."""
    model = NoSystem(length=3, error=error, late=late)
    with pytest.warns(AuctionWarning, match=f"contexts, so these are not used: {error}"):
        result = auction(model, proposal=proposal).run("Speak")
    assert result.components == (("reference", 16),)
    assert [candidate.log_weight for candidate in result.candidates] == pytest.approx([0.0] * len(result.candidates))
    assert result.contexts == "unused"
    assert any("these are not used" in warning for warning in result.warnings)
    assert result.reply.text == auction(model, proposal=Reference()).run("Speak").reply.text
    with pytest.warns(AuctionWarning, match="these are not used"):
        assert (await auction(model, proposal=proposal).arun("Speak")).reply.text == result.reply.text


def test_a_prompt_of_the_users_that_the_model_cannot_read_is_an_error():
    with pytest.raises(ConfigurationError, match="No system messages"):
        auction(NoSystem(length=3)).run([("system", "Be brief."), ("user", "Speak")])


def test_a_fallback_comes_after_the_replies_that_are_excluded():
    rule = CandidateFilter(lambda prompt, reply: False)
    candidates = drawn(
        AIMessage("one"), AIMessage("two"), candidate_filter=rule, fallback=AIMessage("Sorry.")
    ).candidates
    assert [(one.message.text, one.component, one.excluded, one.possible) for one in candidates] == [
        ("one", "reference", True, False), ("two", "reference", True, False), ("Sorry.", "fallback", False, True),
    ]  # fmt: skip


def calling(args, ident="1", name="tune"):
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": ident}])


def of_block(**block):
    return AIMessage(content=[block])


@pytest.mark.parametrize(("one", "other"), [
    (calling({"a": 1, "b": [{"c": 2, "d": 3}]}), calling({"b": [{"d": 3, "c": 2}], "a": 1}, ident="2")),
    (of_block(type="text", text="Hi", id="1"), of_block(type="text", text="Hi", id="2")),
    (of_block(type="function_call", name="a", call_id="1"), of_block(type="function_call", name="a", call_id="2")),
    (AIMessage(["Hi"]), AIMessage(["Hi"])),
])  # fmt: skip
def test_ids_and_the_order_of_arguments_make_no_other_reply(one, other):
    (candidate,) = drawn(one, other).candidates
    assert candidate.draws == 2
    assert candidate.message.content == one.content


@pytest.mark.parametrize(("one", "other"), [
    (calling({"a": 1}), calling({"a": 2})), (calling({"a": 1}), calling({"b": 1})),
    (calling({"a": 1}), calling({"a": 1}, name="play")),
    (calling({"a": [1, 2]}), calling({"a": [2, 1]})), (calling({"a": {"b": 1}}), calling({"a": {"b": 2}})),
    (of_block(type="text", text="Hi"), of_block(type="text", text="Ho")),
    (of_block(type="image", id="1"), of_block(type="image", id="2")), (AIMessage(["Hi"]), AIMessage(["Ho"])),
    (AIMessage("Hi"), AIMessage("Hi", response_metadata={"finish_reason": "length"})),
    (AIMessage("", invalid_tool_calls=[{"name": "tune", "args": "{", "id": "1", "error": None}]), AIMessage("")),
])  # fmt: skip
def test_replies_that_say_or_call_something_else_are_candidates_of_their_own(one, other):
    assert [candidate.draws for candidate in drawn(one, other).candidates] == [1, 1]


def test_a_candidate_names_the_component_that_drew_it():
    plan = plan_of(Scored(script=[AIMessage("one"), AIMessage("two")]), 2, contexts=["A shop."], proposal=HALVES)
    candidates = run(draw(plan, BLOCKING, config={"max_concurrency": 1})).candidates
    named = [(candidate.message.text, candidate.component) for candidate in candidates]
    assert named == [("one", "reference"), ("two", "context prompt")]


@pytest.mark.parametrize("own", [True, False])
def test_temperature_and_tokens_are_for_the_models_own_scoring_alone(own):
    model, other = Scored(script=[AIMessage("one"), AIMessage("two")]), Scored(script=[])
    plan = plan_of(model.bind(temperature=0.5), 2, contexts=["A shop."], scorer=None if own else other, proposal=HALVES)
    run(draw(plan, BLOCKING, config={"max_concurrency": 1}))
    assert model.asked == [{"temperature": 0.5, **({"logprobs": True} if own else {})}] * 2
    assert model.laws == ([{"temperature": 0.5}] * 2 if own else [])
    assert other.laws == ([] if own else [{}, {}])


def test_progress_tells_each_round_of_draws_and_of_weights():
    seen = []
    plan = plan_of(
        Scored(script=[AIMessage(str(k)) for k in range(4)]), 2, most=4, contexts=["A shop."], proposal=HALVES
    )
    run(draw(plan, BLOCKING, config={"max_concurrency": 1}, progress=lambda *said: seen.append(said)))
    first, second = seen[:4], seen[4:]
    assert first == [
        ("candidates", 1, 2, None), ("candidates", 2, 2, None), ("weights", 0, 2, None), ("weights", 2, 2, None)
    ]  # fmt: skip
    assert second == [
        ("candidates", 3, 4, None), ("candidates", 4, 4, None), ("weights", 0, 2, None), ("weights", 2, 2, None)
    ]  # fmt: skip


class Counting(BaseChatModel):
    """Draws in one request, and reports 7 tokens per second."""

    native_n: ClassVar[bool] = True

    def _generate(self, messages, stop=None, run_manager=None, *, n=1, progress=None, **kwargs):
        if progress is not None:
            progress(n, n, 7.0)
        return ChatResult(generations=[ChatGeneration(message=AIMessage("Hi")) for _ in range(n)])

    @property
    def _llm_type(self):
        return "counting"


def test_progress_tells_the_models_speed():
    seen = []
    run(draw(plan_of(Counting(), 3), BLOCKING, progress=lambda *said: seen.append(said)))
    assert seen == [("candidates", 3, 3, 7.0), ("candidates", 3, 3, None)]


def test_a_usage_that_no_model_reports_is_none():
    assert drawn(AIMessage("Hi")).usage is None


def test_one_reply_is_enough_where_no_more_are_demanded():
    assert [candidate.message.text for candidate in drawn(AIMessage("Hi"), ValueError("down")).candidates] == ["Hi"]
    with pytest.raises(CandidatesError, match="Only 1 of 2 replies could be drawn, and min_candidates is 2"):
        drawn(AIMessage("Hi"), ValueError("down"), fewest=2)
    assert len(drawn(AIMessage("Hi"), AIMessage("Ho"), fewest=2).candidates) == 2


def test_an_error_lists_each_kind_of_failure_once_and_briefly():
    failures = [ValueError("x" * 300), ConnectionError("down"), ConnectionError("down")]
    with pytest.raises(CandidatesError) as failed:
        drawn(*failures)
    listed = f"ConnectionError: down; ValueError: {'x' * 188}"
    assert str(failed.value).endswith(f"The model failed with: {listed}")
    assert failed.value.causes == tuple(failures)


def test_failures_of_all_rounds_are_kept_and_a_round_without_replies_is_the_last():
    one, two = ValueError("first round"), ValueError("second round")
    result = drawn(AIMessage("Hi"), one, two, two, AIMessage("never drawn"), n=2, most=6)
    assert [candidate.message.text for candidate in result.candidates] == ["Hi"]
    assert result.causes == (one, two, two)


class Names(BaseCallbackHandler):
    """Keeps the names of the runs that it hears of."""

    def __init__(self):
        self.heard = []

    def on_chat_model_start(self, serialized, messages, *, name=None, **kwargs):
        self.heard.append("model")

    def on_chain_start(self, serialized, inputs, *, name=None, **kwargs):
        self.heard.append(name)


@pytest.mark.parametrize("waiter", [BLOCKING, AWAITING])
async def test_the_callers_callbacks_hear_of_draws_and_of_a_filter_that_is_a_runnable(waiter):
    names = Names()
    plan = plan_of(
        Script(script=[AIMessage("one"), AIMessage("two")]), 2,
        candidate_filter=CandidateFilter(RunnableLambda(lambda pair: pair["prompt"] == PROMPT, name="my filter")),
    )  # fmt: skip
    drawing = draw(plan, waiter, config={"callbacks": [names]})
    result = run(drawing) if waiter is BLOCKING else await drawing
    assert names.heard == ["model", "model", "my filter", "my filter"]
    assert len(result.possible) == 2


def extra(**kwargs):
    return AIMessage("", additional_kwargs=kwargs)


def ended(**metadata):
    return AIMessage("Hi", response_metadata=metadata)


def search(query, k):
    """Return a reply with a search by the provider, under ids of its own."""
    result = {"type": "web_search_result", "url": f"https://{query}", "encrypted_content": f"c{k}"}
    return AIMessage([
        {"type": "server_tool_use", "id": f"s{k}", "name": "web_search", "input": {"query": query, "id": 1}},
        {"type": "web_search_tool_result", "tool_use_id": f"s{k}", "content": [result]},
        {"type": "text", "text": "Hi", "citations": [{"url": f"https://{query}", "encrypted_index": f"e{k}"}]},
    ])  # fmt: skip


def reasoned(text, k):
    """Return a reply of the Responses API, as one that keeps its reasoning to itself."""
    return AIMessage([
        {"type": "reasoning", "id": f"rs{k}", "summary": [], "encrypted_content": f"c{k}"},
        {"type": "text", "text": text, "id": f"msg{k}", "annotations": []},
    ], response_metadata={"status": "completed", "id": f"resp{k}"})  # fmt: skip


DIFFERENT = {
    "audio": [extra(audio={"id": "a", "data": data, "expires_at": 1}) for data in "xy"],
    "refusals": [extra(refusal=why) for why in ("I may not.", "I cannot.")],
    "a refusal and nothing": [extra(refusal="I may not."), AIMessage("")],
    "legacy calls": [extra(function_call={"name": "f", "arguments": f'{{"a": {k}}}'}) for k in (1, 2)],
    "a legacy call and none": [extra(function_call={"name": "f", "arguments": "{}"}), AIMessage("")],
    "arguments called id": [extra(function_call={"name": "f", "arguments": f'{{"id": {k}}}'}) for k in (1, 2)],
    "reasoning": [extra(reasoning_content=text) for text in ("So.", "Hm.")],
    "pictures": [extra(images=[{"image_url": {"url": f"data:{k}"}}]) for k in (1, 2)],
    "thinking": [AIMessage([{"type": "thinking", "thinking": text, "signature": "s"}]) for text in ("So.", "Hm.")],
    "files of the provider": [AIMessage([{"type": "file", "source_type": "id", "id": f"f{k}"}]) for k in (1, 2)],
    "searches": [search("guitars", 1), search("pianos", 1)],
    "cut as OpenAI says": [ended(finish_reason="stop"), ended(finish_reason="length")],
    "cut as Anthropic says": [ended(stop_reason="end_turn"), ended(stop_reason="max_tokens")],
    "cut as Bedrock says": [ended(stopReason="end_turn"), ended(stopReason="max_tokens")],
    "cut as Ollama says": [ended(done_reason="stop"), ended(done_reason="length")],
    "cut as Responses says": [ended(status="completed"), ended(status="incomplete")],
    "why Responses cut": [
        ended(status="incomplete", incomplete_details={"reason": why}) for why in ("max_output_tokens", "safety")
    ],
    "an empty list and an empty mapping": [calling({"a": empty}) for empty in ([], {})],
    "arrays": [extra(embedding=np.array([k, 2.0])) for k in (1, 2)],
    "texts around something else": [
        AIMessage([{"type": "text", "text": "Hi "}, {"type": "image", "url": "x"}, {"type": "text", "text": "there"}]),
        AIMessage([{"type": "text", "text": "Hi there"}, {"type": "image", "url": "x"}]),
    ],
    "places of a call": [
        AIMessage([{"type": "text", "text": "Hi"}, {"type": "tool_use", "name": "f", "input": {}}][::way])
        for way in (1, -1)
    ],
}  # fmt: skip
EQUAL = {
    "ids of audio": [extra(audio={"id": f"a{k}", "data": "x", "expires_at": k}) for k in (1, 2)],
    "ids of a tool's result": [AIMessage([{"type": "server_tool_result", "tool_call_id": f"w{k}"}]) for k in (1, 2)],
    "ids of approvals": [
        AIMessage([{"type": "mcp_call", "name": "f", "approval_request_id": f"a{k}"}]) for k in (1, 2)
    ],
    "raw calls": [extra(tool_calls=[{"id": f"c{k}", "function": {"name": "f"}}]) for k in (1, 2)],
    "order of legacy arguments": [
        extra(function_call={"name": "f", "arguments": text}) for text in ('{"a": 1, "b": 2}', '{"b":2,"a":1}')
    ],
    "ids and sealed reasoning": [reasoned("Hi", 1), reasoned("Hi", 2)],
    "sealed reasoning and none": [
        reasoned("Hi", 1), AIMessage([{"type": "text", "text": "Hi"}], response_metadata={"status": "completed"}),
    ],
    "reasoning beside the content": [
        extra(reasoning={"type": "reasoning", "id": f"rs{k}", "summary": [{"type": "summary_text", "text": "So."}]})
        for k in (1, 2)
    ],
    "signatures": [AIMessage([{"type": "thinking", "thinking": "So.", "signature": f"s{k}"}]) for k in (1, 2)],
    "signatures of texts": [
        AIMessage([{"type": "text", "text": "Hi", "extras": {"signature": f"s{k}"}}]) for k in (1, 2)
    ],
    "signatures of calls": [extra(__gemini_function_call_thought_signatures__={f"c{k}": "s"}) for k in (1, 2)],
    "redacted thinking": [AIMessage([{"type": "redacted_thinking", "data": f"d{k}"}]) for k in (1, 2)],
    "redacted reasoning": [
        AIMessage([{"type": "reasoning_content", "reasoning_content": {"redacted_content": f"d{k}"}}]) for k in (1, 2)
    ],
    "encrypted reasoning": [
        extra(reasoning_details=[{"type": "reasoning.encrypted", "data": f"d{k}", "id": f"r{k}"}]) for k in (1, 2)
    ],
    "containers": [
        AIMessage([{"type": "code_interpreter_call", "code": "1", "container_id": f"c{k}"}]) for k in (1, 2)
    ],
    "arguments as streamed": [
        AIMessage([{"type": "tool_use", "name": "f", "input": {}, "partial_json": text}])
        for text in ('{"a": 1, "b": 2}', '{"b":2,"a":1}')
    ],
    "parts of one text": [
        AIMessage("Hi there"), AIMessage(["Hi ", "there"]),
        AIMessage([{"type": "text", "text": "Hi ", "index": 0}, {"type": "text", "text": "there", "index": 1}]),
    ],
    "searches under other ids": [search("guitars", 1), search("guitars", 2)],
    "a text and its only block": [AIMessage("Hi"), AIMessage([{"type": "text", "text": "Hi", "annotations": []}])],
    "no text in three spellings": [AIMessage(""), AIMessage([]), AIMessage([{"type": "text", "text": ""}])],
    "arguments as text": [
        AIMessage([{"type": "function_call", "id": f"i{k}", "call_id": f"c{k}", "name": "f", "arguments": text}])
        for k, text in enumerate(['{"a": 1, "b": 2}', '{"b":2,"a":1}'])
    ],
    "order of arguments that are sets": [calling({"tags": tags}) for tags in ({0, 8}, {8, 0})],
    "places in a stream": [AIMessage([{"type": "text", "text": "Hi", "index": k}]) for k in (1, 2)],
    "ids of pictures": [AIMessage([{"type": "image", "id": f"i{k}", "base64": "x"}]) for k in (1, 2)],
    "ids of answers": [ended(id=f"resp{k}", created_at=k, model_name="m") for k in (1, 2)],
}  # fmt: skip


@pytest.mark.parametrize("kind", DIFFERENT)
def test_replies_are_distinct_where_user_or_agents_can_tell_them_apart(kind):
    first, second = DIFFERENT[kind]
    assert _identity(first) != _identity(second)
    hash(_identity(first))


@pytest.mark.parametrize("kind", EQUAL)
def test_replies_are_equal_where_only_the_provider_can_tell_them_apart(kind):
    first, *others = EQUAL[kind]
    assert [_identity(other) for other in others] == [_identity(first)] * len(others)


def test_the_depth_of_arguments_costs_no_more_than_their_length():
    args = {}
    for _ in range(200):
        args = {"a": [args]}
    deep, other = calling(args), calling({"a": args})
    assert _identity(deep) != _identity(other)
    assert len(repr(_identity(deep))) < 10_000


def test_agents_are_shown_every_distinct_reply_once():
    shown = []

    class Speaks(BaseChatModel):
        replies: ClassVar = iter([*DIFFERENT["audio"] * 2, *EQUAL["ids of audio"]])
        _llm_type: ClassVar = "speaks"

        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            return ChatResult(generations=[ChatGeneration(message=next(self.replies))])

    agent = Agent("A", lambda prompt, reply: shown.append(reply.additional_kwargs["audio"]["data"]) or 1.0)
    assert auction(Speaks(), agents=[agent], n_candidates=6).run("Speak").distinct_replies == 2
    assert sorted(shown) == ["x", "y"]


@settings(max_examples=40)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=2),
    st.lists(st.floats(0, 1e6), min_size=2, max_size=2),
    st.sampled_from(["values", "functions", "clicks"]),
)
def test_no_report_changes_the_choice_of_the_proposal_a_candidate_or_a_weight(one, other, kind):
    """Bit for bit, and also where a reward declares bounds, because these follow from the bid."""

    def drawn(amounts):
        rewards = {
            "values": lambda amount: MentionReward(["b"], value=amount, at_most=4),
            "functions": lambda amount: lambda _, reply: amount * reply.text.count("b"),
            "clicks": lambda amount: ClickReward(abs(amount), lambda _, reply: reply.text.count("b") / 4),
        }[kind]
        bidders = [
            Agent(agent.name, rewards(amount), context=agent.context, keywords=["b", "c"])
            for agent, amount in zip(agents(), amounts, strict=True)
        ]
        result = auction(agents=bidders).run("Hi")
        weights = [(one.message.text, one.log_weight.hex(), one.draws, one.component) for one in result.candidates]
        return weights, result.components, result.proposal_reason

    assert drawn(one) == drawn(other)


def sponsored(messages, descriptions):
    return [SystemMessage(descriptions), *messages]


MIXED = DefensiveMixture([(Reference(), 1), (Reference(sponsored), 3)])


@pytest.mark.parametrize(
    ("proposal", "components"),
    [
        (Reference(sponsored), {"reference that knows the agents": 64}),
        (MIXED, {"reference": 16, "reference that knows the agents": 48}),
    ],
)
async def test_a_model_without_probabilities_draws_from_its_stated_reference_without_weights(proposal, components):
    held = auction(Mute(), proposal=proposal, n_candidates=64)
    for result in (held.run("Speak"), await held.arun("Speak")):
        weights = [candidate.log_weight for candidate in result.candidates]
        assert weights == pytest.approx([0.0] * result.distinct_replies, abs=1e-12)
        assert result.contexts == "reference"
        assert result.reply.response_metadata["auction"]["proposal"]["contexts"] == "reference"
        assert verify(result.receipt).ok
        assert dict(result.components) == components


def test_the_distribution_of_the_reply_is_that_of_the_stated_reference_and_the_rewards():
    """Over 150 auctions of 32 draws, the mean distribution of the reply misses the target by less than 0.1 in total
    variation; the target of the plain prompt, by more than 0.2. The seeds are fixed."""
    inputs = ProposalInputs(prompt=tuple(PROMPT), descriptions=tuple(descriptions_of(one.context for one in agents())))
    (condition,), _ = conditions_of(Reference(sponsored), inputs)
    target, plain = (MODEL.enumerate([prompt]) for prompt in (condition.prompts[0], PROMPT))
    worth = {text: 1.5 * text.count("b") + 0.5 * (text[-1] == "c") for text in target}
    probabilities = dict.fromkeys(target, 0.0)
    bidders = [
        Agent("TuneTown", lambda prompt, reply: 1.5 * reply.text.count("b"), context=agents()[0].context),
        Agent("StringSchool", lambda prompt, reply: 0.5 * (reply.text[-1] == "c"), context=agents()[1].context),
    ]
    for seed in range(150):
        # it has no scorer here: its log-probabilities are not used
        result = auction(agents=bidders, proposal=Reference(sponsored), n_candidates=32, seed=seed).run(PROMPT)
        for candidate, chance in zip(result.candidates, result.settlement.probabilities, strict=True):
            probabilities[candidate.message.text] += chance / 150

    def distance(log_reference):
        scores = np.array([log_reference[text] + worth[text] for text in probabilities])
        optimum = np.exp(scores - np.logaddexp.reduce(scores))
        return np.abs(optimum - np.array(list(probabilities.values()))).sum() / 2

    assert distance(target) < 0.1
    assert distance(plain) > 0.2


def test_a_stated_reference_is_never_replaced():
    with pytest.raises(ConfigurationError, match="No system messages"):
        auction(NoSystem(length=3), proposal=Reference(sponsored)).run("Speak")


async def test_the_filter_sees_the_users_own_prompt():
    prompts = []

    def rule(prompt, reply):
        prompts.append([message.text for message in prompt])
        return True

    held = auction(proposal=Reference(sponsored), policy=Policy(candidate_filter=rule))
    held.run("Speak")
    await held.arun("Speak")
    assert prompts
    assert all(texts == ["Speak"] for texts in prompts)
