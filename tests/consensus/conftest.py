"""Doubles and builders for the consensus tests: keys, blocks, an application in memory, a mesh in memory."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from nsllm import canonical
from nsllm.clock import TrioClock
from nsllm.consensus.block import Block, DecidedBlock
from nsllm.consensus.driver import Driver
from nsllm.consensus.errors import BlockError, DivergenceError
from nsllm.consensus.events import BlockCommitted
from nsllm.consensus.evidence import Evidence, check_evidence, offence_of
from nsllm.consensus.guard import SignerGuard
from nsllm.consensus.timeouts import Timeouts
from nsllm.consensus.validators import ValidatorSet
from nsllm.consensus.wal import WriteAheadLog
from nsllm.simulations.mutants.bench import Bench
from nsllm.simulations.mutants.made import (
    NETWORK,
    START_MS,
    certify,
    make_block,
    make_keys,
    make_set,
    sign_proposal,
    sign_vote,
)


class _AnyEvidence(canonical.Value, frozen=True, kw_only=True):
    evidence: Evidence


def read_evidence(entry: bytes) -> Evidence:
    return canonical.from_plain({"evidence": canonical.unpack(entry, limit_bytes=4096)}, _AnyEvidence).evidence


@dataclass
class MemoryApplication:
    """Blocks in a list. A block is wanted while `wanted` is above the number of committed ones, or evidence waits.

    After the block at height h the validators are those of `sets[h]`, if it names any.
    """

    validators: ValidatorSet
    wanted: int = 0
    delay_s: float = 0.0
    chain: list[DecidedBlock] = field(default_factory=list)
    diverge_at: int | None = None
    refuse: Callable[[Block], bool] = lambda block: False
    proposed: int = 0
    accused: dict[bytes, Evidence] = field(default_factory=dict)
    """By offender: what waits for a block."""
    convicted: dict[bytes, Evidence] = field(default_factory=dict)
    """By offender: what a block holds."""
    sets: dict[int, ValidatorSet] = field(default_factory=dict)

    async def due_in(self):
        if len(self.chain) >= self.wanted and not self.accused:
            return None
        return self.delay_s

    async def propose(self, height, now_ms, proposer):
        assert height == len(self.chain) + 1
        self.proposed += 1
        parent = self.chain[-1].block.header.id() if self.chain else NETWORK
        # a rebuilt block differs from the one built before, as it would in life
        return make_block(
            self.validators,
            height,
            proposer=proposer,
            parent=parent,
            salt=self.proposed,
            time_ms=now_ms,
            entries=[canonical.encode(self.accused[who]) for who in sorted(self.accused)],
        )

    async def validate(self, block, now_ms, round_):
        for evidence in map(read_evidence, block.body.entries):
            check_evidence(evidence, NETWORK, self.validators)
            if offence_of(evidence).validator in self.convicted:
                raise BlockError("convicted before")
        if self.refuse(block):
            raise BlockError("the test refuses this block")
        if block.header.time_ms > now_ms + 10_000:
            raise BlockError(f"time {block.header.time_ms} is ahead of {now_ms}")

    async def commit(self, decided):
        await trio.lowlevel.checkpoint()
        height = decided.block.header.height
        if height == self.diverge_at:
            raise DivergenceError(f"roots differ at height {height}")
        if height == len(self.chain) and self.chain[-1].block == decided.block:
            return
        assert height == len(self.chain) + 1
        self.chain.append(decided)
        self.validators = self.sets.get(height, self.validators)
        for evidence in map(read_evidence, decided.block.body.entries):
            who = offence_of(evidence).validator
            self.convicted[who] = evidence
            self.accused.pop(who, None)

    def add_evidence(self, evidence):
        offence = offence_of(evidence)
        check_evidence(evidence, NETWORK, self.validators)
        if offence.validator in self.accused or offence.validator in self.convicted:
            return False
        self.accused[offence.validator] = evidence
        return True

    async def decided(self, start, count):
        return self.chain[start - 1 : start - 1 + count]

    async def tip(self):
        return len(self.chain)


class Crash(BaseException):
    """The process died here."""


class MemoryMesh:
    """Delivers between drivers after a seeded delay; drops what a test's `drop` says; logs everything."""

    def __init__(self, seed: int = 1, delay_s: float = 0.005) -> None:
        self.random = random.Random(seed)
        self.delay_s = delay_s
        self.drivers: dict[bytes, Driver] = {}
        self.drop: Callable[[bytes, bytes, bytes], bool] = lambda frm, to, message: False
        self.twist: Callable[[bytes, bytes, bytes], bytes] = lambda frm, to, message: message
        """What a Byzantine sender makes of a message on its way to one receiver."""
        self.log: list[tuple[bytes, bytes, bytes]] = []
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status=trio.TASK_STATUS_IGNORED):
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def port(self, me: bytes):
        def send(to: bytes, message: bytes) -> None:
            message = self.twist(me, to, message)
            self.log.append((me, to, message))
            if not self.drop(me, to, message):
                self._nursery.start_soon(self._deliver, me, to, message, self.delay_s * (0.5 + self.random.random()))

        return SimpleNamespace(send=send)

    async def _deliver(self, me, to, message, delay_s):
        await trio.sleep(delay_s)
        if to in self.drivers:
            self.drivers[to].receive(me, message)


