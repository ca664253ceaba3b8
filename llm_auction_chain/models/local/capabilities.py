"""What a device and a model can do: the dtype, the free memory, packed weights, and shared prefixes."""

import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from torch.nn.functional import linear

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.models.local.attention import Prefix
from llm_auction_chain.models.local.limits import memory_limit
from llm_auction_chain.models.local.passes import Passes, SharedPasses, finish
from llm_auction_chain.models.local.weights import load_pretrained, ours, quiet_transformers
from llm_auction_chain.validators import choice, refuse
from llm_auction_chain.waiting import exit_waits

__all__ = ["device_named", "dtype_named", "free_memory", "load_once", "passes_for", "window_of"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Settings of models whose masks choose tokens without telling the attention.
_CHOOSING = ("attention_chunk_size", "index_topk", "index_topk_blocks", "keep_window_size")
_WINDOW_IN_MASK = ("phimoe", "qwen2_moe")


def device_named(name: str) -> torch.device:
    """Return the device of this name, or the best one for "auto"."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise refuse("device", "one that torch can use here", name, str(error)) from error
    return device


def dtype_named(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of this name, or bfloat16 for "auto" where the device computes in it, else float32."""
    if choice("dtype", name, ("auto", *_DTYPES)) == "auto":
        return torch.bfloat16 if _computes_in_bfloat16(device) else torch.float32
    return _DTYPES[name]


_loaded: dict[tuple[Any, ...], Any] = {}
_loading = threading.Lock()


def load_once(
    make: Callable[..., _T],
    auto: Any,
    path_or_hub_id: str | Path,
    dtype: str,
    device: str,
    *,
    trust_remote_code: bool = False,
    **options: Any,
) -> _T:
    """Return `make(model, tokenizer, **options)`. The same arguments return the same object in this process.

    Models load one after another, because transformers changes settings of the process meanwhile. A loaded model waits
    for none of them.

    Raises:
        ConfigurationError: there is no such model, dtype or device, its weights are not complete, or they do not fit
            into the memory.
        MissingDependencyError: the model needs a library that is not installed.
    """
    torch_device = device_named(device)
    torch_dtype = dtype_named(dtype, torch_device)
    key = (make, str(path_or_hub_id), torch_dtype, str(torch_device), trust_remote_code, *options.values())
    if key not in _loaded:
        with _loading, exit_waits(), ours(auto, path_or_hub_id), quiet_transformers():
            if key not in _loaded:
                swap = psutil.swap_memory().free if torch_device.type == "cpu" else 0
                free = free_memory(torch_device) + swap
                model, tokenizer = load_pretrained(
                    auto, path_or_hub_id, torch_dtype, free=free, trust_remote_code=trust_remote_code
                )
                _loaded[key] = make(model.to(torch_device).eval(), tokenizer, **options)
    made: _T = _loaded[key]
    return made


def _computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for bfloat16, rather than an emulation."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return False


def free_memory(device: torch.device) -> int:
    """Return the number of bytes that this process may still take on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return int(min(psutil.virtual_memory().available, memory_limit()))


def window_of(config: Any) -> int:
    """Return how many tokens the model of a text configuration reads.

    Some models rotate all keys of a long text differently. Their window ends where short texts end.
    """
    window = int(getattr(config, "max_position_embeddings", None) or 0)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        window = int(rope.get("original_max_position_embeddings") or window)
    return window if window > 0 else sys.maxsize  # some models without a limit say -1


def passes_for(model: Any, size: int, *, compiled: bool = False, packed: bool = False) -> Passes:
    """Return passes that share prefixes where they give the states of full passes, else full passes.

    A short probe decides, instead of a list of architectures: a state space, a bias by distance, or anything else that
    our attention does not know changes the states. The configuration shows what short texts cannot show.

    With `packed`, packed weights may replace the model's own, and the model then cannot be saved.

    Raises:
        ConfigurationError: states are no numbers or depend on later tokens, or logits depend on more than states.
    """
    full = Passes(model, size)
    shareable = not _hides_tokens(model.config.get_text_config())
    own_attention = model.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
    if shareable:
        # The only attention of transformers that leaves nothing out, a soft cap for example.
        model.set_attn_implementation("eager")
    expected = _probe(full)
    if not bool(expected.isfinite().all()):
        raise ConfigurationError(
            f"{type(model).__name__} in {model.dtype} computes what is no finite number. Try dtype='float32', or get "
            "the weights anew."
        )
    _check_causal(full)
    _check_logits(full, expected)
    if shareable and (shared := _shared(full, expected, compiled=compiled)) is not None:
        return (packed and _packed(full, expected, compiled=compiled)) or shared
    model.set_attn_implementation(own_attention)
    _log.warning(
        "%s keeps more of a text than the keys and values of its attention. Every pass reads prompt and reply in full, "
        "which is correct and slow.",
        type(model).__name__,
    )
    return full


def _shared(full: Passes, expected: torch.Tensor, *, compiled: bool) -> SharedPasses | None:
    """Return passes that share prefixes if their states are the expected ones, else None."""
    try:
        passes = SharedPasses(full.model, full.size, compiled=compiled)
        # Without keys and values the model does not call our attention.
        return passes if _close(_probe(passes), expected) and passes.token_bytes else None
    except Exception:  # noqa: BLE001 - any error means that this model cannot do it
        _log.debug("%s does not allow it", type(full.model).__name__, exc_info=True)
        return None


def _hides_tokens(config: Any) -> bool:
    """Return whether the model hides tokens of long texts by a mask that the attention does not know."""
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        return True
    if any(getattr(config, name, None) is not None for name in _CHOOSING):
        return True
    return config.model_type in _WINDOW_IN_MASK and getattr(config, "sliding_window", None) is not None


def _probe(passes: Passes) -> torch.Tensor:
    """Return the states (tokens, hidden) of short prompts, of texts that follow them and of texts that grow."""
    size = passes.model.config.get_text_config().vocab_size
    text = [(7 * k + 1) % size for k in range(12)]
    first, second = finish(passes.read([text[:5], text[3:6]]))
    followed = dict(pair for pairs in passes.follow([(first, text[5:9]), (second, text[:2])]) for pair in pairs)
    sequences = passes.behind([first, second], [2, 1])
    grown = [passes.step(sequences, text[k : k + 3]) for k in (2, 6)]
    return torch.cat([first.state[None], followed[0], followed[1], *grown])


def _check_causal(passes: Passes) -> None:
    """Raise ConfigurationError if the states of tokens depend on the tokens behind them."""
    config = passes.model.config.get_text_config()
    size = config.vocab_size
    # Longer than the chunks of most models that cut texts, and 71 tokens end within a block of any usual length.
    text = [(7 * k + 1) % size for k in range(min(window_of(config) // 2, 74) - 3)]
    # Both in one pass, where equal rows are rounded alike.
    pairs = [(Prefix(), [*text, *[token] * 3]) for token in (2 % size, 3 % size)]
    read = dict(pair for several in passes.follow(pairs) for pair in several)
    both = [read[place][: len(text)] for place in (0, 1)]
    # The last token has what differs in sight, if any has.
    if not (_close(*both, rounding=1e-3) and _close(*(states[-1:] for states in both))):
        raise ConfigurationError(
            f"{type(passes.model).__name__} reads ahead here: the probability of a token depends on later ones. Use a "
            "causal language model."
        )


def _check_logits(passes: Passes, states: torch.Tensor) -> None:
    """Raise ConfigurationError unless the logits behind the probe's first states are the model's own."""
    size = passes.model.config.get_text_config().vocab_size
    ids = torch.tensor([[(7 * k + 1) % size for k in range(9)]], device=passes.model.device)
    with torch.inference_mode():
        expected = passes.model(input_ids=ids, use_cache=False).logits[0, 4:]
    if not _close(passes.logits(states[:5]), expected):
        raise ConfigurationError(
            f"{type(passes.model).__name__} computes its logits from more than its states. Serve it with vLLM and use "
            "ChatVLLM."
        )


def _close(values: torch.Tensor, expected: torch.Tensor, *, rounding: float | None = None) -> bool:
    """Return whether rows are equal up to rounding. A few rows may differ, where rounding chooses other experts."""
    if rounding is None:
        rounding = 1e-3 if values.dtype == torch.float32 else 0.1
    off = (values - expected).float().norm(dim=-1)
    return bool((off <= rounding * expected.float().norm(dim=-1)).float().mean() >= 0.5)  # noqa: PLR2004 - half of them


class PackedLinear(torch.nn.Module):
    """A linear layer whose matrix oneDNN reorders once, instead of in every product.

    `torch.compile` uses the same products in frozen models. torch has no public name for them.
    """

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        # A model that reads more of a weight than its shape and dtype fails here, and then keeps its own layers.
        self.weight = torch.empty_like(layer.weight, device="meta", requires_grad=False)
        self._ready = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().contiguous(), None)  # noqa: SLF001

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return `rows @ weight.T + bias`."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._ready, self.bias, "none", [], "")  # noqa: SLF001
        return product


def can_pack(model: Any) -> bool:
    """Return whether a model's weights can be packed: on a CPU with oneDNN, in bfloat16 or float32."""
    if model.device.type != "cpu" or model.dtype not in {torch.bfloat16, torch.float32}:
        return False
    layer = torch.nn.Linear(64, 32, bias=False, dtype=model.dtype)
    rows = torch.randn(3, 64, dtype=model.dtype)
    try:
        with torch.inference_mode():
            return torch.allclose(PackedLinear(layer)(rows), linear(rows, layer.weight), rtol=0.05, atol=0.05)
    except (AttributeError, RuntimeError):
        return False


def _packed(full: Passes, expected: torch.Tensor, *, compiled: bool) -> SharedPasses | None:
    """Return passes of the model with packed weights. Where that fails, return None and restore the model."""
    model = full.model
    if not can_pack(model):
        return None
    logits = full.logits(expected)
    parts = ((parent, name, layer) for parent in model.modules() for name, layer in parent.named_children())
    replaced = [(parent, name, layer) for parent, name, layer in parts if type(layer) is torch.nn.Linear]
    for parent, name, layer in replaced:
        setattr(parent, name, PackedLinear(layer))
    # The other parameters map the file of all weights. A copy lets go of its pages.
    for parameter in model.parameters():
        if parameter.device.type != "meta":
            parameter.data = parameter.data.clone()
    passes = _shared(full, expected, compiled=compiled)
    if passes is not None and _close(passes.logits(expected), logits):
        return passes
    for parent, name, layer in replaced:
        setattr(parent, name, layer)
    return None
