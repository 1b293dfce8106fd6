"""The replicated state behind one SQLite file: blocks, network log, registry, EVM. Blocking, one caller at a time.

A decided block is one transaction over all of them: after a crash either everything of it is there, or nothing.
`nsllm.governance.ledger.Ledger` gives this class its turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from nsllm import canonical
from nsllm.consensus.block import Block, Body, DecidedBlock
from nsllm.consensus.errors import BlockError, DivergenceError
from nsllm.consensus.evidence import offence_of
from nsllm.consensus.header import Header
from nsllm.consensus.observation import ScoreLeaf
from nsllm.consensus.registry import Admission, Member, MemberRegistry
from nsllm.consensus.validators import ValidatorSet
from nsllm.databases import ON_DISK, Databases
from nsllm.errors import NsllmError
from nsllm.governance.anchoring import Anchoring
from nsllm.governance.anchors import Anchors
from nsllm.governance.block_rules import BlockRules, Outcome, Parent, compare_headers
from nsllm.governance.block_store import BlockStore
from nsllm.governance.chain import EmbeddedChain
from nsllm.governance.checked import Checked
from nsllm.governance.database import RECOVERY_HINT, Database
from nsllm.governance.epoch_store import EpochRow
from nsllm.governance.errors import ChainError, DamageError, LedgerError, LogError
from nsllm.governance.genesis import Genesis
from nsllm.governance.light_client import LightClient
from nsllm.governance.log_entry import AdmissionEntry, Checkpoint, EvidenceEntry, GovernanceEntry, decode_entry
from nsllm.governance.motion import GovernanceTransaction
from nsllm.governance.motion_store import MotionStore
from nsllm.governance.offences import OffenceRow
from nsllm.governance.past import Past
from nsllm.governance.policy import Policy
from nsllm.governance.proposal import Draft, select
from nsllm.governance.retraction import RetractionProof
from nsllm.governance.snapshot import Handover, Offer, Proved, check_offer
from nsllm.ids import Address, Digest, Epoch, Height, TimeMs, hex0x
from nsllm.merkle import Frontier


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit changed: stored already, adopted by `LedgerState.adopt`."""

    decided: DecidedBlock
    leaves: tuple[ScoreLeaf, ...]
    """Scores that it certifies."""
    leaf_hashes: tuple[Digest, ...]
    """Of these, see `SettledBody`."""
    settled: tuple[Digest, ...]
    """Records that the block scores or settles as unscored."""
    admissions: tuple[Admission, ...]
    offences: tuple[OffenceRow, ...]
    motions: tuple[Digest, ...]
    """Decided by the block."""
    parent: Parent
    anchoring: Anchoring
    epoch: EpochRow | None
    """What the next height begins with, if the block ends its epoch."""
    wanted: tuple[Digest, ...]
    """Records whose proofs are to be kept, written with the block."""


