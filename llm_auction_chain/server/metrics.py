"""Metrics of the server, in the format of Prometheus."""

import os
from typing import Any

from langchain_core.messages import AIMessage
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from llm_auction_chain.server.limits import Capacity

__all__ = ["Metrics"]

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counts requests, auctions and tokens. No label and no number depends on a report, except `outcome`.

    Several worker processes share their counts where `PROMETHEUS_MULTIPROC_DIR` names a directory.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, capacity: Capacity) -> None:
        self._registry = registry = CollectorRegistry()
        self._capacity = capacity
        route, model = ("route", "status"), ("model",)
        self._requests = Counter("llm_auction_requests", "HTTP requests", route, registry=registry)
        self._seconds = Histogram(
            "llm_auction_request_seconds", "Duration of a request", ("route",), buckets=_SECONDS, registry=registry
        )
        self._auctions = Counter(
            "llm_auction_auctions", "Auctions whose reply was delivered", (*model, "outcome"), registry=registry
        )
        self._tokens = Counter("llm_auction_tokens", "Tokens of all candidates", (*model, "kind"), registry=registry)
        self._running, self._waiting = (
            Gauge(f"llm_auction_{state}", f"Auctions that {what}", registry=registry, multiprocess_mode="livesum")
            for state, what in (("running", "run"), ("waiting", "wait for their turn"))
        )

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        self._observe_queue()

    def count_auction(self, model: str, reply: AIMessage) -> None:
        """Count an auction whose reply was delivered."""
        auction: dict[str, Any] = reply.response_metadata["auction"]
        outcome = "bypassed" if auction["bypassed"] else "sponsored" if auction["sponsored"] else "unsponsored"
        self._auctions.labels(model, outcome).inc()
        if (usage := reply.usage_metadata) is not None:
            self._tokens.labels(model, "input").inc(usage["input_tokens"])
            self._tokens.labels(model, "output").inc(usage["output_tokens"])

    def text(self) -> bytes:
        """Return all metrics, those of the other worker processes too."""
        self._observe_queue()
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _observe_queue(self) -> None:
        self._running.set(self._capacity.running)
        self._waiting.set(self._capacity.admitted - self._capacity.running)
