"""For tests of auctions, yours and ours: an exactly solvable chat model, and the laws that scorers must obey."""

from llm_auction_chain.testing.markov import MarkovChatModel
from llm_auction_chain.testing.scorers import ScorerConformance

__all__ = ["MarkovChatModel", "ScorerConformance"]
