"""Between the wire protocols and the ports that the inner rooms declare: one small adapter a port."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

import trio

from nsllm.cache_dht.embedded import SignedEmbedded
from nsllm.cache_dht.removal import SignedRemoval
from nsllm.cache_dht.sealed import CertifiedSealed, SealedRecord
from nsllm.cache_dht.withdrawal import SignedWithdrawal
from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.certified import CertifiedRecord
from nsllm.consensus.errors import PrunedError
from nsllm.errors import NsllmError
from nsllm.ids import Address, Digest, Height, PeerId
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import NetworkError
from nsllm.p2p.network import Network
from nsllm.p2p.protocols.counts import CountRow, tell_counts
from nsllm.p2p.protocols.embeddings import give_embeddings, want_embeddings
from nsllm.p2p.protocols.fetch import Fetcher
from nsllm.p2p.protocols.mesh import MeshClient
from nsllm.p2p.protocols.passages import find_passages
from nsllm.p2p.protocols.push import Pusher
from nsllm.p2p.protocols.removal import ask_removal
from nsllm.p2p.protocols.sealed import give, offer, want
from nsllm.p2p.protocols.shelve import Load, Offered, Shelving, shelve
from nsllm.p2p.protocols.stock import Shelf, StockClient
from nsllm.p2p.protocols.submit import Submitter
from nsllm.p2p.protocols.sync import BlockFetcher
from nsllm.record import SignedChunk, SignedRecord

log = logging.getLogger(__name__)

SOURCES_TRIED = 3
REFUSED_S: Final = 600.0
"""A peer that lied may have been damaged, and repaired since."""


class ConsensusMesh:
    """`nsllm.consensus.ports.Mesh` over the mesh protocol."""

    def __init__(self, client: MeshClient) -> None:
        self._client = client

    def send(self, to: Address, message: bytes) -> None:
        """Queue a consensus message for one validator."""
        self._client.send(to, "consensus", message)


class BlockFeed:
    """`nsllm.consensus.ports.BlockSource` over the sync protocol: asks the peers that claim to be furthest ahead.

    Claims cost nothing. Whoever was asked for a height that is then asked for again did not help: he comes last.
    Whoever gave blocks that are no part of the chain is not asked at all for a while.
    """

    def __init__(self, network: Network, directory: PeerDirectory) -> None:
        self._network = network
        self._directory = directory
        self._fetcher = BlockFetcher(network)
        self._start = Height(0)
        self._asked: dict[PeerId, None] = {}
        self._gave: PeerId | None = None
        """Who gave the last blocks."""
        self._refused: dict[PeerId, float] = {}
        """Until when, on trio's clock."""
        self._pruned_below = Height(0)
        """Blocks below this have been asked for, and some peer had them no more."""

    async def fetch(self, start: Height, count: int) -> Sequence[DecidedBlock]:
        """Decided blocks from the first of three peers that has any, unverified; empty if none has."""
        if start != self._start:
            self._start = start
            self._asked = {}
        if not self.ranked():
            self._refused = {}  # nobody is left: perhaps it was not their fault
        for peer in self.ranked()[:SOURCES_TRIED]:
            self._asked[peer] = None
            try:
                blocks = await self._fetcher.blocks(peer, start, count)
            except PrunedError as error:
                log.info("sync_pruned peer=%s start=%d kept_from=%d", peer, start, error.kept_from)
                self._pruned_below = error.kept_from
                continue
            except NsllmError as error:
                log.info("sync_failed peer=%s start=%d error=%s", peer, start, error)
                continue
            if blocks:
                self._gave = peer
                self._pruned_below = Height(0)
                return blocks
        return ()

    def refuse(self) -> bool:
        """Do not ask whoever gave the last blocks for `REFUSED_S`; True if there are others to ask."""
        if self._gave is not None:
            log.warning("sync_peer_refused peer=%s start=%d", self._gave, self._start)
            self.drop(self._gave)
            self._gave = None
        return bool(self.ranked())

    def drop(self, peer: PeerId) -> None:
        """Do not ask this peer for `REFUSED_S`."""
        self._refused[peer] = trio.current_time() + REFUSED_S

    def is_pruned(self, height: Height) -> bool:
        """Did the last look for this block find peers that have it no more, and none that has it?"""
        return height < self._pruned_below

    def ranked(self) -> list[PeerId]:
        """Connected members but refused ones, those not asked yet first, then by the height that they claim."""
        now = trio.current_time()
        self._refused = {peer: until for peer, until in self._refused.items() if until > now}
        members = [
            peer
            for peer in self._network.connected()
            if peer not in self._refused and self._directory.member_of(peer) is not None
        ]
        if all(peer in self._asked for peer in members):
            self._asked = {}
        return sorted(
            members, key=lambda peer: (peer in self._asked, -(self._directory.state_of(peer).height or 0), peer)
        )


