"""The distribution over candidates and the draw from it."""

import numpy as np
import pytest

from llm_auction_chain.mechanism.allocation import draw, log_mass, log_softmax, streams_of


def test_log_softmax_normalises_each_row():
    scores = np.array([[0.0, 1.0, -np.inf], [1e300, 1e300, 0.0]])
    expected = [[1 / (1 + np.e), np.e / (1 + np.e), 0.0], [0.5, 0.5, 0.0]]
    np.testing.assert_allclose(np.exp(log_softmax(scores)), expected, rtol=1e-15)


def test_log_mass_is_the_logarithm_of_the_sum():
    assert log_mass(np.log([1.0, 2.0, 3.0])) == pytest.approx(np.log(6.0), rel=1e-15)
    assert log_mass(np.array([-1e300, -np.inf])) == -1e300


def test_the_draw_follows_the_distribution():
    scores, rng = np.log([0.2, 0.5, 0.3]), np.random.default_rng(0)
    counts = np.bincount([draw(scores, rng)[0] for _ in range(10_000)], minlength=3)
    assert counts / 10_000 == pytest.approx(np.exp(scores), abs=0.02)


def test_the_winner_has_the_largest_sum_of_score_and_noise():
    scores = np.array([0.0, -np.inf, 3.0, 1.0])
    for seed in range(50):
        winner, noise = draw(scores, np.random.default_rng(seed))
        assert winner == np.argmax(scores + noise)
        assert np.isfinite(noise).all()


def test_old_receipts_keep_their_noise():
    winner, noise = draw(np.zeros(4), np.random.default_rng(streams_of(7)[1]))
    known = [-0.8622948828372138, -0.6816569867042488, -0.7732294125299534, -0.959369786057957]
    assert (winner, noise.tolist()) == (1, pytest.approx(known, rel=1e-12))


def test_the_two_streams_of_a_seed_differ_and_fit_into_53_bits():
    streams = [stream for seed in range(100) for stream in streams_of(seed)]
    assert len(set(streams)) == 200
    assert max(streams) < 2**53
    assert streams_of(2**200) != streams_of(2**200 + 1)
