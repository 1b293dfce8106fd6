"""The HTTP side's own metrics, in the peer's registry."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class ApiMetrics:
    """Counters of requests; one instance a registry, one registry a peer."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "nsllm_http_requests",
            "HTTP requests answered, by route and status",
            ["method", "route", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "nsllm_http_request_seconds",
            "Seconds from a request's headers to the end of its answer",
            ["route"],
            buckets=(0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120),
            registry=registry,
        )
        self.active = Gauge("nsllm_http_requests_active", "HTTP requests that run now", registry=registry)
        self.event_clients = Gauge("nsllm_http_event_clients", "Pages that follow /events now", registry=registry)
