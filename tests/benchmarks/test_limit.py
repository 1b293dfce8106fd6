"""What the machine can do at most, and what a model needs of it."""

from __future__ import annotations

import pytest

from benchmarks.limit import Limit, Work, measure
from benchmarks.serving import carried
from nsllm.node.engine.fast.rope import Rope
from nsllm.node.engine.fast.shape import Shape

SHAPE = Shape(
    layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, inner=128, vocabulary=260, context_tokens=256,
    epsilon=1e-5, rope=Rope(1e4), qkv_bias=False, head_norm=False, tied=True,
)  # fmt: skip


def test_two_operations_a_weight():
    attention = 64 * (64 + 2 * 32) + 64 * 64
    feed_forward = 2 * 64 * 128 + 128 * 64
    assert Work.of(SHAPE) == Work(layers=2 * 2 * (attention + feed_forward), head=2 * 64 * 260)


def test_only_written_tokens_take_the_head():
    work = Work(layers=200_000_000, head=50_000_000)
    assert work.prefill(10) == pytest.approx(2.0)
    assert work.decode(10) == pytest.approx(2.5)


def test_a_load_is_held_against_the_machine():
    found = carried(10.0, Work(layers=200_000_000, head=50_000_000), Limit(int8_gops=432.0, read_gb_per_s=20.0))
    request = 48 * 0.2 + 48 * 0.25
    assert found["needed_int8_gops"] == pytest.approx(10 * request)
    assert found["rps_at_int8_limit"] == pytest.approx(432.0 / request)


def test_the_machine_is_measured():
    found = measure(1)
    assert found.int8_gops > 0
    assert found.read_gb_per_s > 0


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"no model of the Llama family"):
        Work.of_folder(tmp_path)
