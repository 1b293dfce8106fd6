"""A validator's desk: takes submitted records and scores them with the rubric's models, or says why it will not.

The submit protocol lets in members' own records only, within their slots. What is found goes to the committer
(`nsllm.node.committer`); the record stays on the desk until a block settles it.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from nsllm.consensus.observation import Subject
from nsllm.errors import NsllmError, PeerFault
from nsllm.governance.block_rules import SETTLED_MS
from nsllm.governance.errors import AbstainError
from nsllm.governance.hybrid_score import HybridScorer, Observed
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
"""What is scored in one go takes at most so long."""
DEADLINE_SPARE_S: Final = 1.0
"""So much later it may be: to set another deadline for each record costs more than it is worth."""
TOGETHER_S: Final = 0.1
"""Records that are scored in about this time are scored together: models are asked once for all of them."""
MOST_TOGETHER: Final = 16
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
    alone: bool = False
    """Whether it is scored by itself: together with others it failed."""


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
        self._at: tuple[Sequence[Digest], Rubric] | None = None
        """What is being scored, and under which rubric."""
        self._together = 1
        """Records that are scored in one go; the first one shows how long they take."""

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
            case.tries, case.alone = 0, False
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
                self._failed(*self._at, "too slow", again=False)

    async def _score_each(self, patience: trio.CancelScope) -> None:
        """Score until records take too long, which ends `patience`; its end moves, as a scope a record costs more."""
        while not patience.cancel_called:
            if not self._turns:
                patience.deadline = math.inf
                await self._wait()
            digests, rubric, began = self._next(), self._context.policy.rubric, _renew(patience)
            records = [self._cases[digest].signed.record for digest in digests]
            self._at = (digests, rubric)
            try:
                found = await self._scorer.observe(records, rubric) if records else []
            except AbstainError as error:
                found = [error] * len(digests)
            except NsllmError as error:
                # our engine's trouble, not the record's; what it says may name our paths
                self._failed(digests, rubric, error.code, again=True)
                found, patience.deadline = [], math.inf
                await trio.sleep(RETRY_S)
            self._at = None
            if found:
                self._told(digests, rubric, found)
                took_s = (trio.current_time() - began) / len(found)
                self._together = 1 + int(min(MOST_TOGETHER - 1, TOGETHER_S / max(took_s, 1e-9)))

    def _told(self, digests: Sequence[Digest], rubric: Rubric, found: Sequence[Observed | AbstainError]) -> None:
        """Hand on what was found."""
        if rubric != self._context.policy.rubric:  # they wait in line again, see `follow`
            return
        for digest, observed in zip(digests, found, strict=True):
            case = self._cases.get(digest)
            if isinstance(observed, AbstainError):
                self._abstain(digest, observed.message)
            elif case is not None:  # else others have settled it meanwhile
                record = case.signed.record
                for name, reason in observed.missing.items():
                    log.info("dimension_left_out record=%s dimension=%s reason=%s", short(digest), name, reason)
                subject = Subject(digest, record.generator, record.key())
                self._committer.observed(subject, observed.row, more=bool(self._turns))

    def _failed(self, digests: Sequence[Digest], rubric: Rubric, reason: str, *, again: bool) -> None:
        """Records could not be scored, maybe for one of them: several are tried again, each by itself."""
        if rubric != self._context.policy.rubric:  # they wait in line again, see `follow`
            return
        for digest in digests:
            case = self._cases.get(digest)
            if case is None:
                continue
            case.alone = True
            case.tries += len(digests) == 1
            if len(digests) > 1 or (again and case.tries < TRIES):
                self._line_up(digest, case.signed.record.generator)
            else:
                self._abstain(digest, reason)

    def _abstain(self, digest: Digest, reason: str) -> None:
        """Say that we will not score it, and why: the others have a quorum without us, or know that there is none."""
        self._context.events.emit("abstained", record=short(digest), reason=reason)
        self._committer.abstained(digest, reason, more=bool(self._turns))

    async def _wait(self) -> None:
        while not self._turns:
            self._came = trio.Event()
            await self._came.wait()

    def _next(self) -> list[Digest]:
        """The oldest record of the generator whose turn it is, and of the next ones, as many as are scored together."""
        taken: list[Digest] = []
        while self._turns and len(taken) < self._together:
            generator, records = next(iter(self._turns.items()))
            digest = next(iter(records))
            case = self._cases[digest]
            if case.alone and taken:
                break
            del self._turns[generator], records[digest]
            if records:
                self._turns[generator] = records
            if self._ledger.is_settled(digest):
                self._drop(digest)
                continue
            taken.append(digest)
            if case.alone:
                break
        return taken

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


def _renew(patience: trio.CancelScope) -> float:
    """Other records have their `SCORE_DEADLINE_S` from now on; returns now."""
    now = trio.current_time()
    if not SCORE_DEADLINE_S <= patience.deadline - now <= SCORE_DEADLINE_S + DEADLINE_SPARE_S:
        patience.deadline = now + SCORE_DEADLINE_S + DEADLINE_SPARE_S
    return now
