"""Pools: what is drawn and scored for one question, and the sets of candidates that come of it."""

import numpy as np
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda

from llm_auction_chain import ChatTransformers
from llm_auction_chain.candidates import ContextPrompt
from llm_auction_chain.errors import CandidatesError, ConfigurationError
from llm_auction_chain.experiments.config import ExperimentConfig
from llm_auction_chain.experiments.pools import OWN_POLICIES, RUBRICS, Bench, measure_pool
from llm_auction_chain.experiments.questions import Question, Sponsor
from llm_auction_chain.experiments.store import Store
from llm_auction_chain.rewards import LogRatioReward
from llm_auction_chain.testing import MarkovChatModel

MODEL = MarkovChatModel(length=4, tilts={"Ellis": (1.0, 0.0, 0.0), "Farrow": (0.0, 1.5, 0.0)})
WORDS = {letter: tuple(word for word in MODEL.enumerate() if word.startswith(letter)) for letter in "abc"}
SPONSORS = (
    Sponsor(name="Ellis", context="Ellis sells a.", phrases=WORDS["a"], rubric="Is there an a?"),
    Sponsor(name="Farrow", context="Farrow sells b.", phrases=WORDS["b"], value=2.0, rubric="Is there a b?"),
)
QUESTION = Question(id="speak", domain="words", text="Speak", sponsors=SPONSORS)


def bench(model=MODEL, *, store=None, judge=None, scorer=None, **settings):
    config = ExperimentConfig(**{"experiment": "welfare", "draws": 8, "families": ("mentions",), **settings})
    store = store or Store(None)
    return Bench(config=config, model=model, store=store, judge=judge, scorer=scorer)


class Judge(GenericFakeChatModel):
    """Gives the best level to a reply with an a."""

    def with_structured_output(self, schema, **kwargs):
        return RunnableLambda(lambda messages: schema(level=4 if "a" in messages[-1].text.split()[-1] else 0))


def test_every_draw_is_scored_under_every_condition():
    pool = measure_pool(bench(families=("mentions", "log_ratio")), QUESTION, 3)
    assert pool.names[:2] == ("reference", "context prompt")
    assert len(pool.texts) == pool.counts.sum() == len(pool.sources)
    prompts = {
        0: [HumanMessage("Speak")],
        1: ContextPrompt().describe([HumanMessage("Speak")], [sponsor.context for sponsor in SPONSORS], 3),
        pool.own[0]: ContextPrompt().describe([HumanMessage("Speak")], [SPONSORS[0].context], 3),
        pool.own[1]: ContextPrompt().describe([HumanMessage("Speak")], [SPONSORS[1].context], 3),
    }
    for condition, prompt in prompts.items():
        known = MODEL.enumerate([prompt])
        assert pool.log_probs[condition] == pytest.approx([known[text] for text in pool.texts])


def test_log_ratios_are_those_of_the_reward_in_an_auction():
    pool = measure_pool(bench(families=("log_ratio",)), QUESTION, 0)
    replies = [AIMessage(text) for text in pool.texts]
    for k, sponsor in enumerate(SPONSORS):
        reward = sponsor.reward("log_ratio")
        alone = LogRatioReward(reward.instructions, value=reward.value, scorer=MODEL)
        assert pool.rewards["log_ratio"][k] == pytest.approx(alone.score([HumanMessage("Speak")], replies))


def test_sets_are_disjoint_and_hold_the_shares_of_the_proposal():
    pool = measure_pool(bench(draws=20), QUESTION, 0)
    for proposal, m, wanted in (
        ("reference", 4, {0: 4}),
        ("product mixture", 5, {0: 1, 3: 4}),
        (OWN_POLICIES, 4, None),
    ):
        sets = list(pool.sets(proposal, m, "mentions"))
        assert len(sets) >= 2
        places = np.concatenate([places for places, _ in sets])
        assert len(set(places.tolist())) == len(places) == len(sets) * m
        for indices, candidates in sets:
            if wanted is not None:
                assert dict(zip(*np.unique(pool.sources[indices], return_counts=True), strict=True)) == wanted
            assert candidates.rewards.tolist() == pool.rewards["mentions"][:, indices].tolist()
            assert candidates.log_reference.tolist() == pool.log_probs[0, indices].tolist()
    (_, own), *_ = pool.sets(OWN_POLICIES, 4, "mentions")
    assert own.sources.tolist() == [0, 0, 1, 1]


def test_weights_undo_the_proposal():
    # E under the proposal of exp(lw) is 1. 600 sets of 4 draws; the mean misses 1 by more than five standard errors
    # with probability below 1e-6.
    pool = measure_pool(bench(draws=2400), QUESTION, 0)
    for proposal in ("context prompt", "product mixture"):
        ratios = np.array([np.exp(c.log_weights).mean() for _, c in pool.sets(proposal, 4, "mentions")])
        assert abs(ratios.mean() - 1) < 5 * ratios.std() / np.sqrt(len(ratios))


