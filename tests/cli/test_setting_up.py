"""`nsllm init`, `invite`, `join` and `verify`: data folders without a running peer."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nsllm.governance.defaults import default_policy
from nsllm.governance.genesis import load_genesis, save_genesis
from nsllm.ids import Digest, TimeMs
from nsllm.node.founding import found, founder
from nsllm.node.identity import new_identity
from nsllm.node.invitation import Invite, pending_invite
from nsllm.node.settings import load_config

POLICY = default_policy(Digest(bytes(32)), Digest(bytes(32)))
FOUNDER = new_identity(random.Random(1).randbytes)
ADDRESS = f"/ip4/192.0.2.7/tcp/4700/p2p/{FOUNDER.peer_id}"


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsllm.node.data_folder.model_paths", lambda config, report: None)
    monkeypatch.setattr("nsllm.node.data_folder.policy_for", lambda paths: POLICY)


def invite(name: str = "lab") -> Invite:
    genesis = found(name, [founder(FOUNDER)], POLICY, TimeMs(1_000), local=True)
    return Invite(genesis=genesis, addresses=(ADDRESS,), token=bytes(16), expires_ms=TimeMs(2_000))


def test_init_makes_a_solo_network_and_leaves_it_alone(nsllm: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "peer"
    first = nsllm("init", "--data-dir", folder, "--name", "lab", "--port", 9001, "--json").json()
    genesis = load_genesis(folder / "genesis.json")
    assert first["network_id"] == "0x" + genesis.network_id().hex()
    assert [member.peer_id for member in genesis.members] == [first["peer_id"]]
    assert genesis.local
    config = load_config(folder)
    assert (config.name, config.api.port, list(config.p2p.listen)) == ("lab", 9001, first["listen"])
    assert nsllm("init", "--data-dir", folder, "--json").json() == first


def test_members_found_a_network_together(nsllm: Callable, tmp_path: Path) -> None:
    entries = [nsllm("init", "--data-dir", tmp_path / name, "--keys-only", "--json").json() for name in ("a", "b")]
    assert all(entry["genesis"] is None for entry in entries)
    said = nsllm(
        "init", "--data-dir", tmp_path / "c", "--network", "lab", *[x for e in entries for x in ("--with", e["member"])]
    )
    assert said.status == 0
    genesis = load_genesis(tmp_path / "c" / "genesis.json")
    assert len(genesis.members) == 3
    assert {entry["peer_id"] for entry in entries} < {member.peer_id for member in genesis.members}
    assert not genesis.local


def test_init_refuses_what_is_no_member(nsllm: Callable, tmp_path: Path) -> None:
    said = nsllm("init", "--data-dir", tmp_path, "--with", "0x12@abc")
    assert said.status == 2
    assert "is not a member entry" in said.err


def test_join_prepares_the_folder(nsllm: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "peer"
    said = nsllm("join", invite().text(), "--data-dir", folder, "--port", 9002, "--no-start", "--json").json()
    assert said["bootstrap"] == [ADDRESS]
    assert pending_invite(folder) == invite()
    assert load_genesis(folder / "genesis.json") == invite().genesis
    config = load_config(folder)
    assert (config.api.port, config.p2p.bootstrap, config.roles) == (9002, (ADDRESS,), ("contributor", "data"))


def test_join_refuses_a_folder_of_another_network(nsllm: Callable, tmp_path: Path) -> None:
    nsllm("join", invite("lab").text(), "--data-dir", tmp_path, "--no-start")
    said = nsllm("join", invite("other").text(), "--data-dir", tmp_path, "--no-start")
    assert said.status == 2
    assert "belongs to network lab" in said.err
    assert load_genesis(tmp_path / "genesis.json").name == "lab"


def test_join_refuses_what_is_no_invite(nsllm: Callable, tmp_path: Path) -> None:
    said = nsllm("join", "nsllm-invite:abcd", "--data-dir", tmp_path / "peer", "--no-start")
    assert said.status == 1
    assert "cut short or mistyped" in said.err
    assert not (tmp_path / "peer").exists()


def test_invite_finds_the_admin_key_by_itself(nsllm: Callable, peer: Any, tmp_path: Path) -> None:
    nsllm("init", "--data-dir", tmp_path, "--keys-only", "--port", peer.url.rpartition(":")[2])
    peer.detail = invite().text()
    assert nsllm("invite", "--data-dir", tmp_path).out == invite().text() + "\n"
    said = nsllm("invite", "--data-dir", tmp_path, "--json").json()
    assert (said["invite"], said["addresses"]) == (invite().text(), [ADDRESS])


def test_invite_without_a_data_folder(nsllm: Callable, tmp_path: Path) -> None:
    said = nsllm("invite", "--data-dir", tmp_path / "nowhere")
    assert said.status == 2
    assert "admin.key is missing" in said.err


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "not JSON"), (b"\xff", "not UTF-8"), (b"{}", "Receipt"), (None, "cannot read")]
)
def test_verify_refuses_rubbish_with_status_1(
    nsllm: Callable, tmp_path: Path, content: bytes | None, says: str
) -> None:
    save_genesis(tmp_path / "genesis.json", invite().genesis)
    if content is not None:
        (tmp_path / "r.json").write_bytes(content)
    said = nsllm("verify", tmp_path / "r.json", "--genesis", tmp_path / "genesis.json")
    assert said.status == 1
    assert says in said.err
    assert "Traceback" not in said.err
    with_json = nsllm("verify", tmp_path / "r.json", "--genesis", tmp_path / "genesis.json", "--json")
    assert with_json.status == 1
    assert json.loads(with_json.out)["ok"] is False


def test_verify_needs_a_genesis_that_can_be_read(nsllm: Callable, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{}")
    assert nsllm("verify", tmp_path / "r.json", "--genesis", tmp_path / "nowhere").status == 1
    assert nsllm("verify", tmp_path / "r.json").status == 2
