"""Simulated networks: the same seed gives the same everything, under any hash seed; another seed gives another."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import trio

from nsllm.node.stocktaking import Stocktaking
from nsllm.simulations.errors import ScenarioError, UnknownScenarioError
from nsllm.simulations.heal import HEAL_S
from nsllm.simulations.questions import ask
from nsllm.simulations.scenarios import SCENARIOS, Scenario, run


def simulate(scenario: str, seed: int, hash_seed: str) -> dict:
    command = [sys.executable, "-m", "nsllm", "sim", scenario, "--peers", "4", "--seed", str(seed), "--json"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def test_a_seed_determines_everything_whatever_the_hash_seed() -> None:
    first, again, other = (simulate("steady", *seeds) for seeds in ((1, "1"), (1, "2"), (2, "1")))
    assert first == again
    assert first["digest"] != other["digest"]
    assert first["cache_hits"] > 0
    assert "stand-in" in first["model"]


def test_faults_are_as_determined_and_leave_one_history() -> None:
    here = run("faults", peers=4, seed=1)
    assert here == simulate("faults", 1, "3")
    assert sum(here[kind] for kind in ("crashes", "blackouts", "restarts", "partitions")) == 8
    assert here["log_size"] >= here["questions"] > 8


def test_a_run_that_is_watched_in_this_process_is_the_same_as_one_in_another() -> None:
    seconds: list[float] = []
    here = run("steady", peers=4, seed=1, progress=seconds.append)
    assert here["digest"] == simulate("steady", 1, "0")["digest"]
    assert seconds == sorted(set(seconds))
    assert here["virtual_s"] - 2 < seconds[-1] <= here["virtual_s"]
    assert here["signatures_checked"] > here["height"] * 4


@pytest.mark.parametrize("name", ["partition", "byzantine", "colluding-scorers"])
def test_what_goes_wrong_is_as_determined(name: str) -> None:
    here = run(name, peers=4, seed=3)
    assert here == simulate(name, 3, "5")
    assert here["digest"] != run(name, peers=4, seed=4)["digest"]
    assert here["commits_checked"] >= 3 * here["height"] > 0


def test_a_suspended_third_comes_back() -> None:
    result = run("suspended", peers=4, seed=1)
    assert result["suspended"] == 2
    assert result["questions"] == 4
    assert 0 < result["decided_after_s"] < 120


def test_validators_that_are_gone_leave_and_come_back() -> None:
    result = run("absent", peers=5, seed=2)
    assert (result["gone"], result["left"], result["epoch"]) == (1, 1, 2)


def test_false_scores_are_really_outside_of_the_honest_range() -> None:
    assert run("colluding-scorers", peers=4, seed=1)["scores_the_lie_was_outside_of"] > 0


def test_a_network_of_more_than_neighbours_can_be() -> None:
    here = run("churn", peers=34, seed=1, validators=4)
    assert here["questions"] + here["cut_off"] == 34
    assert here["validators"] == 4
    assert here["commits_checked"] > 30 * here["height"]


def test_one_peer_alone_is_a_network() -> None:
    assert run("steady", peers=1, seed=3)["log_size"] > 0


def test_an_unknown_scenario_is_named() -> None:
    with pytest.raises(UnknownScenarioError, match=r"stedy.*steady, faults, churn"):
        run("stedy", peers=4, seed=1)


async def unlucky(network, nursery) -> dict:
    raise ScenarioError("the moon was full")


async def broken(network, nursery) -> dict:
    peer = await network.start(nursery, 0)

    async def bug(*_args: object, **_kwargs: object) -> int:
        raise ZeroDivisionError("in the log")

    peer.stores.peer_log.append_all = bug
    await ask(0, peer, "How do tides work?")
    await trio.sleep(60)
    return {}


@pytest.mark.parametrize(("play", "cause"), [(unlucky, "the moon was full"), (broken, "ZeroDivisionError: in the log")])
def test_a_scenario_that_fails_says_how_to_replay_it(monkeypatch, play, cause) -> None:
    monkeypatch.setitem(SCENARIOS, "mine", Scenario(play))
    with pytest.raises(ScenarioError, match=cause) as failed:
        run("mine", peers=3, seed=77)
    assert "seed 77" in failed.value.message
    assert failed.value.hint == "replay with: nsllm sim mine --peers 3 --seed 77 --events"


def test_copies_come_back_after_deaths_and_arrivals() -> None:
    result = run("heal", peers=8, seed=1, validators=4)
    assert result["deaths"] == 2
    assert result["arrivals"] == 1
    assert result["records"] > 10
    assert 0 < result["healed_s_most"] <= HEAL_S
    assert result["healing_bytes"] > 0
    assert result["rebalancing_bytes"] > 0


def test_without_stocktaking_copies_stay_away(monkeypatch) -> None:
    async def idle(_self) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(Stocktaking, "run", idle)
    monkeypatch.setattr("nsllm.simulations.heal.QUESTIONS", 1)
    with pytest.raises(ScenarioError, match="copies are still missing"):
        run("heal", peers=8, seed=1, validators=4)
