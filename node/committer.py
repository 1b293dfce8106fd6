"""A validator's word about records: committed to in batches, opened once enough others have committed, sent again.

    examiner -> fresh rows -> sign, log on disk, send commit -> n-f commits of a record -> open its row, send reveal

A batch is what gathered while the one before was written, or is being scored at the moment: a record that comes alone
goes alone and at once. Opening waits for a message, not for a timer, unless a validator stays silent
(`record_case.WAIT_FOR_ALL_S`). Only where many records wait for blocks anyway (`BUSY_RECORDS`) do batches wait a moment
to be filled, and rows to be opened together.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from nsllm.consensus.batch import MAX_BATCH_RECORDS, MAX_REASON_CHARS, BatchReveal, SignedCommit
from nsllm.consensus.errors import ObservationError
from nsllm.consensus.observation import Subject
from nsllm.consensus.observation_message import (
    MAX_OBSERVATION_BYTES,
    MAX_REVEALS,
    Commit,
    ObservationBody,
    Reveal,
    decode_observation,
    encode_observation,
)
from nsllm.errors import OwnFault, PeerFault
from nsllm.governance.batch_log import BatchLog
from nsllm.governance.ledger import Ledger
from nsllm.governance.observation_pool import Standing
from nsllm.ids import Address, Digest, hex0x, short
from nsllm.node.batch_signer import BatchSigner, opened_by, reveal_of
from nsllm.node.context import PeerContext
from nsllm.node.own_batches import RESEND_S, Opened, OwnBatch, OwnBatches
from nsllm.p2p.rates import SlidingWindow

log = logging.getLogger(__name__)

GATHER_S: Final = 0.1
"""The longest that a row waits for others that are being scored."""
BUSY_RECORDS: Final = MAX_BATCH_RECORDS
"""With so many records of ours waiting for blocks, messages cost more than a moment's delay: they gather first."""
FILL_S: Final = 0.08
"""The longest that a batch waits to be filled then."""
OPEN_TOGETHER_S: Final = 0.05
"""How long rows that may be opened wait for others then."""
RETRY_S: Final = 1.0
"""After a fault of our own disk."""
MAX_OUTSTANDING: Final = 128
"""Batches of ours that wait for blocks; below what others keep of one validator."""
MESSAGE_UNITS: Final = 1024
"""What one validator may send in a second: a message is one unit, and one more each `UNIT_BYTES`."""
UNIT_BYTES: Final = 4096
REVEAL_BYTES: Final = MAX_OBSERVATION_BYTES * 3 // 4
"""Rows that are opened in one message, unless one batch alone has more."""


@dataclass(slots=True)
class _Fresh:
    """What the examiner found and no batch holds."""

    rows: deque[tuple[Subject, tuple[int, ...]]] = field(default_factory=deque[tuple[Subject, tuple[int, ...]]])
    """Measured under the rubric in force."""
    abstentions: deque[tuple[Digest, str]] = field(default_factory=deque[tuple[Digest, str]])

    def __len__(self) -> int:
        return len(self.rows) + len(self.abstentions)


