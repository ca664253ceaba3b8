"""Settings that no auction can run with are refused, by name."""

import pytest

from llm_auction_chain import ConfigurationError
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
