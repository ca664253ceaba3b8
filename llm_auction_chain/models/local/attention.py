"""Attention of many sequences behind shared prefixes: what a transformers model calls in place of its own.

A pass reads the tokens of all sequences as one row, (1, tokens). Sequences stand behind prefixes, whose keys and values
exist once. Every query sees its prefix and its own sequence, in one softmax.
"""

import abc
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from typing_extensions import override

__all__ = ["NAME", "Group", "Growing", "Pass", "Prefix", "Reading"]

NAME = "shared_prefix"
KeysValues = tuple[torch.Tensor, torch.Tensor]
_GROWS_BY = 16  # tokens for which room is made at once behind a growing sequence
_VECTOR = 32  # numbers of bfloat16 that the widest CPU registers hold
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


class How(NamedTuple):
    """What a layer asks of its attention.

    Attributes:
        layer: which one asks.
        scaling: factor of the scores.
        window: how many tokens a token sees, itself included; None is all before it.
        softcap: scores are squashed to stay below it.
        sinks: (heads,) scores of a token that has no value.
    """

    layer: int
    scaling: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None


class Pass(abc.ABC):
    """Tokens that the model reads at once."""

    @abc.abstractmethod
    def positions(self, device: torch.device) -> torch.Tensor:
        """Return the place (tokens,) of every token in its text."""

    @abc.abstractmethod
    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, how: How) -> torch.Tensor:
        """Return what the tokens attend to, (tokens, heads, width).

        Scores have the shape (key heads, tokens * queries of a key head, keys): a key head's queries are rows of one
        matrix product, so that no key is repeated.

        Args:
            query: (heads, tokens, width).
            keys: (key heads, tokens, width).
            values: as the keys.
            how: what the layer asks.
        """

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


@dataclasses.dataclass(kw_only=True)
class Group:
    """Texts of one length behind one prefix.

    Attributes:
        prefix: what they stand behind.
        count: how many texts.
        length: how many tokens each has.
        reads: whether the one text becomes a part of its prefix.
    """

    prefix: Prefix
    count: int
    length: int
    reads: bool = False

    @property
    def size(self) -> int:
        """How many tokens they have together."""
        return self.count * self.length


