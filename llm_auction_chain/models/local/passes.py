"""Passes of a model over many texts. A pass reads prompts, texts that follow them, or one more token of each reply."""

import copy
import dataclasses
from bisect import bisect_left, insort
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import torch
from typing_extensions import override

from llm_auction_chain.models.local.attention import NAME, Group, Growing, Pass, Prefix, Reading

__all__ = ["Passes", "SharedPasses", "finish", "packs"]

_T = TypeVar("_T")
Tokens = tuple[int, ...]
Following = tuple[Prefix, Sequence[int]]
# Bytes of one projection onto the vocabulary. glibc maps a larger block than 32 MB anew each time, which takes longer
# than the projection.
_LOGIT_BYTES = 25_000_000


class Passes:
    """Passes of any causal model: states (tokens, hidden) of tokens, and logits. Each reads whole texts and keeps none.

    Attributes:
        model: a transformers causal language model.
        size: the most tokens of one pass. A longer sequence has a pass of its own.
        most_cached: the most tokens of prompts that are cached for later reads, where prefixes are shared.
    """

    def __init__(self, model: Any, size: int) -> None:
        self.model = model
        self.size = size
        self.most_cached = 0
        self._base = _base_of(model)
        self._head = _head_of(model, self._base)
        self._weight = model.get_output_embeddings().weight

    def read(self, prompts: Sequence[Sequence[int]]) -> Generator[None, None, list[Prefix]]:
        """Yield after every pass, and return the prompts as prefixes."""
        prefixes = [Prefix(tokens=list(prompt)) for prompt in prompts]
        for states in self._whole(prompts):
            for place, state in states:
                prefixes[place].state = state[-1]
            yield
        return prefixes

    def behind(self, prefixes: Sequence[Prefix], counts: Sequence[int]) -> Any:
        """Return growing sequences, `counts[k]` behind prefix k. Their `select(places)` keeps some behind each."""
        return _Texts([[list(prefix.tokens) for _ in range(n)] for prefix, n in zip(prefixes, counts, strict=True)])

    def step(self, sequences: Any, tokens: Sequence[int]) -> torch.Tensor:
        """Append a token to each sequence, and return the states (sequences, hidden) behind the tokens."""
        texts = [text for several in sequences.texts for text in several]
        for text, token in zip(texts, tokens, strict=True):
            text.append(token)
        last = {place: state[-1] for states in self._whole(texts) for place, state in states}
        return torch.stack([last[place] for place in range(len(texts))])

    def follow(self, pairs: Sequence[Following]) -> Iterator[list[tuple[int, torch.Tensor]]]:
        """Yield after every pass its (place of a pair, states of the pair's tokens)."""
        for states in self._whole([[*prefix.tokens, *tokens] for prefix, tokens in pairs]):
            yield [(place, state[-len(pairs[place][1]) :]) for place, state in states]

    @property
    def token_bytes(self) -> int:
        """How many bytes a token of a growing sequence takes: here those of about the widest layer of a pass."""
        return 16 * int(self._weight.shape[1]) * int(self._weight.element_size())

    @property
    def rows(self) -> int:
        """How many states to project onto the vocabulary at once."""
        return max(1, _LOGIT_BYTES // int(self._weight.shape[0] * self._weight.element_size()))

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logits (rows, vocabulary) behind states (rows, hidden), in the model's dtype."""
        with torch.inference_mode():
            logits: torch.Tensor = self._head(inputs_embeds=states[None]).logits[0]
            return logits

    def _whole(self, texts: Sequence[Sequence[int]]) -> Iterator[list[tuple[int, torch.Tensor]]]:
        """Yield after every pass its (place of a text, states). Padding stands behind the text, out of sight."""
        for places in packs([len(text) for text in texts], self.size, padded=True):
            length = len(texts[places[0]])
            ids = [[*texts[place], *[0] * (length - len(texts[place]))] for place in places]
            with torch.inference_mode():
                output = self._base(input_ids=torch.tensor(ids, device=self.model.device), use_cache=False)
            states = output.last_hidden_state
            yield [(place, state[: len(texts[place])]) for place, state in zip(places, states, strict=True)]


class SharedPasses(Passes):
    """Passes of a model with our attention: sequences share prefixes, and a pass holds them without padding.

    A read computes only what follows the longest prefix that a prompt shares with a cached prompt, or with an earlier
    one of the same read.
    """

    def __init__(self, model: Any, size: int, *, compiled: bool = False) -> None:
        super().__init__(model, size)
        self._cached: dict[Tokens, Prefix] = {}  # the least recently read first
        model.set_attn_implementation(NAME)
        self._call = torch.compile(self._base, dynamic=True) if compiled else self._base
        # transformers passes on a mask of four dimensions unchanged. Our attention ignores it.
        self._mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=model.device)

    @override
    def read(self, prompts: Sequence[Sequence[int]]) -> Generator[None, None, list[Prefix]]:
        wanted = [tuple(prompt) for prompt in prompts]
        known, fresh = {**self._cached}, {prompt: Prefix() for prompt in wanted if prompt not in self._cached}
        ordered = sorted(known) if fresh else []
        for prompt in fresh:
            known[prompt] = fresh[prompt] = _shared_start(prompt, known, ordered)
            insort(ordered, prompt)
        # A prompt's source stands before it, so its keys and values are there in time.
        starts = [len(prefix.tokens) for prefix in fresh.values()]
        texts = [(prefix, prompt[start:]) for (prompt, prefix), start in zip(fresh.items(), starts, strict=True)]
        for pieces in _pieces([len(tokens) for _, tokens in texts], self.size):
            parts = [(texts[k][0], texts[k][1][start:stop]) for k, start, stop in pieces]
            groups = [Group(prefix=prefix, count=1, length=len(tokens), reads=True) for prefix, tokens in parts]
            states = self._states(Reading(groups), [token for _, tokens in parts for token in tokens])
            ends = torch.split(states, [group.size for group in groups])
            for (prefix, tokens), state in zip(parts, ends, strict=True):
                prefix.tokens += tokens
                prefix.state = state[-1].clone()  # not a view that holds all of them
            yield
        for prompt, start in zip(fresh, starts, strict=True):
            self._cached.pop(prompt[:start], None)  # a conversation that has gone on
            fresh[prompt].source = None
        self._cache({prompt: known[prompt] for prompt in wanted})
        return [known[prompt] for prompt in wanted]

    def _cache(self, read: Mapping[Tokens, Prefix]) -> None:
        """Cache prompts for later reads, and drop the least recently read ones."""
        for prompt, prefix in read.items():
            self._cached.pop(prompt, None)
            if len(prompt) <= self.most_cached:
                self._cached[prompt] = prefix
        tokens = sum(map(len, self._cached))
        while tokens > self.most_cached:
            oldest = next(iter(self._cached))
            tokens -= len(oldest)
            del self._cached[oldest]

    @property
    @override
    def token_bytes(self) -> int:
        (prefix,) = finish(self.read([[0]]))
        return sum(part.numel() * part.element_size() for both in prefix.layers.values() for part in both)

    @override
    def behind(self, prefixes: Sequence[Prefix], counts: Sequence[int]) -> Growing:
        return Growing(prefixes, counts)

    @override
    def step(self, sequences: Growing, tokens: Sequence[int]) -> torch.Tensor:
        states = self._states(sequences, tokens)
        sequences.advance()
        return states

    @override
    def follow(self, pairs: Sequence[Following]) -> Iterator[list[tuple[int, torch.Tensor]]]:
        for places in packs([len(tokens) for _, tokens in pairs], self.size):
            groups: list[Group] = []
            for place in places:
                prefix, tokens = pairs[place]
                if groups and groups[-1].prefix is prefix and groups[-1].length == len(tokens):
                    groups[-1].count += 1
                else:
                    groups.append(Group(prefix=prefix, count=1, length=len(tokens)))
            states = self._states(Reading(groups), [token for place in places for token in pairs[place][1]])
            yield list(zip(places, torch.split(states, [len(pairs[place][1]) for place in places]), strict=True))

    def _states(self, tokens: Pass, ids: Sequence[int]) -> torch.Tensor:
        """Return the states (tokens, hidden) of a pass."""
        device = self.model.device
        with torch.inference_mode(), tokens.current():
            output = self._call(
                input_ids=torch.tensor([ids], device=device),
                position_ids=tokens.positions(device)[None],
                attention_mask=self._mask,
                use_cache=False,
            )
        states: torch.Tensor = output.last_hidden_state[0]
        return states


