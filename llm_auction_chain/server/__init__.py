"""An HTTP server in the wire formats of OpenAI, and a page to see auctions happen."""

from typing import TYPE_CHECKING, Any

from llm_auction_chain.server.access import Key
from llm_auction_chain.server.app import create_app
from llm_auction_chain.server.config import ServerConfig
from llm_auction_chain.server.limits import Limits

if TYPE_CHECKING:
    from llm_auction_chain.server.page import mount_playground, playground

__all__ = ["Key", "Limits", "ServerConfig", "create_app", "mount_playground", "playground"]


def __getattr__(name: str) -> Any:
    """Load the playground, which needs gradio, when it is first used."""
    if name not in ("mount_playground", "playground"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from llm_auction_chain.server import page

    return getattr(page, name)
