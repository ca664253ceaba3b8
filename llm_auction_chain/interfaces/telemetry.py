"""`OpenTelemetryHandler`: a span per auction, and one per model call under it. Numbers, names and counts; no text."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from typing_extensions import override

from llm_auction_chain.errors import MissingDependencyError

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

__all__ = ["OpenTelemetryHandler"]

_STAGES = ("auction.started", "auction.candidates", "auction.scored", "auction.settled")
# What OpenTelemetry calls the providers that LangChain calls otherwise.
_PROVIDERS = {
    "amazon_bedrock": "aws.bedrock",
    "azure": "azure.ai.openai",
    "google_genai": "gcp.gemini",
    "google_vertexai": "gcp.vertex_ai",
    "mistralai": "mistral_ai",
    "mistral": "mistral_ai",
    "xai": "x_ai",
}


@dataclass(eq=False)
class _Auction:
    """An auction under way: its span, the runs below it with the spans of model calls, and its task."""

    span: "Span"
    runs: "dict[UUID, Span | None]" = field(default_factory=dict)
    task: "asyncio.Task[Any] | None" = None
    on_done: Any = None


class OpenTelemetryHandler(BaseCallbackHandler):
    """Record every auction as a span `auction`, under the span that is current where it begins.

    It lasts from `auction.started` to `auction.settled`, or to the error that ended the auction. These events are its
    events, their numbers its attributes `auction.*`, whatever interface held it. Each model call that is a run under
    the auction (a draw of `AuctionRunnable`, a judge's question) is a span `chat {model}` under it, as OpenTelemetry's
    GenAI conventions have it. The draws of `ChatAuction` and `AuctionMiddleware` are nobody's runs: what they cost is
    `auction.input_tokens` and `auction.output_tokens`, as for all.

    No span holds a text of a prompt, a reply, a reward or an error: of an error, `error.type` tells the class. Calls
    not done when their auction ends are ended with it, as errors of the type `abandoned`.

    Args:
        tracer: makes the spans; None is the global provider's tracer `llm_auction_chain`.

    Raises:
        MissingDependencyError: opentelemetry-api is not installed.

    >>> from opentelemetry.sdk.trace import TracerProvider
    >>> from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    >>> from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    >>> from llm_auction_chain import Agent, AuctionRunnable
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> exporter, provider = InMemorySpanExporter(), TracerProvider()
    >>> provider.add_span_processor(SimpleSpanProcessor(exporter))
    >>> agent = Agent("B", lambda prompt, reply: 2.0 * reply.text.count("b"))
    >>> auction = AuctionRunnable(model=MarkovChatModel(), agents=[agent], n_candidates=8, seed=7)
    >>> handler = OpenTelemetryHandler(provider.get_tracer("app"))
    >>> reply = auction.invoke("Say something", {"callbacks": [handler]})
    >>> call, span = exporter.get_finished_spans()
    >>> call.name, span.name, span.attributes["auction.candidates"], span.attributes["auction.output_tokens"]
    ('chat', 'auction', 8, 16)
    """

    run_inline = True  # in the caller's own context: there the current span is found

    def __init__(self, tracer: "Tracer | None" = None) -> None:
        try:
            from opentelemetry import trace
        except ImportError as error:
            raise MissingDependencyError(
                "OpenTelemetryHandler needs the otel extra: pip install 'llm-auction-chain[otel]'"
            ) from error
        self._trace = trace
        self._tracer = tracer or trace.get_tracer("llm_auction_chain")
        self._lock = Lock()
        self._auctions: dict[UUID, _Auction] = {}  # by their own run
        self._above: dict[UUID, _Auction] = {}  # by the runs below them

    @override
    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:
        if name not in _STAGES:
            return
        if name == _STAGES[0]:
            self._begin(run_id)
        if auction := self._auctions.get(run_id):
            attributes = _flat(data)
            auction.span.set_attributes(attributes)
            auction.span.add_event(name, attributes)
        if name == _STAGES[-1]:
            self._end(run_id)

    @override
    def on_chain_start(
        self,
        serialized: dict[str, Any],
        inputs: dict[str, Any],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        self._enter(run_id, parent_run_id)  # retries and chains stand between an auction and its model calls

    @override
    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        invocation_params: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._enter(run_id, parent_run_id, _request(metadata or {}, invocation_params or {}))

    @override
    def on_chain_end(self, outputs: dict[str, Any], *, run_id: UUID, **kwargs: Any) -> None:
        self._leave(run_id)

    @override
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._leave(run_id, error=_kind(error))

    @override
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        self._leave(run_id, _response(response))

    @override
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._leave(run_id, error=_kind(error))

    def _begin(self, run_id: UUID) -> None:
        with self._lock:
            if run_id in self._auctions:
                return
            # an auction that an auction's model or agent holds stands under that
            outer = self._above.get(run_id)
            auction = self._auctions[run_id] = _Auction(self._start("auction", outer, run_id))
        try:
            auction.task = asyncio.current_task()
        except RuntimeError:  # no event loop: then every error is told of
            return
        if auction.task:
            # a chat model that is cancelled tells nobody
            auction.on_done = lambda task: self._end(run_id, "CancelledError") if task.cancelled() else None
            auction.task.add_done_callback(auction.on_done)

    def _start(self, name: str, outer: _Auction | None, run_id: UUID | None = None, **settings: Any) -> "Span":
        if outer is None:
            return self._tracer.start_span(name, **settings)
        above = (outer.runs.get(run_id) if run_id else None) or outer.span
        return self._tracer.start_span(name, self._trace.set_span_in_context(above), **settings)

    def _enter(self, run_id: UUID, parent_run_id: UUID | None, request: dict[str, Any] | None = None) -> None:
        """Note a run below an auction; a model call, which has a request, gets a span."""
        if parent_run_id is None:
            return
        with self._lock:
            auction = self._auctions.get(parent_run_id) or self._above.get(parent_run_id)
            if auction is None:
                return
            span = None
            if request is not None:
                name = " ".join(filter(None, ("chat", request.get("gen_ai.request.model"))))
                span = self._start(name, auction, kind=self._trace.SpanKind.CLIENT, attributes=request)
            auction.runs[run_id], self._above[run_id] = span, auction

    def _leave(self, run_id: UUID, response: dict[str, Any] | None = None, error: str | None = None) -> None:
        self._end(run_id, error)
        with self._lock:
            auction = self._above.pop(run_id, None)
            span = auction.runs.pop(run_id, None) if auction else None
        if span:
            span.set_attributes(response or {})
            self._close(span, error)

    def _end(self, run_id: UUID, error: str | None = None) -> None:
        """End an auction's span, and what is still under way below it."""
        with self._lock:
            auction = self._auctions.pop(run_id, None)
            if auction is None:
                return
            for run in auction.runs:
                self._above.pop(run, None)
        if auction.task:
            auction.task.remove_done_callback(auction.on_done)
        for span in filter(None, auction.runs.values()):
            self._close(span, "abandoned")
        self._close(auction.span, error)

    def _close(self, span: "Span", error: str | None) -> None:
        if error:
            span.set_attribute("error.type", error)
            span.set_status(self._trace.StatusCode.ERROR)
        span.end()


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event's data as attributes."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat |= {f"auction.{name}.{key}": number for key, number in value.items()}
        elif value is not None:
            flat["auction.id" if name == "auction_id" else f"auction.{name}"] = value
    return flat


def _request(told: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model call asks for."""
    provider, n = told.get("ls_provider"), params.get("n")
    known = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": _PROVIDERS.get(str(provider), provider),
        "gen_ai.request.model": told.get("ls_model_name"),
        "gen_ai.request.temperature": told.get("ls_temperature"),
        "gen_ai.request.max_tokens": told.get("ls_max_tokens"),
        "gen_ai.request.choice.count": None if n == 1 else n,
    }
    return {name: value for name, value in known.items() if value is not None}


def _response(response: LLMResult) -> dict[str, Any]:
    """Return what a model call gave: its model's name, and the tokens of all replies together."""
    messages = [one.message for row in response.generations for one in row if isinstance(one, ChatGeneration)]
    names = [name for message in messages if (name := message.response_metadata.get("model_name"))]
    told: dict[str, Any] = {"gen_ai.response.model": names[0]} if names else {}
    used = [usage for message in messages if (usage := getattr(message, "usage_metadata", None))]
    for name in ("input_tokens", "output_tokens"):
        if counts := [usage[name] for usage in used if name in usage]:
            told[f"gen_ai.usage.{name}"] = sum(counts)
    return told


def _kind(error: BaseException) -> str:
    return type(error).__qualname__
