"""The whole AuctionRunnable over an exactly solvable model, against enumeration that never calls settle."""

import dataclasses
import math
from collections import Counter
from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from langchain_core.messages import HumanMessage
from scipy import stats

from llm_auction_chain import (
    Agent,
    AuctionRunnable,
    ContextProduct,
    ContextPrompt,
    DefensiveMixture,
    Reference,
)
from llm_auction_chain.testing import MarkovChatModel

M, TAU = 3, 0.7
MODEL = MarkovChatModel()
WORTH = {"B": lambda text: 1.5 * text.count("b"), "C": lambda text: 1.0 * (text[-1] == "c") + 0.3 * text.count("a")}


def agents(**lies):
    rewards = {**WORTH, **lies}
    return [Agent(name, lambda prompt, reply, worth=worth: worth(reply.text)) for name, worth in rewards.items()]


TILTED = MarkovChatModel(tilts={"bees": (-0.5, 1.2, 0.0)})
TWO_LAWS = (MarkovChatModel().enumerate(), TILTED.enumerate([[HumanMessage("bees")]]))


def enumerate_mixture():
    """Return the law of the returned reply and mean payments, over one draw from the reference and one told of bees.

    Candidates, weights, law and payments by their definitions; nothing of the library but the model's own numbers.
    """
    plain, told = ({text: math.exp(log_p) for text, log_p in law.items()} for law in TWO_LAWS)
    weight = {text: plain[text] / (plain[text] / 2 + told[text] / 2) for text in plain}
    law, payments = Counter(), Counter()
    for drawn in product(plain, told):
        chance = plain[drawn[0]] * told[drawn[1]]
        total = [math.log(weight[text]) + sum(worth(text) for worth in WORTH.values()) / TAU for text in drawn]
        p = softmax(total)
        for text, probability in zip(drawn, p, strict=True):
            law[text] += chance * probability
        for name, worth in WORTH.items():
            q = softmax([score - worth(text) / TAU for score, text in zip(total, drawn, strict=True)])
            payments[name] += chance * TAU * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return law, payments


def test_replies_and_payments_of_a_mixture_follow_enumeration():
    """3,000 fixed seeds. Chi-square: a correct library fails with probability 1e-4; payments: 4.5 standard errors."""
    told = [dataclasses.replace(agent, context="bees" if agent.name == "B" else "") for agent in agents()]
    mixture = DefensiveMixture([(Reference(), 1), (ContextPrompt(), 1)])
    runnable = AuctionRunnable(model=TILTED, agents=told, n_candidates=2, tau=TAU, proposal=mixture)
    held = [runnable.invoke("Speak", seed=seed) for seed in range(3000)]
    law, payments = enumerate_mixture()
    assert sum(law.values()) == pytest.approx(1.0)
    seen = Counter(reply.text for reply in held)
    texts = sorted(law)
    assert stats.chisquare([seen[t] for t in texts], [law[t] * len(held) for t in texts]).pvalue > 1e-4
    for k, name in enumerate(WORTH):
        paid = np.array([reply.response_metadata["auction"]["payments"][k]["amount"] for reply in held])
        assert abs(paid.mean() - payments[name]) < 4.5 * paid.std() / math.sqrt(len(paid))


@pytest.mark.parametrize("proposal", [
    ContextPrompt(), ContextProduct(0.5), DefensiveMixture([(Reference(), 1), (ContextProduct(), 3)]),
])  # fmt: skip
def test_no_misreport_gains_under_any_proposal(proposal):
    """30 random lies each, over the same candidates and weights as the truth: exact, no statistics."""
    rng = np.random.default_rng(12)
    told = [dataclasses.replace(agent, context="bees" if agent.name == "B" else "") for agent in agents()]
    truth = AuctionRunnable(model=TILTED, agents=told, n_candidates=8, tau=TAU, proposal=proposal)
    for seed in range(30):
        lie = dict(zip(TWO_LAWS[0], rng.normal(scale=2.0, size=len(TWO_LAWS[0])), strict=True))
        liars = [dataclasses.replace(told[0], reward=lambda prompt, reply, lie=lie: lie[reply.text]), told[1]]
        honest = truth.model_copy(update={"seed": seed}).run("Speak")
        dishonest = truth.model_copy(update={"seed": seed, "agents": liars}).run("Speak")
        assert np.array_equal(honest.log_weights, dishonest.log_weights)
        values = honest.rewards[0]
        utilities = [
            float(result.settlement.probabilities @ values) - result.settlement.expected_payments[0]
            for result in (honest, dishonest)
        ]
        assert utilities[1] <= utilities[0] + 1e-12


