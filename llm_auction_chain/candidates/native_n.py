"""Many replies in one request: from models that draw them so, and from providers known to.

A provider is asked in rounds. The first asks for all replies at once; a later one asks for those still missing, by
requests no larger than what the provider has shown that it gives. So a provider that ignores `n` is asked once, and
then for single replies, concurrently.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_executor_for_config
from langchain_core.runnables.utils import gather_with_concurrency
from typing_extensions import override

from llm_auction_chain.errors import CandidatesError, ConfigurationError

__all__ = ["ManyReplies", "native"]

# Known by name, so that nobody pays for importing a provider's package. A subclass is known too; the other providers'
# classes in that package's style derive from its BaseChatOpenAI, and are not.
_KNOWN = frozenset({
    ("langchain_openai.chat_models.base", "ChatOpenAI"),
    ("langchain_openai.chat_models.azure", "AzureChatOpenAI"),
})  # fmt: skip
_MOST = 128  # OpenAI takes no larger n
_REFUSALS = (400, 404, 422)
# What the auction tells a model of ours, and no provider.
_OURS = frozenset({"seed", "progress", "failed"})


def native(
    model: Runnable[Any, Any], *, seed: int | None = None, max_concurrency: int | None = None
) -> BaseChatModel | None:
    """Return the chat model that draws `n` replies of this model in one request; None where there is none.

    That is the model itself where it declares `native_n`; a ManyReplies over `ChatOpenAI` and `AzureChatOpenAI` where
    they speak the chat-completions API. Its `generate` takes `n`, and returns the usage of the whole call on the first
    message, none on the others.

    Args:
        model: no wrapper: bound keywords and configs are the caller's to unwrap, and to pass on.
        seed: the provider's, where the user bound one; the call's own keyword `seed` never reaches a provider.
        max_concurrency: the most requests of one call that are under way at the same time.
    """
    if not isinstance(model, BaseChatModel):
        return None
    if getattr(type(model), "native_n", False):
        return model
    known = any((ancestor.__module__, ancestor.__name__) in _KNOWN for ancestor in type(model).__mro__)
    if not known or _uses_responses_api(model, {}):
        return None
    # `n` is each request's to say; a cache would make equal requests equal replies.
    changes = {"cache": False, "n": None} | ({} if seed is None else {"seed": seed})
    return ManyReplies(
        inner=model.model_copy(update=changes),
        max_concurrency=max_concurrency,
        cache=False,
        # Whoever listens to the model hears of this one's run: the inner model's calls have none.
        **{name: getattr(model, name) for name in ("name", "callbacks", "tags", "metadata", "verbose")},
    )


class ManyReplies(BaseChatModel):
    """A provider's chat model whose `n` replies come from one request, or as few as it takes.

    It is traced as one run of the inner model, billed once: what the requests cost is summed up on the first message,
    and on the others there is none. Made by `native`.

    Attributes:
        inner: the provider's model, without cache and without an `n` of its own; its rate limiter counts requests.
        max_concurrency: the most requests of one call that are under way at the same time; None leaves it to LangChain.
    """

    native_n: ClassVar[bool] = True

    inner: BaseChatModel
    max_concurrency: int | None = None

    @property
    def _llm_type(self) -> str:
        return self.inner._llm_type  # noqa: SLF001 - one run, and it is the inner model's

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return self.inner._identifying_params  # noqa: SLF001

    @cached_property
    def _serialized(self) -> dict[str, Any]:
        # Tracers take a run's name from here.
        return self.inner._serialized  # noqa: SLF001

    @override
    def get_name(self, suffix: str | None = None, *, name: str | None = None) -> str:
        return self.inner.get_name(suffix, name=name)

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self.inner._get_ls_params(stop=stop, **_told(kwargs))  # noqa: SLF001

    @override
    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return self.inner._get_invocation_params(stop=stop, **_told(kwargs))  # noqa: SLF001

    @override
    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        return self.inner._combine_llm_outputs(llm_outputs)  # noqa: SLF001

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        n: int = 1,
        seed: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """Draw `n` replies; fewer where some requests failed and others did not.

        Args:
            messages: as the inner model takes them.
            stop: as the inner model takes it.
            run_manager: unused; whole requests report nothing on the way.
            n: how many replies. At most 128 are asked for by one request.
            seed: unused. The auction's seed is for models of ours; a provider gives equal replies for equal seeds, so
                that one seed for several requests would make copies of independent draws.
            progress: called with (arrived, n) after every round of requests.
            failed: called with what made a request fail whose replies are missing. It was made once: the inner model
                has its own retries.
            **kwargs: as the inner model takes them.

        Returns:
            At most `n` generations. Their messages have what a single request's has: `model_name`, `model_provider`.

        Raises:
            CandidatesError: no reply could be drawn; `.causes` holds every failure.
            ConfigurationError: `n` is below 1.
        """
        drawing = self._drawing(n, kwargs)
        with get_executor_for_config(RunnableConfig(max_concurrency=self.max_concurrency)) as executor:
            while requests := drawing.requests():
                keywords = [self._keywords(request, kwargs) for request in requests]
                drawing.take(requests, list(executor.map(lambda call: self._ask(messages, stop, call), keywords)))
                drawing.tell(progress)
        return self._result(drawing, failed)

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        *,
        n: int = 1,
        seed: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """Do as `_generate`, awaiting."""
        drawing = self._drawing(n, kwargs)
        while requests := drawing.requests():
            calls = [self._aask(messages, stop, self._keywords(request, kwargs)) for request in requests]
            drawing.take(requests, await gather_with_concurrency(self.max_concurrency, *calls))
            drawing.tell(progress)
        return self._result(drawing, failed)

    def _ask(
        self, messages: list[BaseMessage], stop: list[str] | None, keywords: dict[str, Any]
    ) -> ChatResult | Exception:
        try:
            # Not `generate`: a run of its own would be billed a second time. Rate limiter and output version are here.
            return self.inner._generate_with_cache(messages, stop, **keywords)  # noqa: SLF001
        except Exception as error:  # noqa: BLE001 - other requests may have succeeded
            return error

    async def _aask(
        self, messages: list[BaseMessage], stop: list[str] | None, keywords: dict[str, Any]
    ) -> ChatResult | Exception:
        try:
            return await self.inner._agenerate_with_cache(messages, stop, **keywords)  # noqa: SLF001
        except Exception as error:  # noqa: BLE001 - other requests may have succeeded
            return error

    def _drawing(self, n: int, kwargs: Mapping[str, Any]) -> "_Drawing":
        if n < 1:
            raise ConfigurationError(f"n={n!r}; it must be at least 1")
        # A response format is parsed by the provider's package, which keeps what it parsed on the first reply alone,
        # and fails the whole request for one reply that was cut. The Responses API has no n.
        single = "response_format" in _settings(self.inner, kwargs) or _uses_responses_api(self.inner, kwargs)
        return _Drawing(n=n, at_once=1 if single else _MOST)

    def _keywords(self, request: "_Request", kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the inner model is called with; for one reply, that is what it is always called with."""
        keywords = dict(kwargs)
        if request.n > 1:
            # A stream carries one reply.
            keywords |= {"n": request.n, "stream": False}
        seed = getattr(self.inner, "seed", None)
        if request.first and seed is not None:
            # Under one seed, two requests would return the same replies.
            keywords["seed"] = seed + request.first
        return keywords

    def _result(self, drawing: "_Drawing", failed: Callable[[Exception], None] | None) -> ChatResult:
        """Return the replies, or raise what kept them all from being drawn."""
        if not drawing.answers:
            said = "; ".join(sorted({f"{type(cause).__name__}: {cause}"[:200] for cause in drawing.causes}))
            raise CandidatesError(
                f"None of {drawing.n} replies could be drawn from {self.get_name()}. It failed with: {said}",
                drawing.causes,
            ) from drawing.causes[0]
        if failed is not None:
            for cause in drawing.causes:
                failed(cause)
        outputs = [answer.llm_output for answer in drawing.answers]
        total = self.inner._combine_llm_outputs(outputs).get("token_usage")  # noqa: SLF001
        output = {**(outputs[0] or {}), "token_usage": total}
        return ChatResult(generations=_billed_once(drawing.answers)[: drawing.n], llm_output=output)


