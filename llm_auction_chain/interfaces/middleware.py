"""`AuctionMiddleware`: an auction in LangChain's `create_agent`."""

import warnings
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Annotated, Any, NotRequired

from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnablePassthrough
from typing_extensions import override

from llm_auction_chain.agents import AGENTS_OF_CALL, AgentSource, agents_of_call
from llm_auction_chain.auction.events import AuctionEvent
from llm_auction_chain.auction.settings import AuctionSettings
from llm_auction_chain.candidates import chat_model_of
from llm_auction_chain.errors import AuctionWarning, ConfigurationError, MissingDependencyError
from llm_auction_chain.interfaces.chat_model import ChatAuction

try:
    from langchain.agents.middleware.types import (
        AgentMiddleware,
        AgentState,
        ExtendedModelResponse,
        ModelRequest,
        ModelResponse,
        OmitFromInput,
        OmitFromOutput,
    )
    from langgraph.channels import UntrackedValue
    from langgraph.types import Command
except ImportError as error:
    raise MissingDependencyError(
        "AuctionMiddleware needs the agents extra: pip install 'llm-auction-chain[agents]'"
    ) from error

__all__ = ["AuctionMiddleware"]


def _each_once(known: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all auctions in their order, each once: an update may repeat one."""
    return list({auction["auction_id"]: auction for auction in [*known, *new]}.values())


class AuctionState(AgentState[Any]):
    """What the middleware adds to an agent's state.

    Attributes:
        auctions: the metadata of every auction whose reply became a message of this thread, in order.
        auction_agents: the agents of this call. No checkpoint stores it, because agents are code. With a checkpointer,
            which stores a call's whole input, set it in a middleware or in the runtime context, not in the input.
    """

    auctions: NotRequired[Annotated[list[dict[str, Any]], OmitFromInput, _each_once]]
    auction_agents: NotRequired[Annotated[Any, UntrackedValue, OmitFromOutput]]


class AuctionMiddleware(AgentMiddleware[AuctionState, Any, Any]):
    """Auction the replies of an agent's model. The final state's `auctions` list the payments of every turn.

    Put it last in the list of middleware. Then it is the innermost: the others see the model itself, and what they
    retry or replace is auctioned as well. A turn in which the agent may call tools is not auctioned unless
    `on_tool_calls` is `auction`.

    Args:
        agents: a list of Agent, or a callable, sync or async, that returns one for a `ModelRequest`. The first of these
            replaces it: `auction_agents` under `configurable`, in the runtime context (an attribute or a key), in the
            state. It is at least one Agent, or a callable: what clients send as JSON is refused.
        **settings: as for `AuctionRunnable`. `stream_mode="custom"` shows the auction's events too.

    Raises:
        ConfigurationError: a setting is invalid; or, in a call, the model is an auction already.

    >>> from langchain.agents import create_agent
    >>> from llm_auction_chain import Agent
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> likes_b = Agent("B", lambda prompt, reply: 2.0 * reply.text.count("b"))
    >>> agent = create_agent(MarkovChatModel(), middleware=[AuctionMiddleware([likes_b], seed=7)])
    >>> state = agent.invoke({"messages": [("human", "Say something")]})
    >>> [payment["agent"] for payment in state["auctions"][0]["payments"]]
    ['B']
    """

    state_schema = AuctionState

    def __init__(self, agents: AgentSource = (), **settings: Any) -> None:
        super().__init__()
        if "model" in settings:
            raise ConfigurationError("model is the agent's own; give it to create_agent.")
        # the model comes with each call; everything else is checked now
        self._checked = AuctionSettings(model=RunnablePassthrough(), agents=agents, **settings)
        self._settings = settings

    @override
    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ExtendedModelResponse[Any]:
        """Answer with the drawn reply."""
        return _with_auctions(handler(self._auctioned(request)))

    @override
    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ExtendedModelResponse[Any]:
        """Answer with the drawn reply."""
        return _with_auctions(await handler(self._auctioned(request)))

    def _auctioned(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        """Return the request with an auction over its model in the model's place."""
        if isinstance(chat_model_of(request.model), ChatAuction):
            raise ConfigurationError("The agent's model is an auction already; give create_agent the model itself.")
        settings = {**self._settings, "agents": self._agents(request), "on_event": self._event_hook(request)}
        return request.override(model=ChatAuction(model=request.model, **settings))

    def _agents(self, request: ModelRequest[Any]) -> Any:
        context = getattr(request.runtime, "context", None)
        of_context = context.get if isinstance(context, Mapping) else partial(getattr, context)
        agents = of_context(AGENTS_OF_CALL, None)
        if agents is None:
            agents = (request.state or {}).get(AGENTS_OF_CALL)
        agents = self._checked.agents if agents is None else agents_of_call(AGENTS_OF_CALL, agents)
        if callable(agents) and not isinstance(agents, Runnable):
            return lambda _: agents(request)
        return agents

    def _event_hook(self, request: ModelRequest[Any]) -> Callable[[AuctionEvent], Any]:
        write, own = getattr(request.runtime, "stream_writer", None), self._checked.on_event

        def hook(event: AuctionEvent) -> Any:
            if write is not None:
                write({"event": event.name, **event.data})
            return own(event) if own else None

        return hook


def _with_auctions(response: ModelResponse[Any]) -> ExtendedModelResponse[Any]:
    """Return the response with its auction's metadata, for the state."""
    auctions = [
        message.response_metadata["auction"]
        for message in response.result
        if isinstance(message, AIMessage) and "auction" in message.response_metadata
    ]
    if not auctions:
        warnings.warn(
            "No auction was held: a middleware behind AuctionMiddleware replaced the model, or answered itself. Put "
            "AuctionMiddleware last.",
            AuctionWarning,
            stacklevel=2,
        )
    return ExtendedModelResponse(model_response=response, command=Command(update={"auctions": auctions}))
