"""A simulated network: real peers (the composition root of `nsllm up`) in an in-memory world on virtual time."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from msgspec.structs import replace

from nsllm.clock import TrioClock
from nsllm.consensus.message import decode_message
from nsllm.consensus.registry import Role
from nsllm.databases import ON_DISK
from nsllm.files import private_folder
from nsllm.governance.defaults import default_policy
from nsllm.ids import Address, PeerId, TimeMs
from nsllm.node.config import P2pConfig, PeerConfig
from nsllm.node.data_folder import Settled
from nsllm.node.engine.port import Engine
from nsllm.node.founding import ALL_ROLES, found, founder
from nsllm.node.identity import Identity, new_identity
from nsllm.node.peer import Peer
from nsllm.node.views import PeerEvent
from nsllm.node.world import World
from nsllm.offload import InlineOffload
from nsllm.p2p.memory import MemoryNetwork
from nsllm.p2p.memory_world import MemoryWorld
from nsllm.p2p.protocols.mesh import MeshKind
from nsllm.plugins.inline import InlinePluginHost
from nsllm.simulations.disk import MemoryDatabases
from nsllm.simulations.standin import StandInEngine, stand_in_digest
from nsllm.simulations.trace import Trace
from nsllm.simulations.virtual import EPOCH_MS, seeded
from nsllm.simulations.watch import Watch

if TYPE_CHECKING:
    from trio_typing import TaskStatus


MAX_VALIDATORS: Final = 16
"""Of a simulated network, unless told otherwise."""
FOLLOWER_ROLES: Final[tuple[Role, ...]] = ("contributor", "data")


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
        keep_events: bool = False,
        progress: Callable[[float], None] | None = None,
        absence_minutes: int | None = None,
    ) -> None:
        """Make identities and a genesis; nothing runs yet.

        Args:
            count: peers; all of them hold shards and generate.
            seed: of every key, delay and draw.
            folder: for the peers' databases; a fresh temporary one.
            gossip_loss: chance that an announcement misses a receiver.
            validators: how many of them validate, the first ones; the others follow.
            on_disk: SQLite databases are files, which can be damaged; else they are in memory.
            keep_events: the trace keeps every event of every peer.
            progress: told of every virtual second in which something is said.
            absence_minutes: of the policy; None: as by default.
        """
        self.seed = seed
        self.trace = Trace(keep_events=keep_events, progress=progress)
        self.space = MemoryWorld(seeded(seed, "space"), gossip_loss=gossip_loss, on_event=self.trace.message)
        identities = [new_identity(seeded(seed, "keys", number).randbytes) for number in range(count)]
        policy = default_policy(stand_in_digest("text"), stand_in_digest("encoder"))
        if absence_minutes is not None:
            policy = replace(policy, absence_minutes=absence_minutes)
        members = [
            founder(identity, ALL_ROLES if number < validators else FOLLOWER_ROLES)
            for number, identity in enumerate(identities)
        ]
        self.genesis = found(f"sim-{seed}", members, policy, TimeMs(EPOCH_MS), local=True)
        self.validators = min(validators, count)
        """The first so many peers validate."""
        self.watch = Watch(self.genesis.network_id())
        self.engines: dict[int, Engine] = {}
        """Engines of peers that have another than the usual stand-in."""
        self.twists: dict[int, Callable[[Peer], None]] = {}
        """What is done to a peer before it runs, to make it Byzantine."""
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
        twist = self.twists.get(number)
        if twist is not None:
            twist(peer)
        else:
            self._overhear(number, peer)
        if simulated.starts > 1:
            self.trace.mark("started", (number,))
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
        if simulated.peer is not None:
            self.trace.mark("stopped", (number,))
        self._end(simulated)

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
        self.trace.mark("killed", (number,))
        self._end(simulated)
        await simulated.ended.wait()
        shutil.rmtree(folder)
        kept.rename(folder)
        simulated.disk.restore(stored)

    def part(self, one: Iterable[int], other: Iterable[int]) -> None:
        """Cut every link between two groups of peers."""
        one, other = tuple(one), tuple(other)
        self.trace.mark("parted", one)
        for number in one:
            for beyond in other:
                self.space.cut(self._name(number), self._name(beyond))

    def isolate(self, number: int) -> None:
        """Cut every link of a peer: nobody hears it, it hears nobody, as if its process were suspended."""
        self.part((number,), (beyond.number for beyond in self.peers if beyond.number != number))

    def heal(self) -> None:
        """Undo every cut."""
        self.trace.mark("healed", ())
        self.space.heal()

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

    def _name(self, number: int) -> PeerId:
        return self.peers[number].settled.identity.peer_id

    @staticmethod
    def _end(simulated: SimulatedPeer) -> None:
        for scope in (simulated.scope, *simulated.callers):
            if scope is not None:
                scope.cancel()
        simulated.peer = None

    def _observe(self, number: int, event: PeerEvent) -> None:
        self.trace.change(number, event)
        peer = self.peers[number].peer
        if peer is not None and number not in self.twists:
            self.watch.event(number, peer, event)

    def _overhear(self, number: int, peer: Peer) -> None:
        """Let the watch see what an honest validator says to the others."""
        mesh = peer.parts._mesh  # noqa: SLF001 - the one place where a validator's words pass
        send, own = mesh.send, peer.parts.context.address
        last = b""

        def overheard(to: Address, kind: MeshKind, payload: bytes) -> None:
            nonlocal last
            if kind == "consensus" and payload is not last:  # the same goes to every validator
                last = payload
                self.watch.said(number, own, decode_message(payload))
            send(to, kind, payload)

        mesh.send = overheard  # type: ignore[method-assign]

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
            engine=self.engines.get(number) or StandInEngine(),
            plugins=InlinePluginHost(),
            services=(),
            databases=ON_DISK if self._on_disk else simulated.disk,
            folder=simulated.settled.config.data_dir,
            serve_api=False,
            observer=lambda event: self._observe(number, event),
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
