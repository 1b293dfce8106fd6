"""What a peer sends and hears, as Prometheus metrics: read from the network's own counts at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from nsllm.p2p.traffic import Tally, Traffic

COUNTED: tuple[tuple[str, str, Callable[[Tally], int]], ...] = (
    ("nsllm_p2p_streams_opened", "Streams that this peer opened", lambda tally: tally.streams),
    ("nsllm_p2p_messages_sent", "Frames sent on streams of either side", lambda tally: tally.messages),
    ("nsllm_p2p_bytes_sent", "Bytes of these frames, before encryption", lambda tally: tally.sent_bytes),
)


class TrafficMetrics(Collector):
    """Reads the network whenever somebody scrapes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._traffic = Traffic()
        registry.register(self)

    def watch(self, traffic: Traffic) -> None:
        """Say whose numbers these are."""
        self._traffic = traffic

    def describe(self) -> list[Metric]:
        """All families, empty."""
        return list(_families(Traffic()))

    def collect(self) -> Iterator[Metric]:
        """All families as they stand."""
        return _families(self._traffic)


def _families(traffic: Traffic) -> Iterator[Metric]:
    for name, meaning, read in COUNTED:
        family = CounterMetricFamily(name, meaning, labels=("protocol",))
        for protocol, tally in sorted(traffic.protocols.items()):
            family.add_metric([protocol], read(tally))
        yield family
    told = CounterMetricFamily("nsllm_p2p_announcements", "Announcements, by direction", labels=("direction",))
    told.add_metric(["heard"], traffic.heard)
    told.add_metric(["published"], traffic.published)
    yield told
