"""Other values of tau over the same candidates: neither the model nor an agent is called again."""

from collections import Counter

import numpy as np
import pytest

from llm_auction_chain import ConfigurationError, tau_sweep
from llm_auction_chain.testing import MarkovChatModel
from tests.unit.auction.auctions import auction


def test_a_tau_sweep_settles_the_stored_candidates_and_asks_nobody():
    asked = Counter()

    class Watched(MarkovChatModel):
        def _generate(self, *args, **kwargs):
            asked["model"] += 1
            return super()._generate(*args, **kwargs)

    result = auction(model=Watched(length=3)).run("Speak")
    before = dict(asked)
    points = tau_sweep(result, [0.01, 0.3, 1.0, 3.0, 1000.0])
    assert dict(asked) == before
    same = points[2].settlement
    assert np.array_equal(same.probabilities, result.settlement.probabilities)
    assert np.array_equal(same.payments, result.settlement.payments)
    assert same.winner == result.settlement.winner
    assert points[2].expected_revenue == pytest.approx(result.settlement.expected_payments.sum())
    welfare = [point.welfare for point in points]
    assert welfare == sorted(welfare, reverse=True)
    assert welfare[0] == pytest.approx(result.rewards.sum(axis=0).max(), abs=1e-6)
    distances = [point.distance for point in points]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] == pytest.approx(0.0, abs=1e-5)
    with pytest.raises(ConfigurationError):
        tau_sweep(result, [0.0])
