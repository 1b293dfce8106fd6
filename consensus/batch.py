"""A batch of observations: committed to with one signature, opened row by row.

A validator signs one `BatchCommit` for many records. It names the records in the clear and hides the integers: each
row has a commitment of its own, a hash over validator, epoch, rubric, subject, salt and integers. So a row is opened
as soon as enough validators have committed to its record, whatever the rest of the batch waits for; the opening needs
no second signature; and a commitment is worth nothing to another validator, whose address is not in it.

What repeats once a record stands in packed columns (fixed width, big-endian), so that a block of many records is a few
values to the codec. A column has one spelling for each content, as everything canonical.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property, lru_cache, partial
from itertools import pairwise, repeat
from operator import lt
from typing import Annotated, Final, NamedTuple, Self, cast

from msgspec import Meta

from nsllm import canonical, crypto
from nsllm.canonical import Value
from nsllm.consensus.errors import ObservationError
from nsllm.consensus.observation import MISSING, SUBJECT_BYTES, Subject, unpack_digests
from nsllm.crypto import MemberKey
from nsllm.ids import (
    PPM_ONE,
    Address,
    AddressField,
    CountField,
    Digest,
    DigestField,
    Epoch,
    EpochField,
    NetworkId,
    SignatureField,
    hex0x,
    short,
)

MAX_BATCH_RECORDS: Final = 64
"""Records of one batch, abstentions included: a block takes whole commits, up to 10 kB a validator for one record."""
SALT_BYTES: Final = 16
MAX_REASON_CHARS: Final = 80
MAX_ROWS_BYTES: Final = MAX_BATCH_RECORDS * (2 + SALT_BYTES + 4 * 16)
Rows = Annotated[bytes, Meta(max_length=MAX_ROWS_BYTES)]
"""Opened rows, ascending by position, each: position (2 bytes) ‖ salt (16) ‖ ppm or `MISSING` a dimension (4 each)."""
_Column = Annotated[bytes, Meta(max_length=32 * MAX_BATCH_RECORDS)]


class Row(NamedTuple):
    """One opened row of a batch."""

    position: int
    """Of the record in the commit's column."""
    salt: bytes
    ppm: tuple[int, ...]
    """One integer a dimension of the rubric, in its order."""


_row = cast("Callable[[tuple[int, bytes, tuple[int, ...]]], Row]", partial(tuple[object].__new__, Row))
"""`Row._make` of what is known to have three parts: columns have many rows."""


class Abstention(Value, frozen=True, kw_only=True):
    """A record that the validator will not score, and why: for people, it decides nothing."""

    record: DigestField
    reason: Annotated[str, Meta(min_length=1, max_length=MAX_REASON_CHARS, pattern=r"^[ -~]+\Z")]


class BatchCommit(Value, frozen=True, kw_only=True, dict=True, gc=True):
    """What a validator signs: which records it observed, with hidden integers, and which it abstains from."""

    validator: AddressField
    epoch: EpochField
    number: CountField
    """Of this validator's batches in this epoch, rising with its clock (ms); never bound to a height or round."""
    rubric: DigestField
    """Digest of the rubric that the records were scored with."""
    records: _Column
    """Digests of the records, ascending."""
    commitments: _Column
    """One a record, see `row_commitments`."""
    abstentions: Annotated[tuple[Abstention, ...], Meta(max_length=MAX_BATCH_RECORDS)] = ()
    """Ascending by record."""

    def digest(self, network: NetworkId) -> Digest:
        """What the validator signs."""
        return canonical.digest("batch", network, self)

    @cached_property
    def record_digests(self) -> tuple[Digest, ...]:
        """The column of records, read."""
        return unpack_digests(self.records)

    @cached_property
    def position_of(self) -> dict[Digest, int]:
        """Position by record."""
        return {record: position for position, record in enumerate(self.record_digests)}

    @cached_property
    def abstained(self) -> frozenset[Digest]:
        """The records that the validator abstains from."""
        return frozenset(abstention.record for abstention in self.abstentions)

    def commitment_at(self, position: int) -> Digest:
        """The commitment of the row at `position`."""
        return Digest(self.commitments[32 * position : 32 * position + 32])

    def check_shape(self) -> None:
        """Pass silently if the columns fit together.

        Raises:
            ObservationError: says what does not fit.
        """
        name = f"batch {self.number} of {hex0x(self.validator)}"
        records, abstained = self.record_digests, tuple([abstention.record for abstention in self.abstentions])
        if len(self.commitments) != len(self.records):
            raise ObservationError(f"{name}: {len(records)} records, {len(self.commitments)} bytes of commitments")
        if not 0 < len(records) + len(abstained) <= MAX_BATCH_RECORDS:
            count = len(records) + len(abstained)
            raise ObservationError(f"{name} speaks of {count} records, 1 to {MAX_BATCH_RECORDS} are allowed")
        if not (all(map(lt, records, records[1:])) and all(map(lt, abstained, abstained[1:]))):
            raise ObservationError(f"{name}: records not in ascending order, each once")
        if not self.abstained.isdisjoint(records):
            raise ObservationError(f"{name} observes a record that it abstains from")


