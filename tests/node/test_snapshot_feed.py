"""A peer that is far behind: it takes a snapshot from whoever gives the certified one, and drops whoever does not."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest
import trio
from ledgers import LedgerNetwork
from msgspec.structs import replace

from nsllm.consensus.events import BlockCommitted
from nsllm.consensus.follower import Follower
from nsllm.ids import Address, Height, PeerId, Round
from nsllm.node.links import BlockFeed
from nsllm.node.snapshot_feed import SnapshotFeed
from nsllm.p2p.directory import PeerState
from nsllm.p2p.memory import MemoryNetwork, MemoryWorld
from nsllm.p2p.protocols.snapshot import SNAPSHOT, serve_snapshot
from nsllm.p2p.protocols.sync import SYNC, serve_sync


class Events:
    def __init__(self):
        self.seen = []

    def emit(self, kind, **fields):
        self.seen.append((kind, fields))

    def kinds(self):
        return [kind for kind, _ in self.seen]


class Shelf:
    """A peer's snapshots, with a lie in what it hands out."""

    def __init__(self, snapshots, lie):
        self._snapshots, self._lie = snapshots, lie
        self.asked = 0

    async def offer(self, since):
        self.asked += 1
        found = await self._snapshots.offer(since)
        if self._lie != "offer":
            return found
        offer, handovers = found
        manifest = replace(offer.manifest, size_bytes=offer.manifest.size_bytes + 1)
        return replace(offer, manifest=manifest), handovers

    async def chunk(self, digest, position):
        self.asked += 1
        data = await self._snapshots.chunk(digest, position)
        if self._lie == "chunk" and data is not None and position == 1:
            return data[:-1] + bytes([data[-1] ^ 1])
        return None if self._lie == "cut" and position >= 1 else data

    async def retractions(self, start, count):
        return await self._snapshots.retractions(start, count)


class Town:
    """A chain that `good` has, `liar` lies about, and `late` has not; the liar claims most."""

    def __init__(self, net):
        self.net = net
        self.world = MemoryWorld(random.Random(1))
        self.networks = {name: MemoryNetwork(self.world, PeerId(name)) for name in ("good", "liar", "late")}
        self.ledgers = {}
        self.events = Events()
        self.committed = []

    def member_of(self, peer):
        return peer

    def state_of(self, peer):
        height = self.ledgers["good"].height
        return PeerState(height=height + 100 * (peer == "liar"))

    def follow(self, stack, *, lie):
        """The late peer's follower, and how often the liar was asked."""
        good, late = self.ledgers["good"], self.ledgers["late"]
        liar = Shelf(good.snapshots, lie)
        for name, shelf in (("good", good.snapshots), ("liar", liar)):
            self.networks[name].handle(SYNC, serve_sync(self, good))
            self.networks[name].handle(SNAPSHOT, serve_snapshot(self, shelf))
        feed = BlockFeed(self.networks["late"], self)
        context = SimpleNamespace(events=self.events)
        return liar, Follower(
            network=self.net.network,
            application=late,
            source=feed,
            observer=self.committed.append,
            me=Address(bytes(20)),
            snapshots=SnapshotFeed(context, self.networks["late"], feed, late.snapshots),
        )

    async def catch_up(self, *, lie="nothing"):
        """Seconds until the late peer is where the good one is, and the liar."""
        async with AsyncExitStack() as stack:
            for network in self.networks.values():
                await stack.enter_async_context(network.run())
            liar, follower = self.follow(stack, lie=lie)
            for name in ("good", "liar"):
                await self.networks["late"].connect(self.networks[name].addresses()[0])
            nursery = await stack.enter_async_context(trio.open_nursery())
            began = trio.current_time()
            nursery.start_soon(follower.run)
            follower.announce(self.ledgers["good"].height)
            while self.ledgers["late"].height < self.ledgers["good"].height:
                await trio.sleep(0.05)
                assert trio.current_time() - began < 120, "it does not get there"
            nursery.cancel_scope.cancel()
            return trio.current_time() - began, liar


async def grow(net, ledger, to):
    """Blocks without a record but for every hundredth, decided by hand."""
    while ledger.height < to:
        if ledger.height % 100 == 5:
            net.observe_all(ledger, net.record(f"record {ledger.height}"))
        block = await net.propose(ledger)
        await ledger.validate(block, net.clock.now_ms(), Round(0))
        await ledger.commit(net.certify(block))
        await trio.sleep(0.5)


async def town_of(every, to, *, keep_heights=1, late_keeps=1, folder=None):
    net = LedgerNetwork(1, snapshot_heights=every)
    town = Town(net)
    town.ledgers["good"] = await net.open(keep_heights=keep_heights)
    path = folder / "late.sqlite" if folder is not None else None
    town.ledgers["late"] = await net.open(path, keep_heights=late_keeps)
    await grow(net, town.ledgers["good"], to)
    return town


@pytest.mark.parametrize("lie", ["nothing", "offer", "chunk", "cut"])
async def test_it_leaps_and_drops_the_liar(autojump_clock, lie) -> None:
    town = await town_of(8, 60)
    _, liar = await town.catch_up(lie=lie)
    good, late = town.ledgers["good"], town.ledgers["late"]
    assert (late.height, late._state.parent) == (good.height, good._state.parent)
    assert (await late.summary()).kept_from == 56
    assert "snapshot_installed" in town.events.kinds()
    assert ("snapshot_refused" in town.events.kinds()) == (lie in ("offer", "chunk"))
    if lie in ("offer", "chunk"):
        assert liar.asked <= 8, "one offer, one answer of chunks"
        assert [fields["peer"] for kind, fields in town.events.seen if kind == "snapshot_refused"] == ["liar"]
    heights = [event.decided.block.header.height for event in town.committed if isinstance(event, BlockCommitted)]
    assert heights == [57, 58, 59, 60]


async def test_a_thousand_heights_behind_with_a_liar_takes_no_half_minute(autojump_clock, tmp_path) -> None:
    town = await town_of(500, 1_003, folder=tmp_path)
    took_s, _ = await town.catch_up(lie="chunk")
    assert took_s < 30
    assert town.ledgers["late"]._state.parent == town.ledgers["good"]._state.parent
    assert town.events.kinds() == ["snapshot_refused", "snapshot_installed"]


async def test_who_keeps_all_takes_every_block_while_anybody_has_it(autojump_clock) -> None:
    town = await town_of(8, 60, keep_heights=0, late_keeps=0)
    await town.catch_up()
    assert (await town.ledgers["late"].summary()).kept_from == 1
    assert town.events.kinds() == []


async def test_where_blocks_are_pruned_even_who_keeps_all_leaps(autojump_clock) -> None:
    town = await town_of(8, 60, late_keeps=0)
    await town.catch_up()
    assert (await town.ledgers["late"].summary()).kept_from == 56
    assert town.events.kinds() == ["snapshot_installed"]


async def test_a_small_gap_is_closed_with_blocks(autojump_clock) -> None:
    town = await town_of(8, 7, keep_heights=0)
    await town.catch_up()
    assert town.events.kinds() == []
    assert town.ledgers["late"].height == Height(7)
