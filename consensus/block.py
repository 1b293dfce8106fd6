"""Blocks: a header and the body that its `body_digest` commits to."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Final

from msgspec import Meta

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.consensus.batch import Excerpt
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.header import Header
from nsllm.consensus.observation import SUBJECT_BYTES, Subject, unpack_digests, unpack_subjects
from nsllm.ids import Digest, NetworkId

MAX_BLOCK_BYTES: Final = 1024 * 1024
MAX_BLOCK_RECORDS: Final = 1024
"""Records that one block settles; with many validators its bytes end it sooner."""
MAX_BLOCK_BATCHES: Final = 1024


class Body(Value, frozen=True, kw_only=True, dict=True, gc=True):
    """What a block decides. Order is canonical: records ascend, batches ascend by (validator, number)."""

    subjects: Annotated[bytes, Meta(max_length=SUBJECT_BYTES * MAX_BLOCK_RECORDS)] = b""
    """Column of the records that the block scores, see `observation.Subject`."""
    unscored: Annotated[bytes, Meta(max_length=32 * MAX_BLOCK_RECORDS)] = b""
    """Column of the records that too many validators abstained from."""
    batches: Annotated[tuple[Excerpt, ...], Meta(max_length=MAX_BLOCK_BATCHES)] = ()
    """The commits and opened rows that scores and abstentions come from."""
    transactions: Annotated[tuple[Annotated[bytes, Meta(max_length=65536)], ...], Meta(max_length=16)] = ()
    """Signed EVM transactions in execution order."""
    entries: Annotated[tuple[Annotated[bytes, Meta(max_length=65536)], ...], Meta(max_length=256)] = ()
    """Further network-log entries (checkpoints of peers' logs), canonical, after those of the scores."""

    def digest(self, network: NetworkId) -> Digest:
        """The header's `body_digest`; computed once for each network."""
        known = self._digests.get(network)
        if known is None:
            known = self._digests[network] = canonical.digest("body", network, self)
        return known

    @cached_property
    def scored(self) -> tuple[Subject, ...]:
        """The column of subjects, read.

        Raises:
            ObservationError: see `unpack_subjects`.
        """
        return unpack_subjects(self.subjects)

    @cached_property
    def records(self) -> tuple[Digest, ...]:
        """Records that the block scores, ascending."""
        return tuple([subject.record for subject in self.scored])

    @cached_property
    def unscored_records(self) -> tuple[Digest, ...]:
        """Records that the block settles as unscored, ascending."""
        return unpack_digests(self.unscored)

    @cached_property
    def _digests(self) -> dict[NetworkId, Digest]:
        return {}


class Block(Value, frozen=True, kw_only=True):
    """A proposed or decided block."""

    header: Header
    body: Body


class DecidedBlock(Value, frozen=True, kw_only=True, dict=True, gc=True):
    """A block and the certificate that decided it: what is stored, synced and served."""

    block: Block
    certificate: Certificate

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes, as they are stored; made once, also where a simulation's peers share the value."""
        return canonical.encode(self)
