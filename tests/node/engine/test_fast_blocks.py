"""Blocks of keys and values: who holds them, what is found again, and that no more are given than there are."""

from __future__ import annotations

import random

import pytest

from nsllm.node.engine.fast.blocks import BlockPool

SIZE = 4


def pool_of(count, spare=0):
    return BlockPool(count, SIZE, spare)


def fill(pool, lease, tokens):
    pool.grow(lease, len(tokens))
    pool.written(lease, tokens)


def opened(pool, tokens, more=0, *, side=False):
    """A lease with all of `tokens` read."""
    lease = pool.open(tokens, len(tokens) + more, side=side)
    fill(pool, lease, tokens[lease.read :])
    return lease


def test_a_beginning_is_found_while_its_first_reader_still_holds_it():
    pool = pool_of(16)
    first = opened(pool, list(range(10)))
    second = pool.open([*range(8), 77, 78], 12, side=False)
    assert second.read == 8
    assert second.blocks == first.blocks[:2]
    assert pool.found_tokens == 8


def test_a_beginning_is_found_after_its_readers_have_gone():
    pool = pool_of(16)
    first = opened(pool, list(range(10)))
    blocks = list(first.blocks)
    pool.close(first)
    assert pool.free == 16
    assert pool.open(list(range(10)), 12, side=False).blocks == blocks[:2]


def test_the_last_token_is_always_left_to_read():
    pool = pool_of(16)
    pool.close(opened(pool, list(range(8))))
    assert pool.open(list(range(8)), 8, side=False).read == 4


