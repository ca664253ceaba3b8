"""Replies from any chat model: independent, uncached, traced as children or not at all, hidden from streams.

A model that draws many replies in one request does so; any other Runnable is called once a reply, concurrently.
Truncated and empty replies are kept: dropping them would change the proposal.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.outputs import ChatGeneration
from langchain_core.prompt_values import ChatPromptValue, PromptValue
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import ensure_config, get_config_list
from langchain_core.runnables.retry import RunnableRetry

from llm_auction_chain.candidates.base import Condition, LogitModel, SequenceScorer
from llm_auction_chain.candidates.isolation import unheard
from llm_auction_chain.candidates.native_n import ManyReplies, native
from llm_auction_chain.candidates.unwrapping import Untraced, asks_for_a_shape, inside
from llm_auction_chain.errors import AuctionError, CandidatesError, ConfigurationError
from llm_auction_chain.waiting import Waiter, run

__all__ = ["Sampled", "Source"]

Progress = Callable[[int, float | None], None]
_Call = tuple[list[BaseMessage], dict[str, Any]]  # a request: prompt and keywords
# What a scorer must know of how replies were drawn.
_LAW = ("temperature", "top_p", "top_k")
_NO_TOKENS = UsageMetadata(input_tokens=0, output_tokens=0, total_tokens=0)  # a cache counts the costs alone
_HELD = "llm_auction_chain.auction/"  # how the schema of an auction's metadata begins
_OURS = frozenset({"conditions", "n", "progress", "seed"})


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What some model calls gave.

    Attributes:
        replies: (condition's index, message), in the order of the conditions.
        causes: what made the other calls fail.
        usage: tokens of all calls together; None where the model reports none.
    """

    replies: tuple[tuple[int, AIMessage], ...]
    causes: tuple[BaseException, ...]
    usage: UsageMetadata | None