class SignedCommit(Value, frozen=True, kw_only=True, dict=True, gc=True):
    """A commit and its validator's signature: what goes round before any score does."""

    commit: BatchCommit
    signature: SignatureField

    @classmethod
    def sign(cls, key: MemberKey, network: NetworkId, commit: BatchCommit) -> Self:
        """The commit with a signature by `key`, which need not be recovered here if it is the validator's."""
        signed = cls(commit=commit, signature=key.sign(commit.digest(network)))
        if key.address == commit.validator:
            signed._signed_for.add(network)
        return signed

    def check(self, network: NetworkId) -> None:
        """Pass silently if the columns fit together and the validator signed them.

        Raises:
            ObservationError: see `BatchCommit.check_shape`.
            SignatureError: not the validator's signature.
        """
        self.commit.check_shape()
        self.check_signature(network)

    def check_signature(self, network: NetworkId) -> None:
        """Pass silently if the validator signed the commit.

        Raises:
            SignatureError: not the validator's signature.
        """
        if network not in self._signed_for:
            crypto.verify(self.commit.digest(network), self.signature, self.commit.validator)
            self._signed_for.add(network)

    @cached_property
    def _signed_for(self) -> set[NetworkId]:
        """Networks for which the signature is known to hold."""
        return set()

    @cached_property
    def size_bytes(self) -> int:
        """Length of the canonical encoding."""
        return len(canonical.encode(self))


class BatchReveal(Value, frozen=True, kw_only=True):
    """Some rows of a committed batch, opened. Unsigned: the signed commit holds their hashes."""

    validator: AddressField
    epoch: EpochField
    number: CountField
    rows: Rows
    subjects: Annotated[bytes, Meta(max_length=SUBJECT_BYTES * MAX_BATCH_RECORDS)]
    """What each row is about, in the order of `rows`."""


class Excerpt(Value, frozen=True, kw_only=True, dict=True, gc=True):
    """What a block takes from one batch: the commit, and the rows of the records that the block settles."""

    signed: SignedCommit
    rows: Rows

    def opened(self, dimensions: int) -> tuple[Row, ...]:
        """The rows, read once.

        Raises:
            ObservationError: see `unpack_rows`.
        """
        known = self._opened.get(dimensions)
        if known is None:
            known = self._opened[dimensions] = unpack_rows(self.rows, dimensions)
        return known

    @classmethod
    def of(cls, signed: SignedCommit, rows: Iterable[Row]) -> Self:
        """Of these rows, ascending by position, which need not be read again."""
        rows = tuple(rows)
        excerpt = cls(signed=signed, rows=pack_rows(rows))
        excerpt.remember(rows)
        return excerpt

    def remember(self, rows: Sequence[Row]) -> None:
        """These are the rows: they were read from the same bytes before."""
        if rows:
            self._opened[len(rows[0].ppm)] = tuple(rows)

    @cached_property
    def _opened(self) -> dict[int, tuple[Row, ...]]:
        return {}


def row_commitments(
    network: NetworkId, validator: Address, epoch: Epoch, rubric: Digest, opened: Sequence[tuple[Subject, Row]]
) -> list[Digest]:
    """Hashes that hide and bind rows of a batch by `validator` in `epoch` under `rubric`, each with its subject.

    All rows have as many integers.
    Neither number nor position is in them: a record that is observed again with the same integers has the same
    commitment, so that two different ones prove two different rows.
    """
    if not opened:
        return []
    sha256, head = hashlib.sha256, _row_head(network, validator, rubric)
    pack = _hidden(len(head), len(opened[0][1].ppm))
    hashes = [
        sha256(pack(head, record, generator, key, salt, epoch, *ppm)).digest()
        for (record, generator, key), (_, salt, ppm) in opened
    ]
    return cast("list[Digest]", hashes)


def row_commitment(
    network: NetworkId, validator: Address, epoch: Epoch, rubric: Digest, subject: Subject, row: Row
) -> Digest:
    """The same of one row."""
    return row_commitments(network, validator, epoch, rubric, [(subject, row)])[0]


def salt_of(secret: bytes, rubric: Digest, record: Digest) -> bytes:
    """The salt of one row: unknown without `secret`, and the same after a restart."""
    return hashlib.sha256(b"nsllm/1/salt\0" + secret + rubric + record).digest()[:SALT_BYTES]


def salt_secret(key: MemberKey, network: NetworkId, epoch: Epoch) -> bytes:
    """What the salts of an epoch are made from: a deterministic signature (RFC 6979) that is never sent."""
    return hashlib.sha256(key.sign(canonical.digest("salt", network, struct.pack(">Q", epoch)))).digest()


