"""Blocks of keys and values: who holds which, and which beginnings are known already.

A full block is named by a hash over its tokens and the name of the block before it, so a name stands for everything up
to its end (as in nano-vllm's block manager). Blocks that nobody holds keep their contents until they are needed for
something else, least recently used first and ends of conversations before their beginnings. Where a block is known that
begins as wanted and goes on otherwise, its contents are copied: chat templates begin all conversations alike.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

ROOT: Final = b""
LOOKED_AT: Final = 8
"""Blocks after the same beginning that are compared with what is wanted, the latest of them."""


@dataclass(slots=True, eq=False)
class Lease:
    """A sequence's blocks."""

    reserved: int
    """Blocks that it may still take."""
    side: int
    """Blocks that it may hold in all, if it is side work's; else 0."""
    blocks: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    """Of its full blocks."""
    token_ids: list[int] = field(default_factory=list)
    """Tokens whose keys and values are in the blocks."""

    @property
    def read(self) -> int:
        """Tokens that are in the blocks."""
        return len(self.token_ids)


class BlockPool:
    """All blocks of a model.

    Args:
        count: blocks that there are.
        block_tokens: tokens in each.
        spare: blocks that only side work may take.
        copy: copies a block's contents, (from, to); None: only whole blocks are shared.
    """

    def __init__(
        self, count: int, block_tokens: int, spare: int, copy: Callable[[int, int], None] | None = None
    ) -> None:
        self._copy = copy
        self._count = count
        self._block_tokens = block_tokens
        self._spare = spare
        self._never_used = 0
        """Blocks from this number on are untouched memory: taken last."""
        self._empty: list[int] = []
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Named blocks without a holder, least recently used first."""
        self._holders = [0] * count
        self._names: dict[int, bytes] = {}
        self._by_name: dict[bytes, int] = {}
        self._followers: dict[bytes, dict[int, list[int]]] = {}
        """After each name, the blocks that go on from there and their tokens, in the order they were read."""
        self._before: dict[int, bytes] = {}
        """Name of the block before each named one."""
        self._promised = 0
        self._side = 0
        """Blocks that side work may hold."""
        self.found_tokens = 0
        """Tokens that did not have to be read, ever."""

    @property
    def count(self) -> int:
        """Blocks that there are."""
        return self._count

    @property
    def used(self) -> int:
        """Blocks that somebody holds."""
        return self._never_used - len(self._empty) - len(self._idle)

    @property
    def free(self) -> int:
        """Blocks that nobody holds or may still take."""
        return self._count - self._never_used + len(self._empty) + len(self._idle) - self._promised

    def open(self, token_ids: Sequence[int], most: int, *, side: bool) -> Lease | None:
        """A lease for a sequence that begins with `token_ids` and grows to `most` tokens, None if there is no room.

        It begins with what is known of `token_ids`, the last of them excluded.
        """
        known = self._known(token_ids)
        woken = sum(1 for _, block in known if not self._holders[block])
        size = -(-most // self._block_tokens)
        needed = size - len(known)
        if self.free - woken - needed < (0 if side else max(0, self._spare - self._side)):
            return None
        self._side += size if side else 0
        for _, block in known:
            self._idle.pop(block, None)
            self._holders[block] += 1
        self._promised += needed
        self.found_tokens += len(known) * self._block_tokens
        lease = Lease(
            reserved=needed,
            side=size if side else 0,
            blocks=[block for _, block in known],
            names=[name for name, _ in known],
            token_ids=list(token_ids[: len(known) * self._block_tokens]),
        )
        if self._copy is not None:
            self._begin(lease, token_ids[lease.read : len(token_ids) - 1], self._copy)
        return lease

    def catch_up(self, lease: Lease, token_ids: Sequence[int]) -> None:
        """Go on behind what other leases have read meanwhile of `token_ids`, with which this one's sequence begins.

        The last of `token_ids` is excluded. A block that the lease has read in part is exchanged for the whole one.
        """
        size = self._block_tokens
        while (end := (len(lease.names) + 1) * size) < len(token_ids):
            start = end - size
            name = _name(lease.names[-1] if lease.names else ROOT, token_ids[start:end])
            block = self._by_name.get(name)
            if block is None:
                return
            for own in lease.blocks[len(lease.names) :]:
                self._holders[own] = 0
                self._empty.append(own)
                lease.reserved += 1
                self._promised += 1
            self._idle.pop(block, None)
            self._holders[block] += 1
            lease.blocks[len(lease.names) :] = [block]
            lease.names.append(name)
            lease.reserved -= 1
            self._promised -= 1
            self.found_tokens += end - lease.read
            lease.token_ids[start:] = token_ids[start:end]

    def grow(self, lease: Lease, count: int) -> None:
        """Take the blocks that `count` more tokens need."""
        while len(lease.blocks) * self._block_tokens < lease.read + count:
            if not lease.reserved:
                raise ValueError(f"sequence of {lease.read} tokens grows by {count}, beyond what it asked for")
            lease.blocks.append(self._take())
            lease.reserved -= 1
            self._promised -= 1

    def written(self, lease: Lease, token_ids: Sequence[int]) -> None:
        """Keys and values of these tokens are in the blocks now."""
        lease.token_ids += token_ids
        size = self._block_tokens
        for index in range(len(lease.names), lease.read // size):
            before = lease.names[-1] if lease.names else ROOT
            name = _name(before, lease.token_ids[index * size : (index + 1) * size])
            lease.names.append(name)
            if name not in self._by_name:  # else a twin was quicker, and this block stays without a name
                block = lease.blocks[index]
                self._by_name[name] = block
                self._names[block] = name
                self._before[block] = before
                self._followers.setdefault(before, {})[block] = lease.token_ids[index * size : (index + 1) * size]

    def close(self, lease: Lease) -> None:
        """Let go of all blocks."""
        self._promised -= lease.reserved
        self._side -= lease.side
        lease.reserved = lease.side = 0
        for block in reversed(lease.blocks):
            self._holders[block] -= 1
            if not self._holders[block]:
                if block in self._names:
                    self._idle[block] = None
                else:
                    self._empty.append(block)
        lease.blocks.clear()

    def _known(self, token_ids: Sequence[int]) -> list[tuple[bytes, int]]:
        """Names and blocks that hold the beginning of `token_ids`, without the last token."""
        known: list[tuple[bytes, int]] = []
        name, size = ROOT, self._block_tokens
        for start in range(0, len(token_ids) - size, size):
            name = _name(name, token_ids[start : start + size])
            block = self._by_name.get(name)
            if block is None:
                break
            known.append((name, block))
        return known

    def _begin(self, lease: Lease, wanted: Sequence[int], copy: Callable[[int, int], None]) -> None:
        """Copy what is known of the beginning of `wanted`, less than a block, into the next block of the lease."""
        followers = self._followers.get(lease.names[-1] if lease.names else ROOT, {})
        alike = [(_alike(tokens, wanted), block) for block, tokens in islice(reversed(followers.items()), LOOKED_AT)]
        count, source = max(alike, default=(0, 0))
        if not count:
            return
        if source in self._idle:
            self._idle.move_to_end(source)  # not to be taken, unless it is the last one
        self.grow(lease, 1)
        if lease.blocks[-1] != source:
            copy(source, lease.blocks[-1])
        lease.token_ids += wanted[:count]
        self.found_tokens += count

    def _take(self) -> int:
        if self._empty:
            block = self._empty.pop()
        elif self._never_used < self._count:
            block = self._never_used
            self._never_used += 1
        else:
            block, _ = self._idle.popitem(last=False)
            del self._by_name[self._names.pop(block)]
            before = self._before.pop(block)
            del self._followers[before][block]
            if not self._followers[before]:
                del self._followers[before]
        self._holders[block] = 1
        return block


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with.

    >>> _alike([1, 2, 3], [1, 2, 5, 6])
    2
    """
    return next(
        (at for at, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine != theirs),
        min(len(one), len(other)),
    )


def _name(before: bytes, token_ids: Sequence[int]) -> bytes:
    """SHA-256: nobody can make two beginnings of one name."""
    return hashlib.sha256(before + array("i", token_ids).tobytes()).digest()
