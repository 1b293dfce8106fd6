"""What consensus needs from the rooms around it. `node` wires them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nsllm.consensus.block import Block, DecidedBlock
from nsllm.consensus.evidence import Evidence
from nsllm.consensus.validators import ValidatorSet
from nsllm.ids import Address, Height, Round, TimeMs


class Application(Protocol):
    """The replicated state machine (scores, network log, EVM): deterministic, one caller at a time.

    Implemented by `nsllm.governance.ledger`. `height` is always one above the last committed block.
    """

    @property
    def validators(self) -> ValidatorSet:
        """The validators that decide the height above the last committed block."""
        ...

    async def due_in(self) -> float | None:
        """Seconds until a block is wanted (0.0: now), or None while nothing is: no empty blocks."""
        ...

    async def propose(self, height: Height, now_ms: TimeMs, proposer: Address) -> Block:
        """A new valid block for `height` from what is pending (possibly an empty body)."""
        ...

    async def validate(self, block: Block, now_ms: TimeMs, round_: Round) -> None:
        """Pass silently if honest validators may prevote `block` when it is proposed in `round_`.

        In round 0 the application may also judge by what it alone has received; in later rounds by rules that all
        share, so that what some refused at first is decided all the same.

        Raises:
            BlockError: says which field is wrong, with both values.
            DivergenceError: everything agrees but the EVM state root that a quorum certified; we halt.
        """
        ...

    async def commit(self, decided: DecidedBlock) -> None:
        """Execute and store a decided block atomically; repeating the last one is a no-op.

        Raises:
            DivergenceError: our roots differ from the certified ones.
        """
        ...

    def add_evidence(self, evidence: Evidence) -> bool:
        """Take evidence that a block shall hold; True if it is news, so that the others shall have it too.

        Raises:
            EvidenceError, SignatureError: too old, or it proves nothing.
        """
        ...

    async def decided(self, start: Height, count: int) -> Sequence[DecidedBlock]:
        """Stored decided blocks from `start`, ascending, at most `count`; for peers that catch up.

        Raises:
            PrunedError: they were stored once, and are no more.
        """
        ...

    async def tip(self) -> Height:
        """Height of the last committed block; 0 before the first."""
        ...


class Mesh(Protocol):
    """Direct, acknowledged streams to the other validators. Implemented in `node` over `nsllm.p2p.protocols`."""

    def send(self, to: Address, message: bytes) -> None:
        """Queue a consensus message (canonical bytes) for one validator; bounded, oldest dropped, never blocks.

        The mesh reconnects and retries until the queue's bound; loss is repaired by the driver's own resends.
        """
        ...


class BlockSource(Protocol):
    """Where a validator that fell behind gets decided blocks. Implemented in `node` over the sync protocol."""

    async def fetch(self, start: Height, count: int) -> Sequence[DecidedBlock]:
        """Decided blocks from any peer that has them, unverified; empty if nobody answers in time."""
        ...

    def refuse(self) -> bool:
        """What came last is no part of the chain: whoever gave it is not asked for a while. True if others are left."""
        ...


class SnapshotSource(Protocol):
    """How a peer that is far behind gets ahead without every block. Implemented in `node`, by the snapshot protocol."""

    async def leap(self, tip: Height, claimed: Height) -> bool:
        """Bring the application far above `tip`, if that is worth it; True if it has moved.

        Called by the application's only committer, while it commits nothing. What is brought is certified; whoever
        gave what is not is asked no more. `claimed` is the height that others are said to have, unproved.
        """
        ...
