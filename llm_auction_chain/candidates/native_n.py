"""Many replies in one request, from models and providers that can draw them.

A provider is asked in rounds. The first asks for all replies at once. A later one asks for those still missing, with
requests no larger than what the provider has returned. So a provider that ignores `n` is asked once for all, and then
for single replies, concurrently.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from typing_extensions import override

from llm_auction_chain.candidates.unwrapping import of_one_draw
from llm_auction_chain.errors import CandidatesError
from llm_auction_chain.messages import total_counts, total_usage
from llm_auction_chain.validators import whole_number
from llm_auction_chain.waiting import Waiter, WaitingChatModel

__all__ = ["ManyReplies", "uses_responses_api"]

_MOST = 128  # OpenAI takes no larger n
_REFUSALS = (400, 404, 422)
# Keywords for this library's own models, not for a provider.
_OWN_KEYWORDS = frozenset({"seed", "progress", "failed", "first"})


class ManyReplies(WaitingChatModel):
    """A provider's chat model that draws `n` replies with as few requests as possible.

    It is traced as one run of the inner model. The first message has the usage of all requests, the others have none.

    Attributes:
        inner: the provider's model, without cache and without an `n` of its own; its rate limiter counts requests.
        max_concurrency: requests of one call that may be under way at once; None is all.
    """

    native_n: ClassVar[bool] = True

    inner: BaseChatModel
    max_concurrency: int | None = None

    @property
    def _llm_type(self) -> str:
        return self.inner._llm_type  # noqa: SLF001 - the run is the inner model's

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
        return self.inner._get_ls_params(stop=stop, **_for_provider(kwargs))  # noqa: SLF001

    @override
    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return self.inner._get_invocation_params(stop=stop, **_for_provider(kwargs))  # noqa: SLF001

    @override
    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        return self.inner._combine_llm_outputs(llm_outputs)  # noqa: SLF001

    @override
    async def _reply(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: Any,
        waiter: Waiter,
        /,
        *,
        n: int = 1,
        first: int = 0,
        seed: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """Draw `n` replies; fewer if some requests failed and others did not.

        `seed` is not used: a provider gives equal replies for equal seeds, so the auction's seed would make copies of
        independent draws. Where the user chose one, the requests add 0, 1, 2, ... to it, beginning at `first`, which
        keeps them apart from those of other calls. `progress` is called with (arrived, n) after every round of
        requests, `failed` with the error of each request whose replies are missing. It is not repeated: the inner model
        has its own retries.

        Raises:
            CandidatesError: no reply could be drawn; `.causes` holds every failure.
            ConfigurationError: `n` is below 1.
        """
        # The provider's package parses a response format on the first reply alone, and fails the whole request for one
        # reply that was cut. The Responses API has no n.
        single = "response_format" in _settings(self.inner, kwargs) or uses_responses_api(self.inner, kwargs)
        rounds = _Rounds(n=whole_number("n", n, least=1), batch=1 if single else _MOST, _asked=first)
        while requests := rounds.requests():
            calls = [
                partial(self._ask, messages, stop, self._keywords(request, kwargs), waiter) for request in requests
            ]
            rounds.take(requests, await waiter.together(calls, most=self.max_concurrency))
            if progress is not None:
                progress(min(rounds.arrived, n), n)
        return self._result(rounds, failed)

    async def _ask(
        self, messages: list[BaseMessage], stop: list[str] | None, keywords: dict[str, Any], waiter: Waiter
    ) -> ChatResult | Exception:
        model = self.inner
        try:
            # Not `generate`: a run of its own would be billed a second time. Rate limiter and output version are here.
            return await waiter.either(
                lambda: model._generate_with_cache(messages, stop, **keywords),  # noqa: SLF001
                lambda: model._agenerate_with_cache(messages, stop, **keywords),  # noqa: SLF001
            )
        except Exception as error:  # noqa: BLE001 - other requests may have succeeded
            return error

    def _keywords(self, request: "_Request", kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keywords of a call of the inner model; for one reply, those of any call."""
        keywords = dict(kwargs)
        if request.n > 1:
            # A stream carries one reply.
            keywords |= {"n": request.n, "stream": False}
        if request.first:
            # Under one seed, two requests would return the same replies.
            own = _settings(self.inner, kwargs)
            keywords |= of_one_draw({name: own[name] for name in ("seed", "extra_body") if name in own}, request.first)
        return keywords

    def _result(self, rounds: "_Rounds", failed: Callable[[Exception], None] | None) -> ChatResult:
        """Return the replies, or raise the errors of the requests if there are none."""
        if not rounds.answers:
            errors = "; ".join(sorted({f"{type(cause).__name__}: {cause}"[:200] for cause in rounds.causes}))
            raise CandidatesError(
                f"None of {rounds.n} replies could be drawn from {self.get_name()}. It failed with: {errors}",
                rounds.causes,
            )
        if failed is not None:
            for cause in rounds.causes:
                failed(cause)
        outputs = [answer.llm_output for answer in rounds.answers]
        output = {**(outputs[0] or {}), "token_usage": total_counts((one or {}).get("token_usage") for one in outputs)}
        return ChatResult(generations=_billed_once(rounds.answers)[: rounds.n], llm_output=output)


