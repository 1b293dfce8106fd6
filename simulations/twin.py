"""A devnet whose processes a scenario kills, suspends, parts and slows, and whose disks are inspected in the end.

Faults and questions come from a seed; what the processes do in between is their machine's. Peers reach each other
through a switchboard only.
"""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import psutil
import trio

from nsllm.simulations.devnet import (
    PEER_COMMAND,
    Devnet,
    DevnetEvent,
    Report,
    how_ended,
    log_tail,
    readiness,
    start_peer,
)
from nsllm.simulations.errors import ScenarioError
from nsllm.simulations.signatures import Signatures
from nsllm.simulations.switchboard import HOST
from nsllm.simulations.switchboard_process import SwitchboardProcess
from nsllm.simulations.timeline import Mark, Timeline

READY_S: Final = 300.0
ANSWER_S: Final = 180.0
SETTLE_S: Final = 120.0
"""After the last fault all peers stand at one height within this time."""
TWISTED_COMMAND: Final = (sys.executable, "-m", "nsllm.simulations.twisted_peer")
ANCHORED_S: Final = 30.0
"""Once all is level, every receipt has been anchored."""
LEVELS: Final = ("pending", "certified", "logged", "anchored")
"""Of a receipt."""


@dataclass(slots=True)
class Twin:
    """A devnet whose processes can be killed, suspended, parted and started one by one."""

    devnet: Devnet
    rng: random.Random
    report: Report
    client: httpx.AsyncClient
    board: SwitchboardProcess
    signatures: Signatures
    """Found in what killed peers left."""
    timeline: Timeline
    """What befalls the peers, in seconds since the twin was made."""
    habits: Mapping[int, str]
    """Byzantine peers, and what they do; see `nsllm.simulations.twisted`."""
    processes: dict[int, trio.Process] = field(default_factory=dict[int, trio.Process])
    promised: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    """(peer, completion) of answers that are to have a receipt."""
    killed: set[int] = field(default_factory=set[int])
    asked: int = 0
    began_s: float = field(default_factory=trio.current_time)

    @property
    def count(self) -> int:
        """Peers, all of which validate."""
        return len(self.devnet.peers)

    @property
    def faults(self) -> int:
        """So many of them may be faulty."""
        return (self.count - 1) // 3

    @property
    def honest(self) -> list[int]:
        """Peers that are not Byzantine."""
        return [index for index in range(self.count) if index not in self.habits]

    # what befalls them

    async def start(self, index: int) -> None:
        """Start a peer."""
        habit = self.habits.get(index)
        command = PEER_COMMAND if habit is None else (*TWISTED_COMMAND, "--habit", habit)
        peers = self.devnet.peers
        doors = [f"/ip4/{HOST}/tcp/{door}" for door in self.board.doors]
        others = [f"{doors[peer.index]}/p2p/{peer.peer_id}" for peer in peers if peer.index != index]
        reached = [part for other in others for part in ("--bootstrap", other)]
        if index in self.processes:
            self._mark("started", index)
        process = await start_peer(peers[index], (*command, "--announce", doors[index], *reached))
        self.processes[index] = process
        self.killed.discard(index)
        await self.board.know({number: running.pid for number, running in self.processes.items()})
        self.report(DevnetEvent("starting", index, f"process {process.pid}{f', {habit}' if habit else ''}"))

    async def kill(self, index: int) -> None:
        """SIGKILL, as a power cut would, and the process is gone; what it signed is read from its disk.

        Raises:
            InvariantError: it signed twice.
        """
        self._mark("killed", index)
        self.killed.add(index)
        self.processes[index].kill()
        await self.processes[index].wait()
        peer = self.devnet.peers[index]
        await trio.to_thread.run_sync(self.signatures.add_left, peer.data_dir, peer.address)
        self.report(DevnetEvent("exited", index, "killed"))

    def suspend(self, index: int) -> None:
        """SIGSTOP."""
        self._mark("suspended", index)
        self.processes[index].send_signal(signal.SIGSTOP)
        self.report(DevnetEvent("exited", index, "suspended"))

    def resume(self, index: int) -> None:
        """SIGCONT."""
        self._mark("resumed", index)
        self.processes[index].send_signal(signal.SIGCONT)
        self.report(DevnetEvent("starting", index, "goes on"))

    async def part(self, one: Iterable[int], other: Iterable[int]) -> None:
        """Nothing that one group of peers says reaches the other, or the other way round."""
        one, other = sorted(one), sorted(other)
        self._mark("parted", *one)
        await self.board.part(one, other)
        for index in one:
            self.report(DevnetEvent("parted", index, f"from {', '.join(map(str, other))}"))

    async def slow(self, delay_s: float, spread_s: float, peers: Iterable[int] | None = None) -> None:
        """Everything that these peers (or all) say or hear arrives so late."""
        slowed = range(self.count) if peers is None else sorted(peers)
        self._mark("slowed", *slowed)
        await self.board.slow(delay_s, spread_s, slowed)
        for index in slowed:
            self.report(DevnetEvent("slowed", index, f"by {delay_s:g} to {delay_s + spread_s:g} s each way"))

    async def heal(self) -> None:
        """Everything arrives again, what was held back first, and at once."""
        self._mark("healed")
        await self.board.heal()
        await self.board.slow(0.0, 0.0, range(self.count))
        for index in range(self.count):
            self.report(DevnetEvent("healed", index, "all links"))

    # what they say

    async def ready(self, *indices: int) -> None:
        """Wait until these peers are ready.

        Raises:
            ScenarioError: one is not in time.
        """
        for index in indices:
            await self.until(lambda index=index: self._is_ready(index), f"peer {index} ready", READY_S)  # type: ignore[misc]
            self.report(DevnetEvent("ready", index, self.devnet.peers[index].url))

    async def ask(self, index: int) -> str | None:
        """A question that nobody asked before; its completion, if that was promised a receipt.

        Raises:
            ScenarioError: no answer.
        """
        self.asked += 1
        text = f"What is {self.rng.randrange(10**6)} plus {self.asked}?"
        body = {"model": "default", "messages": [{"role": "user", "content": text}], "max_tokens": 12}
        url = f"{self.devnet.peers[index].url}/v1/chat/completions"
        try:
            answer = await self.client.post(url, json=body, timeout=ANSWER_S)
        except httpx.HTTPError as error:
            raise ScenarioError(f"peer {index} gave no answer: {type(error).__name__}") from None
        if answer.status_code != 200:
            raise ScenarioError(f"peer {index} answered with status {answer.status_code}")
        told = answer.json()
        if told["nsllm"]["publication"] != "pending":
            return None
        self.promised.append((index, told["id"]))
        return str(told["id"])

    async def receipt(self, index: int, completion: str, level: str, within_s: float) -> float:
        """Wait until the receipt of a peer's completion has reached a level; seconds that it took.

        Raises:
            ScenarioError: it has not.
        """
        url = f"{self.devnet.peers[index].url}/v1/receipts/{completion}"

        async def reached() -> bool:
            params: dict[str, str | int] = {"wait": level, "timeout_s": 20}
            try:
                answer = await self.client.get(url, params=params, timeout=60)
            except httpx.HTTPError:
                return False
            return LEVELS.index(answer.headers.get("x-nsllm-receipt", LEVELS[0])) >= LEVELS.index(level)

        return await self.until(reached, f"{completion} of peer {index} {level}", within_s)

    async def status(self, index: int) -> dict[str, Any]:
        """The peer's status; empty if it gives none."""
        try:
            answer = await self.client.get(f"{self.devnet.peers[index].url}/status.json", timeout=10)
            return dict(answer.json())
        except (httpx.HTTPError, ValueError):
            return {}

    async def height(self, *indices: int) -> int:
        """The highest block that one of these peers has."""
        views = [await self.status(index) for index in indices]
        return max((view["consensus"]["height"] for view in views if view), default=0)

    async def until(self, holds: Callable[[], Awaitable[bool]], what: str, within_s: float) -> float:
        """Wait until something holds; how long it took, in seconds.

        Raises:
            ScenarioError: it does not in time, or a peer ended by itself.
        """
        began_s = trio.current_time()
        with trio.move_on_after(within_s):
            while not await holds():
                await self._still_run()
                await trio.sleep(0.1)
            return round(trio.current_time() - began_s, 3)
        raise ScenarioError(f"not within {within_s:g} s: {what}")

    async def decided(self, above: int, within_s: float, indices: Iterable[int] | None = None) -> float:
        """Wait until one of these peers (or all) has a block above a height; seconds that it took.

        Raises:
            ScenarioError: none has.
        """
        chosen = tuple(range(self.count) if indices is None else indices)

        async def is_above() -> bool:
            return await self.height(*chosen) > above

        return await self.until(is_above, f"a block above {above}", within_s)

    async def level(self) -> float:
        """Wait until all honest peers stand at one height with nothing left to decide, and every answer that was
        promised a receipt has one that is anchored; seconds that it took.

        Raises:
            ScenarioError: they do not.
        """  # noqa: D205 - one sentence
        took_s = await self.until(self._is_level, "all peers at one height, everything anchored", SETTLE_S)
        for index, completion in self.promised:
            await self.receipt(index, completion, "anchored", ANCHORED_S)
        return took_s

    async def passed_by(self) -> None:
        """No peer reaches another but through the switchboard.

        Raises:
            ScenarioError: one does.
        """
        ports = set(listening(self.devnet))
        for index, process in self.processes.items():
            connections = await trio.to_thread.run_sync(psutil.Process(process.pid).net_connections, "tcp")
            if any(connection.raddr and connection.raddr.port in ports for connection in connections):
                raise ScenarioError(f"peer {index} reaches another one beside the switchboard")

    def _mark(self, what: str, *indices: int) -> None:
        self.timeline.marks.append(Mark(round(trio.current_time() - self.began_s, 3), what, indices))

    async def _is_ready(self, index: int) -> bool:
        return (await readiness(self.client, self.devnet.peers[index].url))[0]

    async def _still_run(self) -> None:
        """Pass silently if no peer has ended by itself.

        Raises:
            ScenarioError: one has; shows the end of its log.
        """
        for index, process in self.processes.items():
            if process.returncode is not None and index not in self.killed:
                log = self.devnet.peers[index].log
                tail = await trio.to_thread.run_sync(log_tail, log)
                raise ScenarioError(f"peer {index} exited {how_ended(process.returncode)}; the end of {log}:\n{tail}")

    async def _is_level(self) -> bool:
        views = [await self.status(index) for index in self.honest]
        if not all(views):
            return False
        ends = {(view["consensus"]["height"], view["logs"]["network_log_root"]) for view in views}
        rest = all(
            view["consensus"]["pending"] == 0
            and view["logs"]["anchored_size"] == view["logs"]["network_log_size"]
            and all(anchor["certified"] for anchor in view["anchors"][:1])
            for view in views
        )
        return len(ends) == 1 and rest


def listening(devnet: Devnet) -> list[int]:
    """Where the peers listen."""
    return [int(peer.multiaddr.split("/")[4]) for peer in devnet.peers]
