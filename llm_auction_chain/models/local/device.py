"""Where a model computes, in which dtype, and how much memory is free there."""

import psutil
import torch

from llm_auction_chain.errors import ConfigurationError

__all__ = ["device_named", "dtype_named", "free_memory"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def device_named(name: str) -> torch.device:
    """Return the device named, or the best one for "auto"."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ConfigurationError(f"device={name!r} is not one torch can use here: {error}") from error
    return device


def dtype_named(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype named, or bfloat16 for "auto" where the device computes in it, else float32."""
    if name == "auto":
        return torch.bfloat16 if _computes_in_bfloat16(device) else torch.float32
    if name not in _DTYPES:
        raise ConfigurationError(f"dtype={name!r} is none of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for bfloat16, rather than an emulation."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return False


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be taken on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return int(psutil.virtual_memory().available)
