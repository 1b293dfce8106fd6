"""The libp2p network in one process, on real sockets."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import multiaddr
import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.ping import PingService
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo

from nsllm.clock import SystemClock
from nsllm.consensus.registry import Member, MemberRegistry, RegistryState
from nsllm.crypto import MemberKey
from nsllm.ids import ZERO_DIGEST, Address, NetworkId
from nsllm.p2p import libp2p_stream
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import FrameError, ProtocolRefusedError, StreamClosedError, UnreachableError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.guard import StreamLimits
from nsllm.p2p.identity import PeerKey
from nsllm.p2p.libp2p_host import dialable, parse
from nsllm.p2p.libp2p_network import Libp2pNetwork
from nsllm.p2p.libp2p_pointers import TOLD
from nsllm.p2p.network import Stream
from nsllm.p2p.protocols.dialogue import Refused
from nsllm.p2p.protocols.generate import (
    GENERATE,
    GeneratePiece,
    GenerateRequest,
    Pieces,
    generate,
    serve_generate,
)
from nsllm.p2p.protocols.mesh import MAX_MESH_BYTES, MESH, MeshAnswer, MeshClient, MeshFrame, serve_mesh
from nsllm.record import Message, Request, Sampling

ECHO = "/test/echo/1"
LOOPBACK = "/ip4/127.0.0.1/tcp/0"


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


def network(number: int, **settings: Any) -> Libp2pNetwork:
    made = Libp2pNetwork(**{"secret": bytes([number]) * 32, "listen": [LOOPBACK], "local": True} | settings)
    made.handle(ECHO, echo)
    return made


@asynccontextmanager
async def running(*networks: Libp2pNetwork, connected: bool = True) -> AsyncIterator[None]:
    with trio.fail_after(30):
        async with AsyncExitStack() as stack:
            for one in networks:
                await stack.enter_async_context(one.run())
            if connected:
                for one in networks[1:]:
                    await one.connect(networks[0].addresses()[0])
            yield


async def ask(one: Libp2pNetwork, other: Libp2pNetwork, text: bytes = b"hi") -> bytes:
    stream = await one.open(other.peer_id, ECHO)
    await stream.send_all(text)
    answer = await stream.receive_some()
    await stream.aclose()
    return answer


async def eventually(condition: Any) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.01)


async def test_streams_both_ways() -> None:
    one, other = network(1), network(2)
    assert one.addresses() == ()
    assert one.connected() == ()
    async with running(one, other):
        assert one.addresses()[0].endswith(f"/p2p/{one.peer_id}")
        assert other.connected() == (one.peer_id,)
        await eventually(lambda: one.connected() == (other.peer_id,))
        assert await ask(other, one) == b"hi"
        assert await ask(one, other) == b"hi"
        assert await other.connect(one.addresses()[0]) == one.peer_id
        assert await one.connect(one.addresses()[0]) == one.peer_id
        with pytest.raises(ProtocolRefusedError):
            await other.open(one.peer_id, "/test/unknown/1")
    assert one.addresses() == ()
    with pytest.raises(StreamClosedError, match="not running"):
        await one.connect(LOOPBACK)


async def test_a_megabyte_there_and_back_in_order() -> None:
    one, other = network(1), network(2)
    data = random.Random(1).randbytes(1 << 20)
    async with running(one, other):
        stream = await other.open(one.peer_id, ECHO)
        got = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            while len(got) < len(data):
                got += await stream.receive_some()
        assert bytes(got) == data


async def test_the_port_is_free_again_and_the_peer_is_found_at_its_new_one() -> None:
    one, other = network(1), network(2)
    async with running(other):
        async with running(one):
            first = one.addresses()[0]
            await other.connect(first)
        await eventually(lambda: other.connected() == ())
        with pytest.raises(UnreachableError):
            await other.connect(first)
        port = int(first.split("/")[4])
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
        again = network(1)
        async with running(again):
            assert again.addresses()[0] != first
            await other.connect(again.addresses()[0])
            assert await ask(other, again) == b"hi"


async def test_two_peers_never_share_a_port() -> None:
    one = network(1)
    async with running(one):
        port = one.addresses()[0].split("/")[4]
        with pytest.raises(UnreachableError, match=f"cannot listen on .*{port}"):
            async with network(2, listen=[f"/ip4/127.0.0.1/tcp/{port}"]).run():
                pass


async def test_a_busy_port_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        one = network(1, listen=[f"/ip4/127.0.0.1/tcp/{port}"])
        with pytest.raises(UnreachableError, match=f"cannot listen on .*{port}"):
            async with one.run():
                pass
    async with running(one):
        assert one.addresses()[0].split("/")[4] == str(port)


async def test_an_error_inside_comes_out() -> None:
    with pytest.raises(LookupError, match="of the caller"):
        async with network(1).run():
            raise LookupError("of the caller")


@pytest.mark.parametrize("address", ["nonsense", "/ip4/127.0.0.1/tcp/1", "/ip4/999.0.0.1/tcp/1/p2p/x", "/p2p/x"])
async def test_addresses_that_are_none(address: str) -> None:
    one = network(1)
    async with running(one):
        with pytest.raises(UnreachableError):
            await one.connect(address)


async def test_another_identity_at_the_address_is_refused() -> None:
    one, other = network(1), network(2)
    impostor = PeerKey(bytes([9]) * 32).peer_id
    async with running(one, other, connected=False):
        with pytest.raises(UnreachableError):
            await other.connect(one.addresses()[0].replace(one.peer_id, impostor))
        assert other.connected() == ()
        await other.connect(one.addresses()[0])


async def test_private_addresses_are_dialled_in_local_networks_only() -> None:
    one, public = network(1), network(2, local=False)
    async with running(one, public, connected=False):
        with pytest.raises(UnreachableError, match="private range"):
            await public.connect(one.addresses()[0])
        name = one.addresses()[0].replace("/ip4/127.0.0.1", "/dns4/localhost")
        with pytest.raises(UnreachableError):
            await public.connect(name)
        await one.connect(public.addresses()[0])
        assert await ask(public, one) == b"hi"


async def test_a_handler_that_raises_costs_its_stream_only() -> None:
    async def broken(stream: Stream) -> None:
        await stream.receive_some()
        raise RuntimeError("a bug")

    one, other = network(1), network(2)
    one.handle("/test/broken/1", broken)
    async with running(one, other):
        for _ in range(3):
            stream = await other.open(one.peer_id, "/test/broken/1")
            await stream.send_all(b"x")
            assert await stream.receive_some() == b""
        assert await ask(other, one) == b"hi"


async def test_inbound_streams_are_bounded_and_given_back() -> None:
    one, other = network(1, limits=StreamLimits(per_peer=4, total=8)), network(2)
    async with running(one, other):
        streams = [await other.open(one.peer_id, ECHO) for _ in range(4)]
        with pytest.raises((UnreachableError, StreamClosedError, EOFError)):
            fifth = await other.open(one.peer_id, ECHO)
            await fifth.send_all(b"x")
            if not await fifth.receive_some():
                raise EOFError
        for stream in streams:
            await stream.aclose()
        await eventually(lambda: one._guard.admits(other.peer_id))
        for _ in range(20):
            assert await ask(other, one) == b"hi"


async def test_closed_streams_leave_nothing_behind() -> None:
    one, other = network(1), network(2)
    async with running(one, other):
        for _ in range(100):
            await ask(other, one)
        swarm = one._host.get_network()
        (connection,) = swarm.get_connections()
        await eventually(lambda: len(connection.muxed_conn.streams) < 10)


async def test_a_stream_that_the_other_end_never_closes_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-closed streams stay in the library's books as long as the connection lives."""

    async def stubborn(stream: Stream) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(libp2p_stream, "LINGER_S", 0.2)
    one, other = network(1), network(2)
    one.handle("/test/stubborn/1", stubborn)
    async with running(one, other):
        (connection,) = other._host.get_network().get_connections()
        stream = await other.open(one.peer_id, "/test/stubborn/1")
        number = stream._inner.muxed_stream.stream_id
        await stream.aclose()
        await eventually(lambda: number not in connection.muxed_conn.streams)


