"""What `AuctionRunnable` and `ChatAuction` share: their settings, whose agents take part, and who hears of it."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields
from typing import Any, Self, cast
from uuid import NAMESPACE_URL, uuid5

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import set_config_context
from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, field_validator, model_validator

from llm_auction_chain.agents import check_agents
from llm_auction_chain.auction.admission import check_seed
from llm_auction_chain.auction.billing import Delivery, OnLedgerError, most_owed
from llm_auction_chain.auction.events import AuctionEvent, EventHook, ProgressHook, atell
from llm_auction_chain.auction.outcome import DisclosurePlace
from llm_auction_chain.auction.pipeline import Auction, OnToolCalls
from llm_auction_chain.auction.result import AuctionResult
from llm_auction_chain.candidates import all_in, quiet
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.interfaces.binding import AuctionBinding, with_schema, with_tools
from llm_auction_chain.mechanism import PaymentRule
from llm_auction_chain.messages import messages_of
from llm_auction_chain.receipts.commitments import message_digest
from llm_auction_chain.reports import OnAgentError

__all__ = ["STRICT", "AuctionSettings"]

STRICT = ConfigDict(arbitrary_types_allowed=True, extra="forbid", strict=True)


class AuctionSettings(BaseModel):
    """The settings of both interfaces; `AuctionRunnable` says what each means."""

    model_config = STRICT

    model: Runnable[Any, Any]
    agents: Any = ()
    n_candidates: int = 16
    tau: float = 1.0
    payment_rule: PaymentRule = "expected"
    seed: int | None = None
    min_candidates: int = 1
    on_agent_error: OnAgentError = "abstain"
    proposal: Any = None
    scorer: Any = None
    min_ess: float | None = None
    max_candidates: int | None = None
    native_n: bool = True
    reward_timeout: float | None = 60.0
    report_cap: float | None = None
    candidate_filter: Any = None
    fallback: Any = None
    exclusive_categories: Any = ()
    currency: str = ""
    disclosure: str | None = None
    disclosure_place: DisclosurePlace = "metadata"
    on_tool_calls: OnToolCalls = "bypass"
    ledger: Any = None
    on_ledger_error: OnLedgerError = "reference"
    on_event: EventHook | None = None

    @field_validator("model")
    @classmethod
    def _refuse_auctions(cls, model: Runnable[Any, Any]) -> Runnable[Any, Any]:
        if any(isinstance(one, AuctionSettings) for one in all_in(model)):
            raise ConfigurationError(
                "model is an auction already, and what loses in this one would have been paid for."
            )
        return model

    @model_validator(mode="wrap")
    @classmethod
    def _speak_our_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            auction = handler(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigurationError(f"{where} is {first['input']!r}: {first['msg']}.") from error
        auction._auction()  # noqa: SLF001 - its own
        if auction.seed is not None:
            check_seed(auction.seed)
        if not callable(auction.agents) and not isinstance(auction.agents, Runnable):
            auction.agents = check_agents(auction.agents)
            if auction.ledger is not None:
                most_owed(auction.agents, auction.report_cap, negative=True)
        return auction

    def bind(self, **kwargs: Any) -> AuctionBinding:
        """Return this auction with keywords that every call is made with, `run` and `arun` too."""
        return AuctionBinding(bound=_as_runnable(self), kwargs=kwargs)

    def with_config(self, config: RunnableConfig | None = None, **kwargs: Any) -> AuctionBinding:
        """Return this auction with a config that every call is made with, `run` and `arun` too."""
        return AuctionBinding(bound=_as_runnable(self), config=cast("RunnableConfig", {**(config or {}), **kwargs}))

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return this auction over a model that may call the tools; `on_tool_calls` says what then is auctioned.

        What the model has been wrapped in stays: bindings, retries, fallbacks.

        Args:
            tools: as the model takes them.
            tool_choice: as the model takes it.
            **kwargs: as the model takes them.

        Raises:
            NotImplementedError: the model has no tools.
        """
        return with_tools(self, tools, **({} if tool_choice is None else {"tool_choice": tool_choice}), **kwargs)

    def with_structured_output(self, schema: Any, **kwargs: Any) -> Runnable[LanguageModelInput, Any]:
        """Return an auction among replies of the schema's shape, followed by the model's own parser.

        The pipeline parses the drawn reply alone. What is parsed has no metadata: `include_raw=True` keeps the message
        beside it.

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
        """Hold one auction per input. Where one fails and the others are lost with it, none of them is charged."""
        # the next class is a Runnable
        batch = super().batch  # type: ignore[misc]
        if return_exceptions:
            return list(batch(inputs, config, return_exceptions=True, **kwargs))
        with self._delivery(kwargs):
            return list(batch(inputs, config, **kwargs))

    async def abatch(
        self,
        inputs: Sequence[LanguageModelInput],
        config: Any = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Do as `batch`, awaiting."""
        abatch = super().abatch  # type: ignore[misc]
        if return_exceptions:
            return list(await abatch(inputs, config, return_exceptions=True, **kwargs))
        async with self._delivery(kwargs):
            return list(await abatch(inputs, config, **kwargs))

    def run(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        progress: ProgressHook | None = None,
        **kwargs: Any,
    ) -> AuctionResult:
        """Hold an auction and return all of it: candidates, reports, settlement, reply."""
        results: list[AuctionResult] = []
        _as_runnable(self).invoke(input, config, progress=progress, results=results, **kwargs)
        return results[0]

    async def arun(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        progress: ProgressHook | None = None,
        **kwargs: Any,
    ) -> AuctionResult:
        """Do as `run`, awaiting."""
        results: list[AuctionResult] = []
        await _as_runnable(self).ainvoke(input, config, progress=progress, results=results, **kwargs)
        return results[0]

    def _auction(self, **changes: Any) -> Auction:
        return Auction(**{setting.name: getattr(self, setting.name) for setting in fields(Auction)} | changes)

    def _hold(
        self,
        given: LanguageModelInput,
        config: RunnableConfig,
        *,
        results: list[AuctionResult] | Delivery | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Hold an auction under a run, whose children's callbacks the config has, and return the drawn reply."""
        child = quiet(config)
        auction, keywords = self._called(kwargs)
        agents = () if auction.bypasses(child, keywords) else self._agents(given, child)
        tell, prompt = self._teller(config), messages_of(given)
        auction_id = _auction_id(config, prompt)
        result = auction.run(prompt, agents, auction_id=auction_id, config=child, on_event=tell, **keywords)
        if results is not None:
            results.append(result)
        return result.reply

    async def _ahold(
        self,
        given: LanguageModelInput,
        config: RunnableConfig,
        *,
        results: list[AuctionResult] | Delivery | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        child = quiet(config)
        auction, keywords = self._called(kwargs)
        agents = () if auction.bypasses(child, keywords) else await self._aagents(given, child)
        tell, prompt = self._ateller(config), messages_of(given)
        auction_id = _auction_id(config, prompt)
        result = await auction.arun(prompt, agents, auction_id=auction_id, config=child, on_event=tell, **keywords)
        if results is not None:
            results.append(result)
        return result.reply

    def _delivery(self, kwargs: dict[str, Any]) -> Delivery:
        """Return what watches a call until its caller has the reply; it takes the place of the call's `results`."""
        if self.ledger is None:
            return Delivery(None)
        delivery = kwargs["results"] = Delivery(self.ledger, kwargs.get("results"))
        return delivery

    def _called(self, kwargs: dict[str, Any]) -> tuple[Auction, dict[str, Any]]:
        """Return the auction of a call, whose keywords may replace two settings, and the keywords to hold it with."""
        keywords = {**kwargs, "seed": self.seed if kwargs.get("seed") is None else kwargs["seed"]}
        on_tool_calls = keywords.pop("on_tool_calls", None)
        return self._auction(**({} if on_tool_calls is None else {"on_tool_calls": on_tool_calls})), keywords

    def _agents(self, given: LanguageModelInput, child: RunnableConfig) -> Any:
        source = self._source(child)
        if isinstance(source, Runnable):
            return source.invoke(given, child)
        if not callable(source):
            return source
        with set_config_context(child) as context:
            agents = context.run(source, given)
        if inspect.isawaitable(agents):
            if inspect.iscoroutine(agents):
                agents.close()
            raise ConfigurationError("agents is an async callable; use ainvoke, abatch, astream or arun.")
        return agents

    async def _aagents(self, given: LanguageModelInput, child: RunnableConfig) -> Any:
        source = self._source(child)
        if isinstance(source, Runnable):
            return await source.ainvoke(given, child)
        if not callable(source):
            return source
        with set_config_context(child) as context:
            agents = context.run(source, given)
            if inspect.isawaitable(agents):
                agents = await asyncio.create_task(_awaited(agents), context=context)
        return agents

    def _source(self, config: RunnableConfig) -> Any:
        """Return where the agents of this call come from: those given with it, else the auction's own."""
        chosen = config.get("configurable", {}).get("agents")
        return self.agents if chosen is None else chosen

    def _teller(self, config: RunnableConfig) -> Callable[[AuctionEvent], None]:
        """Return what tells the run's listeners, and `on_event`, that a stage is done."""
        manager = config.get("callbacks")

        def tell(event: AuctionEvent) -> Any:
            if isinstance(manager, CallbackManager):
                manager.on_custom_event(event.name, dict(event.data), run_id=manager.parent_run_id)
            return self.on_event(event) if self.on_event else None

        return tell

    def _ateller(self, config: RunnableConfig) -> Callable[[AuctionEvent], Awaitable[None]]:
        manager = config.get("callbacks")

        async def tell(event: AuctionEvent) -> None:
            if isinstance(manager, AsyncCallbackManager):
                await manager.on_custom_event(event.name, dict(event.data), run_id=manager.parent_run_id)
            await atell(self.on_event, event)

        return tell


def _auction_id(config: RunnableConfig, prompt: Sequence[BaseMessage]) -> str | None:
    """Return under which id a call's auction is booked: the same for the same key and prompt, else the run's.

    Several auctions may belong to one key, as an agent's turns do; their prompts differ.
    """
    key = config.get("configurable", {}).get("idempotency_key")
    if key is None:
        run_id = getattr(config.get("callbacks"), "parent_run_id", None)
        return None if run_id is None else str(run_id)
    if not isinstance(key, str) or not key.strip():
        raise ConfigurationError(f"idempotency_key is {key!r}; give a text that is the same for the same call only.")
    try:
        return str(uuid5(NAMESPACE_URL, f"llm_auction_chain:{key}\n{message_digest('', *prompt)}"))
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"idempotency_key is {key!r}; take out the half surrogates.") from error


def _as_runnable(auction: AuctionSettings) -> Runnable[LanguageModelInput, AIMessage]:
    """Return what both interfaces are; the settings alone are none."""
    return cast("Runnable[LanguageModelInput, AIMessage]", auction)


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value
