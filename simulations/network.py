"""A simulated network: real peers (the composition root of `nsllm up`) in an in-memory world on virtual time."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from nsllm.clock import TrioClock
from nsllm.consensus.registry import Role
from nsllm.databases import ON_DISK
from nsllm.files import private_folder
from nsllm.governance.defaults import default_policy
from nsllm.ids import TimeMs
from nsllm.node.config import P2pConfig, PeerConfig
from nsllm.node.data_folder import Settled
from nsllm.node.founding import ALL_ROLES, found, founder
from nsllm.node.identity import Identity, new_identity
from nsllm.node.peer import Peer
from nsllm.node.service import PeerEvent
from nsllm.node.world import World
from nsllm.offload import InlineOffload
from nsllm.p2p.memory import MemoryNetwork
from nsllm.p2p.memory_world import MemoryWorld, TraceEvent
from nsllm.plugins.inline import InlinePluginHost
from nsllm.simulations.disk import MemoryDatabases
from nsllm.simulations.standin import StandInEngine, stand_in_digest
from nsllm.simulations.virtual import EPOCH_MS, seeded

if TYPE_CHECKING:
    from trio_typing import TaskStatus


MAX_VALIDATORS: Final = 16
"""Of a simulated network, unless told otherwise."""
FOLLOWER_ROLES: Final[tuple[Role, ...]] = ("contributor", "data")


class Trace:
    """Digest over everything that happened: messages and state changes, each with its virtual time, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.messages = 0
        self.by_label: Counter[str] = Counter()
        """Messages by protocol or topic."""
        self.message_bytes = 0
        self.changes = 0

    def message(self, event: TraceEvent) -> None:
        """A message arrived or was lost."""
        self.messages += 1
        self.by_label[f"{event[1]} {event[4]}"] += 1
        self.message_bytes += event[5]
        self._hash.update(repr(event).encode())

    def change(self, peer: int, event: PeerEvent) -> None:
        """Something happened in a peer."""
        self.changes += 1
        at_us = round(trio.current_time() * 1e6)
        self._hash.update(repr((at_us, peer, event.kind, sorted(event.fields.items()))).encode())

    def state(self, name: str, value: bytes) -> None:
        """A state that the network ended in."""
        self._hash.update(repr((name, value.hex())).encode())

    def hexdigest(self) -> str:
        """SHA-256 so far."""
        return self._hash.hexdigest()


@dataclass(slots=True)
class SimulatedPeer:
    """One peer and what it takes to start it again."""

    number: int
    settled: Settled
    disk: MemoryDatabases = field(default_factory=MemoryDatabases)
    peer: Peer | None = None
    scope: trio.CancelScope | None = None
    ended: trio.Event | None = None
    """Set once the peer's last run is over."""
    starts: int = 0
    callers: list[trio.CancelScope] = field(default_factory=list[trio.CancelScope])


