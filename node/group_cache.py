"""The federated cache as a group sees it: the same look-ups and checks, over a store and over links of its own.

Other members' stores are asked for envelopes by salted key, which are opened here. By meaning only our own store is
asked: an embedding would tell its holder what is asked. Whoever generated, scored or found a record of the group
keeps it, so a validator of the group has them all.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import ClassVar, Literal

from nsllm.cache_dht.group import Group
from nsllm.cache_dht.sealed import CertifiedSealed, SealedRecord, sign_sealed
from nsllm.cache_dht.store import RecordStore
from nsllm.consensus.certified import CertifiedRecord
from nsllm.errors import NsllmError, PeerFault
from nsllm.ids import Address, Digest, PeerId, short
from nsllm.node.context import PeerContext
from nsllm.node.federated_cache import FederatedCache, Found, Near
from nsllm.node.links import MemberLinks
from nsllm.node.vault import Vault
from nsllm.p2p.network import Network
from nsllm.record import Request, SignedRecord

log = logging.getLogger(__name__)


class GroupLinks:
    """`Shelves` and `Submissions` of one group: what goes out is sealed, what comes in is opened."""

    def __init__(self, context: PeerContext, group: Group, links: MemberLinks) -> None:
        self._context = context
        self._group = group
        self._links = links

    def peer_of(self, member: Address) -> PeerId | None:
        """Present libp2p identity of a member."""
        return self._links.peer_of(member)

    async def submit(self, validator: PeerId, signed: SignedRecord) -> str | None:
        """None if the validator opened and took the record, else its reason."""
        return await self._links.offer(validator, self._seal(signed))

    async def fetch(self, holder: PeerId, key: Digest) -> CertifiedRecord | None:
        """What the holder has for a salted key, opened and unverified. `PeerFault` for what is not the group's."""
        found = await self._links.want(holder, key)
        return self.opened(found) if found is not None else None

    async def fetch_near(self, _holder: PeerId, _embedding: bytes, _count: int) -> Sequence[CertifiedRecord]:
        """Nothing: nobody is shown an embedding."""
        return ()

    async def push(self, holder: PeerId, certified: CertifiedRecord) -> None:
        """Return once the holder has the envelope on disk."""
        await self._links.give(holder, self.sealed(certified))

    def sealed(self, certified: CertifiedRecord) -> CertifiedSealed:
        """The record in an envelope of ours."""
        return CertifiedSealed(
            envelope=self._seal(certified.signed),
            leaf=certified.leaf,
            inclusion=certified.inclusion,
            certificate=certified.certificate,
        )

    def opened(self, certified: CertifiedSealed) -> CertifiedRecord:
        """The record out of an envelope.

        Raises:
            PeerFault: it cannot be opened with the group's key, or holds something else.
        """
        sealed = certified.envelope.sealed
        signed = self._group.open(self._context.network_id, sealed)
        if signed is None:
            raise PeerFault(f"the envelope of record {short(sealed.record)} does not open")
        return CertifiedRecord(
            signed=signed, leaf=certified.leaf, inclusion=certified.inclusion, certificate=certified.certificate
        )

    def _seal(self, signed: SignedRecord) -> SealedRecord:
        context = self._context
        sealed = self._group.seal(context.network_id, signed, context.address)
        return sign_sealed(context.key, context.network_id, sealed)


class GroupCache(FederatedCache):
    """Look-ups within one group."""

    CIRCLE: ClassVar[Literal["group", "public"]] = "group"

    def __init__(
        self,
        *,
        context: PeerContext,
        store: RecordStore,
        network: Network,
        links: GroupLinks,
        vault: Vault,
        whole: FederatedCache,
    ) -> None:
        """Begin with what the group's store holds.

        Args:
            context: who we are.
            store: the group's records that we know, in the clear.
            network: to ask others.
            links: seals and opens.
            vault: envelopes that we hold for the group, as for any other.
            whole: the peer's cache, whose counters are ours too.
        """
        super().__init__(context=context, store=store, network=network, shelves=links)
        self._links = links
        self._vault = vault
        self.counters = whole.counters

    async def local(self, key: Digest) -> Found | None:
        """Exact match among the records that we know, or the envelopes that we hold."""
        found = await super().local(key)
        if found is not None:
            return found
        try:
            sealed = await self._vault.lookup(key)
            certified = self._links.opened(sealed) if sealed is not None else None
        except NsllmError as error:
            log.info("envelope_unopened error=%s", error)
            return None
        found = self._checked(certified, key, None) if certified is not None else None
        if found is not None:
            self.counters.hits_local += 1
            await self._keep(found.certified)
        return found

    async def remote(self, key: Digest) -> Found | None:
        """Exact match at the holders of the salted key's shard; what is found is kept."""
        found = await super().remote(key)
        if found is not None:
            await self._keep(found.certified)
        return found

    async def remote_near(self, _request: Request, _embedding: bytes) -> tuple[Near, ...]:
        """Nothing: see the module."""
        return ()

    async def hold(self, certified: CertifiedRecord, *, check_placement: bool = False) -> bool:
        """Keep a record of the group, and its envelope if placement gives us that; True if it is new here."""
        new = await super().hold(certified, check_placement=check_placement)
        if self._context.address in self.holders_of_record(certified):
            await self._vault.hold(self._links.sealed(certified))
        return new

    def holders_of_record(self, certified: CertifiedRecord) -> tuple[Address, ...]:
        """Members that hold the envelope: those of its salted key's shard."""
        return self.holders_of(self._vault.shard(certified.leaf.request_key))

    async def _keep(self, certified: CertifiedRecord) -> None:
        try:
            await self._store.put(certified, certified.leaf.request_key, self._hybrid(certified))
        except NsllmError as error:
            log.info("found_not_kept record=%s error=%s", short(certified.leaf.record), error)
