"""A device computes in its own dtype, and packed weights change no law beyond the rounding of bfloat16."""

import copy

import numpy as np
import pytest
import torch

from llm_auction_chain.models.local.capabilities import PackedLinear, can_pack, dtype_named
from llm_auction_chain.models.local.engine import Engine
from llm_auction_chain.models.local.sampler import Sampler
from tests.families import build, words

PROMPTS = [[11, 5, 42, 3, 29, 17, 8], [9, 33, 21, 4]]
REPLIES = [[6], [40, 12, 9], [44, 10, 27, 58, 35]]


def scores(engine):
    return engine.score(PROMPTS, np.eye(2), REPLIES, Sampler())


def layers(model):
    return {type(module) for module in model.modules() if type(module) in {torch.nn.Linear, PackedLinear}}


@pytest.fixture
def needs_packing():
    if not can_pack(build("llama").to(torch.bfloat16)):
        pytest.skip("this processor packs no weights")


@pytest.mark.usefixtures("needs_packing")
@pytest.mark.parametrize("family", ["llama", "qwen2-tied-sliding", "gpt-neox", "phi3"])
def test_packed_weights_give_the_same_log_probabilities(family):
    model = build(family).to(torch.bfloat16)
    packed = Engine(copy.deepcopy(model), words(), packed=True)
    assert layers(packed.model) == {PackedLinear}
    expected = scores(Engine(model, words()))
    assert scores(packed) == pytest.approx(expected, abs=0.1)
    assert np.ptp(expected) > 1.0, "the replies are not equally likely, so another law would show"


@pytest.mark.usefixtures("needs_packing")
def test_a_packed_product_is_that_of_its_layer():
    layer = torch.nn.Linear(96, 40, dtype=torch.bfloat16)
    rows = torch.randn(5, 96, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact = rows.double() @ layer.weight.double().T + layer.bias.double()
        assert PackedLinear(layer)(rows).double().numpy() == pytest.approx(exact.numpy(), abs=0.02)


def test_a_processor_that_packs_nothing_keeps_the_layers(monkeypatch):
    monkeypatch.setattr("llm_auction_chain.models.local.capabilities.can_pack", lambda model: False)
    model = build("llama").to(torch.bfloat16)
    assert layers(Engine(model, words(), packed=True).model) == {torch.nn.Linear}


def test_a_users_own_model_is_not_packed():
    assert layers(Engine(build("llama").to(torch.bfloat16), words()).model) == {torch.nn.Linear}


def test_only_bfloat16_is_packed():
    assert not can_pack(build("llama"))
    assert layers(Engine(build("llama"), words(), packed=True).model) == {torch.nn.Linear}


@pytest.mark.usefixtures("needs_packing")
def test_a_model_that_reads_its_weights_stays_as_it_was():
    model = build("llama").to(torch.bfloat16)
    mlp = model.model.layers[0].mlp
    layer = mlp.down_proj
    expected = scores(Engine(copy.deepcopy(model), words()))
    mlp.forward = lambda rows: torch.nn.functional.linear(
        mlp.act_fn(mlp.gate_proj(rows)) * mlp.up_proj(rows), mlp.down_proj.weight
    )
    engine = Engine(model, words(), packed=True)
    assert mlp.down_proj is layer
    assert layers(model) == {torch.nn.Linear}
    assert scores(engine) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("computes", [True, False])
def test_auto_dtype_is_what_the_device_computes_in(monkeypatch, computes):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: computes, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    expected = torch.bfloat16 if computes else torch.float32
    assert dtype_named("auto", torch.device("cpu")) == expected
    assert dtype_named("auto", torch.device("mps")) == torch.float32
