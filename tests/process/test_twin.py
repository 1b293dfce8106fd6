"""`nsllm devnet --scenario`: real processes are killed, suspended, parted and slowed, and what they leave agrees."""

from __future__ import annotations

import json
import shutil
import sqlite3

import pytest

from nsllm.governance.genesis import load_genesis
from nsllm.ids import Address
from nsllm.simulations.errors import InvariantError
from nsllm.simulations.inspection import inspect

pytestmark = [pytest.mark.process, pytest.mark.long, pytest.mark.timeout(900)]


SEEN = {
    "churn": lambda result: result["kills"] == 3,
    "suspended": lambda result: 0 < result["decided_after_s"] < 60,
    "partition": lambda result: 0 < result["decided_after_s"] < 60 and result["cut_off"] == 1,
    "delay": lambda result: 1.0 < result["all_late_certified_after_s"] < 120,
}
DRAWN = {"churn": " killed at ", "suspended": " suspended at ", "partition": "links cut ", "delay": "links slow "}


@pytest.mark.parametrize("scenario", SEEN)
def test_a_scenario_on_real_processes(lay_out_tiny, tiny_models, tmp_path, nsllm, scenario) -> None:
    net = lay_out_tiny(tmp_path / "net", tiny_models, peers=4, first_port=16000)
    port = net.url(0).rpartition(":")[2]
    done = nsllm(
        "devnet", "--scenario", scenario, "--seed", "3", "--json", "--base-port", port, "--data-dir",
        str(tmp_path / "net"), "--report", str(tmp_path / "run.html"), timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["scenario"], result["peers"], result["seed"]) == (scenario, 4, 3)
    assert result["blocks_checked"] == 4 * result["height"] > 0
    assert result["receipts_checked"] == result["questions"] > 0
    assert SEEN[scenario](result), result
    html = (tmp_path / "run.html").read_text()
    assert html.count("<polyline") == 4
    assert "</span>mesh " in html
    assert DRAWN[scenario] in html

    # The inspection can fail: one ledger without its last block, and one with a certificate cut short.
    genesis = load_genesis(net.genesis)
    peers = {place.data_dir: Address(bytes.fromhex(place.address[2:])) for place in net.places}
    assert inspect(genesis, peers).height == result["height"]
    first, *others = peers
    for name, statement, reason in (
        ("short", "DELETE FROM block WHERE height = (SELECT max(height) FROM block)", "different logs"),
        ("holed", "DELETE FROM block WHERE height = 2", "block 3 does not stand"),
    ):
        copy = tmp_path / name
        shutil.copytree(first, copy, ignore=shutil.ignore_patterns("*.lock"))
        with sqlite3.connect(copy / "ledger.sqlite") as connection:
            connection.execute(statement)
        with pytest.raises(InvariantError, match=reason):
            inspect(genesis, {copy: peers[first]} | {other: peers[other] for other in others})


def test_seven_validators_of_which_two_are_byzantine(lay_out_tiny, tiny_models, tmp_path, nsllm) -> None:
    net = lay_out_tiny(tmp_path / "net", tiny_models, peers=7, first_port=20000)
    port = net.url(0).rpartition(":")[2]
    done = nsllm(
        "devnet", "--peers", "7", "--scenario", "byzantine", "--seed", "4", "--json", "--base-port", port,
        "--data-dir", str(tmp_path / "net"), timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert sorted(habit.partition(": ")[2] for habit in result["byzantine"].split(", ")) == ["equivocates", "is silent"]
    assert result["convicted"] == 1
    assert result["blocks_checked"] == 5 * result["height"] > 0
    assert result["receipts_checked"] == result["questions"] == 5
    genesis = load_genesis(net.genesis)
    honest = {
        place.data_dir: Address(bytes.fromhex(place.address[2:]))
        for place in net.places
        if f"peer {place.index}: " not in result["byzantine"]
    }
    with pytest.raises(InvariantError, match=r"honest validators are convicted|signed"):
        inspect(genesis, honest)


def test_who_commits_twice_is_convicted_and_what_was_under_way_is_certified(
    lay_out_tiny, tiny_models, tmp_path, nsllm
) -> None:
    """The conviction ends the epoch in the middle of the first questions."""
    net = lay_out_tiny(tmp_path / "net", tiny_models, peers=4, first_port=23000)
    port = net.url(0).rpartition(":")[2]
    done = nsllm(
        "devnet", "--peers", "4", "--scenario", "byzantine", "--seed", "3", "--json", "--base-port", port,
        "--data-dir", str(tmp_path / "net"), timeout=450,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["byzantine"].partition(": ")[2] == "commits twice"
    assert result["convicted"] == 1
    assert result["receipts_checked"] == result["questions"] == 5
