"""Replies from any chat model: independent, uncached, traced as children or not at all, hidden from streams.

A model that draws many replies in one request does so. Any other Runnable is called once for each reply, concurrently.
Truncated and empty replies are kept, because dropping them would change the proposal.
"""

from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration
from langchain_core.prompt_values import ChatPromptValue, PromptValue
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import ensure_config, get_config_list, patch_config, set_config_context
from langchain_core.runnables.retry import RunnableRetry

from llm_auction_chain.candidates.logprobs import LogitModel, SequenceScorer
from llm_auction_chain.candidates.native_n import ManyReplies, uses_responses_api
from llm_auction_chain.candidates.proposals import Condition
from llm_auction_chain.candidates.unwrapping import (
    COPIES,
    SEEDS,
    SETTINGS,
    Untraced,
    asks_for_format,
    innermost,
    inside,
    of_one_draw,
    runs_without_handlers,
)
from llm_auction_chain.errors import AuctionError, CandidatesError, ConfigurationError
from llm_auction_chain.messages import calls_of
from llm_auction_chain.waiting import Waiter, run

__all__ = ["Sample", "Source", "hidden", "is_streaming", "native", "quiet"]

Progress = Callable[[int, float | None], None]
_Call = tuple[list[BaseMessage], dict[str, Any]]  # a request: prompt and keywords
_LAW = ("temperature", "top_p", "top_k")  # keywords of the sampler that a scorer needs
_ROOM = 3  # seeds for each draw: a request that is refused or answered in part is followed by others
_NESTED = (dict, list, tuple)
_DEEPEST = 200  # levels that recursive code can walk, with the frames of a graph around it
_OF_RUNS = ("callbacks", "tags", "metadata", "run_name")  # what a chat model takes of a config
_SCHEMA = "llm_auction_chain.auction/"  # prefix of the schema in an auction's metadata
_RESERVED = frozenset({"conditions", "n", "progress", "seed"})

