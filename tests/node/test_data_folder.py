"""What `settle` makes of a data folder, and what it leaves alone; ports; founding."""

import random
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from nsllm.governance.defaults import default_policy
from nsllm.governance.errors import GenesisError
from nsllm.governance.genesis import load_genesis, save_genesis
from nsllm.ids import Digest, TimeMs
from nsllm.node.config import ApiConfig, P2pConfig, PeerConfig
from nsllm.node.data_folder import Settled, settle
from nsllm.node.errors import DataFolderError, PortError
from nsllm.node.founding import found, founder
from nsllm.node.identity import new_identity
from nsllm.node.tcp_ports import any_free, choose, require_free
from nsllm.p2p.tcp_port import is_free

POLICY = default_policy(Digest(bytes(32)), Digest(bytes(32)))
OTHERS = [founder(new_identity(random.Random(seed).randbytes)) for seed in range(3)]


class FixedClock:
    def now_ms(self) -> TimeMs:
        return TimeMs(1_700_000_000_000)


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsllm.node.data_folder.model_paths", lambda config, report: None)
    monkeypatch.setattr("nsllm.node.data_folder.policy_for", lambda paths: POLICY)


def settled(config: PeerConfig) -> Settled:
    return settle(config, FixedClock(), lambda progress: None)


def test_an_empty_folder_becomes_a_solo_network_once(tmp_path: Path) -> None:
    config = PeerConfig(data_dir=tmp_path / "peer")
    first = settled(config)
    assert first.founded
    assert first.genesis.name == "solo"
    assert first.genesis.members == (founder(first.identity),)
    assert first.config.genesis_path == tmp_path / "peer" / "genesis.json"
    assert load_genesis(first.config.genesis_path) == first.genesis
    again = settled(config)
    assert not again.founded
    assert (again.genesis, again.config, again.identity.peer_id) == (
        first.genesis,
        first.config,
        first.identity.peer_id,
    )


def test_a_given_genesis_is_copied_and_then_kept(tmp_path: Path) -> None:
    given = tmp_path / "given.json"
    genesis = found("lab", OTHERS, POLICY, TimeMs(1), local=False)
    save_genesis(given, genesis)
    config = PeerConfig(data_dir=tmp_path / "peer", genesis=given)
    assert settled(config).genesis == genesis
    given.unlink()
    assert settled(replace(config, genesis=None)).genesis == genesis


def test_a_folder_of_another_network_is_refused(tmp_path: Path) -> None:
    config = PeerConfig(data_dir=tmp_path / "peer")
    mine = settled(config).genesis
    save_genesis(tmp_path / "other.json", found("other", OTHERS, POLICY, TimeMs(1), local=True))
    with pytest.raises(DataFolderError, match=r"belongs to network solo .* is other"):
        settled(replace(config, genesis=tmp_path / "other.json"))
    assert load_genesis(config.data_dir / "genesis.json") == mine


def test_a_damaged_genesis_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "genesis.json").write_text("{}")
    with pytest.raises(GenesisError, match=r"genesis\.json"):
        settled(PeerConfig(data_dir=tmp_path))
    assert (tmp_path / "genesis.json").read_text() == "{}"


def test_the_libp2p_port_is_chosen_once(tmp_path: Path) -> None:
    config = PeerConfig(data_dir=tmp_path)
    (address,) = settled(config).config.p2p.listen
    port = int(address.rpartition("/")[2])
    with socket.create_server(("127.0.0.1", port)):  # busy by now: the address stays, the listener will say so
        assert settled(config).config.p2p.listen == (address,)
    (tmp_path / "p2p.port").write_text("many")
    with pytest.raises(DataFolderError, match="does not hold a port"):
        settled(config)
    own = ("/ip4/127.0.0.1/tcp/4999",)
    assert settled(replace(config, p2p=P2pConfig(listen=own), api=ApiConfig(port=0))).config.p2p.listen == own


def test_a_founding_depends_on_its_arguments_only() -> None:
    one = found("lab", OTHERS, POLICY, TimeMs(1), local=True)
    assert found("lab", OTHERS[::-1], POLICY, TimeMs(1), local=True).network_id() == one.network_id()
    assert found("lab", OTHERS, POLICY, TimeMs(2), local=True).network_id() != one.network_id()
    assert found("lab", OTHERS[:1], POLICY, TimeMs(1), local=True).placement.replication == 1


@pytest.mark.parametrize("members", [[], OTHERS[:1] * 2])
def test_no_network_without_distinct_members(members: list) -> None:
    with pytest.raises(ValueError, match=r"once each|validator"):
        found("lab", members, POLICY, TimeMs(1), local=True)


def test_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free("127.0.0.1", port)
        with pytest.raises(PortError, match=f"port {port} "):
            require_free("127.0.0.1", [0, port], "stop it")
    assert is_free("127.0.0.1", port)
    assert is_free("127.0.0.1", any_free("127.0.0.1"))
    first, second = choose("127.0.0.1", 23_000, count=2, avoid=[23_000])
    assert 23_000 < first < second
    with pytest.raises(PortError, match="0 of 1 free ports"):
        choose("127.0.0.1", 60_000)