def test_other_phrases_and_taus_need_no_new_draws():
    store = Store(None)
    first = measure_pool(bench(store=store), QUESTION, 0)
    dearer = tuple(Sponsor(name=s.name, context=s.context, phrases=WORDS["c"], value=9.0) for s in SPONSORS)
    again = measure_pool(
        bench(store=store, tau=7.0, n_candidates=(2,)), Question(**{**vars(QUESTION), "sponsors": dearer}), 0
    )
    assert (store.cost.measured, store.cost.reused) == (2, 1)
    assert first.texts == again.texts
    assert first.rewards["mentions"].tolist() != again.rewards["mentions"].tolist()


@pytest.mark.parametrize(
    "changes", [{"max_tokens": 7}, {"draws": 9}, {"proposals": ("reference", "product, strength 1/4")}]
)
def test_what_changes_the_draws_is_drawn_anew(changes):
    store = Store(None)
    measure_pool(bench(store=store), QUESTION, 0)
    measure_pool(bench(store=store, **changes), QUESTION, 0)
    measure_pool(bench(MODEL.model_copy(update={"start": (0.4, 0.3, 0.3)}), store=store), QUESTION, 0)
    assert store.cost.reused == 0


def test_a_judge_grades_for_sponsors_and_for_the_user():
    pool = measure_pool(bench(judge=Judge(messages=iter([])), families=("judge",)), QUESTION, 0)
    has_a = np.array(["a" in text for text in pool.texts], dtype=float)
    assert pool.rewards["judge"].tolist() == [(3 * has_a).tolist(), (6 * has_a).tolist()]
    assert pool.grades.keys() == RUBRICS.keys()
    assert pool.grades["helpful"].tolist() == has_a.tolist()


def test_relevance_is_the_cosine_with_the_question():
    embeddings = DeterministicFakeEmbedding(size=8)
    pool = measure_pool(Bench(**{**vars(bench()), "embeddings": embeddings}), QUESTION, 0)
    asked, first = np.array(embeddings.embed_query("Speak")), np.array(embeddings.embed_query(pool.texts[0]))
    assert pool.relevance[0] == pytest.approx(asked @ first / np.linalg.norm(asked) / np.linalg.norm(first))


class Plain(GenericFakeChatModel):
    """A chat model that says nothing of probabilities."""


def plain():
    return Plain(messages=iter([AIMessage(f"aaaa {k}") for k in range(500)]))


def test_any_chat_model_serves_what_needs_no_probabilities():
    pool = measure_pool(bench(plain(), proposals=("reference",)), QUESTION, 0)
    assert np.isnan(pool.log_probs).all()
    (_, candidates), *_ = pool.sets("reference", 4, "mentions")
    assert candidates.log_weights.tolist() == [0.0] * 4
    assert candidates.rewards[0].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"proposals": ("context prompt",)}, "'context prompt' needs the probability of every reply"),
        ({"proposals": ("product, strength 1/4",)}, "must expose its logits"),
        ({"proposals": ("reference",), "families": ("log_ratio",)}, "'log_ratio' needs the probability"),
        ({"proposals": ("reference",), "families": ("judge",)}, "judge"),
        ({"proposals": ("none of ours",)}, "proposals must be"),
    ],
)
def test_what_a_model_cannot_do_is_refused(settings, match):
    with pytest.raises(ConfigurationError, match=match):
        measure_pool(bench(plain(), **settings), QUESTION, 0)


def test_a_set_that_the_pool_is_too_small_for_is_refused():
    pool = measure_pool(bench(), QUESTION, 0)
    with pytest.raises(ConfigurationError, match="M = 9 candidates of 'reference' need 9 draws"):
        list(pool.sets("reference", 9, "mentions"))


def test_a_failed_draw_ends_the_run_and_keeps_what_was_measured():
    class Broken(Plain):
        def _generate(self, *args, **kwargs):
            raise OSError("no line")

    store = Store(None)
    measure_pool(bench(store=store), QUESTION, 0)
    with pytest.raises(CandidatesError, match="24 of 24 draws failed: no line"):
        measure_pool(bench(Broken(messages=iter([])), store=store, proposals=("reference",)), QUESTION, 0)
    measure_pool(bench(store=store), QUESTION, 0)
    assert store.cost.reused == 1


def test_a_cache_of_prompts_does_not_make_a_stored_run_another_one():
    kept, none_kept = (bench(ChatTransformers(max_cached_tokens=size)) for size in (None, 0))
    assert kept.identity == none_kept.identity
    assert kept.identity != bench(ChatTransformers(temperature=0.5)).identity
