"""Look-ups at other peers: how long they take and what they cost, beside hivemind's DHT and py-libp2p's Kademlia.

Each network runs as 4 and as 16 processes on loopback, all at once, and takes turns with the others at one look-up at a
time (`benchmarks.look_ups`). Then simulated networks of up to 1,000 peers say how many messages a look-up sends
(`benchmarks.look_up_costs`).

    python -m benchmarks.dht --quick --json
    python -m benchmarks.dht
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks import goals
from benchmarks.look_up_costs import costs
from benchmarks.look_ups import STRANGE, Item, Table, has_hivemind, hash_of, idle_cpus, running, said
from benchmarks.report import at_end, facts, machine, table
from benchmarks.serving import quantile

SIZES: Final = (4, 16)
MAIN: Final = 16
"""Figures of this size stand under their plain names, those of others behind `n4.`."""
SIMULATED: Final = (16, 64, 250, 1000)
QUICK_SIMULATED: Final = (4, 16)
OPPONENTS: Final = ("hivemind", "kad")
KINDS: Final = {
    "nsllm": {"hit": "remote_hit", "miss": "remote_miss", "near": "near_hit", "near_miss": "near_miss", "put": "put"},
    "hivemind": {"hit": "hivemind_get", "miss": "hivemind_miss", "put": "hivemind_put"},
    "kad": {"hit": "kad_get", "miss": "kad_miss", "put": "kad_put"},
}
"""What a call of each kind is called in the result."""
QUIET_CPUS: Final = 0.3
"""Upkeep of three networks takes less."""
SETTLE_S: Final = 30.0
"""Longest wait for quiet: what a start or a put leaves to be done behind it is not part of what comes next."""


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    rounds: int
    calls: int
    """Of each kind, in each round."""
    kad_calls: int
    """The same of Kademlia's, which takes some forty times as long as the others."""
    warmth: Mapping[str, int]
    """Look-ups of what is nowhere that each peer does before anything counts; Kademlia's tables are full anyway."""


FULL: Final = Extent(rounds=9, calls=16, kad_calls=16, warmth={"nsllm": 32, "hivemind": 32, "kad": 1})
QUICK: Final = Extent(rounds=3, calls=8, kad_calls=4, warmth={"nsllm": 32, "hivemind": 8, "kad": 1})
FIGURES: Final = tuple(
    f"{name}_{what}" for kinds in KINDS.values() for name in kinds.values() for what in ("p50_ms", "p95_ms", "cpu_ms")
)
RATIOS: Final = ("hivemind_get_vs_remote_hit", "kad_get_vs_remote_hit", "kad_get_cpu_vs_remote_hit")
NESTED: Final = {"goals", "machine", "simulated"}


def measured(peers: int, extent: Extent, opponents: Sequence[str]) -> dict[str, Any]:
    """Figures of so many peers."""
    with running(peers, opponents) as (tables, items):
        said(f"{peers} peers: {', '.join(one.name for one in tables)} are running")
        quiet(tables)
        first, *chosen = items(peers), *(items(extent.calls) for _ in range(extent.rounds))
        warmed = [one for one in tables if one.name != "kad"]  # it knows all peers, and each call is the same work
        for number, some in enumerate([first, *chosen]):
            for one in warmed if some is first else tables if number % 2 else tables[::-1]:
                mine = _share(one, some, extent)
                one.turn("put", [(item.giver, _put(item, keys=one.name != "nsllm")) for item in mine])
        for one in tables:
            one.warm_up(extent.warmth[one.name])
        for one in warmed:
            _look_up(one, first)
            one.forget_look_ups()
        idle = {f"{name}_idle_cpus": cpus for name, cpus in quiet(tables).items()}
        said(f"{peers} peers: {', '.join(f'{name} {cpus:.2f}' for name, cpus in idle.items())}")
        for number, some in enumerate(chosen):
            for one in tables if number % 2 else tables[::-1]:
                _look_up(one, _share(one, some, extent))
        found = idle | {"gets": extent.rounds * extent.calls} | dict.fromkeys(FIGURES)
        for one in tables:
            found |= _figures(one)
    found |= ratios(found)
    said(f"{peers} peers: hit {found['remote_hit_p50_ms']:.1f} ms, CPU {found['remote_hit_cpu_ms']:.1f} ms")
    return found


def quiet(tables: Sequence[Table]) -> dict[str, float]:
    """Return once the networks have done what is behind them, or after `SETTLE_S`, which is said; what upkeep takes."""
    deadline = time.perf_counter() + SETTLE_S
    while sum((idle := idle_cpus(tables)).values()) > QUIET_CPUS:
        if time.perf_counter() > deadline:
            said(f"without a task the networks keep {sum(idle.values()):.2f} processors busy")
            break
    return idle


