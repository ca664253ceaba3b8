"""A reply is worth its closeness to a description, told by any embeddings, and nothing else is."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.messages import AIMessage

from llm_auction_chain import ConfigurationError, RewardError
from llm_auction_chain.rewards.embedding import EmbeddingReward

VECTORS = {"d": [1.0, 0.0], "same": [2.0, 0.0], "half": [1.0, math.sqrt(3)], "across": [0.0, 5.0], "against": [-1.0, 0]}


class Table(Embeddings):
    """Texts and their vectors; counts the calls."""

    def __init__(self, vectors, query=None):
        self.vectors = vectors
        self.query = query
        self.calls = []

    def embed_documents(self, texts):
        self.calls.append(texts)
        return [self.vectors[text] for text in texts]

    def embed_query(self, text):
        self.calls.append(text)
        return self.query or self.vectors[text]


class Awaited(Table):
    async def aembed_documents(self, texts):
        self.calls.append("awaited")
        return super().embed_documents(texts)

    async def aembed_query(self, text):
        self.calls.append("awaited")
        return super().embed_query(text)


def replies(*texts):
    return [AIMessage(text) for text in texts]


def test_the_cosine_is_worth_its_place_between_low_and_high():
    reward = EmbeddingReward(Table(VECTORS), "d", value=2.0)
    assert reward.score([], replies("same", "half", "across", "against")) == pytest.approx([2.0, 1.0, 0.0, 0.0])
    narrow = EmbeddingReward(Table(VECTORS), "d", low=0.25, high=0.75)
    assert narrow.score([], replies("same", "half", "across")) == pytest.approx([1.0, 0.5, 0.0])


def test_all_replies_are_one_call_and_the_description_is_embedded_once():
    table = Table(VECTORS)
    reward = EmbeddingReward(table, "d")
    reward.score([], replies("same", "half"))
    reward.score([], replies("across"))
    assert table.calls == ["d", ["same", "half"], ["across"]]


async def test_embeddings_that_can_be_awaited_are():
    table = Awaited(VECTORS)
    reward = EmbeddingReward(table, "d")
    assert reward.awaits
    assert await reward.ascore([], replies("half", "")) == pytest.approx([0.5, 0.0])
    assert table.calls == ["awaited", "d", "awaited", ["half"]]
    assert await reward.ascore([], replies("half")) == reward.score([], replies("half"))


def test_replies_without_text_have_a_cosine_of_zero_and_are_not_sent():
    table = Table(VECTORS)
    reward = EmbeddingReward(table, "d", low=-1.0)
    assert reward.score([], replies("", " \n")) == [0.5, 0.5]
    assert reward.score([], []) == []
    assert table.calls == []


def test_a_vector_of_zeros_has_a_cosine_of_zero_and_large_numbers_do_not_overflow():
    vectors = {"d": [1e300, 1e300], "zero": [0.0, 0.0], "large": [1e308, 1e308], "small": [1e-300, 1e-300]}
    reward = EmbeddingReward(Table(vectors), "d")
    assert reward.score([], replies("zero", "large", "small")) == pytest.approx([0.0, 1.0, 1.0])
    assert EmbeddingReward(Table(vectors, query=[0.0, 0.0]), "d").score([], replies("large")) == [0.0]


@pytest.mark.parametrize(
    ("vector", "query"),
    [
        ([math.nan, 1.0], None),
        ([math.inf, 1.0], None),
        ([1.0], None),
        ([], None),
        (["a", "b"], None),
        (None, None),
        ([1.0, 1.0], [math.nan, 1.0]),
        ([1.0, 1.0], [1.0, 1.0, 1.0]),
    ],
)
def test_what_is_no_vector_is_no_reward(vector, query):
    reward = EmbeddingReward(Table({**VECTORS, "odd": vector}, query), "d")
    for _ in range(2):
        with pytest.raises(RewardError, match="embeddings"):
            reward.score([], replies("odd", "same"))


def test_a_vector_too_few_is_no_reward():
    class Forgetful(Table):
        def embed_documents(self, texts):
            return super().embed_documents(texts)[:-1]

    with pytest.raises(RewardError, match="2 texts"):
        EmbeddingReward(Forgetful(VECTORS), "d").score([], replies("same", "half"))


@given(st.lists(st.text(), max_size=5), st.floats(-1, 0.5), st.floats(0.51, 1))
def test_a_reply_is_worth_between_nothing_and_all_whatever_stands_beside_it(texts, low, high):
    reward = EmbeddingReward(DeterministicFakeEmbedding(size=4), "d", value=3.0, low=low, high=high)
    together = reward.score([], replies(*texts))
    assert all(0.0 <= worth <= 3.0 for worth in together)
    np.testing.assert_allclose(together, [reward.score([], replies(text))[0] for text in texts], atol=1e-9)


def test_settings_that_compare_nothing_are_refused():
    for bad in ({"embeddings": object()}, {"description": " "}, {"value": math.nan}, {"low": 0.5, "high": 0.5},
                {"low": -2}, {"high": 1.5}):  # fmt: skip
        with pytest.raises(ConfigurationError):
            EmbeddingReward(**{"embeddings": Table(VECTORS), "description": "d", **bad})