async def test_cancelled_writes_leave_the_connection_whole() -> None:
    """A write cut off between encryption and sending would cost every stream of the connection."""
    one, other = network(1), network(2)
    async with running(one, other):
        steady = await other.open(one.peer_id, ECHO)
        for number in range(200):
            with trio.move_on_after(0.0002 * (number % 5)):
                stream = await other.open(one.peer_id, ECHO)
                await stream.send_all(bytes(50_000))
        await steady.send_all(b"whole")
        got = b""
        while len(got) < 5:
            got += await steady.receive_some()
        assert got == b"whole"


async def test_disconnect_is_seen_by_both_and_open_dials_again() -> None:
    one, other = network(1), network(2)
    async with running(one, other):
        await other.disconnect(one.peer_id)
        await other.disconnect(one.peer_id)
        await eventually(lambda: one.connected() == () == other.connected())
        assert await ask(other, one) == b"hi"
        with pytest.raises(UnreachableError, match="no address"):
            await other.open(PeerKey(bytes([9]) * 32).peer_id, ECHO)


async def test_gossip() -> None:
    networks = [network(number) for number in (1, 2, 3)]
    heard = [one.subscribe("news") for one in networks]
    async with running(*networks):
        with trio.fail_after(15):
            for listener in heard[1:]:
                async with trio.open_nursery() as nursery:

                    async def keep_saying() -> None:
                        while True:
                            await networks[0].publish("news", b"it is news")
                            await trio.sleep(0.3)

                    nursery.start_soon(keep_saying)
                    assert await listener.__anext__() == (networks[0].peer_id, b"it is news")
                    nursery.cancel_scope.cancel()
        with pytest.raises(ValueError, match="limit"):
            await networks[0].publish("news", bytes(100_000))


