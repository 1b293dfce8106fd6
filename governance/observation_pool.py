"""Observations that wait for a block: commits, opened rows and abstentions by record. Bounded, in memory only.

Validators send theirs again until a block has them. What a faulty one sends costs its own place (`batch_lanes`), its
own rows (out of time or not what was committed to), or, once two of its batches contradict each other, all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import filterfalse

from nsllm.consensus.batch import (
    BatchReveal,
    Excerpt,
    Row,
    SignedCommit,
    check_row,
    opens,
    pack_rows,
    row_bytes,
    split_rows,
    unpack_rows,
)
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


_Closed = tuple[RecordCase, tuple[Subject, Row]]
"""A row that is not opened here yet."""


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
        self._ready: dict[Digest, None] = {}
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
        observed = list(filterfalse(settled, commit.record_digests))
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
        closed = _still_closed(held, zip(subjects, rows, strict=True))
        if opens(commit, network, [opened for _, opened in closed]):
            self._open(commit.validator, closed, reveal.rows if len(closed) == len(rows) else _packed(closed), now)
            return bool(closed)
        new = False
        for opened in zip(subjects, rows, strict=True):  # some row is wrong: what stands before it counts
            closed = _still_closed(held, [opened])
            if closed:
                check_row(commit, network, *opened)
                self._open(commit.validator, closed, _packed(closed), now)
                new = True
        return new

    def open_own(self, number: int, opened: Sequence[tuple[Subject, Row]], now: float) -> None:
        """Open rows of a batch of ours: they are what was committed to, since this peer made them."""
        held = self._lanes.get(self._me, number) if self._me is not None else None
        if held is not None:
            closed = _still_closed(held, opened)
            self._open(held.signed.commit.validator, closed, _packed(closed), now)

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
        commit, rows = excerpt.signed.commit, list[Row]()
        split = split_rows(excerpt.rows, len(self._terms.dimensions))
        held = self._lanes.get(commit.validator, commit.number)
        if held is None or held.signed.commit.records != commit.records:
            return False
        records = held.signed.commit.record_digests
        if split and split[-1][0] >= len(records):
            return False
        for position, data in split:
            record = records[position]
            case = held.cases.get(record)
            opened = case.opened.get(commit.validator) if case is not None else None
            if opened is None or opened.data != data or opened.subject != scored.get(record):
                return False
            rows.append(opened.row)
        excerpt.remember(rows)
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

    def each_ready(self) -> Iterator[Digest]:
        """The same one by one, while nothing comes in."""
        return iter(self._ready)

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
        committed, rows = case.committed, case.agreeing()
        return Candidate(
            case.subject(),
            tuple([(self._signed(v, committed[v].number), opened.row) for v, opened in rows.items()]),
        )

    def generator(self, record: Digest) -> Address | None:
        """Whose a record is that may be scored; None if it can only be settled as unscored."""
        case = self._cases[record]
        if case.enough_opened_s is None:
            return None
        return case.subject().generator

    def settled(self, record: Digest) -> None:
        """Forget a record: a block has it."""
        case = self._cases.pop(record, None)
        if case is None:
            return
        self._ready.pop(record, None)
        self._coming.discard(record)
        if record in self._closed:
            self._no_longer_closed(record)
        self._lanes.settled(record, case)

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
        validator, cases = commit.validator, self._cases
        records = (*commit.record_digests, *commit.abstained)
        numbers = {commit.number}
        for case in [case for record in records if (case := cases.get(record)) is not None]:
            if validator in case.committed:
                numbers.add(case.committed[validator].number)
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
        committed = self._new_to(validator, observed)
        place = Place(number, now)
        for case in committed.values():
            case.commit(validator, place)
        standing.observed += len(committed)
        standing.late += sum([validator in case.late for case in committed.values()])
        if validator == self._me:
            self._closed.update(dict.fromkeys(committed))
        abstains = self._new_to(validator, abstained)
        for case in abstains.values():
            case.abstain(validator, number, now)
        standing.abstained += len(abstains)
        if commit.abstentions:
            standing.reason = commit.abstentions[-1].reason
        entered = committed | abstains
        self._note_progress(entered)
        if entered:
            for pushed in self._lanes.put(signed, entered, now):
                self._forget(pushed)

    def _new_to(self, validator: Address, records: Sequence[Digest]) -> dict[Digest, RecordCase]:
        """Cases of those of which the validator said nothing, begun where nobody did: its first word counts."""
        cases, validators = self._cases, self._terms.validators
        enough, faults = validators.enough_observations, validators.faults
        found: dict[Digest, RecordCase] = {}
        for record in records:
            case = cases.get(record)
            if case is None:
                case = cases[record] = RecordCase(enough, faults)
            elif validator in case.committed or validator in case.abstained:
                continue
            found[record] = case
        return found

    def _open(self, validator: Address, closed: Sequence[_Closed], column: bytes, now: float) -> None:
        """Take rows that open what the validator committed to; `column` is of just these."""
        size = row_bytes(len(self._terms.dimensions))
        for start, (case, (subject, row)) in zip(range(0, len(column), size), closed, strict=True):
            case.open(validator, Opened(subject, row, column[start : start + size], now))
        heard = {subject.record: case for case, (subject, _) in closed}
        if validator == self._me:
            for record in heard:
                self._no_longer_closed(record)
        self._note_progress(heard)

    def _note_progress(self, heard: Mapping[Digest, RecordCase]) -> None:
        """Something was said about records: may our own rows of them be opened, are they ready, or will be soon?"""
        for record in [record for record in heard if record in self._closed]:
            self._look_at(record, heard[record])
        ready = [
            record for record, case in heard.items() if case.enough_opened_s is not None or case.hopeless_s is not None
        ]
        self._ready.update(dict.fromkeys(ready))
        self._coming.difference_update(ready)
        if len(ready) < len(heard):
            enough = [record for record, case in heard.items() if case.enough_committed_s is not None]
            self._coming.update([record for record in enough if record not in self._ready])

    def _look_at(self, record: Digest, case: RecordCase) -> None:
        """Something was said about a record that ours is closed of: may it be opened?"""
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
        for record, case in held.cases.items():
            case.forget(validator)
            if validator == self._me:
                self._no_longer_closed(record)
            elif record in self._closed:
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


def _still_closed(held: Held, opened: Iterable[tuple[Subject, Row]]) -> list[_Closed]:
    """Those of these rows that the batch's validator committed to in it, and that it has not opened."""
    validator, cases = held.signed.commit.validator, held.cases
    return [
        (case, each)
        for each in opened
        if (case := cases.get(each[0][0])) is not None and validator in case.committed and validator not in case.opened
    ]


def _packed(closed: Iterable[_Closed]) -> bytes:
    return pack_rows([row for _, (_, row) in closed])