def sign_commit(key: MemberKey, network: NetworkId, commit: BatchCommit) -> SignedCommit:
    """The commit with its validator's signature."""
    return SignedCommit.sign(key, network, commit)


def pack_rows(rows: Iterable[Row]) -> bytes:
    """A column of opened rows."""
    return b"".join([_shape(len(ppm)).pack(position, salt, *ppm) for position, salt, ppm in rows])


def unpack_rows(column: bytes, dimensions: int) -> tuple[Row, ...]:
    """The rows of a column.

    Args:
        column: untrusted, bounded by its type.
        dimensions: integers a row.

    Raises:
        ObservationError: cut short, positions not ascending, or an integer above 1,000,000 that is not `MISSING`.
    """
    shape = _shape(dimensions)
    _check_length(column, shape.size)
    if not column:
        return ()
    positions, salts, *columns = zip(*shape.iter_unpack(column), strict=True)
    _check_ascending(positions)
    if columns and max(map(max, columns)) > PPM_ONE:
        most = max((one for each in columns for one in each if one != MISSING), default=0)
        if most > PPM_ONE:
            raise ObservationError(f"an observation of {most} ppm, the most is {PPM_ONE}")
    integers = zip(*columns, strict=True) if columns else repeat(())
    return tuple(map(_row, zip(positions, salts, integers, strict=False)))


def opens(commit: BatchCommit, network: NetworkId, opened: Sequence[tuple[Subject, Row]]) -> bool:
    """Whether each of these rows opens what `commit` holds at its position, and that is of its subject."""
    records, column = commit.record_digests, commit.commitments
    positions = [row[0] for _, row in opened]
    if max(positions, default=-1) >= len(records):
        return False
    if [records[position] for position in positions] != [subject[0] for subject, _ in opened]:
        return False
    held = [column[32 * position : 32 * position + 32] for position in positions]
    return held == row_commitments(network, commit.validator, commit.epoch, commit.rubric, opened)


def split_rows(column: bytes, dimensions: int) -> list[tuple[int, bytes]]:
    """Position and bytes of each row of a column; the integers are not looked at.

    Raises:
        ObservationError: cut short, or positions not ascending.
    """
    shape = _places(dimensions)
    size = shape.size
    _check_length(column, size)
    positions = tuple([position for (position,) in shape.iter_unpack(column)])
    _check_ascending(positions)
    return [(position, column[size * i : size * i + size]) for i, position in enumerate(positions)]


def _check_length(column: bytes, size: int) -> None:
    if len(column) % size:
        raise ObservationError(f"a column of rows has {len(column)} bytes, not a multiple of {size}")


def _check_ascending(positions: Sequence[int]) -> None:
    if not all(map(lt, positions, positions[1:])):
        last, position = next(pair for pair in pairwise(positions) if pair[1] <= pair[0])
        raise ObservationError(f"row {position} after row {last}")


def check_rows(commit: BatchCommit, network: NetworkId, opened: Sequence[tuple[Subject, Row]]) -> None:
    """Pass silently if each of these rows opens what `commit` holds at its position, and that is of its subject.

    Raises:
        ObservationError: of the first that does not: no such position, another record, or another hash.
    """
    if opens(commit, network, opened):
        return
    for subject, row in opened:
        check_row(commit, network, subject, row)


def check_row(commit: BatchCommit, network: NetworkId, subject: Subject, row: Row) -> None:
    """Pass silently if `row` opens what `commit` holds at its position, and that is of `subject`.

    Raises:
        ObservationError: no such position, another record, or another hash.
    """
    name, records = f"batch {commit.number} of {hex0x(commit.validator)}", commit.record_digests
    if row.position >= len(records) or records[row.position] != subject.record:
        raise ObservationError(f"{name}: row {row.position} is not of {short(subject.record)}")
    if not opens(commit, network, [(subject, row)]):
        raise ObservationError(f"{name}: row {row.position} is not what was committed to")


def row_bytes(dimensions: int) -> int:
    """Length of one opened row."""
    return _shape(dimensions).size


@lru_cache(maxsize=256)
def _row_head(network: NetworkId, validator: Address, rubric: Digest) -> bytes:
    """What the commitments of one validator under one rubric begin with."""
    return canonical.head("observation", network) + validator + rubric


@cache
def _shape(dimensions: int) -> struct.Struct:
    return struct.Struct(f">H{SALT_BYTES}s{dimensions}I")


@cache
def _places(dimensions: int) -> struct.Struct:
    return struct.Struct(f">H{SALT_BYTES}x{4 * dimensions}x")


@cache
def _hidden(head_bytes: int, dimensions: int) -> Callable[..., bytes]:
    """Packs what a commitment is the hash of: head, subject, salt, epoch, integers."""
    return struct.Struct(f">{head_bytes}s32s20s32s{SALT_BYTES}sQ{dimensions}I").pack
