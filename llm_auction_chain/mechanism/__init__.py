"""The mechanism of the paper, in NumPy: no language model, no LangChain, no I/O, no clock."""

from llm_auction_chain.mechanism.diagnostics import Diagnostics, effective_sample_size, pareto_k_hat
from llm_auction_chain.mechanism.payments import PAYMENT_RULES, PaymentRule
from llm_auction_chain.mechanism.settlement import Settlement, settle

__all__ = [
    "PAYMENT_RULES",
    "Diagnostics",
    "PaymentRule",
    "Settlement",
    "effective_sample_size",
    "pareto_k_hat",
    "settle",
]
