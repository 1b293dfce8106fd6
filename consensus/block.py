"""Blocks: a header and the body that its `body_digest` commits to."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.header import Header
from nsllm.consensus.observation import SignedObservation
from nsllm.ids import Digest, NetworkId

MAX_BLOCK_BYTES: Final = 1024 * 1024
MAX_BLOCK_RECORDS: Final = 128


class Body(Value, frozen=True, kw_only=True):
    """What a block decides. Order is canonical: observations ascend by (record, validator)."""

    observations: Annotated[tuple[SignedObservation, ...], Meta(max_length=MAX_BLOCK_RECORDS * 64)] = ()
    transactions: Annotated[tuple[Annotated[bytes, Meta(max_length=65536)], ...], Meta(max_length=16)] = ()
    """Signed EVM transactions in execution order."""
    entries: Annotated[tuple[Annotated[bytes, Meta(max_length=65536)], ...], Meta(max_length=256)] = ()
    """Further network-log entries (checkpoints of peers' logs), canonical, after those of the scores."""

    def digest(self, network: NetworkId) -> Digest:
        """The header's `body_digest`."""
        return canonical.digest("body", network, self)


class Block(Value, frozen=True, kw_only=True):
    """A proposed or decided block."""

    header: Header
    body: Body


class DecidedBlock(Value, frozen=True, kw_only=True):
    """A block and the certificate that decided it: what is stored, synced and served."""

    block: Block
    certificate: Certificate
