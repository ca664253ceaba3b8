"""The common base of `AuctionRunnable` and `ChatAuction`: from a call to its auction, and what both can be asked."""

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar, cast, get_args
from uuid import NAMESPACE_URL, uuid5

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import set_config_context
from langchain_core.utils.uuid import uuid7
from pydantic import ConfigDict, Field, PrivateAttr

from llm_auction_chain.agents import AGENTS_OF_CALL, Agent, agents_of_call, check_agents
from llm_auction_chain.auction.admission import SEEDS, Call
from llm_auction_chain.auction.billing import Delivery
from llm_auction_chain.auction.events import AuctionEvent, ProgressHook
from llm_auction_chain.auction.pipeline import hold_auction
from llm_auction_chain.auction.progress_bar import progress_hook
from llm_auction_chain.auction.result import AuctionResult
from llm_auction_chain.auction.settings import GROUPS, AuctionSettings, OnToolCalls, group_of
from llm_auction_chain.candidates import hidden, offers_tools, quiet
from llm_auction_chain.errors import ConfigurationError, DeliveredError
from llm_auction_chain.interfaces.binding import AuctionBinding, with_schema, with_tools
from llm_auction_chain.messages import json_of, messages_of
from llm_auction_chain.receipts.records import message_digest
from llm_auction_chain.validators import choice, refuse, text, whole_number
from llm_auction_chain.waiting import Waiter

__all__ = ["STRICT", "AuctionBase", "CallScope", "chunk_of", "within"]

STRICT = ConfigDict(arbitrary_types_allowed=True, extra="forbid", strict=True, validate_assignment=True)
# Keywords of a call that are not for the model, and where they belong. A model may well take a keyword `model`.
_REFUSED = {
    "agents": "Give it as config={'configurable': {'auction_agents': [...]}}, or where the auction is made.",
    "auction_id": "Give config={'configurable': {'idempotency_key': ...}}; the same key and prompt have the same id.",
    "progress": "Give it to run or arun.",
    "prompt": "The prompt is the input, the first argument.",
}
A = TypeVar("A", bound="AuctionBase")
_OF_A_CALL = frozenset({"model", "on_tool_calls", "seed"})


@dataclass(frozen=True, kw_only=True)
class CallScope:
    """What a call of an interface hands on to the auction that it holds, past LangChain's own machinery.

    Attributes:
        delivery: takes the result, and takes the charge back where the reply does not reach the caller.
        progress: called while candidates and reports come in.
        whole: whether the caller wants the whole result, which the ledger does not keep of a delivered auction.
        config: of a chat model's call, which LangChain does not hand to `_generate`.
    """

    delivery: Delivery
    progress: ProgressHook | None = None
    whole: bool = False
    config: RunnableConfig = field(default_factory=RunnableConfig)


