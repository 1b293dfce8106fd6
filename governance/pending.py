"""What waits for a block: observations, admissions, checkpoints, evidence. In memory, bounded; senders send again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from nsllm.consensus.evidence import Evidence, offence_of
from nsllm.consensus.observation import SignedObservation
from nsllm.consensus.registry import Admission, MemberRegistry
from nsllm.errors import NsllmError, PeerFault
from nsllm.governance.block_rules import BlockRules, History
from nsllm.governance.log_entry import SignedCheckpoint
from nsllm.governance.motion_pool import MotionPool
from nsllm.governance.observation_pool import ObservationPool
from nsllm.governance.proposal import Draft
from nsllm.ids import Address, Digest, Epoch, Height, TimeMs

RECENT_RECORDS: Final = 65_536
"""Scored records remembered in memory, so that late observations of them are refused at once: about 8 MB."""
MAX_ADMISSIONS: Final = 256


class Pending:
    """Checked things on their way into a block; times are trio's seconds."""

    def __init__(
        self, rules: BlockRules, registry: MemberRegistry, recent: Sequence[Digest], motions: MotionPool
    ) -> None:
        """Nothing pending yet.

        Args:
            rules: what things are checked against.
            registry: members after the last block, kept up to date by the caller.
            recent: records scored last, oldest first.
            motions: what validators have moved and approved.
        """
        self._rules = rules
        self._registry = registry
        self._recent: OrderedDict[Digest, None] = OrderedDict.fromkeys(recent)
        self.motions: Final = motions
        self._pool = ObservationPool(rules.validators.size, rules.validators.enough_observations)
        self._unscored: set[Digest] = set()
        """Records that were looked up and not found scored; asked by membership only."""
        self._admissions: OrderedDict[Address, Admission] = OrderedDict()
        self._checkpoints: dict[Address, SignedCheckpoint] = {}
        self._evidence: dict[tuple[Address, Epoch], Evidence] = {}
        """At most one for each validator and epoch, so bounded by the validators there were."""

    def begin_epoch(self, rules: BlockRules, now: float) -> None:
        """Other validators or another policy are in force: keep what holds under them."""
        old, self._rules = self._pool, rules
        self._pool = ObservationPool(rules.validators.size, rules.validators.enough_observations)
        for signed in old.all():
            try:
                rules.check_observation(signed)
            except NsllmError:
                continue
            self._pool.add(signed, now)
        self.motions.begin_epoch(rules)
        for address, admission in list(self._admissions.items()):
            try:
                rules.check_admission(admission, self._registry.state)
            except NsllmError:
                del self._admissions[address]

    def add_observation(self, signed: SignedObservation, now: float) -> bool:
        """See `Ledger.add_observation`."""
        self._pool.expire(now)
        if self.is_recent(signed.observation.record) or self._pool.holds(signed):
            return False
        self._rules.check_observation(signed)
        return self._pool.add(signed, now)

    def add_admission(self, admission: Admission) -> bool:
        """See `Ledger.add_admission`."""
        address = admission.member.address
        if self._registry.get(address) is not None or address in self._admissions:
            return False
        self._rules.check_admission(admission, self._registry.state)
        if len(self._admissions) >= MAX_ADMISSIONS:
            return False
        self._admissions[address] = admission
        return True

    def add_checkpoint(self, signed: SignedCheckpoint) -> bool:
        """See `Ledger.add_checkpoint`."""
        peer = signed.checkpoint.peer
        if self._registry.get(peer) is None:
            return False
        signed.check(self._rules.network)
        held = self._checkpoints.get(peer)
        if held is not None and signed.checkpoint.size <= held.checkpoint.size:
            return False
        self._checkpoints[peer] = signed
        return True

    def add_evidence(self, evidence: Evidence, history: History, height: Height) -> bool:
        """See `Ledger.add_evidence`."""
        offence = offence_of(evidence)
        about = (offence.validator, offence.epoch)
        if about in self._evidence or history.is_convicted(*about) or offence.height > height:
            return False
        self._rules.check_evidence(evidence, history, height)
        self._evidence[about] = evidence
        return True

    def is_recent(self, record: Digest) -> bool:
        """Is the record among those scored last?"""
        return record in self._recent

    def holds(self, signed: SignedObservation) -> bool:
        """Was exactly this observation checked before?"""
        return self._pool.holds(signed)

    def of(self, record: Digest) -> tuple[SignedObservation, ...]:
        """Pending observations of a record, ascending by validator."""
        return self._pool.of(record)

    def admissions(self) -> int:
        """Admissions that no block holds yet."""
        return len(self._admissions)

    def evidence(self) -> int:
        """Offenders whom no block convicts yet."""
        return len(self._evidence)

    def to_look_up(self) -> list[Digest]:
        """Records with enough observations of which it is not known whether they were scored long ago."""
        enough = self._pool.enough()
        self._unscored.intersection_update(enough)
        return [record for record in enough if record not in self._unscored]

    def looked_up(self, record: Digest, *, scored: bool) -> None:
        """What the look-up found."""
        if scored:
            self._pool.drop(record)
        else:
            self._unscored.add(record)

    def waits_s(self, now: float) -> list[float]:
        """For each record that may be scored, seconds until it is due."""
        return [self._pool.wait_s(record, now) for record in self._ready()]

    def draft(self, now: float, time_ms: TimeMs) -> Draft:
        """What a proposer may put into a block now."""
        due = [record for record in self._ready() if self._pool.wait_s(record, now) == 0.0]
        return Draft(
            observations=[self._pool.agreeing(record) for record in due],
            admissions=tuple(self._admissions.values()),
            motions=self.motions.ready(self._registry.state, time_ms),
            checkpoints=tuple(self._checkpoints.values()),
            evidence=tuple(self._evidence.values()),
        )

    def scored(self, record: Digest) -> None:
        """A block holds the record's scores."""
        self._pool.drop(record)
        self._unscored.discard(record)
        self._recent[record] = None
        if len(self._recent) > RECENT_RECORDS:
            self._recent.popitem(last=False)

    def admitted(self, address: Address) -> None:
        """A block holds the member's admission."""
        self._admissions.pop(address, None)

    def judged(self, history: History, height: Height) -> None:
        """Keep the evidence that a block of `height` may still hold."""
        for about, evidence in list(self._evidence.items()):
            try:
                self._rules.check_evidence(evidence, history, height)
            except PeerFault:
                del self._evidence[about]

    def expire(self, now: float) -> None:
        """Forget what is too old."""
        self._pool.expire(now)

    def __len__(self) -> int:
        """Records with observations that no block holds."""
        return len(self._pool)

    def _ready(self) -> list[Digest]:
        """Records with enough observations, not scored yet, of a present or joining member; oldest first."""
        return [record for record in self._pool.enough() if record in self._unscored and self._may_publish(record)]

    def _may_publish(self, record: Digest) -> bool:
        generator = self._pool.agreeing(record)[0].observation.generator
        return self._registry.get(generator) is not None or generator in self._admissions