class SimulatedNetwork:
    """Peers of one genesis in one world; `start`, `stop` and `crash` them in a nursery that the scenario owns."""

    def __init__(
        self,
        count: int,
        seed: int,
        folder: Path,
        *,
        gossip_loss: float = 0.0,
        validators: int = MAX_VALIDATORS,
        on_disk: bool = False,
    ) -> None:
        """Make identities and a genesis; nothing runs yet.

        Args:
            count: peers; all of them hold shards and generate.
            seed: of every key, delay and draw.
            folder: for the peers' databases; a fresh temporary one.
            gossip_loss: chance that an announcement misses a receiver.
            validators: how many of them validate, the first ones; the others follow.
            on_disk: SQLite databases are files, which can be damaged; else they are in memory.
        """
        self.seed = seed
        self.trace = Trace()
        self.space = MemoryWorld(seeded(seed, "space"), gossip_loss=gossip_loss, on_event=self.trace.message)
        identities = [new_identity(seeded(seed, "keys", number).randbytes) for number in range(count)]
        policy = default_policy(stand_in_digest("text"), stand_in_digest("encoder"))
        members = [
            founder(identity, ALL_ROLES if number < validators else FOLLOWER_ROLES)
            for number, identity in enumerate(identities)
        ]
        self.genesis = found(f"sim-{seed}", members, policy, TimeMs(EPOCH_MS), local=True)
        self._folder = folder
        self._on_disk = on_disk
        self._first = f"/memory/first/p2p/{identities[0].peer_id}"
        self.peers = [
            SimulatedPeer(number, self._settle(number, identity)) for number, identity in enumerate(identities)
        ]

    def add(self) -> SimulatedPeer:
        """A further peer with the network's genesis, in which it does not stand; it runs once it is started."""
        number = len(self.peers)
        identity = new_identity(seeded(self.seed, "keys", number).randbytes)
        simulated = SimulatedPeer(number, self._settle(number, identity))
        self.peers.append(simulated)
        return simulated

    async def start(self, nursery: trio.Nursery, number: int) -> Peer:
        """Start (or start again) one peer, once its last run is over; returns when it runs."""
        simulated = self.peers[number]
        if simulated.ended is not None:
            await simulated.ended.wait()
        simulated.starts += 1
        simulated.peer = peer = await Peer.open(simulated.settled, self._world(simulated))
        simulated.scope = scope = trio.CancelScope()
        simulated.ended = ended = trio.Event()

        async def run(task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            try:
                with scope:
                    await peer.run(task_status=task_status)
            finally:
                ended.set()

        await nursery.start(run)
        return peer

    def stop(self, number: int) -> None:
        """Stop one peer, as SIGTERM would."""
        simulated = self.peers[number]
        for scope in (simulated.scope, *simulated.callers):
            if scope is not None:
                scope.cancel()
        simulated.peer = None

    async def crash(self, number: int) -> None:
        """Kill one peer, as SIGKILL would: nothing that it had not on disk by now is there when it starts again."""
        simulated = self.peers[number]
        if simulated.peer is None or simulated.ended is None:
            return
        folder = simulated.settled.config.data_dir
        kept = folder.with_name(f"{folder.name}.kept")
        # All writes of a simulation happen in one thread, between two turns of the scheduler: the copy is what a
        # killed process leaves behind. What the peer does on its way out is undone.
        shutil.copytree(folder, kept)
        stored = simulated.disk.left()
        self.space.kill(simulated.settled.identity.peer_id)
        self.stop(number)
        await simulated.ended.wait()
        shutil.rmtree(folder)
        kept.rename(folder)
        simulated.disk.restore(stored)

    @contextmanager
    def caller(self, number: int) -> Generator[Peer]:
        """A client of one running peer for the length of the block; cut off with its peer when that stops."""
        simulated = self.peers[number]
        if simulated.peer is None:
            raise ValueError(f"peer {number} does not run")
        with trio.CancelScope() as scope:
            simulated.callers.append(scope)
            try:
                yield simulated.peer
            finally:
                simulated.callers.remove(scope)

    def running(self) -> list[Peer]:
        """Peers that run now, in order of number."""
        return [simulated.peer for simulated in self.peers if simulated.peer is not None]

    def _settle(self, number: int, identity: Identity) -> Settled:
        config = PeerConfig(
            data_dir=private_folder(self._folder / f"peer-{number}"),
            home=self._folder,
            name=f"peer-{number}",
            visibility="public",
            p2p=P2pConfig(listen=(), bootstrap=() if number == 0 else (self._first,)),
        )
        return Settled(config=config, identity=identity, genesis=self.genesis, founded=False)

    def _world(self, simulated: SimulatedPeer) -> World:
        number = simulated.number
        address = "/memory/first" if number == 0 else None
        network = MemoryNetwork(self.space, simulated.settled.identity.peer_id, address=address)
        return World(
            clock=TrioClock(TimeMs(EPOCH_MS)),
            offload=InlineOffload(),
            rng=seeded(self.seed, "peer", number, simulated.starts),
            network=network,
            engine=StandInEngine(),
            plugins=InlinePluginHost(),
            services=(),
            databases=ON_DISK if self._on_disk else simulated.disk,
            folder=simulated.settled.config.data_dir,
            serve_api=False,
            observer=lambda event: self.trace.change(number, event),
        )


@contextmanager
def quiet() -> Generator[None]:
    """Nothing is logged inside: a simulation's record is its trace."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
