"""Batches of this validator that wait for blocks: which record is in which, and when each goes out again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nsllm.consensus.batch import Row, SignedCommit
from nsllm.consensus.observation import Subject
from nsllm.ids import Digest

RESEND_S: Final = 2.0
RESEND_CAP_S: Final = 10.0
"""A batch goes out again after `RESEND_S`, then after twice as long each time, up to this."""
RESEND_AT_ONCE: Final = 16
"""Batches: the links to the other validators carry votes too, and drop their oldest message when they are full."""
GIVE_UP_S: Final = 600.0

Opened = tuple[Subject, Row]
"""What a row is about, and the row."""


@dataclass(slots=True)
class OwnBatch:
    """One batch that is on disk."""

    signed: SignedCommit
    rows: dict[Digest, Opened]
    """By record; abstentions have none."""
    open: set[Digest]
    """Records that wait for a block."""
    since: float
    resend_at: float
    pause_s: float = RESEND_S


class OwnBatches:
    """What this validator committed to and no block has."""

    def __init__(self) -> None:
        self._batches: dict[int, OwnBatch] = {}
        """By number."""
        self._by_record: dict[Digest, OwnBatch] = {}

    def __len__(self) -> int:
        """Batches."""
        return len(self._batches)

    @property
    def moving(self) -> int:
        """Records that wait for a block, without those of batches that were sent again: nobody may ever settle them."""
        return sum(len(batch.open) for batch in self._batches.values() if batch.pause_s == RESEND_S)

    def of(self, record: Digest) -> OwnBatch | None:
        """The batch that a waiting record is in."""
        return self._by_record.get(record)

    def enter(self, signed: SignedCommit, opened: Iterable[Opened], left: set[Digest], now: float) -> None:
        """Hold a batch of which the records in `left` wait for blocks."""
        rows = {each[0].record: each for each in opened}
        batch = self._batches[signed.commit.number] = OwnBatch(signed, rows, left, now, now + RESEND_S)
        for record in left:
            self._by_record[record] = batch

    def settled(self, records: Iterable[Digest]) -> tuple[list[Digest], bool]:
        """Blocks have these records: the ones that were waiting here, and whether a whole batch is done with."""
        found: list[Digest] = []
        done = False
        for record in records:
            batch = self._by_record.pop(record, None)
            if batch is None:
                continue
            found.append(record)
            batch.open.discard(record)
            if not batch.open:
                del self._batches[batch.signed.commit.number]
                done = True
        return found, done

    def give_up(self, now: float) -> bool:
        """Forget what no block took for `GIVE_UP_S`; whether there was any."""
        old = [batch for batch in self._batches.values() if now - batch.since > GIVE_UP_S]
        for batch in old:
            self._forget(batch)
        return bool(old)

    def take_due(self, now: float) -> list[OwnBatch]:
        """Batches that go out again now, the longest unsaid first, `RESEND_AT_ONCE` at most."""
        due = [batch for batch in self._batches.values() if batch.resend_at <= now][:RESEND_AT_ONCE]
        for batch in due:
            batch.pause_s = min(2 * batch.pause_s, RESEND_CAP_S)
            batch.resend_at = now + batch.pause_s
            number = batch.signed.commit.number
            self._batches[number] = self._batches.pop(number)
        return due

    def take_all(self) -> list[OwnBatch]:
        """All of them, which are held no more: another epoch has begun."""
        held = list(self._batches.values())
        self._batches.clear()
        self._by_record.clear()
        return held

    def _forget(self, batch: OwnBatch) -> None:
        del self._batches[batch.signed.commit.number]
        for record in batch.open:
            del self._by_record[record]
