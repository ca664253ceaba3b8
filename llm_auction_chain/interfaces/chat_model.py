"""`ChatAuction`: an auction wherever a slot is typed BaseChatModel."""

from collections.abc import AsyncIterator, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal
from uuid import UUID

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
    Callbacks,
)
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langchain_core.utils.uuid import uuid7
from pydantic import Field
from typing_extensions import override

from llm_auction_chain.candidates import chat_model_of, settings_of
from llm_auction_chain.interfaces.base import STRICT, AuctionSettings
from llm_auction_chain.interfaces.chunk import chunk_of

__all__ = ["ChatAuction"]

_CALL = "call_config"  # how a call's config reaches _generate, which LangChain hands keywords only
_TOLD = ("n_candidates", "tau", "payment_rule", "on_tool_calls")  # not the seed: whoever knows it knows the draw
_OURS = frozenset({_CALL, "on_tool_calls", "seed", "progress", "results"})


class ChatAuction(AuctionSettings, BaseChatModel):  # type: ignore[misc]  # what `bind` returns
    """Reply with a draw from `pi_ref * exp(sum_i r_i / tau)`, charging payments that make truth every agent's best.

    It is a chat model, for slots that take nothing else: deepagents, langgraph's prebuilt agents, `create_agent`. One
    call is one chat-model run, with the usage of all the draws it took; those are nobody's runs. Its settings, and its
    metadata, are those of `AuctionRunnable`. A stream holds one chunk: the reply is known only after the draw.

    Attributes:
        model: a chat model, or what LangChain wraps around one.
        cache: always False: a reply from a cache would be a sale without a payment.

    Raises:
        ConfigurationError: a setting no auction can run with, or a model that is no chat model.

    Source: arXiv 2405.05905.

    >>> from llm_auction_chain import Agent
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> agent = Agent("B", lambda prompt, reply: 2.0 * reply.text.count("b"))
    >>> chat = ChatAuction(model=MarkovChatModel(), agents=[agent], n_candidates=8, seed=7)
    >>> chat.invoke("Say something").response_metadata["auction"]["payments"][0]["agent"]
    'B'
    """

    model_config = STRICT

    cache: Literal[False] = Field(default=False, exclude=True)

    @override
    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        chat_model_of(self.model)

    @classmethod
    @override
    def is_lc_serializable(cls) -> bool:
        return True

    @cached_property
    def _serialized(self) -> dict[str, Any]:
        # Tracers are told what this is, and nothing of the agents: their rewards are private values.
        return {"lc": 1, "type": "not_implemented", "id": self.lc_id(), "name": self.get_name(), "repr": None}

    @property
    def _llm_type(self) -> str:
        return "chat-auction"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        inner = chat_model_of(self.model)
        auction = {name: getattr(self, name) for name in _TOLD}
        return {**inner._identifying_params, **settings_of(self.model), "auction": auction}  # noqa: SLF001

    @property
    def model_name(self) -> str:
        """The inner model's name, by which agents choose how they ask for a schema."""
        inner = chat_model_of(self.model)
        return inner._get_ls_params().get("ls_model_name") or inner._llm_type  # noqa: SLF001

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        told = {**settings_of(self.model), **kwargs}
        bound = told.pop("stop", None)
        stop = bound if stop is None else stop
        return chat_model_of(self.model)._get_ls_params(stop=stop, **_of_the_model(told))  # noqa: SLF001

    @override
    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return super()._get_invocation_params(stop=stop, **_of_the_model(kwargs))

    @override
    def _resolve_model_profile(self) -> Any:
        return chat_model_of(self.model).profile

    @override
    def get_token_ids(self, text: str) -> list[int]:
        return chat_model_of(self.model).get_token_ids(text)

    @override
    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Any = None) -> int:
        return chat_model_of(self.model).get_num_tokens_from_messages(messages, tools)

    @override
    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        with self._delivery(kwargs):
            return super().invoke(input, config, stop=stop, **_with_config(kwargs, config))

    @override
    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        async with self._delivery(kwargs):
            return await super().ainvoke(input, config, stop=stop, **_with_config(kwargs, config))

    @override
    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """Yield the drawn reply as one chunk."""
        config, told = _with_run(config, self.callbacks, CallbackManager)
        with self._delivery(kwargs) as delivery:
            for chunk in super().stream(input, config, stop=stop, **{**kwargs, _CALL: told}):
                delivery.made()
                yield chunk

    @override
    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """Yield the drawn reply as one chunk."""
        config, told = _with_run(config, self.callbacks, AsyncCallbackManager)
        async with self._delivery(kwargs) as delivery:
            async for chunk in super().astream(input, config, stop=stop, **{**kwargs, _CALL: told}):
                delivery.made()
                yield chunk

    @override
    def generate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        """Hold one auction per prompt. Where one fails and the others are lost with it, none of them is charged."""
        with self._delivery(kwargs):
            return super().generate(messages, *args, **kwargs)

    @override
    async def agenerate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        async with self._delivery(kwargs):
            return await super().agenerate(messages, *args, **kwargs)

    @override
    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().stream_events(input, config, **_with_config(kwargs, config))

    @override
    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().astream_events(input, config, **_with_config(kwargs, config))

    @override
    def _should_stream(self, *, async_api: bool, run_manager: Any = None, **kwargs: Any) -> bool:
        # Where a handler asks for a stream, LangChain would draw without the run's manager; _generate tells the chunk.
        return "callbacks" in kwargs.get(_CALL, {}) and not self._streaming_disabled(**kwargs)

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        call_config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """Hold an auction and return the drawn reply.

        Args:
            messages: as the model takes them.
            stop: as the model takes it.
            run_manager: parent of what agents and directories run.
            call_config: what of the call's config concerns the auction: `configurable`, `max_concurrency`, and where
                no run manager is handed on, the callbacks of the run's children.
            **kwargs: `seed` and `on_tool_calls` replace the fields of the same names; all others are the model's.

        Raises:
            AuctionError: the auction could not be held; the message says why.
        """
        config = _of_run(call_config, run_manager)
        reply = _named(self._hold(messages, config, traced=False, **_with_stop(kwargs, stop)), run_manager)
        if run_manager is not None:
            chunk = chunk_of(reply)
            run_manager.on_llm_new_token(str(chunk.text), chunk=ChatGenerationChunk(message=chunk))
        return ChatResult(generations=[ChatGeneration(message=reply)])

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        *,
        call_config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """Do as `_generate`, awaiting."""
        config = _of_run(call_config, run_manager)
        reply = _named(await self._ahold(messages, config, traced=False, **_with_stop(kwargs, stop)), run_manager)
        if run_manager is not None:
            chunk = chunk_of(reply)
            await run_manager.on_llm_new_token(str(chunk.text), chunk=ChatGenerationChunk(message=chunk))
        return ChatResult(generations=[ChatGeneration(message=reply)])

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        """Yield the drawn reply as one chunk: what content-block events (v3) are made of."""
        drawn = self._generate(messages, stop, run_manager, **kwargs).generations[0].message
        yield ChatGenerationChunk(message=chunk_of(drawn))

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        drawn = (await self._agenerate(messages, stop, run_manager, **kwargs)).generations[0].message
        yield ChatGenerationChunk(message=chunk_of(drawn))


