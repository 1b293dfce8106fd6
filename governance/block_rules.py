"""What makes a block valid, and what follows from its body. Pure: judged against the last block and a `History`.

Proposing, validating and committing all derive the header from the body with `BlockRules.header`, so the three cannot
disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

from nsllm import canonical
from nsllm.consensus.attendance import Attendance, shown_in
from nsllm.consensus.block import MAX_BLOCK_BYTES, Block, Body
from nsllm.consensus.epoch import EpochChange
from nsllm.consensus.errors import BlockError
from nsllm.consensus.evidence import Evidence, Offence, offence_of
from nsllm.consensus.header import Header
from nsllm.consensus.observation import ScoreLeaf, Unscored
from nsllm.consensus.registry import Admission, Member, RegistryState
from nsllm.consensus.settlement import Terms, check_openings
from nsllm.consensus.validators import ValidatorSet
from nsllm.errors import NsllmError
from nsllm.governance.checked import Checked
from nsllm.governance.errors import MotionError
from nsllm.governance.genesis import Genesis
from nsllm.governance.log_entry import (
    AdmissionEntry,
    AnyEntry,
    CertifiedEntry,
    Checkpoint,
    CheckpointEntry,
    EvidenceEntry,
    GovernanceEntry,
    SignedCheckpoint,
    UnscoredEntry,
    decode_entry,
)
from nsllm.governance.motion import GovernanceTransaction, apply, check_transaction
from nsllm.governance.offences import MAX_BLOCK_EVIDENCE, check_offence
from nsllm.governance.policy import Policy
from nsllm.governance.settled import settled_body
from nsllm.ids import ZERO_DIGEST, Address, Digest, Epoch, Height, NetworkId, TimeMs, hex0x
from nsllm.merkle import Frontier, Node

MAX_BLOCK_MOTIONS: Final = 16
"""Governance transactions in one block."""
MAX_AHEAD_MS: Final = 5_000
"""A header's time may be this far ahead of the validator's clock."""
CHECKPOINT_INTERVAL_MS: Final = 60_000
"""A peer's log is checkpointed in the network log at most once in this interval, by header times."""

SETTLED_MS: Final = 24 * 3_600_000
"""So long, by header times, a settled record is not settled again. Honest validators score no record that is half as
old, so that none of them says two things about one."""

ADMISSION, GOVERNANCE, CHECKPOINT, EVIDENCE = range(4)
"""Places of the kinds of entries in a body."""


class History(Protocol):
    """What was decided before, as far as the rules ask."""

    def settled_among(self, records: Sequence[Digest]) -> AbstractSet[Digest]:
        """Those that an earlier block, no older than `SETTLED_MS`, has scored or settled that they stay unscored."""
        ...

    def member(self, address: Address) -> Member | None:
        """The member with this address after the last block."""
        ...

    def is_decided(self, motion: Digest) -> bool:
        """Does an earlier block hold this motion?"""
        ...

    def last_checkpoint(self, peer: Address) -> tuple[Checkpoint, TimeMs] | None:
        """The peer's newest checkpoint in the network log, and the time of its block."""
        ...

    def validators_of(self, epoch: Epoch) -> ValidatorSet | None:
        """The validator set of an epoch; None if there was none yet."""
        ...

    def ended(self, epoch: Epoch) -> Height | None:
        """Height of the epoch's last block; None while it goes on."""
        ...

    def is_convicted(self, validator: Address, epoch: Epoch) -> bool:
        """Does an earlier block hold evidence against the validator, of this epoch?"""
        ...


@dataclass(frozen=True, slots=True)
class Parent:
    """The last committed block, as the next one sees it."""

    height: Height
    """0 before the first block."""
    id: Digest
    """Header id; the network id before the first block."""
    time_ms: TimeMs
    """The genesis's time before the first block."""
    log: Frontier
    """Network log after the block."""
    registry: RegistryState
    """Members after the block."""
    snapshot_hash: Digest = ZERO_DIGEST
    """Of the newest snapshot that was taken after a block up to this one; zeros before the first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows from a body."""

    leaves: tuple[ScoreLeaf, ...]
    leaf_hashes: tuple[Digest, ...]
    """See `SettledBody`."""
    unscored: tuple[Unscored, ...]
    scores_root: Digest
    entries: tuple[bytes, ...]
    """What the block appends to the network log."""
    log: Frontier
    nodes: tuple[Node, ...]
    """Of the network log's tree, completed by the entries."""
    registry: RegistryState
    """Members after the block."""
    policy: Policy
    """In force from the next height on."""
    change: EpochChange | None
    """What the next height begins with; None if the epoch goes on."""

    @property
    def settled(self) -> tuple[Digest, ...]:
        """Records that the block scores, then those that it settles as unscored."""
        return (*(leaf.record for leaf in self.leaves), *(each.record for each in self.unscored))