class _Request(NamedTuple):
    first: int  # how many replies were asked for before
    n: int


@dataclass(kw_only=True)
class _Drawing:
    """What the requests of one call have given, and what is still to be asked.

    Attributes:
        n: replies wanted.
        at_once: the most that one request asks for.
        answers: what came back.
        causes: what made requests fail whose replies are missing.
    """

    n: int
    at_once: int
    answers: list[ChatResult] = field(default_factory=list)
    causes: list[Exception] = field(default_factory=list)
    _asked: int = 0
    _lost: int = 0
    _doubtful: bool = False

    @property
    def _arrived(self) -> int:
        return sum(len(answer.generations) for answer in self.answers)

    def requests(self) -> list[_Request]:
        """Return what to ask now; nothing when all has been tried."""
        missing = self.n - self._arrived - self._lost
        # After a refusal one request shows whether it was the number that was refused.
        wanted = min(missing, 1) if self._doubtful else missing
        firsts = range(self._asked, self._asked + wanted, self.at_once)
        self._asked += max(wanted, 0)
        return [_Request(first, min(self.at_once, self._asked - first)) for first in firsts]

    def take(self, requests: Sequence[_Request], outcomes: Sequence[ChatResult | Exception]) -> None:
        """Learn from what came back."""
        refused, most = False, 1
        for request, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, Exception):
                if request.n > 1 and getattr(outcome, "status_code", None) in _REFUSALS:
                    refused = True
                    continue
                self.causes.append(outcome)
            elif outcome.generations:
                self.answers.append(outcome)
                most = max(most, len(outcome.generations))
                continue
            else:
                self.causes.append(CandidatesError("The provider answered, and sent no reply."))
            self._lost += self.n if self._doubtful else request.n
        self.at_once = 1 if refused else min(most, self.at_once)
        self._doubtful = refused

    def tell(self, progress: Callable[[int, int], None] | None) -> None:
        """Report how many replies have arrived."""
        if progress is not None:
            progress(min(self._arrived, self.n), self.n)


