"""The ledger: the replicated state machine behind consensus (`nsllm.consensus.ports.Application`).

What is pending (observations, admissions, checkpoints, evidence) lives in memory, bounded; what is decided lives in
one SQLite file. Blocking work goes through `Offload`, one call at a time. Memory is changed in trio's thread only,
after the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import trio

from nsllm import canonical
from nsllm.clock import Clock
from nsllm.consensus.block import MAX_BLOCK_BYTES, Block, DecidedBlock
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.errors import DivergenceError, OmissionError
from nsllm.consensus.evidence import Evidence
from nsllm.consensus.header import Header
from nsllm.consensus.observation import ScoreLeaf
from nsllm.consensus.registry import Admission, MemberRegistry
from nsllm.consensus.settlement import Terms
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import MemberKey
from nsllm.databases import ON_DISK, Databases
from nsllm.governance.checked import Checked
from nsllm.governance.errors import LedgerError
from nsllm.governance.genesis import Genesis
from nsllm.governance.ledger_state import LedgerState
from nsllm.governance.ledger_summary import LedgerSummary, summarize
from nsllm.governance.log_entry import SignedCheckpoint
from nsllm.governance.motion import GovernanceTransaction
from nsllm.governance.motion_pool import MotionPool
from nsllm.governance.observations import Observations
from nsllm.governance.pending import RECENT_RECORDS, Pending
from nsllm.governance.policy import Policy
from nsllm.governance.proofs import Proofs
from nsllm.governance.retraction import RetractionProof
from nsllm.governance.snapshot import Proved
from nsllm.governance.snapshots import Snapshots
from nsllm.ids import Address, Digest, Height, Round, TimeMs, hex0x
from nsllm.offload import Offload

R = TypeVar("R")

UNPACED_MEMBERS: Final = 32
PACE_MS: Final = 2_000
"""Least time between two blocks that we propose in a network of more than `UNPACED_MEMBERS`. No rule of blocks."""
DELIVERIES_PER_S: Final = 200
"""Copies of blocks that all members take together: beyond 400 of them blocks come more rarely than every `PACE_MS`."""
MAX_DECIDED: Final = 64
"""Decided blocks handed out in one call."""
MAX_BEHIND_MS: Final = 5_000
"""How far back a first proposal's own time may put what its proposer is held to have known."""


