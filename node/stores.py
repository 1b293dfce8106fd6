"""The databases of a peer, opened and closed together; a damaged one is moved aside with a notice, never repaired."""

from __future__ import annotations

from dataclasses import dataclass

from nsllm.cache_dht.document_store import DocumentStore
from nsllm.cache_dht.embedding_store import EmbeddingStore
from nsllm.cache_dht.observation_store import ObservationStore
from nsllm.cache_dht.sealed_store import SealedStore
from nsllm.cache_dht.store import RecordStore
from nsllm.files import private_folder
from nsllm.governance.batch_log import BatchLog
from nsllm.governance.ledger import Ledger
from nsllm.governance.peer_log import PeerLog
from nsllm.node.completions import Completions
from nsllm.node.data_folder import Settled
from nsllm.node.world import World


@dataclass(frozen=True, slots=True)
class Stores:
    """What of a peer survives its process, beside keys, settings and consensus' own files."""

    ledger: Ledger
    records: RecordStore
    documents: DocumentStore
    embeddings: EmbeddingStore
    """Shared ones, own and held for others."""
    sealed: SealedStore
    """What this peer holds for groups."""
    observations: ObservationStore
    peer_log: PeerLog
    completions: Completions
    batches: BatchLog
    """What this peer committed to in the epochs in which it validated."""

    @classmethod
    async def open(cls, settled: Settled, world: World) -> Stores:
        """Open or create all of them in the world's folder.

        Raises:
            OwnFault: one that cannot be opened; says what to do.
        """
        genesis, identity = settled.genesis, settled.identity
        folder, clock, offload, databases = world.folder, world.clock, world.offload, world.databases
        max_bytes = settled.config.cache.max_mb << 20
        return cls(
            ledger=await Ledger.open(
                folder / "ledger.sqlite",
                genesis,
                clock=clock,
                offload=offload.background(),
                key=identity.member,
                recover=True,
                databases=databases,
                keep_heights=settled.config.ledger.keep_heights,
            ),
            records=await offload.run(
                lambda: RecordStore.open(
                    folder / "records.sqlite", clock, offload, max_bytes=max_bytes, databases=databases
                )
            ),
            documents=await offload.run(
                lambda: DocumentStore.open(
                    folder / "documents.sqlite",
                    identity.address,
                    clock,
                    offload,
                    max_bytes=settled.config.documents.max_mb << 20,
                    databases=databases,
                )
            ),
            embeddings=await offload.run(
                lambda: EmbeddingStore.open(
                    folder / "embeddings.sqlite",
                    identity.address,
                    clock,
                    offload,
                    max_bytes=max_bytes // 16,
                    databases=databases,
                )
            ),
            sealed=await offload.run(
                lambda: SealedStore.open(
                    folder / "sealed.sqlite", clock, offload, max_bytes=max_bytes // 4, databases=databases
                )
            ),
            observations=await offload.run(lambda: ObservationStore.open(folder / "observations.sqlite")),
            peer_log=await PeerLog.open(
                folder / "peerlog.sqlite",
                identity.member,
                genesis.network_id(),
                clock=clock,
                offload=offload.background(),
                recover=True,
                databases=databases,
            ),
            completions=await Completions.open(folder / "completions.sqlite", clock, offload, databases),
            batches=await offload.run(
                lambda: BatchLog.open(
                    private_folder(folder / "consensus") / "batches.sqlite",
                    genesis.network_id(),
                    identity.address,
                    now_ms=clock.now_ms(),
                    databases=databases,
                )
            ),
        )

    async def close(self, world: World) -> None:
        """Close all of them; nothing that was acknowledged is lost."""
        await self.ledger.close()
        await self.peer_log.close()
        await world.offload.run(self.records.close)
        await world.offload.run(self.documents.close)
        await world.offload.run(self.embeddings.close)
        await world.offload.run(self.sealed.close)
        await world.offload.run(self.observations.close)
        await self.completions.close()
        await world.offload.run(self.batches.close)

    def notices(self) -> tuple[str, ...]:
        """What an operator should know about opening them."""
        found = (
            self.records.notice,
            self.documents.notice,
            self.embeddings.notice,
            self.sealed.notice,
            self.ledger.notice,
            self.peer_log.notice,
            self.completions.notice,
        )
        return tuple(notice for notice in found if notice)
