"""Where replies come from, and how likely they were."""

from llm_auction_chain.candidates.base import Candidate, LogProbs, SequenceScorer
from llm_auction_chain.candidates.drawing import Drawn, draw
from llm_auction_chain.candidates.filtering import CandidateFilter, as_message
from llm_auction_chain.candidates.isolation import hidden, quiet
from llm_auction_chain.candidates.logprobs import read_log_probs
from llm_auction_chain.candidates.plan import Contexts, Plan, Size, make_plan
from llm_auction_chain.candidates.proposals import (
    ContextProduct,
    ContextPrompt,
    DefensiveMixture,
    Proposal,
    Reference,
    check_proposal,
)
from llm_auction_chain.candidates.source import Source
from llm_auction_chain.candidates.unwrapping import (
    all_in,
    chat_model_of,
    innermost,
    inside,
    name_of,
    offers_tools,
    settings_of,
)

__all__ = [
    "Candidate",
    "CandidateFilter",
    "ContextProduct",
    "ContextPrompt",
    "Contexts",
    "DefensiveMixture",
    "Drawn",
    "LogProbs",
    "Plan",
    "Proposal",
    "Reference",
    "SequenceScorer",
    "Size",
    "Source",
    "all_in",
    "as_message",
    "chat_model_of",
    "check_proposal",
    "draw",
    "hidden",
    "innermost",
    "inside",
    "make_plan",
    "name_of",
    "offers_tools",
    "quiet",
    "read_log_probs",
    "settings_of",
]
