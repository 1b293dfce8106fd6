"""A validator's desk: takes submitted records, scores them with the rubric's models, signs and shares observations.

The submit protocol lets in members' own records only, within their slots. Observations are sent again until the record
is certified, because a validator that restarts has forgotten them.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
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
SCORE_DEADLINE_S: Final = 60.0
RESEND_S: Final = 2.0
GIVE_UP_S: Final = 600.0
MAX_OBSERVATION_BYTES: Final = 8192


@dataclass(slots=True)
class _Case:
    signed: SignedRecord
    since: float
    observation: SignedObservation | None = None


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
        self._send, self._queue = trio.open_memory_channel[Digest](DESK_LIMIT)

    def accept(self, signed: SignedRecord) -> str | None:
        """Take a record; None if it is on the desk (also if it was before), else the reason of the refusal."""
        record = signed.record
        digest = record.digest()
        if digest in self._cases:
            return None
        try:
            signed.check(self._context.network_id)
        except PeerFault as error:
            return error.message
        if len(self._cases) >= DESK_LIMIT:
            return f"{DESK_LIMIT} records are waiting already; submit again later"
        self._cases[digest] = _Case(signed, trio.current_time())
        self._send.send_nowait(digest)
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
        case = self._cases.pop(record, None)
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
        async for digest in self._queue:
            case = self._cases.get(digest)
            if case is None or self._ledger.is_certified(digest):
                self._cases.pop(digest, None)
                continue
            try:
                with trio.fail_after(SCORE_DEADLINE_S):
                    case.observation = await self._observe(digest, case.signed)
            except (NsllmError, trio.TooSlowError) as error:
                # our engine's trouble, not the record's: abstain, the others have a quorum without us
                self._context.events.emit("abstained", record=short(digest), reason=str(error) or "too slow")
                self._cases.pop(digest, None)
                continue
            self._ledger.add_observation(case.observation)
            self._broadcast(case.observation)
            self._due()

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
            for digest in list(self._cases):
                case = self._cases[digest]
                if self._ledger.is_certified(digest) or now - case.since > GIVE_UP_S:
                    del self._cases[digest]
                elif case.observation is not None:
                    self._ledger.add_observation(case.observation)
                    self._broadcast(case.observation)