def test_a_block_counts_only_after_the_same_beginning():
    pool = pool_of(16)
    opened(pool, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert pool.open([9, 9, 9, 9, 5, 6, 7, 8, 9], 9, side=False).read == 0


def test_generated_tokens_are_found_by_the_next_turn():
    pool = pool_of(16)
    lease = opened(pool, [1, 2, 3], 10)
    for token in range(10, 16):
        fill(pool, lease, [token])
    pool.close(lease)
    assert pool.open([1, 2, 3, *range(10, 16), 99], 12, side=False).read == 8


def test_room_is_promised_before_it_is_taken():
    pool = pool_of(4)
    first = pool.open([1], 3 * SIZE, side=False)
    assert pool.free == 1
    assert pool.open([2], 2 * SIZE, side=False) is None
    assert pool.open([2], SIZE, side=False) is not None
    pool.close(first)
    assert pool.free == 3


def test_nobody_takes_more_than_was_promised():
    pool = pool_of(4)
    lease = pool.open([1], SIZE, side=False)
    with pytest.raises(ValueError, match="beyond what it asked for"):
        pool.grow(lease, SIZE + 1)


def test_side_work_has_room_of_its_own():
    pool = pool_of(4, spare=2)
    assert pool.open([1], 3 * SIZE, side=False) is None
    assert pool.open([1], 2 * SIZE, side=False) is not None
    assert pool.open([2], SIZE, side=False) is None
    assert pool.open([2], 2 * SIZE, side=True) is not None


def test_side_work_in_its_own_room_leaves_generations_theirs():
    pool = pool_of(4, spare=2)
    judged = pool.open([2], 2 * SIZE, side=True)
    assert pool.open([1], 2 * SIZE, side=False) is not None
    pool.close(judged)
    assert pool.free == 2
    assert pool.open([1], SIZE, side=False) is None


def test_ends_of_conversations_are_forgotten_first():
    pool = pool_of(4)
    pool.close(opened(pool, list(range(3 * SIZE))))
    opened(pool, [50] * SIZE, SIZE)  # the untouched block, and one that has to be forgotten
    fill(pool, pool.open([60], 1, side=False), [60])
    found = pool.open(list(range(3 * SIZE + 1)), 3 * SIZE, side=True)
    assert found is None or found.read == 2 * SIZE


def test_the_least_recently_used_conversation_is_forgotten_first():
    pool = pool_of(4)
    old, young = [1] * (SIZE + 1), [2] * (SIZE + 1)
    for tokens in (old, young, old):
        pool.close(opened(pool, tokens))
    pool.close(opened(pool, [3] * (3 * SIZE)))
    assert pool.open(old, SIZE + 1, side=False).read == SIZE
    assert pool.open(young, SIZE + 1, side=False).read == 0


@pytest.mark.parametrize("seed", range(20))
def test_no_block_has_two_writers_and_none_is_lost(seed):
    rng = random.Random(seed)
    pool, held = pool_of(24, spare=4), []
    contents: dict[int, tuple] = {}
    for _ in range(300):
        if held and rng.random() < 0.4:
            pool.close(held.pop(rng.randrange(len(held)))[0])
        tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 30))]
        lease = pool.open(tokens, len(tokens), side=rng.random() < 0.3)
        if lease is None:
            continue
        known = lease.read
        for index in range(known // SIZE):  # what is found is what was written there
            assert contents[lease.blocks[index]] == tuple(tokens[: (index + 1) * SIZE])
        fill(pool, lease, tokens[known:])
        held.append((lease, tokens))
        written = lease.blocks[known // SIZE :]
        others = [block for other, _ in held[:-1] for block in other.blocks]
        assert not set(written) & set(others)
        for index in range(known // SIZE, len(lease.blocks)):
            contents[lease.blocks[index]] = tuple(tokens[: (index + 1) * SIZE])
        assert pool.free == 24 - len({block for other, _ in held for block in other.blocks})
    for lease, _ in held:
        pool.close(lease)
    assert pool.free == 24


def test_twins_go_on_behind_each_other():
    pool = pool_of(16)
    tokens = list(range(18))
    first, second = (pool.open(tokens, 20, side=False) for _ in range(2))
    fill(pool, first, tokens[:9])
    fill(pool, second, tokens[:3])  # the beginning of a block of its own
    free = pool.free
    pool.catch_up(second, tokens)
    assert second.blocks == first.blocks[:2]
    assert second.read == 8
    assert pool.free == free + 2  # it needs two blocks less than it was promised
    assert pool.found_tokens == 5
    fill(pool, first, tokens[9:])
    pool.catch_up(second, tokens)
    assert second.read == 16
    fill(pool, second, tokens[16:])
    assert second.blocks[:4] == first.blocks[:4]
    assert second.blocks[4] != first.blocks[4]
    for lease in (first, second):
        pool.close(lease)
    assert pool.free == 16
    assert pool.used == 0


def test_the_last_token_is_left_to_read_by_those_who_catch_up_too():
    pool = pool_of(16)
    tokens = list(range(8))
    first, second = (pool.open(tokens, 10, side=False) for _ in range(2))
    fill(pool, first, tokens)
    pool.catch_up(second, tokens)
    assert second.read == 4


@pytest.mark.parametrize("seed", range(10))
def test_whoever_catches_up_holds_what_it_would_have_written(seed):
    rng = random.Random(seed)
    pool, contents = pool_of(40), {}
    prompts = [[rng.randrange(2) for _ in range(3)] + [7] * rng.randrange(30) for _ in range(8)]
    prompts += prompts[:4]
    leases = [(pool.open(prompt, len(prompt), side=False), prompt) for prompt in prompts]
    leases = [(lease, prompt) for lease, prompt in leases if lease is not None]
    pending = list(leases)
    while pending:
        lease, prompt = rng.choice(pending)
        pool.catch_up(lease, prompt)
        for index in range(len(lease.names)):
            assert contents[lease.blocks[index]] == prompt[: (index + 1) * SIZE]
        start = lease.read
        assert start < len(prompt)
        fill(pool, lease, prompt[start : start + rng.randrange(1, 9)])
        for index in range(start // SIZE, lease.read // SIZE):
            contents[lease.blocks[index]] = prompt[: (index + 1) * SIZE]
        if lease.read == len(prompt):
            pending.remove((lease, prompt))
        assert pool.used == len({block for other, _ in leases for block in other.blocks})
    for lease, prompt in leases:
        assert lease.token_ids == prompt
        assert lease.reserved >= 0
        pool.close(lease)
    assert pool.free == 40


class Memory:
    """A pool whose blocks hold the tokens that were written to them."""

    def __init__(self, count, spare=0):
        self.blocks = [[None] * SIZE for _ in range(count)]
        self.copies = []
        self.pool = BlockPool(count, SIZE, spare, copy=self.copy)

    def copy(self, source, target):
        self.copies.append((source, target))
        self.blocks[target] = list(self.blocks[source])

    def fill(self, lease, tokens):
        start = lease.read
        self.pool.grow(lease, len(tokens))
        for at, token in enumerate(tokens, start):
            self.blocks[lease.blocks[at // SIZE]][at % SIZE] = token
        self.pool.written(lease, tokens)

    def held(self, lease):
        return [self.blocks[lease.blocks[at // SIZE]][at % SIZE] for at in range(lease.read)]


def test_a_block_that_begins_alike_is_copied_as_far_as_it_is():
    here = Memory(16)
    first = here.pool.open([1, 2, 3, 4, 5, 6, 7, 8, 9], 10, side=False)
    here.fill(first, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    second = here.pool.open([1, 2, 3, 4, 5, 6, 70, 80], 12, side=False)
    assert second.read == 6
    assert here.copies == [(first.blocks[1], second.blocks[1])]
    here.fill(second, [70, 80])
    assert here.held(first) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert here.held(second) == [1, 2, 3, 4, 5, 6, 70, 80]
    third = here.pool.open([1, 2, 3, 4, 5, 6, 70, 80], 12, side=False)
    assert third.read == 7  # the last token remains, and the block that is most alike was taken
    assert here.pool.found_tokens == 6 + 7


@pytest.mark.parametrize("seed", range(10))
def test_sequences_hold_their_own_tokens_however_they_begin(seed):
    rng = random.Random(seed)
    here, held = Memory(20, spare=4), []
    for _ in range(300):
        if held and rng.random() < 0.5:
            lease, tokens = held.pop(rng.randrange(len(held)))
            assert here.held(lease) == tokens
            here.pool.close(lease)
        tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 26))]
        lease = here.pool.open(tokens, len(tokens), side=rng.random() < 0.3)
        if lease is None:
            continue
        assert lease.read < len(tokens)
        assert here.held(lease) == tokens[: lease.read]
        while lease.read < len(tokens):
            here.fill(lease, tokens[lease.read : lease.read + rng.randrange(1, 9)])
            here.pool.catch_up(lease, tokens)
        assert here.held(lease) == tokens
        held.append((lease, tokens))
        assert here.pool.used == len({block for other, _ in held for block in other.blocks})
        assert all(other.reserved == 0 for other, _ in held)
    for lease, _ in held:
        here.pool.close(lease)
    assert here.pool.free == 20
    assert len(here.copies) > 20
