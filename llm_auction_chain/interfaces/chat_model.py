"""`ChatAuction`: an auction wherever a slot is typed BaseChatModel."""

import inspect
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, Self, TypeVar, cast
from uuid import UUID

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    BaseCallbackManager,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langchain_core.utils.uuid import uuid7
from pydantic import Field, model_validator
from typing_extensions import override

from llm_auction_chain.auction.result import AuctionResult
from llm_auction_chain.candidates import chat_model_of, is_streaming, settings_of
from llm_auction_chain.interfaces.base import STRICT, AuctionBase, CallScope, chunk_of
from llm_auction_chain.waiting import Waiter, WaitingChatModel

__all__ = ["ChatAuction"]

M = TypeVar("M", bound=BaseMessage)

_PUBLIC = ("n_candidates", "tau", "payment_rule", "on_tool_calls")  # not the seed: it predicts the draw
_OURS = frozenset({"on_tool_calls", "seed"})


class ChatAuction(AuctionBase, WaitingChatModel):  # type: ignore[misc]  # what `bind` returns
    """Hold auctions behind the interface of a chat model, for slots that take nothing else.

    Such slots are in deepagents, in langgraph's prebuilt agents and in `create_agent`. One call is one chat-model run
    with the usage of all its draws; the draws are no runs of their own. Settings and metadata are those of
    `AuctionRunnable`. A stream has one chunk, because the reply is known only after the draw.

    Attributes:
        model: a chat model, or what LangChain wraps around one.
        cache: always False; a reply from a cache would be sold without a payment.

    Raises:
        ConfigurationError: a setting is invalid, or the model is not a chat model.

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
        # tracers see the class and nothing of the agents: their rewards are private values
        return {"lc": 1, "type": "not_implemented", "id": self.lc_id(), "name": self.get_name(), "repr": None}

    @property
    def _llm_type(self) -> str:
        # LangChain counts tokens, and adapts requests for a fallback, by the provider that this names.
        return chat_model_of(self.model)._llm_type  # noqa: SLF001

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        inner = chat_model_of(self.model)
        auction = {name: getattr(self, name) for name in _PUBLIC}
        return {**inner._identifying_params, **settings_of(self.model), "auction": auction}  # noqa: SLF001

    @property
    def model_name(self) -> str:
        """The inner model's name, by which agents choose how they ask for a schema."""
        inner = chat_model_of(self.model)
        return inner._get_ls_params().get("ls_model_name") or inner._llm_type  # noqa: SLF001

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = {**settings_of(self.model), **kwargs}
        bound = params.pop("stop", None)
        stop = bound if stop is None else stop
        return chat_model_of(self.model)._get_ls_params(stop=stop, **_of_the_model(params))  # noqa: SLF001

    @override
    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return super()._get_invocation_params(stop=stop, **_of_the_model(kwargs))

    # in place of the base class's, which assigns the profile: to assign None validates again, without end
    @model_validator(mode="after")
    def _set_model_profile(self) -> Self:
        if self.profile is None:
            self.__dict__["profile"] = chat_model_of(self.model).profile
        return self

    @override
    def get_token_ids(self, text: str) -> list[int]:
        return chat_model_of(self.model).get_token_ids(text)

    @override
    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Any = None) -> int:
        return chat_model_of(self.model).get_num_tokens_from_messages(messages, tools)

    @override
    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        scope = self._new_scope(_for_auction(config))
        with scope.delivery:
            return super(ChatAuction, self._with(scope)).invoke(input, config, **kwargs)

    @override
    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        scope = self._new_scope(_for_auction(config))
        async with scope.delivery:
            return await super(ChatAuction, self._with(scope)).ainvoke(input, config, **kwargs)

    @override
    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """Yield the drawn reply as one chunk."""
        config, scope = self._scope_of_stream(config, CallbackManager)
        with scope.delivery:
            for chunk in super(ChatAuction, self._with(scope)).stream(input, config, **kwargs):
                scope.delivery.complete()
                yield _with_usage(chunk, scope)

    @override
    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """Yield the drawn reply as one chunk."""
        config, scope = self._scope_of_stream(config, AsyncCallbackManager)
        async with scope.delivery:
            async for chunk in super(ChatAuction, self._with(scope)).astream(input, config, **kwargs):
                scope.delivery.complete()
                yield _with_usage(chunk, scope)

    @override
    def generate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        """Hold one auction per prompt. If one raises, all replies are lost and none of the auctions is charged."""
        scope = self._new_scope()
        with scope.delivery:
            return _counted(super(ChatAuction, self._with(scope)).generate(messages, *args, **kwargs), scope)

    @override
    async def agenerate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        scope = self._new_scope()
        async with scope.delivery:
            return _counted(await super(ChatAuction, self._with(scope)).agenerate(messages, *args, **kwargs), scope)

    @override
    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        copy = self._with(self._new_scope(_for_auction(config)))
        return super(ChatAuction, copy).stream_events(input, config, **kwargs)

    @override
    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        copy = self._with(self._new_scope(_for_auction(config)))
        return super(ChatAuction, copy).astream_events(input, config, **kwargs)

    @override
    def _should_stream(self, *, async_api: bool, run_manager: Any = None, **kwargs: Any) -> bool:
        # Where a handler asks for a stream, LangChain would draw without the run's manager; _generate sends the chunk.
        in_stream = self._scope is not None and "callbacks" in self._scope.config
        return in_stream and not self._streaming_disabled(**kwargs)

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        """Yield the drawn reply as one chunk; LangChain makes content-block events (v3) of it."""
        reply = self._generate(messages, stop, run_manager, **kwargs).generations[0].message
        yield ChatGenerationChunk(message=chunk_of(reply))

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        reply = (await self._agenerate(messages, stop, run_manager, **kwargs)).generations[0].message
        yield ChatGenerationChunk(message=chunk_of(reply))

    @override
    async def _reply(
        self, messages: list[BaseMessage], stop: list[str] | None, run_manager: Any, waiter: Waiter, /, **kwargs: Any
    ) -> ChatResult:
        """Hold an auction under the run of a model call, and send the reply to the run's handlers as a chunk.

        `seed` and `on_tool_calls` may replace the settings.
        """
        scope = self._scope or self._new_scope()
        config = scope.config.copy()
        if run_manager is not None:
            kind = AsyncCallbackManager if isinstance(run_manager, AsyncCallbackManagerForLLMRun) else CallbackManager
            config["callbacks"] = _child(run_manager, kind, run_manager.run_id)
        keywords = kwargs if stop is None else {**kwargs, "stop": stop}
        reply = _named(await self._hold(messages, config, scope, keywords, waiter, traced=False), run_manager)
        reply = await _booked(reply, config, scope)
        if run_manager is not None:
            chunk = chunk_of(reply)
            await _sent(run_manager.on_llm_new_token(str(chunk.text), chunk=ChatGenerationChunk(message=chunk)))
        return ChatResult(generations=[ChatGeneration(message=reply)])

    def _scope_of_stream(
        self, config: RunnableConfig | None, kind: type[CallbackManager | AsyncCallbackManager]
    ) -> tuple[RunnableConfig, CallScope]:
        """Return the config of a stream with a run id chosen in advance, and a scope with the run's callbacks.

        LangChain does not hand out a stream's run manager, and agents' own calls are to be the run's children.
        """
        config = ensure_config(config)
        run_id = config.get("run_id") or uuid7()
        manager = kind.configure(
            config.get("callbacks"),
            self.callbacks,
            inheritable_tags=config.get("tags"),
            inheritable_metadata=config.get("metadata"),
        )
        known, kept = config.copy(), _for_auction(config)
        known["callbacks"], known["run_id"] = manager, run_id
        kept["callbacks"] = _child(manager, kind, run_id)
        return known, self._new_scope(kept)


