"""`AuctionRunnable`: an auction wherever a chat model goes in a chain."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import fields
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import patch_config, set_config_context
from pydantic import ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from llm_auction_chain.agents import Agent, check_agents
from llm_auction_chain.auction import Auction, DisclosurePlace, ProgressHook, check_seed
from llm_auction_chain.candidates import hidden
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.mechanism import PaymentRule
from llm_auction_chain.result import AuctionResult
from llm_auction_chain.rewards import OnAgentError
from llm_auction_chain.turns import messages_of

__all__ = ["AuctionRunnable"]


class AuctionRunnable(RunnableSerializable[LanguageModelInput, AIMessage]):
    """Reply with a draw from `pi_ref * exp(sum_i r_i / tau)`, charging payments that make truth every agent's best.

    `invoke`, `ainvoke`, `batch`, `abatch`, `stream` and `astream` return the drawn AIMessage, with the outcome as plain
    JSON in `response_metadata["auction"]` and the usage of all hidden calls. `run` and `arun` return the whole
    `AuctionResult`. A stream holds one message: the reply is known only after the draw.

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
        disclosure_place: `metadata` leaves the text as it was drawn; `start` and `end` put the disclosure into it.

    Raises:
        ConfigurationError: a setting no auction can run with.

    Source: arXiv 2405.05905.

    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> def likes_b(prompt, reply):
    ...     return 2.0 * reply.text.count("b")
    >>> auction = AuctionRunnable(model=MarkovChatModel(), agents=[Agent("B", likes_b)], n_candidates=8, seed=7)
    >>> reply = auction.invoke("Say something")
    >>> [payment["agent"] for payment in reply.response_metadata["auction"]["payments"]]
    ['B']
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", strict=True)

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
        return auction

    def _auction(self) -> Auction:
        return Auction(**{setting.name: getattr(self, setting.name) for setting in fields(Auction)})

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:  # noqa: A002
        """Hold an auction and return the drawn reply."""
        return self._call_with_config(self._reply, input, config, **kwargs)

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Hold an auction and return the drawn reply."""
        return await self._acall_with_config(self._areply, input, config, **kwargs)

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
        self._call_with_config(self._reply, input, config, progress=progress, results=results, **kwargs)
        return results[0]

    async def arun(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        progress: ProgressHook | None = None,
        **kwargs: Any,
    ) -> AuctionResult:
        """Hold an auction and return all of it: candidates, reports, settlement, reply."""
        results: list[AuctionResult] = []
        await self._acall_with_config(self._areply, input, config, progress=progress, results=results, **kwargs)
        return results[0]

    def _reply(
        self,
        given: LanguageModelInput,
        run_manager: CallbackManagerForChainRun,
        config: RunnableConfig,
        *,
        seed: int | None = None,
        progress: ProgressHook | None = None,
        results: list[AuctionResult] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        child = hidden(patch_config(config, callbacks=run_manager.get_child()))
        source = self._source(config)
        if isinstance(source, Runnable):
            agents = source.invoke(given, child)
        elif callable(source):
            with set_config_context(child) as context:
                agents = context.run(source, given)
        else:
            agents = source
        if inspect.isawaitable(agents):
            if inspect.iscoroutine(agents):
                agents.close()
            raise ConfigurationError("agents is an async callable; use ainvoke, abatch, astream or arun.")
        seed = self.seed if seed is None else seed
        result = self._auction().run(messages_of(given), agents, seed=seed, config=child, progress=progress, **kwargs)
        if results is not None:
            results.append(result)
        return result.reply

    async def _areply(
        self,
        given: LanguageModelInput,
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        *,
        seed: int | None = None,
        progress: ProgressHook | None = None,
        results: list[AuctionResult] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        child = hidden(patch_config(config, callbacks=run_manager.get_child()))
        source = self._source(config)
        if isinstance(source, Runnable):
            agents = await source.ainvoke(given, child)
        elif callable(source):
            with set_config_context(child) as context:
                agents = context.run(source, given)
                if inspect.isawaitable(agents):
                    agents = await asyncio.create_task(_awaited(agents), context=context)
        else:
            agents = source
        seed = self.seed if seed is None else seed
        result = await self._auction().arun(
            messages_of(given), agents, seed=seed, config=child, progress=progress, **kwargs
        )
        if results is not None:
            results.append(result)
        return result.reply

    def _source(self, config: RunnableConfig) -> Runnable[Any, Any] | Callable[[Any], Any] | Iterable[Agent]:
        chosen = config.get("configurable", {}).get("agents")
        source: Runnable[Any, Any] | Callable[[Any], Any] | Iterable[Agent] = self.agents if chosen is None else chosen
        return source


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value