class LedgerState:
    """Everything that a block changes; also the `History` that the rules ask."""

    def __init__(self, database: Database, genesis: Genesis, *, own: Address | None, keep_heights: int) -> None:
        """Load the state from an open database, or begin it. Use `open`.

        Raises:
            DamageError: the log or the EVM state is not what the last certified header says.
            StorageError: another network's file.
        """
        self._database = database
        self._genesis = genesis
        self._own = own
        self._keep_heights = keep_heights
        self.rules: BlockRules = BlockRules.founding(genesis)
        """Of the next height."""
        self.registry: Final[MemberRegistry] = genesis.registry()
        """Members after the last block."""
        with database.guarded():
            self.store: Final = BlockStore(database.connection, genesis)
            self.past: Final = Past(database, genesis, self.store, self, own=own, keep_heights=keep_heights)
            self.epochs: tuple[EpochRow, ...] = self.store.epochs.rows()
            """All after the first."""
            self._light = LightClient.begin(genesis)
            for row in self.epochs:
                self._enter(row)
            self._chain = self._open_chain()
            self.tip: DecidedBlock | None = self.store.tip()
            self.registry.state = self.store.members.registry()
            self.parent: Parent = self._load_parent()
            self.offences: dict[tuple[Address, Epoch], OffenceRow] = {
                (row.validator, row.epoch): row for row in self.store.members.offences()
            }
            """Every conviction, oldest first."""
            self.motions: Final = MotionStore(database.connection, genesis.network_id())
            self.waiting: Final = tuple(self.motions.all())
            """Motions that waited when this state was opened."""
            self._anchors = Anchors(self._chain, self.store, self)
            self._check_tip()

    @classmethod
    def open(
        cls,
        path: Path | None,
        genesis: Genesis,
        *,
        now_ms: TimeMs,
        recover: bool,
        databases: Databases = ON_DISK,
        own: Address | None = None,
        keep_heights: int = 0,
    ) -> LedgerState:
        """Open or create the ledger file (None: in memory), every page checked.

        Args: see `Ledger.open`; `own` is the member whose records' proofs outlive their blocks.

        Raises:
            DamageError: damaged, and `recover` is False.
            StorageError: no space, no permission, or another network's file.
        """
        database = Database.open(
            path, what="ledger", now_ms=now_ms, recover=recover, hint=RECOVERY_HINT, databases=databases
        )
        try:
            return cls(database, genesis, own=own, keep_heights=keep_heights)
        except DamageError as error:
            database.close()
            if path is None or not recover:
                raise
            anew = Database.begin_anew(path, what="ledger", now_ms=now_ms, reason=error.message)
            return cls(anew, genesis, own=own, keep_heights=keep_heights)
        except BaseException:
            database.close()
            raise

    @property
    def notice(self) -> str | None:
        """What an operator should know about opening."""
        return self._database.notice

    @property
    def anchored_size(self) -> int:
        """Log size of the newest executed anchor; 0 before the first."""
        return self._anchors.size

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def settled_among(self, records: Sequence[Digest]) -> set[Digest]:
        """Those that a block has scored, or settled that they stay unscored."""
        return self.store.settled_among(records)

    def member(self, address: Address) -> Member | None:
        """The member with this address after the last block."""
        return self.registry.get(address)

    def is_decided(self, motion: Digest) -> bool:
        """Does a block hold this motion?"""
        return self.store.is_decided(motion)

    def validators_of(self, epoch: int) -> ValidatorSet | None:
        """The validators of an epoch up to the present one."""
        if epoch == 0:
            return self._genesis.registry().validators()
        return self.epochs[epoch - 1].change.validators if epoch <= len(self.epochs) else None

    def ended(self, epoch: int) -> Height | None:
        """Height of an epoch's last block; None while it goes on."""
        return self.epochs[epoch].boundary if epoch < len(self.epochs) else None

    def policy_of(self, epoch: int) -> Policy | None:
        """The policy of an epoch up to the present one."""
        if epoch == 0:
            return self._genesis.policy
        return self.epochs[epoch - 1].policy if epoch <= len(self.epochs) else None

    def last_checkpoint(self, peer: Address) -> tuple[Checkpoint, TimeMs] | None:
        """The peer's newest checkpoint in the network log, and the time of its block."""
        return self.store.members.last_checkpoint(peer)

    def is_convicted(self, validator: Address, epoch: Epoch) -> bool:
        """Does a block hold evidence against the validator, of this epoch?"""
        return (validator, epoch) in self.offences

    def state_root_due(self) -> bool:
        """Did the last block change an EVM state that no header carries yet?"""
        return self.tip is not None and bool(self.tip.block.body.transactions)

    def anchor_in_ms(self, now_ms: TimeMs) -> int | None:
        """Milliseconds until an anchor or a handover is due (0: now); None while neither has reason."""
        return self._anchors.due_in_ms(now_ms)

    def build(self, draft: Draft, *, now_ms: TimeMs, proposer: Address) -> Block:
        """A valid block on top of the last one, from what is pending and still valid."""
        with self._database.guarded():
            time_ms = self.rules.time_after(self.parent, now_ms)
            height = Height(self.parent.height + 1)
            body = replace(
                select(draft, self.rules, self.parent.registry, self, height, time_ms),
                transactions=self._anchors.transactions(time_ms),
            )
            outcome = self.rules.outcome(self.parent, body, proposer, time_ms)
            return Block(header=self._header(body, outcome, proposer, time_ms), body=body)

    def check(self, block: Block, *, now_ms: TimeMs, checked: Checked) -> None:
        """Pass silently if honest validators may prevote `block`.

        Raises:
            BlockError: names the rule, or the header's field with both values.
        """
        with self._database.guarded():
            state_root = self._chain.state_root()
            self.rules.check(block, self.parent, self, state_root=state_root, now_ms=now_ms, checked=checked)
            self._anchors.check(block.body.transactions, block.header)

    def commit(self, decided: DecidedBlock) -> Committed | None:
        """Execute and store a decided block in one transaction; None if it is stored already.

        Raises:
            BlockError: not the block that the certificate decided, or not the next height.
            CertificateError, SignatureError: the certificate does not hold.
            DivergenceError: our state leads to another header than the certified one, or a second block was certified.
            StorageError: no space; nothing was stored.
        """
        header = decided.block.header
        with self._database.guarded():
            if decided.certificate.header != header:
                raise BlockError(f"certificate of another header at height {decided.certificate.header.height}")
            if header.height < self.store.kept_from():
                raise BlockError(f"block {header.height} again, long after block {self.parent.height}")
            if header.height <= self.parent.height:
                self._same_as_stored(decided)
                return None
            if header.height != self.parent.height + 1:
                raise BlockError(f"block {header.height} after block {self.parent.height}")
            self._light.check(decided.certificate)
            outcome = self._outcome_certified(decided)
            with self._database.transaction():
                committed = self._store(decided, outcome)
            if self.past.is_due(header.height):
                self._database.give_back()
            return committed

    def adopt(self, committed: Committed) -> None:
        """Make a stored block the last one."""
        self.past.forget_wanted(committed.wanted)
        self.registry.state = committed.parent.registry
        for row in committed.offences:
            self.offences[row.validator, row.epoch] = row
        self.tip = committed.decided
        self.store.remember(committed.decided)
        self.parent = committed.parent
        self._anchors.adopt(committed.anchoring)
        if committed.epoch is not None:
            self.epochs = (*self.epochs, committed.epoch)
            self._enter(committed.epoch)

    def check_offer(self, offer: Offer, handovers: Sequence[Handover]) -> Proved:
        """The offer, if certificates lead from our present epoch to it.

        Raises:
            CertificateError, SignatureError: see `snapshot.check_offer`.
        """
        return check_offer(offer, handovers, self._light)

    def keep_motion(self, transaction: GovernanceTransaction, time_ms: TimeMs) -> None:
        """Keep a waiting motion: on disk when this returns.

        Raises:
            StorageError: no space; nothing was kept.
        """
        with self._database.transaction():
            if not self.store.is_decided(transaction.motion.digest(self.rules.network)):
                self.motions.put(transaction, time_ms)

    def install(self, proved: Proved, retractions: Sequence[RetractionProof]) -> LedgerState:
        """Replace the state by a snapshot that was taken in as a whole; this object is of no use then.

        One transaction: after a crash either the old state is there, or the new one. Proofs of own records stay.

        Args:
            proved: the snapshot.
            retractions: proofs of those after the ones that are known here, in order; later ones than the snapshot's
                are passed over.

        Raises:
            SnapshotError: not whole, or it does not lead to what its certified headers say; nothing was replaced.
            StorageError: no space; nothing was replaced.
        """
        with self._database.guarded():
            if proved.offer.manifest.height <= self.parent.height:
                raise LedgerError(f"snapshot {proved.offer.manifest.height} is not above block {self.parent.height}")
            with self._database.transaction():
                self.past.write_wanted()
                self.past.keep_proofs(self.parent.height)
                self.past.replace(proved, retractions, self._open_chain)
            self._database.give_back()
            return LedgerState(self._database, self._genesis, own=self._own, keep_heights=self._keep_heights)

    def leaves(self, height: Height) -> tuple[ScoreLeaf, ...]:
        """Scores of one block, in its order."""
        with self._database.guarded():
            return self.store.leaves(height)

    def _enter(self, row: EpochRow) -> None:
        """Judge by the validators and the policy of another epoch."""
        change = row.change
        self.rules = BlockRules(self._genesis, change.validators, row.policy)
        self._light = LightClient(self.rules.network, change.validators, change.policy_digest, row.boundary)

    def _header(self, body: Body, outcome: Outcome, proposer: Address, time_ms: TimeMs) -> Header:
        root = self._chain.state_root()
        return self.rules.header(self.parent, body, outcome, state_root=root, proposer=proposer, time_ms=time_ms)

    def _same_as_stored(self, decided: DecidedBlock) -> None:
        header = decided.block.header
        stored = self.store.row(header.height).header_id
        if stored != header.id():
            validators = self.validators_of(header.epoch)
            if validators is None:
                raise BlockError(
                    f"block {header.height} of epoch {header.epoch}, ours is {self.rules.validators.epoch}"
                )
            decided.certificate.check(self.rules.network, validators)
            raise DivergenceError(
                f"a second block is certified at height {header.height}: {hex0x(header.id())}, ours {hex0x(stored)}",
                hint="more validators than f are faulty; keep both certificates as evidence",
            )

    def _outcome_certified(self, decided: DecidedBlock) -> Outcome:
        """What follows from a certified block, which must be what the quorum signed."""
        header, body = decided.block.header, decided.block.body
        if header.body_digest != body.digest(self.rules.network):
            raise BlockError(f"body of block {header.height} is not the one that was certified")
        hint = "this validator's state is damaged or its software differs; compare versions, then sync it again"
        try:
            outcome = self.rules.outcome(self.parent, body, header.proposer, header.time_ms)
            compare_headers(header, self._header(body, outcome, header.proposer, header.time_ms))
        except NsllmError as error:
            raise DivergenceError(f"certified block {header.height} against our state: {error}", hint=hint) from None
        return outcome

    def _store(self, decided: DecidedBlock, outcome: Outcome) -> Committed:
        header, body = decided.block.header, decided.block.body
        wanted = self.past.write_wanted()
        self.store.put(decided, outcome.leaves, outcome.unscored, self.parent.log.size)
        if outcome.registry is not self.parent.registry:
            self.store.members.put_registry(outcome.registry, self.parent.registry)
        motions = [e.transaction.motion for e in map(decode_entry, body.entries) if isinstance(e, GovernanceEntry)]
        digests = tuple(motion.digest(self.rules.network) for motion in motions)
        if motions:
            expiries = [(digest, motion.expires_ms) for digest, motion in zip(digests, motions, strict=True)]
            self.store.put_motions(expiries, header.height, header.time_ms)
            self.motions.forget(digests)
        epoch = None
        if outcome.change is not None:
            epoch = EpochRow(header.height, outcome.change, outcome.policy, decided.certificate)
            self.store.epochs.put(epoch)
            self.motions.keep_of(outcome.change.validators.members)
        self.store.log.append_grown(self.parent.log.size, header.height, outcome.entries, outcome.nodes)
        # This header certifies the present state root, so anchors executed below it are provable now.
        for log_size in self.store.anchors.unproved():
            proof = canonical.encode(self._chain.prove_anchor(log_size))
            self.store.anchors.prove(log_size, header.height, proof)
        anchoring = self._anchors.execute(decided)
        snapshot_hash = self.past.append(header, self.parent, outcome, self._chain)
        entries = [decode_entry(data) for data in body.entries]
        proved = [offence_of(entry.evidence) for entry in entries if isinstance(entry, EvidenceEntry)]
        return Committed(
            decided=decided,
            leaves=outcome.leaves,
            leaf_hashes=outcome.leaf_hashes,
            settled=outcome.settled,
            admissions=tuple(entry.admission for entry in entries if isinstance(entry, AdmissionEntry)),
            offences=tuple(OffenceRow(o.validator, o.epoch, o.kind, o.height, header.height) for o in proved),
            motions=digests,
            parent=Parent(header.height, header.id(), header.time_ms, outcome.log, outcome.registry, snapshot_hash),
            anchoring=anchoring,
            epoch=epoch,
            wanted=wanted,
        )

    def _open_chain(self) -> EmbeddedChain:
        try:
            return EmbeddedChain.open(
                self._database.connection,
                self.rules.network,
                self._genesis.registry().validators(),
                self._genesis.chain_id,
                self._genesis.created_ms,
            )
        except ChainError as error:
            raise DamageError(f"EVM state: {error.message}", hint=RECOVERY_HINT) from None

    def _load_parent(self) -> Parent:
        if self.tip is None:
            return self.rules.first_parent()
        header = self.tip.block.header
        try:
            frontier = self.store.log.frontier()
        except LogError as error:
            raise DamageError(f"network log: {error.message}", hint=RECOVERY_HINT) from None
        snapshot_hash = self.past.snapshot_hash(header)
        return Parent(header.height, header.id(), header.time_ms, frontier, self.registry.state, snapshot_hash)

    def _check_tip(self) -> None:
        """Does what is stored agree with the last certified header?"""
        if self.tip is None:
            return
        header = self.tip.block.header
        log_now: Frontier = self.parent.log
        if (log_now.size, log_now.root()) != (header.log_size, header.log_root):
            raise DamageError(
                f"network log has root {hex0x(log_now.root())} of {log_now.size} entries, block {header.height}"
                f" certifies {hex0x(header.log_root)} of {header.log_size}",
                hint=RECOVERY_HINT,
            )
        if self.registry.state.digest(self.rules.network) != header.registry_hash:
            raise DamageError(
                f"the member registry is not the one that block {header.height} certifies", hint=RECOVERY_HINT
            )
        root = self._chain.state_root()
        if not self.tip.block.body.transactions and root != header.state_root:
            raise DamageError(
                f"EVM state root is {hex0x(root)}, block {header.height} certifies {hex0x(header.state_root)}",
                hint=RECOVERY_HINT,
            )
