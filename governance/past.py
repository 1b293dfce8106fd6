"""A ledger's past: what is proved of it, how much of it is kept, and the snapshot that stands in its place. Blocking.

A part of `LedgerState`, on the same file: `proof`, `offer` and the like are calls of their own, the others happen in
the transaction of a block or of an installation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.certified import CertifiedScores, Inclusion
from nsllm.consensus.errors import PrunedError
from nsllm.consensus.header import Header
from nsllm.consensus.observation import ScoreLeaf
from nsllm.consensus.registry import RegistryState
from nsllm.errors import EncodingError
from nsllm.governance.block_rules import SETTLED_MS, BlockRules, Outcome, Parent
from nsllm.governance.block_store import BlockStore
from nsllm.governance.chain import EmbeddedChain
from nsllm.governance.database import RECOVERY_HINT, Database
from nsllm.governance.epoch_store import EpochRow
from nsllm.governance.errors import DamageError, MissedError, SnapshotError, UnscoredError
from nsllm.governance.genesis import Genesis
from nsllm.governance.kept_proofs import KeptProofs
from nsllm.governance.light_client import LightClient
from nsllm.governance.motion import Retract
from nsllm.governance.proving import completed, notice_of, prove_given, prove_record, prove_retraction, prove_scores
from nsllm.governance.pruning import boundary, keep_proofs
from nsllm.governance.record_proof import RecordProof
from nsllm.governance.retraction import RetractionNotice, RetractionProof
from nsllm.governance.settled import settled_body
from nsllm.governance.snapshot import Handover, Offer, Proved
from nsllm.governance.snapshot_store import SnapshotStore
from nsllm.ids import Address, Digest, Height, TimeMs, hex0x

MAX_WANTED: Final = 4096
"""Wishes between two blocks."""


class Epochs(Protocol):
    """Where the present epochs are looked up."""

    @property
    def epochs(self) -> tuple[EpochRow, ...]:
        """All after the first."""
        ...


class Past:
    """What a ledger knows of the blocks below its tip."""

    def __init__(
        self,
        database: Database,
        genesis: Genesis,
        store: BlockStore,
        ledger: Epochs,
        *,
        own: Address | None,
        keep_heights: int,
    ) -> None:
        """Make missing tables; forget a snapshot that was not taken in as a whole.

        Args:
            database: the ledger's.
            genesis: of the network.
            store: its blocks.
            ledger: knows its epochs.
            own: the member whose records' proofs outlive their blocks.
            keep_heights: see `Ledger.open`.
        """
        self._database = database
        self._genesis = genesis
        self._store = store
        self._ledger = ledger
        self._own = own
        self._keep_heights = keep_heights
        self._kept = KeptProofs(database.connection)
        self.snapshots: Final = SnapshotStore(database.connection, genesis.network_id())
        self.snapshots.begin_incoming()
        self._wanted: set[Digest] = set()

    @property
    def every(self) -> int:
        """Heights between two snapshots."""
        return self._genesis.snapshot_heights

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is pruned here."""
        return not self._keep_heights

    def is_due(self, height: Height) -> bool:
        """Is a snapshot taken after the block at this height?"""
        return height % self.every == 0

    def snapshot_hash(self, tip: Header) -> Digest:
        """What the header above `tip` names.

        Raises:
            DamageError: the snapshot of the last block is missing.
        """
        found = self.snapshots.digest_at(tip.height) if self.is_due(tip.height) else tip.snapshot_hash
        if found is None:
            raise DamageError(f"the snapshot of block {tip.height} is missing", hint=RECOVERY_HINT)
        return found

    def decided(self, start: Height, count: int) -> list[DecidedBlock]:
        """Stored decided blocks from `start`, ascending.

        Raises:
            PrunedError: they were here, and are no more.
        """
        with self._database.guarded():
            kept_from = self._store.kept_from()
            if start < kept_from:
                raise PrunedError(kept_from)
            return self._store.blocks(start, count)

    def check_scorable(self, record: Digest) -> None:
        """Pass silently if a block may still score the record, as far as is known here.

        Raises:
            UnscoredError: it stays unscored.
            MissedError: a block that was never here settled it.
        """
        with self._database.guarded():
            unscored, settled = self._store.unscored(record), bool(self._store.settled_among([record]))
        if unscored is not None:
            names = ", ".join(hex0x(address) for address in unscored.abstainers)
            raise UnscoredError(f"record {hex0x(record)} stays unscored: {names} abstained")
        if settled and self.proof(record) is None:
            raise MissedError(
                f"record {hex0x(record)} was settled while this peer was far behind: its proof went with the blocks"
                " that a snapshot stands for"
            )

    def scores(self, record: Digest) -> tuple[ScoreLeaf, Inclusion, Certificate] | None:
        """Scores of a record, their inclusion in the header's `scores_root`, and its certificate; None without any."""
        with self._database.guarded():
            found = prove_scores(self._store, record)
            kept = self._kept.get(record) if found is None else None
            return found if kept is None else (kept.leaf, kept.scores, kept.certificate)

    def proof(self, record: Digest, given: CertifiedScores | None = None) -> RecordProof | None:
        """All that can be proved of a record; None if it was not scored.

        Args:
            record: its digest.
            given: its scores as somebody else gave them, verified, for when nothing is known of it here.
        """
        with self._database.guarded():
            founding, epochs = self._genesis.policy, self._ledger.epochs
            found = prove_record(self._store, record, founding, epochs) or self._kept.get(record)
            if found is None and given is not None:
                found = prove_given(given, founding, epochs)
            return None if found is None else completed(found, self._kept.retraction(record), epochs)

    def kept(self, after: Digest | None, count: int) -> list[Digest]:
        """Records whose proofs are kept without their blocks, or will be, ascending above `after`."""
        with self._database.guarded():
            return self._kept.records(after, count)

    def forget(self, records: Sequence[Digest]) -> None:
        """Keep the proofs of these no longer, once their blocks are gone."""
        with self._database.transaction():
            self._kept.forget(records)

    def retraction(self, record: Digest) -> RetractionNotice | None:
        """Proof that validators took a record back; None if they have not."""
        with self._database.guarded():
            proof = self._kept.retraction(record)
            return None if proof is None else notice_of(proof, self._ledger.epochs)

    def retractions(self, start: int, count: int) -> list[RetractionProof]:
        """Proofs of retractions in the order of their blocks, from the `start`-th on: what a snapshot does not hold."""
        with self._database.guarded():
            return self._kept.retractions(start, count)

    def want(self, record: Digest) -> None:
        """Keep the record's proof when its block goes; written with the next block."""
        if len(self._wanted) < MAX_WANTED:
            self._wanted.add(record)

    def offer(self, since: int) -> tuple[Offer, tuple[Handover, ...]] | None:
        """The newest snapshot that a stored block proves, and the handovers to that block's epoch after `since`."""
        with self._database.guarded():
            for manifest in self.snapshots.manifests():
                block, above = self._store.block(manifest.height), self._store.block(Height(manifest.height + 1))
                if block is not None and above is not None:
                    rows = self._ledger.epochs[since : above.block.header.epoch]
                    handovers = tuple(Handover(proof=row.proof, policy=row.policy) for row in rows)
                    return Offer(manifest=manifest, block=block, certificate=above.certificate), handovers
        return None

    def begin_incoming(self) -> None:
        """Forget chunks that were taken in before."""
        with self._database.transaction():
            self.snapshots.begin_incoming()

    def put_incoming(self, proved: Proved, position: int, data: bytes) -> None:
        """Take in a chunk; raises `SnapshotError` for one that is not certified."""
        with self._database.transaction():
            self.snapshots.put_incoming(proved.offer.manifest, position, data)

    # In a block's transaction

    def append(self, header: Header, parent: Parent, outcome: Outcome, chain: EmbeddedChain) -> Digest:
        """After a block was stored and executed: keep what outlives it, take a snapshot and prune if that is due.

        Returns:
            What the next header's `snapshot_hash` is.
        """
        before = {each.record for each in parent.registry.retracted}
        for each in outcome.registry.retracted if outcome.registry is not parent.registry else ():
            if each.record not in before:
                self._kept.put_retraction(each.record, prove_retraction(self._store, each.record, header.height))
        if not self.is_due(header.height):
            return header.snapshot_hash
        self._store.forget_settled(TimeMs(max(0, header.time_ms - SETTLED_MS)))
        digest = self.snapshots.take(header, parent.log, outcome.registry, self._store, chain)
        if self._keep_heights:
            chain.forget_history()
            last = boundary(self._store, header.height, keep_heights=self._keep_heights, snapshot_heights=self.every)
            if last >= self._store.kept_from():
                self.keep_proofs(last)
                self._store.prune(last)
        return digest

    def write_wanted(self) -> tuple[Digest, ...]:
        """Write down the wishes so far; `forget_wanted` them once the transaction is over."""
        wanted = tuple(self._wanted)
        for record in wanted:
            self._kept.want(record)
        return wanted

    def forget_wanted(self, written: Sequence[Digest]) -> None:
        """These wishes are on disk."""
        self._wanted.difference_update(written)

    def keep_proofs(self, up_to: Height) -> None:
        """Keep what receipts need of the blocks up to a height."""
        founding, epochs = self._genesis.policy, self._ledger.epochs
        keep_proofs(self._store, self._kept, up_to, own=self._own, founding=founding, epochs=epochs)

    # In an installation's transaction

    def replace(
        self, proved: Proved, retractions: Sequence[RetractionProof], chain: Callable[[], EmbeddedChain]
    ) -> None:
        """Replace the state by the snapshot that was taken in.

        Args:
            proved: the snapshot.
            retractions: see `LedgerState.install`.
            chain: opens the chain that the snapshot holds.

        Raises:
            SnapshotError: not whole, or it does not lead to what its certified headers say.
        """
        offer = proved.offer
        header, body = offer.block.block.header, offer.block.block.body
        try:
            log_before = self.snapshots.replace_state(offer.manifest, self._store)
        except EncodingError as error:
            raise SnapshotError(f"snapshot {header.height}: {error.message}") from None
        rows = [
            EpochRow(each.proof.certificate.header.height, each.proof.change, each.policy, each.proof.certificate)
            for each in proved.handovers
        ]
        for row in rows:
            self._store.epochs.put(row)
        epochs = (*self._ledger.epochs, *rows)
        rules = BlockRules.founding(self._genesis)
        if header.epoch:
            row = epochs[header.epoch - 1]
            rules = BlockRules(self._genesis, row.change.validators, row.policy)
        settled = settled_body(body, rules.terms)
        self._store.put_block(offer.block, settled.leaves, settled.unscored, log_before.size)
        log_now = self._store.log.append(log_before, header.height, settled.entries)
        registry = self._store.members.registry()
        if (log_now.size, log_now.root()) != (header.log_size, header.log_root):
            raise SnapshotError(f"snapshot {header.height} leads to log root {hex0x(log_now.root())}")
        if registry.digest(self._genesis.network_id()) != header.registry_hash:
            raise SnapshotError(f"snapshot {header.height} holds another registry than block {header.height} certifies")
        self._put_retractions(registry, retractions, epochs)
        taken = self.snapshots.take(header, log_before, registry, self._store, chain())
        if taken != proved.digest:
            raise SnapshotError(f"snapshot {header.height} written down again is {hex0x(taken)}")

    def _put_retractions(
        self, registry: RegistryState, retractions: Sequence[RetractionProof], epochs: Sequence[EpochRow]
    ) -> None:
        """Keep the proofs that the registry asks for, so that no receipt keeps silent about a record's end."""
        trusts = LightClient.begin(self._genesis).follow(row.proof for row in epochs) if retractions else ()
        heights = [proof.height for proof in retractions]
        if heights != sorted(heights):
            raise SnapshotError("proofs of retractions that do not stand in the order of their blocks")
        for proof in retractions:
            action = proof.transaction.motion.action
            header = proof.certificate.header
            if not isinstance(action, Retract) or header.epoch >= len(trusts):
                raise SnapshotError(f"proof of a retraction at height {header.height} that retracts nothing here")
            if registry.retracted_at(action.record) == proof.height:
                trusts[header.epoch].check(proof.certificate)
                proof.check(action.record)
                self._kept.put_retraction(action.record, proof)
        for each in registry.retracted:
            if self._kept.retraction(each.record) is None:
                raise SnapshotError(f"no proof that record {hex0x(each.record)} was taken back at height {each.height}")
