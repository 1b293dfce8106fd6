"""A validator's desk: takes submitted records and scores them with the rubric's models, or says why it will not.

The submit protocol lets in members' own records only, within their slots. What is found goes to the committer
(`nsllm.node.committer`); the record stays on the desk until a block settles it.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Final

import trio

from nsllm.consensus.observation import Subject
from nsllm.errors import NsllmError, PeerFault
from nsllm.governance.block_rules import SETTLED_MS
from nsllm.governance.errors import AbstainError
from nsllm.governance.hybrid_score import HybridScorer
from nsllm.governance.ledger import Ledger
from nsllm.governance.policy import Rubric
from nsllm.ids import Address, Digest, hex0x, short
from nsllm.node.committer import Committer
from nsllm.node.context import PeerContext
from nsllm.passages import check_evidence
from nsllm.record import SignedRecord

log = logging.getLogger(__name__)

DESK_LIMIT: Final = 2048
"""Records that wait to be scored or to be certified; beyond it submissions are refused."""
GENERATOR_LIMIT: Final = 512
"""Of these, records of one generator: one that floods crowds out its own records, not the others'."""
DESK_BYTES: Final = 64 * 1024 * 1024
SCORE_DEADLINE_S: Final = 60.0
DEADLINE_SPARE_S: Final = 1.0
"""So much later it may be: to set another deadline for each record costs more than it is worth."""
TRIES: Final = 3
"""An engine that fails, such as one that is being started again, is asked so often before we abstain."""
RETRY_S: Final = 1.0
SWEEP_S: Final = 5.0
MAX_AGE_MS: Final = SETTLED_MS // 2
"""A record that was made longer ago (or so far ahead) is not scored: whether it was before may be forgotten."""
GIVE_UP_S: Final = 600.0


@dataclass(slots=True)
class _Case:
    signed: SignedRecord
    since: float
    tries: int = 0


