"""Attention over a shared prefix is the attention over whole texts."""

import math

import pytest
import torch

from llm_auction_chain.models.local.attention import Group, Growing, Prefix, Reading, Settings

HEADS, KEY_HEADS, WIDTH, BEFORE = 4, 2, 8, 5


def tensors(tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = (HEADS, tokens, WIDTH), (KEY_HEADS, tokens, WIDTH), (KEY_HEADS, tokens, WIDTH)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def prefix(seed=0):
    _, keys, values = tensors(BEFORE, seed)
    return Prefix(tokens=list(range(BEFORE)), layers={0: (keys, values)})


def plain(query, keys, values, settings):
    """By the definition: one token at a time, over all keys that it may see."""
    rows, start = [], keys.shape[1] - query.shape[1]
    for place in range(query.shape[1]):
        end = start + place + 1
        first = 0 if settings.window is None else max(0, end - settings.window)
        heads = []
        for head in range(HEADS):
            shown = slice(first, end)
            own = head * KEY_HEADS // HEADS
            scores = keys[own, shown] @ query[head, place] * settings.scaling
            if settings.softcap is not None:
                scores = settings.softcap * torch.tanh(scores / settings.softcap)
            sink = torch.zeros(0) if settings.sinks is None else settings.sinks[head : head + 1]
            weights = torch.cat([scores, sink]).softmax(0)[: len(scores)]
            heads.append(weights @ values[own, shown])
        rows.append(torch.stack(heads))
    return torch.stack(rows)


@pytest.fixture(params=["full", "window", "softcap", "sinks"])
def settings(request):
    options = {"window": None, "softcap": None, "sinks": None}
    options |= {"window": {"window": 4}, "softcap": {"softcap": 0.7}, "sinks": {"sinks": torch.arange(4) / 2}}.get(
        request.param, {}
    )
    return Settings(layer=0, scaling=1 / math.sqrt(WIDTH), **options)


def test_texts_that_follow_a_prefix_see_it_and_themselves(settings):
    shared, (query, keys, values) = prefix(), tensors(6, 1)
    attended = Reading([Group(prefix=shared, count=2, length=3)]).attend(query, keys, values, settings)
    for text in (slice(0, 3), slice(3, 6)):
        whole = [
            torch.cat([earlier, own[:, text]], 1) for earlier, own in zip(shared.layers[0], (keys, values), strict=True)
        ]
        assert torch.allclose(attended[text], plain(query[:, text], *whole, settings), atol=1e-5)


def test_sequences_that_grow_see_their_prefix_and_themselves(settings):
    prefixes = [prefix(0), prefix(7)]
    growing, steps = Growing(prefixes, [2, 1]), [tensors(3, seed) for seed in range(10, 13)]
    for step, (query, keys, values) in enumerate(steps):
        attended = growing.attend(query, keys, values, settings)
        growing.advance()
        for row, shared in enumerate([prefixes[0], prefixes[0], prefixes[1]]):
            own = [torch.stack([steps[k][part][:, row] for k in range(step + 1)], 1) for part in (1, 2)]
            whole = [torch.cat(both, 1) for both in zip(shared.layers[0], own, strict=True)]
            assert torch.allclose(attended[row], plain(query[:, row : row + 1], *whole, settings)[0], atol=1e-5)
