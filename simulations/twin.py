"""Scenarios on real processes: peers of a devnet are killed or suspended on a seeded schedule, and their disks checked.

The faults and questions come from the seed; what the processes do in between is their machine's. Links are not cut:
peers on loopback learn each other's addresses, so that a proxy before a port would be passed by, and network
namespaces need rights that a test has not. Partitions are the simulator's.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import trio

from nsllm.ids import hex0x
from nsllm.simulations.devnet import Devnet, DevnetEvent, Report, readiness, start_peer, stop_all
from nsllm.simulations.errors import ScenarioError
from nsllm.simulations.inspection import inspect

READY_S: Final = 300.0
ANSWER_S: Final = 180.0
SETTLE_S: Final = 120.0
"""After the last fault all peers stand at one height within this time."""
DECIDE_S: Final = 60.0
"""After the suspended peers go on, the next block is decided within this time."""
AWAY_S: Final = 30.0
ROUNDS: Final = 3
REFUSALS: Final = ("event=guard_refused", "event=offence", "consensus_halted")
"""What no honest peer's log may say."""


@dataclass(slots=True)
class Twin:
    """A devnet whose processes can be killed, suspended and started one by one."""

    devnet: Devnet
    rng: random.Random
    report: Report
    client: httpx.AsyncClient
    processes: dict[int, trio.Process] = field(default_factory=dict[int, trio.Process])
    asked: int = 0

    @property
    def count(self) -> int:
        """Peers, all of which validate."""
        return len(self.devnet.peers)

    @property
    def faults(self) -> int:
        """So many of them may be faulty."""
        return (self.count - 1) // 3

    async def start(self, index: int) -> None:
        """Start a peer."""
        self.processes[index] = await start_peer(self.devnet.peers[index])
        self.report(DevnetEvent("starting", index, f"process {self.processes[index].pid}"))

    async def kill(self, index: int) -> None:
        """SIGKILL, as a power cut would, and the process is gone."""
        self.processes[index].kill()
        await self.processes[index].wait()
        self.report(DevnetEvent("exited", index, "killed"))

    def suspend(self, index: int) -> None:
        """SIGSTOP."""
        self.processes[index].send_signal(signal.SIGSTOP)
        self.report(DevnetEvent("exited", index, "suspended"))

    def resume(self, index: int) -> None:
        """SIGCONT."""
        self.processes[index].send_signal(signal.SIGCONT)
        self.report(DevnetEvent("starting", index, "goes on"))

    async def ready(self, *indices: int) -> None:
        """Wait until these peers are ready.

        Raises:
            ScenarioError: one is not in time.
        """
        for index in indices:
            url = self.devnet.peers[index].url
            await self.until(lambda url=url: self._is_ready(url), f"peer {index} ready", READY_S)  # type: ignore[misc]
            self.report(DevnetEvent("ready", index, url))

    async def ask(self, index: int) -> None:
        """A question that nobody asked before.

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
            ScenarioError: it does not in time.
        """
        began_s = trio.current_time()
        with trio.move_on_after(within_s):
            while not await holds():  # noqa: ASYNC110 - other processes bring it about
                await trio.sleep(0.1)
            return round(trio.current_time() - began_s, 3)
        raise ScenarioError(f"not within {within_s:g} s: {what}")

    async def level(self) -> float:
        """Wait until all peers stand at one height with nothing left to decide; seconds that it took.

        Raises:
            ScenarioError: they do not.
        """
        return await self.until(self._is_level, "all peers at one height, everything anchored", SETTLE_S)

    async def _is_ready(self, url: str) -> bool:
        return (await readiness(self.client, url))[0]

    async def _is_level(self) -> bool:
        views = [await self.status(index) for index in range(self.count)]
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


async def churn(twin: Twin) -> dict[str, int | float]:
    """Up to f peers at a time are killed (SIGKILL) while questions are asked, and start again."""
    kills = 0
    for _ in range(ROUNDS):
        gone = twin.rng.sample(range(twin.count), max(1, twin.faults))
        here = [index for index in range(twin.count) if index not in gone]
        for index in gone:
            await trio.sleep(twin.rng.uniform(0.0, 1.0))
            await twin.kill(index)
            kills += 1
            if here:
                await twin.ask(twin.rng.choice(here))
        for index in gone:
            await twin.start(index)
        if here:
            await twin.ask(twin.rng.choice(here))
        await twin.ready(*gone)
    return {"kills": kills}


async def suspended(twin: Twin) -> dict[str, int | float]:
    """f+1 peers are suspended (SIGSTOP): nothing is decided meanwhile, answers go on, and then everything does."""
    away = sorted(twin.rng.sample(range(twin.count), min(twin.count, twin.faults + 1)))
    here = [index for index in range(twin.count) if index not in away]
    for index in away:
        twin.suspend(index)
    before = await twin.height(*here)
    until_s = trio.current_time() + AWAY_S
    for index in here:
        await twin.ask(index)
    await trio.sleep_until(until_s)
    after = await twin.height(*here)
    if after > before + 1:  # one may have been under way
        raise ScenarioError(f"block {after} was decided without a quorum")
    for index in away:
        twin.resume(index)
    everybody = range(twin.count)

    async def decided() -> bool:
        return await twin.height(*everybody) > after

    decided_s = await twin.until(decided, f"a block above {after}", DECIDE_S) if here else 0.0
    return {"suspended": len(away), "away_s": AWAY_S, "decided_after_s": decided_s}


Play = Callable[[Twin], Awaitable[dict[str, int | float]]]
SCENARIOS: Final[dict[str, Play]] = {"churn": churn, "suspended": suspended}


async def run_twin(devnet: Devnet, name: str, *, seed: int, report: Report) -> dict[str, str | int | float]:
    """Start a devnet's peers, play a scenario, stop them, and check what they left on their disks.

    Args:
        devnet: laid out; nothing runs on it.
        name: one of `SCENARIOS`.
        seed: of faults and questions.
        report: told what happens to peers.

    Raises:
        ScenarioError: what must hold did not; `InvariantError` if it is a promise of agreement.
    """
    rng = random.Random(f"{name} {seed}")  # noqa: S311 - a schedule, no secret
    sizes = {peer.index: peer.log.stat().st_size if peer.log.exists() else 0 for peer in devnet.peers}
    async with httpx.AsyncClient(trust_env=False) as client:
        twin = Twin(devnet, rng, report, client)
        try:
            for peer in devnet.peers:
                await twin.start(peer.index)
            await twin.ready(*range(twin.count))
            await twin.ask(rng.randrange(twin.count))
            seen = await SCENARIOS[name](twin)
            settled_s = await twin.level()
        finally:
            for process in twin.processes.values():
                if process.returncode is None:
                    process.send_signal(signal.SIGCONT)
            await stop_all(list(twin.processes.values()))
    for peer in devnet.peers:
        said = peer.log.read_bytes()[sizes[peer.index] :].decode(errors="replace")
        for refusal in REFUSALS:
            if refusal in said:
                raise ScenarioError(f"the log of peer {peer.index} says {refusal}", hint=f"see {peer.log}")
    inspected = await trio.to_thread.run_sync(inspect, devnet.genesis, [peer.data_dir for peer in devnet.peers])
    return {
        "scenario": name,
        "peers": twin.count,
        "seed": seed,
        "questions": twin.asked,
        **seen,
        "settled_after_s": settled_s,
        "height": inspected.height,
        "blocks_checked": inspected.blocks,
        "log_root": hex0x(inspected.log_root),
    }
