"""The record of one auction: plain JSON that anybody entitled can recompute, without clock, network or model."""

from llm_auction_chain.receipts.issue import issue
from llm_auction_chain.receipts.opening import Opening, open_auction
from llm_auction_chain.receipts.records import GENERATOR, MECHANISM, AgentView, Receipt
from llm_auction_chain.receipts.signing import load_private_key, load_public_key
from llm_auction_chain.receipts.verification import Difference, Verification, verify

__all__ = [
    "GENERATOR",
    "MECHANISM",
    "AgentView",
    "Difference",
    "Opening",
    "Receipt",
    "Verification",
    "issue",
    "load_private_key",
    "load_public_key",
    "open_auction",
    "verify",
]
