"""Peers of a simulation stop as processes do: in order, or killed in mid-step, and come back from what was on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from nsllm.simulations.network import SimulatedNetwork, quiet
from nsllm.simulations.questions import ask, until
from nsllm.simulations.virtual import run_virtual


def played(tmp_path: Path, play, *, peers: int = 1, gossip_loss: float = 0.0) -> None:
    async def main() -> None:
        network = SimulatedNetwork(peers, 5, tmp_path, gossip_loss=gossip_loss)
        async with trio.open_nursery() as nursery:
            for number in range(peers):
                await network.start(nursery, number)
            await until(lambda: all(peer.readiness().ready for peer in network.running()), "connected")
            await play(network, nursery)
            nursery.cancel_scope.cancel()

    with quiet():
        run_virtual(5, main)


def test_a_crash_keeps_what_was_on_disk_and_nothing_else(tmp_path: Path) -> None:
    async def play(network, nursery) -> None:
        peer = network.peers[0].peer
        given = await ask(0, peer, "How do tides work?")
        marker = network.peers[0].settled.config.data_dir / "written-on-the-way-out"
        close = peer._close

        async def closing() -> None:
            marker.write_text("too late")
            await close()

        peer._close = closing
        await network.crash(0)
        assert network.running() == []
        assert not marker.exists()
        again = await network.start(nursery, 0)
        assert (await again.receipt(given.completion_id)).state in {"pending", "logged", "anchored"}

    played(tmp_path, play)


@pytest.mark.parametrize("how", ["stop", "crash"])
def test_a_caller_is_cut_off_with_its_peer(tmp_path: Path, how: str) -> None:
    async def play(network, nursery) -> None:
        ended: list[str] = []

        async def call() -> None:
            with network.caller(0) as peer:
                await ask(0, peer, "How do tides work?")
                ended.append("answered")
            ended.append("cut off")

        async with trio.open_nursery() as together:
            together.start_soon(call)
            await trio.sleep(0.1)
            if how == "stop":
                network.stop(0)
            else:
                await network.crash(0)
        assert ended == ["cut off"]
        with pytest.raises(ValueError, match="peer 0 does not run"), network.caller(0):
            pass

    played(tmp_path, play)


def test_a_peer_starts_again_only_when_its_last_run_is_over(tmp_path: Path) -> None:
    async def play(network, nursery) -> None:
        for _ in range(3):
            network.stop(0)
            peer = await network.start(nursery, 0)
            assert network.running() == [peer]
            await until(lambda peer=peer: peer.readiness().ready, "ready")

    played(tmp_path, play)


def test_announcements_that_are_lost_are_made_up_for(tmp_path: Path) -> None:
    async def play(network, nursery) -> None:
        follower = network.add()
        await ask(0, network.peers[0].peer, "How do tides work?")
        peer = await network.start(nursery, follower.number)
        await until(lambda: network.peers[0].peer.ledger.log_size == 1, "certified")
        await until(lambda: peer.ledger.log_root == network.peers[0].peer.ledger.log_root, "the follower follows")

    played(tmp_path, play, peers=4, gossip_loss=1.0)