class AuctionBase(AuctionSettings):
    """An auction behind one of LangChain's interfaces."""

    # on a copy that serves one call of `run`, `batch` or a chat model; None on what users make
    _scope: CallScope | None = PrivateAttr(default=None)
    # on what `bind_tools` returns: a model may keep the tools where nothing shows them; a field, which LangChain hands
    # on where the config of a call chooses other fields
    has_tools: bool = Field(default=False, exclude=True, repr=False)

    @property
    def reference(self) -> Runnable[LanguageModelInput, AIMessage]:
        """The plain model, for calls that no user reads: a summary, a classification, a title."""
        return self.model

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """The groups of settings as mappings, which `langchain_core.load.loads` gives back to the constructor."""
        return {
            group: {name: value for name, value in getattr(self, group) if value != kind.model_fields[name].default}
            for group, kind in GROUPS.items()
        }

    def bind(self, **kwargs: Any) -> AuctionBinding:
        """Return this auction with keywords that every call is made with, `run` and `arun` too."""
        return AuctionBinding(bound=_as_runnable(self), kwargs=kwargs)

    def with_config(self, config: RunnableConfig | None = None, **kwargs: Any) -> AuctionBinding:
        """Return this auction with a config that every call is made with, `run` and `arun` too."""
        return AuctionBinding(bound=_as_runnable(self), config=cast("RunnableConfig", {**(config or {}), **kwargs}))

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return this auction over a model that may call the tools; `on_tool_calls` decides what is auctioned then.

        What is wrapped around the model stays: bindings, retries, fallbacks.

        Args:
            tools: as the model takes them.
            tool_choice: as the model takes it.
            **kwargs: as the model takes them.

        Raises:
            NotImplementedError: the model has no tools.
        """
        auction = self.model_copy(update={"has_tools": bool(tools)})
        return with_tools(auction, tools, **({} if tool_choice is None else {"tool_choice": tool_choice}), **kwargs)

    def with_structured_output(self, schema: Any, **kwargs: Any) -> Runnable[LanguageModelInput, Any]:
        """Return an auction among replies of the schema's shape, followed by the model's own parser.

        Only the drawn reply is parsed. A parsed object has no metadata; `include_raw=True` keeps the message beside it.

        Args:
            schema: as the model takes it.
            **kwargs: as the model takes them: `method`, `include_raw`, `strict`.

        Raises:
            NotImplementedError: the model has no structured output.
            ConfigurationError: its pipeline does not begin with the model.
        """
        return with_schema(self, schema, **kwargs)

    def batch(
        self,
        inputs: Sequence[LanguageModelInput],
        config: Any = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Hold one auction per input. If one raises, all replies are lost and no auction of the batch is charged."""
        scope = self._new_scope()
        # the next class is a Runnable
        with scope.delivery:
            batch = super(AuctionBase, self if return_exceptions else self._with(scope)).batch  # type: ignore[misc]
            return list(batch(inputs, config, return_exceptions=return_exceptions, **kwargs))

    async def abatch(
        self,
        inputs: Sequence[LanguageModelInput],
        config: Any = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Do what `batch` does, in an event loop."""
        scope = self._new_scope()
        async with scope.delivery:
            abatch = super(AuctionBase, self if return_exceptions else self._with(scope)).abatch  # type: ignore[misc]
            return list(await abatch(inputs, config, return_exceptions=return_exceptions, **kwargs))

    def run(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        progress: bool | ProgressHook | None = None,
        **kwargs: Any,
    ) -> AuctionResult:
        """Hold an auction and return the whole result: candidates, reports, settlement, reply.

        Args:
            input: as for `invoke`.
            config: as for `invoke`.
            progress: True shows a bar on standard error, in a shell or a notebook; a function is called with each
                `Progress`.
            **kwargs: as for `invoke`.

        Raises:
            MissingDependencyError: `progress` is True, and tqdm is not installed.
        """
        with progress_hook(progress=progress) as hook:
            scope = replace(self._new_scope(), progress=hook, whole=True)
            with scope.delivery:
                _as_runnable(self._with(scope)).invoke(input, config, **kwargs)
        return scope.delivery.results[0]

    async def arun(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        progress: bool | ProgressHook | None = None,
        **kwargs: Any,
    ) -> AuctionResult:
        """Do what `run` does, in an event loop."""
        with progress_hook(progress=progress) as hook:
            scope = replace(self._new_scope(), progress=hook, whole=True)
            async with scope.delivery:
                await _as_runnable(self._with(scope)).ainvoke(input, config, **kwargs)
        return scope.delivery.results[0]

    def _new_scope(self, config: RunnableConfig | None = None) -> CallScope:
        """Return the scope of a call, within the scope that this copy serves. Without a config it has that one's."""
        outer, ledger = self._scope, self.billing.ledger
        if outer is None:
            return CallScope(delivery=Delivery(ledger), config=config or RunnableConfig())
        return replace(outer, delivery=Delivery(ledger, outer.delivery), config=config or outer.config)

    def _with(self, scope: CallScope) -> Self:
        """Return a copy that serves one call."""
        copy = self.model_copy()
        copy._scope = scope  # noqa: SLF001 - its own
        return copy

    async def _hold(
        self,
        given: LanguageModelInput,
        config: RunnableConfig,
        scope: CallScope,
        keywords: Mapping[str, Any],
        waiter: Waiter,
        *,
        traced: bool = True,
    ) -> AIMessage:
        """Hold an auction under a run and return the drawn reply.

        `config` is that of the run's children. The keywords `seed` and `on_tool_calls` replace the settings of these
        names, the others are for the model. `traced` makes each model call a run of its own.
        """
        model_kwargs = dict(keywords)
        seed, on_tool_calls = model_kwargs.pop("seed", None), model_kwargs.pop("on_tool_calls", None)
        _refuse_settings(model_kwargs)
        seed = self.seed if seed is None else whole_number("seed", seed, below=SEEDS)
        settings = self
        if on_tool_calls is not None:
            choice("on_tool_calls", on_tool_calls, get_args(OnToolCalls))
            settings = self.model_copy(update={"on_tool_calls": on_tool_calls})
        child = quiet(config)
        concealed, prompt = hidden(child), messages_of(given)
        listened = self.on_event is not None or bool(getattr(config.get("callbacks"), "handlers", None))
        offers = offers_tools(self.model, child, model_kwargs) or (self.has_tools and model_kwargs.get("tools", True))
        bypassed = (settings.on_tool_calls == "bypass" and bool(offers)) or _is_internal(config)
        call = Call(
            prompt=prompt,
            auction_id=_auction_id(config, prompt),
            agents=() if bypassed else await self._find_agents(given, child, waiter),
            bypassed=bypassed,
            config=concealed,
            seed=seed,
            model_kwargs=model_kwargs,
            traced=traced,
            notify=(lambda event: self._notify(event, config, waiter)) if listened else None,
            progress=scope.progress,
        )
        try:
            result = await hold_auction(settings, call, waiter)
        except DeliveredError as error:
            if error.reply is None or scope.whole:
                raise
            scope.delivery.add(call.auction_id, error.receipt, None)
            return cast("AIMessage", error.reply)
        scope.delivery.add(result.auction_id, result.receipt.digest if result.charge else "", result)
        return result.reply

    async def _find_agents(self, given: LanguageModelInput, child: RunnableConfig, waiter: Waiter) -> Sequence[Agent]:
        """Return the agents of this call: those in its config, else those of the setting."""
        configurable = child.get("configurable", {})
        agents: Any = configurable.get(AGENTS_OF_CALL)
        if agents is not None:
            agents = agents_of_call(f"configurable[{AGENTS_OF_CALL!r}]", agents)
        elif isinstance(own := configurable.get("agents"), Collection) and any(isinstance(one, Agent) for one in own):
            raise ConfigurationError(
                f"Agents of one call belong under configurable[{AGENTS_OF_CALL!r}], not ['agents']."
            )
        else:
            agents = self.agents
            if isinstance(agents, tuple):  # checked when it was set
                return agents
        if isinstance(source := agents, Runnable):
            agents = await waiter.either(lambda: source.invoke(given, child), lambda: source.ainvoke(given, child))
        elif callable(agents):
            with set_config_context(child) as context:
                agents = context.run(agents, given)
                if inspect.isawaitable(awaitable := agents):
                    agents = await waiter.either(
                        lambda: _refuse_async("agents", awaitable),
                        lambda: asyncio.create_task(_awaited(awaitable), context=context),
                    )
        return check_agents(agents, owners=False)  # admission leaves out what does not fit its owner

    async def _notify(self, event: AuctionEvent, config: RunnableConfig, waiter: Waiter) -> None:
        """Send an event to the run's handlers, and to `on_event`."""
        manager: Any = config.get("callbacks")
        if isinstance(manager, CallbackManager | AsyncCallbackManager):
            sent = manager.on_custom_event(event.name, dict(event.data), run_id=manager.parent_run_id)
            if inspect.isawaitable(sent):  # of an async manager, which only a caller that awaits has
                await sent
        answer = self.on_event(event) if self.on_event else None
        if inspect.isawaitable(answer):
            await waiter.either(lambda: _refuse_async("on_event", answer), lambda: answer)


def within(auction: A, delivery: Delivery) -> A:
    """Return a copy for code that sends replies on: its charges stand only where the delivery succeeds."""
    return auction._with(replace(auction._new_scope(), delivery=delivery))  # noqa: SLF001 - its own


def chunk_of(message: BaseMessage) -> AIMessageChunk:
    """Return a whole message as the last chunk of a stream.

    Tool calls are set after the chunk is built: LangChain would read them from JSON, and mend invalid ones.
    """
    if not isinstance(message, AIMessage):
        raise TypeError(f"a reply must be an AIMessage, got {type(message).__name__}.")
    chunk = AIMessageChunk(
        content=message.content,
        additional_kwargs=message.additional_kwargs,
        response_metadata=message.response_metadata,
        id=message.id,
        name=message.name,
        tool_call_chunks=[
            tool_call_chunk(name=call["name"], args=json_of(call["args"]), id=call["id"], index=index)
            for index, call in enumerate(message.tool_calls)
        ],
        chunk_position="last",
    )
    kept = ("tool_calls", "invalid_tool_calls", "usage_metadata")
    return chunk.model_copy(update={name: getattr(message, name) for name in kept})


def _refuse_settings(kwargs: dict[str, Any]) -> None:
    """Refuse keywords of a call that the model would get, and that mean something to the auction only."""
    for name in kwargs:
        hint = _REFUSED.get(name)
        if hint is None and name in AuctionSettings.model_fields and name not in _OF_A_CALL:
            hint = f"Set it where the auction is made: AuctionRunnable({name}=...)."
        elif hint is None and name not in ("text", "place") and (group := group_of(name)):
            hint = f"Set it where the auction is made: AuctionRunnable({group})."
        if hint is not None:
            raise ConfigurationError(f"{name} is not a keyword of a call. {hint}")


def _is_internal(config: RunnableConfig) -> bool:
    """Whether a middleware of LangChain makes the call for itself, such as for a summary: no user reads its reply.

    The mark is a secret of the process, so no client can set it in metadata.
    """
    module = sys.modules.get("langchain.agents.middleware.internal_call_transformer")  # langchain is optional
    marks = module.internal_call_metadata() if module else {}
    return bool(marks) and marks.items() <= (getattr(config.get("callbacks"), "metadata", None) or {}).items()


def _auction_id(config: RunnableConfig, prompt: Sequence[BaseMessage]) -> str:
    """Return the id that a call's auction is booked under: the same for the same key and prompt, else the run's.

    Several auctions may belong to one key, as an agent's turns do; their prompts differ.
    """
    key = config.get("configurable", {}).get("idempotency_key")
    if key is None:
        return str(getattr(config.get("callbacks"), "parent_run_id", None) or uuid7())
    try:
        key = text("idempotency_key", key)
        return str(uuid5(NAMESPACE_URL, f"llm_auction_chain:{key}\n{message_digest('', *prompt)}"))
    except UnicodeEncodeError as error:
        raise refuse("idempotency_key", "a text without half surrogates", key) from error


def _as_runnable(auction: AuctionBase) -> Runnable[LanguageModelInput, AIMessage]:
    """Return the auction as the Runnable that both interfaces are."""
    return cast("Runnable[LanguageModelInput, AIMessage]", auction)


def _refuse_async(name: str, awaitable: Awaitable[Any]) -> Any:
    if inspect.iscoroutine(awaitable):
        awaitable.close()
    raise ConfigurationError(f"{name} is async; use ainvoke, abatch, astream or arun.")


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value
