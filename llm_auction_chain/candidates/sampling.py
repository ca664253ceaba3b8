"""M candidate replies from any chat model: independent, uncached, traced as children and hidden from streams.

A model of ours that declares `native_n = True` draws all of them in one batched call; any other Runnable is called M
times, concurrently. Truncated or empty replies are kept: dropping them would change the proposal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig, RunnableSequence
from langchain_core.runnables.config import ensure_config, patch_config
from langchain_core.runnables.fallbacks import RunnableWithFallbacks

from llm_auction_chain.errors import AuctionError, CandidatesError, ConfigurationError

__all__ = ["Candidate", "Drawn", "asample", "sample"]

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One reply that may be drawn.

    Attributes:
        message: the reply, with its own metadata and usage.
        log_weight: log pi_ref - log pi_gen, nats; 0 where it was drawn from the reference.
    """

    message: AIMessage
    log_weight: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a round of sampling gave.

    Attributes:
        candidates: the replies, in the order of the calls.
        causes: what made the other calls fail.
        usage: tokens of all calls together; None where the model reports none.
    """

    candidates: tuple[Candidate, ...]
    causes: tuple[BaseException, ...]
    usage: UsageMetadata | None


def sample(
    model: Runnable[Any, Any],
    prompt: Sequence[BaseMessage],
    n: int,
    *,
    config: RunnableConfig | None = None,
    min_candidates: int = 1,
    seed: int | None = None,
    progress: Progress | None = None,
    **kwargs: Any,
) -> Drawn:
    """Draw n replies from the model under the prompt.

    Args:
        model: any Runnable chat model: plain, bound, with retry, with fallbacks.
        prompt: the user's messages.
        n: M, at least 1.
        config: the parent run's; children are tagged `nostream`.
        min_candidates: fewer replies than this is an error.
        seed: replays the draw where the model draws all replies itself (`native_n`).
        progress: called with the number of replies that have arrived.
        **kwargs: handed to the model.

    Raises:
        CandidatesError: fewer than `min_candidates` calls succeeded; `.causes` holds every failure.
        AuctionError: a model of ours was set up wrongly; no call could have succeeded.
    """
    model = _uncached(model)
    child = _hidden(config)
    if native := _native(model):
        inner, bound, bound_config = native
        call = {**bound, **kwargs, "n": n, "seed": seed}
        child = _merge(bound_config, child)
        try:
            result = inner.generate_prompt([ChatPromptValue(messages=list(prompt))], **_callbacks(child), **call)
        except AuctionError:
            raise
        except Exception as error:  # noqa: BLE001 - every failure of a model is kept in .causes
            return _drawn([error], n, min_candidates)
        if progress:
            progress(n)
        return _drawn(_messages(result), n, min_candidates)
    replies: list[Any] = [None] * n
    calls = model.batch_as_completed([list(prompt)] * n, child, return_exceptions=True, **kwargs)
    for done, (index, reply) in enumerate(calls, 1):
        replies[index] = reply
        if progress:
            progress(done)
    return _drawn(replies, n, min_candidates)


async def asample(
    model: Runnable[Any, Any],
    prompt: Sequence[BaseMessage],
    n: int,
    *,
    config: RunnableConfig | None = None,
    min_candidates: int = 1,
    seed: int | None = None,
    progress: Progress | None = None,
    **kwargs: Any,
) -> Drawn:
    """Do as `sample`, awaiting."""
    model = _uncached(model)
    child = _hidden(config)
    if native := _native(model):
        inner, bound, bound_config = native
        call = {**bound, **kwargs, "n": n, "seed": seed}
        child = _merge(bound_config, child)
        try:
            result = await inner.agenerate_prompt([ChatPromptValue(messages=list(prompt))], **_callbacks(child), **call)
        except AuctionError:
            raise
        except Exception as error:  # noqa: BLE001 - every failure of a model is kept in .causes
            return _drawn([error], n, min_candidates)
        if progress:
            progress(n)
        return _drawn(_messages(result), n, min_candidates)
    replies: list[Any] = [None] * n
    done = 0
    async for index, reply in model.abatch_as_completed([list(prompt)] * n, child, return_exceptions=True, **kwargs):
        replies[index] = reply
        done += 1
        if progress:
            progress(done)
    return _drawn(replies, n, min_candidates)


def _hidden(config: RunnableConfig | None) -> RunnableConfig:
    """Return the config for child calls: the tag keeps losing replies out of token streams."""
    config = ensure_config(config)
    child = patch_config(config)
    child["tags"] = [*config.get("tags", []), "nostream"]
    return child


def _uncached(model: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """Return the model without its cache, through the wrappers: a cache would make all candidates one."""
    if isinstance(model, BaseChatModel):
        return model.model_copy(update={"cache": False})
    if isinstance(model, RunnableWithFallbacks):
        fallbacks = [_uncached(fallback) for fallback in model.fallbacks]
        return model.model_copy(update={"runnable": _uncached(model.runnable), "fallbacks": fallbacks})
    if isinstance(model, RunnableSequence):
        return RunnableSequence(*map(_uncached, model.steps), name=model.name)
    if isinstance(bound := getattr(model, "bound", None), Runnable) and hasattr(model, "model_copy"):
        copied: Runnable[Any, Any] = model.model_copy(update={"bound": _uncached(bound)})
        return copied
    return model


def _native(model: Runnable[Any, Any]) -> tuple[BaseChatModel, dict[str, Any], RunnableConfig] | None:
    if isinstance(model, RunnableBinding):
        inner = _native(model.bound)
        return inner and (inner[0], {**inner[1], **model.kwargs}, _merge(inner[2], model.config))
    if isinstance(model, BaseChatModel) and getattr(model, "native_n", False):
        return model, {}, RunnableConfig()
    return None


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


def _messages(result: LLMResult) -> list[Any]:
    generations = [generation for generation in result.generations[0] if isinstance(generation, ChatGeneration)]
    return [generation.message for generation in generations]


def _drawn(replies: Sequence[Any], n: int, min_candidates: int) -> Drawn:
    causes = [reply for reply in replies if isinstance(reply, BaseException)]
    messages = [reply for reply in replies if not isinstance(reply, BaseException)]
    for message in messages:
        if not isinstance(message, AIMessage):
            raise ConfigurationError(
                f"The model returned {type(message).__name__}; an auction needs a chat model, which returns AIMessage. "
                "Put output parsers after the auction: auction | parser."
            )
    if len(messages) < min_candidates or not messages:
        listed = "; ".join(sorted({f"{type(cause).__name__}: {cause}"[:200] for cause in causes}))
        raise CandidatesError(
            f"Only {len(messages)} of {n} replies could be drawn, and min_candidates is {min_candidates}. "
            f"The model failed with: {listed or 'no error, it returned nothing'}",
            causes,
        )
    usage: UsageMetadata | None = None
    for message in messages:
        if message.usage_metadata is not None:
            usage = add_usage(usage, message.usage_metadata)
    return Drawn(
        candidates=tuple(Candidate(message=message) for message in messages), causes=tuple(causes), usage=usage
    )
