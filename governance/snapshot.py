"""A snapshot: all that the next block needs of the state below it, in bounded chunks that certified headers commit to.

After every block whose height the genesis's `snapshot_heights` divides, each peer writes down the same chunks. Their
digests stand in a manifest, the manifest's digest in every header up to the next snapshot. So one certified header
proves each chunk by itself, whoever gives it: a peer that is far behind needs no history. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

from msgspec import Meta

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.errors import CertificateError
from nsllm.consensus.evidence import OffenceKind
from nsllm.governance.light_client import EpochProof, LightClient
from nsllm.governance.policy import Policy
from nsllm.ids import (
    ZERO_DIGEST,
    AddressField,
    CountField,
    Digest,
    DigestField,
    EpochField,
    HeightField,
    NetworkId,
    TimeMs,
    TimeMsField,
    hex0x,
)

R = TypeVar("R")
CHUNK_BYTES: Final = 128 * 1024
"""A chunk is closed once it holds this much; one entry alone may be longer."""
MAX_CHUNK_BYTES: Final = 256 * 1024
MAX_CHUNKS: Final = 32_768
"""Four gigabytes."""
SETTLED_BYTES: Final = 40
_OVERHEAD: Final = 16
"""Bytes of framing that an item of a chunk costs at most."""

_Blob = Annotated[bytes, Meta(max_length=MAX_CHUNK_BYTES)]


class LogPart(Value, frozen=True, kw_only=True, tag="log"):
    """The network log before the last block, whose own entries follow from its body; and when it was last anchored."""

    size: CountField
    peaks: Annotated[tuple[DigestField, ...], Meta(max_length=64)]
    last_transaction_ms: TimeMsField | None
    """Time of the last block with a transaction; None if there was none."""


class RegistryPart(Value, frozen=True, kw_only=True, tag="registry"):
    """A piece of the canonical registry after the last block."""

    data: _Blob


class SettledPart(Value, frozen=True, kw_only=True, tag="settled"):
    """Records that may not be settled again, in the order of their blocks."""

    rows: _Blob
    """Each the record's digest and the time of its block in milliseconds, big-endian: 40 bytes."""


class DecidedMotion(Value, frozen=True, kw_only=True):
    """A motion that a block holds and that has not expired."""

    digest: DigestField
    height: HeightField
    expires_ms: TimeMsField


class MotionsPart(Value, frozen=True, kw_only=True, tag="motions"):
    """Ascending by height, then digest."""

    rows: tuple[DecidedMotion, ...]


class PeerCheckpoint(Value, frozen=True, kw_only=True):
    """A peer's newest checkpoint in the network log."""

    peer: AddressField
    time_ms: TimeMsField
    """Of its block."""
    entry: Annotated[bytes, Meta(max_length=65536)]


class CheckpointsPart(Value, frozen=True, kw_only=True, tag="checkpoints"):
    """Ascending by peer."""

    rows: tuple[PeerCheckpoint, ...]


class Conviction(Value, frozen=True, kw_only=True):
    """One validator's offence in one epoch."""

    validator: AddressField
    epoch: EpochField
    kind: OffenceKind
    offence_height: HeightField | None
    height: HeightField


class OffencesPart(Value, frozen=True, kw_only=True, tag="offences"):
    """Ascending by height, then validator."""

    rows: tuple[Conviction, ...]


class NamedValue(Value, frozen=True, kw_only=True):
    """A row of the EVM's store that does not stand under its value's hash."""

    key: Annotated[bytes, Meta(max_length=256)]
    value: _Blob


class EvmHeadPart(Value, frozen=True, kw_only=True, tag="evm_head"):
    """Which EVM block is the last."""

    rows: tuple[NamedValue, ...]


class EvmPart(Value, frozen=True, kw_only=True, tag="evm"):
    """The last EVM header, and trie nodes and code of the state after it: each stands under its keccak-256."""

    values: tuple[_Blob, ...]


AnyPart = LogPart | RegistryPart | SettledPart | MotionsPart | CheckpointsPart | OffencesPart | EvmHeadPart | EvmPart


class Chunk(Value, frozen=True, kw_only=True):
    """What is handed out and checked as one."""

    part: AnyPart


class Manifest(Value, frozen=True, kw_only=True, dict=True, gc=True):
    """What a header's `snapshot_hash` is the digest of."""

    height: HeightField
    """The last block that the snapshot holds."""
    header_id: DigestField
    """That block's."""
    size_bytes: CountField
    """Of all chunks."""
    chunks: Annotated[bytes, Meta(max_length=32 * MAX_CHUNKS)]
    """SHA-256 digests of the chunks, in order."""

    def digest(self, network: NetworkId) -> Digest:
        """The header's `snapshot_hash`."""
        return canonical.digest("snapshot", network, self)

    def __len__(self) -> int:
        """How many chunks there are."""
        return len(self.chunks) // 32

    def chunk(self, position: int) -> Digest:
        """Digest of one chunk."""
        return Digest(self.chunks[32 * position : 32 * position + 32])


