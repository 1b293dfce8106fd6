"""A network of benchmark validators on loopback, a process each, and what they are asked for."""

from __future__ import annotations

import math
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.contestants.process import Process, planned
from nsllm.clock import SystemClock
from nsllm.governance.defaults import default_policy
from nsllm.governance.genesis import save_genesis
from nsllm.node.founding import found, founder
from nsllm.node.identity import open_identity
from nsllm.node.tcp_ports import choose
from nsllm.simulations.standin import stand_in_digest

HOST: Final = "127.0.0.1"
FIRST_PORT: Final = 21_000
SLOTS: Final = 1_000_000
"""Records that a member may submit in a minute: the benchmark measures agreement, not this limit."""
PAUSE_S: Final = 0.05
"""Between two answers of the latency load on average, so that they do not march in step with anchors."""
BATCH: Final = 32
LANES: Final = {4: 6, 7: 3, 16: 1}
"""Batches that each validator keeps under way while scores are counted, by number of validators; a desk takes 512
records of each generator."""
QUIET_CPUS: Final = 0.1
"""Heartbeats alone take less."""
LOOK_S: Final = 0.5
SETTLE_S: Final = 60.0


class Validators:
    """Running validators; made by `running`."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes

    def latencies_s(self, count: int) -> list[float]:
        """Of `count` answers that are submitted one at a time, by each validator in its turn."""
        found: list[float] = []
        for process in self._processes:
            found += process.ask("one_by_one", count=-(-count // len(self._processes)), pause_s=PAUSE_S)["latencies_s"]
        return found

    def load(self, seconds: float, *, batch: int, lanes: int) -> dict[str, float]:
        """What came of `lanes` batches of answers that each validator keeps under way: see `between`.

        Counted for `seconds` in the middle: without the beginning, when nothing has come through, and the end.
        """
        for process in self._processes:
            process.tell("load", seconds=seconds, batch=batch, lanes=lanes)
        looks = [process.hear()["looks"] for process in self._processes]
        return between(*([look[place] for look in looks] for place in (0, 1)))

    def split(self, task: Callable[[], object]) -> dict[str, float]:
        """Shares of CPU time by kind of work, largest first, while `task` runs."""
        for process in self._processes:
            process.ask("split")
        task()
        seconds: Counter[str] = Counter()
        for process in self._processes:
            seconds.update(process.ask("whole")["seconds"])
        whole_s = seconds.total()
        return {kind: used_s / whole_s for kind, used_s in seconds.most_common()}

    def counted(self) -> list[dict[str, Any]]:
        """Counters of each validator."""
        return [process.ask("counted") for process in self._processes]

    def settle(self) -> None:
        """Return once connecting has left nothing to do: together they compute for `QUIET_CPUS` of a while at most.

        Raises:
            SystemExit: they were still busy after `SETTLE_S`.
        """
        deadline = time.perf_counter() + SETTLE_S
        cpus = math.inf
        while cpus > QUIET_CPUS:
            if time.perf_counter() > deadline:
                raise SystemExit(f"{len(self._processes)} validators without a task keep {cpus:.2f} processors busy")
            before = self.counted()
            time.sleep(LOOK_S)
            cpus = between(before, self.counted())["cpus"]


def between(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any]:
    """Rates and costs of all validators together between two looks at their counters."""
    grown = [{name: then[name] - now[name] for name in now} for now, then in zip(before, after, strict=True)]
    seconds = sum(one["at_s"] for one in grown) / len(grown)
    decisions = max(one["decisions"] for one in grown)
    records = max(one["records"] for one in grown)
    total = {name: sum(one[name] for one in grown) for name in ("messages", "wire_bytes", "writes", "cpu_s")}
    per = max(1, decisions)
    return {
        "decisions_per_s": decisions / seconds,
        "scores_per_s": records / seconds,
        "messages_per_decision": total["messages"] / per,
        "writes_per_decision": total["writes"] / per,
        "wire_kb_per_decision": total["wire_bytes"] / per / 1000,
        "cpu_ms_per_decision": total["cpu_s"] / per * 1000,
        "cpu_ms_per_score": total["cpu_s"] / max(1, records) * 1000,
        "cpus": total["cpu_s"] / seconds,
    }


@contextmanager
def running(count: int) -> Iterator[Validators]:
    """Found a network of `count` validators in a temporary folder and run them until the block ends."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes: list[subprocess.Popen[str]] = []
        try:
            plans = list(_plans(folder, count))
            started = [
                planned("benchmarks.validator", f"validator-{number}", plan, folder, processes)
                for number, plan in enumerate(plans)
            ]
            for process in started:
                process.hear()
            validators = Validators(started)
            validators.settle()
            yield validators
        finally:
            for popen in processes:
                popen.kill()
            for popen in processes:
                popen.wait()


def _plans(folder: Path, count: int) -> Iterator[Mapping[str, Any]]:
    identities = [open_identity(folder / f"validator-{number}") for number in range(count)]
    members = [msgspec.structs.replace(founder(identity), slots=SLOTS) for identity in identities]
    policy = default_policy(stand_in_digest("text"), stand_in_digest("encoder"))
    genesis = found("bench", members, policy, SystemClock().now_ms(), local=True)
    save_genesis(folder / "genesis.json", genesis)
    addresses = [f"/ip4/{HOST}/tcp/{port}" for port in choose(HOST, FIRST_PORT, count=count)]
    for number in range(count):
        yield {
            "folder": str(folder / f"validator-{number}"),
            "genesis": str(folder / "genesis.json"),
            "listen": addresses[number],
            "bootstrap": [f"{addresses[other]}/p2p/{identities[other].peer_id}" for other in range(number)],
        }
