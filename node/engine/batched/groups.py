"""Sequences whose attention is computed together: about as many new tokens, and about as long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nsllm.node.engine.fast.native import Run
from nsllm.node.engine.fast.room import BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Group:
    """Padded to the most new tokens and the greatest length of its sequences."""

    rows: torch.Tensor
    """(new tokens of all,) their rows in the pass."""
    real: torch.Tensor
    """(new tokens of all,) where they stand among the padded ones."""
    queries: torch.Tensor
    """(sequences, tokens) rows in the pass; padded with the sequence's last one."""
    slots: torch.Tensor
    """(sequences, length) of keys and values; padded with the sequence's first one: what others left in a block is
    never multiplied, for even zero times not-a-number is none."""
    mask: torch.Tensor
    """(sequences, 1, tokens, length) which keys a token sees."""


def grouped(runs: Sequence[Run], device: torch.device) -> list[Group]:
    """All runs of a pass, those together whose sizes round up to the same powers of two: at most half is padding."""
    alike: dict[tuple[int, int], list[tuple[int, Run]]] = {}
    row = 0
    for run in runs:
        count = len(run.token_ids)
        key = _power(count), _power(-(-(run.start + count) // BLOCK_TOKENS))
        alike.setdefault(key, []).append((row, run))
        row += count
    return [_group(members, device) for members in alike.values()]


def _group(members: Sequence[tuple[int, Run]], device: torch.device) -> Group:
    counts = [len(run.token_ids) for _, run in members]
    lengths = [run.start + count for (_, run), count in zip(members, counts, strict=True)]
    tokens, blocks = max(counts), -(-max(lengths) // BLOCK_TOKENS)
    rows: list[int] = []
    real: list[int] = []
    queries, positions, tables = [], [], []
    for index, ((row, run), count) in enumerate(zip(members, counts, strict=True)):
        rows += range(row, row + count)
        real += range(index * tokens, index * tokens + count)
        queries.append([row + min(at, count - 1) for at in range(tokens)])
        positions.append([run.start + min(at, count - 1) for at in range(tokens)])
        tables.append([*run.blocks[:blocks], *[run.blocks[0]] * (blocks - len(run.blocks))])
    within = torch.arange(BLOCK_TOKENS, device=device)
    slots = (torch.tensor(tables, device=device)[:, :, None] * BLOCK_TOKENS + within).flatten(1)
    at = torch.arange(blocks * BLOCK_TOKENS, device=device)
    held = at < torch.tensor(lengths, device=device)[:, None]
    return Group(
        rows=torch.tensor(rows, device=device),
        real=torch.tensor(real, device=device),
        queries=torch.tensor(queries, device=device),
        slots=torch.where(held, slots, slots[:, :1]),
        mask=(at <= torch.tensor(positions, device=device)[:, :, None])[:, None],
    )


def _power(count: int) -> int:
    """The next power of two.

    >>> [_power(count) for count in (1, 2, 3, 33)]
    [1, 2, 4, 64]
    """
    return 1 << (count - 1).bit_length()