class Source:
    """A chat model as the source of candidates, seen through its wrappers.

    Args:
        model: any Runnable chat model.
        config: the parent run's.
        native_n: whether providers that draw many replies in one request are asked to.
        traced: whether every call of the model is a run of its own.
        kwargs: handed to the model.

    Attributes:
        scorer: the model inside, where it can say how likely its replies are.
        law: temperature and truncation that were bound to it.
        logits: whether it draws from conditions of several prompts.
        asked_for_tokens: whether the call itself asks for log-probabilities.
        asked_for_a_shape: whether the reply is in a format that is parsed.
    """

    def __init__(
        self,
        model: Runnable[Any, Any],
        config: RunnableConfig,
        *,
        native_n: bool,
        traced: bool = True,
        kwargs: dict[str, Any],
    ) -> None:
        if reserved := kwargs.keys() & _OURS:
            raise ConfigurationError(f"{', '.join(sorted(reserved))}: the auction says that to the model itself.")
        self._model = inner = inside(model, _uncached if traced else _untraced, config)
        self._kwargs = settings = kwargs
        self._traced = traced
        self._bound_config = RunnableConfig()
        self._retries: list[RunnableRetry[Any, Any]] = []
        while isinstance(inner, RunnableBindingBase):
            settings = {**inner.kwargs, **settings}
            self._bound_config = _merge(inner.config, self._bound_config)
            if isinstance(inner, RunnableRetry):
                self._retries.insert(0, inner)
            inner = inner.bound
        if isinstance(inner, Untraced):
            inner = inner.model
        at_once = native_n or getattr(inner, "native_n", False)
        limit = config.get("max_concurrency")
        self._native = native(inner, seed=settings.get("seed"), max_concurrency=limit) if at_once else None
        self._settings = settings
        self.scorer: SequenceScorer | None = inner if isinstance(inner, SequenceScorer) else None
        self.law: dict[str, Any] = {name: settings[name] for name in _LAW if name in settings}
        self.logits: bool = self._native is not None and isinstance(self._native, LogitModel)
        self.asked_for_tokens: bool = bool(settings.get("logprobs"))
        self.asked_for_a_shape: bool = asks_for_a_shape(model, config, kwargs)

    async def sample(
        self,
        wanted: Sequence[tuple[Condition, int]],
        waiter: Waiter,
        *,
        seed: int,
        tokens: bool,
        config: RunnableConfig | None,
        progress: Progress | None = None,
    ) -> Sampled:
        """Draw replies.

        Args:
            wanted: conditions, and the number of replies of each.
            waiter: how the caller waits for the model.
            seed: replays the draw where the model draws all replies itself.
            tokens: asks for tokens and log-probabilities, which a scorer needs.
            config: the parent run's.
            progress: called with the number of replies that have arrived, and tokens per second where the model counts.

        Raises:
            AuctionError: a model of ours is set up wrongly; no call could have succeeded.
            ConfigurationError: the model returns something else than messages.
        """
        child = ensure_config(config)
        extra = {"logprobs": True} if tokens else {}
        if self._traced:
            return await self._sample(wanted, child, seed, extra, waiter, progress)
        with unheard(child) as (silent, context):
            return await waiter.within(context, self._sample(wanted, silent, seed, extra, waiter, progress))

    async def _sample(
        self,
        wanted: Sequence[tuple[Condition, int]],
        child: RunnableConfig,
        seed: int,
        extra: dict[str, Any],
        waiter: Waiter,
        progress: Progress | None,
    ) -> Sampled:
        most = child.get("max_concurrency")
        places = [place for place, (_, count) in enumerate(wanted) for _ in range(count)]
        if self._native is not None:
            requests = self._calls(wanted, seed, extra, progress)
            results = await waiter.together(
                [partial(self._generate, call, child, waiter) for call in requests], most=most
            )
            if len(results) == len(wanted):
                places = [place for place, result in enumerate(results) for _ in result]
            replies = [reply for result in results for reply in result]
            _tell(progress, sum(count for _, count in wanted))
        else:
            keywords = {**self._kwargs, **extra}
            calls = [
                partial(self._invoke, list(wanted[place][0].prompts[0]), config, keywords, waiter)
                for place, config in zip(places, get_config_list(child, len(places)), strict=True)
            ]
            replies = await waiter.together(calls, most=most, progress=partial(_tell, progress))
        return _sorted_out(list(zip(places, replies, strict=False)))

    def _calls(
        self, wanted: Sequence[tuple[Condition, int]], seed: int, extra: dict[str, Any], progress: Progress | None
    ) -> list[_Call]:
        """Return the requests: one for all conditions where logits are shown, else one for each."""
        given = {**self._settings, **extra}
        if self.logits and (len(wanted) > 1 or not wanted[0][0].plain):
            conditions = [(condition.prompts, condition.powers, count) for condition, count in wanted]
            requests = [{"seed": seed, "conditions": conditions}]
        else:
            streams = np.random.SeedSequence(seed).generate_state(len(wanted), np.uint64)
            requests = [
                {"seed": int(stream) >> 11, "n": count} for stream, (_, count) in zip(streams, wanted, strict=True)
            ]
        heard = _Heard(progress, len(requests))
        return [
            (list(wanted[k][0].prompts[0]), {**given, **request, **heard.of(k)}) for k, request in enumerate(requests)
        ]

    async def _invoke(
        self, prompt: list[BaseMessage], config: RunnableConfig, keywords: dict[str, Any], waiter: Waiter
    ) -> Any:
        """Return a reply, or what made it fail."""
        model = self._model
        try:
            return await waiter.either(
                lambda: model.invoke(prompt, config, **keywords), lambda: model.ainvoke(prompt, config, **keywords)
            )
        except Exception as error:  # noqa: BLE001 - every failure of a model is kept in .causes
            return error

    async def _generate(self, call: _Call, child: RunnableConfig, waiter: Waiter) -> list[Any]:
        """Return a request's messages, and what made parts of it fail."""
        prompt, keywords = call
        lost = self._losing(keywords)

        async def once(_: object, config: RunnableConfig) -> list[BaseMessage]:
            return await self._request(prompt, keywords, config, waiter)

        request: Runnable[Any, Any] = RunnableLambda(lambda _, config: run(once(_, config)), once, name="once")
        for retry in self._retries:  # those that the user wrapped around the model
            request = retry.model_copy(update={"bound": request, "kwargs": {}, "config": {}})
        try:
            if self._retries:
                replies = await waiter.either(lambda: request.invoke(None, child), lambda: request.ainvoke(None, child))
            else:
                replies = await once(None, child)
        except Exception as error:  # noqa: BLE001 - every failure of a model is kept in .causes
            return [_failure(error)]
        return [*replies, *lost]

    async def _request(
        self, prompt: list[BaseMessage], keywords: dict[str, Any], config: RunnableConfig, waiter: Waiter
    ) -> list[BaseMessage]:
        model = self._native
        assert model is not None  # noqa: S101 - for the type checker
        if not self._traced:
            generations: Sequence[Any] = await Untraced(model).generate(prompt, keywords, waiter)
        else:
            prompts: list[PromptValue] = [ChatPromptValue(messages=prompt)]
            callbacks = _callbacks(_merge(self._bound_config, config))
            result = await waiter.either(
                lambda: model.generate_prompt(prompts, **callbacks, **keywords),
                lambda: model.agenerate_prompt(prompts, **callbacks, **keywords),
            )
            generations = result.generations[0]
        return [one.message for one in generations if isinstance(one, ChatGeneration)]

    def _losing(self, keywords: dict[str, Any]) -> list[Exception]:
        """Return the list to which a provider's requests add what made them fail."""
        lost: list[Exception] = []
        if isinstance(self._native, ManyReplies):
            keywords["failed"] = lost.append
        return lost


