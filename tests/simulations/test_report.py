"""A run's report is one file that shows heights, cuts, messages and what stands in for what."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from nsllm.cli.devnet import devnet
from nsllm.cli.sim import sim
from nsllm.simulations.report import render_real
from nsllm.simulations.timeline import Mark, Timeline


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


def test_a_report_of_real_peers_says_what_befell_them_and_nothing_of_simulation() -> None:
    timeline = Timeline(2.0)
    timeline.heights += [(1.0, 0, 1), (2.0, 1, 1), (9.0, 0, 2)]
    timeline.count(1.0, "mesh", 40)
    timeline.count(3.0, "sync", 2)
    timeline.marks += [
        Mark(2.0, "slowed", (0, 1)),
        Mark(3.0, "parted", (0,)),
        Mark(4.5, "healed", ()),
        Mark(5.0, "killed", (1,)),
        Mark(6.0, "parted", (1,)),
    ]
    result = {"scenario": "par<tition", "peers": 2, "seed": 3, "seconds": 10.0, "failed": "not <within> 5 s"}
    html = render_real(result, timeline)
    assert html.count("<svg") == 2
    assert html.count("<polyline") == 2
    for said in ("links cut 3.0 to 4.5 s", "links slow 2.0 to 4.5 s", "links cut 6.0 to 10.0 s"):
        assert html.count(said) == 2, said
    for said in ("peer 1 killed at 5.0 s", "not &lt;within&gt; 5 s", "par&lt;tition", "every 2 seconds", "mesh 40"):
        assert said in html, said
    assert "stand-in" not in html
    assert "virtual" not in html


def test_only_scenarios_have_a_report(tmp_path: Path) -> None:
    done = CliRunner().invoke(devnet, ["--data-dir", str(tmp_path / "net"), "--report", str(tmp_path / "out.html")])
    assert done.exit_code == 2
    assert "--scenario" in done.output
    assert not list(tmp_path.iterdir())


def test_a_report_of_peers_that_decided_nothing_has_no_height() -> None:
    timeline = Timeline(2.0)
    timeline.heights.append((1.0, 0, 0))
    html = render_real({"scenario": "suspended", "peers": 1, "seed": 3, "seconds": 2.0}, timeline)
    assert html.count("<polyline") == 1
