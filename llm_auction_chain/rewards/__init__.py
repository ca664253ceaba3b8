"""What agents want: reports from untrusted callbacks, and ready-made rewards."""

from llm_auction_chain.rewards.mention import MentionReward
from llm_auction_chain.rewards.reports import OnAgentError, Report, acollect, collect

__all__ = ["MentionReward", "OnAgentError", "Report", "acollect", "collect"]