@dataclasses.dataclass
class _Texts:
    """Sequences that grow behind prefixes, kept as whole texts."""

    texts: list[list[list[int]]]

    def select(self, places: Sequence[Sequence[int]]) -> None:
        self.texts = [[several[place] for place in kept] for several, kept in zip(self.texts, places, strict=True)]


def finish(steps: Generator[Any, None, _T]) -> _T:
    """Take all steps, and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: _T = done.value
            return result


def _shared_start(prompt: Tokens, known: Mapping[Tokens, Prefix], ordered: Sequence[Tokens]) -> Prefix:
    """Return the longest prefix of a prompt that it shares with a known one.

    The last token is always read, because a shorter prefix has no state. In the order of their tokens, no known prompt
    shares more than the two that the prompt stands between.
    """
    place = bisect_left(ordered, prompt)
    shared = [(_shared_length(prompt[:-1], other), other) for other in ordered[max(0, place - 1) : place + 1]]
    count, source = max(shared, default=(0, ()))
    if not count:
        return Prefix()
    return Prefix(tokens=[*prompt[:count]], source=known[source])


def _shared_length(one: Tokens, other: Tokens) -> int:
    """Return the length of the common prefix of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _pieces(lengths: Sequence[int], size: int) -> Iterator[list[tuple[int, int, int]]]:
    """Yield the (text, start, stop) of each pass: all texts in order, cut so that a pass has `size` tokens."""
    starts = [0, *accumulate(lengths)]
    for first in range(0, starts[-1], size):
        cuts = (
            (k, max(0, first - start), min(length, first + size - start))
            for k, (start, length) in enumerate(zip(starts, lengths, strict=False))
        )
        yield [(k, start, stop) for k, start, stop in cuts if start < stop]


