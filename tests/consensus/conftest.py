"""Doubles and builders for the consensus tests: keys, blocks, an application in memory, a mesh in memory."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from nsllm import canonical, merkle
from nsllm.clock import TrioClock
from nsllm.consensus.block import Block, Body, DecidedBlock
from nsllm.consensus.certificate import Certificate, Precommit
from nsllm.consensus.driver import Driver
from nsllm.consensus.effects import Accuse, BuildValue, Decide, Relay, Schedule, SignProposal, SignVote
from nsllm.consensus.errors import BlockError, DivergenceError
from nsllm.consensus.events import BlockCommitted
from nsllm.consensus.evidence import Evidence, check_evidence, offence_of
from nsllm.consensus.guard import SignerGuard
from nsllm.consensus.header import Header, precommit_digest
from nsllm.consensus.inputs import (
    CertificateReceived,
    ProposalReceived,
    Start,
    TimedOut,
    ValueBuilt,
    VoteReceived,
)
from nsllm.consensus.timeouts import Timeouts
from nsllm.consensus.validators import ValidatorSet
from nsllm.consensus.vote import Choice, Proposal, Vote, proposal_digest, vote_digest
from nsllm.consensus.wal import WriteAheadLog
from nsllm.crypto import MemberKey
from nsllm.ids import ZERO_DIGEST, Epoch, NetworkId

NETWORK = NetworkId(bytes(range(32)))
START_MS = 1_700_000_000_000


def make_keys(count: int) -> list[MemberKey]:
    """Fixed keys, ascending by address, so that key i is validator i."""
    return sorted((MemberKey(bytes([7] * 31 + [i + 1])) for i in range(count)), key=lambda key: key.address)


def make_set(keys: Sequence[MemberKey]) -> ValidatorSet:
    return ValidatorSet(epoch=Epoch(0), members=tuple(key.address for key in keys))


def make_block(validators, height=1, *, proposer, parent=None, salt=0, time_ms=START_MS, entries=()):
    body = Body(entries=tuple(entries))
    return Block(
        header=Header(
            epoch=0,
            height=height,
            time_ms=time_ms,
            parent=NETWORK if parent is None else parent,
            proposer=proposer,
            body_digest=body.digest(NETWORK),
            scores_root=merkle.EMPTY_ROOT,
            log_size=salt,
            log_root=ZERO_DIGEST,
            state_root=ZERO_DIGEST,
            validators_hash=validators.digest(),
            policy_digest=ZERO_DIGEST,
            registry_hash=ZERO_DIGEST,
        ),
        body=body,
    )


def sign_vote(key, kind, value, *, round_=0, height=1, epoch=0, network=NETWORK, lock=None, valid_round=None) -> Vote:
    lock = Choice(round=lock[0], value=lock[1]) if isinstance(lock, tuple) else lock
    digest = vote_digest(
        network,
        kind=kind,
        epoch=epoch,
        height=height,
        round_=round_,
        value=value,
        validator=key.address,
        lock=lock,
        valid_round=valid_round,
    )
    return Vote(
        kind=kind,
        epoch=epoch,
        height=height,
        round=round_,
        value=value,
        validator=key.address,
        signature=key.sign(digest),
        lock=lock,
        valid_round=valid_round,
    )


def sign_proposal(key, block, *, round_=0, valid_round=None, polka=(), height=None, network=NETWORK) -> Proposal:
    height = block.header.height if height is None else height
    digest = proposal_digest(
        network,
        epoch=0,
        height=height,
        round_=round_,
        value=block.header.id(),
        valid_round=valid_round,
        proposer=key.address,
    )
    return Proposal(
        block=block,
        epoch=0,
        height=height,
        round=round_,
        valid_round=valid_round,
        polka=tuple(polka),
        proposer=key.address,
        signature=key.sign(digest),
    )


def certify(keys, block, *, round_=0, network=NETWORK) -> DecidedBlock:
    header = block.header
    digest = precommit_digest(network, header.epoch, header.height, round_, header.id())
    precommits = tuple(
        Precommit(validator=key.address, signature=key.sign(digest))
        for key in sorted(keys, key=lambda key: key.address)
    )
    return DecidedBlock(block=block, certificate=Certificate(header=header, round=round_, precommits=precommits))


class _AnyEvidence(canonical.Value, frozen=True, kw_only=True):
    evidence: Evidence


def read_evidence(entry: bytes) -> Evidence:
    return canonical.from_plain({"evidence": canonical.unpack(entry, limit_bytes=4096)}, _AnyEvidence).evidence


@dataclass
class MemoryApplication:
    """Blocks in a list. A block is wanted while `wanted` is above the number of committed ones, or evidence waits."""

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

    async def validate(self, block, now_ms):
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
            validators=self.house.validators,
            application=self.application,
            mesh=self.house.mesh.port(self.address),
            source=SimpleNamespace(fetch=self.house.fetch),
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


class Bench:
    """One core under a script. Signs what it asks to have signed and feeds that back, as the driver does.

    Script: steps separated by `;`: `start`, `prop ROUND VALUE [VALID_ROUND]` (`prop!`: the application refuses it),
    `built ROUND VALUE`, `pv WHO ROUND VALUE`, `pc WHO ROUND VALUE`, `polka ROUND VALUE WHO...`, `to STEP ROUND`.
    WHO are validators' numbers, as in `123`; values are letters or `nil`; `B@1A` is B under a lock on A of round 1.
    """

    def __init__(self, core, count: int = 4, me: int = 0, height: int = 1) -> None:
        self.core = core
        self.keys = make_keys(count)
        self.validators = make_set(self.keys)
        self.key = self.keys[me]
        self.height = height
        self.state = core.State(validators=self.validators, me=self.key.address, height=height)
        self.blocks = {
            name: make_block(self.validators, height, proposer=self.keys[0].address, salt=salt)
            for salt, name in enumerate("ABCDEFGH")
        }
        self.names = {block.header.id(): name for name, block in self.blocks.items()} | {None: "nil"}
        self.decided: DecidedBlock | None = None
        self.votes: list[Vote] = []
        """Its own, in order."""
        self.evidence: list[Evidence] = []

    def value(self, name: str):
        return None if name == "nil" else self.blocks[name].header.id()

    def vote(self, who: str, kind: str, round_: int, name: str) -> Vote:
        name, _, held = name.partition("@")
        lock = (int(held[:-1]), self.value(held[-1])) if held else None
        return sign_vote(self.keys[int(who)], kind, self.value(name), round_=round_, height=self.height, lock=lock)

    def run(self, script: str) -> list[str]:
        """Feed the script; what the last step made the core ask for, in words."""
        effects: list[str] = []
        for line in filter(None, (part.strip() for part in script.split(";"))):
            effects = [text for event in self._events(line.split()) for text in self.feed(event)]
        return effects

    def feed(self, event) -> list[str]:
        queue, texts = [event], []
        while queue:
            self.state, effects = self.core.step(self.state, queue.pop(0))
            for effect in effects:
                texts.append(self._text(effect))
                match effect:
                    case SignVote(kind=kind, round=round_, value=value, lock=lock, valid_round=valid_round):
                        vote = sign_vote(
                            self.key,
                            kind,
                            value,
                            round_=round_,
                            height=self.height,
                            lock=lock,
                            valid_round=valid_round,
                        )
                        self.votes.append(vote)
                        queue.append(VoteReceived(vote=vote))
                    case SignProposal(round=round_, block=block, valid_round=valid_round, polka=polka):
                        proposal = sign_proposal(self.key, block, round_=round_, valid_round=valid_round, polka=polka)
                        queue.append(ProposalReceived(proposal=proposal, valid=True))
                    case Decide(decided=decided):
                        self.decided = decided
        return texts

    def _events(self, words):
        match words:
            case ["start"]:
                return [Start()]
            case ["prop" | "prop!" as verb, round_, name, *rest]:
                proposer = self.validators.proposer(self.height, int(round_))
                key = next(key for key in self.keys if key.address == proposer)
                valid_round = int(rest[0]) if rest else None
                proposal = sign_proposal(key, self.blocks[name], round_=int(round_), valid_round=valid_round)
                return [ProposalReceived(proposal=proposal, valid=verb == "prop")]
            case ["built", round_, name]:
                return [ValueBuilt(round=int(round_), block=self.blocks[name])]
            case ["pv" | "pc" as verb, who, round_, name]:
                kind = {"pv": "prevote", "pc": "precommit"}[verb]
                return [VoteReceived(vote=self.vote(w, kind, int(round_), name)) for w in who]
            case ["polka", round_, name, who]:
                return [CertificateReceived(votes=tuple(self.vote(w, "prevote", int(round_), name) for w in who))]
            case ["to", step, round_]:
                return [TimedOut(step=step, round=int(round_))]
        raise ValueError(words)

    def _text(self, effect) -> str:
        match effect:
            case SignVote(kind=kind, round=round_, value=value):
                return f"{kind} {round_} {self.names[value]}"
            case SignProposal(round=round_, block=block, valid_round=valid_round, polka=polka):
                proof = "" if valid_round is None else f" after {valid_round} by {len(polka)}"
                return f"propose {round_} {self.names[block.header.id()]}{proof}"
            case Schedule(step=step, round=round_):
                return f"timer {step} {round_}"
            case BuildValue(round=round_):
                return f"build {round_}"
            case Relay(certificate=certificate):
                return f"relay {type(certificate).__name__} {certificate.votes[0].round} of {len(certificate.votes)}"
            case Accuse(evidence=evidence):
                self.evidence.append(evidence)
                return f"accuse {offence_of(evidence).kind}"
            case Decide(decided=decided):
                return f"decide {decided.certificate.round} {self.names[decided.block.header.id()]}"
        raise ValueError(effect)


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