class Peer:
    """One validator with files of its own; can crash and restart."""

    def __init__(self, house, index: int, folder: Path) -> None:
        self.house = house
        self.index = index
        self.key = house.keys[index]
        self.address = self.key.address
        self.folder = folder
        self.application = MemoryApplication(house.validators)
        self.events = []
        self.moments: list[str] = []
        self.checkpoint: Callable[[str], None] = lambda moment: None
        self.driver: Driver | None = None
        self.error: BaseException | None = None
        self._scope: trio.CancelScope | None = None
        self._stopped = trio.Event()

    def __repr__(self) -> str:
        return f"Peer({self.index}, height {len(self.application.chain)})"

    @property
    def height(self) -> int:
        return len(self.application.chain)

    async def run(self, task_status=trio.TASK_STATUS_IGNORED):
        self._stopped = trio.Event()
        wal = WriteAheadLog(self.folder / "wal")
        self.driver = Driver(
            network=NETWORK,
            guard=SignerGuard(self.key, NETWORK, self.folder / "guard"),
            application=self.application,
            mesh=self.house.mesh.port(self.address),
            source=SimpleNamespace(fetch=self.house.fetch, refuse=self.house.refuse),
            clock=TrioClock(START_MS),
            wal=wal,
            timeouts=self.house.timeouts,
            observer=self.events.append,
            checkpoint=self._at,
        )
        self.house.mesh.drivers[self.address] = self.driver
        self.error = None
        task_status.started()
        with trio.CancelScope() as self._scope:
            try:
                await self.driver.run()
            except (Crash, DivergenceError) as error:
                self.error = error
        self.house.mesh.drivers.pop(self.address, None)
        wal.close()
        self._stopped.set()

    async def stop(self):
        self._scope.cancel()
        await self._stopped.wait()

    async def stopped(self):
        await self._stopped.wait()

    def _at(self, moment: str) -> None:
        self.moments.append(moment)
        self.checkpoint(moment)

    def want(self, count: int) -> None:
        self.application.wanted = count
        if self.driver is not None:
            self.driver.poke()


class House:
    """A few validators around one mesh."""

    def __init__(self, count: int, folder: Path, *, seed: int = 1, timeouts: Timeouts | None = None) -> None:
        self.keys = make_keys(count)
        self.validators = make_set(self.keys)
        self.mesh = MemoryMesh(seed)
        self.timeouts = timeouts or Timeouts()
        self.source_broken = False
        self.tamper: Callable[[list[DecidedBlock]], list[DecidedBlock]] = lambda blocks: blocks
        self.peers = []
        self.refused = 0
        self.others_left = False
        for i in range(count):
            home = folder / f"peer-{i}"
            home.mkdir(parents=True)
            self.peers.append(Peer(self, i, home))

    async def fetch(self, start, count):
        await trio.sleep(0.01)
        if self.source_broken:
            return []
        best = max(self.peers, key=lambda peer: peer.height)
        return self.tamper(best.application.chain[start - 1 : start - 1 + count])

    def refuse(self) -> bool:
        self.refused += 1
        return self.others_left

    def want(self, count: int) -> None:
        for peer in self.peers:
            peer.want(count)

    async def until(self, condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
        with trio.fail_after(timeout_s):
            while not condition():
                await trio.sleep(0.01)

    async def until_height(self, height: int, peers=None, timeout_s: float = 120.0) -> None:
        peers = self.peers if peers is None else peers
        await self.until(lambda: all(peer.height >= height for peer in peers), timeout_s)

    def check_agreement(self) -> None:
        for height in range(max(peer.height for peer in self.peers)):
            blocks = {p.application.chain[height].block.header.id() for p in self.peers if p.height > height}
            assert len(blocks) == 1, f"height {height + 1} was decided in {len(blocks)} ways"
            for peer in self.peers:
                if peer.height > height:
                    peer.application.chain[height].certificate.check(NETWORK, self.validators)


async def start_house(nursery, town, peers=None):
    await nursery.start(town.mesh.run)
    for peer in town.peers if peers is None else peers:
        await nursery.start(peer.run)


@pytest.fixture(scope="session")
def kit():
    """Builders, as one namespace (test modules do not import each other)."""
    return SimpleNamespace(
        NETWORK=NETWORK,
        START_MS=START_MS,
        keys=make_keys,
        validators=make_set,
        block=make_block,
        vote=sign_vote,
        proposal=sign_proposal,
        certify=certify,
        Application=MemoryApplication,
        Crash=Crash,
        Bench=Bench,
        start=start_house,
        inf=math.inf,
        BlockCommitted=BlockCommitted,
    )


@pytest.fixture
def house(tmp_path):
    """`house(count)` makes validators; the test starts them in its nursery."""
    made = iter(range(1000))

    def make(count: int, **more) -> House:
        return House(count, tmp_path / f"house-{next(made)}", **more)

    return make
