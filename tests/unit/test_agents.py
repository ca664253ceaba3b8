"""Agents: what their settings may be."""

import pytest

from llm_auction_chain import Agent, ConfigurationError


@pytest.mark.parametrize("name", ["half \ud800", "null \0", "x" * 256])
def test_names_that_no_ledger_holds_are_refused(name):
    for names in ({"name": name}, {"name": "A", "owner": name}):
        with pytest.raises(ConfigurationError, match="at most 255"):
            Agent(reward=len, **names)
