"""A LangChain chat model that runs in this process; torch is imported when the first reply is asked for."""

import asyncio
import math
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import run_in_executor
from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import override

from llm_auction_chain.errors import ConfigurationError, LogProbError
from llm_auction_chain.messages import as_turns
from llm_auction_chain.models.local.weights import EMBEDDED_MODEL, embedded_model_path

if TYPE_CHECKING:
    from llm_auction_chain.models.local.engine import Engine, Pace, Sampled

__all__ = ["ChatTransformers"]

Prompts = Sequence[Sequence[BaseMessage]]
Powers = Sequence[float]

_SAMPLER = ("max_tokens", "temperature", "top_p", "top_k")
_WHOLE = ("logprobs", "conditions", "progress", "cancel")  # what a call can ask of whole replies only
# What LangChain itself passes on for tracing and routing; it says nothing about the reply.
_LANGCHAIN = frozenset({"ls_structured_output_format", "structured_output_format", "stream"})


class ChatTransformers(BaseChatModel):
    """A chat model whose `n` replies are independent draws, made in one batch.

    The same seed gives the same replies, and reply i does not depend on `n`, up to the rounding of the dtype.

    Attributes:
        model: a folder or a name on the Hugging Face Hub; None is the embedded SmolLM2-135M-Instruct.
        max_tokens: the most tokens of a reply.
        temperature: 0 takes the likeliest token each time.
        top_p: nucleus truncation below 1.
        top_k: truncation to the likeliest tokens above 0.
        stop: strings before which a reply is cut; one string is a list of one.
        seed: None draws a fresh one for every request.
        dtype: "bfloat16", "float16", "float32" or "auto".
        device: a torch device or "auto".
        max_batch_tokens: the most tokens whose keys and values a request holds at once, the rest of it waiting; None is
            as many as fit into a quarter of the memory that is free when the model is loaded.
        compiled: whether `torch.compile` makes the model faster, which takes minutes once.
        streaming: whether `invoke` tells callbacks every piece of a reply as it grows.

    Raises:
        ConfigurationError: a setting that cannot be sampled with, or that there is not; the message names it.

    Example:
        >>> ChatTransformers(temperature=0.7, seed=1).temperature
        0.7
    """

    model_config = ConfigDict(populate_by_name=True, extra="forbid")

    native_n: ClassVar[bool] = True

    model: str | None = None
    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    seed: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    max_batch_tokens: int | None = None
    compiled: bool = False
    streaming: bool = False

    @classmethod
    @override
    def is_lc_serializable(cls) -> bool:
        return True

    @field_validator("stop", mode="before")
    @classmethod
    def _one_string_is_a_list(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @model_validator(mode="wrap")
    @classmethod
    def _speak_our_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            chat = handler(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            if first["type"] == "extra_forbidden":
                raise ConfigurationError(f"{where}: not a setting of {cls.__name__}") from error
            raise ConfigurationError(f"{where}={first['input']!r}: {first['msg']}") from error
        _check(**{name: getattr(chat, name) for name in (*_SAMPLER, "seed", "max_batch_tokens")})
        return chat

    @property
    def _llm_type(self) -> str:
        return "chat-transformers"

    @property
    def _model_name(self) -> str:
        return self.model or EMBEDDED_MODEL

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = (*_SAMPLER, "stop", "seed", "dtype", "device", "max_batch_tokens", "compiled")
        return {"model": self._model_name, **{name: getattr(self, name) for name in names}}

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider="transformers",
            ls_model_name=kwargs.get("model") or self._model_name,
            ls_model_type="chat",
            ls_temperature=kwargs.get("temperature", self.temperature),
            ls_max_tokens=kwargs.get("max_tokens", self.max_tokens),
        )
        if strings := self.stop if stop is None else stop:
            params["ls_stop"] = _strings(strings)
        return params

    @override
    def _should_stream(self, *, async_api: bool, run_manager: Any = None, **kwargs: Any) -> bool:
        # A stream carries one reply, and its text alone.
        whole = kwargs.get("n", 1) != 1 or any(name in kwargs for name in _WHOLE)
        return not whole and super()._should_stream(async_api=async_api, run_manager=run_manager, **kwargs)

    @override
    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        usages = [output["token_usage"] for output in llm_outputs if output]
        total = _usage(sum(use["input_tokens"] for use in usages), sum(use["output_tokens"] for use in usages))
        return {"model_name": self._model_name, "token_usage": total}

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        n: int = 1,
        seed: int | None = None,
        logprobs: bool = False,
        conditions: Sequence[tuple[Prompts, Powers, int]] | None = None,
        progress: Callable[[int, int, float], None] | None = None,
        cancel: threading.Event | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """Draw `n` replies in one batch.

        Args:
            messages: system, human and AI messages.
            stop: replaces the field of the same name.
            run_manager: unused; a whole request reports nothing on the way.
            n: how many replies.
            seed: replaces the field of the same name.
            logprobs: puts tokens and log-probabilities into `response_metadata["logprobs"]`, with those of the whole
                reply under each of its condition's prompts alone.
            conditions: (prompts, powers, count), in place of messages and `n`: `count` replies whose tokens follow
                `prod_k pi(token | prompts[k]) ** powers[k]`.
            progress: called with (finished, n, tokens per second) after every token.
            cancel: once it is set, no further token is drawn.
            **kwargs: `max_tokens`, `temperature`, `top_p`, `top_k` replace the fields of the same names where not None.

        Returns:
            `n` generations; the first message's usage is the whole request's, the others have none.

        Raises:
            ConfigurationError: a setting or a message that cannot be sampled with.
            ContextWindowError: the prompt does not fit into the model's window.
            PromptError: there is no message.
            concurrent.futures.CancelledError: `cancel` was set.
        """
        settings = self._settings(stop, seed, n, kwargs)
        wanted = [((messages,), (1.0,), n)] if conditions is None else conditions
        turns = [
            ([as_turns(prompt, type(self).__name__) for prompt in prompts], powers, count)
            for prompts, powers, count in wanted
        ]
        engine = self._engine()
        drawings = [([engine.encode(prompt) for prompt in prompts], powers, count) for prompts, powers, count in turns]
        replies = engine.sample(drawings, progress=_told(progress), cancel=cancel, **settings)
        read = sum(len(prompt) for prompts, _, _ in drawings for prompt in prompts)
        usage = _usage(read, sum(len(reply.token_ids) for reply in replies))
        generations = [
            ChatGeneration(
                message=AIMessage(
                    content=reply.text,
                    response_metadata=self._metadata(reply, logprobs=logprobs),
                    usage_metadata=None if row else usage,
                )
            )
            for row, reply in enumerate(replies)
        ]
        return ChatResult(generations=generations, llm_output={"model_name": self._model_name, "token_usage": usage})

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """Do as `_generate`, in a thread; where nobody awaits it any more, the thread stops before its next token."""
        cancel = threading.Event()
        try:
            return await run_in_executor(None, self._generate, messages, stop, None, cancel=cancel, **kwargs)
        finally:
            cancel.set()

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        n: int = 1,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        """Yield one reply as it grows; joined, it is what `_generate` returns for the same seed.

        Args:
            messages: system, human and AI messages.
            stop: replaces the field of the same name.
            run_manager: told of every piece of text.
            n: 1; a stream carries one reply.
            seed: replaces the field of the same name.
            **kwargs: `max_tokens`, `temperature`, `top_p`, `top_k` replace the fields of the same names where not None.

        Raises:
            ConfigurationError: a setting or a message that cannot be sampled with.
            ContextWindowError: the prompt does not fit into the model's window.
            PromptError: there is no message.
        """
        if n != 1:
            raise ConfigurationError(f"n={n!r}: a stream carries one reply; use invoke or generate for more")
        settings = self._settings(stop, seed, n, kwargs)
        turns = self._turns(messages)
        engine = self._engine()
        prompt_ids = engine.encode(turns)
        sent = 0
        for reply in engine.stream(prompt_ids, **settings):
            message = AIMessageChunk(content=reply.text[sent:])
            sent = len(reply.text)
            if reply.finish_reason is not None:
                message.response_metadata = {"model_name": self._model_name, "finish_reason": reply.finish_reason}
                message.usage_metadata = _usage(len(prompt_ids), len(reply.token_ids))
                message.chunk_position = "last"
            elif not message.content:
                continue
            chunk = ChatGenerationChunk(message=message)
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def score(self, prompt: Sequence[BaseMessage], replies: Sequence[AIMessage], **kwargs: Any) -> list[float]:
        """Return `log pi(reply | prompt)` in nats, under this model's temperature and truncation.

        Args:
            prompt: system, human and AI messages.
            replies: drawn with `logprobs=True`, so that their tokens are known.
            **kwargs: `temperature`, `top_p`, `top_k` replace the fields of the same names where not None.

        Raises:
            LogProbError: a reply's tokens are unknown.
            ContextWindowError: prompt and reply do not fit into the model's window.
        """
        return self.score_conditions([((prompt,), (1.0,))], replies, **kwargs)[0]

    async def ascore(self, prompt: Sequence[BaseMessage], replies: Sequence[AIMessage], **kwargs: Any) -> list[float]:
        """Do as `score`, in a thread."""
        return (await self.ascore_conditions([((prompt,), (1.0,))], replies, **kwargs))[0]

    def score_conditions(
        self,
        conditions: Sequence[tuple[Prompts, Powers]],
        replies: Sequence[AIMessage],
        *,
        wanted: Sequence[Sequence[bool]] | None = None,
        cancel: threading.Event | None = None,
        **kwargs: Any,
    ) -> list[list[float]]:
        """Return `log pi_c(reply)` (C, M) in nats, its tokens following `prod_k pi(token | prompts[k]) ** powers[k]`.

        Args:
            conditions: (prompts, powers); a prompt that several share is read once.
            replies: drawn with `logprobs=True`, so that their tokens are known.
            wanted: (C, M), which ones; the others are nan, and cost nothing. None is all.
            cancel: once it is set, nothing further is computed.
            **kwargs: `temperature`, `top_p`, `top_k` replace the fields of the same names where not None.

        Raises:
            LogProbError: a reply's tokens are unknown.
            ContextWindowError: a prompt and a reply do not fit into the model's window.
            concurrent.futures.CancelledError: `cancel` was set.
        """
        settings = self._settings(None, 0, 1, kwargs)
        ids = [_token_ids(reply) for reply in replies]
        engine = self._engine()
        encoded = [[tuple(engine.encode(self._turns(prompt))) for prompt in prompts] for prompts, _ in conditions]
        places = {prompt: k for k, prompt in enumerate(dict.fromkeys(chain.from_iterable(encoded)))}
        powers = np.zeros((len(conditions), len(places)))
        for c, (prompts, (_, given)) in enumerate(zip(encoded, conditions, strict=True)):
            for prompt, power in zip(prompts, given, strict=True):
                powers[c, places[prompt]] += power
        needed = None if wanted is None else np.asarray(wanted, dtype=bool).reshape(len(conditions), len(replies))
        scores = engine.score(list(places), powers, ids, settings["sampler"], wanted=needed, cancel=cancel)
        return [row.tolist() for row in scores]

    async def ascore_conditions(
        self, conditions: Sequence[tuple[Prompts, Powers]], replies: Sequence[AIMessage], **kwargs: Any
    ) -> list[list[float]]:
        """Do as `score_conditions`, in a thread, which stops where nobody awaits it any more."""
        cancel = threading.Event()
        try:
            return await asyncio.to_thread(self.score_conditions, conditions, replies, cancel=cancel, **kwargs)
        finally:
            cancel.set()

    def _turns(self, messages: Sequence[BaseMessage]) -> list[dict[str, str]]:
        return as_turns(messages, type(self).__name__)

    def _metadata(self, reply: "Sampled", *, logprobs: bool) -> dict[str, Any]:
        metadata: dict[str, Any] = {"model_name": self._model_name, "finish_reason": reply.finish_reason}
        if logprobs:
            metadata["logprobs"] = {
                "token_ids": list(reply.token_ids),
                "token_logprobs": list(reply.log_probs),
                "basis": "sampler",
                "complete": True,
                "prompt_totals": list(reply.prompt_log_probs),
            }
        return metadata

    def load(self) -> None:
        """Read the weights now, so that no reply waits for them; later calls find them loaded.

        Raises:
            ConfigurationError: there is no such model, dtype or device.
            MissingDependencyError: the weights or the extra `local` are not installed.
        """
        self._engine()

    def _engine(self) -> "Engine":
        """Return the loaded model, from this process's cache after the first time."""
        path = self.model or str(embedded_model_path())
        from llm_auction_chain.models.local.engine import Engine

        return Engine.load(
            path, self.dtype, self.device, max_batch_tokens=self.max_batch_tokens, compiled=self.compiled
        )

    def _settings(self, stop: list[str] | None, seed: int | None, n: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the sampler's arguments: the fields, replaced by what this call passes and is not None."""
        unknown = kwargs.keys() - _LANGCHAIN - set(_SAMPLER)
        if unknown:
            raise ConfigurationError(f"{', '.join(sorted(unknown))}: not an argument of {type(self).__name__}")
        given = {name: value for name, value in kwargs.items() if value is not None}
        settings = {name: given.get(name, getattr(self, name)) for name in _SAMPLER}
        seed = self.seed if seed is None else seed
        _check(n=n, seed=seed, **settings)
        strings = _strings(self.stop if stop is None else stop)
        from llm_auction_chain.models.local.sampler import Sampler

        return {
            "max_tokens": settings.pop("max_tokens"),
            "sampler": Sampler(**settings),
            "stop": tuple(string for string in strings if string),
            "seed": secrets.randbits(64) if seed is None else seed,
        }


def _told(progress: Callable[[int, int, float], None] | None) -> "Callable[[Pace], None] | None":
    if progress is None:
        return None
    return lambda pace: progress(pace.finished, pace.total, pace.tokens_per_second)


def _check(
    *,
    n: Any = 1,
    seed: Any,
    max_tokens: Any,
    temperature: Any,
    top_p: Any,
    top_k: Any,
    max_batch_tokens: Any = None,
) -> None:
    """Raise ConfigurationError naming the first setting that cannot be sampled with."""
    for name, value, least, law in (
        ("n", n, 1, "at least 1"),
        ("seed", 0 if seed is None else seed, 0, "at least 0, or None"),
        ("max_tokens", max_tokens, 1, "at least 1"),
        ("max_batch_tokens", 1 if max_batch_tokens is None else max_batch_tokens, 1, "at least 1, or None"),
        ("top_k", top_k, 0, "at least 0; 0 truncates nothing"),
    ):
        if not _is(value, Integral) or value < least:
            raise ConfigurationError(f"{name}={value!r}; it must be a whole number of {law}")
    if not _is(temperature, Real) or not 0 <= temperature < math.inf:
        raise ConfigurationError(f"temperature={temperature!r}; it must be a finite number of at least 0")
    if not _is(top_p, Real) or not 0 < top_p <= 1:
        raise ConfigurationError(f"top_p={top_p!r}; it must be a number above 0 and at most 1")


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _strings(stop: Any) -> list[str]:
    """Return stop strings; one string is a list of one."""
    if stop is None:
        return []
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, Sequence) or not all(isinstance(string, str) for string in strings):
        raise ConfigurationError(f"stop={stop!r}; it must be a list of strings")
    return list(strings)


def _token_ids(reply: AIMessage) -> list[int]:
    """Return the tokens a reply was drawn as; its text alone does not tell them."""
    logprobs = reply.response_metadata.get("logprobs")
    if not isinstance(logprobs, dict) or logprobs.get("token_ids") is None:
        raise LogProbError(
            "A reply's tokens are unknown, and the same text may be written in other tokens. Score replies that were "
            "drawn by this model with logprobs=True."
        )
    return list(logprobs["token_ids"])


def _usage(input_tokens: int, output_tokens: int) -> UsageMetadata:
    """Return the request's token counts: the prompt once, every reply's tokens."""
    return UsageMetadata(
        input_tokens=input_tokens, output_tokens=output_tokens, total_tokens=input_tokens + output_tokens
    )
