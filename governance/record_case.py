"""One record on its way to a score: who committed to it, who opened, who abstains, and when. No clock of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from nsllm.consensus.batch import Row
from nsllm.consensus.observation import Subject
from nsllm.ids import Address

WAIT_FOR_ALL_S: Final = 0.3
"""How long a record with enough commits, and again with enough opened rows, waits for the remaining validators'."""
TIMELY_S: Final = 0.05
"""What we had this soon after enough of its kind, an honest proposer had before its own wait was over, if the links to
it and to us differ by less than half of what is left of the wait, an eighth of a second."""
COPIED_AFTER_S: Final = 1.0
"""A commit this long after the first opened row is late by every honest validator's watch."""


class Place(Struct, frozen=True, gc=False):
    """Where a validator's row of the record stands: one value for all rows of a batch."""

    number: int
    at_s: float
    """When the commit came."""


class Opened(Struct, frozen=True, gc=False):
    """A row that was opened."""

    subject: Subject
    row: Row
    data: bytes
    """The row as it stands in a column."""
    at_s: float


class RecordCase:
    """What is known of one record. One is made for every record that anybody speaks of, so it is made plainly."""

    __slots__ = (
        "_agreeing",
        "_mixed",
        "_subject",
        "abstained",
        "committed",
        "enough",
        "enough_committed_s",
        "enough_opened_s",
        "faults",
        "first_opened_s",
        "hopeless_s",
        "late",
        "opened",
    )

    def __init__(self, enough: int, faults: int) -> None:
        """Nobody has spoken of it: n-f rows are needed, of n validators of which f may be faulty."""
        self.enough = enough
        self.faults = faults
        self.committed: dict[Address, Place] = {}
        self.opened: dict[Address, Opened] = {}
        self.abstained: dict[Address, int] = {}
        """Number of the batch in which each abstained."""
        self.late: dict[Address, float] = {}
        """Validators whose commit came after others had opened, and how long after: they may have copied."""
        self.hopeless_s: float | None = None
        """When so many had abstained that enough rows will never come."""
        self.enough_committed_s: float | None = None
        self.enough_opened_s: float | None = None
        self.first_opened_s: float | None = None
        self._agreeing: Mapping[Address, Opened] | None = None
        """As it was asked for last, while nothing has changed."""
        self._subject: Subject | None = None
        """What the first opened row is about."""
        self._mixed = False
        """Whether another one is about something else."""

    def commit(self, validator: Address, place: Place) -> None:
        """Note a commit.

        The first n-f are never late: nobody honest opens before it has seen so many, so whoever has seen fewer has
        missed some, and its order of things says nothing. Nor is one that comes within the wait for all: whoever opened
        before that had heard everybody, and links differ.
        """
        if self.first_opened_s is not None and len(self.committed) >= self.enough and self._waited_for_all(place.at_s):
            self.late[validator] = place.at_s - self.first_opened_s
            self._agreeing = None
        self.committed[validator] = place
        if self.enough_committed_s is None and len(self.committed) >= self.enough:
            self.enough_committed_s = place.at_s

    def abstain(self, validator: Address, number: int, now: float) -> None:
        """Note an abstention."""
        self.abstained[validator] = number
        if self.hopeless_s is None and len(self.abstained) > self.faults:
            self.hopeless_s = now

    def open(self, validator: Address, opened: Opened) -> None:
        """Note an opened row of a validator that committed."""
        if not self.opened:
            self._subject = opened.subject
        elif opened.subject != self._subject:
            self._mixed = True
        self.opened[validator] = opened
        self._agreeing = None
        if self.first_opened_s is None:
            self.first_opened_s = opened.at_s
        if self.enough_opened_s is None and len(self.opened) >= self.enough <= self._count():
            self.enough_opened_s = opened.at_s

    def forget(self, validator: Address) -> None:
        """Take back all that a validator said."""
        self.committed.pop(validator, None)
        self.opened.pop(validator, None)
        self._agreeing = None
        self.abstained.pop(validator, None)
        self.late.pop(validator, None)
        subjects = {opened.subject for opened in self.opened.values()}
        self._subject, self._mixed = next(iter(subjects), None), len(subjects) > 1
        if len(self.abstained) <= self.faults:
            self.hopeless_s = None
        if len(self.committed) < self.enough:
            self.enough_committed_s = None
        if len(self.agreeing()) < self.enough:
            self.enough_opened_s = None

    def agreeing(self) -> Mapping[Address, Opened]:
        """The largest set of rows in time that are about one subject."""
        if self._agreeing is None:
            if not self._mixed and not self.late:  # as ever, where nobody lies
                self._agreeing = dict(sorted(self.opened.items()))
                return self._agreeing
            groups: dict[Subject, dict[Address, Opened]] = {}
            for validator in sorted(self.opened):
                if validator not in self.late:
                    opened = self.opened[validator]
                    groups.setdefault(opened.subject, {})[validator] = opened
            self._agreeing = max(groups.values(), key=len, default=dict[Address, Opened]())
        return self._agreeing

    def subject(self) -> Subject:
        """What the rows are about that agree; some are opened."""
        if self._mixed or self._subject is None:
            return next(iter(self.agreeing().values())).subject
        return self._subject

    def may_open(self, now: float) -> bool:
        """May an honest validator show its row: have enough committed, and all or for long enough?"""
        if self.enough_committed_s is None:
            return False
        return self._all_spoke() or self.enough_opened_s is not None or self._waited_for_all(now)

    def waits_until_s(self) -> float | None:
        """When the wait for the last commits is over; None while too few have committed."""
        return None if self.enough_committed_s is None else self.enough_committed_s + WAIT_FOR_ALL_S

    def due_in_s(self, now: float) -> float:
        """Seconds until a record that is ready goes into a block: 0.0 once all that spoke in time have opened."""
        if self.enough_opened_s is None:
            return 0.0
        if (
            len(self.opened) < len(self.committed)
            and not self.committed.keys() - self.late.keys() <= self.opened.keys()
        ):
            return max(0.0, self.enough_opened_s + WAIT_FOR_ALL_S - now)
        until_s = self.waits_until_s()
        return 0.0 if until_s is None or self._all_spoke() else max(0.0, until_s - now)

    def due_at_s(self) -> float:
        """When the record was to go into a block at the latest; infinite before it is ready."""
        if self.enough_opened_s is not None:
            return self.enough_opened_s + WAIT_FOR_ALL_S
        return self.hopeless_s if self.hopeless_s is not None else math.inf

    def ready_since_s(self) -> float:
        """When a block might first have settled the record; infinite before it is ready."""
        since_s = self.enough_opened_s if self.enough_opened_s is not None else self.hopeless_s
        return since_s if since_s is not None else math.inf

    def timely(self, validator: Address) -> bool:
        """Must an honest proposer have had this validator's row in time (see `TIMELY_S`)?"""
        place, opened = self.committed.get(validator), self.opened.get(validator)
        if place is None or opened is None or validator in self.late:
            return False
        if self.enough_committed_s is None or self.enough_opened_s is None:
            return False
        return (
            place.at_s <= self.enough_committed_s + TIMELY_S
            and opened.at_s <= self.enough_opened_s + TIMELY_S
            and validator in self.agreeing()
        )

    def copied(self, validator: Address, now: float) -> bool:
        """Is the validator's row one that no honest proposer takes in, the way we saw it?"""
        if validator in self.late:
            return self.late[validator] > COPIED_AFTER_S
        if validator in self.committed or self.first_opened_s is None or len(self.committed) < self.enough:
            return False
        return now > self.first_opened_s + COPIED_AFTER_S

    def _count(self) -> int:
        """How many rows agree."""
        return len(self.agreeing()) if self._mixed or self.late else len(self.opened)

    def _all_spoke(self) -> bool:
        return len(self.committed) + len(self.abstained) >= self.enough + self.faults  # nobody does both

    def _waited_for_all(self, now: float) -> bool:
        """Is the wait for the last commits over?"""
        return self.enough_committed_s is not None and self.enough_committed_s + WAIT_FOR_ALL_S <= now

    @property
    def ready(self) -> bool:
        """May a block settle it?"""
        return self.enough_opened_s is not None or self.hopeless_s is not None

    @property
    def empty(self) -> bool:
        """Does nobody speak of it?"""
        return not self.committed and not self.abstained
