"""What validators agree on about a record: its subject, quantiles of their integers, and the leaf that results.

How the integers come is in `nsllm.consensus.batch` (commit and reveal) and `nsllm.consensus.settlement` (a block's).
Weights of dimensions play no part here: they apply where a score is used (`nsllm.governance.policy`).

Source of the median's safety: with at least n-f observations of which at most f are Byzantine, the lower median lies
within the range of the honest ones, whoever proposes (docs/scores.md has the theorem and its proof).
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Annotated, Final, NamedTuple, cast

from msgspec import Meta

from nsllm.canonical import Value
from nsllm.consensus.errors import ObservationError
from nsllm.ids import Address, AddressField, Digest, DigestField, NameField, Ppm, PpmField

MAX_DIMENSIONS: Final = 16
MISSING: Final = 2**32 - 1
"""In place of an integer: the validator lacks what this dimension needs. Above every ppm, so that it orders as one more
observation and the median's safety is untouched: leaving a dimension out objects to nothing."""
SUBJECT_BYTES: Final = 32 + 20 + 32
RECORD_BYTES: Final = 32
_SUBJECT: Final = struct.Struct(">32s20s32s")
_DIGEST: Final = struct.Struct(">32s")


class DimensionScore(Value, frozen=True, kw_only=True):
    """One dimension of the hybrid score."""

    name: NameField
    ppm: PpmField


class Quartiles(Value, frozen=True, kw_only=True):
    """Where the middle half of the observations of one dimension lies."""

    lower_ppm: PpmField
    upper_ppm: PpmField


Scores = Annotated[tuple[DimensionScore, ...], Meta(min_length=1, max_length=MAX_DIMENSIONS)]
"""Ascending by name, each name once."""
Addresses = Annotated[tuple[AddressField, ...], Meta(min_length=1, max_length=256)]


class Subject(NamedTuple):
    """What an observation is about; generator and request key follow from the record, which not everybody has."""

    record: Digest
    generator: Address
    request_key: Digest

    def pack(self) -> bytes:
        """Record ‖ generator ‖ request key, 84 bytes."""
        return self.record + self.generator + self.request_key


_subject = cast("Callable[[tuple[bytes, bytes, bytes]], Subject]", partial(tuple[object].__new__, Subject))
"""`Subject._make` of what is known to have three parts: columns have many rows."""


class ScoreLeaf(Value, frozen=True, kw_only=True):
    """The agreed scores of one record: a leaf of the header's score tree and an entry of the network log."""

    record: DigestField
    generator: AddressField
    request_key: DigestField
    rubric: DigestField
    scores: Scores
    """Lower median of the observations, dimension by dimension; none of a dimension that most left out."""
    quartiles: Annotated[tuple[Quartiles, ...], Meta(min_length=1, max_length=MAX_DIMENSIONS)]
    """Lower and upper quartile, one pair a dimension, in the order of `scores`; their distance is the interquartile
    range. They describe how far the observers agreed; unlike the median, a liar can move them."""
    observers: Addresses
    """Whose observations these are, ascending."""


class Unscored(Value, frozen=True, kw_only=True):
    """A record that cannot be scored any more: so many validators abstained that n-f observations will never come."""

    record: DigestField
    rubric: DigestField
    abstainers: Addresses
    """At least f+1 validators, ascending."""


def quantile(values: Sequence[int], quarter: int) -> Ppm:
    """Element ceil(m·quarter/4), counted from 1, of the m sorted values: Hyndman and Fan's type 1, integers only.

    >>> [quantile([5, 1, 9, 7], quarter) for quarter in (1, 2, 3)]
    [1, 5, 7]
    """
    if not values:
        raise ValueError("no values to take a quantile of")
    return Ppm(sorted(values)[_rank(len(values), quarter)])


def lower_median(values: Sequence[int]) -> Ppm:
    """Element ceil(m/2), counted from 1, of the m sorted values.

    >>> lower_median([5, 1, 9, 7])
    5
    """
    return quantile(values, 2)


def agree(
    subject: Subject, rubric: Digest, dimensions: Sequence[str], rows: Sequence[tuple[Address, Sequence[int]]]
) -> ScoreLeaf:
    """The score leaf that the observations of one record give; every validator computes the same.

    Args:
        subject: what was observed.
        rubric: digest of the rubric it was observed with.
        dimensions: the rubric's, ascending.
        rows: (validator, one ppm or `MISSING` a dimension) of distinct validators, in any order.

    Raises:
        ObservationError: no rows, a row of another length, a validator twice, or nothing that was measured.
    """
    observers = sorted({validator for validator, _ in rows})
    if not rows or len(observers) != len(rows):
        raise ObservationError(f"record {subject.record.hex()[:16]}: {len(rows)} rows of {len(observers)} validators")
    given = [row for _, row in rows]
    if {*map(len, given)} != {len(dimensions)}:
        raise ObservationError(f"record {subject.record.hex()[:16]}: a row that is not {len(dimensions)} integers")
    scores: list[DimensionScore] = []
    quartiles: list[Quartiles] = []
    every = _ranks(len(rows))
    middle = every[1]
    for name, column in zip(dimensions, cast("map[list[Ppm]]", map(sorted, zip(*given, strict=True))), strict=True):
        median = column[middle]
        if median != MISSING:
            lower, _, upper = every if column[-1] != MISSING else _ranks(bisect_left(column, MISSING))
            scores.append(DimensionScore(name=name, ppm=median))
            quartiles.append(Quartiles(lower_ppm=column[lower], upper_ppm=column[upper]))
    if not scores:
        raise ObservationError(f"record {subject.record.hex()[:16]}: no dimension was measured")
    return ScoreLeaf(
        record=subject.record,
        generator=subject.generator,
        request_key=subject.request_key,
        rubric=rubric,
        scores=tuple(scores),
        quartiles=tuple(quartiles),
        observers=tuple(observers),
    )


def pack_subjects(subjects: Sequence[Subject]) -> bytes:
    """A column of subjects, 84 bytes each."""
    return b"".join([part for subject in subjects for part in subject])


def unpack_subjects(column: bytes) -> tuple[Subject, ...]:
    """The subjects of a column.

    Raises:
        ObservationError: not a multiple of 84 bytes.
    """
    if len(column) % SUBJECT_BYTES:
        raise ObservationError(f"a column of subjects has {len(column)} bytes, not a multiple of {SUBJECT_BYTES}")
    return tuple(map(_subject, _SUBJECT.iter_unpack(column)))


def unpack_digests(column: bytes) -> tuple[Digest, ...]:
    """The digests of a column of 32 bytes each.

    Raises:
        ObservationError: not a multiple of 32 bytes.
    """
    if len(column) % RECORD_BYTES:
        raise ObservationError(f"a column of digests has {len(column)} bytes, not a multiple of {RECORD_BYTES}")
    return tuple([digest for (digest,) in _DIGEST.iter_unpack(column)])


def _rank(count: int, quarter: int) -> int:
    """Where a quantile stands among so many ascending values, see `quantile`."""
    return (count * quarter + 3) // 4 - 1


@cache
def _ranks(count: int) -> tuple[int, int, int]:
    """Of both quartiles and, between them, the median."""
    return _rank(count, 1), _rank(count, 2), _rank(count, 3)
