"""Weights in the order in which a CPU multiplies them, so that small batches don't wait for them to be reordered."""

from typing import Any

import torch
from torch.nn.functional import linear

__all__ = ["can_pack", "pack"]


class PackedLinear(torch.nn.Module):
    """A linear layer in bfloat16 whose matrix oneDNN has reordered once, instead of in every product.

    These are the products of models that `torch.compile` has frozen; torch has no public name for them.
    """

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        # What asks for more than shape and dtype is to fail, and the model then stays as it is.
        self.weight = torch.empty_like(layer.weight, device="meta", requires_grad=False)
        self._ready = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().contiguous(), None)  # noqa: SLF001

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return `rows @ weight.T + bias`."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._ready, self.bias, "none", [], "")  # noqa: SLF001
        return product


def can_pack(model: Any) -> bool:
    """Return whether a model's products can be packed: on a CPU with oneDNN, in bfloat16."""
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        return False
    layer = torch.nn.Linear(64, 32, bias=False, dtype=torch.bfloat16)
    rows = torch.randn(3, 64, dtype=torch.bfloat16)
    try:
        with torch.inference_mode():
            return torch.allclose(PackedLinear(layer)(rows), linear(rows, layer.weight), rtol=0.05, atol=0.05)
    except (AttributeError, RuntimeError):
        return False


def pack(model: Any) -> list[tuple[Any, str, torch.nn.Linear]]:
    """Replace the linear layers of a model, and return (parent, name, layer) of what was there."""
    replaced = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if type(layer) is torch.nn.Linear
    ]
    for parent, name, layer in replaced:
        setattr(parent, name, PackedLinear(layer))
    # What stays was read with all the rest from one file, whose pages it would hold in memory.
    for parameter in model.parameters():
        if parameter.device.type != "meta":
            parameter.data = parameter.data.clone()
    return replaced
