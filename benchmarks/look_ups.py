"""Three networks of as many processes each, side by side on this machine: ours, hivemind's and py-libp2p's Kademlia.

All hold the same values: certified records, byte for byte. They take turns, forwards and backwards, one look-up at a
time; who asks holds no copy of what it asks for.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.certified import Certifier
from benchmarks.contestants.process import ROOT, Process, forked
from benchmarks.cpu_time import busy_cpus, cpu_s, family
from nsllm import canonical
from nsllm.cache_dht.placement import holders, shards_of
from nsllm.clock import SystemClock
from nsllm.consensus.certified import CertifiedRecord
from nsllm.governance.defaults import default_policy
from nsllm.governance.genesis import Genesis, save_genesis
from nsllm.ids import Address
from nsllm.node.founding import found, founder
from nsllm.node.identity import open_identity
from nsllm.node.tcp_ports import choose
from nsllm.simulations.standin import stand_in_digest

HOST: Final = "127.0.0.1"
FIRST_PORT: Final = 25_000
HIVEMIND: Final = ROOT / ".venv-hivemind" / "bin" / "python"
"""Made by `make bench-setup`."""
PYTHONS: Final = {"nsllm": sys.executable, "hivemind": str(HIVEMIND), "kad": sys.executable}
"""Which one runs whose processes."""
STRANGE: Final = 1_000_000
"""Questions from this number on are answered nowhere."""
WINDOW_S: Final = 1.0
"""How long processes are watched to say what upkeep takes."""


@dataclass
class Table:
    """One network of processes that keep values by key."""

    name: str
    processes: list[Process]
    pids: list[int]
    took_ms: dict[str, list[float]] = field(default_factory=dict)
    """Of single calls, by kind."""
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)
    """A call's share of what all processes together computed during a turn, by kind, one a turn."""
    found: dict[str, int] = field(default_factory=dict)
    """Calls that gave something, by kind."""
    calls: dict[str, int] = field(default_factory=dict)

    def turn(self, kind: str, tasks: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """One call after another, each at the process of that number."""
        before = self.cpu_s()
        count = 0
        for number, task in tasks:
            said = self.processes[number].ask(**task)
            self.took_ms.setdefault(kind, []).extend(took * 1000 for took in said["took_s"])
            self.found[kind] = self.found.get(kind, 0) + said["found"]
            count += len(said["took_s"])
        self.calls[kind] = self.calls.get(kind, 0) + count
        self.cpu_ms.setdefault(kind, []).append((self.cpu_s() - before) / max(1, count) * 1000)

    def warm_up(self, count: int) -> None:
        """So many look-ups by each process, all processes at once, so that what stays open is open."""
        for number, process in enumerate(self.processes):
            first = 2 * STRANGE + number * count
            process.tell("get", keys=[hash_of(first + index) for index in range(count)])
        for process in self.processes:
            process.hear()

    def forget_look_ups(self) -> None:
        """What was looked up so far was for warmth."""
        for numbers in (self.took_ms, self.cpu_ms, self.found, self.calls):
            for kind in [kind for kind in numbers if kind != "put"]:
                del numbers[kind]

    def cpu_s(self) -> float:
        """Of all processes and their daemons so far."""
        return cpu_s(self.pids)


def idle_cpus(tables: Sequence[Table]) -> dict[str, float]:
    """Processors that each network keeps busy while nobody asks anything."""
    cpus = busy_cpus([one.pids for one in tables], WINDOW_S)
    return {one.name: busy for one, busy in zip(tables, cpus, strict=True)}


@dataclass(frozen=True)
class Item:
    """A record, and who may ask for it or give it."""

    number: int
    record: CertifiedRecord
    giver: int
    asker: int
    """Holds no copy."""

    @property
    def key(self) -> str:
        """Its request key, in hex."""
        return self.record.leaf.request_key.hex()

    @property
    def value(self) -> str:
        """Its encoding, in hex."""
        return canonical.encode(self.record).hex()


@contextmanager
def running(peers: int, opponents: Sequence[str]) -> Iterator[tuple[list[Table], Callable[[int], list[Item]]]]:
    """Start our network and its opponents; gives their tables, and a function that makes so many items.

    Ours connects while its opponents start, which mostly wait.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        popens: list[subprocess.Popen[str]] = []
        try:
            programs = {
                one: forked(f"benchmarks.contestants.dht_{one}", peers, folder, popens, PYTHONS[one])
                for one in ("nsllm", *opponents)
            }
            identities = [open_identity(folder / f"peer-{number}") for number in range(peers)]
            policy = default_policy(stand_in_digest("text"), stand_in_digest("encoder"))
            now_ms = SystemClock().now_ms()
            genesis = found("bench", [founder(identity) for identity in identities], policy, now_ms, local=True)
            save_genesis(folder / "genesis.json", genesis)
            ports = iter(choose(HOST, FIRST_PORT, count=peers * len(programs)))
            listen = {one: [f"/ip4/{HOST}/tcp/{next(ports)}" for _ in range(peers)] for one in programs}
            _plan_ours(programs["nsllm"], folder, [identity.peer_id for identity in identities], listen["nsllm"])
            pids = {one: STARTS[one](programs[one], listen[one]) for one in opponents}
            pids["nsllm"] = [process.hear()["pid"] for process in programs["nsllm"]]
            certifier = Certifier(genesis, [identity.member for identity in identities])
            addresses = [identity.address for identity in identities]
            made = iter(range(STRANGE))

            def items(count: int) -> list[Item]:
                return [_item(next(made), certifier, genesis, addresses) for _ in range(count)]

            yield [Table(one, programs[one], pids[one]) for one in programs], items
        finally:
            for popen in popens:
                _kill(popen.pid)
            for popen in popens:
                popen.wait()


def _item(number: int, certifier: Certifier, genesis: Genesis, addresses: Sequence[Address]) -> Item:
    """The record of a number; asked for by a peer that does not hold it, or at least not its key's shard."""
    record = certifier.record(number)
    peers, placement = len(addresses), genesis.placement
    shards = shards_of(record.signed.record, record.leaf.request_key, placement.shards)
    members = genesis.registry().state.holding
    holding = [
        {addresses.index(a) for a in holders(genesis.network_id(), shard, members, placement.replication)}
        for shard in shards
    ]
    turns = [(number + step) % peers for step in range(peers)]
    free = [peer for peer in turns if peer not in holding[0] | holding[1]]
    asker = (free or [peer for peer in turns if peer not in holding[0]])[0]
    giver = next(peer for peer in turns if peer != asker)
    return Item(number, record, giver, asker)


def _plan_ours(processes: Sequence[Process], folder: Path, peer_ids: Sequence[str], listen: Sequence[str]) -> None:
    """Each peer's plan; it says so when it is connected to all others."""
    for number, process in enumerate(processes):
        process.give(
            {
                "number": number,
                "folder": str(folder / f"peer-{number}"),
                "genesis": str(folder / "genesis.json"),
                "listen": listen[number],
                "bootstrap": [f"{listen[0]}/p2p/{peer_ids[0]}"] if number else [],
                "others": len(processes) - 1,
            }
        )


def _start_kad(processes: Sequence[Process], listen: Sequence[str]) -> list[int]:
    """Process ids, once everybody knows everybody."""
    for process, address in zip(processes, listen, strict=True):
        process.give({"listen": address})
    heard = [process.hear() for process in processes]
    addresses = [each["address"] for each in heard]
    for process in processes:  # one by one, so that no two dial each other
        process.ask("meet", addresses=addresses)
    for process in processes:  # all are connected: those who were dialled take in who dialled
        process.tell("meet", addresses=addresses)
    for process in processes:
        process.hear()
    return [each["pid"] for each in heard]


def _start_hivemind(processes: Sequence[Process], listen: Sequence[str]) -> list[int]:
    """Ids of processes and daemons, once all of them run."""
    bootstrap: list[str] = []
    pids: list[int] = []
    for process, address in zip(processes, listen, strict=True):  # one by one: daemons that start together give up
        process.give({"listen": address, "bootstrap": bootstrap})
        heard = process.hear()
        bootstrap = bootstrap or [heard["address"]]
        pids.append(heard["pid"])
    return [member for pid in pids for member in family(pid)]


STARTS: Final = {"hivemind": _start_hivemind, "kad": _start_kad}


def _kill(pid: int) -> None:
    """A process and its daemons."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def hash_of(number: int) -> str:
    """A key that nobody has, in hex."""
    return hashlib.sha256(b"strange %d" % number).hexdigest()


def said(text: str) -> None:
    """Progress goes to standard error."""
    print(text, file=sys.stderr, flush=True)


def has_hivemind() -> bool:
    """Whether `make bench-setup` has been run."""
    return os.access(HIVEMIND, os.X_OK)
