"""Packed weights change no law: the same tokens, and log-probabilities as close as bfloat16 is."""

import copy
import logging

import numpy as np
import pytest
import torch

from llm_auction_chain.models.local.engine import Engine
from llm_auction_chain.models.local.packing import PackedLinear, can_pack
from llm_auction_chain.models.local.sampler import Sampler
from tests.families import build, words

PROMPTS = [[11, 5, 42, 3, 29, 17, 8], [9, 33, 21, 4]]
REPLIES = [[6], [40, 12, 9], [44, 10, 27, 58, 35]]


def scores(engine):
    return engine.score(PROMPTS, np.eye(2), REPLIES, Sampler())


def layers(model):
    return {type(module) for module in model.modules() if type(module) in {torch.nn.Linear, PackedLinear}}


@pytest.mark.parametrize("family", ["llama", "qwen2-tied-sliding", "gpt-neox", "phi3"])
def test_packed_weights_give_the_same_log_probabilities(family):
    model = build(family).to(torch.bfloat16)
    packed = Engine(copy.deepcopy(model), words(), packed=True)
    assert scores(packed) == pytest.approx(scores(Engine(model, words())), abs=0.3)
    # What this machine cannot pack stays as it is; either way nothing is left half done.
    assert layers(packed.model) == ({PackedLinear} if can_pack(model) else {torch.nn.Linear})


def test_a_users_own_model_is_not_packed():
    assert layers(Engine(build("llama").to(torch.bfloat16), words()).model) == {torch.nn.Linear}


def test_only_bfloat16_is_packed():
    assert not can_pack(build("llama"))
    assert layers(Engine(build("llama"), words(), packed=True).model) == {torch.nn.Linear}


def test_a_model_that_looks_into_its_weights_stays_as_it_was(monkeypatch, caplog):
    model = build("llama").to(torch.bfloat16)
    layer = model.model.layers[0].mlp.down_proj
    expected = scores(Engine(copy.deepcopy(model), words()))

    def looking(rows):
        return torch.nn.functional.linear(rows, model.model.layers[0].mlp.down_proj.weight)

    model.model.layers[0].mlp.forward = lambda rows: looking(
        model.model.layers[0].mlp.act_fn(model.model.layers[0].mlp.gate_proj(rows))
        * model.model.layers[0].mlp.up_proj(rows)
    )
    with caplog.at_level(logging.DEBUG):
        engine = Engine(model, words(), packed=True)
    assert model.model.layers[0].mlp.down_proj is layer
    assert layers(model) == {torch.nn.Linear}
    assert scores(engine) == pytest.approx(expected, abs=1e-6)
