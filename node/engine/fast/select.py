"""The compiled choice of tokens, called from Python: a whole step in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, byref, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Final

import numpy as np
import torch

from nsllm.node.engine.distribution import Floats, Ints, Mask
from nsllm.node.engine.sampler import MOST_TOP, Choice, NoChoiceError, Sampler, Standing, ranked, told
from nsllm.node.engine.strain import Strain

BLOCK: Final = 128
"""Tokens that `select.c` passes over together."""


class _Row(Structure):
    # As in select.c.
    _fields_ = (
        *((name, c_void_p) for name in ("logits", "mask", "banned", "biased", "seen", "counts", "bias")),
        *((name, c_int32) for name in ("mask_words", "banned_count", "biased_count", "seen_count")),
        *((name, c_float) for name in ("scale", "repetition", "presence", "frequency")),
        *((name, c_int64) for name in ("top_k", "top_p", "min_p")),
        ("draw", c_uint64),
        *((name, c_int32) for name in ("top_count", "token", "top_found")),
        ("top", c_int32 * MOST_TOP),
        ("top_logits", c_float * MOST_TOP),
        *((name, c_float) for name in ("chosen_logit", "highest")),
        ("total", c_uint64),
    )


class _Scratch(Structure):
    _fields_ = tuple((name, c_void_p) for name in ("scores", "highs", "sums", "keys"))


class NativeChooser:
    """Chooses what `nsllm.node.engine.distribution` defines, about a hundred times as fast.

    Args:
        library: from `build`.
        vocabulary: length of every row of logits.
    """

    def __init__(self, library: Path, vocabulary: int) -> None:
        kernels = ctypes.CDLL(str(library))
        self._choose_rows, self._trace_row = kernels.choose_rows, kernels.trace_row
        self._choose_rows.restype = self._trace_row.restype = None
        self._vocabulary = vocabulary
        blocks = -(-vocabulary // BLOCK)
        self._kept = (
            np.empty(vocabulary, np.float32),
            np.empty(blocks, np.float32),
            np.empty(blocks, np.uint64),
            np.empty(vocabulary + 1, np.uint64),
        )
        self._scratch = _Scratch(*(array.ctypes.data for array in self._kept))

    def choose_all(
        self, samplers: Sequence[Sampler], rows: Sequence[torch.Tensor] | torch.Tensor
    ) -> list[Choice | NoChoiceError]:
        """See `nsllm.node.engine.sampler.Chooser`."""
        table = (_Row * len(samplers))()
        kept: list[list[Mask | Ints | Floats]] = []
        refused: dict[int, NoChoiceError] = {}
        for at, (sampler, address) in enumerate(zip(samplers, self._addresses(rows), strict=True)):
            try:
                kept.append(_fill(table[len(kept)], sampler, address))
            except NoChoiceError as error:
                refused[at] = error
        self._choose_rows(table, len(kept), self._vocabulary, byref(self._scratch))
        chosen = iter(table)
        return [refused.get(at) or self._result(next(chosen), sampler) for at, sampler in enumerate(samplers)]

    def trace(self, sampler: Sampler, row: torch.Tensor, token: int) -> Strain:
        """See `nsllm.node.engine.sampler.Chooser`."""
        assert row.shape == (self._vocabulary,)
        assert row.is_contiguous()
        filled, results = _Row(), (c_double * 3)()
        kept = _fill(filled, sampler, row.data_ptr())
        arguments = self._vocabulary, byref(self._scratch), c_int32(token), results
        self._trace_row(byref(filled), *arguments)
        if filled.token < 0 and filled.banned_count:  # the guide leaves nothing but an end token
            filled.banned_count = _always_banned(sampler)
            self._trace_row(byref(filled), *arguments)
        del kept  # what the row points to had to stay until here
        sampler.accept(token)
        return Strain(*results)

    def standings(self, rows: torch.Tensor, token_ids: Sequence[int], top: int) -> list[Standing]:
        """See `nsllm.node.engine.sampler.Chooser`."""
        table = (_Row * len(token_ids))()
        for filled, address in zip(table, self._addresses(rows), strict=True):
            filled.logits, filled.top_count = address, min(top, MOST_TOP)
        self._choose_rows(table, len(table), self._vocabulary, byref(self._scratch))
        own = rows.gather(1, torch.tensor(token_ids, dtype=torch.long)[:, None])[:, 0].tolist()
        found = [
            told(token, logit, row.highest, row.total, _top_of(row))
            for row, token, logit in zip(table, token_ids, own, strict=True)
        ]
        return ranked(rows, found)

    def _result(self, row: _Row, sampler: Sampler) -> Choice | NoChoiceError:
        if row.token < 0 and row.banned_count:  # the guide leaves nothing but an end token
            row.banned_count = _always_banned(sampler)
            self._choose_rows(byref(row), 1, self._vocabulary, byref(self._scratch))
        if row.token < 0:
            return NoChoiceError("no token may be chosen")
        try:
            sampler.accept(row.token)
        except NoChoiceError as error:
            return error
        if row.top_count < 0:
            return Choice(row.token)
        return told(row.token, row.chosen_logit, row.highest, row.total, _top_of(row))

    def _addresses(self, rows: Sequence[torch.Tensor] | torch.Tensor) -> list[int]:
        if isinstance(rows, torch.Tensor):
            assert rows.shape[1:] == (self._vocabulary,)
            assert rows.is_contiguous()
            return [rows.data_ptr() + row * self._vocabulary * rows.itemsize for row in range(len(rows))]
        assert all(len(row) == self._vocabulary and row.is_contiguous() for row in rows)
        return [row.data_ptr() for row in rows]


def _top_of(row: _Row) -> list[tuple[int, float]]:
    return [(row.top[i], row.top_logits[i]) for i in range(row.top_found)]


def _always_banned(sampler: Sampler) -> int:
    change = sampler.change
    return 0 if change is None else change.always_banned


def _fill(row: _Row, sampler: Sampler, address: int) -> list[Mask | Ints | Floats]:
    """What `row` points to, beside the logits."""
    arrays: list[Mask | Ints | Floats] = []

    def point(array: Mask | Ints | Floats) -> int:
        arrays.append(array)
        return array.ctypes.data

    if sampler.guide is not None:
        mask = sampler.guide.mask()
        row.mask, row.mask_words = point(mask), len(mask)
    change = sampler.change
    if change is not None:
        row.banned, row.banned_count = point(change.banned), len(change.banned)
        row.biased, row.biased_count, row.bias = point(change.biased), len(change.biased), point(change.bias)
        row.seen, row.seen_count, row.counts = point(change.seen), len(change.seen), point(change.counts)
        row.repetition, row.frequency, row.presence = change.repetition, change.frequency, change.presence
    limits = sampler.limits
    row.logits, row.draw, row.scale = address, sampler.draw(), limits.scale
    row.top_k, row.top_p, row.min_p = limits.top_k, limits.top_p_micro, limits.min_p_micro
    row.top_count = -1 if sampler.top_logprobs is None else sampler.top_logprobs
    return arrays
