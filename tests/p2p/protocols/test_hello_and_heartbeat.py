"""Hello: cards are exchanged and checked. Heartbeat: who misses three beats is disconnected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from nsllm import canonical
from nsllm.consensus.registry import Member, admit
from nsllm.ids import Height
from nsllm.p2p.card import SignedCard
from nsllm.p2p.errors import DeadlineError, NetworkError, ProtocolRefusedError, RefusedError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.protocols import hello as hello_module
from nsllm.p2p.protocols.heartbeat import HEARTBEAT, MAX_BEAT_BYTES, Beat, Heartbeat, serve_heartbeat
from nsllm.p2p.protocols.hello import HELLO, MAX_HELLO_BYTES, Greeting, Hello, say_hello, serve_hello
from nsllm.p2p.rates import Rate


def serve(town: Any) -> list[SignedCard]:
    news: list[SignedCard] = []
    for citizen in town.citizens:
        citizen.network.handle(HELLO, serve_hello(citizen.directory, citizen.card, news.append))
        citizen.network.handle(
            HEARTBEAT, serve_heartbeat(citizen.directory, lambda c=citizen: (Height(7), c.card().card.sequence))
        )
    return news


async def greet(one: Any, other: Any, news: list[SignedCard]) -> None:
    await say_hello(one.network, one.directory, other.peer, one.card, news.append)


async def test_both_sides_learn_a_card(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    news = serve(town)
    async with town.running():
        await greet(alice, bob, news)
        assert alice.directory.multiaddrs_of(bob.peer) == (bob.where,)
        assert bob.directory.multiaddrs_of(alice.peer) == (alice.where,)
        assert sorted(signed.card.peer_id for signed in news) == sorted([alice.peer, bob.peer])
        await greet(alice, bob, news)
        assert len(news) == 2


async def test_members_pass_on_members_cards(make_town: Callable[..., Any], autojump_clock: Any) -> None:
    town = make_town(members=3, strangers=1)
    alice, bob, carol, stranger = town.citizens
    news = serve(town)
    async with town.running():
        await greet(bob, carol, news)
        await greet(stranger, bob, news)
        assert stranger.directory.card_of(carol.peer) is not None
        await greet(alice, bob, news)
        assert alice.directory.card_of(carol.peer) is not None
        assert alice.directory.card_of(stranger.peer) is None


async def test_cards_that_a_stranger_passes_on_are_not_taken(town: Any, autojump_clock: Any) -> None:
    alice, bob, stranger = town.citizens
    news = serve(town)
    async with town.running():
        stranger.directory.accept(bob.card())
        await greet(stranger, alice, news)
        assert alice.directory.card_of(stranger.peer) is not None
        assert alice.directory.card_of(bob.peer) is None


async def test_an_admitted_member_is_known_after_hello(town: Any, autojump_clock: Any) -> None:
    alice, bob, carol = town.citizens
    news = serve(town)
    member = Member(address=carol.address, peer_id=carol.peer, roles=("data",))
    carol.admission = admit(bob.member_key, alice.directory.network, member)
    async with town.running():
        await greet(carol, alice, news)
        assert alice.directory.member_of(carol.peer) == member


async def test_another_peers_card_is_refused(town: Any, autojump_clock: Any) -> None:
    alice, bob, carol = town.citizens
    serve(town)
    async with town.running():
        with pytest.raises(NetworkError):
            await say_hello(carol.network, carol.directory, alice.peer, bob.card, lambda _: None)
        assert alice.directory.card_of(bob.peer) is None


async def test_strangers_say_hello_at_a_rate(town: Any, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hello_module, "STRANGERS", Rate(per_peer=2, total=10))
    alice, bob, carol = town.citizens
    news = serve(town)
    async with town.running():
        for _ in range(2):
            await greet(carol, alice, news)
        with pytest.raises(RefusedError, match="too many"):
            await greet(carol, alice, news)
        await greet(bob, alice, news)
        await trio.sleep(60)
        await greet(carol, alice, news)


async def test_a_hello_is_not_waited_for_for_ever(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    serve(town)
    async with town.running():
        stream = await alice.network.open(bob.peer, HELLO)
        start_s = trio.current_time()
        assert await stream.receive_some() == b""
        assert trio.current_time() - start_s < 11
        town.world.cut(alice.peer, bob.peer)
        with pytest.raises(DeadlineError, match="hello"):
            await greet(alice, bob, [])


async def test_garbage_costs_its_stream(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    serve(town)
    async with town.running():
        refusal = Hello(answer=hello_module.refusal("no"))
        for data in (
            b"\xff" * 10,
            canonical.encode(refusal),
            canonical.encode(Beat(number=1, height=1, card_sequence=1)),
        ):
            stream = await alice.network.open(bob.peer, HELLO)
            await stream.send_all(len(data).to_bytes(4, "big") + data)
            assert await stream.receive_some() == b""
        await greet(alice, bob, [])


async def test_a_hello_holds_cards_only_up_to_its_bound(town: Any, autojump_clock: Any) -> None:
    card = town.citizens[0].card()
    with pytest.raises(Exception, match="64"):
        canonical.from_plain(
            canonical.unpack(
                canonical.encode(Hello(answer=Greeting(card=card, known=(card,) * 65))), limit_bytes=10**6
            ),
            Hello,
        )
    assert len(canonical.encode(Hello(answer=Greeting(card=card, known=(card,) * 64)))) < MAX_HELLO_BYTES


async def test_beats_tell_rtt_height_and_newer_cards(town: Any, autojump_clock: Any) -> None:
    alice, bob, carol = town.citizens
    serve(town)
    stale: list[str] = []
    beats = Heartbeat(alice.network, alice.directory, lambda: (Height(3), 1), on_stale_card=stale.append)
    async with town.running() as nursery:
        alice.directory.accept(bob.card())
        nursery.start_soon(beats.run)
        await trio.sleep(5)
        state = alice.directory.state_of(bob.peer)
        assert 0.01 <= state.rtt_s <= 0.06
        assert state.height == 7
        assert bob.directory.state_of(alice.peer).height == 3
        assert alice.directory.state_of(carol.peer).rtt_s is None
        assert stale == []
        bob.sequence = 9
        await trio.sleep(4)
        assert set(stale) == {bob.peer}


async def test_three_missed_beats_end_the_connection(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    serve(town)
    beats = Heartbeat(alice.network, alice.directory, lambda: (Height(3), 1))
    async with town.running() as nursery:
        nursery.start_soon(beats.run)
        await trio.sleep(10)
        town.world.isolate(bob.peer)
        cut_s = trio.current_time()
        with trio.fail_after(60):
            while bob.peer in alice.network.connected():
                await trio.sleep(0.1)
        assert 6 <= trio.current_time() - cut_s <= 15
        town.world.heal()
        await trio.sleep(1)
        await alice.network.connect(bob.where)
        await trio.sleep(7)
        assert alice.directory.state_of(bob.peer).last_seen_s > trio.current_time() - 4


async def test_a_short_cut_is_survived(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    serve(town)
    beats = Heartbeat(alice.network, alice.directory, lambda: (Height(3), 1))
    async with town.running() as nursery:
        nursery.start_soon(beats.run)
        await trio.sleep(5)
        town.world.cut(alice.peer, bob.peer)
        await trio.sleep(3)
        town.world.heal()
        await trio.sleep(20)
        assert bob.peer in alice.network.connected()


async def test_strangers_have_no_heartbeat(town: Any, autojump_clock: Any) -> None:
    alice, _, carol = town.citizens
    serve(town)
    async with town.running():
        framed = FramedStream(await carol.network.open(alice.peer, HEARTBEAT), MAX_BEAT_BYTES)
        with pytest.raises(NetworkError):
            await framed.receive(Beat)


async def test_a_flood_of_beats_costs_the_stream(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    serve(town)
    async with town.running():
        framed = FramedStream(await alice.network.open(bob.peer, HEARTBEAT), MAX_BEAT_BYTES)
        for number in range(5):
            await framed.send(Beat(number=number, height=Height(1), card_sequence=1))
        assert (await framed.receive(Beat)).number == 0
        with pytest.raises(NetworkError):
            await framed.receive(Beat)


async def test_a_peer_without_heartbeat_is_left_alone(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    beats = Heartbeat(alice.network, alice.directory, lambda: (Height(3), 1))
    async with town.running() as nursery:
        with pytest.raises(ProtocolRefusedError):
            await alice.network.open(bob.peer, HEARTBEAT)
        nursery.start_soon(beats.run)
        await trio.sleep(30)
        assert bob.peer in alice.network.connected()