async def test_a_burst_of_gossip_is_paced_rather_than_lost() -> None:
    networks = [network(number) for number in (1, 2)]
    networks[0].subscribe("news")
    heard = networks[1].subscribe("news")
    async with running(*networks):
        with trio.fail_after(10):
            while True:
                await networks[0].publish("news", b"warm")
                with trio.move_on_after(0.3):
                    await heard.__anext__()
                    break
        await trio.sleep(1)
        for number in range(16):
            await networks[0].publish("news", bytes([number]))
        got = set()
        with trio.move_on_after(8):
            while len(got) < 16:
                got.add((await heard.__anext__())[1])
        assert len(got - {b"warm"}) >= 15


async def test_pointers() -> None:
    networks = [network(number) for number in (1, 2, 3)]
    key = bytes(32)
    async with running(*networks):
        await networks[1].provide(key)
        await networks[2].provide(key)
        with trio.fail_after(10):
            while await networks[0].find_providers(key) != tuple(sorted([networks[1].peer_id, networks[2].peer_id])):
                networks[0]._pointers._cache.clear()
                await trio.sleep(0.1)
        assert await networks[1].find_providers(key) == (networks[2].peer_id,)
        assert await networks[0].find_providers(key, limit=1) == (min(networks[1].peer_id, networks[2].peer_id),)
        assert await networks[0].find_providers(bytes([1])) == ()
        # The provider's address is known to whoever found it.
        assert await networks[2].find_providers(key) == (networks[1].peer_id,)
        assert await ask(networks[2], networks[1]) == b"hi"
        for bad in (b"", bytes(65)):
            with pytest.raises(ValueError, match="64"):
                await networks[0].provide(bad)


async def test_pointers_that_come_together_go_on_one_stream_to_the_closest_peers(monkeypatch) -> None:
    networks = [network(number) for number in (1, 2)]
    keys = [bytes([number]) * 32 for number in range(12)]
    told: list[tuple[str, int]] = []
    async with running(*networks):
        pointers = networks[1]._pointers
        tell = pointers._tell

        async def counted(peer, its):
            told.append((str(peer), len(its)))
            await tell(peer, its)

        monkeypatch.setattr(pointers, "_tell", counted)
        for key in keys:
            await networks[1].provide(key)
        with trio.fail_after(10):
            for key in keys:
                while await networks[0].find_providers(key) != (networks[1].peer_id,):
                    await trio.sleep(0.1)
        assert told == [(networks[0].peer_id, 12)]

        async def closest(_key):
            return list(range(20))

        async def heard(peer, its):
            told.append((peer, len(its)))

        told.clear()
        monkeypatch.setattr(pointers, "_closest", closest)
        monkeypatch.setattr(pointers, "_tell", heard)
        await pointers._announce(keys[:3])
        assert sorted(told) == [(peer, 3) for peer in range(TOLD)]


def directory_of(*numbers: int) -> PeerDirectory:
    nowhere = NetworkId(bytes(32))
    members = [
        Member(
            address=MemberKey(bytes([n]) * 32).address,
            peer_id=PeerKey(bytes([n]) * 32).peer_id,
            roles=("validator",),
        )
        for n in numbers
    ]
    return PeerDirectory(nowhere, MemberRegistry(nowhere, RegistryState.of(members)), SystemClock())


