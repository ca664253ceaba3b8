"""`AuctionRunnable`: an auction wherever a chat model goes in a chain."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import patch_config
from typing_extensions import override

from llm_auction_chain.interfaces.base import STRICT, AuctionSettings
from llm_auction_chain.interfaces.chunk import chunk_of

__all__ = ["AuctionRunnable"]


class AuctionRunnable(AuctionSettings, RunnableSerializable[LanguageModelInput, AIMessage]):
    """Reply with a draw from `pi_ref * exp(sum_i r_i / tau)`, charging payments that make truth every agent's best.

    `invoke`, `ainvoke`, `batch`, `abatch`, `stream` and `astream` return the drawn AIMessage, with the outcome as plain
    JSON in `response_metadata["auction"]` and the usage of all hidden calls. `run` and `arun` return the whole
    `AuctionResult`. A stream holds one chunk: the reply is known only after the draw.

    Attributes:
        model: any Runnable chat model; never tells a stream about replies that were not drawn.
        agents: a list of Agent, or a callable or Runnable from the input to one;
            `config={"configurable": {"agents": [...]}}` replaces it for a call.
        n_candidates: M, candidates per auction.
        tau: weight of the reference model, money per nat.
        payment_rule: `expected`, `proportional`, `influence` or `pivot`.
        seed: replays auctions; None takes a fresh one each time.
        min_candidates: settle on this many survivors where model calls fail.
        on_agent_error: `abstain` (a zero report) or `raise`.
        proposal: what candidates are drawn from; None is the best that the model and the agents' contexts allow.
        scorer: says how likely replies are, for a model that cannot say it itself.
        min_ess: draws further rounds while the weights are worth fewer draws; None draws one round.
        max_candidates: the most draws of all rounds; None is four rounds.
        native_n: whether providers known to draw many replies in one request are asked to; False asks for one each.
        reward_timeout: seconds for all agents together; who has not reported by then abstains. None waits for ever.
        report_cap: money; every reward is cut to within plus and minus this. None: each agent's own cap, if it has one.
        candidate_filter: `(prompt, reply) -> bool`, sync or async, or a Runnable: what may be returned at all.
        fallback: text or message that is the reply where the filter excludes every candidate; None is an error.
        exclusive_categories: of each, one owner at most takes part: the first in the agents' order.
        currency: the unit of rewards, payments and tau; empty where it has no name.
        disclosure: what the user is told where the reply is sponsored; `{sponsors}` stands for the agents' names.
        disclosure_place: `metadata` leaves the text as it was drawn; `start` and `end` put the disclosure into it, but
            never into a reply in a format that was asked for.
        on_tool_calls: where the model may call tools, `bypass` takes the reference's own reply, without agents and
            payments; `auction` lets agents bid for calls as for any reply.
        ledger: a `Ledger`, on which owners are charged in the moment the reply is returned; None charges nobody.
        on_ledger_error: where it fails, `reference` replies without agents and payments, `raise` fails.
        on_event: called with an `AuctionEvent` after every stage, sync or async: counts and numbers, never a text. The
            same goes to `astream_events` as custom events.

    Raises:
        ConfigurationError: a setting no auction can run with.

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

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:  # noqa: A002
        """Hold an auction and return the drawn reply."""
        with self._delivery(kwargs):
            return self._call_with_config(self._reply, input, config, **kwargs)

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Hold an auction and return the drawn reply."""
        async with self._delivery(kwargs):
            return await self._acall_with_config(self._areply, input, config, **kwargs)

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """Hold an auction and yield the drawn reply as one chunk."""
        with self._delivery(kwargs) as delivery:
            for chunk in self._transform_stream_with_config(iter([input]), self._replies, config, **kwargs):
                delivery.made()
                yield cast("AIMessageChunk", chunk)

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """Hold an auction and yield the drawn reply as one chunk."""

        async def given() -> AsyncIterator[LanguageModelInput]:
            yield input

        async with self._delivery(kwargs) as delivery:
            async for chunk in self._atransform_stream_with_config(given(), self._areplies, config, **kwargs):
                delivery.made()
                yield cast("AIMessageChunk", chunk)

    def _reply(
        self,
        given: LanguageModelInput,
        run_manager: CallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> AIMessage:
        return self._hold(given, patch_config(config, callbacks=run_manager.get_child()), **kwargs)

    async def _areply(
        self,
        given: LanguageModelInput,
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> AIMessage:
        return await self._ahold(given, patch_config(config, callbacks=run_manager.get_child()), **kwargs)

    def _replies(
        self,
        inputs: Iterator[LanguageModelInput],
        run_manager: CallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        for given in inputs:
            yield chunk_of(self._reply(given, run_manager, config, **kwargs))

    async def _areplies(
        self,
        inputs: AsyncIterator[LanguageModelInput],
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        async for given in inputs:
            yield chunk_of(await self._areply(given, run_manager, config, **kwargs))