def packs(lengths: Sequence[int], size: int, *, padded: bool = False) -> Iterator[list[int]]:
    """Yield the places of the texts of each pass of at most `size` tokens, the longest first.

    A longer text has a pass of its own. With `padded`, every text of a pass takes as many tokens as the longest.
    """
    pack: list[int] = []
    taken = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        takes = lengths[pack[0]] if pack and padded else lengths[place]
        if pack and taken + takes > size:
            yield pack
            pack, taken, takes = [], 0, lengths[place]
        pack.append(place)
        taken += takes
    if pack:
        yield pack


def _base_of(model: Any) -> Any:
    """Return the part of a model that computes states of tokens."""
    embedding = model.get_input_embeddings()
    for part in model.children():
        if any(module is embedding for module in part.modules()) and part is not model.get_output_embeddings():
            return part
    return model.base_model


def _head_of(model: Any, base: Any) -> Any:
    """Return the model without its base: it takes states as `inputs_embeds` and computes their logits.

    The model's own code still does what its head does besides one product: scale, cap, cast, or one more layer.
    """
    head = copy.copy(model)
    parts = ((name, _States(base) if part is base else part) for name, part in model._modules.items())  # noqa: SLF001
    head.__dict__ = {**model.__dict__, "_modules": dict(parts)}
    return head


class _States:
    """Stands in for a model's base: a call returns the states that it gets, all else comes from the base."""

    def __init__(self, base: Any) -> None:
        self._base = base

    def __call__(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> "_Output":
        return _Output([inputs_embeds])

    @property
    def decoder(self) -> "_States":
        """Some heads call the base's decoder."""
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)


class _Output(tuple[torch.Tensor]):
    """What heads read from their base's output: the states, by name or first, and None by every other name."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        return self[0] if name == "last_hidden_state" else None
