"""Whole validators on a virtual clock: deciding, round change, restart, catching up, being alone."""

from __future__ import annotations

import pytest
import trio


async def start(nursery, house, peers=None):
    await nursery.start(house.mesh.run)
    for peer in house.peers if peers is None else peers:
        await nursery.start(peer.run)


async def test_four_validators_decide(autojump_clock, house):
    town = house(4)
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        town.want(5)
        began = trio.current_time()
        await town.until_height(5)
        assert trio.current_time() - began < 1.0, "a round of round trips, no timeout"
        town.check_agreement()
        assert all(d.certificate.round == 0 for d in town.peers[0].application.chain)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_few_validators_decide(autojump_clock, house, count):
    town = house(count)
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        town.want(3)
        await town.until_height(3, timeout_s=1.0)
        town.check_agreement()
        nursery.cancel_scope.cancel()


async def test_nothing_is_decided_while_nothing_is_wanted(autojump_clock, house):
    town = house(4)
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        await trio.sleep(60)
        assert [peer.height for peer in town.peers] == [0, 0, 0, 0]
        town.peers[0].application.delay_s = 5.0
        town.want(1)
        await town.until_height(1, timeout_s=6.0)
        nursery.cancel_scope.cancel()


async def test_a_silent_proposer_costs_a_round(autojump_clock, house):
    town = house(4)
    silent = next(p for p in town.peers if p.address == town.validators.proposer(1, 0))
    others = [p for p in town.peers if p is not silent]
    async with trio.open_nursery() as nursery:
        await start(nursery, town, others)
        town.want(1)
        await town.until_height(1, others, timeout_s=10.0)
        assert others[0].application.chain[0].certificate.round == 1
        nursery.cancel_scope.cancel()
    town.check_agreement()
