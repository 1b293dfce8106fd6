"""Pruning: which blocks a ledger forgets after a snapshot, and what of them it keeps. Blocking.

Transactions are the caller's: one a block.
Kept for ever are the handovers between epochs; the proofs of this peer's own records as long as it is asked for them;
for some time the newest blocks, so that a peer that is not far behind needs no snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from nsllm.governance.block_store import BlockStore
from nsllm.governance.epoch_store import EpochRow
from nsllm.governance.kept_proofs import KeptProofs
from nsllm.governance.policy import Policy
from nsllm.governance.proving import prove_record
from nsllm.ids import Address, Digest, Height

AT_ONCE: Final = 4
"""Snapshot intervals: a ledger that kept all and may forget now does so little by little."""


def boundary(store: BlockStore, snapshot: Height, *, keep_heights: int, snapshot_heights: int) -> Height:
    """The highest block that may go after the snapshot of the block at `snapshot`; below the oldest one if none may.

    Never one that the snapshot before is proved by, and none at or above the newest proved anchor: below it, whatever
    is proved of a record is complete.
    """
    kept = max(keep_heights, snapshot_heights + 1)
    some = store.kept_from() - 1 + AT_ONCE * snapshot_heights
    return Height(min(snapshot - kept, store.anchors.newest() - 1, some))


def keep_proofs(
    store: BlockStore,
    kept: KeptProofs,
    up_to: Height,
    *,
    own: Address | None,
    founding: Policy,
    epochs: Sequence[EpochRow],
) -> None:
    """Keep what receipts need of blocks that go: proofs of this peer's own records, and of those that were asked for.

    Args:
        store: the ledger's tables.
        kept: where the proofs go.
        up_to: the last block that goes.
        own: address of this peer's member key.
        founding: the genesis's policy.
        epochs: all epochs after the first.
    """
    for record in _of_interest(store, kept, up_to, own):
        proof = prove_record(store, record, founding, epochs)
        if proof is not None:
            kept.put(proof)


def _of_interest(store: BlockStore, kept: KeptProofs, up_to: Height, own: Address | None) -> Iterator[Digest]:
    for height in range(store.kept_from(), up_to + 1):
        if not store.row(Height(height)).records:
            continue
        for leaf in store.leaves(Height(height)):
            if leaf.generator == own or kept.is_wanted(leaf.record):
                yield leaf.record
