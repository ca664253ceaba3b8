"""Attention of many sequences behind shared prefixes. A transformers model calls it in place of its own.

A pass reads the tokens of all sequences as one row, (1, tokens). The keys and values of a prefix exist once, however
many sequences stand behind it. Every query sees its prefix and its own sequence, in one softmax.
"""

import abc
import contextlib
import dataclasses
import itertools
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
_GROWS_BY = 16  # tokens of room that a growing sequence gets at once
_VECTOR = 32  # numbers of bfloat16 that the widest CPU registers hold
# Options of other attentions that ours does not support.
_UNSUPPORTED = ("block_indices", "indices", "position_bias", "sinks")


@dataclasses.dataclass(eq=False, kw_only=True)
class Prefix:
    """A prompt, or the part of it that earlier passes read."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    # Another one that begins with these tokens and has their keys and values, until a pass reads more of this one.
    source: "Prefix | None" = None
    # Keys and values of each layer, (key heads, tokens, width).
    layers: dict[int, KeysValues] = dataclasses.field(default_factory=dict)
    # (hidden,), behind the last token.
    state: torch.Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))

    def earlier(self, layer: int) -> KeysValues | None:
        """Return a layer's keys and values of the tokens, or None where there are none."""
        if layer in self.layers or self.source is None:
            return self.layers.get(layer)
        keys, values = self.source.layers[layer]
        return keys[:, : len(self.tokens)], values[:, : len(self.tokens)]

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Append a layer's keys and values of the next tokens."""
        if (earlier := self.earlier(layer)) is not None:
            self.layers[layer] = (torch.cat([earlier[0], keys], 1), torch.cat([earlier[1], values], 1))
        else:
            self.layers[layer] = (keys.contiguous(), values.contiguous())


class Settings(NamedTuple):
    """A layer's settings of its attention."""

    layer: int  # its number
    scaling: float  # factor of the scores
    window: int | None  # how many tokens a token sees, itself included. None is all tokens before it
    softcap: float | None  # an upper bound that the scores approach
    sinks: torch.Tensor | None  # (heads,), scores of a token without a value


