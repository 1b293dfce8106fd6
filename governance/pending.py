"""What waits for a block: observations, admissions, checkpoints, evidence, motions. Bounded; senders send again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from nsllm.consensus.batch import BatchReveal, Excerpt, SignedCommit
from nsllm.consensus.batch_conflict import BatchConflict
from nsllm.consensus.block import Body
from nsllm.consensus.evidence import Evidence, offence_of
from nsllm.consensus.registry import Admission, MemberRegistry
from nsllm.errors import NsllmError, PeerFault
from nsllm.governance.block_rules import BlockRules, History
from nsllm.governance.log_entry import SignedCheckpoint
from nsllm.governance.motion_pool import MotionPool
from nsllm.governance.objections import objection
from nsllm.governance.observation_pool import ObservationPool
from nsllm.governance.proposal import Draft
from nsllm.ids import Address, Digest, Epoch, Height, TimeMs

RECENT_RECORDS: Final = 65_536
"""Settled records remembered in memory, so that late observations of them are refused at once: about 8 MB."""
MAX_ADMISSIONS: Final = 256
BUSY_RECORDS: Final = 64
"""With so many records that will be due in a moment, a block of its own for each few costs more than that moment."""
GATHER_S: Final = 0.2
"""The longest that records which are due wait for such others."""
UNSETTLED_SPARE: Final = 1024
"""Records nobody speaks of any more, or not yet, that are remembered as not settled before they are swept out."""


class Pending:
    """Checked things on their way into a block; times are trio's seconds."""

    def __init__(
        self,
        rules: BlockRules,
        registry: MemberRegistry,
        recent: Sequence[Digest],
        knows_all: bool,
        motions: MotionPool,
        me: Address | None,
    ) -> None:
        """Nothing pending yet.

        Args:
            rules: what things are checked against.
            registry: members after the last block, kept up to date by the caller.
            recent: records settled last, oldest first.
            knows_all: whether no others were settled before; then only of these is it looked up whether they still are.
            motions: what validators have moved and approved.
            me: who proposes and observes here; None for a ledger without a key.
        """
        self._rules = rules
        self._registry = registry
        self._recent: OrderedDict[Digest, None] = OrderedDict.fromkeys(recent)
        self._knows_all = knows_all
        self.motions: Final = motions
        self._me = me
        self.pool = ObservationPool(rules.terms, me)
        """Commits, opened rows and abstentions of the present epoch."""
        self._unsettled: set[Digest] = set()
        """Records that were looked up and not found settled; asked by membership only."""
        self._admissions: OrderedDict[Address, Admission] = OrderedDict()
        self._checkpoints: dict[Address, SignedCheckpoint] = {}
        self._evidence: dict[tuple[Address, Epoch], Evidence] = {}
        """At most one for each validator and epoch, so bounded by the validators there were."""

    def begin_epoch(self, rules: BlockRules) -> None:
        """Other validators or another policy are in force. Batches are of one epoch: validators commit anew."""
        self._rules = rules
        self.pool = ObservationPool(rules.terms, self._me)
        self._unsettled.clear()
        self.motions.begin_epoch(rules)
        for address, admission in list(self._admissions.items()):
            try:
                rules.check_admission(admission, self._registry.state)
            except NsllmError:
                del self._admissions[address]

    def add_commit(self, signed: SignedCommit, now: float) -> bool:
        """See `Ledger.add_commit`."""
        self.pool.expire(now)
        return self.pool.add_commit(signed, now, self._recent.__contains__)

    def add_reveal(self, reveal: BatchReveal, now: float) -> bool:
        """See `Ledger.add_reveal`."""
        return self.pool.add_reveal(reveal, now)

    def contradictions(self, batches: Sequence[Excerpt]) -> list[BatchConflict]:
        """Proofs that batches of a block contradict what their validators said here; those that are here do not."""
        others = (excerpt.signed for excerpt in batches if not self.pool.holds(excerpt.signed))
        found = (self.pool.contradiction(signed) for signed in others)
        return [conflict for conflict in found if conflict is not None]

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
        if about in self._evidence or history.is_convicted(*about) or (offence.height or 0) > height:
            return False
        self._rules.check_evidence(evidence, history, height)
        self._evidence[about] = evidence
        validators = self._rules.validators
        if isinstance(evidence, BatchConflict) and offence.epoch == validators.epoch and len(validators.members) > 1:
            self.pool.ban(offence.validator)
        return True

    def is_recent(self, record: Digest) -> bool:
        """Is the record among those settled last?"""
        return record in self._recent

    def admissions(self) -> int:
        """Admissions that no block holds yet."""
        return len(self._admissions)

    def evidence(self) -> int:
        """Offenders whom no block convicts yet."""
        return len(self._evidence)

    def to_look_up(self) -> list[Digest]:
        """Records that may be settled of which it is not known whether they were, long ago."""
        unknown = [record for record in self.pool.each_ready() if record not in self._unsettled]
        doubtful = self.doubtful(unknown)
        self._unsettled.update(set(unknown).difference(doubtful))
        return doubtful

    def doubtful(self, records: Sequence[Digest]) -> list[Digest]:
        """Those of which memory does not tell that they are not settled."""
        return [record for record in records if not self._knows_all or record in self._recent]

    def looked_up(self, record: Digest, *, settled: bool) -> None:
        """What the look-up found."""
        if settled:
            self.pool.settled(record)
        else:
            self._unsettled.add(record)

    def wait_s(self, now: float) -> float | None:
        """Seconds until the first of the records that may be settled is due; None if there is none."""
        least: float | None = None
        for record in self._ready():
            wait_s = self.pool.due_in_s(record, now)
            if wait_s == 0.0:
                return self._gather_s(record, now)
            least = wait_s if least is None else min(least, wait_s)
        return least

    def _gather_s(self, first: Digest, now: float) -> float:
        """How long a block that might come at once waits to be filled: blocks cost far more than records."""
        case = self.pool.case(first)
        if case is None or self.pool.coming < BUSY_RECORDS:
            return 0.0
        return max(0.0, case.ready_since_s() + GATHER_S - now)

    def draft(self, now: float, time_ms: TimeMs) -> Draft:
        """What a proposer may put into a block now."""
        due = [record for record in self._ready() if self.pool.due_in_s(record, now) == 0.0]
        return Draft(
            records=[self.pool.candidate(record) for record in due],
            admissions=tuple(self._admissions.values()),
            motions=self.motions.ready(self._registry.state, time_ms),
            checkpoints=tuple(self._checkpoints.values()),
            evidence=tuple(self._evidence.values()),
        )

    def objection(self, body: Body, *, roomy: bool, built_s: float) -> str | None:
        """What is wrong with `body` as a first proposal, by what we have received; see `objections`."""
        taken = {*body.records, *body.unscored_records}
        left = ((record, self.pool.case(record)) for record in self._ready(but=taken))
        due_since = ((record, case.due_at_s()) for record, case in left if case is not None)
        return objection(self.pool, body, due_since=due_since, roomy=roomy, built_s=built_s)

    def settled(self, record: Digest) -> None:
        """A block scores the record, or settles that it stays unscored."""
        self.pool.settled(record)
        self._unsettled.discard(record)
        self._recent[record] = None
        if len(self._recent) > RECENT_RECORDS:
            self._recent.popitem(last=False)
            self._knows_all = False

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
        self.pool.expire(now)
        if len(self._unsettled) > 2 * len(self.pool) + UNSETTLED_SPARE:
            self._unsettled = {record for record in self._unsettled if self.pool.case(record) is not None}

    def __len__(self) -> int:
        """Records with observations or abstentions that no block holds."""
        return len(self.pool)

    def _ready(self, but: AbstractSet[Digest] = frozenset()) -> Iterator[Digest]:
        """Records that may be settled and were not, of a present or joining member; oldest first, `but` these."""
        for record in self.pool.each_ready():
            if record not in but and record in self._unsettled and self._may_publish(record):
                yield record

    def _may_publish(self, record: Digest) -> bool:
        generator = self.pool.generator(record)
        return generator is None or self._registry.get(generator) is not None or generator in self._admissions
