"""A LangChain chat model that runs a transformers model in this process. The first reply imports torch."""

import math
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import run_in_executor
from typing_extensions import override

from llm_auction_chain.candidates.proposals import Condition
from llm_auction_chain.errors import LogProbError
from llm_auction_chain.models.local.limits import import_torch
from llm_auction_chain.models.local.templates import check_rows
from llm_auction_chain.models.local.weights import EMBEDDED_MODEL, check_installed, embedded_model_path
from llm_auction_chain.models.sampling import SAMPLER, SamplingChatModel, usage
from llm_auction_chain.validators import Check, optional, refuse, text, whole_number

if TYPE_CHECKING:
    from llm_auction_chain.models.local.engine import Drawing, Engine, Progress

__all__ = ["ChatTransformers"]

T = TypeVar("T")
_SIZES = ("max_batch_tokens", "max_cached_tokens")
_WHOLE = ("logprobs", "conditions", "progress", "cancel")  # keywords that only calls for whole replies take


class ChatTransformers(SamplingChatModel):
    """A chat model that draws `n` independent replies in one batch.

    The same seed gives the same replies. Reply i does not depend on `n`, up to the rounding of the dtype.

    Attributes:
        model: a folder or a name on the Hugging Face Hub. None is the embedded SmolLM2-135M-Instruct.
        max_tokens: the most tokens of a reply.
        temperature: divides the logits. 0 takes the likeliest token each time.
        top_p: below 1, keeps only the likeliest tokens whose probabilities reach it (nucleus sampling).
        top_k: above 0, keeps only that many likeliest tokens.
        stop: strings, or one string. A reply ends before the first of them.
        seed: None draws a fresh one for every request.
        chat_template_kwargs: variables of the model's chat template, such as `{"enable_thinking": False}`.
        dtype: "bfloat16", "float16", "float32", or "auto": bfloat16 where the device computes in it, else float32.
        device: a torch device or "auto".
        max_batch_tokens: the most tokens whose keys and values a request holds at once. The rest waits. None is as
            many as fit into a quarter of the memory that is free when the model is loaded.
        max_cached_tokens: the most tokens of prompts whose keys and values are cached for later requests. The next turn
            of a chat then reads only what is new. 0 keeps none. None is a quarter of `max_batch_tokens`.
        compiled: whether `torch.compile` makes the model faster. It takes minutes once.
        trust_remote_code: whether Python code that comes with the model may run.
        streaming: whether `invoke` sends every piece of a reply to the callbacks.

    Raises:
        ConfigurationError: a setting is invalid or unknown. The message names it.
        MissingDependencyError: the extra `local` is not installed.

    Example:
        >>> ChatTransformers(temperature=0.7, seed=1).temperature
        0.7
    """

    provider: ClassVar[str] = "transformers"
    checks: ClassVar[Mapping[str, Check]] = {
        **SamplingChatModel.checks,
        "model": optional(text),
        "dtype": text,
        "device": text,
        "max_batch_tokens": optional(partial(whole_number, least=1)),
        "max_cached_tokens": optional(partial(whole_number, least=0)),
    }

    model: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    max_batch_tokens: int | None = None
    max_cached_tokens: int | None = None
    compiled: bool = False
    trust_remote_code: bool = False
    streaming: bool = False

    @override
    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        check_installed()

    @classmethod
    @override
    def is_lc_serializable(cls) -> bool:
        return True

    @property
    @override
    def _model_name(self) -> str:
        return self.model or EMBEDDED_MODEL

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = (*SAMPLER, "stop", "seed", "chat_template_kwargs", "dtype", "device", *_SIZES, "compiled")
        return {"model": self._model_name, **{name: getattr(self, name) for name in names}}

    @override
    def _should_stream(self, *, async_api: bool, run_manager: Any = None, **kwargs: Any) -> bool:
        # A stream carries the text of one reply and nothing else.
        whole = kwargs.get("n", 1) != 1 or any(name in kwargs for name in _WHOLE)
        return not whole and super()._should_stream(async_api=async_api, run_manager=run_manager, **kwargs)

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
        conditions: Sequence[tuple[Condition, int]] | None = None,
        progress: "Progress | None" = None,
        cancel: threading.Event | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """Draw `n` replies in one batch.

        Args:
            messages: system, human and AI messages.
            stop: replaces the field.
            run_manager: unused. A whole request reports nothing before its end.
            n: number of replies.
            seed: replaces the field.
            logprobs: puts token ids and log-probabilities into `response_metadata["logprobs"]`, and the whole reply's
                log-probability under each of the conditions, as far as the draw gives it.
            conditions: (condition, count), in place of messages and `n`.
            progress: a callback after every token, with (finished replies, all replies, tokens per second).
            cancel: once it is set, the engine draws no further token.
            **kwargs: `max_tokens`, `temperature`, `top_p`, `top_k` replace the fields unless None.

        Returns:
            `n` generations. The first message has the usage of the whole request, the others have none.

        Raises:
            ConfigurationError: a setting or a message is invalid.
            ContextWindowError: the prompt does not fit into the model's window.
            PromptError: there is no message.
            concurrent.futures.CancelledError: `cancel` was set.
        """
        settings = self._arguments(stop, seed, n, kwargs)
        if conditions is None:
            conditions = [(Condition(name="messages", prompts=(tuple(messages),)), n)]
        turns = [[self._turns(prompt) for prompt in one.prompts] for one, _ in conditions]
        drawings = self._drawings(conditions, turns)
        replies = self._engine().sample(drawings, progress=progress, cancel=cancel, **settings)
        input_tokens = sum(len(prompt) for one in drawings if one.count for prompt in one.prompts)
        total = usage(input_tokens, sum(len(reply.token_ids) for reply in replies))
        drawn = []
        for reply in replies:
            metadata: dict[str, Any] = {"model_name": self._model_name, "finish_reason": reply.finish_reason}
            if logprobs:
                tokens = {"token_ids": list(reply.token_ids), "token_logprobs": list(reply.log_probs)}
                totals = [None if math.isnan(total) else total for total in reply.totals]
                metadata["logprobs"] = {**tokens, "basis": "sampler", "complete": True, "condition_totals": totals}
            drawn.append(AIMessage(content=reply.text, response_metadata=metadata))
        drawn[0].usage_metadata = total
        generations = [ChatGeneration(message=message) for message in drawn]
        return ChatResult(generations=generations, llm_output={"model_name": self._model_name, "token_usage": total})

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """Run `_generate` in a thread. If the await is cancelled, the thread stops before its next token."""
        return await _in_thread(self._generate, messages, stop, **kwargs)

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
        """Yield one reply as it grows. The chunks add up to the reply of `_generate` under the same seed.

        It takes the arguments of `_generate` for one reply, and raises the same errors.
        """
        if n != 1:
            raise refuse("n", "1, because a stream carries one reply", n, "Use invoke or generate for more.")
        settings = self._arguments(stop, seed, n, kwargs)
        turns = self._turns(messages)
        engine = self._engine()
        prompt_ids = engine.encode(turns, self.chat_template_kwargs)
        sent = 0
        for reply in engine.stream(prompt_ids, **settings):
            message = AIMessageChunk(content=reply.text[sent:])
            sent = len(reply.text)
            if reply.finish_reason is not None:
                message.response_metadata = {"model_name": self._model_name, "finish_reason": reply.finish_reason}
                message.usage_metadata = usage(len(prompt_ids), len(reply.token_ids))
                message.chunk_position = "last"
            elif not message.content:
                continue
            chunk = ChatGenerationChunk(message=message)
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def score(self, prompt: Sequence[BaseMessage], replies: Sequence[AIMessage], **kwargs: Any) -> list[float]:
        """Return `log pi(reply | prompt)` in nats, under this model's temperature and truncation.

        Keywords and errors are those of `score_conditions`.
        """
        return self.score_conditions([Condition(name="prompt", prompts=(tuple(prompt),))], replies, **kwargs)[0]

    def score_conditions(
        self,
        conditions: Sequence[Condition],
        replies: Sequence[AIMessage],
        *,
        wanted: Sequence[Sequence[bool]] | None = None,
        cancel: threading.Event | None = None,
        **kwargs: Any,
    ) -> list[list[float]]:
        """Return `log pi_c(reply)` (C, M) in nats.

        Args:
            conditions: (C,). The engine reads a prompt once, even if several conditions share it.
            replies: drawn with `logprobs=True`, so that they carry their tokens.
            wanted: (C, M), whether to compute an entry. The others are nan and cost nothing. None computes all.
            cancel: once it is set, the engine computes nothing further.
            **kwargs: `temperature`, `top_p`, `top_k` replace the fields unless None.

        Raises:
            LogProbError: a reply's tokens are unknown.
            ContextWindowError: a prompt and a reply do not fit into the model's window.
            concurrent.futures.CancelledError: `cancel` was set.
        """
        settings = self._arguments(None, 0, 1, kwargs)
        ids = [_token_ids(reply) for reply in replies]
        engine = self._engine()
        for reply in ids:
            check_rows(engine.tokenizer, reply, engine.model)
        encode = partial(engine.encode, variables=self.chat_template_kwargs)
        encoded = [[tuple(encode(self._turns(prompt))) for prompt in one.prompts] for one in conditions]
        places = {prompt: k for k, prompt in enumerate(dict.fromkeys(chain.from_iterable(encoded)))}
        powers = np.zeros((len(conditions), len(places)))
        for c, (prompts, condition) in enumerate(zip(encoded, conditions, strict=True)):
            for prompt, power in zip(prompts, condition.powers, strict=True):
                powers[c, places[prompt]] += power
        tilts = {c: condition.tilt for c, condition in enumerate(conditions) if condition.tilt is not None}
        needed = None if wanted is None else np.asarray(wanted, dtype=bool).reshape(len(conditions), len(replies))
        sampler = settings["sampler"]
        scores = engine.score(list(places), powers, ids, sampler, tilts=tilts, wanted=needed, cancel=cancel)
        return [row.tolist() for row in scores]

    async def ascore_conditions(
        self, conditions: Sequence[Condition], replies: Sequence[AIMessage], **kwargs: Any
    ) -> list[list[float]]:
        """Run `score_conditions` in a thread. If the await is cancelled, the thread stops before its next pass."""
        return await _in_thread(self.score_conditions, conditions, replies, **kwargs)

    def _drawings(self, conditions: Sequence[tuple[Condition, int]], turns: Sequence[Any]) -> list["Drawing"]:
        """Return the conditions in tokens."""
        engine = self._engine()
        from llm_auction_chain.models.local.engine import Drawing

        encode = partial(engine.encode, variables=self.chat_template_kwargs)
        return [
            Drawing(list(map(encode, prompts)), one.powers, count, one.tilt)
            for prompts, (one, count) in zip(turns, conditions, strict=True)
        ]

    def load(self) -> None:
        """Load the weights now, so that no reply waits for them. Later calls do nothing.

        Raises:
            ConfigurationError: there is no such model, dtype or device, weights are missing, or the model looks ahead.
            MissingDependencyError: the weights, the extra `local` or a library of the model are not installed.
        """
        self._engine()

    @override
    def _tokens(self, content: str | list[dict[str, str]]) -> list[int]:
        engine = self._engine()
        if isinstance(content, str):
            return list(engine.tokenizer(content)["input_ids"])
        return engine.encode(content, self.chat_template_kwargs)

    def _engine(self) -> "Engine":
        """Return the engine, which this process loads once."""
        path = self.model or str(embedded_model_path())
        from llm_auction_chain.models.local.engine import Engine

        names = ("dtype", "device", *_SIZES, "compiled", "trust_remote_code")
        return Engine.load(path, **{name: getattr(self, name) for name in names})

    def _arguments(self, stop: list[str] | None, seed: int | None, n: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the engine's arguments."""
        settings = self._settings(stop, seed, n, kwargs)
        import_torch()
        from llm_auction_chain.models.local.sampler import Sampler

        settings["sampler"] = Sampler(**{name: settings.pop(name) for name in ("temperature", "top_p", "top_k")})
        if settings["seed"] is None:
            settings["seed"] = secrets.randbits(64)
        return settings


async def _in_thread(call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Return what a call returns in a thread. If the await is cancelled, the event `cancel` stops the call."""
    cancel = threading.Event()
    try:
        return await run_in_executor(None, call, *args, cancel=cancel, **kwargs)
    finally:
        cancel.set()


def _token_ids(reply: AIMessage) -> list[int]:
    """Return a reply's tokens, which do not follow from its text alone."""
    logprobs = reply.response_metadata.get("logprobs")
    if not isinstance(logprobs, dict) or logprobs.get("token_ids") is None:
        raise LogProbError(
            "A reply's tokens are unknown, and other tokens may give the same text. Score replies that this model drew "
            "with logprobs=True."
        )
    return list(logprobs["token_ids"])
