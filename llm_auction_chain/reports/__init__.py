"""Asking agents what every reply is worth to them, behind a deadline."""

from llm_auction_chain.reports.collect import collect
from llm_auction_chain.reports.report import OnAgentError, Report, Terms

__all__ = ["OnAgentError", "Report", "Terms", "collect"]
