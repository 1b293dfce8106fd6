"""What the document store acknowledges is on disk, within its bounds; what was withdrawn stays away."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from nsllm.cache_dht.document_store import MEMBER_PART, DocumentStore
from nsllm.cache_dht.errors import StoreError
from nsllm.cache_dht.withdrawal import Withdrawal, sign_withdrawal
from nsllm.clock import SystemClock
from nsllm.errors import EncodingError, SignatureError
from nsllm.ids import ZERO_DIGEST, Digest, NetworkId
from nsllm.offload import InlineOffload
from nsllm.record import Chunk, sign_chunk

NETWORK = NetworkId(b"\x07" * 32)


def chunk(key, number=0, *, document=b"\1", text="some text", created_ms=1_000, seed=None):
    embedding = random.Random(number if seed is None else seed).randbytes(384)
    return sign_chunk(
        key,
        Chunk(
            network=NETWORK,
            member=key.address,
            document=Digest(document * 32),
            source="a.txt",
            number=number,
            start=number * 10,
            end=number * 10 + 9,
            text=text,
            encoder=ZERO_DIGEST,
            embedding=embedding,
            created_ms=created_ms,
        ),
    )


def withdrawal(key, at_ms, document=b"\1"):
    return sign_withdrawal(
        key, Withdrawal(network=NETWORK, member=key.address, document=Digest(document * 32), at_ms=at_ms)
    )


@pytest.fixture
def opened(net, tmp_path):
    def make(max_bytes=None, path=tmp_path / "documents.sqlite"):
        return DocumentStore.open(path, net.keys[0].address, SystemClock(), InlineOffload(), max_bytes=max_bytes)

    return make


async def test_chunks_survive_and_are_found_by_meaning(net, opened) -> None:
    store = opened()
    mine = [chunk(net.keys[0], number) for number in range(5)]
    assert await store.put(mine) == 5
    assert await store.put(mine) == 0
    store.close()
    store = opened()
    (first, *_) = await store.near(mine[3].chunk.embedding, 2)
    assert first.signed == mine[3]
    assert first.cosine == pytest.approx(1.0, abs=1e-4)
    (row,) = await store.documents(net.keys[0].address)
    assert (row.source, row.chunks, row.document) == ("a.txt", 5, mine[0].chunk.document)
    assert await store.documents(net.keys[1].address) == ()
    assert (await store.stats()).chunks == 5
    assert await store.lacking([mine[0].chunk.digest(), ZERO_DIGEST]) == (ZERO_DIGEST,)
    assert await store.numbers(net.keys[0].address, mine[0].chunk.document) == ("a.txt", frozenset(range(5)))


async def test_a_withdrawal_takes_back_what_came_before_it_and_keeps_it_away(net, opened) -> None:
    store = opened()
    key, other = net.keys[:2]
    old, new = chunk(key, 0, created_ms=1_000), chunk(key, 1, created_ms=3_000)
    foreign = chunk(other, 0, created_ms=1_000)
    await store.put([old, new, foreign])
    assert await store.withdraw(withdrawal(key, 2_000)) == 1
    assert await store.put([old]) == 0
    assert {found.signed for found in await store.near(old.chunk.embedding, 9)} == {new, foreign}
    assert await store.withdraw(withdrawal(key, 1_500)) == 0  # an earlier one changes nothing
    (kept,) = await store.withdrawals([(key.address, old.chunk.document)])
    assert kept.withdrawal.at_ms == 2_000
    assert await store.own_withdrawals(9) == (kept,)


async def test_the_store_is_bounded_and_nobody_else_takes_more_than_its_share(net, opened) -> None:
    text = "x" * 3_000
    store = opened(max_bytes=200_000)
    own, other, third = net.keys[:3]
    with pytest.raises(StoreError, match="share of 50000"):
        await store.put([chunk(other, number, text=text) for number in range(20)])
    assert (await store.stats()).chunks == 0  # none of them
    few = [chunk(other, number, text=text) for number in range(9)]
    await store.put(few)
    await store.put([chunk(third, number, document=b"\3", text=text) for number in range(9)])
    mine = [chunk(own, number, document=b"\2", text=text) for number in range(40)]
    with pytest.raises(StoreError, match="is full"):
        await store.put(mine)
    store.ours = lambda embedding: embedding != few[0].chunk.embedding  # placement changed
    assert await store.put(mine[:25]) == 25
    assert few[0].chunk.digest() in await store.lacking([one.chunk.digest() for one in few])
    assert (await store.stats()).size_bytes <= 200_000
    assert MEMBER_PART == 4


async def test_a_damaged_file_is_moved_aside(net, opened, tmp_path) -> None:
    (tmp_path / "documents.sqlite").write_bytes(b"no database" * 1000)
    store = opened()
    assert "document store was damaged" in store.notice
    assert await store.put([chunk(net.keys[0])]) == 1


def test_what_is_not_its_members_does_not_verify(net) -> None:
    good = chunk(net.keys[0])
    good.check(NETWORK)
    with pytest.raises(SignatureError):
        replace(good, chunk=replace(good.chunk, text="another text")).check(NETWORK)
    with pytest.raises(SignatureError):
        replace(good, chunk=replace(good.chunk, member=net.keys[1].address)).check(NETWORK)
    with pytest.raises(EncodingError, match="of network"):
        good.check(NetworkId(bytes(32)))
    with pytest.raises(EncodingError, match="end after its start"):
        sign_chunk(net.keys[0], replace(good.chunk, start=9)).check(NETWORK)
    said = withdrawal(net.keys[0], 5)
    said.check(NETWORK)
    with pytest.raises(SignatureError):
        replace(said, withdrawal=replace(said.withdrawal, member=net.keys[1].address)).check(NETWORK)