class Examiner:
    """Scores records in turns; its word goes out through the committer."""

    def __init__(
        self,
        *,
        context: PeerContext,
        scorer: HybridScorer,
        ledger: Ledger,
        committer: Committer,
    ) -> None:
        """Begin with an empty desk.

        Args:
            context: who we are.
            scorer: computes the rubric's dimensions.
            ledger: knows what is settled.
            committer: takes what is found.
        """
        self._context = context
        self._scorer = scorer
        self._ledger = ledger
        self._committer = committer
        self._cases: OrderedDict[Digest, _Case] = OrderedDict()
        self._desk_bytes = 0
        self._turns: OrderedDict[Address, dict[Digest, None]] = OrderedDict()
        """Records to be scored by generator; the first generator is next."""
        self._held: Counter[Address] = Counter()
        self._came = trio.Event()
        self._laid = trio.Event()
        """Set when something lies on the desk."""
        self._rubric = context.policy.rubric
        self._at: tuple[Digest, Rubric] | None = None
        """What is being scored, and under which rubric."""

    def lacks(self) -> str | None:
        """Why this peer scores nothing under the rubric in force, for people; None if it does, or does not validate."""
        return self._scorer.lacks(self._context.policy.rubric) if self._context.is_validator else None

    def follow(self) -> None:
        """Another rubric may be in force: what is on the desk is scored anew then."""
        rubric = self._context.policy.rubric
        if rubric == self._rubric:
            return
        self._rubric = rubric
        for digest, case in self._cases.items():
            case.tries = 0
            self._line_up(digest, case.signed.record.generator)
        reason, name = self.lacks(), rubric.digest()
        if reason is None:
            log.info("rubric_changed rubric=%s", short(name))
        else:
            log.warning("rubric_changed rubric=%s abstaining=%s", short(name), reason)
        self._context.events.emit("rubric_changed", rubric=hex0x(name), lacks=reason)

    def accept(self, signed: SignedRecord) -> str | None:
        """Take a record; None if it is on the desk (also if it was before), else the reason of the refusal."""
        if not self._context.is_validator:
            return "this peer does not validate in the present epoch"
        digest = signed.record.digest()
        if digest in self._cases or self._ledger.is_settled(digest):
            return None
        reason = self._refusal(signed)
        if reason is not None:
            generator = hex0x(signed.record.generator)
            self._context.events.emit("record_rejected", record=short(digest), generator=generator, reason=reason)
            return reason
        self._cases[digest] = _Case(signed, trio.current_time())
        self._laid.set()
        self._desk_bytes += signed.size_bytes
        self._held[signed.record.generator] += 1
        if not self._committer.holds(digest):  # we may have restarted since we committed to it
            self._line_up(digest, signed.record.generator)
        return None

    def _line_up(self, digest: Digest, generator: Address) -> None:
        self._turns.setdefault(generator, {})[digest] = None
        self._came.set()

    def _refusal(self, signed: SignedRecord) -> str | None:
        try:
            signed.check(self._context.network_id)
            check_evidence(signed.record, self._context.network_id)
        except PeerFault as error:
            return error.message
        retracted = self._context.retracted_at(signed.record.digest())
        if retracted is not None:
            return f"it was revoked at height {retracted}"
        for cited in signed.record.evidence:
            if self._context.registry.get(cited.chunk.member) is None:
                return f"it cites a chunk of {hex0x(cited.chunk.member)}, who is no member"
        away_ms = abs(self._context.clock.now_ms() - signed.record.created_ms)
        if away_ms > MAX_AGE_MS:
            return f"made {away_ms // 1000} s away from our clock; at most {MAX_AGE_MS // 1000} s: ask again"
        return self._no_room(signed.record.generator, signed.size_bytes)

    def _no_room(self, generator: Address, size_bytes: int) -> str | None:
        if len(self._cases) >= DESK_LIMIT or self._desk_bytes + size_bytes > DESK_BYTES:
            return f"{len(self._cases)} records are waiting already; submit again later"
        if self._held[generator] >= GENERATOR_LIMIT:
            return f"{GENERATOR_LIMIT} of your records are waiting already; submit again later"
        return None

    def release(self, record: Digest) -> SignedRecord | None:
        """Take a settled record off the desk."""
        case = self._drop(record)
        return case.signed if case is not None else None

    def waiting(self) -> int:
        """Records on the desk."""
        return len(self._cases)

    async def run(self) -> None:
        """Score until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._score_all)
            nursery.start_soon(self._sweep)

    async def _score_all(self) -> None:
        while True:
            with trio.CancelScope() as patience:
                await self._score_each(patience)
            if self._at is not None:
                digest, rubric = self._at
                if rubric == self._context.policy.rubric:  # else it waits in line again, see `follow`
                    self._abstain(digest, "too slow")

    async def _score_each(self, patience: trio.CancelScope) -> None:
        """Score until a record takes too long, which ends `patience`; its end moves, as a scope a record costs more."""
        while not patience.cancel_called:
            if not self._turns:
                patience.deadline = math.inf
                await self._wait()
            digest = self._next()
            case = self._cases[digest]
            if self._ledger.is_settled(digest):
                self._drop(digest)
                continue
            case.tries += 1
            rubric = self._context.policy.rubric
            self._at = (digest, rubric)
            found, reason = None, ""
            _renew(patience)
            try:
                found = await self._observe(digest, case.signed, rubric)
                self._at = None
            except AbstainError as error:
                self._at = None
                reason = error.message
            except NsllmError as error:
                # our engine's trouble, not the record's; what it says may name our paths
                reason = error.code
                if case.tries < TRIES:
                    patience.deadline = math.inf
                    await trio.sleep(RETRY_S)
                    if self._cases.get(digest) is case:  # others may have settled it meanwhile
                        self._line_up(digest, case.signed.record.generator)
                    continue
            if rubric != self._context.policy.rubric:  # it waits in line again, see `follow`
                continue
            if found is None:
                self._abstain(digest, reason)
            else:
                self._committer.observed(*found, more=bool(self._turns))

    def _abstain(self, digest: Digest, reason: str) -> None:
        """Say that we will not score it, and why: the others have a quorum without us, or know that there is none."""
        self._context.events.emit("abstained", record=short(digest), reason=reason)
        self._committer.abstained(digest, reason, more=bool(self._turns))

    async def _wait(self) -> None:
        while not self._turns:
            self._came = trio.Event()
            await self._came.wait()

    def _next(self) -> Digest:
        """The oldest record of the generator whose turn it is."""
        generator, records = self._turns.popitem(last=False)
        digest = next(iter(records))
        del records[digest]
        if records:
            self._turns[generator] = records
        return digest

    def _drop(self, digest: Digest) -> _Case | None:
        case = self._cases.pop(digest, None)
        if case is None:
            return None
        generator = case.signed.record.generator
        self._desk_bytes -= case.signed.size_bytes
        self._held[generator] -= 1
        if not self._held[generator]:
            del self._held[generator]
        records = self._turns.get(generator, {})
        records.pop(digest, None)
        if not records:
            self._turns.pop(generator, None)
        return case

    async def _observe(self, digest: Digest, signed: SignedRecord, rubric: Rubric) -> tuple[Subject, tuple[int, ...]]:
        record = signed.record
        subject = Subject(digest, record.generator, record.key())
        observed = await self._scorer.observe(record, rubric)
        for name, reason in observed.missing.items():
            log.info("dimension_left_out record=%s dimension=%s reason=%s", short(digest), name, reason)
        return subject, observed.row

    async def _sweep(self) -> None:
        """Take off the desk what was settled without us or will never be."""
        while True:
            if not self._cases:
                self._laid = trio.Event()
                await self._laid.wait()
            await trio.sleep(SWEEP_S)
            now = trio.current_time()
            for digest, case in list(self._cases.items()):
                if self._ledger.is_settled(digest) or now - case.since > GIVE_UP_S:
                    self._drop(digest)


def _renew(patience: trio.CancelScope) -> None:
    """Another record has its `SCORE_DEADLINE_S` from now on."""
    now = trio.current_time()
    if not SCORE_DEADLINE_S <= patience.deadline - now <= SCORE_DEADLINE_S + DEADLINE_SPARE_S:
        patience.deadline = now + SCORE_DEADLINE_S + DEADLINE_SPARE_S
