"""Which passes a model allows: it is asked, and not looked up."""

import logging
from collections.abc import Callable
from typing import Any

import torch

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.models.local.packing import can_pack, pack
from llm_auction_chain.models.local.passes import FullPasses, Passes, SharedPasses, finish

__all__ = ["passes_for"]

_log = logging.getLogger(__name__)
# What tells that tokens are chosen by a mask which the attention is not told of.
_CHOOSING = ("attention_chunk_size", "index_topk", "index_topk_blocks", "keep_window_size")
_WINDOW_IN_MASK = ("phimoe", "qwen2_moe")


def passes_for(model: Any, size: int, *, compiled: bool = False, packed: bool = False) -> Passes:
    """Return passes that share prefixes where they give the states of full passes, else full passes.

    The model is asked, rather than a list of architectures: a state space, a bias by distance, or anything else that an
    attention like ours is not told of, shows in the states. What short texts don't show is read in its configuration.

    Args:
        model: a transformers causal language model.
        size: the most tokens of one pass.
        compiled: whether `torch.compile` is asked for.
        packed: whether the model's weights may be replaced by packed ones, after which it cannot be saved.

    Raises:
        ConfigurationError: the logits behind the states are not the model's.
    """
    full = FullPasses(model, size)
    shareable = not _hides_tokens(model.config.get_text_config())
    given = model.config._attn_implementation  # noqa: SLF001 - transformers has no public word for it
    if shareable:
        # Of all attentions that come with transformers this one leaves nothing out, a soft cap for example.
        model.set_attn_implementation("eager")
    expected = _probe(full)
    _check_logits(full, expected)
    shared = _checked(model, expected, lambda: SharedPasses(model, size, compiled=compiled)) if shareable else None
    if shared is not None:
        return (packed and _packed(model, expected, size, compiled=compiled)) or shared
    model.set_attn_implementation(given)
    _log.warning(
        "%s keeps more of a text than the keys and values of its attention. Its replies are drawn and scored by full "
        "passes over prompt and reply, which is right and slow.",
        type(model).__name__,
    )
    return full


def _checked(model: Any, expected: torch.Tensor, make: Callable[[], SharedPasses]) -> SharedPasses | None:
    """Return passes whose states are those expected; None where the model does not allow them."""
    try:
        if _close(_probe(passes := make()), expected):
            return passes
    except Exception:  # noqa: BLE001 - whatever it is, this model cannot do it
        _log.debug("%s does not allow it", type(model).__name__, exc_info=True)
    return None


def _packed(model: Any, expected: torch.Tensor, size: int, *, compiled: bool) -> SharedPasses | None:
    """Return passes of the model with its weights packed; None, and the model as it was, where that does not work."""
    if not can_pack(model):
        return None
    logits = FullPasses(model, size).logits(expected)
    replaced = pack(model)
    passes = _checked(model, expected, lambda: SharedPasses(model, size, compiled=compiled))
    if passes is not None and _close(passes.logits(expected), logits):
        return passes
    for parent, name, layer in replaced:
        setattr(parent, name, layer)
    return None


def _hides_tokens(config: Any) -> bool:
    """Return whether long texts are seen through a mask that is made outside of the attention and unknown to it."""
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        return True
    if any(getattr(config, name, None) is not None for name in _CHOOSING):
        return True
    return config.model_type in _WINDOW_IN_MASK and getattr(config, "sliding_window", None) is not None


def _probe(passes: Passes) -> torch.Tensor:
    """Return the states (tokens, hidden) of a few prompts, of what follows them and of what grows behind them."""
    size = passes.model.config.get_text_config().vocab_size
    text = [(7 * k + 1) % size for k in range(12)]
    first, second = finish(passes.read([text[:5], text[3:6]]))
    followed = dict(pair for pairs in passes.follow([(first, text[5:9]), (second, text[:2])]) for pair in pairs)
    sequences = passes.behind([first, second], [2, 1])
    grown = [passes.step(sequences, text[k : k + 3]) for k in (2, 6)]
    return torch.cat([first.state[None], followed[0], followed[1], *grown])


def _check_logits(passes: Passes, states: torch.Tensor) -> None:
    """Raise ConfigurationError unless the logits behind the probe's first states are the model's own."""
    size = passes.model.config.get_text_config().vocab_size
    ids = torch.tensor([[(7 * k + 1) % size for k in range(9)]], device=passes.model.device)
    with torch.inference_mode():
        expected = passes.model(input_ids=ids, use_cache=False).logits[0, 4:]
    if not _close(passes.logits(states[:5]), expected):
        raise ConfigurationError(
            f"{type(passes.model).__name__} makes its logits of more than its states. Serve it with vLLM and use "
            "ChatVLLM."
        )


def _close(values: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether rows are equal but for rounding; where experts are chosen, a few may be chosen otherwise."""
    rounding = 1e-3 if values.dtype == torch.float32 else 0.1
    off = (values - expected).float().norm(dim=-1) / expected.float().norm(dim=-1)
    return bool(off.median() < rounding)
