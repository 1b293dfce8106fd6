"""Shared embeddings: what they prove by themselves, and a store of them that stays within its bound."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from nsllm.cache_dht.embedded import (
    Embedded,
    SignedEmbedded,
    embedding_key,
    packed,
    sign_embedded,
    text_digest,
    unpacked,
)
from nsllm.cache_dht.embedding_store import ROW_BYTES, EmbeddingStore
from nsllm.clock import SystemClock
from nsllm.crypto import MemberKey
from nsllm.errors import PeerFault
from nsllm.ids import Digest, NetworkId
from nsllm.offload import InlineOffload

NETWORK, ENCODER = NetworkId(b"\x07" * 32), Digest(b"\x02" * 32)
KEYS = [MemberKey(bytes([n]) * 32) for n in (1, 2, 3)]
UNIT = (0.6, 0.8, *([0.0] * 382))


def embedded(text: str, *, by: int = 0, vector=UNIT, network=NETWORK) -> SignedEmbedded:
    key = KEYS[by]
    one = Embedded(
        network=network,
        member=key.address,
        encoder=ENCODER,
        text=text_digest(network, text),
        vector=packed(vector),
        tokens=3,
        created_ms=1_000,
    )
    return sign_embedded(key, one)


def test_what_its_member_signed_passes_and_nothing_else() -> None:
    good = embedded("tides")
    good.check(NETWORK)
    assert good.embedded.key() == embedding_key(NETWORK, ENCODER, text_digest(NETWORK, "tides"))
    assert unpacked(good.embedded.vector) == pytest.approx(UNIT)
    replace = msgspec.structs.replace
    changed = [
        replace(good, embedded=replace(good.embedded, vector=packed((0.8, 0.6, *([0.0] * 382))))),
        replace(good, embedded=replace(good.embedded, text=text_digest(NETWORK, "moons"))),
        replace(good, embedded=replace(good.embedded, member=KEYS[1].address)),
        embedded("tides", network=NetworkId(bytes(32))),
        embedded("tides", vector=(1.0, 1.0, *([0.0] * 382))),
        embedded("tides", vector=(math.nan, *([0.0] * 383))),
        embedded("tides", vector=(math.inf, *([0.0] * 383))),
        embedded("tides", vector=(0.0,) * 384),
    ]
    for one in changed:
        with pytest.raises(PeerFault):
            one.check(NETWORK)


def opened(path: Path | None, most: int | None = None) -> EmbeddingStore:
    limit = None if most is None else most * ROW_BYTES
    return EmbeddingStore.open(path, KEYS[0].address, SystemClock(), InlineOffload(), max_bytes=limit)


async def test_what_is_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.sqlite"
    store = opened(path)
    rows = [embedded(f"text {n}", by=n % 2) for n in range(4)]
    assert await store.put(rows) == 4
    assert await store.put(rows[1:2]) == 0
    store.close()
    store = opened(path)
    keys = [one.embedded.key() for one in rows]
    assert await store.get([*keys, Digest(bytes(32))]) == dict(zip(keys, rows, strict=True))
    store.close()
    path.write_bytes(b"no database" * 1000)
    store = opened(path)
    assert store.notice is not None
    assert await store.count() == 0


async def test_the_oldest_leave_and_no_member_has_more_than_its_share() -> None:
    store = opened(None, most=8)
    await store.put([embedded(f"own {n}") for n in range(6)])
    await store.put([embedded(f"theirs {n}", by=1) for n in range(5)])
    assert await store.count() == 8
    theirs = [embedded(f"theirs {n}", by=1).embedded.key() for n in range(5)]
    assert list(await store.get(theirs)) == theirs[3:]
    await store.put([embedded(f"more {n}") for n in range(8)])
    assert await store.get(theirs) == {}
    assert await store.count() == 8


async def test_what_we_computed_takes_the_place_of_what_another_said() -> None:
    store = opened(None)
    key = embedded("text").embedded.key()
    await store.put([embedded("text", by=1)])
    await store.put([embedded("text", by=2)])
    assert (await store.get([key]))[key] == embedded("text", by=1)
    await store.put([embedded("text")])
    assert (await store.get([key]))[key] == embedded("text")
