"""MOSAIC auctions for LangChain: agents bid to steer a language model's reply, and honest bidding pays best."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_auction_chain.agents import Agent, load_agents
    from llm_auction_chain.auction.events import AuctionEvent, Progress
    from llm_auction_chain.auction.plots import plot_tau_sweep
    from llm_auction_chain.auction.result import AuctionResult
    from llm_auction_chain.auction.settings import Billing, Disclosure, Policy, Sampling
    from llm_auction_chain.auction.tau_sweep import TauPoint, tau_sweep
    from llm_auction_chain.candidates import ContextProduct, ContextPrompt, DefensiveMixture, KeywordTilt, Reference
    from llm_auction_chain.descriptions import lint_context
    from llm_auction_chain.directory import AgentDirectory
    from llm_auction_chain.errors import (
        AuctionError,
        AuctionWarning,
        CandidatesError,
        ChargeConflictError,
        ConfigurationError,
        ContextWindowError,
        CoverError,
        DeliveredError,
        LedgerError,
        LedgerUnavailableError,
        LogitsError,
        LogProbError,
        MissingDependencyError,
        PromptError,
        RewardError,
        ScoringError,
    )
    from llm_auction_chain.interfaces.chat_model import ChatAuction
    from llm_auction_chain.interfaces.middleware import AuctionMiddleware
    from llm_auction_chain.interfaces.ray_data import map_auctions
    from llm_auction_chain.interfaces.runnable import AuctionRunnable
    from llm_auction_chain.interfaces.telemetry import OpenTelemetryHandler
    from llm_auction_chain.ledger import Ledger
    from llm_auction_chain.messages import public_reply
    from llm_auction_chain.models.local.chat_model import ChatTransformers
    from llm_auction_chain.models.vllm.chat_model import ChatVLLM

__all__ = [
    "Agent",
    "AgentDirectory",
    "AuctionError",
    "AuctionEvent",
    "AuctionMiddleware",
    "AuctionResult",
    "AuctionRunnable",
    "AuctionWarning",
    "Billing",
    "CandidatesError",
    "ChargeConflictError",
    "ChatAuction",
    "ChatTransformers",
    "ChatVLLM",
    "ConfigurationError",
    "ContextProduct",
    "ContextPrompt",
    "ContextWindowError",
    "CoverError",
    "DefensiveMixture",
    "DeliveredError",
    "Disclosure",
    "KeywordTilt",
    "Ledger",
    "LedgerError",
    "LedgerUnavailableError",
    "LogProbError",
    "LogitsError",
    "MissingDependencyError",
    "OpenTelemetryHandler",
    "Policy",
    "Progress",
    "PromptError",
    "Reference",
    "RewardError",
    "Sampling",
    "ScoringError",
    "TauPoint",
    "lint_context",
    "load_agents",
    "map_auctions",
    "plot_tau_sweep",
    "public_reply",
    "tau_sweep",
]

_NAMES = {
    "agents": ("Agent", "load_agents"),
    "auction.events": ("AuctionEvent", "Progress"),
    "auction.plots": ("plot_tau_sweep",),
    "auction.result": ("AuctionResult",),
    "auction.settings": ("Billing", "Disclosure", "Policy", "Sampling"),
    "auction.tau_sweep": ("TauPoint", "tau_sweep"),
    "candidates": ("ContextProduct", "ContextPrompt", "DefensiveMixture", "KeywordTilt", "Reference"),
    "descriptions": ("lint_context",),
    "directory": ("AgentDirectory",),
    "interfaces.chat_model": ("ChatAuction",),
    "interfaces.middleware": ("AuctionMiddleware",),
    "interfaces.ray_data": ("map_auctions",),
    "interfaces.runnable": ("AuctionRunnable",),
    "interfaces.telemetry": ("OpenTelemetryHandler",),
    "ledger": ("Ledger",),
    "messages": ("public_reply",),
    "models.local.chat_model": ("ChatTransformers",),
    "models.vllm.chat_model": ("ChatVLLM",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
_LIBRARIES = {"AuctionMiddleware": "langchain", "Ledger": "sqlalchemy", "plot_tau_sweep": "matplotlib"}
_PUBLIC = frozenset(globals().pop("__all__"))  # `__getattr__` returns it: the libraries are looked for when asked


def _is_installed(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except (ImportError, ValueError):  # of import hooks, and of modules that something else put in place
        return False


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that importing the package costs nothing."""
    if name == "__all__":  # for an import of all names, which is not one of those whose libraries are missing
        return [name for name in sorted(_PUBLIC) if name not in _LIBRARIES or _is_installed(_LIBRARIES[name])]
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
