"""For tests of auctions, yours and ours: an exactly solvable chat model, and laws as test classes to inherit from."""

from llm_auction_chain.testing.conformance import (
    LedgerConformance,
    ProposalConformance,
    RewardConformance,
    ScorerConformance,
)
from llm_auction_chain.testing.markov import MarkovChatModel

__all__ = ["LedgerConformance", "MarkovChatModel", "ProposalConformance", "RewardConformance", "ScorerConformance"]
