"""A model in two parts: what makes states of tokens, and what makes logits of states."""

import copy
import dataclasses
from typing import Any

import torch
from transformers.utils import ModelOutput

__all__ = ["base_of", "head_of"]


def base_of(model: Any) -> Any:
    """Return the part of a model that makes states of tokens."""
    embedding = model.get_input_embeddings()
    for part in model.children():
        if any(module is embedding for module in part.modules()) and part is not model.get_output_embeddings():
            return part
    return model.base_model


def head_of(model: Any, base: Any) -> Any:
    """Return the model without its base: called with `inputs_embeds`, it makes logits of states.

    What heads do besides one product (scale, cap, cast, a layer of their own) stays the model's own business.
    """
    head = copy.copy(model)
    parts = ((name, _States(base) if part is base else part) for name, part in model._modules.items())  # noqa: SLF001
    head.__dict__ = {**model.__dict__, "_modules": dict(parts)}
    return head


class _States:
    """In place of a model's base: whatever is asked of it, the states it is given; all else is the base's."""

    def __init__(self, base: Any) -> None:
        self._base = base

    def __call__(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> ModelOutput:
        return _Output(last_hidden_state=inputs_embeds)

    @property
    def decoder(self) -> "_States":
        """Some heads ask the base's decoder."""
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)


@dataclasses.dataclass
class _Output(ModelOutput):  # type: ignore[misc]
    """What a head may look for in its base's output."""

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None
    cross_attentions: Any = None
    router_logits: Any = None
    cache_params: Any = None
