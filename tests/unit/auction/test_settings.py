"""Settings that no auction can run with are refused, by name."""

import math

import pytest

from llm_auction_chain import Agent, AuctionRunnable, ConfigurationError
from llm_auction_chain.testing import MarkovChatModel
from tests.unit.auction.auctions import auction


@pytest.mark.parametrize("settings", [
    {"policy": "rude"}, {"policy": {"fallback": 3}}, {"policy": {"exclusive_categories": "cars"}},
    {"policy": {"exclusive_categories": [""]}}, {"policy": {"candidate_filter": "rude"}},
    {"reward_timeout": 0}, {"reward_timeout": True}, {"reward_timeout": float("nan")}, {"report_cap": -1.0},
    {"billing": {"currency": 3}}, {"disclosure": 3}, {"disclosure": {"place": "middle"}},
])  # fmt: skip
def test_rules_no_auction_can_keep_are_refused(settings):
    with pytest.raises(ConfigurationError, match=_innermost_name(settings)):
        auction(**settings)


def _innermost_name(settings):
    name, value = next(iter(settings.items()))
    return (next(iter(value)) if isinstance(value, dict) else name).replace("exclusive_", "")


@pytest.mark.parametrize("settings", [
    {"tau": 0}, {"tau": -1.0}, {"tau": math.nan}, {"tau": math.inf}, {"tau": "soft"},
    {"n_candidates": 0}, {"n_candidates": "many"}, {"sampling": {"min_candidates": 0}},
    {"sampling": {"min_candidates": 5}},
    {"payment_rule": "free"}, {"on_agent_error": "ignore"}, {"agents": [Agent("A", len), Agent("A", len)]},
    {"agents": ["A"]}, {"agents": 3}, {"unknown": 1}, {"model": "gpt"}, {"seed": -1}, {"seed": True}, {"tau": True},
    {"n_candidates": True}, {"proposal": "context"}, {"sampling": {"scorer": 3}},
    {"sampling": {"min_ess": 0}}, {"sampling": {"min_ess": 17.0}},
    {"sampling": {"min_ess": 2.0, "max_candidates": 3}}, {"sampling": {"max_candidates": 8}},
    {"sampling": {"min_ess": 5.0, "max_candidates": 4}},
])  # fmt: skip
def test_settings_no_auction_can_run_with_are_refused(settings):
    with pytest.raises(ConfigurationError):
        AuctionRunnable(**{"model": MarkovChatModel(), "n_candidates": 4, **settings})


@pytest.mark.parametrize("seed", [-1, True, 1.5])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ConfigurationError, match="seed"):
        AuctionRunnable(model=MarkovChatModel()).run("x", seed=seed)
