"""A pass holds few enough tokens, and gives the states and logits of the whole model."""

import copy

import pytest
import torch

from llm_auction_chain.models.local.passes import Passes, SharedPasses, finish, packs
from tests.families import build

FIRST, SECOND = [11, 5, 42, 3, 29, 17, 8], [9, 33, 21, 4]
LENGTHS = [3, 9, 1, 4, 4, 12, 2]


@pytest.fixture(scope="module")
def model():
    return build("llama")


def whole_states(model, text):
    with torch.inference_mode():
        return model.model(torch.tensor([text]), use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("padded", [False, True])
def test_a_pack_has_at_most_its_size_or_a_single_text(padded):
    groups = list(packs(LENGTHS, 10, padded=padded))
    assert sorted(place for group in groups for place in group) == list(range(len(LENGTHS)))
    for group in groups:
        lengths = [LENGTHS[place] for place in group]
        assert len(group) == 1 or (max(lengths) * len(group) if padded else sum(lengths)) <= 10
    assert len(groups) == 4


@pytest.mark.parametrize("size", [3, 5, 100])
@pytest.mark.parametrize("kind", [SharedPasses, Passes])
def test_states_are_those_of_whole_texts_whatever_the_size_of_a_pass(model, kind, size):
    passes = kind(copy.deepcopy(model), size)
    first, second = finish(passes.read([FIRST, SECOND]))
    assert torch.allclose(first.state, whole_states(model, FIRST)[-1], atol=1e-4)
    followed = dict(pair for several in passes.follow([(first, SECOND), (second, FIRST[:2])]) for pair in several)
    assert torch.allclose(followed[0], whole_states(model, FIRST + SECOND)[-4:], atol=1e-4)
    assert torch.allclose(followed[1], whole_states(model, SECOND + FIRST[:2])[-2:], atol=1e-4)


@pytest.mark.parametrize("kind", [SharedPasses, Passes])
def test_sequences_grow_behind_their_own_prefix_and_some_may_leave(model, kind):
    passes = kind(copy.deepcopy(model), 100)
    sequences = passes.behind(finish(passes.read([FIRST, SECOND])), [2, 1])
    passes.step(sequences, [1, 2, 3])
    sequences.select([[1], [0]])
    states = passes.step(sequences, [4, 5])
    assert torch.allclose(states[0], whole_states(model, [*FIRST, 2, 4])[-1], atol=1e-4)
    assert torch.allclose(states[1], whole_states(model, [*SECOND, 3, 5])[-1], atol=1e-4)


def test_logits_are_the_models_own(model):
    passes = Passes(model, 100)
    with torch.inference_mode():
        expected = model(torch.tensor([FIRST]), use_cache=False).logits[0]
    assert torch.allclose(passes.logits(whole_states(model, FIRST)), expected, atol=1e-4)
