"""The engine's Prometheus metrics: vLLM's names and buckets under our own prefix, so that its dashboards fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from nsllm.node.engine.port import EngineInfo, LoadedModel
from nsllm.node.engine.stats import EngineStats, Histogram

LABELS = ("model_name",)


class EngineMetrics(Collector):
    """Reads the engine whenever somebody scrapes. What only its own worker can tell is left out of an upstream's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._read: Callable[[], EngineInfo] | None = None
        registry.register(self)

    def watch(self, read: Callable[[], EngineInfo]) -> None:
        """Say where to read; each call is cheap."""
        self._read = read

    def describe(self) -> list[Metric]:
        """All families, empty."""
        return list(_families(None))

    def collect(self) -> Iterator[Metric]:
        """All families as they stand."""
        return _families(None if self._read is None else self._read())


def _families(info: EngineInfo | None) -> Iterator[Metric]:
    rows = info.texts() if info else ()
    counted = [([row.model.name], row.stats) for row in rows if row.stats is not None]

    def gauge(name: str, meaning: str, read: Callable[[LoadedModel], float | None]) -> Metric:
        family = GaugeMetricFamily(f"nsllm_{name}", meaning, labels=LABELS)
        for row in rows:
            value = read(row)
            if value is not None:
                family.add_metric([row.model.name], value)
        return family

    def counter(name: str, meaning: str, read: Callable[[EngineStats], int]) -> Metric:
        family = CounterMetricFamily(f"nsllm_{name}", meaning, labels=LABELS)
        for model, stats in counted:
            family.add_metric(model, read(stats))
        return family

    def histogram(name: str, meaning: str, read: Callable[[EngineStats], Histogram]) -> Metric:
        family = HistogramMetricFamily(f"nsllm_{name}", meaning, labels=LABELS)
        for model, stats in counted:
            seen = read(stats)
            family.add_metric(model, _buckets(seen), seen.total)
        return family

    yield gauge("num_requests_running", "Generations that have a place", lambda row: row.active)
    yield gauge("num_requests_waiting", "Generations that wait for one", lambda row: row.queued)
    yield gauge(
        "kv_cache_usage_perc",
        "Share of the memory for keys and values that is in use; 1 is all of it",
        lambda row: row.stats.cache_usage if row.stats else None,
    )
    yield counter("prefix_cache_queries", "Prompt tokens looked for among known ones", lambda s: s.queried_tokens)
    yield counter("prefix_cache_hits", "Prompt tokens that were known", lambda s: s.found_tokens)
    yield counter("prompt_tokens", "Prompt tokens that were read, or known", lambda s: s.prompt_tokens)
    yield counter("generation_tokens", "Tokens that were generated", lambda s: s.generation_tokens)
    yield _success(counted)
    for name, meaning, read in HISTOGRAMS:
        yield histogram(name, meaning, read)


def _success(counted: Sequence[tuple[list[str], EngineStats]]) -> Metric:
    """Generations of each model, by outcome."""
    family = CounterMetricFamily(
        "nsllm_request_success", "Generations that ended, by how", labels=(*LABELS, "finished_reason")
    )
    for model, stats in counted:
        for outcome, count in stats.outcomes:
            family.add_metric([*model, outcome], count)
    return family


def _buckets(seen: Histogram) -> list[tuple[str, float]]:
    """(upper bound, how many up to it), as Prometheus has them."""
    bounds = [*(str(bound) for bound in seen.bounds), "+Inf"]
    return list(zip(bounds, accumulate(seen.counts), strict=True))


HISTOGRAMS: tuple[tuple[str, str, Callable[[EngineStats], Histogram]], ...] = (
    ("time_to_first_token_seconds", "From the question to the first token", lambda s: s.histograms.first_token),
    ("inter_token_latency_seconds", "Between two tokens of an answer", lambda s: s.histograms.between_tokens),
    ("e2e_request_latency_seconds", "From the question to the last token", lambda s: s.histograms.whole),
    ("request_queue_time_seconds", "From the question until its prompt is read", lambda s: s.histograms.queue),
    ("request_prefill_time_seconds", "From then to the first token", lambda s: s.histograms.prefill),
    ("request_decode_time_seconds", "From the first token to the last", lambda s: s.histograms.decode),
    ("iteration_tokens_total", "Tokens that the text model reads in a step", lambda s: s.histograms.step_tokens),
    ("request_prompt_tokens", "Tokens of a prompt", lambda s: s.histograms.prompt_length),
    ("request_generation_tokens", "Tokens of an answer", lambda s: s.histograms.answer_length),
)
