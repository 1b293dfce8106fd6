"""A store that is full: what leaves it first, what stays, and what is said when nothing may leave."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm import canonical
from nsllm.cache_dht.errors import StoreError
from nsllm.cache_dht.eviction import HALF_LIFE_MS, ROW_BYTES, SETTLE_MS, Shelved, fresh, served, victims, worth
from nsllm.cache_dht.store import RecordStore
from nsllm.ids import TimeMs
from nsllm.offload import InlineOffload

SHELVED = st.lists(st.tuples(st.integers(1, 100), st.booleans()), max_size=30).map(
    lambda rows: [Shelved(row, size, ours) for row, (size, ours) in enumerate(rows)]
)


@given(SHELVED, st.integers(-10, 2000))
def test_enough_leaves_and_no_more(shelved, needed):
    chosen = victims(shelved, needed)
    sizes = [shelved[row].size_bytes for row in chosen]
    assert sum(sizes) >= needed or len(chosen) == len(shelved)
    assert not sizes or sum(sizes[:-1]) < needed


@given(SHELVED, st.integers(1, 2000))
def test_others_records_leave_first_and_within_each_kind_the_least_valuable(shelved, needed):
    chosen = set(victims(shelved, needed))
    kept = [one for one in shelved if one.row not in chosen]
    for one in (one for one in shelved if one.row in chosen):
        assert all(other.ours > one.ours or other.row > one.row for other in kept if other.ours <= one.ours)


@given(st.lists(st.integers(0, 10 * HALF_LIFE_MS), min_size=1, max_size=20))
def test_demand_fades_by_half_in_a_half_life(times):
    times.sort()
    value = fresh(0.0, times[0])
    for time in times[1:]:
        value = served(value, 0.0, time)
    now = times[-1]
    demand = sum(0.5 ** ((now - time) / HALF_LIFE_MS) for time in times)
    assert 2 ** (value - now / HALF_LIFE_MS) == pytest.approx(demand)


def test_value_is_what_is_saved_times_demand_over_size(certify):
    record = certify().signed.record
    longer = msgspec.structs.replace(record, token_ids=tuple(range(100)))
    assert worth(longer, 1000) > worth(record, 1000) > worth(record, 2000)
    assert worth(longer, 2000) == pytest.approx(worth(longer, 1000) - 1)
    untold = msgspec.structs.replace(record, token_ids=(), prompt_token_ids=(), text="word " * 80)
    assert worth(untold, 1000) == pytest.approx(worth(longer, 1000), abs=0.1)
    # two servings now outweigh three a half-life ago; what is twice as dear outweighs twice the demand of long ago
    old, new = 0, HALF_LIFE_MS
    thrice = served(served(fresh(0.0, old), 0.0, old), 0.0, old)
    assert served(fresh(0.0, new), 0.0, new) > thrice > fresh(0.0, new)


class Hands:
    """A clock that a test sets."""

    ms = TimeMs(1_700_000_000_000)

    def now_ms(self) -> TimeMs:
        return self.ms


class Full:
    """A store with room for `count` of our records."""

    def __init__(self, certify, path=None, *, count=8):
        self.clock = Hands()
        self.certify = certify
        self.size = len(canonical.encode(self.record(0))) + ROW_BYTES
        self.max_bytes = count * self.size + self.size // 2
        self.path = path
        self.store = self.open()

    def open(self):
        return RecordStore.open(self.path, self.clock, InlineOffload(), max_bytes=self.max_bytes)

    def record(self, number):
        return self.certify(f"question {number:04}", "answer")

    async def put(self, *numbers):
        for number in numbers:
            record = self.record(number)
            assert await self.store.put(record, record.leaf.request_key, 900_000)

    async def there(self):
        """Numbers of the records that are in it."""
        digests = await self.store.digests()
        return [number for number in range(100) if self.record(number).leaf.record in digests]

    def settle(self):
        self.clock.ms = TimeMs(self.clock.ms + SETTLE_MS)


async def test_the_least_recently_served_leaves(certify):
    full = Full(certify)
    await full.put(*range(8))
    full.settle()
    for number in (0, 1, 2):
        assert await full.store.get(full.record(number).leaf.request_key)
    await full.put(8, 9)
    assert await full.there() == [0, 1, 2, 5, 6, 7, 8, 9]
    assert (await full.store.stats()).indexed == 8
    assert await full.store.by_digest(full.record(3).leaf.record) is None
    await full.put(3)  # it may come back
    assert await full.there() == [0, 1, 2, 3, 6, 7, 8, 9]
    await full.put(20, 21, 22, 23)  # 8 and 9 are new; of those that were served, the one that was served first
    assert await full.there() == [2, 3, 8, 9, 20, 21, 22, 23]


async def test_demand_is_kept_through_a_restart_and_counts_for_like_questions(certify, tmp_path):
    full = Full(certify, tmp_path / "records.sqlite")
    await full.put(*range(8))
    assert await full.store.get(full.record(0).leaf.request_key)
    await full.store.served(full.record(1).leaf.record)
    assert await full.store.get(full.record(2).leaf.request_key, public_only=True)  # a stranger
    await full.store.served(full.record(50).leaf.record)  # not there
    full.store.close()
    full.settle()
    full.store = full.open()
    await full.put(*range(8, 14))
    assert await full.there() == [0, 1, *range(8, 14)]


async def test_of_equal_demand_the_dearer_stays(certify):
    full = Full(certify)
    await full.put(0, 1)
    dear = certify("question dear", "answer " * 60)
    dear = msgspec.structs.replace(dear.signed.record, token_ids=tuple(range(500)))
    certified = certify(record=dear)
    assert await full.store.put(certified, certified.leaf.request_key, 900_000)
    await full.put(2, 3)
    full.settle()
    await full.put(4, 5, 6, 7)
    assert certified.leaf.record in await full.store.digests()
    assert 0 not in await full.there()


async def test_what_others_hold_leaves_before_what_we_hold(certify):
    full = Full(certify)
    await full.put(*range(8))
    full.settle()
    theirs = {full.record(number).leaf.request_key for number in (2, 6)}
    full.store.ours = lambda key, _embedding: key not in theirs
    assert await full.store.get(full.record(6).leaf.request_key)  # however often it is served
    await full.put(8, 9, 10)
    assert await full.there() == [1, 3, 4, 5, 7, 8, 9, 10]


async def test_what_came_a_moment_ago_stays_and_the_store_says_that_it_is_full(certify):
    full = Full(certify)
    await full.put(*range(8))
    assert full.store.crowded
    with pytest.raises(StoreError, match=r"is full: .* came within 15 minutes stays") as refused:
        await full.put(8)
    assert "cache.max_mb" in refused.value.hint
    assert await full.there() == list(range(8))
    full.settle()
    await full.put(8)
    assert await full.there() == list(range(1, 9))


async def test_the_bound_holds_after_a_restart_and_with_a_smaller_limit(certify, tmp_path):
    full = Full(certify, tmp_path / "records.sqlite")
    await full.put(*range(8))
    full.settle()
    full.store.close()
    full.max_bytes //= 2
    full.store = full.open()
    assert len(await full.there()) == 8  # until the next one comes
    await full.put(8)
    assert await full.there() == [5, 6, 7, 8]
    assert await full.store.erase([full.record(5).leaf.record])
    await full.put(9)
    assert await full.there() == [6, 7, 8, 9]


async def test_a_record_that_is_there_already_evicts_nothing(certify):
    full = Full(certify)
    await full.put(*range(8))
    full.settle()
    record = full.record(7)
    assert not await full.store.put(record, record.leaf.request_key, 900_000)
    assert await full.there() == list(range(8))
    assert not Full(certify).store.crowded
