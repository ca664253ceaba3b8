"""A device computes in its own dtype, and packed weights change no law beyond rounding."""

import copy
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.models.local import capabilities
from llm_auction_chain.models.local.capabilities import PackedLinear, can_pack, dtype_named, window_of
from llm_auction_chain.models.local.engine import Engine
from llm_auction_chain.models.local.sampler import Sampler
from tests.families import build, words

PROMPTS = [[11, 5, 42, 3, 29, 17, 8], [9, 33, 21, 4]]
REPLIES = [[6], [40, 12, 9], [44, 10, 27, 58, 35]]
ROUNDING = {torch.bfloat16: 0.1, torch.float32: 1e-4}


def scores(engine):
    return engine.score(PROMPTS, np.eye(2), REPLIES, Sampler())


def layers(model):
    return {type(module) for module in model.modules() if type(module) in {torch.nn.Linear, PackedLinear}}


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=str)
def packed_dtype(request):
    if not can_pack(build("llama").to(request.param)):
        pytest.skip("this processor packs no weights")
    return request.param


@pytest.mark.parametrize("family", ["llama", "qwen2-tied-sliding", "gpt-neox", "phi3"])
def test_packed_weights_give_the_same_log_probabilities(family, packed_dtype):
    model = build(family).to(packed_dtype)
    packed = Engine(copy.deepcopy(model), words(), packed=True)
    assert layers(packed.model) == {PackedLinear}
    expected = scores(Engine(model, words()))
    assert scores(packed) == pytest.approx(expected, abs=ROUNDING[packed_dtype])
    assert np.ptp(expected) > 1.0, "the replies are not equally likely, so another law would show"


def test_a_packed_product_is_that_of_its_layer(packed_dtype):
    layer = torch.nn.Linear(96, 40, dtype=packed_dtype)
    rows = torch.randn(5, 96, dtype=packed_dtype, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact = rows.double() @ layer.weight.double().T + layer.bias.double()
        product = PackedLinear(layer)(rows).double()
    assert product.numpy() == pytest.approx(exact.numpy(), abs=ROUNDING[packed_dtype] / 5)


def test_a_processor_that_packs_nothing_keeps_the_layers(monkeypatch):
    monkeypatch.setattr("llm_auction_chain.models.local.capabilities.can_pack", lambda model: False)
    model = build("llama").to(torch.bfloat16)
    assert layers(Engine(model, words(), packed=True).model) == {torch.nn.Linear}


def test_a_users_own_model_is_not_packed():
    assert layers(Engine(build("llama").to(torch.bfloat16), words()).model) == {torch.nn.Linear}


def test_float16_is_not_packed():
    assert not can_pack(build("llama").to(torch.float16))


def test_a_model_that_reads_its_weights_stays_as_it_was(packed_dtype):
    model = build("llama").to(packed_dtype)
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


def test_free_memory_is_what_the_limit_of_a_container_leaves(monkeypatch):
    for limit, available, free in [(1000, 2000, 1000), (3000, 2000, 2000), (float("inf"), 2000, 2000)]:
        monkeypatch.setattr(capabilities, "memory_limit", lambda limit=limit: limit)
        memory = SimpleNamespace(available=available)
        monkeypatch.setattr(capabilities.psutil, "virtual_memory", lambda memory=memory: memory)
        assert capabilities.free_memory(torch.device("cpu")) == free


SMALL = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 0,
}  # fmt: skip
AHEAD = {
    "llama": {"is_causal": False}, "gpt2": {"is_causal": False}, "bert": {}, "roberta": {"max_position_embeddings": 64},
    "gemma3_text": {"head_dim": 8, "use_bidirectional_attention": True},
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", AHEAD)
def test_a_model_that_reads_ahead_is_refused(family, dtype):
    torch.manual_seed(2)
    config = AutoConfig.for_model(family, **{**SMALL, **AHEAD[family]})
    config.is_causal = AHEAD[family].get("is_causal", True)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = config.is_causal
    with pytest.raises(ConfigurationError, match=r"reads ahead here: .* Use a causal language model"):
        Engine(model, words())


@pytest.mark.parametrize("block", [2, 3, 4, 8, 16])
def test_a_model_that_reads_ahead_within_blocks_is_refused(block):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL)).eval()

    def mix(_module, _inputs, states):
        """Add the next token's state to every token's but the last of a block."""
        within = torch.arange(1, states.shape[1] + 1) % block != 0
        return states + torch.roll(states, -1, dims=1) * within[:, None]

    model.model.layers[-1].register_forward_hook(mix)
    with pytest.raises(ConfigurationError, match="reads ahead here"):
        Engine(model, words())


def test_a_decoder_made_of_an_encoder_is_causal():
    config = AutoConfig.for_model("bert", **SMALL, is_decoder=True)
    Engine(AutoModelForCausalLM.from_config(config).eval(), words())


@pytest.mark.parametrize("window", [{}, {"max_position_embeddings": None}, {"max_position_embeddings": -1}])
def test_a_model_without_a_window_has_no_limit(window):
    assert window_of(SimpleNamespace(**window)) == sys.maxsize


def test_keys_are_not_kept_where_longer_texts_turn_them_otherwise():
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    assert window_of(SimpleNamespace(max_position_embeddings=131072, rope_parameters=rope)) == 4096


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(number):
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] = number
    with pytest.raises(
        ConfigurationError, match=r"LlamaForCausalLM in torch.float32 computes what is no finite number"
    ):
        Engine(model, words())


def test_a_loaded_model_waits_for_no_other_that_loads(seven_words, tmp_path, monkeypatch):
    loaded = Engine.load(seven_words, "float32", "cpu")
    loading, go = threading.Event(), threading.Event()

    def slow(*_, **__):
        loading.set()
        go.wait(60)
        raise ConfigurationError("enough")

    monkeypatch.setattr(capabilities, "load_pretrained", slow)
    failures = []

    def load():
        try:
            Engine.load(tmp_path, "float32", "cpu")
        except ConfigurationError as error:
            failures.append(str(error))

    thread = threading.Thread(target=load)
    thread.start()
    assert loading.wait(60)
    assert Engine.load(seven_words, "float32", "cpu") is loaded
    assert not failures
    go.set()
    thread.join()
    assert failures == ["enough"]
