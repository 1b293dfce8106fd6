"""One real peer as a process: reads a command a line (JSON) on standard input, answers each with a line.

Usage: python process_peer.py NUMBER MEMBERS PORT [BOOTSTRAP]
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import trio

from nsllm.clock import SystemClock
from nsllm.consensus.registry import Member, MemberRegistry, RegistryState
from nsllm.crypto import MemberKey
from nsllm.errors import NsllmError
from nsllm.ids import ZERO_DIGEST, Address, Digest, Height, NetworkId, PeerId, TimeMs
from nsllm.p2p.card import PeerCard, SignedCard, sign_card
from nsllm.p2p.connector import Connector
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.identity import PeerKey
from nsllm.p2p.libp2p_network import Libp2pNetwork
from nsllm.p2p.network import Stream
from nsllm.p2p.protocols.announce import Announcer
from nsllm.p2p.protocols.heartbeat import HEARTBEAT, Heartbeat, serve_heartbeat
from nsllm.p2p.protocols.hello import HELLO, serve_hello
from nsllm.p2p.protocols.mesh import MESH, MeshClient, serve_mesh

NETWORK = NetworkId(bytes(range(32)))
ECHO = "/test/echo/1"


def keys(number: int) -> tuple[PeerKey, MemberKey]:
    return PeerKey(bytes([number]) * 32), MemberKey(bytes([number]) * 32)


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def broken(stream: Stream) -> None:
    raise RuntimeError("a bug in a handler")


class Peer:
    def __init__(self, number: int, members: int, port: int, bootstrap: list[str]) -> None:
        self.peer_key, self.member_key = keys(number)
        genesis = [
            Member(address=member.address, peer_id=peer.peer_id, roles=("data", "validator"))
            for peer, member in map(keys, range(1, members + 1))
        ]
        clock = SystemClock()
        self.sequence = clock.now_ms()
        self.directory = PeerDirectory(NETWORK, MemberRegistry(NETWORK, RegistryState.of(genesis)), clock)
        self.network = Libp2pNetwork(secret=bytes([number]) * 32, listen=[f"/ip4/127.0.0.1/tcp/{port}"], local=True)
        rng = random.Random(number)
        self.connector = Connector(self.network, self.directory, self.card, rng, bootstrap=bootstrap)
        self.mesh = MeshClient(self.network, self.directory, rng)
        self.mesh_got: list[list[str]] = []
        self.blocks: list[int] = []
        self.announcer = Announcer(self.network, self.directory, on_block=self.on_block, on_card=self.connector.on_card)
        self.heartbeat = Heartbeat(
            self.network, self.directory, self.beat, interval_s=1.0, on_stale_card=self.connector.greet
        )
        self.network.handle(HELLO, serve_hello(self.directory, self.card, self.connector.on_card))
        self.network.handle(HEARTBEAT, serve_heartbeat(self.directory, self.beat))
        self.network.handle(MESH, serve_mesh(self.directory, self.deliver))
        self.network.handle(ECHO, echo)
        self.network.handle("/test/broken/1", broken)

    def card(self) -> SignedCard:
        card = PeerCard(
            network=NETWORK,
            peer_id=self.peer_key.peer_id,
            public_key=self.peer_key.public_key,
            address=self.member_key.address,
            roles=("data", "validator"),
            multiaddrs=self.network.addresses(),
            sequence=self.sequence,
            expires_ms=TimeMs(SystemClock().now_ms() + 3_600_000),
            height=Height(0),
        )
        return sign_card(self.peer_key, self.member_key, card)

    def beat(self) -> tuple[Height, int]:
        return Height(4), self.sequence

    async def deliver(self, sender: Address, kind: str, payload: bytes) -> None:
        self.mesh_got.append([sender.hex(), kind, payload.hex()])

    async def on_block(self, origin: PeerId, height: Height, block_id: Digest) -> None:
        self.blocks.append(height)

    async def do(self, command: str, arguments: list[Any]) -> Any:
        network = self.network
        match command, arguments:
            case "addresses", []:
                return network.addresses()
            case "connected", []:
                return network.connected()
            case "greeted", []:
                return self.connector.greeted()
            case "rtt", [peer]:
                return self.directory.state_of(PeerId(peer)).rtt_s
            case "provide", [key]:
                return await network.provide(bytes.fromhex(key))
            case "find", [key]:
                return await network.find_providers(bytes.fromhex(key))
            case "mesh", [number, payload]:
                return self.mesh.send(keys(number)[1].address, "consensus", bytes.fromhex(payload))
            case "mesh_got", []:
                return self.mesh_got
            case "mesh_queued", [number]:
                return self.mesh.queued(keys(number)[1].address)
            case "announce", [height]:
                return await self.announcer.block(Height(height), ZERO_DIGEST)
            case "blocks", []:
                return self.blocks
            case "open", [peer, protocol]:
                stream = await network.open(PeerId(peer), protocol)
                data = await stream.receive_some()
                await stream.aclose()
                return data.hex()
            case "echo", [peer, text]:
                stream = await network.open(PeerId(peer), ECHO)
                try:
                    await stream.send_all(text.encode())
                    return (await stream.receive_some()).decode()
                finally:
                    await stream.aclose()
        raise ValueError(command)

    async def serve(self) -> None:
        async with self.network.run(), trio.open_nursery() as nursery:
            for task in (self.connector.run, self.mesh.run, self.announcer.run, self.heartbeat.run):
                nursery.start_soon(task)
            answer({"ok": self.network.addresses()})
            while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
                command, *arguments = json.loads(line)
                try:
                    with trio.fail_after(5):
                        answer({"ok": await self.do(command, arguments)})
                except (NsllmError, trio.TooSlowError) as error:
                    answer({"error": type(error).__name__})
            nursery.cancel_scope.cancel()


def answer(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    peer_number, member_count, listen_port = map(int, sys.argv[1:4])
    trio.run(Peer(peer_number, member_count, listen_port, sys.argv[4:]).serve)
