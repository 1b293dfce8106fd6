"""Statistics: what is counted when, and how it reads as Prometheus's text."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from nsllm.ids import Digest
from nsllm.node.engine.port import EngineInfo, ModelInfo
from nsllm.node.engine.protocol import Load
from nsllm.node.engine.stats import Recorder, Tally, Timing
from nsllm.node.engine_metrics import EngineMetrics
from nsllm.record import Sampling


def info_of(stats):
    model = ModelInfo(
        name="tiny", digest=Digest(b"d" * 32), dtype="int8", context_tokens=256, defaults=Sampling(), upstream=not stats
    )
    return EngineInfo(
        text=model, encoder=model, state="ready", restarts=0, active=3, queued=2, tokens_per_second=None, stats=stats
    )


def load(**changes):
    fields = {"step_s": 0.5, "rows": 9, "running": 2, "waiting": 0, "prompt_tokens": 8}
    fields |= {"queried_tokens": 0, "found_tokens": 0, "used_blocks": 0, "blocks": 0, **changes}
    return Load(**fields)


@pytest.mark.parametrize(("value", "bucket"), [(0.5, 0), (1.0, 0), (1.5, 1), (2.0, 1), (9.0, 2)])
def test_a_bucket_holds_its_upper_bound(value, bucket):
    tally = Tally((1.0, 2.0))
    tally.add(value)
    seen = tally.histogram()
    assert [n for n, count in enumerate(seen.counts) if count] == [bucket]
    assert seen.total == value


def test_the_times_of_a_generation():
    recorder = Recorder()
    timing = Timing(recorder, 10.0)
    timing.started(12.0, 7)
    timing.gained(15.0, 1)
    timing.gained(15.25, 1)
    timing.gained(15.75, 2)
    timing.finished("length")
    assert timing.over() == "length"
    stats = recorder.stats("fast", 2)
    seen = stats.histograms
    assert seen.queue.total == 2.0
    assert seen.first_token.total == 5.0
    assert seen.prefill.total == 3.0
    assert (seen.between_tokens.total, sum(seen.between_tokens.counts)) == (0.75, 2)
    assert seen.decode.total == 0.75
    assert seen.whole.total == 5.75
    assert (seen.prompt_length.total, seen.answer_length.total) == (7, 4)
    assert (stats.prompt_tokens, stats.generation_tokens) == (7, 4)
    assert dict(stats.outcomes) == {"stop": 0, "length": 1, "abort": 0, "error": 0}
    assert timing.decoding_s == 3.75


@pytest.mark.parametrize(("fails", "outcome"), [(False, "abort"), (True, "error")])
def test_a_generation_that_breaks_off_has_no_end(fails, outcome):
    recorder = Recorder()
    timing = Timing(recorder, 0.0)
    timing.started(1.0, 5)
    timing.gained(2.0, 1)
    if fails:
        timing.failed()
    assert timing.over() == outcome
    stats = recorder.stats("general", 1)
    assert sum(stats.histograms.whole.counts) == 0
    assert sum(stats.histograms.first_token.counts) == 1


def test_steps_add_up_and_the_last_one_shows():
    recorder = Recorder()
    assert recorder.stats("fast", 1).hit_rate is None
    assert recorder.stats("fast", 1).cache_usage is None
    recorder.step(load(queried_tokens=100, found_tokens=0, used_blocks=4, blocks=16))
    recorder.step(load(rows=32, step_s=0.02, queried_tokens=100, found_tokens=50, used_blocks=8, blocks=16))
    stats = recorder.stats("fast", 1)
    assert (stats.hit_rate, stats.cache_usage, stats.batch_tokens, stats.step_s) == (0.25, 0.5, 32, 0.02)
    assert stats.histograms.step_tokens.total == 41
    recorder.step(load(rows=0, used_blocks=0, blocks=16))  # the last caller left: no step, but its room is free
    stats = recorder.stats("fast", 1)
    assert (stats.cache_usage, sum(stats.histograms.step_tokens.counts)) == (0.0, 2)
    recorder.lost()  # the next worker begins empty, the counts go on
    assert (recorder.stats("fast", 1).used_blocks, recorder.stats("fast", 1).queried_tokens) == (0, 200)


def test_metrics_have_the_names_and_the_form_that_dashboards_of_vllm_read():
    recorder = Recorder()
    timing = Timing(recorder, 0.0)
    timing.started(0.5, 40)
    timing.gained(0.7, 1)
    timing.gained(0.75, 1)
    timing.finished("stop")
    timing.over()
    recorder.step(load(queried_tokens=40, found_tokens=32, used_blocks=4, blocks=16))
    registry = CollectorRegistry()
    EngineMetrics(registry).watch(lambda: info_of(recorder.stats("fast", 1)))

    def read(name, **labels):
        return registry.get_sample_value(f"nsllm_{name}", {"model_name": "tiny", **labels})

    assert read("num_requests_running") == 3
    assert read("num_requests_waiting") == 2
    assert read("kv_cache_usage_perc") == 0.25
    assert read("prefix_cache_queries_total") == 40
    assert read("prefix_cache_hits_total") == 32
    assert read("prompt_tokens_total") == 40
    assert read("generation_tokens_total") == 2
    assert read("request_success_total", finished_reason="stop") == 1
    assert read("time_to_first_token_seconds_bucket", le="0.5") == 0
    assert read("time_to_first_token_seconds_bucket", le="0.75") == 1
    assert read("time_to_first_token_seconds_bucket", le="+Inf") == 1
    assert read("time_to_first_token_seconds_sum") == 0.7
    assert read("inter_token_latency_seconds_count") == 1
    assert read("e2e_request_latency_seconds_sum") == 0.75
    assert read("request_queue_time_seconds_sum") == 0.5
    assert read("iteration_tokens_total_sum") == 9
    assert b"# TYPE nsllm_request_decode_time_seconds histogram" in generate_latest(registry)


def test_an_upstream_tells_no_more_than_it_knows():
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry)
    assert all(family.samples == [] for family in registry.collect())
    metrics.watch(lambda: info_of(None))
    told = {sample.name for family in registry.collect() for sample in family.samples}
    assert told == {"nsllm_num_requests_running", "nsllm_num_requests_waiting"}
