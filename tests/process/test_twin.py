"""`nsllm devnet --scenario`: real processes are killed and suspended, and what they leave on their disks agrees."""

from __future__ import annotations

import json
import shutil
import sqlite3

import pytest

from nsllm.governance.genesis import load_genesis
from nsllm.simulations.errors import InvariantError
from nsllm.simulations.inspection import inspect

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]


@pytest.mark.parametrize("scenario", ["churn", pytest.param("suspended", marks=pytest.mark.long)])
def test_a_scenario_on_real_processes(lay_out_tiny, tiny_models, tmp_path, nsllm, scenario) -> None:
    net = lay_out_tiny(tmp_path / "net", tiny_models, peers=4, first_port=16000)
    port = net.url(0).rpartition(":")[2]
    done = nsllm(
        "devnet", "--scenario", scenario, "--seed", "3", "--json", "--base-port", port, "--data-dir",
        str(tmp_path / "net"), timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["scenario"], result["peers"], result["seed"]) == (scenario, 4, 3)
    assert result["blocks_checked"] == 4 * result["height"] > 0
    assert result["kills"] == 3 if scenario == "churn" else 0 < result["decided_after_s"] < 60

    # The inspection can fail: one ledger without its last block, and one with a certificate cut short.
    genesis, folders = load_genesis(net.genesis), [place.data_dir for place in net.places]
    assert inspect(genesis, folders).height == result["height"]
    for name, statement, reason in (
        ("short", "DELETE FROM block WHERE height = (SELECT max(height) FROM block)", "different logs"),
        ("holed", "DELETE FROM block WHERE height = 2", "block 3 does not stand"),
    ):
        copy = tmp_path / name
        shutil.copytree(folders[0], copy, ignore=shutil.ignore_patterns("*.lock"))
        with sqlite3.connect(copy / "ledger.sqlite") as connection:
            connection.execute(statement)
        with pytest.raises(InvariantError, match=reason):
            inspect(genesis, [*folders[1:], copy])
