"""A run's report is one file that shows heights, cuts, messages and what stands in for what."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from nsllm.cli.sim import sim


def test_a_report_and_an_event_log(tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    done = CliRunner().invoke(sim, ["partition", "--peers", "4", "--seed", "2", "--events", "--report", str(page)])
    assert done.exit_code == 0, done.output
    assert re.search(r"^ +\d+\.\d{3} s  peer \d +block  height=1 ", done.output, re.MULTILINE)
    assert re.search(r"^ +\d+\.\d{3} s  parted ", done.output, re.MULTILINE)
    html = page.read_text()
    assert html.count("<svg") == 2
    assert html.count("<polyline") == 4
    assert "links cut" in html
    assert "SIGSTOP" in html
    assert "<h2>Simulated and real peers</h2>" in html
    assert "mesh: Vote" in html
    assert not re.search(r"<script|https?://|<link|<img", html)
