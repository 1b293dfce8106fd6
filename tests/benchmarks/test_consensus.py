"""The benchmark of agreement: what it makes of counters, and that a validator of it counts what it does."""

from __future__ import annotations

import json
import random

import pytest
import trio

from benchmarks import goals
from benchmarks.consensus import PER_SIZE, SIZES, flat, markdown
from benchmarks.cpu_split import CpuSplit
from benchmarks.validators import Validators, between


def counters(**more):
    return {
        "decisions": 0, "records": 0, "messages": 0, "message_bytes": 0, "wire_bytes": 0, "writes": 0,
        "cpu_s": 0.0, "at_s": 0.0, **more,
    }  # fmt: skip


def test_rates_and_costs_of_all_validators_together():
    before = [counters(decisions=5), counters(at_s=100.0)]
    after = [
        counters(decisions=25, records=40, messages=300, wire_bytes=50_000, writes=90, cpu_s=1.0, at_s=2.0),
        counters(decisions=19, records=40, messages=100, wire_bytes=30_000, writes=10, cpu_s=0.5, at_s=102.0),
    ]
    found = between(before, after)
    assert found["decisions_per_s"] == 10.0  # the quickest saw 20 in two seconds
    assert found["scores_per_s"] == 20.0
    assert found["messages_per_decision"] == 20.0
    assert found["wire_kb_per_decision"] == 4.0
    assert found["cpu_ms_per_decision"] == 75.0
    assert found["cpus"] == 0.75


class Said:
    """A validator that gives its answers in turn."""

    def __init__(self, **answers):
        self._answers = answers

    def ask(self, do):
        return self._answers[do].pop(0)


def test_shares_of_cpu_time_are_those_of_all_validators_while_a_task_runs():
    done = []
    whole = [{"seconds": {"network": 3.0, "chain": 1.0}}, {"seconds": {"network": 1.0}}]
    network = Validators([Said(split=[{}], whole=[seconds]) for seconds in whole])
    assert network.split(lambda: done.append(True)) == {"network": 0.8, "chain": 0.2}
    assert done == [True]


def test_a_network_is_quiet_once_its_validators_compute_next_to_nothing(monkeypatch):
    monkeypatch.setattr("benchmarks.validators.time.sleep", lambda _s: None)
    looks = [(0.0, 0.0), (0.5, 0.4), (0.5, 0.4), (1.0, 0.42)]
    said = Said(counted=[counters(at_s=at_s, cpu_s=cpu_s) for at_s, cpu_s in looks] + [counters()])
    Validators([said]).settle()
    assert said.ask("counted") == counters()  # two looks twice: busy, then quiet


def test_a_network_that_never_gets_quiet_is_not_measured(monkeypatch):
    monkeypatch.setattr("benchmarks.validators.time.sleep", lambda _s: None)
    monkeypatch.setattr("benchmarks.validators.time.perf_counter", iter(range(0, 1000, 30)).__next__)
    busy = [counters(at_s=float(look), cpu_s=float(look)) for look in range(20)]
    with pytest.raises(SystemExit, match=r"keep 1\.00 processors busy"):
        Validators([Said(counted=busy)]).settle()


def test_sizes_that_were_left_out_have_no_data():
    found = flat({4: {"p50_ms": 41.0, "cpu_split": {"network": 1.0}}})
    assert found["n4.p50_ms"] == 41.0
    assert {f"n{size}.{name}" for size in SIZES[1:] for name in PER_SIZE} <= found.keys()
    assert found["n16.p99_ms"] is None


def test_a_result_is_shown_to_people():
    figures = dict.fromkeys(goals.CONSENSUS, 1.0)
    result = flat({4: {name: {"network": 0.25} if "split" in name else 1.0 for name in PER_SIZE}}) | figures
    result |= {"memory": [], "disk_mb_by_table": {"ledger.block": 8.0}, "machine": {"cpu": "one"}}
    result["goals"] = goals.judged(goals.CONSENSUS, result)
    text = markdown(json.loads(json.dumps(result)))
    assert "| n4.decisions_per_s | at least 20 | no |" in text.replace(" 1 |", "")
    assert "| network | 25% |" in text
    hurried = result | {"disk_mb_by_table": {}} | {name: None for name in result if name.endswith("cpu_split")}
    assert "no data" in markdown(hurried)
    assert "Disk by table" not in markdown(hurried)


async def test_cpu_time_is_booked_on_what_a_task_does(monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr("benchmarks.cpu_split.time.thread_time", lambda: next(now))
    monkeypatch.setattr("benchmarks.cpu_split.FUNCTIONS", ((random, "betavariate", "chain"),))
    monkeypatch.setattr(random, "betavariate", lambda _a, _b: 0.5)
    monkeypatch.setattr("benchmarks.cpu_split.ThreadOffload.run", None)
    split = CpuSplit()
    split.start()
    task = trio.lowlevel.current_task()
    monkeypatch.setattr(task, "name", "nsllm.node.agreement.Agreement.run")
    split.before_task_step(task)
    assert random.betavariate(1, 1) == 0.5
    split.after_task_step(task)
    split.before_task_step(task)
    split.after_task_step(task)
    assert split.stop() == {"scheduling": 3, "agreement": 3, "chain": 1}
    assert random.betavariate(1, 1) == 0.5  # not counted any more
    split.start()
    assert split.stop() == {"scheduling": 1}
