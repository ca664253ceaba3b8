"""Where replies come from, and how likely they were."""

from llm_auction_chain.candidates.sampling import Candidate, Drawn, asample, sample

__all__ = ["Candidate", "Drawn", "asample", "sample"]
