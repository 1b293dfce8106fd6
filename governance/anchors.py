"""A ledger's anchors: which chain transaction a block shall carry, its check, its execution and what is kept. Blocking.

A part of `LedgerState`, on the same file: it decides by the chain's state, and stores in a block's transaction.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Protocol

from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.errors import BlockError
from nsllm.consensus.header import Header
from nsllm.consensus.validators import ValidatorSet
from nsllm.errors import NsllmError
from nsllm.governance.anchor_store import AnchorRow
from nsllm.governance.anchoring import Anchoring
from nsllm.governance.block_rules import BlockRules, Parent
from nsllm.governance.block_store import BlockStore
from nsllm.governance.chain import EmbeddedChain
from nsllm.governance.epoch_store import EpochRow
from nsllm.governance.errors import ChainRefusal
from nsllm.governance.transaction import parse_transaction
from nsllm.ids import Digest, Height, TimeMs

log = logging.getLogger(__name__)


class Tip(Protocol):
    """Where the ledger stands."""

    tip: DecidedBlock | None
    parent: Parent
    rules: BlockRules
    epochs: tuple[EpochRow, ...]

    def validators_of(self, epoch: int) -> ValidatorSet | None:
        """The validators of an epoch up to the present one."""
        ...


class Anchors:
    """What a ledger does on its embedded chain."""

    def __init__(self, chain: EmbeddedChain, store: BlockStore, ledger: Tip) -> None:
        """Take up where the chain stands.

        Args:
            chain: the ledger's.
            store: where executed anchors are listed.
            ledger: knows its last block and its epochs.
        """
        self._chain = chain
        self._store = store
        self._ledger = ledger
        self._state = Anchoring(chain.anchored_head()[0], store.last_transaction_ms(), chain.epoch())
        self._checked: tuple[Digest, tuple[bytes, ...]] | None = None
        """Last block and transactions that the chain would execute."""

    @property
    def size(self) -> int:
        """Log size of the newest executed anchor; 0 before the first."""
        return self._state.size

    def due_in_ms(self, now_ms: TimeMs) -> int | None:
        """Milliseconds until an anchor or a handover is due (0: now); None while neither has reason."""
        behind = self._state.epoch < self._ledger.rules.validators.epoch
        return self._state.due_in_ms(self._ledger.parent.log.size, now_ms, handover=behind)

    def transactions(self, time_ms: TimeMs) -> tuple[bytes, ...]:
        """The anchor or handover transaction that a block of `time_ms` shall carry, if one is due."""
        tip = self._ledger.tip
        if tip is None or self.due_in_ms(time_ms) != 0:
            return ()
        known = self._state.epoch
        if known < self._ledger.rules.validators.epoch:
            transactions = (self._chain.handover_transaction(self._ledger.epochs[known].proof),)
        else:
            transactions = (self._chain.anchor_transaction(tip.certificate),)
        try:
            self._try_out(transactions, time_ms)
        except ChainRefusal as error:
            # Never propose what the others must refuse: scores go on without anchors, and somebody is told.
            log.error("anchor_refused log_size=%d error=%s", self._ledger.parent.log.size, error)
            self._state = self._state.refused(time_ms)
            return ()
        return transactions

    def check(self, transactions: tuple[bytes, ...], header: Header) -> None:
        """Pass silently if a block with this header may carry them.

        Raises:
            BlockError: too soon after the last ones, or the chain refuses one.
        """
        allowed_ms = self._state.allowed_from_ms()
        if transactions and header.time_ms < allowed_ms:
            raise BlockError(f"body.transactions: an anchor at {header.time_ms}, allowed from {allowed_ms}")
        try:
            self._try_out(transactions, header.time_ms)
        except NsllmError as error:
            raise BlockError(f"body.transactions: {error}") from None

    def execute(self, decided: DecidedBlock) -> Anchoring:
        """Execute and list what a certified block carries; `adopt` what follows once it is stored."""
        header, body = decided.block.header, decided.block.body
        if not body.transactions:
            return self._state
        result = self._chain.execute(body.transactions, header.time_ms)
        self._store.put_last_transaction_ms(header.time_ms)
        log_size, log_root = self._chain.anchored_head()
        state = replace(self._state, epoch=self._chain.epoch())
        if log_size <= state.size and state.epoch > self._state.epoch:
            return state.handed_over(header.time_ms)
        if log_size <= state.size:
            log.warning("anchor_failed height=%d log_size=%d", header.height, log_size)
            return state.executed(log_size, header.time_ms)
        raw, digest = next(
            (raw, digest) for raw, (digest, success) in zip(body.transactions, result.receipts, strict=True) if success
        )
        self._store.anchors.put(
            AnchorRow(
                log_size=log_size,
                log_root=log_root,
                header_height=_anchored_height(raw),
                transaction_hash=digest,
                transaction_height=header.height,
                time_ms=header.time_ms,
                proof_height=None,
                proof=None,
            )
        )
        return state.executed(log_size, header.time_ms)

    def adopt(self, state: Anchoring) -> None:
        """A stored block left the anchors so."""
        self._state = state

    def _try_out(self, transactions: tuple[bytes, ...], time_ms: TimeMs) -> None:
        """The chain's check, once for each set: it executes them, and proposals come again in later rounds."""
        about = (self._ledger.parent.id, transactions)
        if transactions and about != self._checked:
            following = self._ledger.validators_of(self._state.epoch + 1)
            self._chain.check(transactions, following, time_ms)
            self._checked = about


def _anchored_height(raw: bytes) -> Height:
    """Height of the header in a successful anchor transaction: second word of the call's first argument."""
    return Height(int.from_bytes(parse_transaction(raw).transaction.data[4 + 32 : 4 + 64], "big"))
