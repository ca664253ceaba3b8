"""A pass holds few enough tokens, and gives the states and logits of the whole model."""

import copy
from itertools import takewhile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_auction_chain.models.local import passes as passes_module
from llm_auction_chain.models.local.attention import Prefix
from llm_auction_chain.models.local.passes import Passes, SharedPasses, finish, packs
from tests.families import build
from tests.tiny import tokens_of_prompts

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


@pytest.mark.parametrize("size", [3, 5, 100])
def test_only_what_no_known_prompt_begins_with_is_read(model, size, monkeypatch):
    passes = SharedPasses(copy.deepcopy(model), size)
    passes.most_cached = 100
    prompts = [FIRST, FIRST + SECOND, FIRST[:3] + SECOND, SECOND, FIRST[:5], FIRST]
    read = tokens_of_prompts(monkeypatch)
    prefixes = finish(passes.read(prompts))
    assert sum(read) == len(FIRST) + len(SECOND) + len(SECOND) + len(SECOND) + 1, "of a shorter one the last token"
    assert prefixes[0] is prefixes[5]
    for prompt, prefix in zip(prompts, prefixes, strict=True):
        assert prefix.tokens == prompt
        assert torch.allclose(prefix.state, whole_states(model, prompt)[-1], atol=1e-4)
    read.clear()
    assert finish(passes.read(prompts)) == prefixes
    assert not read
    (further,) = finish(passes.read([[*FIRST, *SECOND, 7, 8]]))
    assert sum(read) == 2
    assert torch.allclose(further.state, whole_states(model, [*FIRST, *SECOND, 7, 8])[-1], atol=1e-4)


PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(reads=st.lists(PROMPTS, min_size=1, max_size=4), most=st.integers(0, 30), size=st.integers(1, 12))
def test_what_stays_changes_no_state_and_is_bounded(model, reads, most, size):
    passes = SharedPasses(model, size)
    passes.most_cached = most
    for prompts in reads:
        for prompt, prefix in zip(prompts, finish(passes.read(prompts)), strict=True):
            assert prefix.tokens == prompt
            assert torch.allclose(prefix.state, whole_states(model, prompt)[-1], atol=1e-4)
            followed = dict(pair for several in passes.follow([(prefix, SECOND)]) for pair in several)
            assert torch.allclose(followed[0], whole_states(model, prompt + SECOND)[-4:], atol=1e-4)
        kept = list(passes._cached.values())
        tokens = [keys.shape[1] for prefix in kept for keys, _ in prefix.layers.values()]
        assert sum(tokens) <= most * model.config.num_hidden_layers
        assert not any(prefix.source for prefix in kept), "a source would hold more memory"


def test_the_prompts_that_were_read_last_stay(model, monkeypatch):
    passes = SharedPasses(copy.deepcopy(model), 100)
    passes.most_cached = len(FIRST) + len(SECOND)
    finish(passes.read([FIRST, SECOND]))
    finish(passes.read([FIRST]))
    finish(passes.read([[1, 2]]))
    read = tokens_of_prompts(monkeypatch)
    finish(passes.read([FIRST]))
    assert not read
    finish(passes.read([list(range(30, 50))]))  # too long to stay
    assert sum(read) == 20
    finish(passes.read([FIRST]))
    assert sum(read) == 20
    finish(passes.read([SECOND]))
    assert sum(read) == 24


TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple)


def shared(one, other):
    return len([*takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))])


@given(known=st.lists(TEXTS, max_size=30, unique=True), prompt=TEXTS)
def test_a_prompt_is_compared_with_two_of_those_that_stay_and_begins_with_the_longest_part_of_any(known, prompt):
    compared = []

    def equal(one, other):
        compared.append(other)
        return shared(one, other)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes_module, "_shared_length", equal)
        begun = passes_module._shared_start(prompt, {other: Prefix(tokens=[*other]) for other in known}, sorted(known))
    assert len(begun.tokens) == max((shared(prompt[:-1], other) for other in known), default=0)
    assert len(compared) <= 2


def test_an_abandoned_read_leaves_nothing_behind(model):
    passes = SharedPasses(copy.deepcopy(model), 3)
    passes.most_cached = 100
    steps = passes.read([FIRST])
    next(steps)
    steps.close()
    (prefix,) = finish(passes.read([FIRST]))
    assert torch.allclose(prefix.state, whole_states(model, FIRST)[-1], atol=1e-4)
