"""The switchboard as a process: it hears commands on its standard input, one JSON line each, and answers each.

So carrying never waits for what the scenario does meanwhile. It ends when its standard input does.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, assert_never

import msgspec
import psutil
import trio

from nsllm.simulations.errors import ScenarioError
from nsllm.simulations.switchboard import Switchboard

ANSWER_S: Final = 60.0
"""Longest wait for its answer; it has hardly anything to do."""


class Know(msgspec.Struct, frozen=True, tag="know"):
    """Whose processes run."""

    pids: dict[int, int]
    """By peer."""


class Part(msgspec.Struct, frozen=True, tag="part"):
    """See `Switchboard.part`."""

    one: tuple[int, ...]
    other: tuple[int, ...]


class Heal(msgspec.Struct, frozen=True, tag="heal"):
    """See `Switchboard.heal`."""


class Slow(msgspec.Struct, frozen=True, tag="slow"):
    """See `Switchboard.slow`."""

    delay_s: float
    spread_s: float
    peers: tuple[int, ...]


Command = Know | Part | Heal | Slow


class Answer(msgspec.Struct, frozen=True):
    """The command is carried out."""

    doors: tuple[int, ...]
    """Port of each peer's door."""
    passed_bytes: int
    """All that arrived so far, as it stands on the wire."""


class _Bytes(Protocol):
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray: ...


@dataclass(slots=True)
class _Lines:
    """Lines of a stream of bytes."""

    stream: _Bytes
    unread: bytearray = field(default_factory=bytearray)

    async def next(self) -> bytes:
        """The next line; empty at the end."""
        while b"\n" not in self.unread:
            data = await self.stream.receive_some()
            if not data:
                return b""
            self.unread += data
        line, _, rest = bytes(self.unread).partition(b"\n")
        self.unread = bytearray(rest)
        return line


class SwitchboardProcess:
    """The scenario's end: starts the process and commands it. `stop` ends it."""

    def __init__(self, process: trio.Process, doors: tuple[int, ...]) -> None:
        """Use `start` instead."""
        assert process.stdout is not None
        self._process = process
        self._answers = _Lines(process.stdout)
        self.doors = doors
        """Port of each peer's door."""

    @classmethod
    async def start(cls, ports: Sequence[int], seed: int) -> SwitchboardProcess:
        """A switchboard before peers that listen on `ports`, with its doors open.

        Raises:
            ScenarioError: it did not start.
        """
        command = [sys.executable, "-m", "nsllm.simulations.switchboard_process", str(seed), *map(str, ports)]
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        started = cls(process, ())
        try:
            started.doors = (await started._told()).doors
        except BaseException:
            await started.stop()
            raise
        return started

    async def know(self, pids: Mapping[int, int]) -> None:
        """These are the peers' processes."""
        await self._command(Know(dict(pids)))

    async def part(self, one: Iterable[int], other: Iterable[int]) -> None:
        """See `Switchboard.part`."""
        await self._command(Part(tuple(one), tuple(other)))

    async def heal(self) -> None:
        """See `Switchboard.heal`."""
        await self._command(Heal())

    async def slow(self, delay_s: float, spread_s: float, peers: Iterable[int]) -> None:
        """See `Switchboard.slow`."""
        await self._command(Slow(delay_s, spread_s, tuple(peers)))

    async def passed_bytes(self) -> int:
        """All that arrived so far."""
        return (await self._command(Part((), ()))).passed_bytes

    async def stop(self) -> None:
        """End it; every connection between peers is gone. Not cancelled with its caller."""
        with trio.CancelScope(shield=True):
            self._process.kill()
            await self._process.wait()

    async def _command(self, command: Command) -> Answer:
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(msgspec.json.encode(command) + b"\n")
        except trio.BrokenResourceError:
            raise _gone() from None
        return await self._told()

    async def _told(self) -> Answer:
        line = b""
        with trio.move_on_after(ANSWER_S):
            line = await self._answers.next()
        if not line:
            raise _gone()
        return msgspec.json.decode(line, type=Answer)


def _gone() -> ScenarioError:
    return ScenarioError("the switchboard between the peers does not answer", hint="see what it wrote above")


class _Callers:
    """Which peer's process has a connection, as the system says."""

    def __init__(self) -> None:
        self.pids: dict[int, int] = {}

    async def at(self, port: int) -> int | None:
        """The peer whose process has the connection that comes from a port of this machine."""
        return await trio.to_thread.run_sync(self._at, port)

    def _at(self, port: int) -> int | None:
        for index, pid in self.pids.items():
            try:
                connections = psutil.Process(pid).net_connections("tcp")
            except psutil.Error:
                continue  # it has just ended
            if any(connection.laddr and connection.laddr.port == port for connection in connections):
                return index
        return None


async def _serve(seed: int, ports: Sequence[int]) -> None:
    callers = _Callers()
    board = Switchboard(ports, callers.at, random.Random(seed))  # noqa: S311 - delays, no secret
    commands = _Lines(trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())))
    answers = trio.lowlevel.FdStream(os.dup(sys.stdout.fileno()))
    async with trio.open_nursery() as nursery:
        await nursery.start(board.run)
        while True:
            await answers.send_all(msgspec.json.encode(Answer(board.doors, board.passed_bytes())) + b"\n")
            line = await commands.next()
            if not line:
                break
            _obey(board, callers, msgspec.json.decode(line, type=Command))
        nursery.cancel_scope.cancel()


def _obey(board: Switchboard, callers: _Callers, command: Command) -> None:
    match command:
        case Know(pids=pids):
            callers.pids = pids
        case Part(one=one, other=other):
            board.part(one, other)
        case Heal():
            board.heal()
        case Slow(delay_s=delay_s, spread_s=spread_s, peers=peers):
            board.slow(delay_s, spread_s, peers=peers)
        case _:
            assert_never(command)


if __name__ == "__main__":
    trio.run(_serve, int(sys.argv[1]), [int(port) for port in sys.argv[2:]])