def _share(one: Table, items: Sequence[Item], extent: Extent) -> Sequence[Item]:
    """What a network is asked for of a round."""
    return items[: extent.kad_calls] if one.name == "kad" else items


def _look_up(one: Table, items: Sequence[Item]) -> None:
    """What is there, and what is nowhere."""
    one.turn("hit", [(item.asker, {"do": "get", "keys": [item.key]}) for item in items])
    one.turn("miss", [(item.asker, {"do": "get", "keys": [hash_of(item.number)]}) for item in items])
    if one.name == "nsllm":
        one.turn("near", [(item.asker, {"do": "near", "numbers": [item.number]}) for item in items])
        one.turn("near_miss", [(item.asker, {"do": "near", "numbers": [STRANGE + item.number]}) for item in items])


def _put(item: Item, *, keys: bool) -> dict[str, Any]:
    return {"do": "put", "values": [item.value]} | ({"keys": [item.key]} if keys else {})


def _figures(one: Table) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for kind, name in KINDS[one.name].items():
        if kind not in one.took_ms:
            continue
        wrong = one.found[kind] if "miss" in kind else one.calls[kind] - one.found[kind]
        if wrong:
            said(f"{one.name}: {wrong} of {one.calls[kind]} calls of {name} did not find what they should")
        figures |= {
            f"{name}_p50_ms": quantile(one.took_ms[kind], 0.5),
            f"{name}_p95_ms": quantile(one.took_ms[kind], 0.95),
            f"{name}_cpu_ms": statistics.fmean(one.cpu_ms[kind]),
            f"{name}_wrong": wrong,
        }
    return figures


def ratios(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """Theirs divided by ours: above 1 we are quicker; None where one was left out."""
    pairs = (
        ("hivemind_get_p50_ms", "remote_hit_p50_ms"),
        ("kad_get_p50_ms", "remote_hit_p50_ms"),
        ("kad_get_cpu_ms", "remote_hit_cpu_ms"),
    )
    return {
        name: None if figures.get(theirs) is None else figures[theirs] / figures[ours]
        for name, (theirs, ours) in zip(RATIOS, pairs, strict=True)
    }


def flat(sizes: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of the largest size under their names, of the others behind `n4.`; None for sizes that were left out."""
    result: dict[str, Any] = {}
    for count in reversed(SIZES):
        figures = sizes.get(count, dict.fromkeys((*FIGURES, *RATIOS)))
        prefix = "" if count == MAIN else f"n{count}."
        result |= {f"{prefix}{name}": value for name, value in figures.items()}
    return result


def growth(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """How much more a hit takes in the largest simulated network than in the smallest, and log n's own growth."""
    first, last = rows[0], rows[-1]
    if first["peers"] == last["peers"]:
        return {"messages_growth": None, "log_growth": None, "messages_growth_vs_log": None}
    messages = last["hit_messages"] / first["hit_messages"]
    log = math.log(last["peers"]) / math.log(first["peers"])
    return {"messages_growth": messages, "log_growth": log, "messages_growth_vs_log": messages / log}


def markdown(result: Mapping[str, Any]) -> str:
    """The figures, as people read them."""
    plain = {name: value for name, value in result.items() if name not in NESTED}
    parts = [table(result["goals"]), facts(plain), "Simulated, a look-up on average:", table(result["simulated"])]
    return "\n\n".join([*parts, facts(result["machine"])])


def main() -> int:
    """Measure what the arguments ask for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of Markdown")
    parser.add_argument("--quick", action="store_true", help="16 peers only, fewer calls: about a minute")
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, help="numbers of peers, instead of all")
    parser.add_argument("--without", nargs="+", choices=OPPONENTS, default=[], help="opponents to leave out")
    parser.add_argument("--without-simulation", action="store_true", help="leave simulated networks out")
    options = parser.parse_args()
    quick = options.quick
    about = machine()
    opponents = [name for name in OPPONENTS if name not in options.without]
    if "hivemind" in opponents and not has_hivemind():
        said("hivemind is not here and left out: `make bench-setup` installs it")
        opponents.remove("hivemind")
    extent = QUICK if quick else FULL
    wanted = options.sizes or ((MAIN,) if quick else SIZES)
    result = flat({count: measured(count, extent, opponents) for count in wanted})
    simulated: list[dict[str, Any]] = []
    if not options.without_simulation:
        simulated = [{"peers": count, **costs(count)} for count in (QUICK_SIMULATED if quick else SIMULATED)]
    result["simulated"] = simulated
    result |= (
        growth(simulated) if simulated else dict.fromkeys(("messages_growth", "log_growth", "messages_growth_vs_log"))
    )
    result["goals"] = goals.judged(goals.DHT, result)
    result["machine"] = about | at_end()
    print(json.dumps(result, indent=1) if options.json else markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