class Pass(abc.ABC):
    """Tokens that the model reads at once."""

    @abc.abstractmethod
    def positions(self, device: torch.device) -> torch.Tensor:
        """Return the place (tokens,) of every token in its text."""

    @abc.abstractmethod
    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, settings: Settings) -> torch.Tensor:
        """Return the output (tokens, heads, width) of query (heads, tokens, width), keys and values (key heads, ...).

        Scores have the shape (key heads, tokens * queries of a key head, keys). A key head's queries are the rows of
        one matrix product, so no key is repeated.
        """

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make every layer of a model use this pass within the block.

        The pass is no argument of the model, because some families drop unknown arguments.
        """
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


@dataclasses.dataclass(kw_only=True)
class Group:
    """Texts of one length behind one prefix."""

    prefix: Prefix
    count: int  # of texts
    length: int  # tokens of each text
    reads: bool = False  # whether the only text becomes a part of its prefix

    @property
    def size(self) -> int:
        """The tokens of all texts."""
        return self.count * self.length


class Reading(Pass):
    """A pass over groups of whole texts, in the order of their tokens."""

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
    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, settings: Settings) -> torch.Tensor:
        attended = query.new_empty(query.shape[1], query.shape[0], values.shape[-1])
        start = 0
        for group in self.groups:
            tokens = slice(start, start := start + group.size)
            attended[tokens] = self._group(group, query[:, tokens], keys[:, tokens], values[:, tokens], settings)
        return attended

    def _group(
        self, group: Group, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, settings: Settings
    ) -> torch.Tensor:
        """Return the attention's output for one group, (tokens, heads, width)."""
        heads, seen = keys.shape[0], group.length
        rows = _rows(query, heads, settings.scaling)
        earlier = group.prefix.earlier(settings.layer)
        before = 0 if earlier is None else earlier[0].shape[1]
        scores = rows.new_empty(heads, rows.shape[1], _rounded(seen + before))
        scores[..., seen + before :] = -torch.inf
        blocks = scores.view(heads, group.count, seen, -1, scores.shape[-1])
        own_keys, own_values = (part.reshape(heads * group.count, seen, -1) for part in (keys, values))
        own = _scores(rows.view(heads * group.count, -1, rows.shape[-1]), own_keys, settings)
        bias = self._bias(before, seen, settings.window, scores)
        torch.add(own.view(*blocks.shape[:-1], seen), bias[..., before:], out=blocks[..., :seen])
        if earlier is not None:
            theirs = _scores(rows, earlier[0], settings).view(*blocks.shape[:-1], before)
            if settings.window is None:
                blocks[..., seen : seen + before] = theirs
            else:
                torch.add(theirs, bias[..., :before], out=blocks[..., seen : seen + before])
        weights = _softmax(scores, settings.sinks)
        attended = torch.bmm(weights[..., :seen].reshape(own.shape), own_values).view(heads, rows.shape[1], -1)
        if earlier is not None:
            attended = torch.baddbmm(attended, weights[..., seen : seen + before], earlier[1])
        if group.reads:
            group.prefix.extend(settings.layer, keys, values)
        return _tokens(attended, group.size)

    def _bias(self, before: int, seen: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """Return what to add to the scores, (seen, 1, before + seen): -inf where a token must not look, else 0."""
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
    """Sequences behind prefixes that get one token in every pass.

    One buffer holds their own keys and values, with room for more tokens. A product over the whole buffer takes less
    time than one over its used part, which needs a copy first.

    Attributes:
        prefixes: (P,).
        counts: (P,), sequences behind each prefix, one prefix after another.
        length: tokens of each sequence.
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

    def advance(self) -> None:
        """Count the token that all layers have read."""
        self.length += 1
        self._biases.clear()

    @override
    def positions(self, device: torch.device) -> torch.Tensor:
        places = [len(prefix.tokens) + self.length for prefix in self.prefixes]
        return torch.tensor(places, device=device).repeat_interleave(torch.tensor(self.counts, device=device))

    @override
    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, settings: Settings) -> torch.Tensor:
        heads, count, shared = keys.shape[0], keys.shape[1], query.shape[0] // keys.shape[0]
        rows = _rows(query, heads, settings.scaling)
        own_keys, own_values = self._kept(settings.layer, keys, values)
        room = own_keys.shape[1]
        earlier = [prefix.layers[settings.layer] for prefix in self.prefixes]
        longest = max(prefix_keys.shape[1] for prefix_keys, _ in earlier)
        scores = rows.new_full((heads, count * shared, _rounded(room + longest)), -torch.inf)
        own = _scores(rows.view(heads * count, shared, -1), own_keys, settings).view(heads, count * shared, room)
        torch.add(own, self._bias(room, settings.window, own), out=scores[..., :room])
        ends = itertools.accumulate(self.counts)
        places = [slice(shared * (end - size), shared * end) for size, end in zip(self.counts, ends, strict=True)]
        for place, (theirs, _) in zip(places, earlier, strict=True):
            # A token at place t behind P tokens sees those from P + t + 1 - window on.
            start = 0 if settings.window is None else max(0, theirs.shape[1] + self.length + 1 - settings.window)
            if start < theirs.shape[1]:
                on_prefix = _scores(rows[:, place], theirs[:, start:], settings)
                scores[:, place, room + start : room + theirs.shape[1]] = on_prefix
        weights = _softmax(scores, settings.sinks)
        attended = torch.bmm(weights[..., :room].reshape(heads * count, shared, room), own_values)
        attended = attended.view(heads, count * shared, -1)
        for place, (_, theirs) in zip(places, earlier, strict=True):
            seen = weights[:, place, room : room + theirs.shape[1]]
            attended[:, place] += torch.bmm(seen, theirs)
        return _tokens(attended, count)

    def _kept(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> KeysValues:
        """Return the sequences' own keys and values, (key heads * count, room, width), with this token's."""
        if layer not in self._layers or self._layers[layer][0].shape[2] == self.length:
            earlier = self._layers.get(layer, (None, None))
            self._layers[layer] = self._widened(keys, earlier[0]), self._widened(values, earlier[1])
        room = self._layers[layer]
        room[0][:, :, self.length] = keys
        room[1][:, :, self.length] = values
        return room[0].flatten(0, 1), room[1].flatten(0, 1)

    def _widened(self, fresh: torch.Tensor, earlier: torch.Tensor | None) -> torch.Tensor:
        """Return a buffer with room for more tokens. It holds zeros, because hidden values must not be nan."""
        room = fresh.new_zeros(*fresh.shape[:2], self.length + _GROWS_BY, fresh.shape[-1])
        if earlier is not None:
            room[:, :, : self.length] = earlier
        return room

    def _bias(self, room: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """Return what to add to the scores of own tokens, (room,): -inf for no token or one too far away, else 0."""
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


def _scores(rows: torch.Tensor, keys: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Return the scores of rows with keys, below the cap where there is one."""
    scores = torch.bmm(rows, keys.transpose(1, 2))
    return scores if settings.softcap is None else torch.tanh(scores / settings.softcap) * settings.softcap


def _rounded(keys: int) -> int:
    """Return a length of whole vectors for a row of scores: on CPUs its softmax takes a third less time."""
    return -(-keys // _VECTOR) * _VECTOR


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Return the softmax of the scores (key heads, rows, keys) and of the sinks."""
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
    """Attend by the current pass, or by `sdpa` where there is none."""
    current = _current.get()
    if current is None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return plain
    if unsupported := [name for name in _UNSUPPORTED if options.get(name) is not None]:
        raise NotImplementedError(f"attention with {', '.join(unsupported)}")
    scaling = options.get("scaling")
    settings = Settings(
        layer=int(module.layer_idx),  # type: ignore[arg-type]
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=options.get("sliding_window"),
        softcap=options.get("softcap"),
        sinks=options.get("s_aux"),
    )
    return current.attend(query[0], key[0], value[0], settings)[None], None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
