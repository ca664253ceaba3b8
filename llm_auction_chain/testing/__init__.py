"""For tests of auctions, yours and ours: an exactly solvable chat model."""

from llm_auction_chain.testing.markov import MarkovChatModel

__all__ = ["MarkovChatModel"]