class _Request(NamedTuple):
    first: int  # replies that earlier requests ask for
    n: int


@dataclass(kw_only=True)
class _Rounds:
    """The answers to the requests of one call, and what to ask next.

    Attributes:
        n: replies wanted.
        batch: the most replies that one request asks for.
        answers: the requests that succeeded.
        causes: errors of the requests whose replies are missing.
    """

    n: int
    batch: int
    answers: list[ChatResult] = field(default_factory=list)
    causes: list[Exception] = field(default_factory=list)
    _asked: int = 0
    _lost: int = 0
    _doubtful: bool = False  # the provider refused a request for several replies

    @property
    def arrived(self) -> int:
        return sum(len(answer.generations) for answer in self.answers)

    def requests(self) -> list[_Request]:
        """Return the requests of the next round; none if all has been tried."""
        missing = self.n - self.arrived - self._lost
        # After a refusal one request shows whether it was the number that was refused.
        wanted = min(missing, 1) if self._doubtful else missing
        firsts = range(self._asked, self._asked + wanted, self.batch)
        self._asked += max(wanted, 0)
        return [_Request(first, min(self.batch, self._asked - first)) for first in firsts]

    def take(self, requests: Sequence[_Request], outcomes: Sequence[ChatResult | Exception]) -> None:
        """Add the outcomes of a round."""
        refused, most = False, 1
        for request, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, ChatResult) and outcome.generations:
                self.answers.append(outcome)
                most = max(most, len(outcome.generations))
            elif request.n > 1 and getattr(outcome, "status_code", None) in _REFUSALS:
                refused = True
            else:
                empty = CandidatesError("The provider answered without a reply.")
                self.causes.append(outcome if isinstance(outcome, Exception) else empty)
                self._lost += self.n if self._doubtful else request.n
        self.batch = 1 if refused else min(most, self.batch)
        self._doubtful = refused


def _billed_once(answers: Sequence[ChatResult]) -> list[ChatGeneration]:
    """Return all replies with the metadata of their request; the first has the usage of all requests.

    langchain-openai puts the usage of a request on each of its replies, and the model's name on none if they are many.
    """
    generations: list[ChatGeneration] = []
    usage = total_usage(getattr(answer.generations[0].message, "usage_metadata", None) for answer in answers)
    for answer in answers:
        for generation in answer.generations:
            metadata = {**(answer.llm_output or {}), **generation.message.response_metadata}
            metadata.pop("token_usage", None)  # the request's, not this reply's
            # a copy, because a callback may keep the message
            message = generation.message.model_copy(update={"response_metadata": metadata, "usage_metadata": None})
            generations.append(ChatGeneration(message=message, generation_info=generation.generation_info))
    generations[0].message = generations[0].message.model_copy(update={"usage_metadata": usage})
    return generations


def _for_provider(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that a provider knows."""
    return {name: value for name, value in kwargs.items() if name not in _OWN_KEYWORDS}


def _settings(model: BaseChatModel, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a request, as langchain-openai merges them."""
    return {**getattr(model, "_default_params", {}), **kwargs}


def uses_responses_api(model: BaseChatModel, kwargs: Mapping[str, Any]) -> bool:
    """Whether langchain-openai would use the Responses API for this call: it decides by the model and by keywords."""
    decide = getattr(model, "_use_responses_api", None)
    return bool(decide and decide(_settings(model, kwargs)))
