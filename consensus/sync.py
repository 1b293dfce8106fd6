"""Catching up: decided blocks from anybody, verified link by link, then committed. Shared by driver and follower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.core import State
from nsllm.consensus.errors import CertificateError, ConsensusError
from nsllm.consensus.ports import Application, BlockSource
from nsllm.consensus.screen import check_body, check_link
from nsllm.consensus.validators import ValidatorSet
from nsllm.ids import Digest, Height, NetworkId

SYNC_BATCH: Final = 16
"""Blocks asked for at once; of the largest kind, 16 MiB."""


@dataclass(frozen=True, slots=True)
class Tip:
    """The last committed block, or the genesis."""

    height: Height
    header_id: Digest
    """The parent of the next block: the network id at height 0."""
    certificate: Certificate | None
    """What decided it; None at height 0."""

    def next(self) -> Height:
        """The height to decide."""
        return Height(self.height + 1)


async def load_tip(network: NetworkId, application: Application) -> Tip:
    """The tip as the application stores it.

    Raises:
        ConsensusError: it counts blocks that it does not hold.
    """
    height = await application.tip()
    if height == 0:
        return Tip(Height(0), Digest(network), None)
    stored = await application.decided(height, 1)
    if not stored:
        raise ConsensusError(f"the store counts {height} blocks but lacks the last one", hint="restore the data folder")
    return tip_of(stored[0])


def tip_of(decided: DecidedBlock) -> Tip:
    """The tip after `decided`."""
    header = decided.block.header
    return Tip(header.height, header.id(), decided.certificate)


def at_hand(state: State, certificate: Certificate | None) -> DecidedBlock | None:
    """The block that `certificate` decides at the state's height, if it was proposed to us."""
    if certificate is None or certificate.header.height != state.height:
        return None
    candidate = state.candidates.get(certificate.header.id())
    return None if candidate is None else DecidedBlock(block=candidate.proposal.block, certificate=certificate)


def check_decided(network: NetworkId, validators: ValidatorSet, tip: Tip, decided: DecidedBlock) -> None:
    """Pass silently if a quorum decided this block right above `tip`.

    Raises:
        BlockError: another height, parent, epoch, validator set or body.
        CertificateError, SignatureError: the certificate is another block's, or proves nothing.
    """
    check_link(validators, decided.block, tip.next(), tip.header_id)
    if decided.certificate.header != decided.block.header:
        raise CertificateError(f"block {tip.next()} comes with the certificate of another header")
    check_body(network, decided.block)
    decided.certificate.check(network, validators)


async def fetch_batch(source: BlockSource, tip: Tip, timeout_s: float) -> Sequence[DecidedBlock]:
    """Blocks above `tip`, unverified; empty if none came in time."""
    blocks: Sequence[DecidedBlock] = ()
    with trio.move_on_after(timeout_s):
        blocks = await source.fetch(tip.next(), SYNC_BATCH)
    return blocks[:SYNC_BATCH]