# By name, because importing a provider's package takes time. Subclasses count too. Other providers' classes derive from
# that package's BaseChatOpenAI instead, and do not.
_KNOWN = frozenset({
    ("langchain_openai.chat_models.base", "ChatOpenAI"),
    ("langchain_openai.chat_models.azure", "AzureChatOpenAI"),
})  # fmt: skip
# LangGraph is optional, so its names are copied here.
_NO_STREAM = "nostream"  # the tag of runs that no stream shows
_GRAPHS = "__pregel_"  # prefix of what a graph passes on to graphs in it
_SAVER, _RUNTIME = "__pregel_checkpointer", "__pregel_runtime"
_PLACE = frozenset({"checkpoint_ns", "checkpoint_id", "checkpoint_map"})
_STREAMS = "tap_output_iter"  # an attribute of every handler that feeds astream_events, astream_log or LangGraph


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The replies of some model calls.

    Attributes:
        replies: (index of the condition, message), in the order of the conditions.
        causes: errors of the calls that failed.
    """

    replies: tuple[tuple[int, AIMessage], ...]
    causes: tuple[BaseException, ...]


class Source:
    """A chat model, in its wrappers, as the source of candidates.

    Args:
        model: any Runnable chat model.
        config: the parent run's.
        native_n: whether one request may draw many replies if the provider can.
        traced: whether every call of the model is a run of its own.
        kwargs: passed to the model.

    Attributes:
        scorer: the chat model in the wrappers, if it computes how likely its replies are.
        law: temperature and truncation that are bound to it.
        logits: whether it draws from conditions of every kind, in one request.
        tilts: whether it draws from tilts of whole replies, in one request.
        asked_for_tokens: whether the call itself asks for log-probabilities.
        asked_for_format: whether the call asks for a reply that is parsed.
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
        if reserved := kwargs.keys() & _RESERVED:
            raise ConfigurationError(
                f"{', '.join(sorted(reserved))}: the auction sets this keyword itself. Leave it out."
            )
        self.asked_for_format: bool = asks_for_format(model, config, kwargs)
        self._given, self._config = model.bind(**kwargs) if kwargs else model, config
        self._traced = traced
        self._seeded = False  # whether the user chose a provider's seed
        self._drawn = 0  # replies that were asked for
        self._model = inner = self._model_of_draw(0)
        settings: dict[str, Any] = {}
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
        self.scorer: SequenceScorer | None = inner if isinstance(inner, SequenceScorer) else None
        self.law: dict[str, Any] = {name: settings[name] for name in _LAW if name in settings}
        self.asked_for_tokens: bool = bool(settings.get("logprobs"))
        self._settings = settings
        at_once = native_n or getattr(inner, "native_n", False)
        limit = config.get("max_concurrency")
        self._native = native(inner, seed=settings.get("seed"), max_concurrency=limit) if at_once else None
        self.logits: bool = self._native is not None and isinstance(self._native, LogitModel)
        self.tilts: bool = self.logits or getattr(self._native, "static_tilts", False)

    def _model_of_draw(self, k: int) -> Runnable[Any, Any]:
        """Return the model for the k-th draw. It makes one reply of a request, under a seed of its own."""

        def once(settings: Mapping[str, Any]) -> dict[str, Any]:
            changed = of_one_draw(settings, k)
            self._seeded = self._seeded or changed != of_one_draw(settings, k + 1)
            return changed

        def change(chat: BaseChatModel) -> Runnable[Any, Any]:
            fields = {name: value for name, value in vars(chat).items() if value is not None}
            copies = {name: type(chat).model_fields[name].default for name in COPIES if name in fields}
            own = once({name: fields[name] for name in (*SEEDS, *SETTINGS) if name in fields})
            model = _uncached(chat, {**copies, **own})
            return model if self._traced else Untraced(model)

        return inside(self._given, change, self._config, once)

    async def sample(
        self,
        wanted: Sequence[tuple[Condition, int]],
        waiter: Waiter,
        *,
        seed: int,
        tokens: bool,
        config: RunnableConfig | None,
        progress: Progress | None = None,
    ) -> Sample:
        """Draw the wanted number of replies under each condition, which may be 0.

        The seed replays the draw if the model draws all replies itself. `tokens` asks for tokens and log-probabilities,
        which a scorer needs. `progress` is called with the number of replies that have arrived, and with tokens per
        second if the model counts.

        Raises:
            AuctionError: a model of ours is set up wrongly; no call could have succeeded.
            ConfigurationError: the model returns something else than messages.
        """
        child = config or ensure_config()
        extra = {"logprobs": True} if tokens else {}
        if self._traced:
            return await self._sample(wanted, child, seed, extra, waiter, progress)
        with _untraced_context(child) as (silent, context):
            return await waiter.within(context, self._sample(wanted, silent, seed, extra, waiter, progress))

    async def _sample(
        self,
        wanted: Sequence[tuple[Condition, int]],
        child: RunnableConfig,
        seed: int,
        extra: dict[str, Any],
        waiter: Waiter,
        progress: Progress | None,
    ) -> Sample:
        most = child.get("max_concurrency")
        places = [place for place, (_, count) in enumerate(wanted) for _ in range(count)]
        if self._native is not None:
            drawn_from = [place for place, (_, count) in enumerate(wanted) if count or self._takes_all(wanted)]
            requests = self._calls([wanted[place] for place in drawn_from], seed, extra, progress)
            results = await waiter.together(
                [partial(self._generate, call, child, waiter) for call in requests], most=most
            )
            if len(results) == len(drawn_from):
                places = [place for place, result in zip(drawn_from, results, strict=True) for _ in result]
            replies = [reply for result in results for reply in result]
            if progress is not None:
                progress(sum(count for _, count in wanted), None)
        else:
            prompts = [list(wanted[place][0].prompts[0]) for place in places]
            calls = await self._calls_without_handlers(prompts, child, extra, waiter) or [
                partial(self._invoke, self._drawn + k, prompts[k], config, extra, waiter)
                for k, config in enumerate(get_config_list(child, len(places)))
            ]
            count = (lambda done: progress(done, None)) if progress is not None else None
            replies = await waiter.together(calls, most=most, progress=count)
        self._drawn += sum(count for _, count in wanted)
        return _sample_of(list(zip(places, replies, strict=False)))

    def _takes_all(self, wanted: Sequence[tuple[Condition, int]]) -> bool:
        """Whether one request draws from all conditions, and returns replies with the log-probabilities under each."""
        if self.tilts and any(condition.tilt is not None for condition, _ in wanted):
            return True
        return self.logits and (len(wanted) > 1 or not wanted[0][0].is_plain)

    def _calls(
        self, wanted: Sequence[tuple[Condition, int]], seed: int, extra: dict[str, Any], progress: Progress | None
    ) -> list[_Call]:
        """Return the requests: one for all conditions if the model exposes logits, else one for each."""
        keywords = {**self._settings, **extra}
        if self._takes_all(wanted):
            requests = [{"seed": seed, "conditions": list(wanted)}]
        else:
            streams = np.random.SeedSequence(seed).generate_state(len(wanted), np.uint64)
            requests = [
                {"seed": int(stream) >> 11, "n": count} for stream, (_, count) in zip(streams, wanted, strict=True)
            ]
            if isinstance(self._native, ManyReplies):
                before = accumulate((count for _, count in wanted), initial=self._drawn)
                requests = [{**request, "first": _ROOM * k} for request, k in zip(requests, before, strict=False)]
        hooks = _progress_keywords(progress, len(requests))
        return [(list(wanted[k][0].prompts[0]), {**keywords, **requests[k], **hooks[k]}) for k in range(len(requests))]

    async def _calls_without_handlers(
        self, prompts: list[list[BaseMessage]], config: RunnableConfig, extra: dict[str, Any], waiter: Waiter
    ) -> list[Callable[[], Coroutine[Any, Any, Any]]]:
        """Return a call for each prompt if no callback handles their runs, else an empty list."""
        if self._seeded or not self._traced:
            return []
        runs = await runs_without_handlers(self._model, prompts, config, waiter)
        model: Any = innermost(self._model)
        untraced, keywords = Untraced(model), {**self._settings, **extra}

        async def one(prompt: list[BaseMessage], run: Any) -> Any:
            try:
                return (await untraced.generate(prompt, keywords, waiter, run))[0].message
            except Exception as error:  # noqa: BLE001 - kept in .causes
                return error

        return [partial(one, prompt, run) for prompt, run in zip(prompts, runs, strict=False)]

    async def _invoke(
        self, k: int, prompt: list[BaseMessage], config: RunnableConfig, keywords: dict[str, Any], waiter: Waiter
    ) -> Any:
        """Return the k-th reply, or the error of the call."""
        model = self._model_of_draw(k) if self._seeded else self._model
        try:
            return await waiter.either(
                lambda: model.invoke(prompt, config, **keywords), lambda: model.ainvoke(prompt, config, **keywords)
            )
        except Exception as error:  # noqa: BLE001 - kept in .causes
            return error

    async def _generate(self, call: _Call, child: RunnableConfig, waiter: Waiter) -> list[Any]:
        """Return the messages of a request, and the errors of its parts that failed."""
        prompt, keywords = call
        lost: list[Exception] = []
        if isinstance(self._native, ManyReplies):
            keywords["failed"] = lost.append

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
        except Exception as error:
            if isinstance(error, AuctionError) and not isinstance(error, CandidatesError):
                raise  # the model is set up wrongly
            return [error]
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
            merged = _merge(self._bound_config, config)
            callbacks: dict[str, Any] = {name: merged.get(name) for name in _OF_RUNS}
            result = await waiter.either(
                lambda: model.generate_prompt(prompts, **callbacks, **keywords),
                lambda: model.agenerate_prompt(prompts, **callbacks, **keywords),
            )
            generations = result.generations[0]
        return [one.message for one in generations if isinstance(one, ChatGeneration)]


