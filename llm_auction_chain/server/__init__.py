"""An HTTP server in the wire formats of OpenAI, and a page to see auctions happen."""

from llm_auction_chain.server.access import Key
from llm_auction_chain.server.app import create_app
from llm_auction_chain.server.config import ServerConfig
from llm_auction_chain.server.limits import Limits

__all__ = ["Key", "Limits", "ServerConfig", "create_app"]