async def test_mesh_and_a_frame_that_claims_a_gigabyte() -> None:
    one, other = network(1), network(2)
    directory = directory_of(1, 2)
    got: list[bytes] = []

    async def deliver(sender: Address, kind: str, payload: bytes) -> None:
        got.append(payload)

    one.handle(MESH, serve_mesh(directory, deliver))
    client = MeshClient(other, directory, random.Random(1))
    async with running(one, other), trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        for number in range(50):
            client.send(MemberKey(bytes([1]) * 32).address, "consensus", bytes([number]) * 1000)
        await eventually(lambda: len(got) == 50)
        stream = await other.open(one.peer_id, MESH)
        await stream.send_all((1 << 30).to_bytes(4, "big") + bytes(1000))
        assert await stream.receive_some() == b""
        client.send(MemberKey(bytes([1]) * 32).address, "consensus", b"last")
        await eventually(lambda: got[-1] == b"last")
        nursery.cancel_scope.cancel()
    assert got == [*(bytes([number]) * 1000 for number in range(50)), b"last"]


async def test_a_caller_that_leaves_stops_a_completion() -> None:
    """A reset looks like an end to libp2p; either way the executor stops, and the connection stays."""
    states: list[str] = []

    @asynccontextmanager
    async def execute(request: GenerateRequest, member: Member) -> AsyncIterator[Pieces]:
        async def forever() -> Pieces:
            while True:
                yield GeneratePiece(token_ids=(1,), text="x")
                await trio.sleep(0.01)

        try:
            yield forever()
        finally:
            states.append("stopped")

    one, other = network(1), network(2)
    one.handle(GENERATE, serve_generate(directory_of(1, 2), execute))
    request = GenerateRequest(
        request=Request(
            model="m",
            model_digest=ZERO_DIGEST,
            messages=(Message(role="user", content="hi"),),
            sampling=Sampling(),
        ),
        visibility="public",
    )
    async with running(one, other):
        async with generate(other, one.peer_id, request) as events:
            async for event in events:
                assert event == GeneratePiece(token_ids=(1,), text="x")
                break
        await eventually(lambda: states == ["stopped"])
        assert await ask(other, one) == b"hi"


async def test_a_plain_libp2p_peer_may_dial_identify_and_ping_and_no_more() -> None:
    one = network(1)
    got: list[bytes] = []

    async def deliver(sender: Address, kind: str, payload: bytes) -> None:
        got.append(payload)

    one.handle(MESH, serve_mesh(directory_of(1), deliver))
    plain = new_host(key_pair=create_new_key_pair())
    async with running(one), plain.run(listen_addrs=[multiaddr.Multiaddr(LOOPBACK)]):
        base, peer = parse(one.addresses()[0])
        peer_id = ID.from_string(peer)
        await plain.connect(PeerInfo(peer_id, [base]))
        await eventually(lambda: peer_id in plain._identified_peers)
        assert MESH in plain.get_peerstore().get_protocols(peer_id)
        assert len(await PingService(plain).ping(peer_id, 2)) == 2
        inner = await plain.new_stream(peer_id, [MESH])
        from nsllm.p2p.libp2p_stream import Libp2pStream

        async with trio.open_nursery() as nursery:
            framed = FramedStream(Libp2pStream(inner, nursery), MAX_MESH_BYTES)
            await framed.send(MeshFrame(number=1, kind="consensus", payload=b"let me in"))
            assert isinstance((await framed.receive(MeshAnswer)).answer, Refused)
            with pytest.raises((StreamClosedError, FrameError)):
                await framed.receive(MeshAnswer)
            nursery.cancel_scope.cancel()
        assert len(one.connected()) == 1
    assert got == []


async def test_many_reconnects_do_not_lock_a_peer_out() -> None:
    """The library gives an inbound slot back only when the host stops; ours ends it with the connection."""
    one, other = network(1), network(2)
    async with running(one, other, connected=False):
        limiter = one._host.get_network()._inbound_limiter
        for _ in range(5):
            await other.connect(one.addresses()[0])
            await other.disconnect(one.peer_id)
        await eventually(lambda: limiter.borrowed_tokens == 0)


def test_dialable_addresses() -> None:
    assert dialable(["/ip4/1.2.3.4/tcp/5"], local=False) == ("/ip4/1.2.3.4/tcp/5",)
    own = dialable(["/ip4/0.0.0.0/tcp/5"], local=True)
    assert own
    assert all(address.startswith("/ip4/") and "0.0.0.0" not in address for address in own)
    assert all(address.endswith("/tcp/5") for address in own)
