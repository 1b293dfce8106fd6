"""Sync: blocks in order, bounded. Join: a token opens the door once it is judged. Announce: small and member-only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio

from nsllm import canonical
from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.errors import PrunedError
from nsllm.consensus.observation import DimensionScore
from nsllm.consensus.registry import Admission, Member, admit
from nsllm.governance.genesis import Genesis, Placement
from nsllm.governance.policy import Policy, Rubric
from nsllm.ids import ZERO_DIGEST, Digest, Height, NetworkId, PeerId
from nsllm.p2p.card import SignedCard
from nsllm.p2p.errors import MisbehaviourError, NetworkError, RefusedError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.network import Stream
from nsllm.p2p.protocols.announce import Announcer, topic
from nsllm.p2p.protocols.join import JOIN, MAX_JOIN_BYTES, JoinAnswer, JoinRequest, Welcome, join, serve_join
from nsllm.p2p.protocols.sync import (
    MAX_ANSWER_BYTES,
    MAX_SYNC_FRAME_BYTES,
    SYNC,
    BlockFetcher,
    Committed,
    Pruned,
    SyncAnswer,
    SyncRequest,
    serve_sync,
)
from nsllm.p2p.rates import Rate


class Chain:
    def __init__(self, blocks: Sequence[DecidedBlock]) -> None:
        self.blocks = list(blocks)

    async def decided(self, start: Height, count: int) -> Sequence[DecidedBlock]:
        return self.blocks[start - 1 : start - 1 + count]


async def test_blocks_come_in_order(town: Any, make_block: Any, autojump_clock: Any) -> None:
    alice, bob, carol = town.citizens
    chain = Chain([make_block(height, bob.address) for height in range(1, 101)])
    bob.network.handle(SYNC, serve_sync(bob.directory, chain))
    async with town.running():
        fetcher = BlockFetcher(alice.network)
        assert await fetcher.blocks(bob.peer, Height(3), 4) == tuple(chain.blocks[2:6])
        assert await fetcher.blocks(bob.peer, Height(101), 4) == ()
        assert len(await BlockFetcher(carol.network).blocks(bob.peer, Height(1), 1000)) == 64
        assert alice.network.traffic.of(SYNC).streams == 1


async def test_pruned_blocks_are_named_and_the_line_goes_on(town: Any, make_block: Any, autojump_clock: Any) -> None:
    class Pruning(Chain):
        async def decided(self, start: Height, count: int) -> Sequence[DecidedBlock]:
            if start < 50:
                raise PrunedError(Height(50))
            return await super().decided(start, count)

    alice, bob = town.citizens[:2]
    chain = Pruning([make_block(height, bob.address) for height in range(1, 101)])
    bob.network.handle(SYNC, serve_sync(bob.directory, chain))
    async with town.running():
        fetcher = BlockFetcher(alice.network)
        with pytest.raises(PrunedError) as caught:
            await fetcher.blocks(bob.peer, Height(3), 4)
        assert caught.value.kept_from == 50
        assert await fetcher.blocks(bob.peer, Height(50), 1) == tuple(chain.blocks[49:50])
        assert alice.network.traffic.of(SYNC).streams == 1


async def test_an_answer_is_bounded_in_bytes(town: Any, make_block: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    chain = Chain([make_block(height, bob.address, padding=16) for height in range(1, 20)])
    bob.network.handle(SYNC, serve_sync(bob.directory, chain))
    async with town.running():
        blocks = await BlockFetcher(alice.network).blocks(bob.peer, Height(1), 19)
    size_bytes = sum(len(canonical.encode(block)) for block in blocks)
    assert 0 < size_bytes < MAX_ANSWER_BYTES
    assert 5 < len(blocks) < 19


async def test_strangers_sync_at_a_rate(town: Any, make_block: Any, autojump_clock: Any) -> None:
    bob, carol = town.citizens[1:]
    bob.network.handle(SYNC, serve_sync(bob.directory, Chain([]), strangers=Rate(per_peer=1, total=5)))
    async with town.running():
        fetcher = BlockFetcher(carol.network)
        await fetcher.blocks(bob.peer, Height(1), 1)
        for _ in range(2):
            with pytest.raises(RefusedError, match="too many"):
                await fetcher.blocks(bob.peer, Height(1), 1)


@pytest.mark.parametrize("heights", [[2], [1, 3], [1, 2, 3], [None, 1], [1, None]])
async def test_other_blocks_than_asked_are_refused(
    town: Any, make_block: Any, autojump_clock: Any, heights: list[int | None]
) -> None:
    alice, bob = town.citizens[:2]

    async def cheat(stream: Stream) -> None:
        framed = FramedStream(stream, MAX_SYNC_FRAME_BYTES)
        await framed.receive(SyncRequest)
        for height in heights:
            pruned = Pruned(kept_from=Height(9))
            answer = pruned if height is None else Committed(block=make_block(height, bob.address))
            await framed.send(SyncAnswer(answer=answer))
        await framed.send_end()

    bob.network.handle(SYNC, cheat)
    async with town.running():
        with pytest.raises(MisbehaviourError):
            await BlockFetcher(alice.network).blocks(bob.peer, Height(1), 2)


@pytest.fixture
def genesis(town: Any) -> Genesis:
    rubric = Rubric(scorer_model=ZERO_DIGEST, encoder=ZERO_DIGEST, dimensions=("coherence",))
    policy = Policy(
        rubric=rubric,
        weights=(DimensionScore(name="coherence", ppm=1_000_000),),
        toxicity_max_ppm=1,
        coherence_min_ppm=1,
        reuse_min_ppm=1,
    )
    members = tuple(town.citizens[0].registry.members())
    return Genesis(name="town", created_ms=0, members=members, policy=policy, placement=Placement())


async def test_joining(town: Any, genesis: Genesis, autojump_clock: Any) -> None:
    alice, bob, carol = town.citizens
    newcomer = Member(address=carol.address, peer_id=carol.peer, roles=("contributor", "data"))

    async def judge(token: str, member: Member) -> Admission | str:
        return admit(bob.member_key, genesis.network_id(), member) if token == "open" else "unknown token"

    bob.network.handle(JOIN, serve_join(genesis, judge))
    async with town.running():
        welcome = await join(carol.network, bob.peer, genesis.network_id(), "open", newcomer, key=carol.member_key)
        assert welcome.genesis == genesis
        assert welcome.admission.member == newcomer
        with pytest.raises(RefusedError, match="unknown token"):
            await join(carol.network, bob.peer, genesis.network_id(), "guess", newcomer, key=carol.member_key)
        with pytest.raises(RefusedError, match="over the connection of"):
            await join(alice.network, bob.peer, genesis.network_id(), "open", newcomer, key=carol.member_key)
        with pytest.raises(RefusedError, match="signed by"):
            await join(carol.network, bob.peer, genesis.network_id(), "open", newcomer, key=alice.member_key)
        for _ in range(2):
            with pytest.raises(RefusedError, match="unknown"):
                await join(carol.network, bob.peer, genesis.network_id(), "guess", newcomer, key=carol.member_key)
        with pytest.raises(RefusedError, match="too many"):
            await join(carol.network, bob.peer, genesis.network_id(), "open", newcomer, key=carol.member_key)


async def test_a_genesis_that_is_not_the_invites_is_none(town: Any, genesis: Genesis, autojump_clock: Any) -> None:
    _, bob, carol = town.citizens
    newcomer = Member(address=carol.address, peer_id=carol.peer, roles=("data",))

    async def swap(stream: Any) -> None:
        framed = FramedStream(stream, MAX_JOIN_BYTES)
        await framed.receive(JoinRequest)
        admission = admit(bob.member_key, genesis.network_id(), newcomer)
        await framed.send(JoinAnswer(answer=Welcome(admission=admission, genesis=genesis)))

    bob.network.handle(JOIN, swap)
    async with town.running():
        with pytest.raises(MisbehaviourError, match="genesis of"):
            await join(carol.network, bob.peer, NetworkId(bytes(32)), "open", newcomer, key=carol.member_key)


async def test_an_admission_of_another_is_none(town: Any, genesis: Genesis, autojump_clock: Any) -> None:
    alice, bob, carol = town.citizens
    newcomer = Member(address=carol.address, peer_id=carol.peer, roles=("data",))

    async def mix_up(token: str, member: Member) -> Admission | str:
        other = Member(address=alice.address, peer_id=alice.peer, roles=("data",))
        return admit(bob.member_key, genesis.network_id(), other)

    bob.network.handle(JOIN, serve_join(genesis, mix_up))
    async with town.running():
        with pytest.raises(MisbehaviourError, match="another member"):
            await join(carol.network, bob.peer, genesis.network_id(), "open", newcomer, key=carol.member_key)


class Ears:
    def __init__(self, citizen: Any) -> None:
        self.blocks: list[tuple[PeerId, Height, Digest]] = []
        self.cards: list[SignedCard] = []
        self.announcer = Announcer(
            citizen.network, citizen.directory, on_block=self.on_block, on_card=self.cards.append
        )

    async def on_block(self, origin: PeerId, height: Height, block_id: Digest) -> None:
        self.blocks.append((origin, height, block_id))


async def test_announcements_of_members_are_heard(town: Any, autojump_clock: Any) -> None:
    alice, bob, _carol = town.citizens
    ears = [Ears(citizen) for citizen in town.citizens]
    async with town.running() as nursery:
        for ear in ears:
            nursery.start_soon(ear.announcer.run)
        await ears[0].announcer.block(Height(5), ZERO_DIGEST)
        await ears[0].announcer.card(alice.card())
        await ears[2].announcer.block(Height(6), ZERO_DIGEST)
        await trio.sleep(1)
        assert ears[1].blocks == [(alice.peer, 5, ZERO_DIGEST)]
        assert bob.directory.state_of(alice.peer).height == 5
        assert bob.directory.multiaddrs_of(alice.peer) == (alice.where,)
        assert [card.card.peer_id for card in ears[1].cards] == [alice.peer]
        assert ears[1].announcer.faults == 1
        assert len(canonical.encode(alice.card())) < 2000


async def test_malformed_announcements_are_counted_and_passed_over(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    ear = Ears(bob)
    async with town.running() as nursery:
        nursery.start_soon(ear.announcer.run)
        for data in (b"", b"\xff", canonical.pack({"subject": 1}), canonical.pack({"subject": {"type": "other"}})):
            await alice.network.publish(topic(alice.directory.network), data)
        forged = canonical.pack({"subject": {"type": "block", "height": -1, "id": bytes(32)}})
        await alice.network.publish(topic(alice.directory.network), forged)
        await trio.sleep(1)
        assert ear.announcer.faults == 5
        await Ears(alice).announcer.block(Height(1), ZERO_DIGEST)
        await trio.sleep(1)
        assert len(ear.blocks) == 1


async def test_networks_do_not_hear_each_other(make_town: Callable[..., Any]) -> None:
    network = make_town().citizens[0].directory.network
    assert topic(network) != topic(type(network)(bytes(32)))
    assert issubclass(RefusedError, NetworkError)
