"""Records and batches of one body, as they are put into it: within its bytes, each batch once."""

from __future__ import annotations

from operator import itemgetter
from typing import Final

from nsllm.consensus.batch import Excerpt, Row, SignedCommit, row_bytes
from nsllm.consensus.block import MAX_BLOCK_BATCHES, MAX_BLOCK_RECORDS, Body
from nsllm.consensus.observation import RECORD_BYTES, SUBJECT_BYTES, Subject, pack_subjects
from nsllm.governance.observation_pool import Candidate, Hopeless
from nsllm.ids import Address, Digest

FRAMING_BYTES: Final = 32
"""Upper bound of what the body's encoding adds to one item."""


class Selection:
    """A body that grows record by record."""

    def __init__(self, budget_bytes: int) -> None:
        """Nothing selected yet.

        Args:
            budget_bytes: bound on what `add` takes.
        """
        self.budget_bytes = budget_bytes
        """What is left."""
        self._subjects: list[Subject] = []
        self._unscored: list[Digest] = []
        self._batches: dict[tuple[Address, int], tuple[SignedCommit, list[Row]]] = {}

    @property
    def records(self) -> int:
        """Records selected so far."""
        return len(self._subjects) + len(self._unscored)

    def add(self, each: Candidate | Hopeless) -> bool:
        """Take a record with all that settles it; False if it does not fit."""
        commits = [signed for signed, _ in each.rows] if isinstance(each, Candidate) else list(each.abstentions)
        fresh = [signed for signed in commits if _place(signed) not in self._batches]
        size = RECORD_BYTES + sum(signed.size_bytes + FRAMING_BYTES for signed in fresh)
        if isinstance(each, Candidate):
            size += SUBJECT_BYTES + sum(row_bytes(len(row.ppm)) for _, row in each.rows)
        full = self.records == MAX_BLOCK_RECORDS or len(self._batches) + len(fresh) > MAX_BLOCK_BATCHES
        if full or size > self.budget_bytes:
            return False
        self.budget_bytes -= size
        for signed in fresh:
            self._batches[_place(signed)] = (signed, [])
        if isinstance(each, Candidate):
            self._subjects.append(each.subject)
            for signed, row in each.rows:
                self._batches[_place(signed)][1].append(row)
        else:
            self._unscored.append(each.record)
        return True

    def body(self, entries: tuple[bytes, ...]) -> Body:
        """The body, everything in its canonical order, without transactions."""
        return Body(
            subjects=pack_subjects(sorted(self._subjects, key=itemgetter(0))),
            unscored=b"".join(sorted(self._unscored)),
            batches=tuple(
                Excerpt.of(signed, sorted(rows, key=itemgetter(0)))
                for _, (signed, rows) in sorted(self._batches.items())
            ),
            entries=entries,
        )


def record_of(each: Candidate | Hopeless) -> Digest:
    """The record that is settled."""
    return each.subject.record if isinstance(each, Candidate) else each.record


def _place(signed: SignedCommit) -> tuple[Address, int]:
    return signed.commit.validator, signed.commit.number
