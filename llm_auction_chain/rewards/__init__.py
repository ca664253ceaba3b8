"""Ready-made rewards: what agents want, and what it is worth to them."""

from llm_auction_chain.rewards.base import AskedBy, Reward, asked_by
from llm_auction_chain.rewards.click import ClickReward
from llm_auction_chain.rewards.embedding import EmbeddingReward
from llm_auction_chain.rewards.judge import JudgeReward
from llm_auction_chain.rewards.log_ratio import LogRatioReward, log_ratios_of
from llm_auction_chain.rewards.parsed import ParsedReward
from llm_auction_chain.rewards.reward_model import RewardModelReward
from llm_auction_chain.rewards.text import LengthReward, MentionReward, RegexReward
from llm_auction_chain.rewards.webhook import WebhookReward

__all__ = [
    "AskedBy",
    "ClickReward",
    "EmbeddingReward",
    "JudgeReward",
    "LengthReward",
    "LogRatioReward",
    "MentionReward",
    "ParsedReward",
    "RegexReward",
    "Reward",
    "RewardModelReward",
    "WebhookReward",
    "asked_by",
    "log_ratios_of",
]