def _with_config(kwargs: dict[str, Any], config: RunnableConfig | None) -> dict[str, Any]:
    return {**kwargs, _CALL: _told(ensure_config(config))}


def _told(config: RunnableConfig) -> RunnableConfig:
    """Return what of a call's config concerns the auction."""
    told = RunnableConfig()
    if configurable := config.get("configurable"):
        told["configurable"] = configurable
    if limit := config.get("max_concurrency"):
        told["max_concurrency"] = limit
    return told


def _with_run(
    config: RunnableConfig | None, own: Callbacks, kind: type[CallbackManager | AsyncCallbackManager]
) -> tuple[RunnableConfig, RunnableConfig]:
    """Return the config of a stream whose run is known before it begins, and what it tells the auction.

    LangChain keeps a stream's run manager to itself, and agents' own calls are to be the run's children.
    """
    config = ensure_config(config)
    run_id = config.get("run_id") or uuid7()
    manager = kind.configure(
        config.get("callbacks"), own, inheritable_tags=config.get("tags"), inheritable_metadata=config.get("metadata")
    )
    opened, told = config.copy(), _told(config)
    opened["callbacks"], opened["run_id"] = manager, run_id
    told["callbacks"] = _child(manager, kind, run_id)
    return opened, told


def _of_run(call_config: RunnableConfig | None, run_manager: Any) -> RunnableConfig:
    """Return a config whose children belong to the run, as those of a chain belong to theirs."""
    config = RunnableConfig(**(call_config or {}))
    if run_manager is not None:
        kind = AsyncCallbackManager if isinstance(run_manager, AsyncCallbackManagerForLLMRun) else CallbackManager
        config["callbacks"] = _child(run_manager, kind, run_manager.run_id)
    return config


def _child(manager: Any, kind: Any, run_id: UUID) -> Any:
    """Return a manager of a run's children; LangChain has none for those of a chat model.

    The auction's events are the run's own, so all of its handlers hear them; `hidden` leaves those that are not
    inherited out of the children.
    """
    tags, metadata = manager.inheritable_tags, manager.inheritable_metadata
    return kind(
        handlers=list(manager.handlers),
        inheritable_handlers=list(manager.inheritable_handlers),
        parent_run_id=run_id,
        tags=list(tags),
        inheritable_tags=list(tags),
        metadata=dict(metadata),
        inheritable_metadata=dict(metadata),
    )


def _with_stop(kwargs: dict[str, Any], stop: list[str] | None) -> dict[str, Any]:
    return kwargs if stop is None else {**kwargs, "stop": stop}


def _of_the_model(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of a call that are the model's."""
    return {name: value for name, value in kwargs.items() if name not in _OURS}


def _named(message: AIMessage, run_manager: Any) -> AIMessage:
    """Return the message under an id; where the provider gave none, it is the run's."""
    if message.id is not None or run_manager is None:
        return message
    return message.model_copy(update={"id": f"lc_run--{run_manager.run_id}"})
