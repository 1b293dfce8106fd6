"""A peer that is 1,000 blocks behind catches up within half a minute, although one of those it asks lies."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import trio

from nsllm.consensus.block import Block, Body, DecidedBlock
from nsllm.consensus.certificate import Certificate, Precommit
from nsllm.consensus.events import PeerBlamed
from nsllm.consensus.follower import Follower
from nsllm.consensus.header import Header, precommit_digest
from nsllm.consensus.registry import Member
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import MemberKey
from nsllm.ids import Address, Digest, PeerId
from nsllm.node.links import BlockFeed
from nsllm.p2p.directory import PeerState
from nsllm.p2p.memory import MemoryNetwork, MemoryWorld
from nsllm.p2p.protocols.sync import SYNC, serve_sync

NETWORK = Digest(b"\7" * 32)
BEHIND = 1_000


class Store:
    """Blocks of one peer; also what a follower commits to."""

    def __init__(self, chain: list[DecidedBlock] | None = None, *, lies: bool = False) -> None:
        self.chain = chain if chain is not None else []
        self._lies = lies
        self.validators: ValidatorSet | None = None

    async def decided(self, start: int, count: int) -> list[DecidedBlock]:
        found = self.chain[start - 1 : start - 1 + count]
        if not self._lies:
            return found
        return [
            msgspec.structs.replace(
                one, certificate=msgspec.structs.replace(one.certificate, round=one.certificate.round + 1)
            )
            for one in found
        ]

    async def commit(self, decided: DecidedBlock) -> None:
        self.chain.append(decided)

    async def tip(self) -> int:
        return len(self.chain)


class Neighbours:
    """A directory in which everybody is a member, and the liar claims most."""

    def __init__(self, names: list[str]) -> None:
        self._members = {
            PeerId(name): Member(address=bytes([number] * 20), peer_id=PeerId(name), roles=("validator",))
            for number, name in enumerate(names)
        }

    def member_of(self, peer: PeerId) -> Member | None:
        return self._members.get(peer)

    def state_of(self, peer: PeerId) -> PeerState:
        return PeerState(height=BEHIND + 100 * (peer == "liar"))


def chain_of(keys: list[MemberKey], validators: ValidatorSet) -> list[DecidedBlock]:
    chain: list[DecidedBlock] = []
    body = Body()
    fields: dict[str, Any] = {
        name: bytes(32) for name in Header.__struct_fields__ if name.endswith(("_root", "_digest", "_hash", "_epoch"))
    }
    fields |= {"body_digest": body.digest(NETWORK), "validators_hash": validators.digest(), "epoch": validators.epoch}
    for height in range(1, BEHIND + 1):
        parent = chain[-1].block.header.id() if chain else NETWORK
        header = Header(
            **fields, height=height, time_ms=height, parent=parent, proposer=validators.members[0], log_size=0
        )
        digest = precommit_digest(NETWORK, header.epoch, height, 0, header.id())
        votes = tuple(Precommit(validator=key.address, signature=key.sign(digest)) for key in keys[:3])
        certificate = Certificate(header=header, round=0, precommits=votes)
        chain.append(DecidedBlock(block=Block(header=header, body=body), certificate=certificate))
    return chain


async def test_it_catches_up_and_asks_the_liar_once(autojump_clock: Any) -> None:
    keys = sorted((MemberKey(bytes([number]) * 32) for number in range(1, 5)), key=lambda key: key.address)
    validators = ValidatorSet(epoch=0, members=tuple(key.address for key in keys))
    chain = chain_of(keys, validators)
    names = ["good", "liar", "late"]
    world, directory = MemoryWorld(random.Random(1)), Neighbours(names)
    networks = {name: MemoryNetwork(world, PeerId(name)) for name in names}
    served = {"good": Store(chain), "liar": Store(chain, lies=True)}
    asked: list[str] = []
    for name, store in served.items():
        serve = serve_sync(directory, store)

        async def handler(stream: Any, name: str = name, serve: Any = serve) -> None:
            asked.append(name)
            await serve(stream)

        networks[name].handle(SYNC, handler)
    mine, events = Store(), []
    mine.validators = validators
    follower = Follower(
        network=NETWORK,
        application=mine,
        source=BlockFeed(networks["late"], directory),
        observer=events.append,
        me=Address(bytes(20)),
    )
    async with AsyncExitStack() as stack:
        for network in networks.values():
            await stack.enter_async_context(network.run())
        for name in served:
            await networks["late"].connect(networks[name].addresses()[0])
        nursery = await stack.enter_async_context(trio.open_nursery())
        began = trio.current_time()
        nursery.start_soon(follower.run)
        while len(mine.chain) < BEHIND:
            await trio.sleep(0.1)
        assert trio.current_time() - began < 30
        nursery.cancel_scope.cancel()
    assert mine.chain == chain
    assert asked.count("liar") == 1
    assert len([event for event in events if isinstance(event, PeerBlamed)]) == 1