class Committer:
    """Commits, opens and repeats this validator's observations; hears the other validators'."""

    def __init__(
        self,
        *,
        context: PeerContext,
        ledger: Ledger,
        batches: BatchLog,
        share: Callable[[Address, bytes], None],
        due: Callable[[], None],
        checkpoint: Callable[[str], None] = lambda _moment: None,
    ) -> None:
        """Begin with what the log holds.

        Args:
            context: who we are.
            ledger: pool of observations, and what is settled.
            batches: what was committed to; its owner closes it.
            share: queues a message for one validator; never waits.
            due: tells the consensus driver that a block may be due.
            checkpoint: fault-injection point, called with `batch_signed`, `batch_written`, `batch_sent` and
                `rows_opened` as those moments pass.
        """
        self._context = context
        self._ledger = ledger
        self._observations = ledger.observations
        self._log = batches
        self._share = share
        self._due = due
        self._checkpoint = checkpoint
        self._fresh = _Fresh()
        self._terms = ledger.terms
        self._signer = BatchSigner(context.key)
        self._batches = OwnBatches()
        self._settled: list[Digest] = []
        self._rates: dict[Address, SlidingWindow] = {}
        self._more = False
        """Whether other records are being scored."""
        self._came = trio.Event()
        self._opening = trio.Event()
        self._held = trio.Event()
        """Set when there is a batch to send again."""

    def observed(self, subject: Subject, ppm: tuple[int, ...], *, more: bool = False) -> None:
        """Take a row to commit to: one integer a dimension of the rubric; `more`: others follow soon."""
        self._fresh.rows.append((subject, ppm))
        self._wake(more=more)

    def abstained(self, record: Digest, reason: str, *, more: bool = False) -> None:
        """Take an abstention: the record counts as not observed by us, and everybody knows why."""
        self._fresh.abstentions.append((record, printable(reason)))
        self._wake(more=more)

    def _wake(self, *, more: bool) -> None:
        """Something was found: whoever makes batches hears of the first, of the last, and of a full batch."""
        self._more = more
        if not more or len(self._fresh) == 1 or len(self._fresh) >= MAX_BATCH_RECORDS:
            self._came.set()

    def follow(self) -> None:
        """Another epoch may have begun: what is not settled is committed to anew, unless the rubric is another."""
        terms = self._ledger.terms
        if terms is self._terms:
            return
        same, self._terms = terms.rubric == self._terms.rubric, terms
        held = self._batches.take_all()
        self._settled.clear()
        if not same or self._context.address not in terms.validators:
            self._fresh = _Fresh()
        else:
            for batch in held:
                self._put_back(batch.signed, batch.rows.values(), batch.open)
        self._came.set()

    def holds(self, record: Digest) -> bool:
        """Is the record in one of our batches that wait for a block?"""
        return self._batches.of(record) is not None

    def hear(self, sender: Address, payload: bytes) -> None:
        """Take another validator's message. What comes too fast is dropped unread: it comes again.

        Raises:
            PeerFault: malformed, or not its signer's.
        """
        window = self._rates.setdefault(sender, SlidingWindow(MESSAGE_UNITS, 1.0))
        if len(payload) > MAX_OBSERVATION_BYTES:
            raise ObservationError(f"{len(payload)} bytes of observations, the limit is {MAX_OBSERVATION_BYTES}")
        if not window.take(1 + len(payload) // UNIT_BYTES):
            log.info("observations_dropped sender=%s bytes=%d", short(sender), len(payload))
            return
        body = decode_observation(payload)
        parts = (body.signed.commit,) if isinstance(body, Commit) else body.reveals
        for part in parts:
            if part.validator != sender:
                raise ObservationError(f"observations of {hex0x(part.validator)} sent by {hex0x(sender)}")
        standing = self._observations.standings().get(sender, Standing())
        late, uncommitted = standing.late, standing.uncommitted
        self._take(body)
        standing = self._observations.standings().get(sender, standing)
        self._report(sender, standing.late - late, standing.uncommitted - uncommitted)

    def settled(self, records: Iterable[Digest]) -> None:
        """A block has these records."""
        found, done = self._batches.settled(records)
        self._settled += found
        if done:
            self._came.set()  # there is room for another

    async def run(self) -> None:
        """Commit, open and repeat until cancelled."""
        await self._recover()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._commit_all)
            nursery.start_soon(self._open_all)
            nursery.start_soon(self._resend)

    async def _recover(self) -> None:
        """Take up what was committed to before the restart: the same commits go out again, and no others."""
        epoch = self._ledger.terms.validators.epoch
        now = trio.current_time()
        for signed, reveal in await self._context.offload.run(lambda: self._log.outstanding(epoch, MAX_OUTSTANDING)):
            records = (*signed.commit.record_digests, *signed.commit.abstained)
            left = set(await self._ledger.unsettled(records))
            self._settled.extend(record for record in records if record not in left)
            if left:
                self._enter(signed, opened_by(reveal, len(self._ledger.terms.dimensions)), left, now)

    async def _commit_all(self) -> None:
        while True:
            while not self._fresh or len(self._batches) >= MAX_OUTSTANDING or not self._validates():
                self._came = trio.Event()
                await self._came.wait()
            await self._gather()
            number, rows, abstentions = await self._take_fresh()
            if not rows and not abstentions:
                continue
            signed, opened = self._signer.sign(self._ledger.terms, number, rows, abstentions)
            self._checkpoint("batch_signed")
            if not await self._write(signed, opened):
                continue
            self._checkpoint("batch_written")
            if signed.commit.epoch != self._ledger.terms.validators.epoch:  # it ended while the disk was busy
                self._retake(signed, opened)
                continue
            left = self._left(signed)
            if not left:
                continue  # others were enough without us while the disk was busy
            self._enter(signed, opened, left, trio.current_time())
            self._broadcast(Commit(signed=signed))
            self._checkpoint("batch_sent")
            self._opening.set()
            self._due()

    def _left(self, signed: SignedCommit) -> set[Digest]:
        """Records of a batch that wait for a block; of the others there is nothing more to say."""
        records = (*signed.commit.record_digests, *signed.commit.abstained)
        left = {record for record in records if not self._ledger.is_settled(record)}
        self._settled.extend(record for record in records if record not in left)
        return left

    async def _gather(self) -> None:
        """Return once nothing more is being scored, or a batch is full: batches cost far more than rows.

        Under load a batch waits to be filled, too: what gathers meanwhile is scored in the same blocks.
        """
        with trio.move_on_after(GATHER_S):
            while self._more and len(self._fresh) < MAX_BATCH_RECORDS:
                self._came = trio.Event()
                await self._came.wait()
        with trio.move_on_after(FILL_S):
            while self._is_busy() and len(self._fresh) < MAX_BATCH_RECORDS:
                self._came = trio.Event()
                await self._came.wait()

    def _is_busy(self) -> bool:
        return self._batches.moving >= BUSY_RECORDS

    async def _take_fresh(self) -> tuple[int, list[tuple[Subject, tuple[int, ...]]], list[tuple[Digest, str]]]:
        """The next batch's number, and at most one batch of what is neither settled nor committed to."""
        count = min(len(self._fresh), MAX_BATCH_RECORDS)
        taken = [self._fresh.rows.popleft() for _ in range(min(count, len(self._fresh.rows)))]
        rows = {subject.record: (subject, ppm) for subject, ppm in taken}
        abstentions = dict(self._fresh.abstentions.popleft() for _ in range(count - len(taken)))
        terms = self._ledger.terms
        epoch = terms.validators.epoch
        now_ms = self._context.clock.now_ms()
        wanted = await self._ledger.unsettled([*rows, *(r for r in abstentions if r not in rows)])
        number, fresh = await self._context.offload.run(
            lambda: (self._log.next_number(epoch, now_ms), set(self._log.fresh(epoch, wanted)))
        )
        if self._ledger.terms is not terms:  # another epoch began meanwhile
            if self._ledger.terms.rubric == terms.rubric and self._validates():
                self._fresh.rows.extend(rows.values())
                self._fresh.abstentions.extend(abstentions.items())
            return number, [], []
        return (
            number,
            [rows[record] for record in sorted(rows) if record in fresh],
            [(record, abstentions[record]) for record in sorted(abstentions) if record in fresh and record not in rows],
        )

    async def _write(self, signed: SignedCommit, opened: Sequence[Opened]) -> bool:
        """False if our disk refused: then nothing was sent, and the same rows are tried again."""
        settled, self._settled = self._settled, []
        reveal = reveal_of(signed.commit, opened)
        try:
            await self._context.offload.run(lambda: self._log.put(signed, reveal, settled))
        except OwnFault as error:
            log.error("observations_not_written number=%d error=%s", signed.commit.number, error)
            self._context.events.emit("observations_failed", code=error.code)
            self._settled.extend(settled)
            self._retake(signed, opened)
            await trio.sleep(RETRY_S)
            return False
        if opened:
            commit = hex0x(signed.commit.digest(self._ledger.terms.network))
            self._context.events.emit("scored", batch=signed.commit.number, records=len(opened), commit=commit)
        return True

    def _retake(self, signed: SignedCommit, opened: Sequence[Opened]) -> None:
        """Take back what was not sent, if it still holds."""
        if signed.commit.rubric == self._ledger.terms.rubric and self._validates():
            self._put_back(signed, opened, {*signed.commit.record_digests, *signed.commit.abstained})

    def _put_back(self, signed: SignedCommit, rows: Iterable[Opened], records: set[Digest]) -> None:
        self._fresh.rows.extend((subject, row.ppm) for subject, row in rows if subject.record in records)
        self._fresh.abstentions.extend((a.record, a.reason) for a in signed.commit.abstentions if a.record in records)

    def _validates(self) -> bool:
        return self._context.address in self._ledger.terms.validators

    def _enter(self, signed: SignedCommit, opened: Sequence[Opened], left: set[Digest], now: float) -> None:
        """Hold a batch that is on disk; our own pool is the first to have it."""
        self._batches.enter(signed, opened, left, now)
        self._held.set()
        self._take(Commit(signed=signed))

    async def _open_all(self) -> None:
        while True:
            if self._is_busy():
                await trio.sleep(OPEN_TOGETHER_S)
            self._opening = trio.Event()
            self._open()
            wait_s = self._observations.opens_in_s()
            with trio.move_on_after(wait_s if wait_s is not None else float("inf")):
                await self._opening.wait()

    def _open(self) -> None:
        """Show our rows of the records that enough validators have committed to."""
        by_batch: dict[int, tuple[OwnBatch, list[Opened]]] = {}
        for record in self._observations.openable():
            batch = self._batches.of(record)
            if batch is not None:
                by_batch.setdefault(batch.signed.commit.number, (batch, []))[1].append(batch.rows[record])
        for batch, rows in by_batch.values():
            self._observations.open_own(batch.signed.commit.number, rows)
        self._show([_reveal(batch, rows) for batch, rows in by_batch.values()])
        if by_batch:
            self._checkpoint("rows_opened")
            self._due()

    def _show(self, reveals: Sequence[BatchReveal]) -> None:
        """Send opened rows, as many as fit together in one message."""
        together: list[BatchReveal] = []
        size_bytes = 0
        for reveal in reveals:
            more_bytes = len(reveal.rows) + len(reveal.subjects)
            if together and (size_bytes + more_bytes > REVEAL_BYTES or len(together) == MAX_REVEALS):
                self._broadcast(Reveal(reveals=tuple(together)))
                together, size_bytes = [], 0
            together.append(reveal)
            size_bytes += more_bytes
        if together:
            self._broadcast(Reveal(reveals=tuple(together)))

    def _take(self, body: Commit | Reveal) -> None:
        """Into the pool; then something of ours may be opened, or a block be due."""
        if isinstance(body, Commit):
            new = self._observations.add_commit(body.signed)
        else:
            new = False
            for reveal in body.reveals:
                new |= self._observations.add_reveal(reveal)
        if new:
            self._opening.set()
            self._due()

    def _report(self, validator: Address, late: int, uncommitted: int) -> None:
        """Say so where a validator may have copied."""
        if late or uncommitted:
            log.warning("observation_suspect validator=%s late=%d uncommitted=%d", hex0x(validator), late, uncommitted)
            self._context.events.emit(
                "observation_suspect", validator=hex0x(validator), late=late, uncommitted=uncommitted
            )

    async def _resend(self) -> None:
        while True:
            if not self._batches:
                self._held = trio.Event()
                await self._held.wait()
            await trio.sleep(RESEND_S)
            now = trio.current_time()
            if self._batches.give_up(now):
                self._came.set()
            for batch in self._batches.take_due(now):
                self._say_again(batch)

    def _say_again(self, batch: OwnBatch) -> None:
        try:
            self._take(Commit(signed=batch.signed))  # our own pool may have dropped it too
        except PeerFault as error:
            log.error("own_batch_refused number=%d error=%s", batch.signed.commit.number, error)
            return
        self._broadcast(Commit(signed=batch.signed))
        shown = [
            batch.rows[record] for record in batch.open if record in batch.rows and self._observations.shown(record)
        ]
        if shown:
            self._show([_reveal(batch, shown)])

    def _broadcast(self, body: ObservationBody) -> None:
        payload = encode_observation(body)
        for validator in self._ledger.terms.validators.members:
            if validator != self._context.address:
                self._share(validator, payload)


def _reveal(batch: OwnBatch, rows: Sequence[Opened]) -> BatchReveal:
    return reveal_of(batch.signed.commit, sorted(rows, key=lambda opened: opened[1].position))


def printable(reason: str) -> str:
    """A reason as an abstention may carry it: short, and nothing but printable ASCII.

    >>> printable("the rubric's encoder is 02\\n…")
    "the rubric's encoder is 02??"
    """
    text = "".join(char if " " <= char <= "~" else "?" for char in reason)
    return text[:MAX_REASON_CHARS] or "no reason given"
