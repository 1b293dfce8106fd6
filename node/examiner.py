"""A validator's desk: takes submitted records, scores them with the rubric's models, signs and shares observations.

The submit protocol lets in members' own records only, within their slots. Observations are sent again until the record
is certified, because a validator that restarts has forgotten them.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from nsllm import canonical
from nsllm.consensus.observation import Observation, SignedObservation, sign_observation
from nsllm.errors import EncodingError, NsllmError, PeerFault
from nsllm.governance.hybrid_score import HybridScorer
from nsllm.governance.ledger import Ledger
from nsllm.ids import Address, Digest, hex0x, short
from nsllm.node.context import PeerContext
from nsllm.record import SignedRecord, request_key

log = logging.getLogger(__name__)

DESK_LIMIT: Final = 512
"""Records that wait to be scored or to be certified; beyond it submissions are refused."""
GENERATOR_LIMIT: Final = 128
"""Of these, records of one generator: one that floods crowds out its own records, not the others'."""
DESK_BYTES: Final = 64 * 1024 * 1024
SCORE_DEADLINE_S: Final = 60.0
RESEND_S: Final = 2.0
RESEND_CAP_S: Final = 10.0
"""Observations go out again after `RESEND_S`, then after twice as long each time, up to this."""
RESEND_AT_ONCE: Final = 64
"""The links to the other validators carry votes too, and drop their oldest message when they are full."""
GIVE_UP_S: Final = 600.0
MAX_OBSERVATION_BYTES: Final = 8192


@dataclass(slots=True)
class _Case:
    signed: SignedRecord
    size_bytes: int
    since: float
    observation: SignedObservation | None = None
    pause_s: float = RESEND_S
    resend_at: float = 0.0


class Examiner:
    """Scores records and gossips observations to the other validators over direct streams."""

    def __init__(
        self,
        *,
        context: PeerContext,
        scorer: HybridScorer,
        ledger: Ledger,
        share: Callable[[Address, bytes], None],
        due: Callable[[], None],
    ) -> None:
        """Begin with an empty desk.

        Args:
            context: who we are.
            scorer: computes the rubric's dimensions.
            ledger: pool of observations and the certified records.
            share: queues an observation for one validator; never waits.
            due: tells the consensus driver that a block may be due.
        """
        self._context = context
        self._scorer = scorer
        self._ledger = ledger
        self._share = share
        self._due = due
        self._cases: OrderedDict[Digest, _Case] = OrderedDict()
        self._desk_bytes = 0
        self._turns: OrderedDict[Address, dict[Digest, None]] = OrderedDict()
        """Records to be scored by generator; the first generator is next."""
        self._held: Counter[Address] = Counter()
        self._came = trio.Event()

    def accept(self, signed: SignedRecord) -> str | None:
        """Take a record; None if it is on the desk (also if it was before), else the reason of the refusal."""
        if not self._context.is_validator:
            return "this peer does not validate in the present epoch"
        digest = signed.record.digest()
        if digest in self._cases or self._ledger.is_certified(digest):
            return None
        size_bytes = len(canonical.encode(signed))
        reason = self._refusal(signed, size_bytes)
        if reason is not None:
            generator = hex0x(signed.record.generator)
            self._context.events.emit("record_rejected", record=short(digest), generator=generator, reason=reason)
            return reason
        self._cases[digest] = _Case(signed, size_bytes, trio.current_time())
        self._desk_bytes += size_bytes
        self._held[signed.record.generator] += 1
        self._turns.setdefault(signed.record.generator, {})[digest] = None
        self._came.set()
        return None

    def _refusal(self, signed: SignedRecord, size_bytes: int) -> str | None:
        try:
            signed.check(self._context.network_id)
        except PeerFault as error:
            return error.message
        if len(self._cases) >= DESK_LIMIT or self._desk_bytes + size_bytes > DESK_BYTES:
            return f"{len(self._cases)} records are waiting already; submit again later"
        if self._held[signed.record.generator] >= GENERATOR_LIMIT:
            return f"{GENERATOR_LIMIT} of your records are waiting already; submit again later"
        return None

    def hear(self, sender: Address, payload: bytes) -> None:
        """Take another validator's observation.

        Raises:
            PeerFault: malformed, or not its signer's.
        """
        signed = canonical.decode(payload, SignedObservation, limit_bytes=MAX_OBSERVATION_BYTES)
        if signed.observation.validator != sender:
            raise EncodingError(f"observation of {hex0x(signed.observation.validator)} sent by {hex0x(sender)}")
        if self._ledger.add_observation(signed):
            self._due()

    def release(self, record: Digest) -> SignedRecord | None:
        """Take a certified record off the desk."""
        case = self._drop(record)
        return case.signed if case is not None else None

    def waiting(self) -> int:
        """Records on the desk."""
        return len(self._cases)

    async def run(self) -> None:
        """Score and share until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._score_all)
            nursery.start_soon(self._resend)

    async def _score_all(self) -> None:
        while True:
            digest = await self._next()
            case = self._cases[digest]
            if self._ledger.is_certified(digest):
                self._drop(digest)
                continue
            try:
                with trio.fail_after(SCORE_DEADLINE_S):
                    observation = await self._observe(digest, case.signed)
                self._ledger.add_observation(observation)
            except (NsllmError, trio.TooSlowError) as error:
                # our engine's trouble, not the record's: abstain, the others have a quorum without us
                self._context.events.emit("abstained", record=short(digest), reason=str(error) or "too slow")
                self._drop(digest)
                continue
            if self._cases.get(digest) is not case:
                continue  # certified meanwhile
            case.observation = observation
            case.resend_at = trio.current_time() + case.pause_s
            self._broadcast(observation)
            self._due()

    async def _next(self) -> Digest:
        """The oldest record of the generator whose turn it is."""
        while not self._turns:
            self._came = trio.Event()
            await self._came.wait()
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
        self._desk_bytes -= case.size_bytes
        self._held[generator] -= 1
        if not self._held[generator]:
            del self._held[generator]
        records = self._turns.get(generator, {})
        records.pop(digest, None)
        if not records:
            self._turns.pop(generator, None)
        return case

    async def _observe(self, digest: Digest, signed: SignedRecord) -> SignedObservation:
        record = signed.record
        observation = Observation(
            record=digest,
            generator=record.generator,
            request_key=request_key(self._context.network_id, record.request),
            rubric=self._scorer.rubric.digest(),
            validator=self._context.address,
            scores=await self._scorer.observe(record),
        )
        self._context.events.emit("scored", record=short(digest))
        return sign_observation(self._context.key, self._context.network_id, observation)

    def _broadcast(self, observation: SignedObservation) -> None:
        payload = canonical.encode(observation)
        for validator in self._context.validators.members:
            if validator != self._context.address:
                self._share(validator, payload)

    async def _resend(self) -> None:
        while True:
            await trio.sleep(RESEND_S)
            now = trio.current_time()
            sent = 0
            for digest, case in list(self._cases.items()):
                if self._ledger.is_certified(digest) or now - case.since > GIVE_UP_S:
                    self._drop(digest)
                elif case.observation is not None and case.resend_at <= now and sent < RESEND_AT_ONCE:
                    sent += 1
                    case.pause_s = min(2 * case.pause_s, RESEND_CAP_S)
                    case.resend_at = now + case.pause_s
                    self._cases.move_to_end(digest)
                    self._ledger.add_observation(case.observation)
                    self._broadcast(case.observation)
