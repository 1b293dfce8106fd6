"""Mesh: acknowledged, bounded, restored after breaks, validators only."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import trio

from nsllm.ids import Address
from nsllm.p2p.errors import NetworkError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.memory import MemoryNetwork
from nsllm.p2p.protocols import mesh as mesh_module
from nsllm.p2p.protocols.dialogue import Refused
from nsllm.p2p.protocols.mesh import (
    ACK_DELAY_S,
    BATCH,
    MAX_MESH_BYTES,
    MAX_PAYLOAD_BYTES,
    MESH,
    MeshAnswer,
    MeshClient,
    MeshFrame,
    Received,
    serve_mesh,
)

Got = list[tuple[Address, str, bytes]]


def serve(town: Any) -> Got:
    got: Got = []

    async def deliver(sender: Address, kind: str, payload: bytes) -> None:
        got.append((sender, kind, payload))

    for citizen in town.citizens:
        citizen.network.handle(MESH, serve_mesh(citizen.directory, deliver))
    return got


def client_of(citizen: Any) -> MeshClient:
    return MeshClient(citizen.network, citizen.directory, random.Random(3))


async def test_messages_arrive_in_order_from_a_known_sender(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    got = serve(town)
    client = client_of(alice)
    client.send(bob.address, "consensus", b"before run")
    async with town.running() as nursery:
        nursery.start_soon(client.run)
        for number in range(100):
            client.send(bob.address, "observation", bytes([number]))
        await trio.sleep(5)
    assert got[0] == (alice.address, "consensus", b"before run")
    assert got[1:] == [(alice.address, "observation", bytes([number])) for number in range(100)]
    assert client.queued(bob.address) == 0
    assert client.queued(Address(bytes(20))) == 0


async def test_one_stream_carries_many_messages(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    serve(town)
    client = client_of(alice)
    async with town.running() as nursery:
        nursery.start_soon(client.run)
        for _ in range(20):
            client.send(bob.address, "consensus", b"x")
            await trio.sleep(0.5)
    assert [event[1] for event in town.trace if event[4] == MESH].count("open") == 1


async def test_what_a_cut_held_up_arrives_after_it(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    got = serve(town)
    client = client_of(alice)
    async with town.running() as nursery:
        nursery.start_soon(client.run)
        client.send(bob.address, "consensus", b"first")
        await trio.sleep(1)
        town.world.cut(alice.peer, bob.peer)
        client.send(bob.address, "consensus", b"second")
        await trio.sleep(60)
        town.world.heal()
        await trio.sleep(20)
    assert next(payload for _, _, payload in got) == b"first"
    assert {payload for _, _, payload in got} == {b"first", b"second"}


async def test_a_peer_that_comes_back_elsewhere_gets_what_waited(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    got = serve(town)
    client = client_of(alice)
    async with alice.network.run(), trio.open_nursery() as nursery:

        async def live() -> None:
            async with bob.network.run():
                await trio.sleep_forever()

        nursery.start_soon(live)
        await trio.sleep(1)
        await alice.network.connect(bob.where)
        nursery.start_soon(client.run)
        client.send(bob.address, "consensus", b"one")
        await trio.sleep(1)
        town.world.kill(bob.peer)
        for number in range(5):
            client.send(bob.address, "consensus", bytes([number]))
        await trio.sleep(30)
        bob.reborn()
        serve_again = serve_mesh(bob.directory, _collect(got))
        bob.network.handle(MESH, serve_again)
        nursery.start_soon(live)
        await trio.sleep(1)
        await alice.network.connect(bob.where)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert [payload for _, _, payload in got] == [b"one", *(bytes([number]) for number in range(5))]


def _collect(got: Got) -> Any:
    async def deliver(sender: Address, kind: str, payload: bytes) -> None:
        got.append((sender, kind, payload))

    return deliver


async def test_a_full_queue_drops_its_oldest(town: Any, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_module, "QUEUE_LENGTH", 3)
    alice, bob = town.citizens[:2]
    got = serve(town)
    client = client_of(alice)
    for number in range(10):
        client.send(bob.address, "consensus", bytes([number]))
    assert client.queued(bob.address) == 3
    assert client.dropped() == 7
    async with town.running() as nursery:
        nursery.start_soon(client.run)
        await trio.sleep(5)
    assert [payload for _, _, payload in got] == [b"\7", b"\x08", b"\x09"]


async def test_an_unacknowledged_message_is_sent_again(town: Any, autojump_clock: Any) -> None:
    """A handler that fails has not taken the message."""
    alice, bob = town.citizens[:2]
    got: list[bytes] = []
    failures = [True, True]

    async def deliver(sender: Address, kind: str, payload: bytes) -> None:
        if failures:
            failures.pop()
            raise RuntimeError("not yet")
        got.append(payload)

    bob.network.handle(MESH, serve_mesh(bob.directory, deliver))
    client = client_of(alice)
    async with town.running() as nursery:
        nursery.start_soon(client.run)
        client.send(bob.address, "consensus", b"kept")
        await trio.sleep(10)
    assert got == [b"kept"]


async def test_validators_only(make_town: Callable[..., Any], autojump_clock: Any) -> None:
    town = make_town(members=3, strangers=1)
    got = serve(town)
    bob = town.citizens[1]
    async with town.running():
        for outsider in town.citizens[2:]:
            framed = FramedStream(await outsider.network.open(bob.peer, MESH), MAX_MESH_BYTES)
            await framed.send(MeshFrame(number=1, kind="consensus", payload=b"x"))
            answer = (await framed.receive(MeshAnswer)).answer
            assert isinstance(answer, Refused)
            assert "validators" in answer.reason
    assert got == []


@pytest.mark.parametrize("numbers", [[2], [1, 1], [1, 3]])
async def test_numbers_out_of_turn_cost_the_stream(town: Any, autojump_clock: Any, numbers: list[int]) -> None:
    alice, bob = town.citizens[:2]
    got = serve(town)
    async with town.running():
        framed = FramedStream(await alice.network.open(bob.peer, MESH), MAX_MESH_BYTES)
        for number in numbers:
            await framed.send(MeshFrame(number=number, kind="consensus", payload=b"x"))
        with pytest.raises(NetworkError):
            for _ in numbers:
                await framed.receive(MeshAnswer)
    assert len(got) == len(numbers) - 1


async def test_bounds(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    got = serve(town)
    client = client_of(alice)
    with pytest.raises(ValueError, match="limit"):
        client.send(bob.address, "consensus", bytes(MAX_PAYLOAD_BYTES + 1))
    async with town.running() as nursery:
        nursery.start_soon(client.run)
        client.send(bob.address, "consensus", bytes(MAX_PAYLOAD_BYTES))
        client.send(Address(bytes(20)), "consensus", b"to nobody")
        await trio.sleep(10)
        stream = await alice.network.open(bob.peer, MESH)
        await stream.send_all((1 << 30).to_bytes(4, "big"))
        assert await stream.receive_some() == b""
    assert [len(payload) for _, _, payload in got] == [MAX_PAYLOAD_BYTES]


async def test_an_idle_stream_is_closed_and_opened_anew(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    got = serve(town)
    client = client_of(alice)
    async with town.running() as nursery:
        nursery.start_soon(client.run)
        client.send(bob.address, "consensus", b"one")
        await trio.sleep(700)
        client.send(bob.address, "consensus", b"two")
        await trio.sleep(10)
    assert [payload for _, _, payload in got] == [b"one", b"two"]
    assert isinstance(alice.network, MemoryNetwork)


async def test_nothing_waits_for_an_acknowledgement(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    arrived: list[float] = []

    async def deliver(sender: Address, kind: str, payload: bytes) -> None:
        arrived.append(trio.current_time())

    bob.network.handle(MESH, serve_mesh(bob.directory, deliver))
    client = client_of(alice)
    async with town.running() as nursery:
        nursery.start_soon(client.run)
        client.send(bob.address, "consensus", b"opens the stream")
        await trio.sleep(5)
        for _ in range(3):
            client.send(bob.address, "consensus", b"x")
            await trio.sleep(0.001)
        await trio.sleep(5)
    assert arrived[3] - arrived[1] < ACK_DELAY_S


async def test_frames_are_acknowledged_together(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    got = serve(town)
    numbers = []
    async with town.running():
        framed = FramedStream(await alice.network.open(bob.peer, MESH), MAX_MESH_BYTES)
        frames = [MeshFrame(number=number, kind="consensus", payload=b"x") for number in range(1, 41)]
        await framed.send_together(frames)
        while not numbers or numbers[-1] < 40:
            answer = (await framed.receive(MeshAnswer)).answer
            assert isinstance(answer, Received)
            numbers.append(answer.number)
    assert numbers == [BATCH, 40]
    assert len(got) == 40


@pytest.mark.parametrize("number", [0, 2])
async def test_an_acknowledgement_of_what_was_not_sent_costs_the_stream(
    town: Any, autojump_clock: Any, number: int
) -> None:
    alice, bob = town.citizens[:2]
    streams: list[str] = []

    async def lying(stream: Any) -> None:
        framed = FramedStream(stream, MAX_MESH_BYTES)
        frame = await framed.receive(MeshFrame)
        streams.append(bytes(frame.payload).decode())
        await framed.send(MeshAnswer(answer=Received(number=number)))
        assert await stream.receive_some() == b""

    bob.network.handle(MESH, lying)
    client = client_of(alice)
    async with town.running() as nursery:
        nursery.start_soon(client.run)
        client.send(bob.address, "consensus", b"once more")
        await trio.sleep(3)
    assert len(streams) > 1
    assert set(streams) == {"once more"}


async def test_a_receiver_that_acknowledges_nothing_costs_the_stream(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    opened: list[float] = []

    async def silent(stream: Any) -> None:
        opened.append(trio.current_time())
        while await stream.receive_some():
            pass

    bob.network.handle(MESH, silent)
    client = client_of(alice)
    async with town.running() as nursery:
        nursery.start_soon(client.run)
        for _ in range(300):
            client.send(bob.address, "consensus", b"x")
            await trio.sleep(0.1)
        await trio.sleep(5)
    assert [round(later - sooner) for sooner, later in itertools.pairwise(opened)] == [10, 10, 10]
