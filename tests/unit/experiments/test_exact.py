"""The solvable bed: pi* by enumeration, and auctions that approach it."""

import numpy as np
import pytest

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.experiments.baselines import CONTEXT_PROMPT, REFERENCE, no_auction, soft_best_of_n
from llm_auction_chain.experiments.exact import ExactBed, SmallBed, divergence


@pytest.fixture(scope="module")
def bed():
    return ExactBed.make()


def test_all_replies_are_there_and_their_probabilities_sum_to_1(bed):
    assert bed.log_probs.shape == (2, 6**7)
    assert np.exp(bed.log_probs).sum(axis=1) == pytest.approx([1, 1])
    assert np.exp(bed.log_optimum).sum() == pytest.approx(1)
    assert bed.optimum.sum() == pytest.approx(1)


def test_the_optimum_maximises_regularised_welfare(bed):
    # J(pi) = E[sum r] - KL(pi || pi_ref) at tau 1: J* at pi*, less by KL(pi || pi*) anywhere else
    optimum, reference = np.exp(bed.log_optimum), np.exp(bed.log_probs[0])
    for share in (0.0, 0.3, 0.9, 1.0):
        pi = share * optimum + (1 - share) * reference
        worth = pi @ bed.total - divergence(pi, reference)
        assert worth == pytest.approx(bed.best - divergence(pi, optimum))


def test_figures_repeat_and_approach_the_optimum(bed):
    few, many = (bed.simulate([m, 0], auctions=400, seed=1) for m in (2, 32))
    assert few == bed.simulate([2, 0], auctions=400, seed=1)
    assert many.distance < few.distance / 2
    assert many.gap < few.gap / 2
    assert few.log_probability < many.log_probability


def test_the_certificate_is_tight_for_one_draw_of_the_reference(bed):
    # at M = 1 the reply is the reference's, and J* - E[G_1] = J* - E[sum r] = KL(pi_ref || pi*) * tau. The figures are
    # 4,000 auctions' and of the reward vector, whose divergence is the replies' own: both depend on it alone. The
    # slack's interval of four standard errors misses 0 with probability below 1e-4.
    point = bed.simulate([1, 0], auctions=4000, seed=0)
    assert abs(point.slack[0]) < 4 * point.slack[1]


def test_a_tilt_that_is_no_number_is_refused():
    with pytest.raises(ConfigurationError, match="tilt must be a finite number"):
        ExactBed.make(tilt=float("nan"))


def test_the_small_bed_is_exact():
    bed = SmallBed.make()
    for law in bed.laws.values():
        assert law.sum() == pytest.approx(1)
    # soft best of n is the softmax over the draws: against all 9 ** 2 ordered ones
    law, revenue = bed.hold(soft_best_of_n(tau=1.0, free=True), {REFERENCE: 2})
    expected = np.zeros(9)
    for a in range(9):
        for b in range(9):
            chances = np.exp(bed.rewards.sum(axis=0)[[a, b]])
            np.add.at(expected, [a, b], bed.laws[REFERENCE][a] * bed.laws[REFERENCE][b] * chances / chances.sum())
    assert law == pytest.approx(expected)
    assert revenue == 0.0


def test_weights_bring_the_context_prompt_back_to_the_reference_on_average():
    bed = SmallBed.make()
    distances = [divergence(bed.hold(no_auction, {CONTEXT_PROMPT: m})[0], bed.laws[REFERENCE]) for m in (1, 2, 4)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < distances[0] / 2
