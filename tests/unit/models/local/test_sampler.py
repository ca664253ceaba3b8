"""Tokens are drawn as likely as the logits say, from one uniform number a row."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_auction_chain.errors import LogProbError
from llm_auction_chain.models.local.sampler import Sampler

PROBS = torch.tensor([0.5, 0.3, 0.15, 0.05])


def rows_of(probs, n):
    return probs.log().expand(1, n, -1)


def test_a_grid_of_uniform_numbers_draws_every_token_as_often_as_it_is_likely():
    n = 2000
    tokens, log_probs, alone, _ = Sampler().draw(rows_of(PROBS, n), [1.0], [(k + 0.5) / n for k in range(n)])
    assert (np.bincount(tokens, minlength=4) / n).tolist() == pytest.approx(PROBS.tolist(), abs=1 / n)
    assert log_probs == pytest.approx([math.log(PROBS[token]) for token in tokens], abs=1e-6)
    assert alone == [[value] for value in log_probs]


@pytest.mark.parametrize("size", [1, 7, 128, 129, 500])
@given(seed=st.integers(0, 1000), sharpness=st.floats(0, 30), uniform=st.floats(0, 1, exclude_max=True))
def test_the_token_drawn_is_the_first_whose_sum_exceeds_the_uniform_number(size, seed, sharpness, uniform):
    weights = np.exp(sharpness * np.random.default_rng(seed).standard_normal(size))
    probs = weights / weights.sum()
    ((token,), (log_prob,), _, _) = Sampler().draw(torch.tensor(probs).log().float()[None, None], [1.0], [uniform])
    sums = np.cumsum(probs)
    # float32 may move a boundary between two tokens by its rounding, never draw what cannot be drawn.
    assert sums[token] >= uniform - 1e-5
    assert token == 0 or sums[token - 1] <= uniform + 1e-5
    assert log_prob == pytest.approx(math.log(probs[token]), abs=1e-4)


@pytest.mark.parametrize("uniform", [0.0, 0.5, math.nextafter(1, 0)])
def test_what_cannot_be_drawn_is_not_drawn_at_either_end(uniform):
    logits = torch.full((1, 1, 300), -torch.inf)
    logits[..., 130] = 0.0
    assert Sampler().draw(logits, [1.0], [uniform])[:2] == ([130], [0.0])


@pytest.mark.parametrize(
    ("top_p", "top_k", "kept"),
    [(0.5, 0, {0}), (0.6, 0, {0, 1}), (1.0, 3, {0, 1, 2}), (0.9, 2, {0, 1}), (1e-9, 0, {0}), (1.0, 99, {0, 1, 2, 3})],
)
def test_truncation_keeps_the_likeliest_and_renormalizes(top_p, top_k, kept):
    uniforms = [(k + 0.5) / 500 for k in range(500)]
    tokens, log_probs, _, _ = Sampler(top_p=top_p, top_k=top_k).draw(rows_of(PROBS, 500), [1.0], uniforms)
    assert set(tokens) == kept
    mass = sum(PROBS[token].item() for token in kept)
    assert log_probs == pytest.approx([math.log(PROBS[token].item() / mass) for token in tokens], abs=1e-5)


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(temperature=0.6, top_k=3), Sampler(temperature=0)])
def test_a_product_is_drawn_from_the_sum_of_its_logits_and_tells_each_prompts_own(sampler):
    logits = torch.randn(2, 40, 9, generator=torch.Generator().manual_seed(3))
    powers = [0.7, -0.2]
    uniforms = [(k + 0.5) / 40 for k in range(40)]
    tokens, log_probs, alone, _ = sampler.draw(logits, powers, uniforms)
    chosen = torch.tensor(tokens)
    combined = (logits * torch.tensor(powers)[:, None, None]).sum(0, keepdim=True)
    assert sampler.draw(combined, [1.0], uniforms)[0] == tokens
    assert log_probs == pytest.approx(sampler.log_probs(logits, powers, chosen).tolist(), abs=1e-6)
    assert log_probs == pytest.approx(sampler.log_probs(combined, [1.0], chosen).tolist(), abs=1e-6)
    for k, part in enumerate(logits):
        assert [row[k] for row in alone] == pytest.approx(sampler.log_probs(part[None], [1.0], chosen).tolist())


def test_many_rows_are_done_in_parts_that_change_nothing():
    logits = torch.randn(1, 40, 49152, generator=torch.Generator().manual_seed(0))
    uniforms = [(k + 0.5) / 40 for k in range(40)]
    tokens, log_probs, _, _ = Sampler().draw(logits, [1.0], uniforms)
    for row in (0, 17, 39):
        ((token,), (log_prob,), _, _) = Sampler().draw(logits[:, row : row + 1], [1.0], [uniforms[row]])
        assert (token, log_prob) == (tokens[row], log_probs[row])


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error_and_no_reply(wrong, temperature):
    logits = torch.zeros(1, 3, 200)
    logits[0, 1, 150] = wrong
    sampler = Sampler(temperature=temperature)
    with pytest.raises(LogProbError, match="not finite numbers"):
        sampler.draw(logits, [1.0], [0.1, 0.1, 0.1])
    with pytest.raises(LogProbError, match="not finite numbers"):
        sampler.log_probs(logits, [1.0], torch.tensor([1, 2, 3]))
    with pytest.raises(LogProbError, match="not finite numbers"):
        sampler.draw(torch.full((1, 1, 4), -torch.inf), [1.0], [0.1])
