"""`nsllm status`, `peers` and `doctor`."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nsllm.cli import checks
from nsllm.cli.checks import check_clock, check_disk, check_folder, check_memory, check_ports, check_skew
from nsllm.node.identity import open_identity


def test_peers_lists_dialable_addresses_the_asked_peers_first(nsllm: Callable, peer: Any) -> None:
    said = nsllm("peers", "--api", peer.url, "--json").json()
    assert said["multiaddrs"] == ["/ip4/127.0.0.1/tcp/1/p2p/A", "/ip4/127.0.0.1/tcp/2/p2p/B"]
    assert [row["peer_id"] for row in said["peers"]] == ["A", "B"]
    assert nsllm("peers", "--api", peer.url).out.splitlines() == said["multiaddrs"]


def test_status_shows_what_is_known(nsllm: Callable, peer: Any) -> None:
    said = nsllm("status", "--api", peer.url)
    for part in (
        "peer-0",
        "ready",
        "height 7, quorum 3 of 4",
        "0xbad: double vote at height 5",
        "0xbad: double batch in epoch 1",
        "0xbad 2 uncommitted, 1 abstained, equivocated (slow)",
        "1 connected, 2 known",
        "no rate yet",
        "[odd] notice",
    ):
        assert part in said.out
    assert nsllm("status", "--api", peer.url, "--json").json()["consensus"]["height"] == 7


def test_doctor_finds_this_machine_fit(
    nsllm: Callable, peer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NSLLM_HOME", str(tmp_path / "home"))
    said = nsllm(
        "doctor", "--data-dir", tmp_path / "peer", "--api", peer.url, "--peers", 1, "--base-port", 29_317, "--json"
    )
    found = json.loads(said.out)
    assert {row["name"] for row in found["checks"]} >= {
        "python",
        "headers",
        "torch",
        "memory",
        "disk models",
        "disk data",
        "models",
        "pictures",
        "ports",
        "clock",
        "skew",
        "data folder",
    }
    assert all(row["hint"] for row in found["checks"] if row["state"] != "ok")
    assert (said.status == 0) is found["ok"] is all(row["state"] != "fail" for row in found["checks"])


def test_doctor_exits_1_when_something_blocks(nsllm: Callable, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    said = nsllm("doctor", "--data-dir", file, "--api", "http://127.0.0.1:1")
    assert said.status == 1
    assert "is not a folder" in said.out


def test_folder_modes_and_settings(tmp_path: Path) -> None:
    open_identity(tmp_path)
    assert check_folder(tmp_path).state == "ok"
    (tmp_path / "keys" / "member.key").chmod(0o640)
    assert check_folder(tmp_path).state == "warn"
    assert "member.key" in check_folder(tmp_path).found
    (tmp_path / "keys" / "member.key").chmod(0o600)
    (tmp_path / "config.toml").write_text("nmae = 'x'")
    (tmp_path / "config.toml").chmod(0o600)
    assert check_folder(tmp_path).hint == "did you mean 'name'?"


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 2_000 << 20

    monkeypatch.setattr(checks.psutil, "virtual_memory", Memory)
    assert [check_memory(peers).state for peers in (1, 2, 4)] == ["ok", "ok", "warn"]
    assert "--peers 2" in check_memory(4).hint
    Memory.available = 100 << 20
    assert check_memory(1).state == "fail"


def test_disk(tmp_path: Path) -> None:
    assert check_disk("data", tmp_path / "not" / "there", 1).state == "ok"
    assert check_disk("data", tmp_path, 1 << 60).state == "fail"


def test_a_port_that_a_peer_of_ours_holds_is_no_fault(peer: Any) -> None:
    port = int(peer.url.rpartition(":")[2])
    assert check_ports(port, 1, peer.url).state == "ok"
    assert check_ports(port, 1, "http://127.0.0.1:1").state == "warn"


def test_skew_against_a_peer(peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_skew("http://127.0.0.1:1").state == "ok"
    assert check_skew(peer.url).state == "ok"
    monkeypatch.setattr(checks, "_date_of", lambda api: 0.0)
    assert check_skew(peer.url).state == "fail"


def test_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.time, "sleep", lambda seconds: None)
    assert check_clock().state == "ok"
    monkeypatch.setattr(checks.time, "time", lambda: 1_000_000.0)
    assert check_clock().state == "fail"


def test_doctor_looks_at_what_reading_pictures_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.check_pictures().state == "ok"
    monkeypatch.setattr(checks, "ALL", (replace(checks.ALL[0], sha256="0" * 64),))
    changed = checks.check_pictures()
    assert (changed.state, changed.hint) == ("fail", "pip install 'nsllm[images]'")
    assert "SHA-256" in changed.found
    monkeypatch.setattr(checks, "missing", lambda: ("PIL",))
    lacking = checks.check_pictures()
    assert (lacking.state, lacking.found) == ("warn", "not read: PIL not installed")
