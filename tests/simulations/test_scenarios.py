"""Simulated networks: the same seed gives the same everything, under any hash seed; another seed gives another."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from nsllm.simulations.errors import UnknownScenarioError
from nsllm.simulations.scenarios import run


def steady(seed: int, hash_seed: str) -> dict:
    command = [sys.executable, "-m", "nsllm", "sim", "steady", "--peers", "4", "--seed", str(seed), "--json"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def test_a_seed_determines_everything_whatever_the_hash_seed() -> None:
    first, again, other = steady(1, "1"), steady(1, "2"), steady(2, "1")
    assert first == again
    assert first["digest"] != other["digest"]
    assert first["cache_hits"] > 0
    assert "stand-in" in first["model"]


def test_a_run_in_this_process_is_the_same_as_one_in_another() -> None:
    assert run("steady", peers=4, seed=1)["digest"] == steady(1, "0")["digest"]


def test_one_peer_alone_is_a_network() -> None:
    assert run("steady", peers=1, seed=3)["log_size"] > 0


def test_an_unknown_scenario_is_named() -> None:
    with pytest.raises(UnknownScenarioError, match="stedy"):
        run("stedy", peers=4, seed=1)
