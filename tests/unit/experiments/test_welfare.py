"""The welfare experiment on a model that is small enough to reason about."""

from llm_auction_chain.experiments import run
from llm_auction_chain.testing import MarkovChatModel


def test_a_smaller_tau_gives_sponsors_more():
    found = run("welfare", quick=True, model=MarkovChatModel(length=6)).summary().findings
    rows = [row for row in found.tables[0].rows if row[0] == "reference"]
    worths = [worth.value for _, _, worth, _ in rows]
    assert worths == sorted(worths, reverse=True)