def _uncached(model: BaseChatModel) -> BaseChatModel:
    """Return the model without its cache, which would make all candidates one."""
    model._serialized  # noqa: B018, SLF001 - what tracers are told is found out once; the copy has it then
    copied: BaseChatModel = model.model_copy(update={"cache": False})
    return copied


def _untraced(model: BaseChatModel) -> Untraced:
    return Untraced(_uncached(model))


def _merge(first: RunnableConfig, second: RunnableConfig) -> RunnableConfig:
    merged = RunnableConfig(**{**first, **second})
    merged["tags"] = [*first.get("tags", []), *second.get("tags", [])]
    merged["metadata"] = {**first.get("metadata", {}), **second.get("metadata", {})}
    return merged


def _callbacks(config: RunnableConfig) -> dict[str, Any]:
    return {
        "callbacks": config.get("callbacks"),
        "tags": config.get("tags"),
        "metadata": config.get("metadata"),
        "run_name": config.get("run_name"),
    }


def _failure(error: Exception) -> Exception:
    """Return what made a request fail; a model that was set up wrongly is no failure of a request."""
    if isinstance(error, AuctionError) and not isinstance(error, CandidatesError):
        raise error
    return error


def _sorted_out(replies: Sequence[tuple[int, Any]]) -> Sampled:
    causes: list[BaseException] = []
    messages: list[tuple[int, AIMessage]] = []
    usage: UsageMetadata | None = None
    for place, reply in replies:
        if isinstance(reply, BaseException):
            causes += getattr(reply, "causes", ()) or [reply]
            continue
        if not isinstance(reply, AIMessage):
            raise ConfigurationError(
                f"The model returned {type(reply).__name__}; an auction needs a chat model, which returns AIMessage. "
                "Put output parsers after the auction: auction | parser."
            )
        held = reply.response_metadata.get("auction")
        if isinstance(held, Mapping) and str(held.get("schema")).startswith(_HELD):
            raise ConfigurationError(
                "The model's reply was drawn in an auction: something in the model is an auction already, and what "
                "loses in this one would have been paid for in that one. Auction the model itself."
            )
        messages.append((place, reply))
        if reply.usage_metadata is not None:
            usage = add_usage(_NO_TOKENS if usage is None else usage, reply.usage_metadata)
    return Sampled(replies=tuple(messages), causes=tuple(causes), usage=usage)


class _Heard:
    """Adds up what requests under way at the same time say of their progress."""

    def __init__(self, progress: Progress | None, requests: int) -> None:
        self._progress = progress
        self._done = [0] * requests
        self._rates = [0.0] * requests

    def of(self, request: int) -> dict[str, Any]:
        """Return the keyword that lets a model of ours report."""
        if self._progress is None:
            return {}

        def hear(done: int, _total: int, tokens_per_second: float = 0.0) -> None:
            self._done[request] = done
            self._rates[request] = tokens_per_second
            _tell(self._progress, sum(self._done), sum(self._rates) or None)

        return {"progress": hear}


def _tell(progress: Progress | None, done: int, tokens_per_second: float | None = None) -> None:
    if progress is not None:
        progress(done, tokens_per_second)