class Reading(Pass):
    """Whole texts, read at once.

    Attributes:
        groups: in the order of their tokens.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        self._biases: dict[tuple[int, ...], torch.Tensor] = {}

    @override
    def positions(self, device: torch.device) -> torch.Tensor:
        places = [
            torch.arange(len(group.prefix.tokens), len(group.prefix.tokens) + group.length, device=device)
            for group in self.groups
        ]
        return torch.cat([place.repeat(group.count) for place, group in zip(places, self.groups, strict=True)])

    @override
    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, how: How) -> torch.Tensor:
        attended = query.new_empty(query.shape[1], query.shape[0], values.shape[-1])
        start = 0
        for group in self.groups:
            tokens = slice(start, start := start + group.size)
            attended[tokens] = self._group(group, query[:, tokens], keys[:, tokens], values[:, tokens], how)
        return attended

    def _group(
        self, group: Group, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, how: How
    ) -> torch.Tensor:
        """Return what one group's tokens attend to, (tokens, heads, width)."""
        heads, seen = keys.shape[0], group.length
        rows = _rows(query, heads, how.scaling)
        earlier = group.prefix.layers.get(how.layer)
        before = 0 if earlier is None else earlier[0].shape[1]
        scores = rows.new_empty(heads, rows.shape[1], _rounded(seen + before))
        scores[..., seen + before :] = -torch.inf
        blocks = scores.view(heads, group.count, seen, -1, scores.shape[-1])
        own_keys, own_values = (part.reshape(heads * group.count, seen, -1) for part in (keys, values))
        own = _scores(rows.view(heads * group.count, -1, rows.shape[-1]), own_keys, how)
        bias = self._bias(before, seen, how.window, scores)
        torch.add(own.view(*blocks.shape[:-1], seen), bias[..., before:], out=blocks[..., :seen])
        if earlier is not None:
            theirs = _scores(rows, earlier[0], how).view(*blocks.shape[:-1], before)
            if how.window is None:
                blocks[..., seen : seen + before] = theirs
            else:
                torch.add(theirs, bias[..., :before], out=blocks[..., seen : seen + before])
        weights = _softmax(scores, how.sinks)
        attended = torch.bmm(weights[..., :seen].reshape(own.shape), own_values).view(heads, rows.shape[1], -1)
        if earlier is not None:
            attended = torch.baddbmm(attended, weights[..., seen : seen + before], earlier[1])
        if group.reads:
            group.prefix.extend(how.layer, keys, values)
        return _tokens(attended, group.size)

    def _bias(self, before: int, seen: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """Return what is added to scores, (seen, 1, before + seen): -inf where a token may not look, else 0."""
        end = before + seen
        reach = end if window is None else min(window, end)
        key = (before, seen, reach)
        if key not in self._biases:
            places = torch.arange(end, device=like.device)
            queries = places[before:, None, None]
            hidden = (places > queries) | (places <= queries - reach)
            self._biases[key] = like.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        return self._biases[key]


class Growing(Pass):
    """Sequences that get one token at a time, each behind its prefix.

    Their own keys and values lie in one buffer, with room for more tokens: a product over all of the room takes less
    time than one over its used part, which would have to be copied first.

    Attributes:
        prefixes: what they stand behind.
        counts: how many sequences stand behind each prefix, one prefix after another.
        length: how many tokens each sequence has.
    """

    def __init__(self, prefixes: Sequence[Prefix], counts: Sequence[int]) -> None:
        self.prefixes = prefixes
        self.counts = list(counts)
        self.length = 0
        self._layers: dict[int, KeysValues] = {}
        self._biases: dict[tuple[int, int], torch.Tensor] = {}

    def select(self, places: Sequence[Sequence[int]]) -> None:
        """Keep only the sequences at these places behind each prefix."""
        starts = [sum(self.counts[:k]) for k in range(len(self.counts))]
        kept = [start + place for start, several in zip(starts, places, strict=True) for place in several]
        self.counts = [len(several) for several in places]
        for layer, both in self._layers.items():
            index = torch.tensor(kept, dtype=torch.int64, device=both[0].device)
            self._layers[layer] = both[0].index_select(1, index), both[1].index_select(1, index)

    def grown(self) -> None:
        """Count the token that all layers have read."""
        self.length += 1
        self._biases.clear()

    @override
    def positions(self, device: torch.device) -> torch.Tensor:
        places = [len(prefix.tokens) + self.length for prefix in self.prefixes]
        return torch.tensor(places, device=device).repeat_interleave(torch.tensor(self.counts, device=device))

    @override
    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, how: How) -> torch.Tensor:
        heads, count, shared = keys.shape[0], keys.shape[1], query.shape[0] // keys.shape[0]
        rows = _rows(query, heads, how.scaling)
        own_keys, own_values = self._kept(how.layer, keys, values)
        room = own_keys.shape[1]
        earlier = [prefix.layers[how.layer] for prefix in self.prefixes]
        longest = max(known[0].shape[1] for known in earlier)
        scores = rows.new_full((heads, count * shared, _rounded(room + longest)), -torch.inf)
        own = _scores(rows.view(heads * count, shared, -1), own_keys, how).view(heads, count * shared, room)
        torch.add(own, self._bias(room, how.window, own), out=scores[..., :room])
        places = [slice(end - size, end) for size, end in self._slices(shared)]
        for place, (theirs, _) in zip(places, earlier, strict=True):
            # A token at place t behind P tokens sees those from P + t + 1 - window on.
            start = 0 if how.window is None else max(0, theirs.shape[1] + self.length + 1 - how.window)
            if start < theirs.shape[1]:
                found = _scores(rows[:, place], theirs[:, start:], how)
                scores[:, place, room + start : room + theirs.shape[1]] = found
        weights = _softmax(scores, how.sinks)
        attended = torch.bmm(weights[..., :room].reshape(heads * count, shared, room), own_values)
        attended = attended.view(heads, count * shared, -1)
        for place, (_, theirs) in zip(places, earlier, strict=True):
            seen = weights[:, place, room : room + theirs.shape[1]]
            attended[:, place] += torch.bmm(seen, theirs)
        return _tokens(attended, count)

    def _slices(self, shared: int) -> Iterator[tuple[int, int]]:
        """Yield (size, end) of the rows behind each prefix."""
        end = 0
        for count in self.counts:
            end += count * shared
            yield count * shared, end

    def _kept(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> KeysValues:
        """Return what each sequence knows of itself, (key heads * count, room, width), this token included."""
        if layer not in self._layers or self._layers[layer][0].shape[2] == self.length:
            known = self._layers.get(layer, (None, None))
            self._layers[layer] = self._widened(keys, known[0]), self._widened(values, known[1])
        room = self._layers[layer]
        room[0][:, :, self.length] = keys
        room[1][:, :, self.length] = values
        return room[0].flatten(0, 1), room[1].flatten(0, 1)

    def _widened(self, fresh: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
        """Return a buffer with room for more tokens; zeros, as what is hidden may not be nan either."""
        room = fresh.new_zeros(*fresh.shape[:2], self.length + _GROWS_BY, fresh.shape[-1])
        if known is not None:
            room[:, :, : self.length] = known
        return room

    def _bias(self, room: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """Return what is added to scores of a sequence's own tokens, (room,): -inf where there is none, or too far."""
        start = 0 if window is None else max(0, self.length + 1 - window)
        if (room, start) not in self._biases:
            bias = like.new_full((room,), -torch.inf)
            bias[start : self.length + 1] = 0.0
            self._biases[room, start] = bias
        return self._biases[room, start]


def _rows(query: torch.Tensor, heads: int, scaling: float) -> torch.Tensor:
    """Return queries (heads, tokens, width) as (key heads, tokens * queries of a key head, width), scaled."""
    shared = query.shape[0] // heads
    grouped = (query * scaling).reshape(heads, shared, query.shape[1], -1).transpose(1, 2)
    return grouped.reshape(heads, query.shape[1] * shared, -1).contiguous()


def _tokens(rows: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return (tokens, heads, width) of rows (key heads, tokens * queries of a key head, width)."""
    heads, size, width = rows.shape
    return rows.view(heads, tokens, size // tokens, width).transpose(0, 1).flatten(1, 2)


def _scores(rows: torch.Tensor, keys: torch.Tensor, how: How) -> torch.Tensor:
    """Return the scores of rows with keys, kept below the cap where there is one."""
    scores = torch.bmm(rows, keys.transpose(1, 2))
    return scores if how.softcap is None else torch.tanh(scores / how.softcap) * how.softcap


def _rounded(keys: int) -> int:
    """Return the number of scores in a row: on CPUs a softmax over whole vectors takes a third less time."""
    return -(-keys // _VECTOR) * _VECTOR


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
    how = How(
        layer=int(module.layer_idx),  # type: ignore[arg-type]
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=options.get("sliding_window"),
        softcap=options.get("softcap"),
        sinks=options.get("s_aux"),
    )
    return current.attend(query[0], key[0], value[0], how)[None], None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
