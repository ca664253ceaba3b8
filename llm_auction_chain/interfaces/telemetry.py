"""`OpenTelemetryHandler`: a span for each auction, with names, counts and numbers, and without texts."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from typing_extensions import override

from llm_auction_chain.errors import MissingDependencyError

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

__all__ = ["OpenTelemetryHandler"]

_EVENTS = ("auction.started", "auction.candidates", "auction.scored", "auction.settled")


class OpenTelemetryHandler(BaseCallbackHandler):
    """Record each auction as a span `auction`, under the span that is current where the auction begins.

    The span lasts from `auction.started` to `auction.settled`, or to the error that ends the auction. The auction's
    events are the span's events, and their numbers its attributes `auction.*`. No span holds a text of a prompt, a
    reply, a reward or an error; `error.type` is the class of an error. Spans of model calls come from any OpenTelemetry
    instrumentation of LangChain, beside this handler.

    Args:
        tracer: makes the spans. None is the global provider's tracer `llm_auction_chain`.

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
    >>> reply = auction.invoke("Say something", {"callbacks": [OpenTelemetryHandler(provider.get_tracer("app"))]})
    >>> [(span.name, span.attributes["auction.candidates"]) for span in exporter.get_finished_spans()]
    [('auction', 8)]
    """

    run_inline = True  # in the caller's own context, which holds the current span

    def __init__(self, tracer: "Tracer | None" = None) -> None:
        try:
            from opentelemetry import trace
        except ImportError as error:
            raise MissingDependencyError(
                "OpenTelemetryHandler needs the otel extra: pip install 'llm-auction-chain[otel]'"
            ) from error
        self._error = trace.StatusCode.ERROR
        self._tracer = tracer or trace.get_tracer("llm_auction_chain")
        self._auctions: dict[UUID, tuple[Span, Callable[[], object]]] = {}  # by run: the span, and how to stop watching

    @override
    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:
        if name not in _EVENTS:
            return
        if name == _EVENTS[0] and run_id not in self._auctions:
            self._auctions[run_id] = (self._tracer.start_span("auction"), self._watch_cancellation(run_id))
        if run_id in self._auctions:
            span, _ = self._auctions[run_id]
            span.set_attributes(attributes := _attributes(data))
            span.add_event(name, attributes)
        if name == _EVENTS[-1]:
            self._end(run_id)

    @override
    def on_chain_end(self, outputs: dict[str, Any], *, run_id: UUID, **kwargs: Any) -> None:
        self._end(run_id)

    @override
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._end(run_id, type(error).__qualname__)

    on_llm_error = on_chain_error  # the run of a ChatAuction is a model's

    def _watch_cancellation(self, run_id: UUID) -> Callable[[], object]:
        """End the span when the current task is cancelled: LangChain calls no handler then. Return what stops this."""
        task = None
        with suppress(RuntimeError):  # there is no event loop
            task = asyncio.current_task()
        if task is None:
            return lambda: None

        def done(task: "asyncio.Task[Any]") -> None:
            if task.cancelled():
                self._end(run_id, "CancelledError")

        task.add_done_callback(done)
        return lambda: task.remove_done_callback(done)

    def _end(self, run_id: UUID, error: str | None = None) -> None:
        """End the span of a run's auction, if the run is one."""
        if auction := self._auctions.pop(run_id, None):
            span, stop_watching = auction
            stop_watching()
            if error:
                span.set_attribute("error.type", error)
                span.set_status(self._error)
            span.end()


def _attributes(data: Mapping[str, Any]) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            attributes |= {f"auction.{name}.{key}": number for key, number in value.items()}
        elif value is not None:
            attributes["auction.id" if name == "auction_id" else f"auction.{name}"] = value
    return attributes
