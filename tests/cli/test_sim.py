"""`nsllm sim core`, `replay` and `mutants`: what they print, and how they fail."""

from __future__ import annotations

import json
import shlex

import pytest
from click.testing import CliRunner

from nsllm.cli.sim import sim
from nsllm.simulations.core import world


def run(*arguments):
    result = CliRunner().invoke(sim, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def impatient(monkeypatch):
    """Nothing is ever decided in time."""
    monkeypatch.setattr(world, "HEALED_WITHIN_S", -1000.0)


def test_core_sums_up():
    said = json.loads(run("core", "--schedules", "60", "--seed", "3", "--json").output)
    assert (said["peers"], said["seed"], said["schedules"], said["jobs"]) == (4, 3, 60, 1)
    assert (said["violations"], said["violated"], said["agreement_broken"]) == (0, [], 0)
    assert said["events_per_schedule"] > 150
    assert len(said["digest"]) == 64
    result = run("core", "--schedules", "60", "--seed", "3")
    assert result.exit_code == 0
    assert said["digest"] in result.output
    assert "one process" in result.output


def test_core_with_too_many_byzantine():
    said = json.loads(run("core", "--schedules", "20", "--byzantine", "2", "--json").output)
    assert said["violations"] == 0
    assert said["agreement_broken"] > 5


def test_a_violation_says_how_to_replay_it(impatient):
    result = run("core", "--schedules", "3", "--seed", "8", "--peers", "5", "--byzantine", "1")
    assert result.exit_code == 1
    assert "seed 9: no decision" in result.output
    assert "nsllm sim replay --peers 5 --seed 9 --byzantine 1" in result.output
    said = json.loads(run("core", "--schedules", "3", "--seed", "8", "--json").output)
    assert [found["replay"] for found in said["violated"]] == [
        f"nsllm sim replay --peers 4 --seed {seed}" for seed in (8, 9, 10)
    ]


def test_a_shrunk_schedule_replays(impatient, tmp_path):
    result = run("replay", "--seed", "9", "--shrink")
    assert result.exit_code == 1
    *_, violation, command = result.output.strip().splitlines()
    assert "no decision" in violation
    _, _, _, *arguments = shlex.split(command.removeprefix("# "))
    assert arguments[0] == "--plan"
    again = run("replay", *arguments)
    assert again.exit_code == 1
    assert violation in again.output
    file = tmp_path / "plan.json"
    file.write_text(arguments[1])
    said = json.loads(run("replay", "--plan", str(file), "--json").output)
    assert said["plan"] == json.loads(arguments[1])
    assert said["plan"]["faulty"] == said["plan"]["cuts"] == said["plan"]["outages"] == []


def test_a_schedule_that_holds_has_nothing_to_shrink():
    result = run("replay", "--seed", "9", "--shrink")
    assert result.exit_code == 0
    assert "everything held" in result.output
    assert "--plan" not in result.output


@pytest.mark.parametrize(
    "arguments", [["replay"], ["replay", "--seed", "1", "--plan", "{}"], ["replay", "--plan", "/none"]]
)
def test_replay_wants_one_schedule(arguments):
    assert run(*arguments).exit_code == 2


def test_mutants_says_what_found_them():
    said = json.loads(run("mutants", "--only", "unlock on nil", "--json").output)
    assert (said["mutants"], said["killed"], said["control"]) == (1, 1, "holds")
    (row,) = said["rows"]
    assert row["by"]["nil_does_not_unlock"] == "a polka for nil frees no lock"
    assert "seed" in row["by"]["guided_schedules_hold"]
    result = run("mutants", "--only", "guard")
    assert result.exit_code == 0
    assert "a guard signs two votes in one place" in result.output
    assert run("mutants", "--only", "nothing of that name").exit_code == 2


def test_list_says_what_large_runs_cost():
    said = json.loads(run("list", "--json").output)
    assert "1,000" in said["churn"]
    assert {"steady", "core", "mutants"} <= said.keys()
    assert f"churn  {said['churn']}" in run("list").output
