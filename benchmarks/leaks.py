"""What a stranger learns from the time that a holder takes: `python -m benchmarks.leaks [--quick] [--json FILE]`.

A holder of public records, which is in a group and holds its records and envelopes too, serves look-ups with the
handler, the stores and the libp2p host of a peer. A stranger on loopback asks it, in random order: for keys that the
group has, for embeddings of the group's questions, for public keys that are there, and for others that nobody has.
How well two kinds can be told apart is the area under the ROC curve of the least of three times until the answer has
ended: 0.5 is a guess, 1 is certainty. The public keys are the control: if they cannot be told apart either, the
measurement sees nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import trio

from benchmarks.cache_latency import quantile
from benchmarks.cache_records import Maker
from benchmarks.report import machine, table
from nsllm.cache_dht.group import Group
from nsllm.cache_dht.reuse import LEAST_COSINE
from nsllm.cache_dht.sealed import CertifiedSealed, sign_sealed
from nsllm.cache_dht.sealed_store import SealedStore
from nsllm.cache_dht.store import RecordStore
from nsllm.clock import SystemClock
from nsllm.consensus.certified import CertifiedRecord
from nsllm.consensus.registry import MemberRegistry, RegistryState
from nsllm.crypto import MemberKey
from nsllm.embedding import quantize_embedding
from nsllm.ids import Digest
from nsllm.offload import ThreadOffload
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.libp2p_network import Libp2pNetwork
from nsllm.p2p.protocols.fetch import FETCH, MAX_NEAR, Fetcher, serve_fetch
from nsllm.p2p.rates import Rate
from nsllm.record import sign_record

PAD_MS: Final = 20
RECORDS: Final = 1000
"""Of each kind that the holder has."""
WARM: Final = 10
"""Look-ups of each kind that are not counted."""
REPEATS: Final = 3
"""A stranger asks several times and takes the least: that is what noise hides worst."""
UNLIMITED: Final = Rate(per_peer=10**9, total=10**9)
SEALER: Final = MemberKey(bytes([2]) * 32)


@dataclass(frozen=True)
class Shelf:
    """What the holder has, and what a stranger may ask for."""

    records: RecordStore
    group_keys: tuple[Digest, ...]
    group_embeddings: tuple[bytes, ...]
    public_keys: tuple[Digest, ...]


def separation(ones: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Area under the ROC curve, never below 0.5, and half the width of its 95 % interval under no difference."""
    both = np.concatenate([np.asarray(ones), np.asarray(others)])
    ranks = both.argsort(kind="stable").argsort(kind="stable")[: len(ones)] + 1
    area = (ranks.sum() - len(ones) * (len(ones) + 1) / 2) / (len(ones) * len(others))
    spread = 1.96 * ((len(ones) + len(others) + 1) / (12 * len(ones) * len(others))) ** 0.5
    return max(float(area), 1 - float(area)), float(spread)


async def filled(folder: Path, make: Maker, rng: np.random.Generator) -> Shelf:
    """A holder's stores on disk: public records, and a group's in the clear and sealed."""
    clock, offload = SystemClock(), ThreadOffload()
    records = RecordStore.open(folder / "records.sqlite", clock, offload)
    own = RecordStore.open(folder / "group.sqlite", clock, offload)
    sealed = SealedStore.open(folder / "sealed.sqlite", clock, offload)
    group = Group("lab", rng.bytes(32))
    keys, embeddings, public = [], [], []
    for number in range(RECORDS):
        certified, key = make.record(f"public question {number}", vector(rng))
        await records.put(certified, key, 900_000)
        public.append(key)
        private = within(group, make.record(f"our question {number}", vector(rng))[0])
        await own.put(private, private.leaf.request_key, 900_000)
        await sealed.put(enveloped(group, private))
        keys.append(private.leaf.request_key)
        embeddings.append(private.signed.record.embedding)
    return Shelf(records, tuple(keys), tuple(embeddings), tuple(public))


def within(group: Group, certified: CertifiedRecord) -> CertifiedRecord:
    """The same record, made within a group. Its certificate is another's: no look-up of a stranger reads it."""
    replace, record = msgspec.structs.replace, certified.signed.record
    salted = replace(record, visibility="group", salt=group.salt(record.network, record.request))
    leaf = replace(certified.leaf, record=salted.digest(), request_key=salted.key())
    return replace(certified, signed=sign_record(MemberKey(bytes([1]) * 32), salted), leaf=leaf)


def enveloped(group: Group, certified: CertifiedRecord) -> CertifiedSealed:
    """A group's record as holders get it."""
    network = certified.signed.record.network
    sealed = group.seal(network, certified.signed, SEALER.address)
    return CertifiedSealed(
        envelope=sign_sealed(SEALER, network, sealed),
        leaf=certified.leaf,
        inclusion=certified.inclusion,
        certificate=certified.certificate,
    )


