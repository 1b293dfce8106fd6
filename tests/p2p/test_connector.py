"""The connector: one bootstrap address leads to everybody; who dies and comes back elsewhere is found again."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import trio

from nsllm.consensus.registry import Member, admit
from nsllm.p2p.connector import Connector
from nsllm.p2p.memory import fully_connected
from nsllm.p2p.protocols.announce import Announcer
from nsllm.p2p.protocols.hello import HELLO, serve_hello


async def live(citizen: Any, bootstrap: list[str], met: list[str] | None = None) -> None:
    """A peer's networking, until cancelled or killed."""
    connector = Connector(
        citizen.network,
        citizen.directory,
        citizen.card,
        random.Random(citizen.peer),
        bootstrap=bootstrap,
        on_connected=(met if met is not None else []).append,
    )
    citizen.connector = connector
    citizen.network.handle(HELLO, serve_hello(citizen.directory, citizen.card, connector.on_card))

    async def ignore(*_: object) -> None:
        pass

    announcer = Announcer(citizen.network, citizen.directory, on_block=ignore, on_card=connector.on_card)
    async with citizen.network.run(), trio.open_nursery() as nursery:
        nursery.start_soon(announcer.run)
        await connector.run()


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.1)


async def test_one_bootstrap_address_leads_to_everybody(make_town: Any, autojump_clock: Any) -> None:
    town = make_town(members=6, strangers=0)
    met: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live, town.citizens[0], [], met)
        await trio.sleep(1)
        for citizen in town.citizens[1:]:
            nursery.start_soon(live, citizen, [town.citizens[0].where])
        await until(lambda: fully_connected([citizen.network for citizen in town.citizens]))
        await until(lambda: len(town.citizens[0].connector.greeted()) == 5)
        assert sorted(met) == sorted(citizen.peer for citizen in town.citizens[1:])
        nursery.cancel_scope.cancel()


async def test_a_bootstrap_peer_that_is_late_is_waited_for(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live, bob, [f"/memory/1/p2p/{alice.peer}"])
        await trio.sleep(300)
        assert bob.network.connected() == ()
        nursery.start_soon(live, alice, [])
        await until(lambda: bob.network.connected() == (alice.peer,), 15)
        nursery.cancel_scope.cancel()


async def test_a_peer_that_comes_back_elsewhere_is_found(make_town: Any, autojump_clock: Any) -> None:
    town = make_town(members=4, strangers=0)
    alice, bob = town.citizens[:2]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live, alice, [])
        await trio.sleep(1)
        for citizen in town.citizens[1:]:
            nursery.start_soon(live, citizen, [alice.where])
        await until(lambda: fully_connected([citizen.network for citizen in town.citizens]))
        town.world.kill(bob.peer)
        await until(lambda: all(bob.peer not in c.network.connected() for c in (alice, *town.citizens[2:])))
        await trio.sleep(60)
        bob.reborn()
        nursery.start_soon(live, bob, [alice.where])
        await until(lambda: fully_connected([citizen.network for citizen in town.citizens]))
        # being connected comes first, bob's new card with the hello that follows
        await until(lambda: town.citizens[3].directory.multiaddrs_of(bob.peer) == (bob.where,))
        nursery.cancel_scope.cancel()


async def test_the_others_reach_a_peer_that_has_no_bootstrap(make_town: Any, autojump_clock: Any) -> None:
    """The bootstrap peer itself dies and comes back at its old address, knowing nobody."""
    town = make_town(members=3, strangers=0)
    alice = town.citizens[0]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live, alice, [])
        await trio.sleep(1)
        where = alice.where
        for citizen in town.citizens[1:]:
            nursery.start_soon(live, citizen, [where])
        await until(lambda: fully_connected([citizen.network for citizen in town.citizens]))
        town.world.kill(alice.peer)
        await trio.sleep(120)
        alice.reborn(where.partition("/p2p/")[0])
        nursery.start_soon(live, alice, [])
        await until(lambda: fully_connected([citizen.network for citizen in town.citizens]), 15)
        nursery.cancel_scope.cancel()


async def test_a_healed_network_grows_together(make_town: Any, autojump_clock: Any) -> None:
    town = make_town(members=4, strangers=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live, town.citizens[0], [])
        await trio.sleep(1)
        for citizen in town.citizens[1:]:
            nursery.start_soon(live, citizen, [town.citizens[0].where])
        await until(lambda: fully_connected([citizen.network for citizen in town.citizens]))
        one, other = town.citizens[0], town.citizens[3]
        town.world.cut(one.peer, other.peer)
        await one.network.disconnect(other.peer)
        await trio.sleep(30)
        assert other.peer not in one.network.connected()
        town.world.heal()
        await until(lambda: fully_connected([citizen.network for citizen in town.citizens]), 30)
        nursery.cancel_scope.cancel()


async def test_strangers_are_greeted_and_not_sought(town: Any, autojump_clock: Any) -> None:
    alice, _, carol = town.citizens
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live, alice, [])
        await trio.sleep(1)
        nursery.start_soon(live, carol, [alice.where])
        await until(lambda: alice.directory.card_of(carol.peer) is not None)
        town.world.kill(carol.peer)
        await trio.sleep(1)
        carol.reborn(carol.network._address)
        async with carol.network.run():
            await trio.sleep(60)
            assert alice.network.connected() == ()
        nursery.cancel_scope.cancel()


async def test_a_newly_admitted_member_meets_everybody(make_town: Any, autojump_clock: Any) -> None:
    town = make_town(members=3, strangers=1)
    alice, newcomer = town.citizens[0], town.citizens[3]
    member = Member(address=newcomer.address, peer_id=newcomer.peer, roles=("data",))
    newcomer.admission = admit(alice.member_key, alice.directory.network, member)
    async with trio.open_nursery() as nursery, AsyncExitStack():
        nursery.start_soon(live, alice, [])
        await trio.sleep(1)
        for citizen in town.citizens[1:]:
            nursery.start_soon(live, citizen, [alice.where])
        await until(lambda: fully_connected([citizen.network for citizen in town.citizens]))
        assert all(c.directory.member_of(newcomer.peer) == member for c in town.citizens[:3])
        nursery.cancel_scope.cancel()


async def test_a_newer_card_is_asked_for(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live, alice, [])
        await trio.sleep(1)
        nursery.start_soon(live, bob, [alice.where])
        await until(lambda: bool(alice.connector.greeted()) and bool(bob.connector.greeted()))
        bob.sequence = 8
        await trio.sleep(10)
        assert alice.directory.card_of(bob.peer).sequence == 1
        alice.connector.greet(bob.peer)
        await until(lambda: alice.directory.card_of(bob.peer).sequence == 8, 5)
        nursery.cancel_scope.cancel()