def _billed_once(answers: Sequence[ChatResult]) -> list[ChatGeneration]:
    """Return all replies with what their request's answer said; the first has the usage of all requests.

    langchain-openai puts a request's usage on each of its replies, and its model's name on none where they are many.
    """
    generations: list[ChatGeneration] = []
    usage: UsageMetadata | None = None
    for answer in answers:
        used = getattr(answer.generations[0].message, "usage_metadata", None)
        usage = add_usage(usage, used) if used else usage
        for generation in answer.generations:
            metadata = {**(answer.llm_output or {}), **generation.message.response_metadata}
            # It is the request's, and not this reply's.
            metadata.pop("token_usage", None)
            # A copy: the message may be somebody else's too.
            message = generation.message.model_copy(update={"response_metadata": metadata, "usage_metadata": None})
            generations.append(ChatGeneration(message=message, generation_info=generation.generation_info))
    generations[0].message = generations[0].message.model_copy(update={"usage_metadata": usage})
    return generations


def _told(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that are the provider's."""
    return {name: value for name, value in kwargs.items() if name not in _OURS}


def _settings(model: BaseChatModel, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a request will say, as langchain-openai puts it together."""
    return {**getattr(model, "_default_params", {}), **kwargs}


def _uses_responses_api(model: BaseChatModel, kwargs: Mapping[str, Any]) -> bool:
    """Whether langchain-openai would take this call to the Responses API: it decides by the model and by keywords."""
    decide = getattr(model, "_use_responses_api", None)
    return bool(decide and decide(_settings(model, kwargs)))
