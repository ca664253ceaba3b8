"""`AuctionRunnable`: an auction wherever a chat model goes in a chain."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from typing_extensions import override

from llm_auction_chain.interfaces.base import STRICT, AuctionBase, chunk_of
from llm_auction_chain.waiting import AWAITING, BLOCKING, run

__all__ = ["AuctionRunnable"]


class AuctionRunnable(AuctionBase, RunnableSerializable[LanguageModelInput, AIMessage]):
    """Hold auctions wherever a chat model goes in a chain.

    The reply is sampled from a distribution that converges to `pi_ref * exp(sum_i r_i / tau)` as the number of
    candidates grows, and owners are charged payments under which the truth is every agent's best report.

    `invoke`, `ainvoke`, `batch`, `abatch`, `stream` and `astream` return the drawn AIMessage, with the outcome as plain
    JSON in `response_metadata["auction"]` and the usage of all hidden calls. `run` and `arun` return the whole
    `AuctionResult`. A stream has one chunk, because the reply is known only after the draw.

    The settings are the fields of `AuctionSettings`: twelve are flat, the others are in the groups `Sampling`,
    `Policy`, `Billing` and `Disclosure`.

    Raises:
        ConfigurationError: a setting is invalid; the message names it.

    Source: arXiv 2405.05905.

    >>> from llm_auction_chain import Agent
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> def likes_b(prompt, reply):
    ...     return 2.0 * reply.text.count("b")
    >>> auction = AuctionRunnable(model=MarkovChatModel(), agents=[Agent("B", likes_b)], n_candidates=8, seed=7)
    >>> reply = auction.invoke("Say something")
    >>> [payment["agent"] for payment in reply.response_metadata["auction"]["payments"]]
    ['B']
    """

    model_config = STRICT

    @classmethod
    @override
    def is_lc_serializable(cls) -> bool:
        return True

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """Hold an auction and return the drawn reply."""
        scope = self._new_scope()

        def reply(given: LanguageModelInput, config: Any) -> AIMessage:
            return run(self._hold(given, config, scope, kwargs, BLOCKING))

        with scope.delivery:
            return self._call_with_config(reply, input, config)

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """Hold an auction and return the drawn reply."""
        scope = self._new_scope()

        async def reply(given: LanguageModelInput, config: Any) -> AIMessage:
            return await self._hold(given, config, scope, kwargs, AWAITING)

        async with scope.delivery:
            return await self._acall_with_config(reply, input, config)

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """Hold an auction and yield the drawn reply as one chunk."""
        scope = self._new_scope()

        def replies(inputs: Iterator[Any], config: Any) -> Iterator[AIMessageChunk]:
            for given in inputs:
                yield chunk_of(run(self._hold(given, config, scope, kwargs, BLOCKING)))

        with scope.delivery:
            for chunk in self._transform_stream_with_config(iter([input]), replies, config):
                scope.delivery.complete()
                yield cast("AIMessageChunk", chunk)

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """Hold an auction and yield the drawn reply as one chunk."""
        scope = self._new_scope()

        async def inputs() -> AsyncIterator[LanguageModelInput]:
            yield input

        async def replies(inputs: AsyncIterator[Any], config: Any) -> AsyncIterator[AIMessageChunk]:
            async for given in inputs:
                yield chunk_of(await self._hold(given, config, scope, kwargs, AWAITING))

        async with scope.delivery:
            async for chunk in self._atransform_stream_with_config(inputs(), replies, config):
                scope.delivery.complete()
                yield cast("AIMessageChunk", chunk)
