"""The follower: announced or not, verified or not at all."""

from __future__ import annotations

import pytest
import trio

from nsllm.consensus.errors import DivergenceError
from nsllm.consensus.events import BlockCommitted, Halted, PeerBlamed
from nsllm.consensus.follower import Follower


class Source:
    """A chain that grows, and counts its askers."""

    def __init__(self):
        self.chain, self.asked, self.refused, self.answer = [], 0, 0, lambda blocks: blocks

    async def fetch(self, start, count):
        self.asked += 1
        await trio.sleep(0.01)
        return self.answer(self.chain[start - 1 : start - 1 + count])

    def refuse(self):
        self.refused += 1
        return False


@pytest.fixture
def town(kit):
    class Town:
        keys = kit.keys(4)
        validators = kit.validators(kit.keys(4))

        def __init__(self):
            self.source, self.events, self.patience_s = Source(), [], 0.0
            self.application = kit.Application(self.validators)
            self.follower = Follower(
                network=kit.NETWORK,
                application=self.application,
                source=self.source,
                observer=self.events.append,
                me=kit.keys(5)[4].address,
                patience=lambda: self.patience_s,
            )

        def grow(self, count):
            for _ in range(count):
                chain = self.source.chain
                parent = chain[-1].block.header.id() if chain else kit.NETWORK
                block = kit.block(self.validators, len(chain) + 1, proposer=self.keys[0].address, parent=parent)
                chain.append(kit.certify(self.keys[:3], block))

    return Town()


async def test_it_follows(autojump_clock, town):
    town.grow(50)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(town.follower.run)
        await trio.sleep(1)
        assert town.application.chain == town.source.chain
        town.grow(1)
        town.follower.announce(51)
        await trio.sleep(0.1)
        assert len(town.application.chain) == 51
        town.grow(1)
        await trio.sleep(11)
        assert len(town.application.chain) == 52, "a lost announcement is repaired by asking"
        assert [type(e) for e in town.events] == [BlockCommitted] * 52
        nursery.cancel_scope.cancel()


async def test_false_announcements_cost_little(autojump_clock, town):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(town.follower.run)
        await trio.sleep(0.5)
        for height in range(2, 1000):
            town.follower.announce(height)
        await trio.sleep(30)
        assert town.source.asked < 15
        nursery.cancel_scope.cancel()


async def test_a_patient_follower_asks_for_what_gathered_meanwhile(autojump_clock, town):
    """Neighbours get blocks one after another: whoever asks again at once asks for what they do not have yet."""
    town.patience_s = 6.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(town.follower.run)
        for height in range(1, 61):
            town.grow(1)
            town.follower.announce(height + 1)  # announced is what only validators have yet
            await trio.sleep(2)
        town.follower.announce(60)
        await trio.sleep(20)
        assert town.application.chain == town.source.chain
        assert town.source.asked < 35
        nursery.cancel_scope.cancel()


async def test_forged_blocks_are_refused(autojump_clock, town, kit):
    town.grow(3)
    honest = town.source.chain
    forged = kit.certify(town.keys[:2], honest[1].block)
    town.source.answer = lambda blocks: [forged if b is honest[1] else b for b in blocks]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(town.follower.run)
        await trio.sleep(1)
        assert town.application.chain == honest[:1]
        assert [e.code for e in town.events if isinstance(e, PeerBlamed)][:1] == ["bad_certificate"]
        town.source.answer = lambda blocks: blocks
        town.follower.announce(3)
        await trio.sleep(15)
        assert town.application.chain == honest
        nursery.cancel_scope.cancel()


async def test_divergence_ends_it(autojump_clock, town):
    town.grow(3)
    town.application.diverge_at = 2
    with pytest.raises(DivergenceError):
        await town.follower.run()
    assert isinstance(town.events[-1], Halted)