class MemberLinks:
    """What a peer's parts ask of other members: its ports `Submissions`, `Shelves`, `StockLinks` and so on."""

    def __init__(self, network: Network, directory: PeerDirectory) -> None:
        self._network = network
        self._directory = directory
        self._submitter = Submitter(network)
        self._fetcher = Fetcher(network)
        self._pusher = Pusher(network)
        self._stock = StockClient(network)

    def peer_of(self, member: Address) -> PeerId | None:
        """Present libp2p identity of a member."""
        return self._directory.peer_of(member)

    async def submit(self, validator: PeerId, signed: SignedRecord) -> str | None:
        """None if the validator took the record, else its reason."""
        verdicts = await self._submitter.submit(validator, [signed])
        return verdicts[signed.record.digest()]

    async def ask_removal(self, holder: PeerId, record: Digest) -> SignedRemoval:
        """The holder's signed word that it has no copy of a revoked record."""
        return await ask_removal(self._network, holder, record)

    async def offer(self, validator: PeerId, envelope: SealedRecord) -> str | None:
        """None if the validator opened the envelope and took the record, else its reason."""
        return await offer(self._network, validator, envelope)

    async def give(self, holder: PeerId, certified: CertifiedSealed) -> None:
        """Return once the holder has the envelope on disk; raises `RefusedError` or another `NetworkError`."""
        await give(self._network, holder, certified)

    async def want(self, holder: PeerId, key: Digest) -> CertifiedSealed | None:
        """What the holder has for a salted request key, unverified."""
        return await want(self._network, holder, key)

    async def fetch(self, holder: PeerId, key: Digest) -> CertifiedRecord | None:
        """What the holder has for a request key, unverified."""
        await self._approach(holder)
        found = await self._fetcher.by_keys(holder, [key])
        return found[0] if found else None

    async def fetch_near(self, holder: PeerId, embedding: bytes, count: int) -> Sequence[CertifiedRecord]:
        """What the holder has near an embedding, unverified."""
        await self._approach(holder)
        return await self._fetcher.near(holder, embedding, count)

    async def push(self, holder: PeerId, certified: CertifiedRecord) -> None:
        """Return once the holder has the record on disk; raises `RefusedError` or another `NetworkError`."""
        await self._pusher.push(holder, certified)

    async def tell_counts(self, peer: PeerId, rows: Sequence[CountRow]) -> None:
        """Return once the peer has taken in what we observed; raises `RefusedError` or another `NetworkError`."""
        await tell_counts(self._network, peer, rows)

    async def want_embeddings(self, holder: PeerId, keys: Sequence[Digest]) -> Sequence[SignedEmbedded]:
        """What the holder has of these keys, unverified."""
        return await want_embeddings(self._network, holder, keys)

    async def give_embeddings(self, holder: PeerId, embeddings: Sequence[SignedEmbedded]) -> None:
        """Return once the holder keeps them; raises `RefusedError` or another `NetworkError`."""
        await give_embeddings(self._network, holder, embeddings)

    async def compare(self, holder: PeerId, shelves: Sequence[Shelf]) -> Sequence[Shelf]:
        """Those whose stock is another at the holder."""
        await self._approach(holder)
        return await self._stock.compare(holder, shelves)

    async def lacking(self, holder: PeerId, records: Sequence[Digest]) -> Sequence[Digest]:
        """Those that the holder lacks."""
        return await self._stock.lacking(holder, records)

    async def find_passages(self, holder: PeerId, embedding: bytes, count: int) -> Sequence[SignedChunk]:
        """What chunks the holder has near an embedding, unverified."""
        return await find_passages(self._network, holder, embedding, count)

    async def shelve(
        self, holder: PeerId, offered: Mapping[Digest, Offered], load: Load, withdrawals: Sequence[SignedWithdrawal]
    ) -> Shelving:
        """Return once the holder has the chunks on disk; raises `RefusedError` or another `NetworkError`."""
        return await shelve(self._network, holder, offered, load, withdrawals)

    async def _approach(self, peer: PeerId) -> None:
        """Dial a member that is not connected where its card says that it listens, which spares a walk of the DHT."""
        if peer in self._network.connected():
            return
        for address in self._directory.multiaddrs_of(peer):
            try:
                await self._network.connect(address)
            except NetworkError as error:
                log.debug("card_misleads peer=%s error=%s", peer, error)
            else:
                return
