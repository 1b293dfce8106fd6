"""The switchboard: carries what peers say, in order; holds it back and delays it; lets no stranger pass."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import psutil
import pytest
import trio

from nsllm.simulations.errors import ScenarioError
from nsllm.simulations.switchboard import HOST, Switchboard
from nsllm.simulations.switchboard_process import SwitchboardProcess

SILENCE_S = 0.3
"""In this time something would have arrived on loopback."""


class Town:
    """Two peers that only listen; whoever dials is peer 0, unless it is a stranger."""

    def __init__(self, stack: AsyncExitStack, nursery: trio.Nursery) -> None:
        self.stack, self.nursery = stack, nursery
        self.caller: int | None = 0
        self.inbound: trio.MemoryReceiveChannel[trio.SocketStream]

    async def open(self) -> Town:
        send, self.inbound = trio.open_memory_channel[trio.SocketStream](8)
        (listener,) = await trio.open_tcp_listeners(0, host=HOST)

        async def accept(stream: trio.SocketStream) -> None:
            await send.send(stream)
            await trio.sleep_forever()

        self.nursery.start_soon(trio.serve_listeners, accept, [listener])
        port = listener.socket.getsockname()[1]
        self.board = Switchboard([port, port], self.caller_at, random.Random(1))
        await self.nursery.start(self.board.run)
        return self

    async def caller_at(self, _port: int) -> int | None:
        return self.caller

    async def dial(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(HOST, self.board.doors[1])

    async def call(self) -> tuple[trio.SocketStream, trio.SocketStream]:
        """Both ends of a new connection from peer 0 to peer 1."""
        mine = await self.dial()
        with trio.fail_after(5):
            return mine, await self.inbound.receive()


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        yield await Town(stack, nursery).open()
        nursery.cancel_scope.cancel()


async def heard(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    with trio.fail_after(10):
        while len(data) < count:
            more = await stream.receive_some(count - len(data))
            assert more, f"ended after {len(data)} bytes"
            data += more
    return data


async def silent(stream: trio.SocketStream) -> bool:
    with trio.move_on_after(SILENCE_S):
        await stream.receive_some(1)
        return False
    return True


async def test_what_is_said_arrives_both_ways_and_so_does_the_end(town: Town) -> None:
    mine, theirs = await town.call()
    said = random.Random(2).randbytes(1_000_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mine.send_all, said)
        assert await heard(theirs, len(said)) == said
    await theirs.send_all(b"yes")
    assert await heard(mine, 3) == b"yes"
    assert town.board.passed_bytes() == len(said) + 3
    await mine.send_eof()
    assert await theirs.receive_some() == b""
    await theirs.send_all(b"but")
    assert await heard(mine, 3) == b"but"
    await theirs.aclose()
    assert await mine.receive_some() == b""


async def test_what_is_held_waits_in_order_and_arrives_after(town: Town) -> None:
    mine, theirs = await town.call()
    town.board.part([0], [1])
    await mine.send_all(b"one ")
    await theirs.send_all(b"back")
    assert await silent(theirs)
    assert await silent(mine)
    await mine.send_all(b"two")
    town.board.heal()
    assert await heard(theirs, 7) == b"one two"
    assert await heard(mine, 4) == b"back"


async def test_who_ends_while_parted_is_missed_after(town: Town) -> None:
    mine, theirs = await town.call()
    town.board.part([1], [0])
    await mine.send_all(b"last words")
    await mine.aclose()
    assert await silent(theirs)
    town.board.heal()
    assert await heard(theirs, 10) == b"last words"
    with trio.fail_after(5):
        assert await theirs.receive_some() == b""


async def test_nobody_is_reached_while_parted(town: Town) -> None:
    town.board.part([0], [1])
    mine = await town.dial()
    await mine.send_all(b"hello")
    with trio.move_on_after(SILENCE_S) as scope:
        await town.inbound.receive()
    assert scope.cancelled_caught
    town.board.heal()
    with trio.fail_after(5):
        theirs = await town.inbound.receive()
    assert await heard(theirs, 5) == b"hello"


async def test_delays_keep_the_order(town: Town) -> None:
    mine, theirs = await town.call()
    town.board.slow(0.2, 0.2)
    began_s = trio.current_time()
    for number in range(20):
        await mine.send_all(bytes([number]))
        await trio.sleep(0.005)
    assert await heard(theirs, 20) == bytes(range(20))
    assert trio.current_time() - began_s >= 0.2
    town.board.slow(0.0, 0.0, peers=[1])
    began_s = trio.current_time()
    await mine.send_all(b"x")
    assert await heard(theirs, 1) == b"x"
    assert trio.current_time() - began_s < 0.2


@pytest.mark.parametrize("caller", [None, 1], ids=["a stranger", "itself"])
async def test_strangers_are_hung_up_on(town: Town, caller: int | None) -> None:
    town.caller = caller
    mine = await town.dial()
    with trio.fail_after(5):
        assert await mine.receive_some() == b""
    with pytest.raises(trio.WouldBlock):
        town.inbound.receive_nowait()


async def test_a_peer_that_does_not_run_hangs_up() -> None:
    async def caller_at(_port: int) -> int:
        return 0

    async with trio.open_nursery() as nursery:
        board = Switchboard([1, 1], caller_at, random.Random(1))  # nobody listens on port 1
        await nursery.start(board.run)
        mine = await trio.open_tcp_stream(HOST, board.doors[1])
        with trio.fail_after(5):
            assert await mine.receive_some() == b""
        nursery.cancel_scope.cancel()


async def test_as_a_process_it_knows_callers_by_their_processes() -> None:
    """This process stands for both peers."""
    heard_of: list[bytes] = []
    (listener,) = await trio.open_tcp_listeners(0, host=HOST)

    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            heard_of.append(data)
            await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        board = await SwitchboardProcess.start([1, listener.socket.getsockname()[1]], 1)
        try:
            stranger = await trio.open_tcp_stream(HOST, board.doors[1])
            with trio.fail_after(10):
                assert await stranger.receive_some() == b""
            await board.know({0: os.getpid()})
            await board.part([0], [1])
            mine = await trio.open_tcp_stream(HOST, board.doors[1])
            await mine.send_all(b"hello")
            assert await silent(mine)
            assert heard_of == []
            await board.heal()
            assert await heard(mine, 5) == b"hello"
            await board.slow(0.3, 0.0, [1])
            began_s = trio.current_time()
            await mine.send_all(b"again")
            assert await heard(mine, 5) == b"again"
            assert trio.current_time() - began_s >= 0.6  # there and back
            assert await board.passed_bytes() == 20
        finally:
            await board.stop()
        with trio.fail_after(10):
            assert await mine.receive_some() == b""
        with pytest.raises(ScenarioError, match="does not answer"):
            await board.heal()
        nursery.cancel_scope.cancel()


async def test_it_ends_with_its_scenario() -> None:
    script = "import trio, os, signal\n"
    script += "from nsllm.simulations.switchboard_process import SwitchboardProcess as S\n"
    script += "board = trio.run(S.start, [1, 1], 1)\n"
    script += "print(board._process.pid, flush=True)\n"
    script += "os.kill(os.getpid(), signal.SIGKILL)\n"
    done = await trio.run_process([sys.executable, "-c", script], capture_stdout=True, check=False)
    board = psutil.Process(int(done.stdout)) if psutil.pid_exists(int(done.stdout)) else None
    assert board is None or await trio.to_thread.run_sync(lambda: board.wait(timeout=10)) is None
