"""Two machines, as their owners would set them up: one runs `nsllm up`, the other joins with its invite."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nsllm import canonical
from nsllm.consensus.registry import RegistryState
from nsllm.ids import hex0x

pytestmark = [pytest.mark.process, pytest.mark.model, pytest.mark.timeout(900)]


@dataclass
class Machine:
    """One owner's terminal: commands that serve, and what they said when they began to."""

    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def serve(self, name: str, *arguments: str) -> dict:
        process = subprocess.Popen(
            [sys.executable, "-m", "nsllm", *arguments, "--json"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        self.running[name] = process
        assert process.stdout is not None
        return json.loads(process.stdout.readline())

    def stop(self, name: str) -> None:
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    with ExitStack() as stack:
        yield made
        for process in made.running.values():
            stack.callback(process.wait)
            stack.callback(process.kill)


def admitted(folder: Path) -> list[str]:
    """Addresses of the members that the certified registry holds beside the founder, as this peer stores it."""
    with closing(sqlite3.connect(f"file:{folder}/ledger.sqlite?mode=ro", uri=True)) as ledger:
        rows = ledger.execute("SELECT value FROM meta WHERE name = 'registry'").fetchall()
    members = canonical.decode(rows[0][0], RegistryState, limit_bytes=1 << 20).members if rows else ()
    return [hex0x(member.address) for member in members if "validator" not in member.roles]


def test_a_solo_network_and_a_peer_that_joins_it(machine, nsllm, free_port, until, tmp_path):
    home, away = tmp_path / "home", tmp_path / "away"

    def told(*arguments: str) -> dict:
        done = nsllm(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def ask(url: str, text: str, file: str) -> dict:
        options = ("--visibility", "public", "--max-tokens", "24", "--timeout", "200")
        answer = told("ask", text, "--api", url, "--receipt", str(tmp_path / file), *options)
        genesis = str(home / "genesis.json")
        verified = told("verify", str(tmp_path / file), "--genesis", genesis, "--require", "anchored")
        return answer | {"notes": " ".join(verified["notes"])}

    founder = machine.serve("home", "up", "--data-dir", str(home), "--port", str(free_port()))
    assert founder["founded"] is True
    first = ask(founder["url"], "What is a harbour?", "solo.json")
    assert first["signers"] == [founder["address"]]
    assert "self-certified" in first["notes"]
    assert "self-certified" in " ".join(told("status", "--api", founder["url"])["notices"])

    invite = told("invite", "--data-dir", str(home))["invite"]
    guest = machine.serve("away", "join", invite, "--data-dir", str(away), "--port", str(free_port()))
    assert guest["network_id"] == founder["network_id"]
    until(lambda: admitted(away) != [] and admitted(home) != [], "the admission is in the network log")
    assert admitted(home) == admitted(away) == [guest["address"]]

    # Its answers are published as every member's are, and both hold the same log.
    own = ask(guest["url"], "What is a lighthouse?", "guest.json")
    assert own["source"] == "engine"
    assert own["generator"] == guest["address"]
    assert own["signers"] == [founder["address"]]
    rows = told("peers", "--api", founder["url"])["peers"]
    assert {row["address"] for row in rows} == {founder["address"], guest["address"]}
    assert next(row["roles"] for row in rows if row["address"] == guest["address"]) == ["contributor", "data"]
    again = told(
        "ask", "What is a lighthouse?", "--api", founder["url"], "--visibility", "public", "--max-tokens", "24"
    )
    assert again["source"] == "cache"
    assert again["generator"] == guest["address"]
    assert again["answer"] == own["answer"]

    # A member stays one.
    machine.stop("away")
    back = machine.serve("away", "up", "--data-dir", str(away))
    assert (back["address"], back["founded"]) == (guest["address"], False)
    later = ask(back["url"], "What is an anchor?", "later.json")
    assert later["generator"] == guest["address"]
    heads = [told("status", "--api", url)["logs"]["network_log_root"] for url in (founder["url"], back["url"])]
    assert heads[0] == heads[1]
    machine.stop("away")
    machine.stop("home")
