"""A record's life at its generator: submitted to the validators, certified, pushed to the holders of its shards.

Records are on disk (`Completions`) before they are submitted, so publication survives a restart. A record that nobody
scores within `EXPIRY_S` expires.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Final, Protocol

import trio

from nsllm.consensus.certified import CertifiedRecord
from nsllm.errors import NsllmError
from nsllm.governance.ledger import Ledger
from nsllm.ids import Address, Digest, PeerId, short
from nsllm.node.completions import Completions
from nsllm.node.context import PeerContext
from nsllm.node.examiner import Examiner
from nsllm.node.federated_cache import FederatedCache, Shelves
from nsllm.p2p.errors import RefusedError
from nsllm.record import SignedRecord

log = logging.getLogger(__name__)

PENDING_LIMIT: Final = 1024
EXPIRY_S: Final = 600.0
RETRY_S: Final = 3.0
"""A validator that did not answer or refused is asked again after this long, while the record has no certificate."""
OFFER_AGAIN_S: Final = 30.0
"""A validator that took the record is offered it again after this long: it may have restarted and forgotten it."""
SUBMIT_DEADLINE_S: Final = 5.0
PUSH_DEADLINE_S: Final = 5.0
PUSH_TRIES: Final = 5


class Submissions(Protocol):
    """Other validators' ears, over the submit protocol."""

    async def submit(self, validator: PeerId, signed: SignedRecord) -> str | None:
        """None if accepted, else the refusal's reason. Raises `NetworkError`."""
        ...


class Publisher:
    """Carries this peer's records to the validators and, once certified, to their holders."""

    def __init__(
        self,
        *,
        context: PeerContext,
        completions: Completions,
        ledger: Ledger,
        cache: FederatedCache,
        shelves: Shelves,
        submissions: Submissions,
        examiner: Examiner | None,
    ) -> None:
        self._context = context
        self._completions = completions
        self._ledger = ledger
        self._cache = cache
        self._shelves = shelves
        self._submissions = submissions
        self._examiner = examiner
        self._waiting: OrderedDict[Digest, SignedRecord] = OrderedDict()
        self._wake = trio.Event()

    def publish(self, signed: SignedRecord) -> None:
        """Take a record that `Completions` holds; never waits. Beyond the limit it is taken up again from disk."""
        if len(self._waiting) < PENDING_LIMIT:
            self._waiting[signed.record.digest()] = signed
            self._wake.set()

    def pending(self) -> int:
        """Records on their way that were not started yet."""
        return len(self._waiting)

    async def run(self) -> None:
        """Publish until cancelled; begins with what was pending at the last stop."""
        for completion in await self._completions.unpublished(PENDING_LIMIT):
            if completion.signed is not None:
                self.publish(completion.signed)
        async with trio.open_nursery() as nursery:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                while self._waiting:
                    digest, signed = self._waiting.popitem(last=False)
                    nursery.start_soon(self._carry, digest, signed)

    async def _carry(self, digest: Digest, signed: SignedRecord) -> None:
        certified: CertifiedRecord | None = None
        with trio.move_on_after(EXPIRY_S):
            async with trio.open_nursery() as nursery:
                for validator in self._context.validators.members:
                    nursery.start_soon(self._submit, validator, digest, signed)
                certified = await self._ledger.wait_certified(signed)
                nursery.cancel_scope.cancel()
        if certified is None:
            await self._completions.settle(digest, "none", f"no quorum scored it within {EXPIRY_S:.0f} s: expired")
            self._context.events.emit("record_expired", record=short(digest))
            return
        await self._completions.settle(digest, "certified", "")
        self._context.events.emit(
            "certified",
            record=short(digest),
            height=certified.certificate.header.height,
            score_ppm=self._context.policy.hybrid_ppm(certified.leaf),
            signers=len(certified.certificate.precommits),
        )
        await self.spread(certified)

    async def _submit(self, validator: Address, digest: Digest, signed: SignedRecord) -> None:
        """Offer the record to one validator until cancelled, which the certificate does."""
        if validator == self._context.address and self._examiner is not None:
            self._examiner.accept(signed)
            return
        while True:
            pause_s = RETRY_S
            peer = self._shelves.peer_of(validator)
            if peer is not None:
                try:
                    with trio.fail_after(SUBMIT_DEADLINE_S):
                        reason = await self._submissions.submit(peer, signed)
                except (NsllmError, trio.TooSlowError) as error:
                    log.info("submit_failed validator=%s record=%s error=%s", peer, short(digest), error)
                else:
                    if reason is None:
                        pause_s = OFFER_AGAIN_S
                    else:
                        self._context.events.emit("submission_refused", record=short(digest), reason=reason)
            await trio.sleep(pause_s)

    async def spread(self, certified: CertifiedRecord) -> int:
        """Push a certified record to its holders; returns how many acknowledged it."""
        acknowledged = 0
        for address in self._cache.holders_of_record(certified):
            if await self._push(address, certified):
                acknowledged += 1
        self._context.events.emit("record_spread", record=short(certified.leaf.record), holders=acknowledged)
        return acknowledged

    async def _push(self, holder: Address, certified: CertifiedRecord) -> bool:
        if holder == self._context.address:
            await self._cache.hold(certified)
            return True
        for attempt in range(PUSH_TRIES):
            peer = self._shelves.peer_of(holder)
            if peer is not None:
                try:
                    with trio.fail_after(PUSH_DEADLINE_S):
                        await self._shelves.push(peer, certified)
                except RefusedError as error:
                    log.warning("push_refused holder=%s error=%s", peer, error)
                    return False
                except (NsllmError, trio.TooSlowError) as error:
                    log.info("push_failed holder=%s error=%s", peer, error)
                else:
                    return True
            await trio.sleep(2.0**attempt)
        return False
