"""What makes a block valid, and what follows from its body. Pure: judged against the last block and a `History`.

Proposing, validating and committing all derive the header from the body with `BlockRules.header`, so the three cannot
disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Protocol, assert_never

from nsllm import canonical, merkle
from nsllm.consensus.block import MAX_BLOCK_BYTES, MAX_BLOCK_RECORDS, Block, Body
from nsllm.consensus.epoch import EpochChange
from nsllm.consensus.errors import BlockError
from nsllm.consensus.evidence import Evidence, Offence, offence_of
from nsllm.consensus.header import Header
from nsllm.consensus.observation import ScoreLeaf, SignedObservation, agree
from nsllm.consensus.registry import Admission, Member, RegistryState
from nsllm.consensus.validators import ValidatorSet
from nsllm.errors import NsllmError
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
    certified_entry,
    decode_entry,
)
from nsllm.governance.motion import GovernanceTransaction, apply, check_transaction
from nsllm.governance.offences import MAX_BLOCK_EVIDENCE, check_offence
from nsllm.governance.policy import Policy
from nsllm.ids import ZERO_DIGEST, Address, Digest, Epoch, Height, NetworkId, TimeMs, hex0x
from nsllm.merkle import Frontier

MAX_BLOCK_MOTIONS: Final = 16
"""Governance transactions in one block."""
MAX_AHEAD_MS: Final = 5_000
"""A header's time may be this far ahead of the validator's clock."""
CHECKPOINT_INTERVAL_MS: Final = 60_000
"""A peer's log is checkpointed in the network log at most once in this interval, by header times."""

ADMISSION, GOVERNANCE, CHECKPOINT, EVIDENCE = range(4)
"""Places of the kinds of entries in a body."""


class History(Protocol):
    """What was decided before, as far as the rules ask."""

    def is_scored(self, record: Digest) -> bool:
        """Does an earlier block hold this record's scores?"""
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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows from a body."""

    leaves: tuple[ScoreLeaf, ...]
    scores_root: Digest
    entries: tuple[bytes, ...]
    """What the block appends to the network log."""
    log: Frontier
    registry: RegistryState
    """Members after the block."""
    policy: Policy
    """In force from the next height on."""
    change: EpochChange | None
    """What the next height begins with; None if the epoch goes on."""


class BlockRules:
    """The rules of one network in one epoch."""

    def __init__(self, genesis: Genesis, validators: ValidatorSet, policy: Policy) -> None:
        self.network: Final[NetworkId] = genesis.network_id()
        self.validators: Final = validators
        self.policy: Final = policy
        self._genesis = genesis
        self._policy_digest = policy.digest()
        self._rubric_digest = policy.rubric.digest()
        self._dimensions = policy.rubric.dimensions
        self._evidence_heights = policy.evidence_heights

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

    def outcome(self, parent: Parent, body: Body) -> Outcome:
        """Scores, log entries, members and policy that a body gives.

        Raises:
            ObservationError: observations of a record that do not belong together.
            EncodingError: an entry that is none.
            MotionError: a governance transaction that cannot be done.
        """
        observations = (signed.observation for signed in body.observations)
        leaves = tuple(agree(list(group)) for _, group in groupby(observations, key=lambda o: o.record))
        entries = (*(certified_entry(leaf) for leaf in leaves), *body.entries)
        registry, policy = self._govern(parent.registry, body.entries)
        return Outcome(
            leaves=leaves,
            scores_root=merkle.root(merkle.leaf_hash(canonical.encode(leaf)) for leaf in leaves),
            entries=entries,
            log=parent.log.extend(merkle.leaf_hash(entry) for entry in entries),
            registry=registry,
            policy=policy,
            change=self._change(registry, policy),
        )

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
        known: Callable[[SignedObservation], bool],
    ) -> None:
        """Pass silently if honest validators may prevote `block`; EVM transactions are the chain's to check.

        Args:
            block: the proposal.
            parent: the last committed block.
            history: what was decided up to it.
            state_root: the EVM's present state root.
            now_ms: this validator's wall time.
            known: was this very observation checked before? Saves its signature check.

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
            members, _ = self._govern(parent.registry, body.entries)
            self._check_observations(body.observations, history, members, known)
            outcome = self.outcome(parent, body)
        except BlockError:
            raise
        except NsllmError as error:
            raise BlockError(f"body: {error}") from None
        expected = self.header(
            parent, body, outcome, state_root=state_root, proposer=header.proposer, time_ms=header.time_ms
        )
        compare_headers(header, expected)

    def check_observation(self, signed: SignedObservation) -> None:
        """Pass silently if a validator signed it under the rubric in force.

        Raises:
            BlockError: another rubric, other dimensions, or no validator's.
            ObservationError, SignatureError: see `SignedObservation.check`.
        """
        observation = signed.observation
        if observation.validator not in self.validators:
            raise BlockError(f"observation by {hex0x(observation.validator)}, who is not a validator")
        if observation.rubric != self._rubric_digest:
            raise BlockError(f"observation under rubric {hex0x(observation.rubric)}, not {hex0x(self._rubric_digest)}")
        names = tuple(score.name for score in observation.scores)
        if names != self._dimensions:
            raise BlockError(f"observation of dimensions {names}, the rubric has {self._dimensions}")
        signed.check(self.network)

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
            EvidenceError, SignatureError: see `check_offence`.
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

    def _govern(self, registry: RegistryState, entries: Sequence[bytes]) -> tuple[RegistryState, Policy]:
        """Members and policy after a block's entries, in their order."""
        policy = self.policy
        for data in entries:
            entry = decode_entry(data)
            match entry:
                case AdmissionEntry(admission=admission):
                    registry = registry.with_member(admission.member)
                case GovernanceEntry(transaction=transaction):
                    registry, policy = apply(transaction.motion.action, registry, policy)
                case EvidenceEntry(evidence=evidence):
                    convicted = registry.with_weight(offence_of(evidence).validator, 0)
                    # The last validator goes on: a network that nobody certifies helps nobody.
                    registry = convicted if convicted.count_validators() else registry
                case CheckpointEntry() | CertifiedEntry():
                    pass
                case _:
                    assert_never(entry)
        return registry, policy

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
            case CertifiedEntry():
                raise BlockError("body.entries: scores come from observations, never as an entry")
            case _:
                assert_never(entry)

    def _check_observations(
        self,
        observations: Sequence[SignedObservation],
        history: History,
        members: RegistryState,
        known: Callable[[SignedObservation], bool],
    ) -> None:
        keys = [(signed.observation.record, signed.observation.validator) for signed in observations]
        if keys != sorted(set(keys)):
            raise BlockError("body.observations: not ascending by record and validator, each once")
        counts = {record: len(list(group)) for record, group in groupby(record for record, _ in keys)}
        if len(counts) > MAX_BLOCK_RECORDS:
            raise BlockError(f"body.observations: {len(counts)} records, the limit is {MAX_BLOCK_RECORDS}")
        for record, count in counts.items():
            if count < self.validators.enough_observations:
                enough = self.validators.enough_observations
                raise BlockError(f"record {hex0x(record)} has {count} observations, {enough} are needed")
            if history.is_scored(record):
                raise BlockError(f"record {hex0x(record)} was scored before")
        for signed in observations:
            generator = signed.observation.generator
            if history.member(generator) is None and members.get(generator) is None:
                raise BlockError(f"generator {hex0x(generator)} is not a member")
            if not known(signed):
                self.check_observation(signed)


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
