"""Ordeals: what `nsllm devnet --scenario` puts real processes through, and what must hold then.

In the end all honest peers stand at one height, every answer that was promised a receipt has one that is anchored, and
what they left on their disks and in their logs is inspected.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import httpx
import trio

from nsllm.errors import NsllmError
from nsllm.ids import hex0x
from nsllm.simulations.devnet import Devnet, Report, stop_all
from nsllm.simulations.errors import ScenarioError
from nsllm.simulations.inspection import inspect
from nsllm.simulations.observer import Observer
from nsllm.simulations.signatures import Signatures
from nsllm.simulations.switchboard_process import SwitchboardProcess
from nsllm.simulations.timeline import Timeline
from nsllm.simulations.twin import Twin, listening
from nsllm.simulations.twisted import CONVICTED, HABITS

DECIDE_S: Final = 60.0
"""After peers go on or hear each other again, the next block is decided within this time."""
AWAY_S: Final = 30.0
"""How long peers are suspended or parted: three missed heartbeats, and time for a few vain dials."""
LOST_S: Final = 3.0
"""After this long, what was under way when the links were cut has arrived."""
ROUNDS: Final = 3
QUESTIONS: Final = 4
FAR_S: Final = (0.05, 0.1)
"""Delay of every link each way, and how much more it may be: another continent's."""
LATE_S: Final = (1.0, 0.5)
"""Delay of a peer's links that is longer than the first rounds' prevote and precommit timeouts."""
SLOW_S: Final = 120.0
"""An answer is certified within this time, however slow the links are."""
REFUSALS: Final = ("event=guard_refused", "consensus_halted")
"""What no honest peer's log may say."""
ACCUSED: Final = "event=offence"
"""What it may say only where somebody is Byzantine."""

BUCKET_S: Final = 2.0
"""Messages are counted by protocol in steps of so many seconds."""

Seen = dict[str, str | int | float]


async def churn(twin: Twin) -> Seen:
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


async def suspended(twin: Twin) -> Seen:
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
    decided_s = await twin.decided(after, DECIDE_S) if here else 0.0
    return {"suspended": len(away), "away_s": AWAY_S, "decided_after_s": decided_s}


