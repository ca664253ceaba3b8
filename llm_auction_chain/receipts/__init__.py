"""The record of one auction: plain JSON from which its result can be recomputed without clock, network or model."""

from llm_auction_chain.receipts.checks import Difference
from llm_auction_chain.receipts.inclusion import Inclusion, check_inclusion, prove
from llm_auction_chain.receipts.issuing import Opening, issue, open_auction
from llm_auction_chain.receipts.records import GENERATOR, MECHANISM, AgentView, Receipt
from llm_auction_chain.receipts.signing import load_private_key, load_public_key
from llm_auction_chain.receipts.verification import Verification, verify

__all__ = [
    "GENERATOR",
    "MECHANISM",
    "AgentView",
    "Difference",
    "Inclusion",
    "Opening",
    "Receipt",
    "Verification",
    "check_inclusion",
    "issue",
    "load_private_key",
    "load_public_key",
    "open_auction",
    "prove",
    "verify",
]
