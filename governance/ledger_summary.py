"""A ledger in short, for the status page."""

from __future__ import annotations

from dataclasses import dataclass

from nsllm.governance.anchor_store import AnchorRow
from nsllm.governance.block_store import BlockRow
from nsllm.governance.ledger_state import LedgerState
from nsllm.governance.offences import OffenceRow
from nsllm.ids import Digest, Height


@dataclass(frozen=True, slots=True)
class LedgerSummary:
    """The ledger for the status page."""

    height: Height
    log_size: int
    log_root: Digest
    state_root: Digest | None
    """As the last header certifies it; None before the first block."""
    anchored_size: int
    pending: int
    """Records with observations that no block holds yet."""
    halted: str | None
    notice: str | None
    blocks: tuple[BlockRow, ...]
    """Newest first."""
    anchors: tuple[AnchorRow, ...]
    """Newest first."""
    offences: tuple[OffenceRow, ...]
    """Validators convicted by evidence in a block, newest first."""
    kept_from: Height
    """The oldest block that is stored; 1 where nothing was pruned."""
    snapshot_height: Height | None
    """Of the newest snapshot; None before the first."""


def summarize(state: LedgerState, rows: int, *, pending: int, halted: str | None) -> LedgerSummary:
    """What the state says, with the newest `rows` blocks, anchors and offences. Blocking."""
    store, tip = state.store, state.tip
    return LedgerSummary(
        height=state.parent.height,
        log_size=state.parent.log.size,
        log_root=state.parent.log.root(),
        state_root=tip.block.header.state_root if tip is not None else None,
        anchored_size=state.anchored_size,
        pending=pending,
        halted=halted,
        notice=state.notice,
        blocks=store.rows(rows),
        anchors=store.anchors.rows(rows),
        offences=tuple(reversed(state.offences.values()))[:rows],
        kept_from=store.kept_from(),
        snapshot_height=state.past.snapshots.newest(),
    )
