"""A record's life at its generator: submitted to the validators, certified, pushed to the holders of its shards.

Records are on disk (`Completions`) before they are submitted, so publication survives a restart. A record that nobody
scores within `EXPIRY_S` expires.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from nsllm.consensus.certified import CertifiedRecord
from nsllm.errors import NsllmError
from nsllm.governance.errors import MissedError, UnscoredError
from nsllm.governance.proofs import Proofs
from nsllm.ids import Address, Digest, hex0x, short
from nsllm.node.completions import Completions
from nsllm.node.context import PeerContext
from nsllm.node.examiner import Examiner
from nsllm.node.missed_scores import find_scores
from nsllm.node.scope import Scope, ScopeOf
from nsllm.p2p.errors import RefusedError, UnreachableError
from nsllm.p2p.protocols.sealed import NOT_IN_GROUP
from nsllm.record import SignedRecord

log = logging.getLogger(__name__)

PENDING_LIMIT: Final = 1024
"""Records on their way at the same time; more wait on disk."""
EXPIRY_S: Final = 600.0
RETRY_S: Final = 3.0
"""A validator that did not answer is asked again after this long, while the record has no certificate. Refusals double
it, up to `OFFER_AGAIN_S`."""
OFFER_AGAIN_S: Final = 30.0
"""A validator that took the record is offered it again after this long: it may have restarted and forgotten it."""
SUBMIT_DEADLINE_S: Final = 5.0
PUSH_DEADLINE_S: Final = 5.0
PUSH_TRIES: Final = 5


class Publisher:
    """Carries this peer's records to the validators and, once certified, to their holders."""

    def __init__(
        self,
        *,
        context: PeerContext,
        completions: Completions,
        proofs: Proofs,
        scope_of: ScopeOf,
        examiner: Examiner | None,
    ) -> None:
        self._context = context
        self._completions = completions
        self._proofs = proofs
        self._scope_of = scope_of
        self._examiner = examiner
        self._carried: dict[Digest, None] = {}
        self._waiting: deque[SignedRecord] = deque()
        self._left_on_disk = False
        self._wake = trio.Event()

    def publish(self, signed: SignedRecord) -> None:
        """Take a record that `Completions` holds; never waits. Beyond the limit it is taken up from disk later."""
        digest = signed.record.digest()
        if digest in self._carried:
            return
        if len(self._carried) >= PENDING_LIMIT:
            self._left_on_disk = True
            return
        self._carried[digest] = None
        self._waiting.append(signed)
        self._wake.set()

    def pending(self) -> int:
        """Records on their way, from publication to the last holder."""
        return len(self._carried)

    async def run(self) -> None:
        """Publish until cancelled; begins with what was pending at the last stop."""
        self._left_on_disk = True
        async with trio.open_nursery() as nursery:
            while True:
                if self._left_on_disk and len(self._carried) < PENDING_LIMIT:
                    await self._take_up()
                while self._waiting:
                    nursery.start_soon(self._carry, self._waiting.popleft())
                self._wake = trio.Event()
                await self._wake.wait()

    async def _take_up(self) -> None:
        """Records that stand on disk only."""
        try:
            found = await self._completions.unpublished(PENDING_LIMIT)
        except NsllmError as error:
            self._failed(None, error)
            return
        self._left_on_disk = len(found) == PENDING_LIMIT  # there may be more
        for completion in found:
            if completion.signed is not None:
                self.publish(completion.signed)

    async def _carry(self, signed: SignedRecord) -> None:
        """One record to its end. Trouble of our own (a full disk) is told, and tried again until the record expires."""
        digest = signed.record.digest()
        expires_s = trio.current_time() + EXPIRY_S
        try:
            while True:
                if await self._settled(digest, signed, expires_s) or trio.current_time() >= expires_s:
                    return
                await trio.sleep(OFFER_AGAIN_S)
        finally:
            del self._carried[digest]
            if self._left_on_disk:
                self._wake.set()

    async def _settled(self, digest: Digest, signed: SignedRecord, expires_s: float) -> bool:
        """False if something of our own failed."""
        try:
            certified = await self._certified(digest, signed, expires_s)
            if isinstance(certified, MissedError):
                return await self._asked_for(signed, certified, expires_s)
            if certified is None:
                await self._completions.settle(digest, "none", f"no quorum scored it within {EXPIRY_S:.0f} s: expired")
                self._context.events.emit("record_expired", record=short(digest))
                return True
            if isinstance(certified, UnscoredError):
                await self._completions.settle(digest, "none", certified.message)
                self._context.events.emit("record_unscored", record=short(digest))
                return True
            await self._completions.settle(digest, "certified", "")
        except NsllmError as error:
            self._failed(digest, error)
            return False
        self._context.events.emit(
            "certified",
            record=short(digest),
            height=certified.certificate.header.height,
            score_ppm=self._context.score_of(certified.leaf, certified.certificate.header.epoch),
            signers=len(certified.certificate.precommits),
        )
        await self.spread(certified)
        return True

    async def _asked_for(self, signed: SignedRecord, missed: MissedError, expires_s: float) -> bool:
        """Ask the record's holders for the scores that a block gave it which was never here. False: ask again later."""
        digest, scope = signed.record.digest(), self._scope_of(signed)
        found = await find_scores(self._context, scope, signed) if scope is not None else None
        if found is not None:
            await self._completions.settle(digest, "certified", "", found)
            self._context.events.emit("scores_found", record=short(digest), height=found.certificate.header.height)
        elif trio.current_time() + OFFER_AGAIN_S >= expires_s:
            await self._completions.settle(digest, "none", f"{missed.message}, and none of its holders has it")
            self._context.events.emit("record_unscored", record=short(digest))
        else:
            return False
        return True

    async def _certified(
        self, digest: Digest, signed: SignedRecord, expires_s: float
    ) -> CertifiedRecord | UnscoredError | MissedError | None:
        """Offer the record to every validator until a block settles it; None if none has by `expires_s`."""
        certified: CertifiedRecord | None = None
        failure: NsllmError | None = None
        scope = self._scope_of(signed)
        if scope is None:
            return UnscoredError(f"record {hex0x(digest)} is of a group that this peer has left")
        outside: set[Address] = set()
        validators = self._context.validators

        def not_in_group(validator: Address) -> None:
            nonlocal failure
            outside.add(validator)
            if len(outside) > validators.size - validators.enough_observations:
                failure = UnscoredError(
                    f"{len(outside)} of {validators.size} validators are not in the group;"
                    f" {validators.enough_observations} must be, to certify its records"
                )
                nursery.cancel_scope.cancel()

        with trio.move_on_at(expires_s):
            async with trio.open_nursery() as nursery:
                for validator in validators.members:
                    nursery.start_soon(self._submit, validator, scope, signed, not_in_group)
                try:
                    certified = await self._proofs.wait_certified(signed)
                except NsllmError as error:
                    failure = error
                nursery.cancel_scope.cancel()
        if isinstance(failure, UnscoredError | MissedError):
            return failure
        if failure is not None:
            raise failure
        return certified

    async def _submit(
        self, validator: Address, scope: Scope, signed: SignedRecord, not_in_group: Callable[[Address], None]
    ) -> None:
        """Offer the record to one validator until cancelled, which the certificate does."""
        digest = signed.record.digest()
        refused: str | None = None
        pause_s = RETRY_S
        while True:
            try:
                reason = await self._offer(validator, scope, signed)
            except (NsllmError, trio.TooSlowError) as error:
                log.info("submit_failed validator=%s record=%s error=%s", hex0x(validator), short(digest), error)
                pause_s = RETRY_S
            else:
                pause_s = OFFER_AGAIN_S if reason is None else min(2 * pause_s, OFFER_AGAIN_S)
                if reason is not None and reason != refused:
                    self._context.events.emit(
                        "submission_refused", record=short(digest), validator=hex0x(validator), reason=reason
                    )
                refused = reason
                if reason == NOT_IN_GROUP:
                    not_in_group(validator)
            await trio.sleep(pause_s)

    async def _offer(self, validator: Address, scope: Scope, signed: SignedRecord) -> str | None:
        """None if the validator has the record on its desk now, else why not."""
        if validator == self._context.address and self._examiner is not None:
            return self._examiner.accept(signed)
        peer = scope.shelves.peer_of(validator)
        if peer is None:
            return f"{hex0x(validator)} is no member"
        with trio.fail_after(SUBMIT_DEADLINE_S):
            return await scope.submissions.submit(peer, signed)

    async def spread(self, certified: CertifiedRecord) -> int:
        """Push a certified record to its holders, all at once; returns how many acknowledged it."""
        acknowledged = 0
        scope = self._scope_of(certified.signed)
        if scope is None or self._context.retracted_at(certified.leaf.record) is not None:
            return acknowledged

        async def push(holder: Address) -> None:
            nonlocal acknowledged
            if await self._push(holder, scope, certified):
                acknowledged += 1

        if scope.group is not None:
            await self._keep(scope, certified)
        async with trio.open_nursery() as nursery:
            for address in scope.cache.holders_of_record(certified):
                nursery.start_soon(push, address)
        self._context.events.emit("record_spread", record=short(certified.leaf.record), holders=acknowledged)
        return acknowledged

    async def _keep(self, scope: Scope, certified: CertifiedRecord) -> None:
        """A group's record stays with who made it, wherever placement puts its envelope."""
        try:
            await scope.cache.hold(certified)
        except NsllmError as error:
            self._failed(certified.leaf.record, error)

    async def _push(self, holder: Address, scope: Scope, certified: CertifiedRecord) -> bool:
        """True once the holder acknowledged. What stays away after the last try is the validators' keepers' care."""
        for attempt in range(PUSH_TRIES):
            try:
                with trio.fail_after(PUSH_DEADLINE_S):
                    await self._store_at(holder, scope, certified)
            except RefusedError as error:
                self._context.events.emit(
                    "push_refused", record=short(certified.leaf.record), holder=hex0x(holder), reason=error.message
                )
                return False
            except (NsllmError, trio.TooSlowError) as error:
                log.info("push_failed holder=%s error=%s", hex0x(holder), error)
            else:
                return True
            await trio.sleep(2.0**attempt)
        return False

    async def _store_at(self, holder: Address, scope: Scope, certified: CertifiedRecord) -> None:
        if holder == self._context.address:
            await scope.cache.hold(certified)
            return
        peer = scope.shelves.peer_of(holder)
        if peer is None:
            raise UnreachableError(f"{hex0x(holder)} is no member")
        await scope.shelves.push(peer, certified)

    def _failed(self, digest: Digest | None, error: NsllmError) -> None:
        record = short(digest) if digest is not None else None
        log.error("publish_failed record=%s error=%s", record, error)
        self._context.events.emit("publish_failed", record=record, code=error.code)
