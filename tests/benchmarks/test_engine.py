"""The report of `benchmarks.engine`: its figures, its words, and the documentation of every key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.contestants.fast import Fast
from benchmarks.contestants.process import ROOT
from benchmarks.contestants.stage import CONTEXT_TOKENS, Stage, losses_of
from benchmarks.engine import QUICK, figures, markdown, tasks
from benchmarks.goals import ENGINE, SERVING, judged
from benchmarks.measuring import Timing
from nsllm.node.engine.tiny import build_tiny_models

ASKED = (
    "single_stream_vs_llamacpp_q8",
    "single_stream_vs_llamacpp_best",
    "streams32_vs_llamacpp_best",
    "streams64_vs_llamacpp_best",
    "streams32_vs_generate_batch",
    "prefill_vs_llamacpp_best",
    "perplexity_int8_over_bf16",
    "perplexity_llamacpp_best_over_bf16",
)
OF_THE_WORKER = ("prefix_cache_ttft_speedup", "worker_rss_mb", "worker_streams32_tokens_per_s")
LLAMAS = {"llama.cpp Q8_0": 8.0, "llama.cpp Q4_0": 6.0, "llama.cpp BF16": 9.0}


def timing(who: str, wall_ms: float) -> Timing:
    return Timing("task", who, "", wall_ms, 2 * wall_ms, 1000 / wall_ms, 500 / wall_ms, 5, wall_ms)


def timings(llamas: dict[str, float]) -> dict[str, list[Timing]]:
    everybody = {"nsllm": 4.0, **llamas, "transformers": 40.0}
    found = {key: [timing(who, ms) for who, ms in everybody.items()] for key in tasks(QUICK)}
    return found | {"generate": [timing("nsllm", 4.0), timing("transformers", 80.0)]}


PERPLEXITIES = {"nsllm": 10.05, **dict.fromkeys(LLAMAS, 10.2), "llama.cpp Q4_0": 10.5, "transformers": 10.0}


def test_ratios_are_theirs_to_ours():
    found = figures(timings(LLAMAS), PERPLEXITIES)

    assert set(ASKED) <= found.keys()
    assert found["single_stream_vs_llamacpp_q8"] == 2
    assert found["single_stream_vs_llamacpp_best"] == found["streams64_vs_llamacpp_best"] == 1.5
    assert found["streams32_vs_generate_batch"] == 20
    assert found["streams32_vs_transformers"] == 10
    assert found["streams32_llamacpp_best"] == "llama.cpp Q4_0"
    assert found["perplexity_int8_over_bf16"] == pytest.approx(1.005)
    assert found["perplexity_llamacpp_best_over_bf16"] == pytest.approx(1.05)


def test_without_llamacpp_its_figures_are_missing_not_made_up():
    found = figures(timings({}), {"nsllm": 10.05, "transformers": 10.0})

    assert set(ASKED) <= found.keys()
    assert [found[name] for name in ASKED if "llamacpp" in name] == [None] * 6
    assert found["perplexity_int8_over_bf16"] == pytest.approx(1.005)


def test_markdown_shows_timings_and_figures():
    rows = [{"task": "decode", "who": "nsllm", "wall_ms": 4.25}]
    goals = judged(ENGINE, figures(timings(LLAMAS), PERPLEXITIES) | dict.fromkeys(OF_THE_WORKER, 900.0))
    result = {
        "timings": rows,
        "goals": goals,
        "machine": {"cores": 2},
        "contestants": {},
        "single_stream_ms": 4.25,
        "none": None,
    }
    text = markdown(result | {"contestants": {"nsllm": {"dtype": "int8"}}})

    assert "| task | who | wall_ms |" in text
    assert "| decode | nsllm | 4.25 |" in text
    assert "| single_stream_ms | 4.25 |" in text
    assert "| none | no data |" in text
    assert "| streams32_vs_llamacpp_best | 1.5 | at least 1.5, hoped for 2.2 | yes |" in text
    assert "| streams64_vs_llamacpp_best | 1.5 | at least 1.8, hoped for 2.5 | no |" in text
    assert "| single_stream_vs_llamacpp_best | 1.5 | hoped for 1 | no data |" in text
    assert "| worker_rss_mb | 900 | at most 1200 | yes |" in text
    assert "| nsllm | dtype int8 |" in text


def test_every_figure_is_documented():
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name in (*figures(timings(LLAMAS), PERPLEXITIES), *ASKED, *OF_THE_WORKER):
        assert f"`{name}`" in text, name


def test_missing_figures_meet_no_goal():
    rows = judged(SERVING, {"completed_rps": 0.0, "failed": 12, "itl_p95_ms": None, "ttft_p95_ms": None})
    assert [row["met"] for row in rows] == [False, False, None, None]


@pytest.mark.parametrize("module", ["engine", "serving"])
def test_usage(module):
    command = [sys.executable, "-m", f"benchmarks.{module}", "--help"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--quick" in said
    assert "--json" in said


def test_losses_are_negative_log_probabilities():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]], dtype=np.float32)) + 7
    assert losses_of(logits, [1, 1]) == pytest.approx([np.log(4), np.log(4 / 3)], rel=1e-5)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """The fast path on a tiny model, which has been given four texts."""
    models = build_tiny_models(tmp_path_factory.mktemp("models"))
    stage = Stage(Fast(models.text, models.encoder, 1))
    texts = [[(7 * i + 13 * number + i * i // 5) % 200 + 10 for i in range(97)] for number in range(4)]
    assert stage.answer({"do": "texts", "texts": texts})["about"]["dtype"] == "float32"
    return stage


def test_the_fast_path_does_every_task(stage: Stage):
    for _ in range(2):  # a turn leaves no trace in the next
        found = stage.answer({"do": "decode", "streams": 3, "steps": 4, "settings": ""})
        assert found["tokens"] == 12
        for piece in stage.answer({"do": "settings", "of": "prefill", "thorough": True})["settings"]:
            assert stage.answer({"do": "prefill", "tokens": 96, "settings": piece})["tokens"] == 96
        found = stage.answer({"do": "generate", "streams": 3, "prompt_tokens": 16, "tokens": 5, "settings": ""})
        assert found["tokens"] == 15


def test_perplexity_does_not_depend_on_how_the_text_is_read(stage: Stage):
    halves, most = (
        stage.answer({"do": "perplexity", "windows": 3, "read_at_once": count, "settings": ""}) for count in (32, 90)
    )
    assert halves["count"] == most["count"] == 3 * 96
    assert halves["loss"] == pytest.approx(most["loss"], rel=1e-5)


def test_a_contestant_speaks_json_lines(tmp_path: Path):
    models = build_tiny_models(tmp_path)
    command = [sys.executable, "-m", "benchmarks.contestants.fast", "--threads", "1"]
    command += ["--text", str(models.text), "--encoder", str(models.encoder)]
    asked = [
        {"do": "texts", "texts": [list(range(CONTEXT_TOKENS))]},
        {"do": "settings", "of": "decode", "thorough": False},
    ]
    lines = "".join(json.dumps(one) + "\n" for one in asked)
    said = subprocess.run(command, cwd=ROOT, input=lines, capture_output=True, text=True, check=True).stdout
    about, settings = map(json.loads, said.splitlines())
    assert about["about"]["dtype"] == "float32"
    assert settings == {"settings": [""]}
