"""The peer's own Prometheus metrics, fed by its events; the HTTP side adds its own to the same registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from nsllm.node.service import PeerEvent

EVENTS: Final = "nsllm_events"


class PeerMetrics:
    """Counts events by kind, and reads gauges when somebody scrapes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._events = Counter(EVENTS, "What happened in this peer, by kind", ["kind"], registry=registry)

    def count(self, event: PeerEvent) -> None:
        """A tap for `nsllm.node.events.EventBus`."""
        self._events.labels(kind=event.kind).inc()

    def gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """A gauge that `read` supplies at every scrape."""
        Gauge(f"nsllm_{name}", meaning, registry=self.registry).set_function(read)
