"""For tests of auctions, yours and ours: chat models without weights, and laws as test classes to inherit from."""

from llm_auction_chain.testing.conformance import (
    LedgerConformance,
    ProposalConformance,
    RewardConformance,
    ScorerConformance,
)
from llm_auction_chain.testing.markov import MarkovChatModel
from llm_auction_chain.testing.scripted import ScriptedChatModel

__all__ = [
    "LedgerConformance",
    "MarkovChatModel",
    "ProposalConformance",
    "RewardConformance",
    "ScorerConformance",
    "ScriptedChatModel",
]
