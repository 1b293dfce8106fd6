"""Observations that wait for a block: commits, opened rows and abstentions by record. Bounded, in memory only.

Validators send theirs again until a block has them. What a faulty one sends costs its own place (`batch_lanes`), its
own rows (out of time or not what was committed to), or, once two of its batches contradict each other, all of them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nsllm.consensus.batch import BatchReveal, Excerpt, Row, SignedCommit, check_row, unpack_rows
from nsllm.consensus.batch_conflict import BatchConflict, conflict_of, contradict
from nsllm.consensus.errors import BatchEquivocationError, ObservationError
from nsllm.consensus.observation import Subject, unpack_subjects
from nsllm.consensus.settlement import Terms
from nsllm.governance.batch_lanes import BatchLanes, Held
from nsllm.governance.record_case import Opened, Place, RecordCase
from nsllm.ids import Address, Digest, hex0x


@dataclass(frozen=True, slots=True)
class Candidate:
    """A record that a block may score, with the rows to score it by."""

    subject: Subject
    rows: tuple[tuple[SignedCommit, Row], ...]
    """Ascending by validator."""


@dataclass(frozen=True, slots=True)
class Hopeless:
    """A record that a block may settle as unscored."""

    record: Digest
    abstentions: tuple[SignedCommit, ...]


@dataclass(slots=True)
class Standing:
    """What a validator did since this pool began."""

    observed: int = 0
    late: int = 0
    """Rows that it committed to only after others had waited for it and opened theirs: slow, or copied."""
    abstained: int = 0
    reason: str | None = None
    """Of its last abstention."""
    uncommitted: int = 0
    """Rows that it showed of records which waited for a block, without a commit of its own that had come: lost, or
    copied."""
    equivocated: bool = False
    """All of its batches are left out."""


class ObservationPool:
    """Observations of one epoch by record and validator; the caller tells the time (seconds)."""

    def __init__(self, terms: Terms, me: Address | None) -> None:
        """An empty pool.

        Args:
            terms: what observations are checked against.
            me: the validator whose rows wait here to be opened; None for a follower.
        """
        self._terms = terms
        self._me = me
        self._lanes = BatchLanes()
        self._cases: dict[Digest, RecordCase] = {}
        self._ready: OrderedDict[Digest, None] = OrderedDict()
        """Records that may be settled, oldest first."""
        self._coming: set[Digest] = set()
        """Records that enough validators have committed to and no block may settle yet; counted only."""
        self._closed: dict[Digest, None] = {}
        """Records of ours that are committed to and not opened."""
        self._waits: dict[Digest, float] = {}
        """Of these, the ones that enough validators have committed to, and until when they wait for the others."""
        self._openable: dict[Digest, None] = {}
        """Of these, the ones that wait no longer, whatever the time."""
        self.standings: dict[Address, Standing] = {address: Standing() for address in terms.validators.members}

    def add_commit(self, signed: SignedCommit, now: float, settled: Callable[[Digest], bool]) -> bool:
        """Keep a commit; False if it is here already, or speaks of nothing that waits for a block.

        Cheap checks come first: the signature is looked at last.

        Raises:
            ObservationError: a later epoch, another rubric, no validator's, or malformed.
            SignatureError: not the validator's.
            BatchEquivocationError: it contradicts an earlier one; carries the proof, `ban` whom it names.
        """
        commit = signed.commit
        if commit.epoch < self._terms.validators.epoch:
            return False  # it was under way when the epoch ended
        self._check_terms(commit.validator, commit.epoch, commit.rubric)
        held = self._lanes.get(commit.validator, commit.number)
        if (held is not None and held.signed == signed) or not self._lanes.takes(commit.validator, commit.number):
            return False
        commit.check_shape()
        observed = [record for record in commit.record_digests if not settled(record)]
        abstained = [each.record for each in commit.abstentions if not settled(each.record)]
        if not observed and not abstained:
            return False
        signed.check_signature(self._terms.network)
        conflict = self.contradiction(signed)
        if conflict is not None:
            raise BatchEquivocationError(conflict)
        self._enter(signed, observed, abstained, now)
        return True

    def add_reveal(self, reveal: BatchReveal, now: float) -> bool:
        """Take the rows of a batch that is here; False if nothing in it is new.

        Raises:
            ObservationError: a later epoch, no validator's, malformed, or not what was committed to.
        """
        if reveal.epoch < self._terms.validators.epoch:
            return False
        self._check_terms(reveal.validator, reveal.epoch, self._terms.rubric)
        held = self._lanes.get(reveal.validator, reveal.number)
        rows = unpack_rows(reveal.rows, len(self._terms.dimensions))
        subjects = unpack_subjects(reveal.subjects)
        if len(rows) != len(subjects):
            raise ObservationError(f"{len(rows)} rows with {len(subjects)} subjects")
        if held is None:
            self._note_uncommitted(reveal.validator, subjects)
            return False
        commit, network = held.signed.commit, self._terms.network
        new = False
        for row, subject in zip(rows, subjects, strict=True):
            case = self._closed_case(subject.record, reveal.validator, reveal.number)
            if case is not None:
                check_row(commit, network, subject, row)
                self._open(case, reveal.validator, Opened(subject, row, now))
                new = True
        return new

    def open_own(self, number: int, opened: Sequence[tuple[Subject, Row]], now: float) -> None:
        """Open rows of a batch of ours: they are what was committed to, since this peer made them."""
        me = self._me
        if me is None:
            return
        for subject, row in opened:
            case = self._closed_case(subject.record, me, number)
            if case is not None:
                self._open(case, me, Opened(subject, row, now))

    def _closed_case(self, record: Digest, validator: Address, number: int) -> RecordCase | None:
        """The record's case, if the validator committed to it in this batch and has not opened its row."""
        case = self._cases.get(record)
        place = case.committed.get(validator) if case is not None else None
        if case is None or place is None or place.number != number or validator in case.opened:
            return None
        return case

    def ban(self, validator: Address) -> None:
        """Leave out all batches of a validator that equivocated, those to come too."""
        self.standings[validator].equivocated = True
        for held in self._lanes.ban(validator):
            self._forget(held)

    def holds(self, signed: SignedCommit) -> bool:
        """Is exactly this commit, signature included, in the pool (so that it was checked before)?"""
        held = self._lanes.get(signed.commit.validator, signed.commit.number)
        return held is not None and held.signed == signed

    def has_opened(self, excerpt: Excerpt, scored: Mapping[Digest, Subject]) -> bool:
        """Are exactly these rows of a commit that is in the pool opened here (so that they were checked before)?

        Args:
            excerpt: of a block; the pool `holds` its commit.
            scored: what the block scores, by record.
        """
        commit = excerpt.signed.commit
        records = commit.record_digests
        for row in excerpt.opened(len(self._terms.dimensions)):
            record = records[row.position] if row.position < len(records) else None
            case = self._cases.get(record) if record is not None else None
            place = case.committed.get(commit.validator) if case is not None else None
            opened = case.opened.get(commit.validator) if case is not None else None
            if record is None or place is None or opened is None or place.number != commit.number:
                return False
            if opened.row != row or opened.subject != scored.get(record):
                return False
        return True

    def case(self, record: Digest) -> RecordCase | None:
        """What is known of a record."""
        return self._cases.get(record)

    def is_banned(self, signed: SignedCommit) -> bool:
        """Is the batch left out because its validator equivocated?"""
        return self._lanes.banned(signed.commit.validator)

    # Our own rows

    def openable(self, now: float) -> list[Digest]:
        """Records whose rows of ours may be shown now."""
        waited = [record for record, until_s in self._waits.items() if until_s <= now and record not in self._openable]
        return [*self._openable, *waited]

    def opens_in_s(self, now: float) -> float | None:
        """Seconds until a row of ours may be shown without anybody else's doing; None if there is none to come."""
        return max(0.0, min(self._waits.values()) - now) if self._waits else None

    def shown(self, record: Digest) -> bool:
        """Is our row about this record opened?"""
        case = self._cases.get(record)
        return case is not None and self._me in case.opened

    # For a block

    def ready(self) -> list[Digest]:
        """Records with enough rows, or too many abstentions, oldest first."""
        return list(self._ready)

    @property
    def coming(self) -> int:
        """Records that are not ready, and will be in a moment: enough validators have committed to them."""
        return len(self._coming)

    def due_in_s(self, record: Digest, now: float) -> float:
        """Seconds until a record that is ready goes into a block."""
        return self._cases[record].due_in_s(now)

    def candidate(self, record: Digest) -> Candidate | Hopeless:
        """What a block needs to settle a record that is ready."""
        case = self._cases[record]
        if case.enough_opened_s is None:
            numbers = sorted(case.abstained.items())
            return Hopeless(record, tuple(self._signed(validator, number) for validator, number in numbers))
        rows = case.agreeing()
        return Candidate(
            next(iter(rows.values())).subject,
            tuple((self._signed(v, case.committed[v].number), opened.row) for v, opened in rows.items()),
        )

    def generator(self, record: Digest) -> Address | None:
        """Whose a record is that may be scored; None if it can only be settled as unscored."""
        case = self._cases[record]
        if case.enough_opened_s is None:
            return None
        return next(iter(case.agreeing().values())).subject.generator

    def settled(self, record: Digest) -> None:
        """Forget a record: a block has it."""
        case = self._cases.pop(record, None)
        self._ready.pop(record, None)
        self._coming.discard(record)
        self._no_longer_closed(record)
        if case is None:
            return
        for validator, place in case.committed.items():
            self._lanes.settled(validator, place.number, record)
        for validator, number in case.abstained.items():
            self._lanes.settled(validator, number, record)

    def expire(self, now: float) -> None:
        """Forget what no block took for long."""
        for held in self._lanes.expired(now):
            self._forget(held)

    def outstanding(self, validator: Address) -> int:
        """Batches of a validator that wait here."""
        return self._lanes.outstanding(validator)

    def __len__(self) -> int:
        """Records that somebody speaks of."""
        return len(self._cases)

    def _check_terms(self, validator: Address, epoch: int, rubric: Digest) -> None:
        if validator not in self.standings:
            raise ObservationError(f"observations of {hex0x(validator)}, who is not a validator")
        if epoch != self._terms.validators.epoch:
            raise ObservationError(f"observations of epoch {epoch}, this is epoch {self._terms.validators.epoch}")
        if rubric != self._terms.rubric:
            raise ObservationError(f"observations under rubric {hex0x(rubric)}, not {hex0x(self._terms.rubric)}")

    def contradiction(self, signed: SignedCommit) -> BatchConflict | None:
        """The proof that a commit contradicts one that is here; None if it contradicts none."""
        commit = signed.commit
        numbers, validator = {commit.number}, commit.validator
        for record in (*commit.record_digests, *commit.abstained):
            case = self._cases.get(record)
            if case is not None:
                place = case.committed.get(validator)
                if place is not None:
                    numbers.add(place.number)
                elif validator in case.abstained:
                    numbers.add(case.abstained[validator])
        for number in sorted(numbers):
            held = self._lanes.get(commit.validator, number)
            if held is not None and contradict(held.signed.commit, commit):
                return conflict_of(held.signed, signed)
        return None

    def _note_uncommitted(self, validator: Address, subjects: Sequence[Subject]) -> None:
        """Rows without a commit are no use to anybody; of records that others speak of, they are odd."""
        waiting = [case for subject in subjects if (case := self._cases.get(subject.record)) is not None]
        self.standings[validator].uncommitted += sum(validator not in case.committed for case in waiting)

    def _enter(self, signed: SignedCommit, observed: Sequence[Digest], abstained: Sequence[Digest], now: float) -> None:
        """Keep what a commit says of these records of it; each group ascends."""
        commit = signed.commit
        validator, number, standing = commit.validator, commit.number, self.standings[commit.validator]
        positions, mine = commit.position_of, validator == self._me
        entered: set[Digest] = set()
        for record in observed:
            case = self._case_of(record)
            if validator in case.committed or validator in case.abstained:
                continue  # the same row again, in another batch: the first counts
            entered.add(record)
            case.commit(validator, Place(number, positions[record], now))
            standing.late += validator in case.late
            if mine:
                self._closed[record] = None
            self._look_at(record, case)
            self._note_progress(record, case)
        standing.observed += len(entered)
        for record in abstained:
            case = self._case_of(record)
            if validator in case.committed or validator in case.abstained:
                continue
            entered.add(record)
            case.abstain(validator, number, now)
            standing.abstained += 1
            self._look_at(record, case)
            self._note_progress(record, case)
        if commit.abstentions:
            standing.reason = commit.abstentions[-1].reason
        if entered:
            for pushed in self._lanes.put(signed, entered, now):
                self._forget(pushed)

    def _case_of(self, record: Digest) -> RecordCase:
        """The record's case, begun if nobody spoke of it before."""
        case = self._cases.get(record)
        if case is None:
            validators = self._terms.validators
            case = self._cases[record] = RecordCase(validators.enough_observations, validators.faults)
        return case

    def _open(self, case: RecordCase, validator: Address, opened: Opened) -> None:
        case.open(validator, opened)
        record = opened.subject.record
        if validator == self._me:
            self._no_longer_closed(record)
        self._look_at(record, case)
        self._note_progress(record, case)

    def _note_progress(self, record: Digest, case: RecordCase) -> None:
        """Something was said about a record: is it ready, or will it be in a moment?"""
        if case.ready:
            self._ready[record] = None
            self._coming.discard(record)
        elif case.enough_committed_s is not None:
            self._coming.add(record)

    def _look_at(self, record: Digest, case: RecordCase) -> None:
        """Something was said about a record: may our own row of it be opened?"""
        if record not in self._closed:
            return
        until_s = case.waits_until_s()
        if until_s is None:
            self._waits.pop(record, None)
        else:
            self._waits[record] = until_s
        if case.may_open(-math.inf):
            self._openable[record] = None
        else:
            self._openable.pop(record, None)

    def _no_longer_closed(self, record: Digest) -> None:
        for records in (self._closed, self._waits, self._openable):
            records.pop(record, None)

    def _forget(self, held: Held) -> None:
        validator = held.signed.commit.validator
        for record in held.records:
            case = self._cases[record]
            case.forget(validator)
            if validator == self._me:
                self._no_longer_closed(record)
            self._look_at(record, case)
            if not case.ready:
                self._ready.pop(record, None)
            if case.enough_committed_s is None:
                self._coming.discard(record)
            if case.empty:
                del self._cases[record]

    def _signed(self, validator: Address, number: int) -> SignedCommit:
        held = self._lanes.get(validator, number)
        assert held is not None, "a case names a batch that is not held"
        return held.signed
