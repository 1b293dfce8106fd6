"""Scenario `heal`: holders are killed for good, one heal time apart, until a quarter of all peers is gone; others join.

Each time somebody dies that holds one of the records with the fewest copies. A heal time later every certified record
must be with as many members as placement wants, stand-ins where holders are gone; newcomers must get their share; and
nobody may give away more a second than is allowed for it.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Final

import trio

from nsllm import canonical
from nsllm.cache_dht import placement
from nsllm.consensus.certified import MAX_CERTIFIED_BYTES, CertifiedRecord
from nsllm.consensus.registry import Member, admit
from nsllm.files import write_atomic
from nsllm.ids import Address, Digest
from nsllm.node.membership import ADMISSION_FILE
from nsllm.node.peer import Peer
from nsllm.node.stocktaking import BYTES_PER_S
from nsllm.p2p.protocols.push import PUSH
from nsllm.simulations.errors import ScenarioError
from nsllm.simulations.network import FOLLOWER_ROLES, SimulatedNetwork
from nsllm.simulations.questions import TOPICS, Given, all_level, ask, outcome, start_all, until
from nsllm.simulations.virtual import seeded

HEAL_S: Final = 180.0
"""Within this time after a death or an arrival all copies must be back: the patience with who is away, two rounds, and
what the giving takes."""
KILLED: Final = 4
"""One of so many peers is killed."""
JOINED: Final = 8
"""One newcomer for so many peers."""
QUESTIONS: Final = 3
"""Of each peer."""
LOOK_S: Final = 5.0


class Copies:
    """Where records are, and where they should be."""

    def __init__(self, network: SimulatedNetwork) -> None:
        self._network = network
        self._shards = network.genesis.placement.shards
        self._known: dict[Digest, CertifiedRecord] = {}

    async def take_in(self) -> None:
        """Remember every record that is somewhere now."""
        for peer in self._network.running():
            for digest in await peer.stores.records.digests():
                if digest not in self._known:
                    found = await peer.stores.records.by_digest(digest)
                    if found is not None:
                        self._known[digest] = found

    @property
    def records(self) -> int:
        """Certified records that were ever seen."""
        return len(self._known)

    async def here(self) -> dict[Address, set[Digest]]:
        """What every running member has on its disk."""
        return {
            peer.parts.context.address: set(await peer.stores.records.digests()) for peer in self._network.running()
        }

    async def fewest(self) -> tuple[int, list[Address]]:
        """Copies of the records that have the fewest, and the members that hold such a one."""
        have = await self.here()
        counted = Counter(dict.fromkeys(self._known, 0))
        for digests in have.values():
            counted.update(digests & self._known.keys())
        least = min(counted.values())
        rare = {digest for digest, copies in counted.items() if copies == least}
        return least, sorted(address for address, digests in have.items() if digests & rare)

    async def lacking(self) -> int:
        """Copies that are missing: of each record and shard, at the first members in line that run."""
        have = await self.here()
        holders = self._network.running()[0].parts.cache.holders
        missing = 0
        for digest, certified in self._known.items():
            key = certified.leaf.request_key
            for shard in placement.shards_of(certified.signed.record, key, self._shards):
                present = [address for address in holders.line(shard) if address in have]
                acting = present[: self._network.genesis.placement.replication]
                missing += sum(digest not in have[address] for address in acting)
        return missing

    async def restored_s(self, what: str) -> float:
        """Seconds until no copy is missing; returns when a whole heal time is over.

        Raises:
            ScenarioError: a record is lost, or copies are still missing then.
        """
        began_s = trio.current_time()
        restored_s = math.inf
        while trio.current_time() - began_s < HEAL_S:
            await trio.sleep(LOOK_S)
            least, _ = await self.fewest()
            if least == 0:
                raise ScenarioError(f"after {what} a certified record is nowhere any more")
            missing = await self.lacking()
            restored_s = min(restored_s, trio.current_time() - began_s) if missing == 0 else math.inf
        if restored_s == math.inf:
            raise ScenarioError(f"{HEAL_S} s after {what} {await self.lacking()} copies are still missing")
        return restored_s


class Meter:
    """What peers give away each second, at most."""

    def __init__(self, network: SimulatedNetwork) -> None:
        self._network = network
        self.most_bytes = 0
        self.total_bytes = 0

    async def run(self) -> None:
        """Watch until cancelled."""
        before = self._sent()
        while True:
            await trio.sleep(1.0)
            now = self._sent()
            grown = [size - before.get(peer, 0) for peer, size in now.items()]
            self.most_bytes = max(self.most_bytes, *grown)
            self.total_bytes += sum(grown)
            before = now

    def _sent(self) -> dict[Peer, int]:
        return {
            peer: peer.parts._world.network.traffic.of(PUSH).sent_bytes  # noqa: SLF001 - counted where it is sent
            for peer in self._network.running()
        }


async def heal(network: SimulatedNetwork, nursery: trio.Nursery) -> dict[str, str | int | float]:
    """A quarter of all peers dies, one heal time apart; every certified record stays, and copies come back.

    Raises:
        ScenarioError: what must hold did not.
    """
    rng = seeded(network.seed, "heal")
    await start_all(network, nursery)
    given = await _asked(network, rng)
    await all_level(network.running(), given)
    copies = Copies(network)
    await copies.take_in()
    await copies.restored_s("the beginning")
    await copies.take_in()
    meter = Meter(network)
    times_s: list[float] = []
    async with trio.open_nursery() as watching:
        watching.start_soon(meter.run)
        for death in range(len(network.peers) // KILLED):
            await network.crash(await _victim(network, copies, rng))
            times_s.append(await copies.restored_s(f"death {death + 1}"))
        healed_bytes, meter.total_bytes = meter.total_bytes, 0
        newcomers = await _joined(network, nursery)
        joined_s = await copies.restored_s(f"the arrival of {newcomers}")
        watching.cancel_scope.cancel()
    limit = BYTES_PER_S + MAX_CERTIFIED_BYTES
    if meter.most_bytes > limit:
        raise ScenarioError(f"a peer gave away {meter.most_bytes} bytes in a second, the limit is {limit}")
    await _all_found(network, given, rng)
    return {
        "questions": len(given),
        "records": copies.records,
        "deaths": len(times_s),
        "arrivals": newcomers,
        "healed_s_most": round(max(times_s, default=0.0), 3),
        "rebalanced_s": round(joined_s, 3),
        "healing_bytes": healed_bytes,
        "rebalancing_bytes": meter.total_bytes,
        "bytes_per_peer_and_s_most": meter.most_bytes,
        **outcome(network.running()),
    }


async def _asked(network: SimulatedNetwork, rng: random.Random) -> list[Given]:
    given: list[Given] = []
    for number, peer in enumerate(network.running() * QUESTIONS):
        text = f"What should I know about {rng.choice(TOPICS)} {number}?"
        given.append(await ask(number % len(network.peers), peer, text))
        await trio.sleep(rng.uniform(0.1, 1.0))
    return given


async def _victim(network: SimulatedNetwork, copies: Copies, rng: random.Random) -> int:
    """Somebody who holds a record with the fewest copies; validators only as long as a quorum remains."""
    _, holding = await copies.fewest()
    numbers = {peer.settled.identity.address: peer.number for peer in network.peers if peer.peer is not None}
    dead = sum(peer.peer is None for peer in network.peers[: network.validators])
    spare = (network.validators - 1) // 3 - dead
    chosen = [numbers[address] for address in holding if spare > 0 or numbers[address] >= network.validators]
    followers = [number for number in numbers.values() if number >= network.validators]
    return rng.choice(chosen or followers)


async def _joined(network: SimulatedNetwork, nursery: trio.Nursery) -> int:
    """Newcomers are admitted by a founder and start; returns how many once everybody counts them among the holders."""
    founder = network.running()[0].parts.context
    arriving = max(1, len(network.peers) // JOINED)
    for _ in range(arriving):
        newcomer = network.add()
        identity = newcomer.settled.identity
        member = Member(address=identity.address, peer_id=identity.peer_id, roles=FOLLOWER_ROLES)
        admission = admit(founder.key, founder.network_id, member)
        write_atomic(newcomer.settled.config.data_dir / ADMISSION_FILE, canonical.encode(admission))
        await network.start(nursery, newcomer.number)
    members = len(network.peers)
    await until(
        lambda: all(len(peer.parts.context.registry.state.holding) == members for peer in network.running()),
        "newcomers are members everywhere",
    )
    return arriving


async def _all_found(network: SimulatedNetwork, given: list[Given], rng: random.Random) -> None:
    """Whatever was answered is found by whoever asks.

    Raises:
        ScenarioError: somebody generates it again.
    """
    for answer in given:
        simulated = rng.choice([peer for peer in network.peers if peer.peer is not None])
        if simulated.peer is None:
            raise ScenarioError(f"peer {simulated.number} is not running")
        again = await ask(simulated.number, simulated.peer, answer.question)
        if again.source != "cache":
            raise ScenarioError(f"peer {simulated.number} generated again what was answered: {answer.completion_id}")