def _for_auction(config: RunnableConfig | None) -> RunnableConfig:
    """Return the part of a call's config that concerns the auction, and that LangChain keeps from `_generate`."""
    config = ensure_config(config)
    kept = RunnableConfig()
    if configurable := config.get("configurable"):
        kept["configurable"] = configurable
    if limit := config.get("max_concurrency"):
        kept["max_concurrency"] = limit
    return kept


def _child(manager: Any, kind: Any, run_id: UUID) -> Any:
    """Return a callback manager for the children of a chat model's run, which LangChain does not have.

    The auction's events are the run's own, so all its handlers receive them. `hidden` removes those handlers that
    children do not inherit.
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


def _of_the_model(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of a call that are for the model."""
    return {name: value for name, value in kwargs.items() if name not in _OURS}


def _named(message: AIMessage, run_manager: Any) -> AIMessage:
    """Return the message with an id; where the provider set none, it is the run's."""
    if message.id is not None or run_manager is None:
        return message
    return message.model_copy(update={"id": f"lc_run--{run_manager.run_id}"})


async def _booked(reply: AIMessage, config: RunnableConfig, scope: CallScope) -> AIMessage:
    """Return the reply with the usage of its own model. That of the others is booked under runs of their own.

    Handlers add usage up under the name of the model that ended a run.
    """
    result, manager = _of_several(reply, scope), config.get("callbacks")
    if result is None or not isinstance(manager, BaseCallbackManager):
        return reply
    heard: Any = manager.copy()
    heard.set_handlers([handler for handler in manager.handlers if not is_streaming(handler)])
    own = _model_of(reply)
    for name, usage in result.usages.items():
        if name != own:
            message = AIMessage("", response_metadata={"model_name": name}, usage_metadata=usage)
            used = LLMResult(generations=[[ChatGeneration(message=message)]])
            for booked in await _sent(heard.on_chat_model_start({"name": name}, [[]], name=f"usage of {name}")):
                await _sent(booked.on_llm_end(used))
    return reply.model_copy(update={"usage_metadata": result.usages.get(own)})


async def _sent(sent: Any) -> Any:
    """Return what a handler's method returned, which an async manager makes awaitable."""
    return await sent if inspect.isawaitable(sent) else sent


def _model_of(reply: BaseMessage) -> str:
    return str(reply.response_metadata.get("model_name", ""))


def _of_several(reply: BaseMessage, scope: CallScope) -> AuctionResult | None:
    """Return the result of a reply's auction if other models than the reply's have been used, too."""
    auction_id = reply.response_metadata.get("auction", {}).get("auction_id")
    result = next((result for result in scope.delivery.results if result.auction_id == auction_id), None)
    return result if result is not None and result.usages.keys() - {_model_of(reply)} else None


def _with_usage(reply: M, scope: CallScope) -> M:
    """Return a reply that leaves its run with the usage of all models."""
    result = _of_several(reply, scope)
    return reply if result is None else reply.model_copy(update={"usage_metadata": result.usage})


def _counted(result: LLMResult, scope: CallScope) -> LLMResult:
    replies: list[list[Any]] = [
        [one.model_copy(update={"message": _with_usage(one.message, scope)}) for one in prompt]
        for prompt in cast("list[list[ChatGeneration]]", result.generations)
    ]
    return result.model_copy(update={"generations": replies})
