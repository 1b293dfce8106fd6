"""The composition root: one peer's parts, made from the rooms' classes and a world, and who of them knows whom.

Nothing here decides anything: parts decide. `nsllm.node.peer` runs them and speaks for them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import trio
from prometheus_client import CollectorRegistry

from nsllm.cache_dht.sealed import CertifiedSealed, SealedRecord
from nsllm.cache_dht.store import RecordStore
from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.certified import CertifiedRecord
from nsllm.consensus.header import Header
from nsllm.consensus.registry import Admission, Member
from nsllm.errors import NsllmError, OwnFault, PeerFault
from nsllm.governance.hybrid_score import HybridScorer
from nsllm.governance.validator import Validator
from nsllm.ids import Address, Digest, Height, PeerId, hex0x, short
from nsllm.node.agreement import Agreement
from nsllm.node.auditor import Auditor
from nsllm.node.committer import Committer
from nsllm.node.context import PeerContext
from nsllm.node.count_sharing import CountSharing
from nsllm.node.data_folder import Settled
from nsllm.node.document_spreader import DocumentSpreader
from nsllm.node.documents import Documents
from nsllm.node.door import Door
from nsllm.node.embeddings import Embeddings
from nsllm.node.engine.remembered import Remembered
from nsllm.node.events import EventBus
from nsllm.node.examiner import Examiner
from nsllm.node.executors import Executors
from nsllm.node.federated_cache import FederatedCache
from nsllm.node.groups import GroupFolder
from nsllm.node.housekeeping import Housekeeper
from nsllm.node.keeper import Keeper
from nsllm.node.links import BlockFeed, ConsensusMesh, MemberLinks
from nsllm.node.membership import Membership
from nsllm.node.metrics import PeerMetrics
from nsllm.node.motions import Motions
from nsllm.node.near_answers import NearAnswers
from nsllm.node.orchestrator import Orchestrator
from nsllm.node.presence import Presence
from nsllm.node.publisher import Publisher
from nsllm.node.receipts import Receipts
from nsllm.node.reception import Reception
from nsllm.node.record_transfer import RecordTransfer
from nsllm.node.removals import Removals
from nsllm.node.request_reader import RequestReader
from nsllm.node.restock import Restocker
from nsllm.node.retrieval import Retrieval
from nsllm.node.scopes import GroupParts, Scopes
from nsllm.node.snapshot_feed import SnapshotFeed
from nsllm.node.stocktaking import Stocktaking
from nsllm.node.stores import Stores
from nsllm.node.vault import Vault
from nsllm.node.world import World
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.identity import PeerKey
from nsllm.p2p.protocols.announce import Announcer
from nsllm.p2p.protocols.counts import COUNTS, serve_counts
from nsllm.p2p.protocols.embeddings import EMBEDDINGS, serve_embeddings
from nsllm.p2p.protocols.fetch import FETCH, serve_fetch
from nsllm.p2p.protocols.generate import GENERATE, serve_generate
from nsllm.p2p.protocols.mesh import MESH, MeshClient, MeshKind, serve_mesh
from nsllm.p2p.protocols.passages import PASSAGES, serve_passages
from nsllm.p2p.protocols.push import PUSH, serve_push
from nsllm.p2p.protocols.removal import REMOVAL, serve_removal
from nsllm.p2p.protocols.sealed import NOT_IN_GROUP, SEALED, serve_sealed
from nsllm.p2p.protocols.shelve import SHELVE, serve_shelve
from nsllm.p2p.protocols.snapshot import SNAPSHOT, serve_snapshot
from nsllm.p2p.protocols.stock import STOCK, serve_stock
from nsllm.p2p.protocols.submit import SUBMIT, serve_submit
from nsllm.p2p.protocols.sync import SYNC, serve_sync
from nsllm.record import SignedRecord

log = logging.getLogger(__name__)

ANNOUNCE_EACH_S: Final = 0.25
"""Gossip goes through everybody: a chain that is quicker is announced no more often."""


class Parts:
    """What a peer consists of; nothing runs until somebody runs `running()`."""

    def __init__(self, settled: Settled, world: World, stores: Stores) -> None:
        """Put the parts together and serve the protocols on the world's network, which is not running yet."""
        genesis, identity = settled.genesis, settled.identity
        ledger = stores.ledger
        self._world = world
        self._stores = stores
        self.context = context = PeerContext(
            genesis=genesis,
            network_id=genesis.network_id(),
            standing=ledger,
            key=identity.member,
            clock=world.clock,
            offload=world.offload.background(),
            rng=world.rng,
            events=EventBus(world.clock),
        )
        self.metrics = PeerMetrics(CollectorRegistry())
        self._auditor = Auditor(stores.peer_log, ledger)
        for tap in (self.metrics.count, world.observer, self._auditor.hear):
            context.events.tap(tap)
        network, engine = world.network, world.engine
        self._judges = Remembered(engine)
        self.directory = PeerDirectory(context.network_id, genesis.registry(), world.clock, on_admission=self._admitted)
        links = MemberLinks(network, self.directory)
        self._mesh = MeshClient(network, self.directory, world.rng)
        feed = BlockFeed(network, self.directory)
        self.agreement = Agreement(
            context=context,
            ledger=ledger,
            mesh=ConsensusMesh(self._mesh),
            feed=feed,
            snapshots=SnapshotFeed(context, network, feed, ledger.snapshots),
            folder=world.folder,
            checkpoint=world.checkpoint,
            calm=lambda: not self.neighbours.everybody,
        )
        self.cache = FederatedCache(context=context, store=stores.records, network=network, shelves=links)
        self.transfer = RecordTransfer(context=context, store=stores.records, cache=self.cache)
        self.vault = Vault(
            context=context,
            store=stores.sealed,
            may_hold=self.cache.holders.in_line,
            filled=self.cache.announce_shard,
        )
        self.scopes = self._make_scopes(settled, links)
        self.near = NearAnswers(
            context=context,
            engine=engine,
            observations=stores.observations,
            settings=settled.config.cache,
        )
        self.counts = CountSharing(
            context=context,
            observations=stores.observations,
            merge=self.near.merge,
            links=links,
            members=lambda: [peer for peer in network.connected() if self.directory.member_of(peer) is not None],
        )
        self.near.learned = self.counts.changed
        self.documents = Documents(context=context, store=stores.documents, engine=engine, cache=self.cache)
        self._spreader = DocumentSpreader(
            context=context, store=stores.documents, documents=self.documents, cache=self.cache, links=links
        )
        self.retrieval = Retrieval(
            context=context,
            store=stores.documents,
            documents=self.documents,
            engine=engine,
            cache=self.cache,
            links=links,
            settings=settled.config.documents,
        )
        self._restocker = Restocker(
            context=context, ledger=ledger, store=stores.records, cache=self.cache, vault=self.vault, shelves=links
        )
        self._stocktaking = Stocktaking(
            context=context, records=stores.records, envelopes=stores.sealed, cache=self.cache, links=links
        )
        self.removals = Removals(
            context=context, ledger=ledger, shelves=[stores.records, stores.sealed, self.scopes], holders=links
        )
        self._committer = self._make_committer()
        self.examiner = self._make_examiner(self._committer)
        self.motions = Motions(
            context=context,
            ledger=ledger,
            share=lambda to, payload: self._mesh.send(to, "motion", payload),
            due=self.agreement.poke,
        )
        self._keeper = Keeper(context=context, proofs=ledger.proofs, scope_of=self.scopes.of_record)
        self._publisher = Publisher(
            context=context,
            completions=stores.completions,
            proofs=ledger.proofs,
            scope_of=self.scopes.of_record,
            examiner=self.examiner,
        )
        self._executors = Executors(context=context, engine=engine, network=network, directory=self.directory)
        stores.completions.watch_cached(ledger.want)
        self.receipts = Receipts(context, stores.completions, ledger)
        self._housekeeper = Housekeeper(
            context=context,
            completions=stores.completions,
            peer_log=stores.peer_log,
            ledger=ledger,
            config=settled.config.history,
        )
        self.embeddings = Embeddings(
            context=context,
            engine=engine,
            store=stores.embeddings,
            cache=self.cache,
            links=links,
            connected=network.connected,
            default_visibility=settled.config.visibility,
        )
        self.reader = RequestReader(engine, world.describer)
        self.reception = Reception(
            context=context,
            embeddings=self.embeddings,
            reader=self.reader,
            scopes=self.scopes,
            retrieval=self.retrieval,
            default_visibility=settled.config.visibility,
            embed_private=settled.config.judge_private == "meaning",
        )
        self.orchestrator = Orchestrator(
            context=context,
            reception=self.reception,
            executors=self._executors,
            near=self.near,
            validator=Validator(self._judges, world.plugins),
            publisher=self._publisher,
            completions=stores.completions,
            doors=partial(Door.of, settled.config.engine),
        )
        self._presence = Presence(
            context=context,
            peer_key=PeerKey(identity.libp2p_secret),
            network=network,
            directory=self.directory,
            engine=engine,
            bootstrap=settled.config.p2p.bootstrap,
            height=lambda: ledger.height,
        )
        self.neighbours = self._presence.neighbours
        self.membership = Membership(
            context=context,
            folder=world.folder,
            network=network,
            directory=self.directory,
            on_own_admission=self._admitted_ourselves,
            on_admission=self._admitted,
        )
        self._announcer = Announcer(network, self.directory, on_block=self._heard_block, on_card=self._presence.on_card)
        self._announcements, self._to_announce = trio.open_memory_channel[Header](16)
        self._serve_protocols()
        self._watch()
        ledger.subscribe(self._decided)

    def running(self) -> tuple[tuple[str, Callable[[], Awaitable[None]]], ...]:
        """(name, task) of every part that has something to do of its own; each runs until it is cancelled."""
        tasks: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("presence", self._presence.run),
            ("membership", self.membership.run),
            ("announcer", self._announcer.run),
            ("block announcements", self._announce_blocks),
            ("mesh", self._mesh.run),
            ("publisher", self._publisher.run),
            ("auditor", self._auditor.run),
            ("cache", self.cache.announce),
            ("documents", self._spreader.run),
            ("embeddings", self.embeddings.run),
            ("restocker", self._restocker.run),
            ("stocktaking", self._stocktaking.run),
            ("removals", self.removals.run),
            ("reuse", self.near.run),
            ("counts", self.counts.run),
            ("housekeeping", self._housekeeper.run),
        ]
        tasks += [
            ("committer", self._committer.run),
            ("examiner", self.examiner.run),
            ("keeper", self._keeper.run),
            ("motions", self.motions.run),
        ]
        return tuple(tasks)

    def _make_scopes(self, settled: Settled, links: MemberLinks) -> Scopes:
        world, config = self._world, settled.config

        def open_store(path: Path) -> RecordStore:
            limit = config.cache.max_mb << 20
            return RecordStore.open(path, world.clock, world.offload, max_bytes=limit, databases=world.databases)

        parts = GroupParts(
            context=self.context,
            network=world.network,
            links=links,
            vault=self.vault,
            whole=self.cache,
            open_store=open_store,
        )
        return Scopes(parts=parts, folder=GroupFolder(config.data_dir), default=config.group)

    def _watch(self) -> None:
        """Tell the gauges where to read."""
        ledger, engine, counters = self._stores.ledger, self._world.engine, self.cache.counters
        self.metrics.watch(
            height=lambda: ledger.height,
            halted=lambda: self.agreement.halted is not None,
            log_size=lambda: ledger.log_size,
            connected=lambda: len(self._world.network.connected()),
            engine=engine.info,
            look_ups=lambda: (
                counters.hits_local + counters.hits_remote + counters.hits_semantic,
                counters.misses,
                counters.refused,
            ),
            traffic=self._world.network.traffic,
        )

    def _make_committer(self) -> Committer:
        return Committer(
            context=self.context,
            ledger=self._stores.ledger,
            batches=self._stores.batches,
            share=lambda to, payload: self._mesh.send(to, "observation", payload),
            due=self.agreement.poke,
            checkpoint=self._world.checkpoint,
        )

    def _make_examiner(self, committer: Committer) -> Examiner:
        engine = self._world.engine
        scorer = HybridScorer(self._judges, self._world.plugins, encoder=engine.info().encoder.digest)
        return Examiner(context=self.context, scorer=scorer, ledger=self._stores.ledger, committer=committer)

    def _serve_protocols(self) -> None:
        network, directory = self._world.network, self.directory
        network.handle(SYNC, serve_sync(directory, self._stores.ledger))
        network.handle(SNAPSHOT, serve_snapshot(directory, self._stores.ledger.snapshots))
        network.handle(FETCH, serve_fetch(directory, self._look_up, self._look_up_near, pad_s=self.scopes.pad_s))
        network.handle(PUSH, serve_push(directory, self._hold))
        network.handle(COUNTS, serve_counts(directory, self.counts.hear))
        network.handle(EMBEDDINGS, serve_embeddings(directory, self.embeddings.look, self.embeddings.keep))
        network.handle(STOCK, serve_stock(directory, self._stocktaking))
        network.handle(PASSAGES, serve_passages(directory, self.documents.near))
        network.handle(SHELVE, serve_shelve(directory, self.documents))
        network.handle(GENERATE, serve_generate(directory, self._executors.execute))
        network.handle(MESH, serve_mesh(directory, self._deliver))
        network.handle(SEALED, serve_sealed(directory, self._offered, self._given, self.vault.lookup))
        network.handle(REMOVAL, serve_removal(directory, self.removals.prove))
        network.handle(SUBMIT, serve_submit(directory, self._submitted))

    async def _deliver(self, sender: Address, kind: MeshKind, payload: bytes) -> None:
        if kind == "consensus":
            self.agreement.receive(sender, payload)
        elif kind == "motion":
            await self.motions.hear(payload)
        elif self.context.is_validator:
            self._committer.hear(sender, payload)

    async def _submitted(self, signed: SignedRecord, member: Member) -> str | None:
        if not self.context.is_validator:
            return f"{hex0x(member.address)} asked a peer that does not validate"
        return self.examiner.accept(signed)

    async def _offered(self, envelope: SealedRecord, member: Member) -> str | None:
        """A generator offers a group's record to be scored."""
        if not self.context.is_validator:
            return f"{hex0x(member.address)} asked a peer that does not validate"
        try:
            envelope.check(self.context.network_id)
            signed = await self.scopes.open(envelope.sealed)
        except PeerFault as error:
            return error.message
        if signed is None:
            return NOT_IN_GROUP
        generator = signed.record.generator
        if generator != member.address:
            return f"generated by {hex0x(generator)}, offered by {hex0x(member.address)}"
        return self.examiner.accept(signed)

    async def _given(self, certified: CertifiedSealed, member: Member) -> str | None:
        return await self._stored(member, partial(self.vault.hold, certified))

    async def _look_up(self, key: Digest, member: bool) -> CertifiedRecord | None:
        return await self.cache.lookup(key, member=member)

    async def _look_up_near(self, embedding: bytes, count: int, member: bool) -> tuple[CertifiedRecord, ...]:
        return await self.cache.lookup_near(embedding, count, member=member)

    async def _hold(self, certified: CertifiedRecord, member: Member) -> str | None:
        return await self._stored(member, partial(self.cache.hold, certified))

    @staticmethod
    async def _stored(member: Member, store: Callable[[], Awaitable[bool]]) -> str | None:
        """None once it is on disk, else why not."""
        try:
            await store()
        except NsllmError as error:
            log.info("push_refused from=%s error=%s", hex0x(member.address), error)
            # our own trouble is told without its detail, which names our paths
            return "cannot store it now" if isinstance(error, OwnFault) else error.message
        return None

    def _decided(self, decided: DecidedBlock) -> None:
        body = decided.block.body
        self._committer.follow()
        self._committer.settled((*body.records, *body.unscored_records))
        for record in body.unscored_records:
            self.examiner.release(record)
        for record in body.records:
            signed = self.examiner.release(record)
            if signed is not None:
                self._keeper.keep(signed)
        self.receipts.decided((*body.records, *body.unscored_records))
        self.examiner.follow()
        self.directory.follow(self.context.registry.state)
        self._restocker.decided(decided)
        self.removals.decided()
        self._spreader.follow()
        header = decided.block.header
        if header.proposer == self.context.address:
            with contextlib.suppress(trio.WouldBlock):  # followers also hear heights in heartbeats
                self._announcements.send_nowait(header)

    async def _announce_blocks(self) -> None:
        """Those that we proposed; of several in a short while, the newest says it all."""
        async for header in self._to_announce:
            while self._to_announce.statistics().current_buffer_used:
                header = self._to_announce.receive_nowait()  # noqa: PLW2901
            try:
                await self._announcer.block(header.height, header.id())
            except NsllmError as error:
                log.info("announcement_failed height=%d error=%s", header.height, error)
            await trio.sleep(ANNOUNCE_EACH_S)

    async def _heard_block(self, origin: PeerId, height: Height, block_id: Digest) -> None:
        log.debug("block_announced by=%s height=%d id=%s", origin, height, short(block_id))
        self.agreement.announce(height)

    def _admitted_ourselves(self, admission: Admission) -> None:
        self._presence.admission = admission
        self._admitted(admission)

    def _admitted(self, admission: Admission) -> None:
        try:
            if self._stores.ledger.add_admission(admission):
                self.agreement.poke()
        except NsllmError as error:
            log.warning("admission_ignored member=%s error=%s", hex0x(admission.member.address), error)