def _uncached(model: BaseChatModel, changes: Mapping[str, Any]) -> BaseChatModel:
    """Return the model with changes and without its cache, which would make all candidates one."""
    model._serialized  # noqa: B018, SLF001 - computed once here, so that every copy has it
    copied: BaseChatModel = model.model_copy(update={"cache": False, **changes})
    return copied


def _merge(first: RunnableConfig, second: RunnableConfig) -> RunnableConfig:
    merged = RunnableConfig(**{**first, **second})
    merged["tags"] = [*first.get("tags", []), *second.get("tags", [])]
    merged["metadata"] = {**first.get("metadata", {}), **second.get("metadata", {})}
    return merged


def _sample_of(replies: Sequence[tuple[int, Any]]) -> Sample:
    causes: list[BaseException] = []
    messages: list[tuple[int, AIMessage]] = []
    for place, reply in replies:
        if isinstance(reply, BaseException):
            causes += getattr(reply, "causes", ()) or [reply]
            continue
        if not isinstance(reply, AIMessage):
            raise ConfigurationError(
                f"The model returned {type(reply).__name__}; an auction needs a chat model, which returns AIMessage. "
                "Put output parsers after the auction: auction | parser."
            )
        auction = reply.response_metadata.get("auction")
        if isinstance(auction, Mapping) and str(auction.get("schema")).startswith(_SCHEMA):
            raise ConfigurationError(
                "The model contains an auction already: its reply was drawn in one. Replies that lose in the outer "
                "auction would be charged in the inner one. Auction the model itself."
            )
        calls = list(calls_of(reply)) if reply.additional_kwargs else reply.tool_calls
        if _is_deep([reply.content, reply.additional_kwargs, reply.response_metadata, calls]):
            causes.append(CandidatesError("A reply has parts that are nested too deeply, or that contain themselves."))
            continue
        messages.append((place, reply))
    return Sample(replies=tuple(messages), causes=tuple(causes))


