"""Scores are the log-probabilities of full forward passes, however the work is divided."""

import math

import numpy as np
import pytest

from llm_auction_chain.errors import ContextWindowError
from llm_auction_chain.models.local.engine import Drawing
from llm_auction_chain.models.local.passes import Passes
from llm_auction_chain.models.local.sampler import Sampler
from tests.tiny import combined_log_prob, draw


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_are_those_of_full_forward_passes_under_every_condition(tiny, temperature):
    prompts = [[3, 4, 6], [9, 8, 7, 6, 10], [12]]
    powers = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-0.5, 1.0, 0.5], [0.6, 0.0, 0.4]]
    replies = [[7], [3, 9, 11, 4], [], [20, 21], [5], [3, 9, 11, 2, 8, 9, 10]]
    scores = tiny.score(prompts, powers, replies, Sampler(temperature=temperature))
    assert scores.shape == (4, 6)
    for c, row in enumerate(powers):
        for j, reply in enumerate(replies):
            exact = combined_log_prob(tiny, prompts, row, reply, temperature) if reply else 0.0
            assert scores[c, j] == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_scoring_in_several_chunks_changes_no_score(tiny, monkeypatch, rows):
    """Few states at a time go onto the vocabulary; a chunk then holds parts of several replies."""
    prompts = [[3, 4, 6], [9, 8, 7, 6, 10], [12]]
    powers = [[1.0, 0.0, 0.0], [-0.5, 1.0, 0.5], [0.6, 0.0, 0.4]]
    replies = [[7], [3, 9, 11, 4], [], [20, 21], [3, 9, 11, 2, 8, 9, 10]]
    whole = tiny.score(prompts, powers, replies, Sampler())
    projections, logits = [], type(tiny._passes).logits

    def watched(passes, states):
        projections.append(len(states))
        return logits(passes, states)

    monkeypatch.setattr(Passes, "rows", property(lambda passes: rows))
    monkeypatch.setattr(Passes, "logits", watched)
    assert tiny.score(prompts, powers, replies, Sampler()) == pytest.approx(whole, abs=1e-5)
    assert len(projections) > 1
    assert max(projections) <= max(rows, len(prompts))
    assert whole[0, 4] == pytest.approx(combined_log_prob(tiny, prompts, powers[0], replies[4], 1.0), abs=1e-4)


def test_scores_are_those_of_the_draws(tiny):
    prompts, powers, sampler = [[3, 4, 6], [9, 8]], [0.4, 0.6], Sampler(top_p=0.9, top_k=50, temperature=0.8)
    replies = tiny.sample([Drawing(prompts, powers, 6)], seed=2, max_tokens=9, sampler=sampler)
    (scores,) = tiny.score(prompts, [powers], [reply.token_ids for reply in replies], sampler)
    assert scores == pytest.approx([sum(reply.log_probs) for reply in replies], abs=1e-4)


def test_a_token_that_cannot_be_drawn_has_probability_nothing(tiny):
    (greedy,) = draw(tiny, [3, 4], 1, seed=0, max_tokens=4, temperature=0)
    other = [(greedy.token_ids[0] + 1) % 50, *greedy.token_ids[1:]]
    for sampler in (Sampler(temperature=0), Sampler(top_k=1), Sampler(top_p=1e-6)):
        (scores,) = tiny.score([[3, 4]], [[1.0]], [greedy.token_ids, other], sampler)
        assert scores.tolist() == [0.0, -math.inf]


def test_nothing_asked_is_nothing_scored(tiny):
    assert tiny.score([], [], [[4, 5]], Sampler()).shape == (0, 1)
    assert tiny.score([[3]], [[1.0]], [], Sampler()).shape == (1, 0)
    nothing = tiny.score([[3], [4]], np.eye(2), [[5], [6, 7]], Sampler(), wanted=np.zeros((2, 2), dtype=bool))
    assert np.isnan(nothing).all()


def test_a_reply_that_does_not_fit_cannot_be_scored(tiny):
    with pytest.raises(ContextWindowError, match="Shorten the prompt"):
        tiny.score([[3] * 30], [[1.0]], [[4, 5, 6]], Sampler())