class BlockRules:
    """The rules of one network in one epoch."""

    def __init__(self, genesis: Genesis, validators: ValidatorSet, policy: Policy) -> None:
        self.network: Final[NetworkId] = genesis.network_id()
        self.validators: Final = validators
        self.policy: Final = policy
        self._genesis = genesis
        self._policy_digest = policy.digest()
        self._evidence_heights = policy.evidence_heights
        self.terms: Final = Terms(self.network, self.validators, policy.rubric.digest(), policy.rubric.dimensions)
        """Under which observations are judged."""
        self._last: tuple[Parent, Body, Address, TimeMs, Outcome] | None = None

    @classmethod
    def founding(cls, genesis: Genesis) -> BlockRules:
        """The rules of epoch 0."""
        return cls(genesis, genesis.registry().validators(), genesis.policy)

    def following(self, outcome: Outcome) -> BlockRules:
        """The rules of the next height; these, if the epoch goes on."""
        if outcome.change is None:
            return self
        return BlockRules(self._genesis, outcome.change.validators, outcome.policy)

    def first_parent(self) -> Parent:
        """What the block at height 1 stands on."""
        return Parent(
            Height(0), Digest(self.network), self._genesis.created_ms, Frontier(), self._genesis.registry().state
        )

    def outcome(self, parent: Parent, body: Body, proposer: Address, time_ms: TimeMs) -> Outcome:
        """Scores, log entries, members and policy that a body gives, built by `proposer` at `time_ms`.

        A block is built or judged, and then committed: the second time the answer is at hand.

        Raises:
            ObservationError: see `settlement.settle`.
            EncodingError: an entry that is none.
            MotionError: a governance transaction that cannot be done.
        """
        last = self._last
        if last is not None and last[0] is parent and last[1] is body and last[2:4] == (proposer, time_ms):
            return last[4]
        settled = settled_body(body, self.terms)
        registry, policy = self._govern(parent, body.entries)
        registry = self._attend(registry, policy, Height(parent.height + 1), body, proposer, time_ms)
        log, nodes = parent.log.grow(settled.hashes)
        outcome = Outcome(
            leaves=settled.leaves,
            leaf_hashes=settled.leaf_hashes,
            unscored=settled.unscored,
            scores_root=settled.scores_root,
            entries=settled.entries,
            log=log,
            nodes=tuple(nodes),
            registry=registry,
            policy=policy,
            change=self._change(registry, policy),
        )
        self._last = (parent, body, proposer, time_ms, outcome)
        return outcome

    def header(
        self, parent: Parent, body: Body, outcome: Outcome, *, state_root: Digest, proposer: Address, time_ms: TimeMs
    ) -> Header:
        """The one header that a body, its proposer and its time allow."""
        return Header(
            epoch=self.validators.epoch,
            height=Height(parent.height + 1),
            time_ms=time_ms,
            parent=parent.id,
            proposer=proposer,
            body_digest=body.digest(self.network),
            scores_root=outcome.scores_root,
            log_size=outcome.log.size,
            log_root=outcome.log.root(),
            state_root=state_root,
            validators_hash=self.validators.digest(),
            policy_digest=self._policy_digest,
            registry_hash=outcome.registry.digest(self.network),
            next_epoch=outcome.change.digest() if outcome.change is not None else ZERO_DIGEST,
            snapshot_hash=parent.snapshot_hash,
        )

    def time_after(self, parent: Parent, now_ms: TimeMs) -> TimeMs:
        """Proposer's time for the next block: its clock, but always above the parent's."""
        return TimeMs(max(now_ms, parent.time_ms + 1))

    def check(
        self,
        block: Block,
        parent: Parent,
        history: History,
        *,
        state_root: Digest,
        now_ms: TimeMs,
        checked: Checked,
    ) -> None:
        """Pass silently if honest validators may prevote `block`; EVM transactions are the chain's to check.

        Args:
            block: the proposal.
            parent: the last committed block.
            history: what was decided up to it.
            state_root: the EVM's present state root.
            now_ms: this validator's wall time.
            checked: what of its batches need not be checked again.

        Raises:
            BlockError: names the rule, or the header's field with both values.
        """
        header, body = block.header, block.body
        size = len(canonical.encode(block))
        if size > MAX_BLOCK_BYTES:
            raise BlockError(f"block of {size} bytes, the limit is {MAX_BLOCK_BYTES}")
        if header.proposer not in self.validators:
            raise BlockError(f"header.proposer: {hex0x(header.proposer)} is not a validator")
        if header.time_ms <= parent.time_ms:
            raise BlockError(f"header.time_ms: {header.time_ms} is not after the parent's {parent.time_ms}")
        if header.time_ms > now_ms + MAX_AHEAD_MS:
            raise BlockError(f"header.time_ms: {header.time_ms} is over {MAX_AHEAD_MS} ms ahead of our {now_ms}")
        try:
            self._check_entries(body.entries, parent.registry, history, header)
            members, _ = self._govern(parent, body.entries)
            outcome = self.outcome(parent, body, header.proposer, header.time_ms)
            self._check_batches(body, outcome, history, members, checked)
        except BlockError:
            raise
        except NsllmError as error:
            raise BlockError(f"body: {error}") from None
        expected = self.header(
            parent, body, outcome, state_root=state_root, proposer=header.proposer, time_ms=header.time_ms
        )
        compare_headers(header, expected)

    def check_admission(self, admission: Admission, registry: RegistryState) -> None:
        """Pass silently if a genesis member in good standing signed it.

        Raises:
            ConsensusError, SignatureError: see `MemberRegistry.check`.
        """
        members = self._genesis.registry()
        members.state = registry
        members.check(admission)

    def check_checkpoint(self, signed: SignedCheckpoint, history: History, time_ms: TimeMs) -> None:
        """Pass silently if the checkpoint may stand in a block of `time_ms`.

        Raises:
            BlockError: too soon after the peer's last one, or its log shrank.
            SignatureError: not the peer's signature.
        """
        checkpoint = signed.checkpoint
        last = history.last_checkpoint(checkpoint.peer)
        if last is not None:
            before, at_ms = last
            if time_ms < at_ms + CHECKPOINT_INTERVAL_MS:
                raise BlockError(f"second checkpoint of {hex0x(checkpoint.peer)} within {CHECKPOINT_INTERVAL_MS} ms")
            if checkpoint.size <= before.size:
                raise BlockError(f"checkpoint of {checkpoint.size} entries after one of {before.size}")
        signed.check(self.network)

    def check_evidence(self, evidence: Evidence, history: History, height: Height) -> Offence:
        """The offence that `evidence` proves, if a block of `height` may hold it.

        Raises:
            EvidenceError, ObservationError, SignatureError: see `check_offence`.
        """
        return check_offence(
            evidence, history, network=self.network, height=height, expires_heights=self._evidence_heights
        )

    def check_motion(self, transaction: GovernanceTransaction, history: History, time_ms: TimeMs) -> None:
        """Pass silently if a governance transaction may stand in a block of `time_ms`; `apply` says what it does.

        Raises:
            MotionError: decided before, or see `check_transaction`.
            SignatureError: see `check_transaction`.
        """
        motion = transaction.motion.digest(self.network)
        if history.is_decided(motion):
            raise MotionError(f"motion {hex0x(motion)} was decided before")
        check_transaction(self.network, transaction, self.validators, self.policy, time_ms)

    def _govern(self, parent: Parent, entries: Sequence[bytes]) -> tuple[RegistryState, Policy]:
        """Registry and policy after a block's entries, in their order."""
        registry, policy, height = parent.registry, self.policy, Height(parent.height + 1)
        for data in entries:
            entry = decode_entry(data)
            match entry:
                case AdmissionEntry(admission=admission):
                    registry = registry.with_member(admission.member)
                case GovernanceEntry(transaction=transaction):
                    registry, policy = apply(transaction.motion.action, registry, policy, height)
                case EvidenceEntry(evidence=evidence):
                    convicted = registry.with_weight(offence_of(evidence).validator, 0)
                    # The last validator goes on: a network that nobody certifies helps nobody.
                    registry = convicted if convicted.count_validators() else registry
                case CheckpointEntry() | CertifiedEntry() | UnscoredEntry():
                    pass
                case _:
                    assert_never(entry)
        return registry, policy

    def _attend(
        self, registry: RegistryState, policy: Policy, height: Height, body: Body, proposer: Address, time_ms: TimeMs
    ) -> RegistryState:
        """Members after the roll is called: at a window's end, long absent validators leave.

        Every epoch begins a window, so that whoever leaves was absent for a whole one as a validator.
        """
        if not self.policy.absence_minutes:
            return registry
        attendance = registry.attendance.after(time_ms, shown_in(body, proposer))
        begins = self._change(registry, policy) is not None
        if not begins and attendance.is_over(height, self.validators, self.policy.absence_minutes):
            registry = registry.with_absent(attendance.leaving(self.validators, registry.count_appointed()))
            begins = True
        return registry.with_attendance(Attendance.begin(height, time_ms) if begins else attendance)

    def _change(self, registry: RegistryState, policy: Policy) -> EpochChange | None:
        """What the next height begins with, if it is another epoch: another set of validators, or another policy."""
        validators = registry.validators(Epoch(self.validators.epoch + 1))
        if validators is None:
            raise MotionError("nobody would validate any more")
        if validators.members == self.validators.members and policy == self.policy:
            return None
        return EpochChange(validators=validators, policy_digest=policy.digest())

    def _check_entries(
        self, entries: Sequence[bytes], registry: RegistryState, history: History, header: Header
    ) -> None:
        order: list[tuple[int, bytes]] = []
        joining: list[Address] = []
        for data in entries:
            entry = decode_entry(data)
            if isinstance(entry, AdmissionEntry):
                joining.append(entry.admission.member.address)
            order.append(self._check_entry(entry, registry, history, header, joining))
        if order != sorted(set(order)):
            raise BlockError(
                "body.entries: not admissions, governance transactions, checkpoints, evidence, each ascending by whom"
                " or what it is about"
            )
        if sum(kind == GOVERNANCE for kind, _ in order) > MAX_BLOCK_MOTIONS:
            raise BlockError(f"body.entries: more than {MAX_BLOCK_MOTIONS} governance transactions")
        if sum(kind == EVIDENCE for kind, _ in order) > MAX_BLOCK_EVIDENCE:
            raise BlockError(f"body.entries: more than {MAX_BLOCK_EVIDENCE} entries of evidence")

    def _check_entry(
        self, entry: AnyEntry, registry: RegistryState, history: History, header: Header, joining: Sequence[Address]
    ) -> tuple[int, bytes]:
        """Pass if the entry may stand in the block; its kind's place, and whom or what it is about."""
        match entry:
            case AdmissionEntry(admission=admission):
                address = admission.member.address
                if history.member(address) is not None:
                    raise BlockError(f"admission of {hex0x(address)}, who is a member already")
                self.check_admission(admission, registry)
                return ADMISSION, address
            case GovernanceEntry(transaction=transaction):
                self.check_motion(transaction, history, header.time_ms)
                return GOVERNANCE, transaction.motion.digest(self.network)
            case CheckpointEntry(signed=signed):
                peer = signed.checkpoint.peer
                if history.member(peer) is None and peer not in joining:
                    raise BlockError(f"checkpoint of {hex0x(peer)}, who is not a member")
                self.check_checkpoint(signed, history, header.time_ms)
                return CHECKPOINT, peer
            case EvidenceEntry(evidence=evidence):
                return EVIDENCE, self.check_evidence(evidence, history, header.height).validator
            case CertifiedEntry() | UnscoredEntry():
                raise BlockError("body.entries: scores come from observations, never as an entry")
            case _:
                assert_never(entry)

    def _check_batches(
        self,
        body: Body,
        outcome: Outcome,
        history: History,
        members: RegistryState,
        checked: Checked,
    ) -> None:
        """Checks what the outcome takes for granted: signatures, openings, and that the records may be settled."""
        for leaf in outcome.leaves:
            if history.member(leaf.generator) is None and members.get(leaf.generator) is None:
                raise BlockError(f"generator {hex0x(leaf.generator)} is not a member")
        settled = history.settled_among(outcome.settled)
        if settled:
            raise BlockError(f"record {hex0x(min(settled))} was scored before, or settled as unscored")
        for excerpt in body.batches:
            commit = excerpt.signed.commit
            name = f"batch {commit.number} of {hex0x(commit.validator)}"
            if commit.validator not in self.validators:
                raise BlockError(f"{name}, who is not a validator")
            if commit.epoch != self.validators.epoch:
                raise BlockError(f"{name} is of epoch {commit.epoch}, this is epoch {self.validators.epoch}")
            if commit.rubric != self.terms.rubric:
                raise BlockError(f"{name} is under rubric {hex0x(commit.rubric)}, not {hex0x(self.terms.rubric)}")
            if not checked.signed(excerpt.signed):
                excerpt.signed.check(self.network)
        fresh = [excerpt for excerpt in body.batches if not checked.opened(excerpt)]
        check_openings(body.subjects, fresh, self.terms)


def compare_headers(header: Header, expected: Header) -> None:
    """Pass silently if both are equal.

    Raises:
        BlockError: the first field that differs, with both values.
    """
    for name in Header.__struct_fields__:
        have, want = getattr(header, name), getattr(expected, name)
        if have != want:
            raise BlockError(f"header.{name}: {_shown(have)}, expected {_shown(want)}")


def _shown(value: bytes | int) -> str:
    return hex0x(value) if isinstance(value, bytes) else str(value)