def vector(rng: np.random.Generator) -> bytes:
    """A unit vector at random, quantized."""
    found = rng.normal(size=384)
    return quantize_embedding((found / np.linalg.norm(found)).tolist())


async def timed(once: Callable[[], Awaitable[object]]) -> float:
    """Seconds until the answer has ended."""
    began_s = trio.current_time()
    await once()
    return trio.current_time() - began_s


async def asked(shelf: Shelf, make: Maker, rounds: int, pad_s: float) -> dict[str, list[float]]:
    """Seconds that each kind of look-up took, asked in random order `rounds` times each."""
    rng, noise = random.Random(3), np.random.default_rng(4)
    network = make.record("which network", vector(noise))[0].signed.record.network
    listen = ["/ip4/127.0.0.1/tcp/0"]
    holder, stranger = (Libp2pNetwork(secret=bytes([n]) * 32, listen=listen, local=True) for n in (1, 2))
    directory = PeerDirectory(network, MemberRegistry(network, RegistryState(members=())), SystemClock())

    async def lookup(key: Digest, member: bool) -> CertifiedRecord | None:
        return await shelf.records.get(key, public_only=not member)

    async def near(embedding: bytes, count: int, member: bool) -> list[CertifiedRecord]:
        found = await shelf.records.near(embedding, count, least=LEAST_COSINE, public_only=not member)
        return [certified for certified, _ in found]

    holder.handle(FETCH, serve_fetch(directory, lookup, near, strangers=UNLIMITED, pad_s=lambda: pad_s))
    fetcher = Fetcher(stranger)
    by_key = partial(fetcher.by_keys, holder.peer_id)
    by_meaning = partial(fetcher.near, holder.peer_id, count=MAX_NEAR)
    # What is asked is made before the clock starts.
    kinds: dict[str, Callable[[], Callable[[], Awaitable[object]]]] = {
        "group key": lambda: partial(by_key, [rng.choice(shelf.group_keys)]),
        "no key": lambda: partial(by_key, [Digest(rng.randbytes(32))]),
        "public key": lambda: partial(by_key, [rng.choice(shelf.public_keys)]),
        "group meaning": lambda: partial(by_meaning, embedding=rng.choice(shelf.group_embeddings)),
        "no meaning": lambda: partial(by_meaning, embedding=vector(noise)),
    }
    order = [kind for kind in kinds for _ in range(rounds)]
    rng.shuffle(order)
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    async with holder.run(), stranger.run():
        await stranger.connect(holder.addresses()[0])
        for kind in [*list(kinds) * WARM, *order]:
            once = kinds[kind]()
            took[kind].append(min([await timed(once) for _ in range(REPEATS)]))
    return {kind: found[WARM:] for kind, found in took.items()}


PAIRS: Final = (
    ("group_key", "group key", "no key"),
    ("group_meaning", "group meaning", "no meaning"),
    ("public_key", "public key", "no key"),
)


async def measured(make: Maker, rounds: int) -> dict[str, Any]:
    """Both settings, one after the other."""
    figures: dict[str, Any] = {"rounds": rounds, "pad_ms": PAD_MS}
    with tempfile.TemporaryDirectory() as folder:
        shelf = await filled(Path(folder), make, np.random.default_rng(5))
        for setting, pad_s in (("plain", 0.0), ("padded", PAD_MS / 1000)):
            took = await asked(shelf, make, rounds, pad_s)
            for name, ones, others in PAIRS:
                figures[f"{setting}_{name}_auc"], spread = separation(took[ones], took[others])
            figures["chance"] = spread
            for kind, found in took.items():
                for label, share in (("p5", 0.05), ("p50", 0.5), ("p95", 0.95)):
                    figures[f"{setting}_{kind.replace(' ', '_')}_{label}_ms"] = 1000 * quantile(found, share)
    return figures


def shown(figures: dict[str, Any]) -> str:
    """Markdown for people."""
    rows = [
        {
            "told apart by time": f"{ones}, {others}",
            "at once": round(figures[f"plain_{name}_auc"], 3),
            f"padded to {PAD_MS} ms": round(figures[f"padded_{name}_auc"], 3),
        }
        for name, ones, others in PAIRS
    ]
    return f"{table(rows)}\n\n0.5 is a guess; chance alone gives up to {0.5 + figures['chance']:.3f} in 95 of 100 runs."


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 look-ups of each kind instead of 1,000")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    options = parser.parse_args()
    about = machine()
    figures = trio.run(measured, Maker(), 100 if options.quick else 1000)
    print(shown(figures))
    if options.json:
        options.json.write_text(json.dumps({"machine": about, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
