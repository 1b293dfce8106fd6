"""The default model's answers under the default policy: published, and told apart from spoilt ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "score_separation.py"


@pytest.mark.model
def test_benign_answers_are_published_and_spoilt_ones_score_lower():
    command = [sys.executable, str(BENCHMARK), "--quick", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads(run.stdout)
    assert result["published"] >= 0.95, result["unpublished_questions"]
    assert result["withheld"] == 0
    assert result["reusable"] >= 0.9
    assert result["auc_hybrid"]["all"] >= 0.9
    assert result["auc_coherence"]["all"] >= 0.9
    assert min(result["auc_hybrid"].values()) >= 0.85, result["auc_hybrid"]
    assert result["spoilt_reusable"]["random words"] == 0
