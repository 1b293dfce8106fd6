"""A town of peers on the in-memory network, and records and blocks to pass around."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
from records import small_record

from nsllm.clock import TrioClock
from nsllm.consensus.block import Block, Body, DecidedBlock
from nsllm.consensus.certificate import Certificate, Precommit
from nsllm.consensus.certified import CertifiedRecord, Inclusion
from nsllm.consensus.header import Header
from nsllm.consensus.observation import DimensionScore, Quartiles, ScoreLeaf
from nsllm.consensus.registry import Admission, Member, MemberRegistry, RegistryState
from nsllm.crypto import MemberKey
from nsllm.ids import ZERO_DIGEST, Address, Digest, Height, NetworkId, PeerId, Ppm, Signature, TimeMs
from nsllm.p2p.card import PeerCard, SignedCard, sign_card
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.identity import PeerKey
from nsllm.p2p.memory import MemoryNetwork, MemoryWorld, TraceEvent
from nsllm.record import SignedRecord, request_key, sign_record

NETWORK = NetworkId(bytes(range(32)))
START_MS = TimeMs(1_700_000_000_000)


class Citizen:
    """One peer: keys, registry, directory and network."""

    def __init__(self, world: MemoryWorld, number: int, genesis: list[Member]) -> None:
        self.peer_key = PeerKey(bytes([number]) * 32)
        self.member_key = MemberKey(bytes([number]) * 32)
        self.clock = TrioClock(START_MS)
        self.registry = MemberRegistry(NETWORK, RegistryState.of(genesis))
        self.directory = PeerDirectory(NETWORK, self.registry, self.clock)
        self.world = world
        self.network = MemoryNetwork(world, self.peer_key.peer_id)
        self.sequence = 1
        self.admission: Admission | None = None

    @property
    def peer(self) -> PeerId:
        return self.peer_key.peer_id

    @property
    def address(self) -> Address:
        return self.member_key.address

    @property
    def where(self) -> str:
        return self.network.addresses()[0]

    def card(self) -> SignedCard:
        card = PeerCard(
            network=NETWORK,
            peer_id=self.peer,
            public_key=self.peer_key.public_key,
            address=self.address,
            roles=("validator",),
            multiaddrs=self.network.addresses(),
            sequence=self.sequence,
            expires_ms=TimeMs(self.clock.now_ms() + 3_600_000),
            height=Height(7),
            admission=self.admission,
        )
        return sign_card(self.peer_key, self.member_key, card)

    def reborn(self, address: str | None = None) -> None:
        """A fresh network after a crash, at another address."""
        self.network = MemoryNetwork(self.world, self.peer, address=address)
        self.sequence += 1


@dataclass
class Town:
    world: MemoryWorld
    citizens: list[Citizen]
    """Members first (the first two are validators), then strangers."""
    trace: list[TraceEvent]

    @asynccontextmanager
    async def running(self, *, connected: bool = True) -> AsyncIterator[trio.Nursery]:
        async with AsyncExitStack() as stack:
            for citizen in self.citizens:
                await stack.enter_async_context(citizen.network.run())
            if connected:
                for number, citizen in enumerate(self.citizens):
                    for other in self.citizens[:number]:
                        await citizen.network.connect(other.where)
            async with trio.open_nursery() as nursery:
                yield nursery
                nursery.cancel_scope.cancel()


def member_of(number: int, roles: tuple[str, ...]) -> Member:
    key = MemberKey(bytes([number]) * 32)
    return Member(
        address=key.address,
        peer_id=PeerKey(bytes([number]) * 32).peer_id,
        roles=roles,
        slots=4,
    )


@pytest.fixture
def make_town() -> Callable[..., Town]:
    def build(members: int = 2, strangers: int = 1, *, seed: int = 1, **world_settings: object) -> Town:
        trace: list[TraceEvent] = []
        world = MemoryWorld(random.Random(seed), on_event=trace.append, **world_settings)
        roles = [("contributor", "data", "validator")] * 2 + [("contributor", "data")] * members
        genesis = [member_of(number + 1, roles[number]) for number in range(members)]
        citizens = [Citizen(world, number + 1, genesis) for number in range(members + strangers)]
        return Town(world=world, citizens=citizens, trace=trace)

    return build


@pytest.fixture
def town(make_town: Callable[..., Town]) -> Town:
    return make_town()


@pytest.fixture
def make_card(town: Town) -> Callable[[], SignedCard]:
    return town.citizens[0].card


@pytest.fixture
def make_record() -> Callable[..., SignedRecord]:
    def build(key: MemberKey, text: str = "An answer.", question: str = "A question?") -> SignedRecord:
        return sign_record(key, small_record(key, question, network=NETWORK, text=text, created_ms=START_MS))

    return build


@pytest.fixture
def make_certified(make_record: Callable[..., SignedRecord]) -> Callable[..., CertifiedRecord]:
    """Well-formed only: its certificate proves nothing, and p2p does not ask it to."""

    def build(key: MemberKey, question: str = "A question?") -> CertifiedRecord:
        signed = make_record(key, question=question)
        leaf = ScoreLeaf(
            record=signed.record.digest(),
            generator=key.address,
            request_key=request_key(NETWORK, signed.record.request),
            rubric=ZERO_DIGEST,
            scores=(DimensionScore(name="coherence", ppm=Ppm(1)),),
            quartiles=(Quartiles(lower_ppm=Ppm(1), upper_ppm=Ppm(1)),),
            observers=(key.address,),
        )
        block = make_block_at(1, key.address)
        inclusion = Inclusion(index=0, size=1, path=())
        return CertifiedRecord(signed=signed, leaf=leaf, inclusion=inclusion, certificate=block.certificate)

    return build


@pytest.fixture
def make_block() -> Callable[..., DecidedBlock]:
    return make_block_at


def make_block_at(height: int, proposer: Address, padding: int = 0) -> DecidedBlock:
    header = Header(
        epoch=0,
        height=height,
        time_ms=START_MS,
        parent=ZERO_DIGEST,
        proposer=proposer,
        body_digest=ZERO_DIGEST,
        scores_root=ZERO_DIGEST,
        log_size=0,
        log_root=ZERO_DIGEST,
        state_root=ZERO_DIGEST,
        validators_hash=ZERO_DIGEST,
        policy_digest=Digest(bytes(32)),
        registry_hash=Digest(bytes(32)),
    )
    vote = Precommit(validator=proposer, signature=Signature(bytes(65)))
    body = Body(entries=(bytes(60_000),) * padding)
    return DecidedBlock(
        block=Block(header=header, body=body), certificate=Certificate(header=header, round=0, precommits=(vote,))
    )
