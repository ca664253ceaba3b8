"""Asking agents what every reply is worth to them, until a deadline."""

from llm_auction_chain.reports.collect import OnAgentError, Terms, collect
from llm_auction_chain.reports.report import Report, Status, bounds_of, cap_of

__all__ = ["OnAgentError", "Report", "Status", "Terms", "bounds_of", "cap_of", "collect"]