def _is_deep(value: Any) -> bool:
    """Whether lists and mappings lie in each other more than 200 levels deep, as they do in what contains itself."""
    layer = [value]
    for _ in range(_DEEPEST):
        parts = [part for one in layer for part in (one.values() if isinstance(one, dict) else one)]
        layer = list({id(part): part for part in parts if isinstance(part, _NESTED) and part}.values())
        if not layer:
            return False
    return True


def _progress_keywords(progress: Progress | None, requests: int) -> list[dict[str, Any]]:
    """Return for each request the keyword by which this library's models report progress, added up over requests."""
    if progress is None:
        return [{}] * requests
    done, rates = [0] * requests, [0.0] * requests

    def pass_on(request: int, arrived: int, _total: int, tokens_per_second: float = 0.0) -> None:
        done[request], rates[request] = arrived, tokens_per_second
        progress(sum(done), sum(rates) or None)

    return [{"progress": partial(pass_on, request)} for request in range(requests)]


@contextmanager
def _untraced_context(config: RunnableConfig) -> Iterator[tuple[RunnableConfig, Context]]:
    """Yield the config without callbacks, and a context in which calls without a config have no callbacks either.

    LangChain would take callbacks from the ambient config, from its hooks and from LangSmith's settings.
    """
    from langchain_core.tracers import context as tracers  # both are slow to import
    from langsmith import tracing_context

    silent = patch_config(config)
    silent["callbacks"] = []
    with tracing_context(enabled=False), set_config_context(silent) as context:
        for hook, *_ in getattr(tracers, "_configure_hooks", ()):  # get_usage_metadata_callback has one
            context.run(hook.set, None)
        yield silent, context


def hidden(config: RunnableConfig) -> RunnableConfig:
    """Return a quiet config for calls whose replies may lose, so that no stream shows them and no graph saves them.

    A graph that is called with it takes no part in the streams, checkpoints and resuming of the graph around the
    auction. It keeps that graph's context and store, and gets a stream writer that drops everything.
    """
    child, outer = config.copy(), config.get("configurable", {})
    inner = {name: value for name, value in outer.items() if not name.startswith(_GRAPHS) and name not in _PLACE}
    if _SAVER in outer:
        inner[_SAVER] = None  # without it, a graph saves all candidates in one thread of its own saver
    if (runtime := outer.get(_RUNTIME)) is not None:
        inner[_RUNTIME] = runtime.override(stream_writer=lambda _: None)
    child["configurable"] = inner
    return child


def is_streaming(handler: BaseCallbackHandler) -> bool:
    """Whether a handler feeds a stream of LangChain's or LangGraph's."""
    return hasattr(handler, _STREAMS)


def quiet(config: RunnableConfig | None) -> RunnableConfig:
    """Return the config for child calls that tracers see and message streams do not.

    LangGraph and `astream_events` stream by handlers. Those are left out, and LangGraph's own tag is added.
    """
    child = ensure_config(config)
    child["tags"] = [*(tag for tag in child["tags"] if tag != _NO_STREAM), _NO_STREAM]
    handlers = child.get("callbacks")
    if isinstance(handlers, BaseCallbackManager):
        manager = handlers.copy()
        inherited = [handler for handler in handlers.inheritable_handlers if not is_streaming(handler)]
        manager.set_handlers(inherited, inherit=True)
        child["callbacks"] = manager
    elif handlers is not None:
        child["callbacks"] = [handler for handler in handlers if not is_streaming(handler)]
    return child


def native(
    model: Runnable[Any, Any], *, seed: int | None = None, max_concurrency: int | None = None
) -> BaseChatModel | None:
    """Return the chat model that draws `n` replies of this model in one request; None if there is none.

    That is the model itself if it declares `native_n`, and a ManyReplies over `ChatOpenAI` and `AzureChatOpenAI` if
    they use the chat-completions API. Its `generate` takes `n`, and returns the usage of the whole call on the first
    message, none on the others. `seed` is the provider's, if the user bound one; a call's keyword `seed` never reaches
    a provider.
    """
    if not isinstance(model, BaseChatModel):
        return None
    if getattr(type(model), "native_n", False):
        return model
    known = any((ancestor.__module__, ancestor.__name__) in _KNOWN for ancestor in type(model).__mro__)
    if not known or uses_responses_api(model, {}):
        return None
    # Each request has its own `n`. A cache would return the same replies for equal requests.
    changes = {"cache": False, "n": None} | ({} if seed is None else {"seed": seed})
    return ManyReplies(
        inner=model.model_copy(update=changes),
        max_concurrency=max_concurrency,
        cache=False,
        # The inner model's calls have no runs, so its callbacks get this one's.
        **{name: getattr(model, name) for name in ("name", "callbacks", "tags", "metadata", "verbose")},
    )
