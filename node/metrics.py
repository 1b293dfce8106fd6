"""The peer's own Prometheus metrics: events are counted, state is read at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from nsllm.node.engine.port import EngineInfo
from nsllm.node.engine_metrics import EngineMetrics
from nsllm.node.traffic_metrics import TrafficMetrics
from nsllm.node.views import PeerEvent
from nsllm.p2p.traffic import Traffic


class PeerMetrics:
    """Counts events by kind; gauges read what `watch` gives them whenever somebody scrapes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._events = Counter("nsllm_events", "What happened in this peer, by kind", ["kind"], registry=registry)
        self._counters: dict[str, Counter] = {}
        """By kind."""
        self._height = Gauge("nsllm_consensus_height", "Height of the last committed block", registry=registry)
        self._halted = Gauge("nsllm_consensus_halted", "1 if consensus has halted here, else 0", registry=registry)
        self._log_size = Gauge("nsllm_network_log_size", "Entries of the network log", registry=registry)
        self._connected = Gauge("nsllm_peers_connected", "Peers with a live connection", registry=registry)
        self._engine = EngineMetrics(registry)
        self._traffic = TrafficMetrics(registry)
        self._counted = CountedElsewhere(registry)

    def count(self, event: PeerEvent) -> None:
        """A tap for `nsllm.node.events.EventBus`."""
        counter = self._counters.get(event.kind)
        if counter is None:
            counter = self._counters[event.kind] = self._events.labels(kind=event.kind)
        counter.inc()

    def watch(
        self,
        *,
        height: Callable[[], int],
        halted: Callable[[], bool],
        log_size: Callable[[], int],
        connected: Callable[[], int],
        engine: Callable[[], EngineInfo],
        look_ups: Callable[[], tuple[int, int, int]],
        traffic: Traffic,
    ) -> None:
        """Say where the gauges read from; each call is cheap.

        Args:
            height: of the last committed block.
            halted: whether consensus has.
            log_size: entries of the network log.
            connected: peers.
            engine: what it runs and did.
            look_ups: hits, misses, refused records.
            traffic: what the network sent and heard.
        """
        self._height.set_function(height)
        self._halted.set_function(halted)
        self._log_size.set_function(log_size)
        self._connected.set_function(connected)
        self._engine.watch(engine)
        self._traffic.watch(traffic)
        self._counted.watch(lambda: (engine().restarts, *look_ups()))


class CountedElsewhere(Collector):
    """Counters that other parts of the peer keep, read whenever somebody scrapes."""

    NAMES: Final = (
        ("nsllm_engine_restarts", "Restarts of the model worker"),
        ("nsllm_cache_hits", "Answers served from the cache"),
        ("nsllm_cache_misses", "Look-ups that found nothing"),
        ("nsllm_cache_refused", "Found records that did not verify"),
    )

    def __init__(self, registry: CollectorRegistry) -> None:
        self._read: Callable[[], Sequence[int]] = lambda: (0,) * len(self.NAMES)
        registry.register(self)

    def watch(self, read: Callable[[], Sequence[int]]) -> None:
        """Say where their values, in the order of `NAMES`, are read; each call is cheap."""
        self._read = read

    def describe(self) -> list[Metric]:
        """All families, empty."""
        return [CounterMetricFamily(name, meaning) for name, meaning in self.NAMES]

    def collect(self) -> Iterator[Metric]:
        """All of them as they stand."""
        for (name, meaning), value in zip(self.NAMES, self._read(), strict=True):
            yield CounterMetricFamily(name, meaning, value=value)
