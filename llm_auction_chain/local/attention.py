"""Attention of many sequences behind shared prefixes: what a transformers model calls in place of its own.

A pass reads the tokens of all sequences as one row, (1, tokens), in groups: a group's sequences stand behind one
prefix, whose keys and values exist once. Every query sees its prefix and its own sequence, in one softmax.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

__all__ = ["NAME", "Group", "Pass", "Prefix"]

NAME = "shared_prefix"
KeysValues = tuple[torch.Tensor, torch.Tensor]
# Tokens for which room is made at once behind a growing sequence. A product over all of the room takes less time than
# one over its used part, which would have to be copied first.
_GROWS_BY = 16
_VECTOR = 32
# What some models tell their attention, and ours cannot do.
_UNKNOWN = ("block_indices", "indices", "position_bias", "sinks")


@dataclasses.dataclass(eq=False, kw_only=True)
class Prefix:
    """A prompt, or as much of it as has been read.

    Attributes:
        tokens: those read.
        layers: keys and values of each layer, (key heads, tokens, width).
        state: (hidden,), behind the last token.
    """

    tokens: list[int] = dataclasses.field(default_factory=list)
    layers: dict[int, KeysValues] = dataclasses.field(default_factory=dict)
    state: torch.Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Append what a layer has read of the next tokens."""
        if layer in self.layers:
            known = self.layers[layer]
            self.layers[layer] = (torch.cat([known[0], keys], 1), torch.cat([known[1], values], 1))
        else:
            self.layers[layer] = (keys.contiguous(), values.contiguous())


