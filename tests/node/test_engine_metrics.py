"""The engine's metrics: every loaded model has its own numbers."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import CollectorRegistry

from nsllm.ids import Digest
from nsllm.node.engine.port import LoadedModel
from nsllm.node.engine.stats import Recorder
from nsllm.node.engine_metrics import EngineMetrics
from nsllm.simulations.standin import StandInEngine


def test_every_loaded_model_has_its_own_numbers():
    plain = StandInEngine().info()
    second = replace(plain.text, name="second", digest=Digest(b"\x02" * 32))
    stats = Recorder().stats(path="fast", threads=1)
    rows = (LoadedModel(plain.text, "ready", 1, 0), LoadedModel(second, "ready", 3, 2, stats=stats))
    registry = CollectorRegistry()
    EngineMetrics(registry).watch(lambda: replace(plain, loaded=rows))
    names = [plain.text.name, "second"]

    def read(name):
        return [registry.get_sample_value(f"nsllm_{name}", {"model_name": model}) for model in names]

    assert read("num_requests_running") == [1, 3]
    assert read("num_requests_waiting") == [0, 2]
    assert read("generation_tokens_total") == [None, 0]
    assert read("time_to_first_token_seconds_count") == [None, 0]
    assert (
        registry.get_sample_value("nsllm_request_success_total", {"model_name": "second", "finished_reason": "stop"})
        == 0
    )


def test_an_engine_of_one_model_is_counted_under_its_name():
    plain = StandInEngine().info()
    info = replace(plain, active=2, stats=Recorder().stats(path="general", threads=1))
    registry = CollectorRegistry()
    EngineMetrics(registry).watch(lambda: info)
    labels = {"model_name": plain.text.name}
    assert registry.get_sample_value("nsllm_num_requests_running", labels) == 2
    assert registry.get_sample_value("nsllm_prompt_tokens_total", labels) == 0