class Ledger:
    """One peer's copy of the replicated state; `close` it when done."""

    def __init__(
        self, state: LedgerState, recent: Sequence[Digest], clock: Clock, offload: Offload, key: MemberKey | None
    ) -> None:
        """Use `open` instead."""
        self._state = state
        self._clock = clock
        self._offload = offload
        self._key = key
        self._lock = trio.Lock()
        self._moving = trio.Lock()
        """Held by whoever adds a motion."""
        self._pending = self._begin_pending(recent)
        self.observations = Observations(lambda: self._pending, self._convict)
        """What validators have observed and no block holds."""
        self.proofs = Proofs(self._run_on_state)
        """What this ledger proves of records."""
        self.snapshots = Snapshots(self._run_on_state, lambda: self._state, self._install)
        """What this ledger hands out to peers that are far behind, and takes in when it is."""
        self._observers: list[Callable[[DecidedBlock], None]] = []
        self._accusers: list[Callable[[Evidence], None]] = []
        self.halted: str | None = None
        """Why this ledger takes no further blocks; None while it does."""

    @classmethod
    async def open(
        cls,
        path: Path | None,
        genesis: Genesis,
        *,
        clock: Clock,
        offload: Offload,
        key: MemberKey | None = None,
        recover: bool = False,
        databases: Databases = ON_DISK,
        keep_heights: int = 0,
    ) -> Ledger:
        """Open or create the ledger; validators, policy and chain parameters are the genesis's.

        Args:
            path: the database file (None: in memory, for simulations).
            genesis: of the network.
            clock: wall time.
            offload: runs the blocking work.
            key: this validator's member key, which signs and pays anchor transactions; None for a follower.
            recover: move a damaged file aside, begin anew and say so in `notice`; False raises instead.
            databases: where the file is.
            keep_heights: blocks that are kept once a snapshot stands in their place; 0 keeps all. Proofs of the key's
                own records are kept anyway.

        Raises:
            DamageError: damaged, and `recover` is False.
            StorageError: no space, no permission, or another network's file.
        """

        def work() -> tuple[LedgerState, list[Digest]]:
            state = LedgerState.open(
                path,
                genesis,
                now_ms=clock.now_ms(),
                recover=recover,
                databases=databases,
                own=key.address if key is not None else None,
                keep_heights=keep_heights,
            )
            return state, state.store.recent_records(RECENT_RECORDS)

        state, recent = await offload.run(work)
        return cls(state, recent, clock, offload, key)

    async def close(self) -> None:
        """Close the file; nothing decided is lost."""
        await self._run_on_state(lambda state: state.close())

    # What the peer puts in

    def add_admission(self, admission: Admission) -> bool:
        """Take an admission that a block shall log; True if it is new. Scores of its member's records wait for it.

        Raises:
            ConsensusError, SignatureError: see `MemberRegistry.admit`.
        """
        return self._pending.add_admission(admission)

    def add_checkpoint(self, signed: SignedCheckpoint) -> bool:
        """Take a member's checkpoint of its own log; True if it is the newest. It rides with the next block of records.

        Raises:
            SignatureError: not the peer's signature.
        """
        return self._pending.add_checkpoint(signed)

    def add_evidence(self, evidence: Evidence) -> bool:
        """Take evidence that a block shall hold; True if it is the first against that validator in that epoch.

        Evidence of heights that this ledger has not come to is not kept.

        Raises:
            EvidenceError, ObservationError, SignatureError: too old, or it proves nothing.
        """
        return self._pending.add_evidence(evidence, self._state, Height(self.height + 1))

    async def add_motion(self, transaction: GovernanceTransaction) -> bool:
        """Take a motion, or further approvals of one; True if any is new. A block follows once it is carried.

        When this returns, what is new is on disk: no crash loses it.

        Raises:
            MotionError, SignatureError: see `MotionPool.merged`.
            StorageError: no space; nothing was taken.
        """
        async with self._moving:  # so that nobody overwrites what another has just added
            now_ms = self._clock.now_ms()
            merged = self._pending.motions.merged(transaction, now_ms)
            if merged is None:
                return False
            await self._run_on_state(lambda state: state.keep_motion(merged, now_ms))
            self._pending.motions.keep(merged)
            return True

    def motions(self) -> tuple[GovernanceTransaction, ...]:
        """Motions that no block holds yet, oldest first."""
        return self._pending.motions.waiting(self._clock.now_ms())

    async def decided_motions(self) -> list[tuple[Digest, Height]]:
        """Motions that blocks hold and that have not expired."""
        return await self._run(self._state.store.decided_motions)

    # Application

    async def due_in(self) -> float | None:
        """Seconds until a block is wanted, or None while nothing is: no empty blocks."""
        if self._key is None or self._key.address not in self.validators or self.halted is not None:
            return None
        if self._pending.admissions() or self._pending.evidence():
            return self._paced(0.0)
        if self._pending.motions.ready(self._state.registry.state, self._clock.now_ms()):
            return self._paced(0.0)
        self._pending.expire(trio.current_time())
        await self._look_up()
        wait_s = self._pending.wait_s(trio.current_time())
        waits = [wait_s] if wait_s is not None else []
        anchor_ms = self._state.anchor_in_ms(self._clock.now_ms())
        if anchor_ms is not None:
            waits.append(anchor_ms / 1000)
        elif self._state.state_root_due():
            waits.append(0.0)  # where the next anchor is due soon, its block carries the state root too
        return self._paced(min(waits)) if waits else None

    def _paced(self, wait_s: float) -> float:
        """A large network gathers more into each block, because every block goes to everybody."""
        if (members := len(self.registry.members())) <= UNPACED_MEMBERS:
            return wait_s
        next_ms = self._state.parent.time_ms + max(PACE_MS, 1000 * members // DELIVERIES_PER_S)
        return max(wait_s, (next_ms - self._clock.now_ms()) / 1000)

    async def propose(self, height: Height, now_ms: TimeMs, proposer: Address) -> Block:
        """A new valid block from what is pending (possibly an empty body).

        Raises:
            LedgerError: a follower has no key to propose with, or `height` is not the next one.
            DivergenceError: this ledger has halted.
        """
        self._check_running()
        key = self._key
        if key is None or key.address != proposer:
            raise LedgerError(f"{hex0x(proposer)} cannot propose here: this ledger has no key of it")
        if proposer not in self.validators:
            raise LedgerError(f"{hex0x(proposer)} is not a validator of epoch {self.validators.epoch}")
        if height != self.height + 1:
            raise LedgerError(f"no proposal for height {height} after block {self.height}")
        await self._look_up()
        draft = self._pending.draft(trio.current_time(), now_ms)
        return await self._run(lambda: self._state.build(draft, now_ms=now_ms, proposer=proposer))

    async def validate(self, block: Block, now_ms: TimeMs, round_: Round) -> None:
        """Pass silently if honest validators may prevote `block` in this round.

        Raises:
            BlockError: names the rule, or the header's field with both values.
            OmissionError: in round 0, observations that its proposer must have had are left out, or copied ones are in.
            DivergenceError: this ledger has halted.
        """
        self._check_running()
        checked = Checked.of(block.body, self._pending.pool)
        await self._run(lambda: self._state.check(block, now_ms=now_ms, checked=checked))
        if round_ == 0 and self._key is not None:
            await self._look_up()
            age_s = min(max(0, now_ms - block.header.time_ms), MAX_BEHIND_MS) / 1000
            roomy = len(canonical.encode(block)) < MAX_BLOCK_BYTES // 2
            reason = self._pending.objection(block.body, roomy=roomy, built_s=trio.current_time() - age_s)
            if reason is not None:
                raise OmissionError(f"the first proposal of height {block.header.height} {reason}")

    async def commit(self, decided: DecidedBlock) -> None:
        """Execute and store a decided block atomically; repeating a stored one is a no-op.

        Raises:
            BlockError, CertificateError, SignatureError: not a decided block, or not the next one.
            DivergenceError: our roots differ from the certified ones; this ledger halts.
            StorageError: no space; nothing was stored, and the same commit may be tried again.
        """
        self._check_running()
        async with self._lock:
            try:
                committed = await self._offload.run(lambda: self._state.commit(decided))
            except DivergenceError as error:
                self.halted = str(error)
                raise
            if committed is None:
                return
            self._state.adopt(committed)
            contradictions = self._pending.contradictions(decided.block.body.batches)
            for record in committed.settled:
                self._pending.settled(record)
            for admission in committed.admissions:
                self._pending.admitted(admission.member.address)
            for motion in committed.motions:
                self._pending.motions.decided(motion)
            if committed.epoch is not None:
                self._pending.begin_epoch(self._state.rules)
            self._pending.judged(self._state, Height(self.height + 1))
        self.proofs.settled(decided, committed.leaves, committed.leaf_hashes, committed.settled)
        for conflict in contradictions:
            self._convict(conflict)
        for observer in tuple(self._observers):
            observer(decided)

    async def decided(self, start: Height, count: int) -> Sequence[DecidedBlock]:
        """Stored decided blocks from `start`, ascending, at most `count` and `MAX_DECIDED`.

        Raises:
            PrunedError: they were here, and are no more.
        """
        wanted = max(0, min(count, MAX_DECIDED))
        return await self._run_on_state(lambda state: state.past.decided(Height(max(1, start)), wanted))

    async def leaves(self, height: Height) -> tuple[ScoreLeaf, ...]:
        """Scores that the block at `height` certified, in its order.

        Raises:
            DamageError: there is no such block, or it is damaged.
        """
        return await self._run(lambda: self._state.leaves(height))

    async def tip(self) -> Height:
        """Height of the last committed block; 0 before the first."""
        return self.height

    # What the peer asks

    @property
    def height(self) -> Height:
        """Height of the last committed block; 0 before the first."""
        return self._state.parent.height

    @property
    def log_size(self) -> int:
        """Entries of the network log."""
        return self._state.parent.log.size

    @property
    def log_root(self) -> Digest:
        """Root of the network log."""
        return self._state.parent.log.root()

    @property
    def tip_certificate(self) -> Certificate | None:
        """Certificate of the last block."""
        return self._state.tip.certificate if self._state.tip is not None else None

    @property
    def terms(self) -> Terms:
        """Under which observations are taken now."""
        return self._state.rules.terms

    @property
    def validators(self) -> ValidatorSet:
        """The validators that decide the next height."""
        return self._state.rules.validators

    def validators_of(self, epoch: int) -> ValidatorSet | None:
        """The validators of an epoch; None if it has not begun, as far as this ledger knows."""
        return self._state.validators_of(epoch)

    @property
    def policy(self) -> Policy:
        """The policy in force at the next height."""
        return self._state.rules.policy

    def policy_of(self, epoch: int) -> Policy | None:
        """The policy of an epoch; None if it has not begun, as far as this ledger knows."""
        return self._state.policy_of(epoch)

    @property
    def registry(self) -> MemberRegistry:
        """Members after the last block, as certified. Read only: admissions come in through `add_admission`."""
        return self._state.registry

    @property
    def notice(self) -> str | None:
        """What an operator should know about opening, such as a damaged file that was moved aside."""
        return self._state.notice

    def is_settled(self, record: Digest) -> bool:
        """Was the record scored, or settled as unscored, as far as memory goes (`RECENT_RECORDS`)?"""
        return self._pending.is_recent(record)

    async def unsettled(self, records: Sequence[Digest]) -> list[Digest]:
        """Those of `records` that no block has scored or settled as unscored, however long ago."""
        doubtful = self._pending.doubtful(records)
        settled = await self._run_on_state(lambda state: state.settled_among(doubtful)) if doubtful else ()
        found = [record for record in records if record not in settled]
        for record in found:
            self._pending.looked_up(record, settled=False)
        return found

    async def checkpointed(self, peer: Address) -> int:
        """Entries of a peer's own log at its newest checkpoint in the network log; 0 before the first."""
        newest = await self._run_on_state(lambda state: state.last_checkpoint(peer))
        return 0 if newest is None else newest[0].size

    def want(self, record: Digest) -> None:
        """Keep what receipts of others' record need when its block is pruned; written down with the next block."""
        self._state.past.want(record)

    async def header(self, height: Height) -> Header | None:
        """The decided header at `height`; None where it is not here (any more)."""
        found = await self._run_on_state(lambda state: state.store.blocks(height, 1)) if height >= 1 else ()
        return found[0].block.header if found else None

    async def summary(self, rows: int = 10) -> LedgerSummary:
        """The ledger for the status page, with the newest `rows` blocks and anchors."""
        pending, halted = len(self._pending), self.halted
        return await self._run_on_state(lambda state: summarize(state, rows, pending=pending, halted=halted))

    def subscribe(self, observer: Callable[[DecidedBlock], None]) -> Callable[[], None]:
        """Call `observer` after each commit, in order, in trio's thread; it must not block. Returns its removal."""
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    def on_offence(self, accuser: Callable[[Evidence], None]) -> None:
        """Call `accuser`, in trio's thread, with evidence that this ledger has found itself: the others lack it."""
        self._accusers.append(accuser)

    def _convict(self, evidence: Evidence) -> None:
        if self.add_evidence(evidence):
            for accuser in tuple(self._accusers):
                accuser(evidence)

    async def _install(self, proved: Proved, retractions: Sequence[RetractionProof]) -> None:
        """See `Snapshots.install`. What waits for a block is forgotten, but for motions: senders send again."""
        self._check_running()

        def work() -> tuple[LedgerState, list[Digest]]:
            state = self._state.install(proved, retractions)
            return state, state.store.recent_records(RECENT_RECORDS)

        async with self._lock:
            self._state, recent = await self._offload.run(work)
            self._pending = self._begin_pending(recent)
        self.proofs.replaced()
        for observer in tuple(self._observers):
            observer(proved.offer.block)

    def _begin_pending(self, recent: Sequence[Digest]) -> Pending:
        state = self._state
        motions = MotionPool(state.rules, [motion for motion, _ in state.store.decided_motions()], state.waiting)
        me = self._key.address if self._key is not None else None
        return Pending(state.rules, state.registry, recent, len(recent) < RECENT_RECORDS, motions, me)

    async def _run(self, work: Callable[[], R]) -> R:
        async with self._lock:
            return await self._offload.run(work)

    async def _run_on_state(self, work: Callable[[LedgerState], R]) -> R:
        """Like `_run`, on the state as it is once it is our turn: a snapshot may have replaced it."""
        async with self._lock:
            state = self._state
            return await self._offload.run(lambda: work(state))

    async def _look_up(self) -> None:
        """Drop pending records that were settled so long ago that memory does not know them."""
        unknown = self._pending.to_look_up()
        if unknown:
            settled = await self._run_on_state(lambda state: state.settled_among(unknown))
            for record in unknown:
                self._pending.looked_up(record, settled=record in settled)

    def _check_running(self) -> None:
        if self.halted is not None:
            raise DivergenceError(f"this ledger has halted: {self.halted}")
