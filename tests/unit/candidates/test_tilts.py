"""Keyword tilts by their formula, on a model whose replies can all be listed."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage

from llm_auction_chain import Agent, AuctionRunnable, ConfigurationError, ContextProduct, DefensiveMixture, Sampling
from llm_auction_chain.candidates import KeywordTilt, ProposalInputs, Reference
from llm_auction_chain.candidates.proposals import conditions_of, log_weights
from llm_auction_chain.candidates.tilts import Tilt, TokenTilts
from llm_auction_chain.descriptions import Keywords
from llm_auction_chain.testing import MarkovChatModel

LETTERS = "abcd"
MODEL = MarkovChatModel(
    vocabulary=LETTERS,
    start=(0.4, 0.3, 0.2, 0.1),
    transition=((0.7, 0.1, 0.1, 0.1), (0.3, 0.4, 0.2, 0.1), (0.25, 0.25, 0.25, 0.25), (0.1, 0.2, 0.3, 0.4)),
    length=3,
    tilts={"Bees": (0.0, 1.0, 0.0, -1.0)},
)
PROMPT = [HumanMessage("Speak")]
words = st.lists(st.sampled_from(["bees", "cats", "dogs", "bears", "zebras"]), min_size=1, max_size=3, unique=True)
groups = st.lists(words, min_size=1, max_size=3)


def by_formula(model, prompt, agents, strength, *, until_said):
    """Return the probability of every reply under a tilt, token by token from the definition."""
    first, following = (np.exp(table) for table in model.log_probabilities([prompt]))
    firsts = [{word[0] for word in own} for own in agents]
    probabilities = {}
    for letters in itertools.product(LETTERS, repeat=model.length):
        chance, begun = 1.0, [False] * len(agents)
        for place, letter in enumerate(letters):
            row = first if place == 0 else following[LETTERS.index(letters[place - 1])]
            active = set().union(*(own for own, done in zip(firsts, begun, strict=True) if not (until_said and done)))
            tilted = [p * math.exp(strength * (one in active)) for one, p in zip(LETTERS, row, strict=True)]
            chance *= tilted[LETTERS.index(letter)] / sum(tilted)
            begun = [done or letter in own for own, done in zip(firsts, begun, strict=True)]
        probabilities["".join(letters)] = chance
    return probabilities


def inputs_of(agents):
    return ProposalInputs(prompt=tuple(PROMPT), keywords=tuple(sorted(Keywords(tuple(sorted(own))) for own in agents)))


@given(groups, st.floats(0.01, 8.0), st.booleans())
def test_every_reply_has_the_probability_of_the_formula_and_all_sum_to_one(agents, strength, until_said):
    condition = KeywordTilt(strength, until_said=until_said).condition(inputs_of(agents))
    exact = by_formula(MODEL, PROMPT, agents, strength, until_said=until_said)
    (scores,) = MODEL.score_conditions([condition], [AIMessage(text) for text in exact])
    assert np.exp(scores) == pytest.approx(list(exact.values()), rel=1e-12)
    assert sum(exact.values()) == pytest.approx(1.0, abs=1e-12)


MIXTURE = DefensiveMixture(
    [(Reference(), 2), (KeywordTilt(1.0, until_said=False), 1), (KeywordTilt(2.0), 1), (ContextProduct(0.5), 1)]
)


@given(st.integers(0, 50))
def test_the_weights_of_a_mixture_of_tilts_are_those_of_an_enumeration(seed):
    keywords = ["bees"], ["dogs", "cats"], ["zebras"]
    agents = [
        Agent(f"agent {k}", lambda prompt, reply: 1.0, keywords=own, context="Bees hum." if k == 0 else "")
        for k, own in enumerate(keywords)
    ]
    sampling = Sampling(min_ess=30.0, max_candidates=60)  # further rounds
    auction = AuctionRunnable(
        model=MODEL, agents=agents, proposal=MIXTURE, n_candidates=20, sampling=sampling, seed=seed
    )
    result = auction.run(PROMPT)
    counts = dict(result.components)
    exact = {
        "reference": {text: math.exp(log_p) for text, log_p in MODEL.enumerate([PROMPT]).items()},
        "tilt 1": by_formula(MODEL, PROMPT, keywords, 1.0, until_said=False),
        "tilt 2 until said": by_formula(MODEL, PROMPT, keywords, 2.0, until_said=True),
    }
    inputs = ProposalInputs(prompt=tuple(PROMPT), descriptions=("Bees hum.",))
    product = conditions_of(ContextProduct(0.5), inputs)[0][1]
    exact[product.name] = {
        text: math.exp(log_p) for text, log_p in MODEL.enumerate(product.prompts, product.powers).items()
    }
    assert set(counts) == set(exact)
    for candidate in result.candidates:
        text = candidate.message.text
        mixture = sum(n / result.draws * exact[name][text] for name, n in counts.items())
        assert candidate.log_weight == pytest.approx(math.log(exact["reference"][text] / mixture), abs=1e-12)


def test_the_draws_follow_the_tilt():
    """3,000 draws: the largest of 16 frequencies of two letters misses by five standard errors with p below 1e-4."""
    condition = KeywordTilt(2.0).condition(inputs_of([["bees"], ["dogs"]]))
    result = MODEL._generate(PROMPT, seed=3, conditions=[(condition, 3000)])
    drawn = [generation.message.text[:2] for generation in result.generations]
    exact = by_formula(MODEL, PROMPT, [["bees"], ["dogs"]], 2.0, until_said=True)
    for pair in map("".join, itertools.product(LETTERS, repeat=2)):
        chance = sum(p for text, p in exact.items() if text.startswith(pair))
        assert abs(drawn.count(pair) / 3000 - chance) <= 5 * math.sqrt(chance * (1 - chance) / 3000)


def test_agents_without_a_token_and_agents_with_all_tokens_change_nothing():
    for keywords in (["zebras"], ["ants", "bees", "cats", "dogs"]):
        condition = KeywordTilt(3.0, until_said=False).condition(inputs_of([keywords]))
        texts = list(MODEL.enumerate([PROMPT]))
        tilted, plain = MODEL.score_conditions(
            [condition, Reference().condition(inputs_of([]))], [AIMessage(text) for text in texts]
        )
        assert tilted == pytest.approx(plain, abs=1e-12)


def test_the_order_of_agents_and_of_their_words_does_not_matter():
    def agent(name, keywords):
        return Agent(name, lambda prompt, reply: 1.0, keywords=keywords)

    orders = [
        [agent("A", ["cats", "bees"]), agent("B", ["dogs"])],
        [agent("B", ["dogs"]), agent("A", ["bees", "cats"])],
    ]
    results = [AuctionRunnable(model=MODEL, agents=own, n_candidates=16, seed=4).run(PROMPT) for own in orders]
    first, second = ([(one.message.text, one.log_weight) for one in result.candidates] for result in results)
    assert first == second


def test_without_keywords_a_tilt_is_the_reference():
    conditions, shares = conditions_of(DefensiveMixture([(Reference(), 1), (KeywordTilt(2.0), 1)]), inputs_of([]))
    assert [condition.name for condition in conditions] == ["reference"]
    assert shares == [1.0]


@pytest.mark.parametrize("strength", [0, -1.0, 21, math.nan, "2", True])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(ConfigurationError, match=r"^strength must be"):
        KeywordTilt(strength)


def test_a_keyword_that_two_agents_share_is_tilted_once_and_ends_for_both():
    shared = by_formula(MODEL, PROMPT, [["bees"], ["bees", "cats"]], 2.0, until_said=True)
    condition = KeywordTilt(2.0).condition(inputs_of([["bees"], ["bees", "cats"]]))
    (scores,) = MODEL.score_conditions([condition], [AIMessage(text) for text in shared])
    assert np.exp(scores) == pytest.approx(list(shared.values()), rel=1e-12)


@given(st.integers(1, 4), st.integers(0, 6), st.floats(0.1, 3), st.booleans(), st.integers(0, 999))
def test_whole_replies_and_tokens_one_by_one_give_the_same(rows, length, strength, until_said, seed):
    rng = np.random.default_rng(seed)
    keywords = (Keywords(("one",)), Keywords(("two",)))
    tilts = TokenTilts([Tilt(keywords=keywords, strength=strength, until_said=until_said)], [[[2, 5], [5, 7]]])
    assert tilts.columns.tolist() == [2, 5, 7]
    replies = [rng.integers(0, 9, rng.integers(0, length + 1)) for _ in range(rows)]
    figures = [np.log(rng.dirichlet(np.ones(9), len(reply)).reshape(len(reply), 9)[:, [2, 5, 7]]) for reply in replies]
    whole = tilts.log_ratios(replies, figures)
    for row, (reply, own) in enumerate(zip(replies, figures, strict=True)):
        state = tilts.start(1)
        for token, log_columns in zip(reply, own, strict=True):
            bias = tilts.bias(state, 0, slice(None))
            total = 1.0 + np.exp(log_columns) @ np.expm1(bias[0])
            before = state.log_ratios[0, 0]
            tilts.step(state, np.arange(1), [token], [log_columns])
            place = np.flatnonzero(tilts.columns == token)
            added = bias[0][place].sum() - math.log(total)
            assert state.log_ratios[0, 0] - before == pytest.approx(added, abs=1e-12)
        assert whole[row, 0] == pytest.approx(state.log_ratios[0, 0], abs=1e-12)


def test_the_reference_bounds_the_weights_of_a_tilt_of_any_strength():
    mixture = DefensiveMixture([(Reference(), 1), (KeywordTilt(20.0), 1)])
    conditions, shares = conditions_of(mixture, inputs_of([["dogs"]]))
    texts = list(MODEL.enumerate([PROMPT]))
    scores = np.array(MODEL.score_conditions(conditions, [AIMessage(text) for text in texts]))
    assert log_weights(scores, np.array(shares) * 10).max() <= math.log(2) + 1e-12
