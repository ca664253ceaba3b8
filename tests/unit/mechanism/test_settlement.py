"""`settle` refuses invalid arguments with an error of the package that says what to do."""

import datetime as dt
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from llm_auction_chain.errors import ConfigurationError, RewardError
from llm_auction_chain.mechanism import settle


@pytest.mark.parametrize(
    "tau",
    [
        0,
        -1,
        math.nan,
        math.inf,
        None,
        "1",
        b"1",
        True,
        np.True_,
        1j,
        [1.0],
        10**400,
        -(10**400),
        np.timedelta64(1),
    ],
)
def test_a_tau_that_is_not_a_finite_positive_number_is_refused(tau):
    with pytest.raises(ConfigurationError, match="tau"):
        settle([[1.0]], tau=tau)


@pytest.mark.parametrize(
    "rewards",
    [[[math.nan]], [[math.inf]], [["1"]], [[None]], [[True]], [1.0], [[[1.0]]], [[1.0], [1.0, 2.0]], np.empty((2, 0)),
     [[1e200]], [[1j]], [[10**400]], [[True, 1.0]], [[np.True_, 1.0]], np.array([[np.True_, 1.0]], dtype=object),
     np.array([[b"1"]]), [["1", 1.0]], np.array([["2020-01-01"]], dtype="M8[D]"), np.array([[3]], dtype="m8[s]"),
     [[np.timedelta64(3)]], [[dt.timedelta(3)]], [[Decimal("nan")]], [[Decimal("snan")]], [[Decimal("1e200")]],
     [[object()]], 3, "12", None, [[{}]]],
)  # fmt: skip
def test_rewards_that_are_no_matrix_of_finite_numbers_are_refused(rewards):
    with pytest.raises(RewardError):
        settle(rewards, tau=1.0)


@pytest.mark.parametrize(
    "weights",
    [
        [0.0],
        [math.nan, 0.0],
        [math.inf, 0.0],
        [-math.inf, -math.inf],
        ["a", "b"],
        ["0", "1"],
        [True, False],
        np.array([True, False]),
        [True, 0.0],
        [None, 0.0],
        [10**400, 0],
        [1e200, 0.0],
        3,
        np.array([1, 2], dtype="m8[s]"),
    ],
)
def test_log_weights_that_no_draw_can_follow_are_refused(weights):
    with pytest.raises(RewardError, match=r"log_weights?"):
        settle([[1.0, 2.0]], weights, tau=1.0)


def test_other_bad_settings_are_refused():
    with pytest.raises(ConfigurationError, match="payment_rule"):
        settle([[1.0]], tau=1.0, payment_rule="free")
    with pytest.raises(ConfigurationError, match="owners"):
        settle([[1.0]], tau=1.0, owners=["a", "b"])
    with pytest.raises(ConfigurationError, match="not both"):
        settle([[1.0]], tau=1.0, seed=1, rng=np.random.default_rng(1))
    with pytest.raises(ConfigurationError, match="seed"):
        settle([[1.0]], tau=1.0, seed=-1)
    with pytest.raises(RewardError, match="proportional"):
        settle([[-1.0, 1.0]], tau=1.0, payment_rule="proportional")


@pytest.mark.parametrize("owners", [[[1]], 3, "a", [], ["a", "b"], [{}]])
def test_owners_that_are_no_list_of_names_are_refused(owners):
    with pytest.raises(ConfigurationError, match="owners"):
        settle([[1.0]], tau=1.0, owners=owners)


@pytest.mark.parametrize(
    "draws", [[1], [1, 0], [1, 1.5], [1, True], ["1", "1"], [[1], [1, 2]], 3, [1, 10**400], [1, math.inf]]
)
def test_draws_that_are_no_counts_are_refused(draws):
    with pytest.raises(ConfigurationError, match="draws"):
        settle([[1.0, 2.0]], tau=1.0, draws=draws)


@pytest.mark.parametrize("rng", [3, "rng", np.random.RandomState(1), np.random])
def test_an_rng_that_is_no_generator_is_refused(rng):
    with pytest.raises(ConfigurationError, match="rng"):
        settle([[1.0]], tau=1.0, rng=rng)


@pytest.mark.parametrize("seed", [-1, True, 1.0, "1", np.True_])
def test_a_seed_that_is_no_whole_number_is_refused(seed):
    with pytest.raises(ConfigurationError, match="seed"):
        settle([[1.0]], tau=1.0, seed=seed)


@pytest.mark.parametrize("rule", ["free", None, ["expected"], np.array(["expected", "pivot"])])
def test_an_unknown_payment_rule_is_refused(rule):
    with pytest.raises(ConfigurationError, match=r"^payment_rule must be"):
        settle([[1.0]], tau=1.0, payment_rule=rule)


@pytest.mark.parametrize(
    "rewards",
    [[[0, 2]], [[Decimal(0), Decimal(2)]], [[Fraction(0), 2.0]], [[np.float32(0), np.int64(2)]], [np.array([0.0, 2.0])],
     np.array([[0, 2]], dtype=np.int8), np.array([[0, 2]], dtype=object), np.asfortranarray([[0.0, 2.0]])],
)  # fmt: skip
def test_numbers_of_every_kind_are_rewards(rewards):
    assert settle(rewards, [0, Decimal(0)], tau=Fraction(1), seed=7).probabilities == pytest.approx(
        settle([[0.0, 2.0]], tau=1.0, seed=7).probabilities
    )


def test_a_log_weight_below_minus_1e100_counts_as_minus_infinity():
    log_p = settle([[0.0, 0.0, 0.0]], [-1.1e100, 0.0, -1e100], tau=1.0).log_probabilities
    assert log_p.tolist() == [-math.inf, 0.0, -1e100]
    assert settle([[0.0]], [-1e100], tau=1.0).winner == 0


@pytest.mark.parametrize("tau", [1e-100, 1e100])
def test_the_bounds_of_tau_and_of_rewards_are_allowed(tau):
    assert settle([[1e100, -1e100]], [1e100, 0.0], tau=tau).tau == tau
    for beyond in (0.99e-100, 1.01e100):
        with pytest.raises(ConfigurationError, match=r"tau must be a number above 0, from 1e-100 to 1e100, got"):
            settle([[0.0]], tau=beyond)


def test_a_fresh_seed_has_53_bits_which_json_holds_exactly():
    seeds = {settle([[1.0, 0.0]], tau=1.0).seed for _ in range(64)}
    assert len(seeds) == 64
    assert 2**50 < max(seeds) < 2**53


def test_a_seed_may_be_a_whole_number_of_numpy():
    assert settle([[1.0, 0.0]], tau=1.0, seed=np.int64(7)).seed == 7


@pytest.mark.parametrize("rule", ["expected", "proportional", "influence", "pivot"])
def test_a_reward_for_a_candidate_that_is_never_drawn_does_not_count(rule):
    outcome, other = (
        settle([[reward, 1.0, 3.0]], [-math.inf, 0.0, 0.0], tau=1.0, payment_rule=rule, seed=7)
        for reward in (-9.0, 2.0)
    )
    assert outcome.payments.tolist() == other.payments.tolist()