def softmax(scores):
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def enumerate_auctions():
    """Return the law of the returned reply and each agent's mean payment, over all multisets of M replies."""
    replies = {text: math.exp(log_p) for text, log_p in MODEL.enumerate().items()}
    law, payments = Counter(), Counter()
    for drawn in combinations_with_replacement(replies, M):
        ways = math.factorial(M) / math.prod(math.factorial(k) for k in Counter(drawn).values())
        chance = ways * math.prod(replies[text] for text in drawn)
        p = softmax([sum(worth(text) for worth in WORTH.values()) / TAU for text in drawn])
        for text, probability in zip(drawn, p, strict=True):
            law[text] += chance * probability
        for name in WORTH:
            q = softmax([sum(worth(text) for other, worth in WORTH.items() if other != name) / TAU for text in drawn])
            payments[name] += chance * TAU * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return law, payments


@pytest.fixture(scope="module")
def auctions():
    runnable = AuctionRunnable(model=MODEL, agents=agents(), n_candidates=M, tau=TAU)
    return [runnable.model_copy(update={"seed": seed}).invoke("Speak") for seed in range(3000)]


def test_the_returned_replies_follow_the_enumerated_law(auctions):
    """Chi-square over 3,000 fixed seeds: a correct library fails with probability 1e-4."""
    law, _ = enumerate_auctions()
    assert sum(law.values()) == pytest.approx(1.0)
    seen = Counter(reply.text for reply in auctions)
    texts = sorted(law)
    observed, expected = [seen[text] for text in texts], [law[text] * len(auctions) for text in texts]
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_mean_payments_are_the_enumerated_clarke_payments(auctions):
    """Within 4.5 standard errors for both agents: fails by chance with probability below 2e-5."""
    _, payments = enumerate_auctions()
    for k, name in enumerate(WORTH):
        paid = np.array([reply.response_metadata["auction"]["payments"][k]["amount"] for reply in auctions])
        assert abs(paid.mean() - payments[name]) < 4.5 * paid.std() / math.sqrt(len(paid))


def test_no_misreport_gains():
    """100 random lies, each over the same candidates as the truth: exact, no statistics."""
    rng = np.random.default_rng(11)
    texts = list(MODEL.enumerate())
    truth = AuctionRunnable(model=MODEL, agents=agents(), n_candidates=8, tau=TAU)
    for seed in range(100):
        lie = dict(zip(texts, rng.normal(scale=2.0, size=len(texts)), strict=True))
        lying = truth.model_copy(update={"agents": agents(B=lie.__getitem__), "seed": seed})
        honest, dishonest = truth.model_copy(update={"seed": seed}).run("Speak"), lying.run("Speak")
        assert [c.message.text for c in honest.candidates] == [c.message.text for c in dishonest.candidates]
        values = np.array([WORTH["B"](candidate.message.text) for candidate in honest.candidates])
        utilities = [
            float(result.settlement.probabilities @ values) - result.settlement.expected_payments[0]
            for result in (honest, dishonest)
        ]
        assert utilities[1] <= utilities[0] + 1e-12


@pytest.mark.parametrize(("m", "nats"), [(1, 0.172002), (2, 0.080810), (4, 0.032447), (8, 0.010859), (16, 0.003139)])
def test_soft_best_of_n_has_the_published_divergence(m, nats):
    """P = (.5, .3, .15, .05), r = (0, .5, 1, 2), tau = 1, by enumeration of the counts, settled by the library."""
    from llm_auction_chain.mechanism import settle

    reference, rewards = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.0, 0.5, 1.0, 2.0])
    law = np.zeros(4)
    for drawn in combinations_with_replacement(range(4), m):
        counts = np.bincount(drawn, minlength=4)
        chance = math.exp(
            math.lgamma(m + 1) - sum(math.lgamma(k + 1) for k in counts) + float(counts @ np.log(reference))
        )
        p = settle([rewards[list(drawn)]], tau=1.0, seed=0).probabilities
        law += chance * np.bincount(drawn, weights=p, minlength=4)
    target = reference * np.exp(rewards)
    target /= target.sum()
    assert float(law @ np.log(law / target)) == pytest.approx(nats, abs=5e-6)