@dataclasses.dataclass(eq=False, kw_only=True)
class Group:
    """Sequences of one length behind one prefix.

    Attributes:
        prefix: what they stand behind.
        count: how many sequences.
        fresh: how many tokens of each are read in this pass; 1 where they grow.
        reads: whether the one sequence becomes a part of its prefix.
        grows: whether the sequences' keys and values are kept for the next pass.
        length: how many tokens of each sequence were kept.
        layers: those tokens' keys and values, (key heads, count, room, width).
    """

    prefix: Prefix
    count: int
    fresh: int = 1
    reads: bool = False
    grows: bool = False
    length: int = 0
    layers: dict[int, KeysValues] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many tokens a pass reads."""
        return self.count * self.fresh

    def positions(self, device: torch.device) -> torch.Tensor:
        """Return the place (size,) of every token in its text."""
        start = len(self.prefix.tokens) + self.length
        return torch.arange(start, start + self.fresh, device=device).repeat(self.count)

    def select(self, places: Sequence[int]) -> None:
        """Keep only the sequences at these places."""
        self.count = len(places)
        for layer, both in self.layers.items():
            kept = torch.tensor(places, dtype=torch.int64, device=both[0].device)
            self.layers[layer] = both[0].index_select(1, kept), both[1].index_select(1, kept)

    def own(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> KeysValues:
        """Return what each sequence sees of itself, (key heads * count, tokens, width), this pass included.

        Where sequences grow, there is room behind the last token; it holds zeros, and must be hidden.
        """
        heads = keys.shape[0]
        if not self.grows:
            return keys.reshape(heads * self.count, self.fresh, -1), values.reshape(heads * self.count, self.fresh, -1)
        if layer not in self.layers or self.layers[layer][0].shape[2] == self.length:
            known = self.layers.get(layer, (None, None))
            self.layers[layer] = self._widened(keys, known[0]), self._widened(values, known[1])
        room = self.layers[layer]
        room[0][:, :, self.length] = keys
        room[1][:, :, self.length] = values
        return room[0].flatten(0, 1), room[1].flatten(0, 1)

    def _widened(self, fresh: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
        """Return a buffer with room for more tokens."""
        room = fresh.new_zeros(fresh.shape[0], self.count, self.length + _GROWS_BY, fresh.shape[-1])
        if known is not None:
            room[:, :, : self.length] = known
        return room


class Pass:
    """The tokens that the model reads at once.

    Attributes:
        groups: in the order of their tokens.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        self._biases: dict[tuple[int, ...], torch.Tensor] = {}

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make every layer of a model that is called inside attend as this pass says.

        Not an argument of the model's: not every family hands unknown arguments down to its attention.
        """
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return what the tokens attend to, (tokens, heads, width).

        Args:
            layer: which one asks.
            query: (heads, tokens, width).
            keys: (key heads, tokens, width), of the tokens of this pass.
            values: as the keys.
            scaling: factor of the scores.
            window: how many tokens a token sees, itself included; None is all before it.
            softcap: scores are squashed to stay below it.
            sinks: (heads,) scores of a token that has no value.
        """
        attended = query.new_empty(query.shape[1], query.shape[0], values.shape[-1])
        start = 0
        for group in self.groups:
            tokens = slice(start, start := start + group.size)
            attended[tokens] = self._group(
                group, layer, query[:, tokens] * scaling, keys[:, tokens], values[:, tokens], window, softcap, sinks
            )
        return attended

    def _group(
        self,
        group: Group,
        layer: int,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return what one group's tokens attend to, (tokens, heads, width).

        Scores have the shape (key heads, count, fresh, queries of a key head, keys): a key head's queries are rows of
        one matrix product, so that no key is repeated.
        """
        heads, shared = keys.shape[0], query.shape[0] // keys.shape[0]
        width, per_row = group.size * shared, group.fresh * shared
        rows = query.reshape(heads, shared, group.size, -1).transpose(1, 2).reshape(heads, width, -1).contiguous()
        own_keys, own_values = group.own(layer, keys, values)
        earlier = group.prefix.layers.get(layer)
        before, seen = 0 if earlier is None else earlier[0].shape[1], own_keys.shape[1]
        scores = rows.new_empty(heads, width, _rounded(before + seen))
        scores[..., before + seen :] = -torch.inf
        own = _squash(torch.bmm(rows.view(-1, per_row, rows.shape[-1]), own_keys.transpose(1, 2)), softcap)
        blocks = scores.view(heads, group.count, group.fresh, shared, -1)
        bias = self._bias(group, before, seen, window, scores)
        torch.add(own.view(*blocks.shape[:-1], seen), bias[..., before:], out=blocks[..., before : before + seen])
        if earlier is not None:
            theirs = _squash(torch.bmm(rows, earlier[0].transpose(1, 2)), softcap).view(*blocks.shape[:-1], before)
            if window is None:
                blocks[..., :before] = theirs
            else:
                torch.add(theirs, bias[..., :before], out=blocks[..., :before])
        weights = _softmax(scores, sinks)
        attended = torch.bmm(weights[..., before : before + seen].reshape(-1, per_row, seen), own_values)
        attended = attended.view(heads, width, -1)
        if earlier is not None:
            attended = torch.baddbmm(attended, weights[..., :before], earlier[1])
        if group.reads:
            group.prefix.extend(layer, keys, values)
        return attended.view(heads, group.size, shared, -1).transpose(0, 1).flatten(1, 2)

    def _bias(self, group: Group, before: int, seen: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """Return what is added to scores, (fresh, 1, before + seen): -inf where a token may not look, else 0."""
        end = before + group.length + group.fresh
        reach = end if window is None else min(window, end)
        key = (group.fresh, before, seen, end, reach)
        if key not in self._biases:
            places = torch.arange(before + seen, device=like.device)
            queries = places[end - group.fresh : end, None, None]
            hidden = (places > queries) | (places <= queries - reach)
            self._biases[key] = like.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        return self._biases[key]


def _rounded(keys: int) -> int:
    """Return the number of scores in a row: on CPUs a softmax over whole vectors takes a third less time."""
    return -(-keys // _VECTOR) * _VECTOR


def _squash(scores: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Return the scores, kept below the cap where there is one."""
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Return the softmax of the scores (key heads, rows, keys), a sink taking part in it."""
    if sinks is None:
        return scores.softmax(-1)
    heads, rows, _ = scores.shape
    shared = sinks.numel() // heads
    column = sinks.to(scores.dtype).view(heads, 1, shared).expand(heads, rows // shared, shared)
    return torch.cat([scores, column.reshape(heads, rows, 1)], -1).softmax(-1)[..., :-1]


_current: ContextVar[Pass | None] = ContextVar("pass", default=None)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as the current pass says; outside of any, as `sdpa` does."""
    current = _current.get()
    if current is None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return plain
    if unknown := [name for name in _UNKNOWN if options.get(name) is not None]:
        raise NotImplementedError(f"attention with {', '.join(unknown)}")
    scaling = options.get("scaling")
    attended = current.attend(
        int(module.layer_idx),  # type: ignore[arg-type]
        query[0],
        key[0],
        value[0],
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=options.get("sliding_window"),
        softcap=options.get("softcap"),
        sinks=options.get("s_aux"),
    )
    return attended[None], None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
