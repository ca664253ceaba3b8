"""Where replies come from, and how likely they are."""

from llm_auction_chain.candidates.drawing import Candidate, Contexts, Drawn, Plan, Size, draw, make_plan
from llm_auction_chain.candidates.filtering import CandidateFilter, as_message
from llm_auction_chain.candidates.logprobs import LogProbs, SequenceScorer, read_log_probs
from llm_auction_chain.candidates.proposals import (
    Condition,
    ContextProduct,
    ContextPrompt,
    DefensiveMixture,
    KeywordTilt,
    Proposal,
    ProposalInputs,
    Reference,
    check_proposal,
)
from llm_auction_chain.candidates.source import Source, hidden, is_streaming, quiet
from llm_auction_chain.candidates.unwrapping import (
    ChosenLater,
    chat_model_of,
    chat_models_in,
    innermost,
    inside,
    is_chosen_later,
    name_of,
    offers_tools,
    runnables_in,
    settings_of,
)

__all__ = [
    "Candidate",
    "CandidateFilter",
    "ChosenLater",
    "Condition",
    "ContextProduct",
    "ContextPrompt",
    "Contexts",
    "DefensiveMixture",
    "Drawn",
    "KeywordTilt",
    "LogProbs",
    "Plan",
    "Proposal",
    "ProposalInputs",
    "Reference",
    "SequenceScorer",
    "Size",
    "Source",
    "as_message",
    "chat_model_of",
    "chat_models_in",
    "check_proposal",
    "draw",
    "hidden",
    "innermost",
    "inside",
    "is_chosen_later",
    "is_streaming",
    "make_plan",
    "name_of",
    "offers_tools",
    "quiet",
    "read_log_probs",
    "runnables_in",
    "settings_of",
]
