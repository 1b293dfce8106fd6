"""Real peers in real processes: one bootstrap, votes, gossip, pointers; kill -9, SIGSTOP, garbage."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from nsllm.p2p.identity import PeerKey

SCRIPT = Path(__file__).parent / "process_peer.py"

pytestmark = pytest.mark.process


def peer_id(number: int) -> str:
    return PeerKey(bytes([number]) * 32).peer_id


class Process:
    """A peer process and its command line."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.buffer = b""
        self.addresses: list[str] = []

    async def read(self) -> dict[str, Any]:
        while b"\n" not in self.buffer:
            chunk = await self.process.stdout.receive_some(65536)
            assert chunk, "the peer process ended"
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    async def call(self, *command: Any) -> Any:
        """The command's result, or the name of its error."""
        await self.process.stdin.send_all(json.dumps(command).encode() + b"\n")
        with trio.fail_after(15):
            answer = await self.read()
        return answer.get("ok", answer.get("error"))

    async def until(self, wanted: Callable[[Any], bool], *command: Any, seconds: float = 20) -> Any:
        """Repeat a command until its result is as wanted."""
        result = None
        with trio.move_on_after(seconds):
            while not wanted(result := await self.call(*command)):
                await trio.sleep(0.05)
            return result
        raise AssertionError(f"{command} was still {result} after {seconds} s")


@asynccontextmanager
async def peer(number: int, members: int, *bootstrap: str, port: int = 0) -> AsyncIterator[Process]:
    command = [sys.executable, str(SCRIPT), str(number), str(members), str(port), *bootstrap]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    handle = Process(process)
    try:
        with trio.fail_after(40):
            handle.addresses = (await handle.read())["ok"]
        yield handle
    finally:
        with trio.CancelScope() as scope:
            scope.shield = True
            process.kill()
            await process.wait()


async def all_of(*calls: Callable[[], Awaitable[Any]]) -> None:
    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(call)


async def test_four_processes() -> None:
    async with peer(1, 4) as first:
        where = first.addresses[0]
        async with peer(2, 4, where) as second, peer(3, 4, where) as third, peer(4, 4, where) as fourth:
            peers = [first, second, third, fourth]
            for process in peers:
                await process.until(lambda got: len(got) == 3, "greeted")

            # Votes: every validator to every other, acknowledged.
            for number, process in enumerate(peers, start=1):
                for other in range(1, 5):
                    if other != number:
                        await process.call("mesh", other, f"{number:02x}")
            for number, process in enumerate(peers, start=1):
                got = await process.until(lambda got: len(got) == 3, "mesh_got")
                assert sorted(payload for _, _, payload in got) == [f"{n:02x}" for n in range(1, 5) if n != number]
                assert [await process.call("mesh_queued", n) for n in range(1, 5)] == [0] * 4

            # Gossip: the mesh forms within a heartbeat or two; announcements before that may be lost.
            height = 0
            for process in (second, third, fourth):
                for _ in range(40):
                    if await process.call("blocks"):
                        break
                    height += 1
                    await first.call("announce", height)
                    await trio.sleep(0.2)
                assert await process.call("blocks")

            # Pointers, from each process, also for keys beyond the library's ten in ten seconds.
            keys = [f"{n:064x}" for n in range(24)]
            for key in keys:
                await second.call("provide", key)
            await third.call("provide", keys[0])
            await fourth.until(lambda got: got == sorted([peer_id(2), peer_id(3)]), "find", keys[0])
            for process in (first, third, fourth):
                await process.until(lambda got: got == [peer_id(2)], "find", keys[23])
            assert await first.call("find", "ff" * 32) == []

            # Heartbeats measure.
            await first.until(lambda got: got is not None and 0 < got < 5, "rtt", peer_id(3))

            # kill -9: the others notice; it comes back on another port and is found, with what waited for it.
            fourth.process.send_signal(signal.SIGKILL)
            await fourth.process.wait()
            await first.until(lambda got: peer_id(4) not in got, "connected")
            await first.call("mesh", 4, "aa")
            async with peer(4, 4, second.addresses[0]) as again:
                assert again.addresses != fourth.addresses
                for process in (first, second, third):
                    await process.until(lambda got: len(got) == 3, "greeted")
                await again.until(lambda got: [sent for _, _, sent in got] == ["aa"], "mesh_got")
                # Keys that were announced before it was there are found, and asked of it.
                await again.until(lambda got: got == [peer_id(2)], "find", keys[5])


async def test_two_processes_with_trouble() -> None:
    async with peer(1, 2) as first, peer(2, 2, first.addresses[0]) as second:
        await all_of(
            lambda: first.until(lambda got: len(got) == 1, "greeted"),
            lambda: second.until(lambda got: len(got) == 1, "greeted"),
        )
        # A handler with a bug costs its stream.
        for _ in range(3):
            assert await second.call("open", peer_id(1), "/test/broken/1") in {"", "UnreachableError"}
        assert await second.call("echo", peer_id(1), "alive") == "alive"

        # Garbage on the TCP port, a half-open handshake, a connection that says nothing.
        port = int(first.addresses[0].split("/")[4])
        silent = await trio.open_tcp_stream("127.0.0.1", port)
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100_000, b"\x13/multistream/1.0.0\n\x07/noise\n\xff\xff"):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            with suppress(trio.BrokenResourceError):
                await stream.send_all(garbage)
            await stream.aclose()
        assert await second.call("echo", peer_id(1), "still alive") == "still alive"
        await silent.aclose()

        # A frozen peer hangs nobody: calls end at their deadline, heartbeats drop the connection.
        second.process.send_signal(signal.SIGSTOP)
        assert await first.call("echo", peer_id(2), "hello?") in {"TooSlowError", "UnreachableError", ""}
        await first.until(lambda got: got == [], "connected")
        second.process.send_signal(signal.SIGCONT)
        await first.until(lambda got: got == [peer_id(2)], "greeted", seconds=30)
        assert await first.call("echo", peer_id(2), "back") == "back"
