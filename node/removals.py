"""Records that validators took back: deleted here as soon as a block says so; their holders are asked for proof.

A look-up refuses a revoked record from the height of its retraction on, deleted or not
(`nsllm.node.federated_cache`). Deleting needs the disk, so it is tried again until it is done; a peer that was away
deletes when it has caught up.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import trio

from nsllm.cache_dht.removal import Removal, SignedRemoval, sign_removal
from nsllm.consensus.certified import CertifiedRecord
from nsllm.consensus.registry import Member, Retraction
from nsllm.errors import NsllmError, PeerFault
from nsllm.governance.ledger import Ledger
from nsllm.ids import Address, Digest, Height, PeerId, hex0x, short
from nsllm.node.context import PeerContext

log = logging.getLogger(__name__)

RETRY_S: Final = 5.0
"""After a fault of our own disk."""
ASK_AT_ONCE: Final = 16
ASK_DEADLINE_S: Final = 5.0

Verdict = Literal["removed", "serves it", "no proof"]


class Shelf(Protocol):
    """Records on our disk."""

    async def erase(self, records: Sequence[Digest]) -> tuple[Digest, ...]:
        """Delete these, so that their bytes are overwritten; which of them were there. Raises `StoreError`."""
        ...

    async def holds(self, record: Digest) -> bool:
        """Whether the record is there. Raises `StoreError`."""
        ...


class Holders(Protocol):
    """Other members, over the removal and fetch protocols."""

    async def ask_removal(self, holder: PeerId, record: Digest) -> SignedRemoval:
        """Its signed word that it has no copy. Raises `NetworkError`."""
        ...

    async def fetch(self, holder: PeerId, key: Digest) -> CertifiedRecord | None:
        """What it has for a request key, unverified. Raises `NetworkError`."""
        ...

    def peer_of(self, member: Address) -> PeerId | None:
        """Present libp2p identity of a member."""
        ...


@dataclass(frozen=True, slots=True)
class HolderRow:
    """What one member that stores records says of a revoked one."""

    holder: Address
    verdict: Verdict
    detail: str
    """Why there is no proof."""
    statement: SignedRemoval | None


class Removals:
    """Deletes what was retracted, says so to whoever asks, and asks the others."""

    def __init__(self, *, context: PeerContext, ledger: Ledger, shelves: Sequence[Shelf], holders: Holders) -> None:
        """Nothing is deleted yet; `run` looks through everything that was ever retracted.

        Args:
            context: who we are, and what is retracted.
            ledger: knows scores and heights.
            shelves: where records are on our disk.
            holders: the other members.
        """
        self._context = context
        self._ledger = ledger
        self._shelves = shelves
        self._holders = holders
        self._done: tuple[Retraction, ...] = ()
        self._came = trio.Event()

    def decided(self) -> None:
        """A block was committed."""
        if self._context.registry.state.retracted is not self._done:
            self._came.set()

    async def run(self) -> None:
        """Delete until cancelled."""
        while True:
            wanted = self._context.registry.state.retracted
            if wanted is self._done or await self._erase(wanted):
                self._done = wanted
                await self._came.wait()
                self._came = trio.Event()
            else:
                await trio.sleep(RETRY_S)

    async def prove(self, record: Digest) -> SignedRemoval | str:
        """Our signed word that we have no copy of a revoked record, or why we cannot give it."""
        height = self._ledger.height
        retracted = self._context.retracted_at(record)
        if retracted is None:
            return f"record {short(record)} is not revoked as of height {height}"
        try:
            if any([await shelf.holds(record) for shelf in self._shelves]):
                return f"record {short(record)} is about to be deleted"
        except NsllmError as error:
            log.error("removal_unproved record=%s error=%s", short(record), error)
            return "cannot read the store now"
        removal = Removal(
            record=record,
            holder=self._context.address,
            retracted=retracted,
            height=height,
            time_ms=self._context.clock.now_ms(),
        )
        return sign_removal(self._context.key, self._context.network_id, removal)

    async def collect(self, record: Digest) -> tuple[HolderRow, ...]:
        """What every member that stores records says of a revoked one, ascending by address; nothing if it is not.

        Whoever says that it removed the record is looked up at as well, and its word counts for nothing if it still
        serves it.
        """
        retracted = self._context.retracted_at(record)
        if retracted is None:
            return ()
        found = await self._ledger.proofs.scores(record)
        key = found[0].request_key if found is not None else None
        rows: dict[Address, HolderRow] = {}
        places = trio.CapacityLimiter(ASK_AT_ONCE)

        async def ask(member: Member) -> None:
            async with places:
                rows[member.address] = await self._row(member.address, record, retracted, key)

        async with trio.open_nursery() as nursery:
            for member in self._context.registry.with_role("data"):
                nursery.start_soon(ask, member)
        return tuple(rows[address] for address in sorted(rows))

    async def _row(self, holder: Address, record: Digest, retracted: Height, key: Digest | None) -> HolderRow:
        try:
            with trio.fail_after(ASK_DEADLINE_S):
                statement = await self._asked(holder, record)
                if isinstance(statement, str):
                    return HolderRow(holder, "no proof", statement, None)
                if statement.removal.holder != holder:
                    return HolderRow(holder, "no proof", f"answered for {hex0x(statement.removal.holder)}", None)
                statement.check(self._context.network_id, record, retracted)
                if key is not None and await self._serves(holder, record, key):
                    self._context.events.emit("removal_contradicted", record=short(record), holder=hex0x(holder))
                    return HolderRow(holder, "serves it", "gives the record to whoever asks", statement)
        except PeerFault as error:
            return HolderRow(holder, "no proof", error.message, None)
        except (NsllmError, trio.TooSlowError) as error:
            log.info("removal_unanswered holder=%s error=%s", hex0x(holder), error)
            detail = error.message if isinstance(error, NsllmError) else f"no answer within {ASK_DEADLINE_S:g} s"
            return HolderRow(holder, "no proof", detail, None)
        return HolderRow(holder, "removed", "", statement)

    async def _asked(self, holder: Address, record: Digest) -> SignedRemoval | str:
        if holder == self._context.address:
            return await self.prove(record)
        peer = self._holders.peer_of(holder)
        return await self._holders.ask_removal(peer, record) if peer is not None else "its peer is not known"

    async def _serves(self, holder: Address, record: Digest, key: Digest) -> bool:
        peer = self._holders.peer_of(holder)
        if peer is None or holder == self._context.address:
            return False
        found = await self._holders.fetch(peer, key)
        return found is not None and found.signed.record.digest() == record

    async def _erase(self, wanted: Sequence[Retraction]) -> bool:
        """False if the disk would not."""
        before = {each.record for each in self._done}
        records = [each.record for each in wanted if each.record not in before]
        try:
            for shelf in self._shelves:
                for record in await shelf.erase(records):
                    self._context.events.emit(
                        "record_removed", record=short(record), height=self._context.retracted_at(record)
                    )
        except NsllmError as error:
            log.error("erase_failed records=%d error=%s", len(records), error)
            return False
        return True