async def partition(twin: Twin) -> Seen:
    """The peers fall in two halves, neither of which has a quorum, and heal; then f are cut off, others go on."""
    everybody = list(range(twin.count))
    twin.rng.shuffle(everybody)
    one, other = everybody[: twin.count // 2], everybody[twin.count // 2 :]
    await twin.part(one, other)
    until_s = trio.current_time() + AWAY_S
    await trio.sleep(LOST_S)
    before = await twin.height(*everybody)
    for index in (one[0], other[0]):
        await twin.ask(index)
    await trio.sleep_until(until_s)
    await twin.passed_by()
    after = await twin.height(*everybody)
    if after > before:
        raise ScenarioError(f"block {after} was decided where no part of the network has a quorum")
    await twin.heal()
    decided_s = await twin.decided(after, DECIDE_S)
    few = sorted(twin.rng.sample(everybody, twin.faults))
    most = [index for index in sorted(everybody) if index not in few]
    await twin.part(few, most)
    await trio.sleep(LOST_S)
    before = await twin.height(*most)
    await twin.ask(most[0])
    most_s = await twin.decided(before, DECIDE_S, most)
    left_behind = await twin.height(*few)
    if left_behind > before:
        raise ScenarioError(f"block {left_behind} reached peers that nothing reaches")
    await twin.ask(few[0])
    await twin.passed_by()
    await twin.heal()
    return {"apart_s": AWAY_S, "decided_after_s": decided_s, "cut_off": len(few), "others_decided_after_s": most_s}


async def byzantine(twin: Twin) -> Seen:
    """A third of the peers, f, has a bad habit: the others go on, and convict who equivocates or commits twice."""
    slowest_s = 0.0
    for _ in range(QUESTIONS):
        index = twin.rng.choice(twin.honest)
        completion = await twin.ask(index)
        if completion is not None:
            slowest_s = max(slowest_s, await twin.receipt(index, completion, "certified", SLOW_S))
    guilty = {hex0x(twin.devnet.peers[index].address) for index, habit in twin.habits.items() if habit in CONVICTED}

    async def are_convicted() -> bool:
        views = [await twin.status(index) for index in twin.honest]
        return all(view and {row["validator"] for row in view["consensus"]["offences"]} == guilty for view in views)

    convicted_s = await twin.until(are_convicted, f"{len(guilty)} validators are convicted", SLOW_S)
    return {
        "byzantine": ", ".join(f"peer {index}: {habit}" for index, habit in sorted(twin.habits.items())),
        "slowest_certified_after_s": slowest_s,
        "convicted": len(guilty),
        "convicted_after_s": convicted_s,
    }


async def delay(twin: Twin) -> Seen:
    """All links become as slow as to another continent; then those of f peers slower than a round; then all links."""
    took: Seen = {}
    slow = sorted(twin.rng.sample(range(twin.count), twin.faults))
    steps: tuple[tuple[str, tuple[float, float], list[int] | None], ...] = (
        ("far", FAR_S, None),
        ("some_late", LATE_S, slow),
        ("all_late", LATE_S, None),
    )
    for name, (least_s, spread_s), whose in steps:
        await twin.slow(least_s, spread_s, whose)
        index = twin.rng.choice([index for index in range(twin.count) if index not in slow])
        completion = await twin.ask(index)
        if completion is not None:
            took[f"{name}_certified_after_s"] = await twin.receipt(index, completion, "certified", SLOW_S)
    await twin.passed_by()
    await twin.heal()
    return {"slow_peers": len(slow), **took}


@dataclass(frozen=True, slots=True)
class Ordeal:
    """What happens, and to what kind of network."""

    play: Callable[[Twin], Awaitable[Seen]]
    """Returns what it saw; raises `ScenarioError` when something does not hold."""
    least: int = 1
    """Peers that it takes."""
    byzantine: bool = False
    """f of them, with habits that follow from the seed."""


ORDEALS: Final[dict[str, Ordeal]] = {
    "churn": Ordeal(churn),
    "suspended": Ordeal(suspended),
    "partition": Ordeal(partition, least=4),
    "delay": Ordeal(delay, least=4),
    "byzantine": Ordeal(byzantine, least=4, byzantine=True),
}


async def run_ordeal(devnet: Devnet, name: str, *, seed: int, report: Report, timeline: Timeline | None = None) -> Seen:
    """Start a devnet's peers, put them through an ordeal, stop them, and check what they left on their disks.

    Args:
        devnet: laid out; nothing runs on it.
        name: one of `ORDEALS`.
        seed: of faults and questions.
        report: told what happens to peers.
        timeline: filled with what happens to them, with their heights and what they send; None: nobody reads that.

    Raises:
        ScenarioError: what must hold did not; `InvariantError` if it is a promise of agreement.
    """
    ordeal = ORDEALS[name]
    if len(devnet.peers) < ordeal.least:
        raise ScenarioError(f"{name} takes {ordeal.least} peers or more, the devnet has {len(devnet.peers)}")
    rng = random.Random(f"{name} {seed}")  # noqa: S311 - a schedule, no secret
    sizes = {peer.index: peer.log.stat().st_size if peer.log.exists() else 0 for peer in devnet.peers}
    habits = _habits(rng, len(devnet.peers), seed) if ordeal.byzantine else {}
    liars = frozenset(devnet.peers[index].address for index in habits)
    signatures = Signatures(devnet.genesis.network_id(), liars)
    board = await SwitchboardProcess.start(listening(devnet), seed)
    async with httpx.AsyncClient(trust_env=False) as client:
        twin = Twin(devnet, rng, report, client, board, signatures, timeline or Timeline(BUCKET_S), habits)
        seen = await _observed(twin, ordeal, watched=timeline is not None)
    _read_logs(twin, sizes)
    left = {devnet.peers[index].data_dir: devnet.peers[index].address for index in twin.honest}
    look = partial(inspect, devnet.genesis, left, byzantine=liars, signatures=signatures)
    inspected = await trio.to_thread.run_sync(look)
    return {
        "scenario": name,
        "peers": twin.count,
        "seed": seed,
        "seconds": round(trio.current_time() - twin.began_s, 3),
        "questions": twin.asked,
        **seen,
        "receipts_checked": len(twin.promised),
        "height": inspected.height,
        "blocks_checked": inspected.blocks,
        "signatures_checked": inspected.signatures,
        "log_root": hex0x(inspected.log_root),
    }


async def _observed(twin: Twin, ordeal: Ordeal, *, watched: bool) -> Seen:
    """Play, and have somebody look on if that is wanted. What goes wrong is raised as it is, out of the nursery."""
    seen: Seen = {}
    failure: NsllmError | None = None
    async with trio.open_nursery() as nursery:
        if watched:
            urls = [peer.url for peer in twin.devnet.peers]
            nursery.start_soon(Observer(urls, twin.client, twin.timeline, twin.began_s).run)
        try:
            seen = await _played(twin, ordeal)
        except NsllmError as error:  # a bug, or what the machine refuses, comes in the nursery's group, with its trace
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return seen


async def _played(twin: Twin, ordeal: Ordeal) -> Seen:
    """Start all, play, wait until all is level, stop all."""
    try:
        for peer in twin.devnet.peers:
            await twin.start(peer.index)
        await twin.ready(*twin.honest)
        await twin.ask(twin.rng.choice(twin.honest))
        seen = await ordeal.play(twin)
        settled_s = await twin.level()
        return {**seen, "settled_after_s": settled_s, "link_bytes": await twin.board.passed_bytes()}
    finally:
        for process in twin.processes.values():
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
        await stop_all(list(twin.processes.values()))
        await twin.board.stop()


def _habits(rng: random.Random, count: int, seed: int) -> dict[int, str]:
    """Which peers are Byzantine, and how."""
    chosen = rng.sample(range(count), (count - 1) // 3)
    return {index: HABITS[(seed + order) % len(HABITS)] for order, index in enumerate(chosen)}


def _read_logs(twin: Twin, sizes: dict[int, int]) -> None:
    """Pass silently if no honest peer's log, from where it began, says what it may not.

    Raises:
        ScenarioError: one does.
    """
    refused = REFUSALS if twin.habits else (*REFUSALS, ACCUSED)
    for index in twin.honest:
        log = twin.devnet.peers[index].log
        said = log.read_bytes()[sizes[index] :].decode(errors="replace")
        for refusal in refused:
            if refusal in said:
                raise ScenarioError(f"the log of peer {index} says {refusal}", hint=f"see {log}")