class Handover(Value, frozen=True, kw_only=True):
    """An epoch's beginning: its proof, and its policy in full."""

    proof: EpochProof
    policy: Policy


class Offer(Value, frozen=True, kw_only=True):
    """A snapshot that a peer hands out, and what proves it."""

    manifest: Manifest
    block: DecidedBlock
    """The last block that the snapshot holds."""
    certificate: Certificate
    """Of a later header, which commits to the manifest."""


@dataclass(frozen=True, slots=True)
class Proved:
    """An offer that holds."""

    offer: Offer
    handovers: tuple[Handover, ...]
    """From the epoch that was trusted to that of the offer's certificate."""
    digest: Digest
    """Of the manifest."""


def check_offer(offer: Offer, handovers: Sequence[Handover], trust: LightClient) -> Proved:
    """The offer, if its certificates lead from what is trusted to its manifest.

    Args:
        offer: from anybody.
        handovers: to the epoch of the offer's certificate, from the epoch after the trusted one on.
        trust: the present epoch of whoever asks.

    Raises:
        CertificateError, SignatureError: they do not; says which value differs.
    """
    manifest, decided, header = offer.manifest, offer.block, offer.certificate.header
    steps = trust.follow(handover.proof for handover in handovers)
    for handover in handovers:
        if handover.policy.digest() != handover.proof.change.policy_digest:
            raise CertificateError(f"policy of epoch {handover.proof.change.validators.epoch} is not the certified one")
    steps[-1].check(offer.certificate)
    first = decided.certificate.header.epoch - trust.validators.epoch
    if not 0 <= first < len(steps):
        raise CertificateError(f"block of epoch {decided.certificate.header.epoch}, which the handovers do not reach")
    steps[first].check(decided.certificate)
    digest = manifest.digest(trust.network)
    if header.snapshot_hash == ZERO_DIGEST or header.snapshot_hash != digest:
        raise CertificateError(
            f"header {header.height} commits to snapshot {hex0x(header.snapshot_hash)}, offered is {hex0x(digest)}"
        )
    block = decided.block
    if decided.certificate.header != block.header or block.header.body_digest != block.body.digest(trust.network):
        raise CertificateError(f"the snapshot's last block {block.header.height} is not what its certificate decided")
    if (manifest.height, manifest.header_id) != (block.header.height, block.header.id()):
        raise CertificateError(f"a snapshot of block {manifest.height} comes with block {block.header.height}")
    if len(manifest.chunks) % 32 or not manifest.chunks:
        raise CertificateError("a manifest without whole digests")
    return Proved(offer=offer, handovers=tuple(handovers), digest=digest)


def chunks_of(parts: Iterable[AnyPart]) -> Iterator[bytes]:
    """The canonical chunks, one a part."""
    return (canonical.encode(Chunk(part=part)) for part in parts)


def decode_chunk(data: bytes) -> AnyPart:
    """The part that a chunk holds.

    Raises:
        EncodingError: not a chunk.
    """
    return canonical.decode(data, Chunk, limit_bytes=MAX_CHUNK_BYTES).part


def pieces(data: bytes) -> Iterator[bytes]:
    """Long bytes in pieces of a chunk's length."""
    return (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))


def grouped(rows: Iterable[tuple[int, R]]) -> Iterator[tuple[R, ...]]:
    """Rows, each with its size in bytes, in groups that fit a chunk; no group if there are no rows."""
    group: list[R] = []
    size = 0
    for row_bytes, row in rows:
        if group and size + row_bytes + _OVERHEAD > CHUNK_BYTES:
            yield tuple(group)
            group, size = [], 0
        group.append(row)
        size += row_bytes + _OVERHEAD
    if group:
        yield tuple(group)


def pack_settled(record: Digest, time_ms: TimeMs) -> bytes:
    """One row of `SettledPart`."""
    return record + time_ms.to_bytes(8, "big")


def unpack_settled(rows: bytes) -> Iterator[tuple[Digest, TimeMs]]:
    """Rows of `SettledPart`.

    >>> list(unpack_settled(pack_settled(Digest(bytes(32)), TimeMs(7))))[0][1]
    7
    """
    for at in range(0, len(rows), SETTLED_BYTES):
        row = rows[at : at + SETTLED_BYTES]
        yield Digest(row[:32]), TimeMs(int.from_bytes(row[32:], "big"))
