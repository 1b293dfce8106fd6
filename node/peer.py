"""The composition root: one peer, put together from the rooms' parts and a world, and run in one nursery.

`Peer` is also the `PeerService` that the HTTP side talks to. Nothing here decides anything: parts decide, this file
says who knows whom, what starts before what, and what stops with what.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Final

import trio
from prometheus_client import CollectorRegistry

from nsllm import __version__
from nsllm.cache_dht.store import RecordStore
from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.certified import CertifiedRecord
from nsllm.consensus.header import Header
from nsllm.consensus.registry import Admission, Member
from nsllm.errors import NsllmError
from nsllm.governance.hybrid_score import HybridScorer
from nsllm.governance.ledger import Ledger
from nsllm.governance.peer_log import PeerLog
from nsllm.governance.validator import Validator
from nsllm.ids import Address, Digest, Height, PeerId, hex0x, short
from nsllm.node.agreement import Agreement
from nsllm.node.api.server import ApiServer
from nsllm.node.api.settings import ApiSettings
from nsllm.node.auditor import Auditor
from nsllm.node.completions import Completions
from nsllm.node.config import PeerConfig
from nsllm.node.context import PeerContext
from nsllm.node.data_folder import Settled
from nsllm.node.engine.port import ModelInfo
from nsllm.node.events import EventBus
from nsllm.node.examiner import Examiner
from nsllm.node.executors import Executors
from nsllm.node.federated_cache import FederatedCache
from nsllm.node.keeper import Keeper
from nsllm.node.links import BlockFeed, ConsensusMesh, MemberLinks
from nsllm.node.membership import Membership
from nsllm.node.metrics import PeerMetrics
from nsllm.node.orchestrator import Orchestrator
from nsllm.node.presence import Presence
from nsllm.node.publisher import Publisher
from nsllm.node.receipts import Receipts
from nsllm.node.restock import Restocker
from nsllm.node.service import ChatCommand, ChatEvent, PeerEvent, PeerRow, Readiness, ReceiptStatus, Status
from nsllm.node.status import anchor_row, certificate_row, peer_rows, policy_view
from nsllm.node.supervision import keep_going
from nsllm.node.world import World, real_world
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.identity import PeerKey
from nsllm.p2p.protocols.announce import Announcer
from nsllm.p2p.protocols.fetch import FETCH, serve_fetch
from nsllm.p2p.protocols.generate import GENERATE, serve_generate
from nsllm.p2p.protocols.mesh import MESH, MeshClient, MeshKind, serve_mesh
from nsllm.p2p.protocols.push import PUSH, serve_push
from nsllm.p2p.protocols.submit import SUBMIT, serve_submit
from nsllm.p2p.protocols.sync import SYNC, serve_sync
from nsllm.record import SignedRecord

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

ROWS: Final = 10
"""Blocks and anchors that the page shows."""


class Peer:
    """One peer with all of its parts. Make it with `open`, then `run` it; `run` closes what `open` opened."""

    def __init__(
        self,
        settled: Settled,
        world: World,
        context: PeerContext,
        ledger: Ledger,
        store: RecordStore,
        peer_log: PeerLog,
        completions: Completions,
    ) -> None:
        """Use `open` instead."""
        config = settled.config
        self._config = config
        self._identity = settled.identity
        self._world = world
        self._context = context
        self.ledger = ledger
        self._store = store
        self._started_s = trio.current_time()
        self.metrics = PeerMetrics(CollectorRegistry())
        context.events.tap(self.metrics.count)
        context.events.tap(world.observer)
        self._peer_log = peer_log
        self._auditor = Auditor(peer_log, ledger)
        context.events.tap(self._auditor.hear)
        network, engine = world.network, world.engine
        self._directory = PeerDirectory(
            context.network_id, settled.genesis.registry(), world.clock, on_admission=self._admitted
        )
        links = MemberLinks(network, self._directory)
        self._mesh = MeshClient(network, self._directory, world.rng)
        self._feed = BlockFeed(network, self._directory)
        self._agreement = Agreement(
            context=context,
            ledger=ledger,
            mesh=ConsensusMesh(self._mesh),
            feed=self._feed,
            folder=world.folder,
            checkpoint=world.checkpoint,
        )
        self._cache = FederatedCache(context=context, store=store, network=network, shelves=links)
        self._restocker = Restocker(context=context, ledger=ledger, store=store, cache=self._cache, shelves=links)
        self._examiner = self._make_examiner() if context.is_validator else None
        self._keeper = (
            Keeper(context=context, ledger=ledger, cache=self._cache, shelves=links) if context.is_validator else None
        )
        self._completions = completions
        self._publisher = Publisher(
            context=context,
            completions=self._completions,
            ledger=ledger,
            cache=self._cache,
            shelves=links,
            submissions=links,
            examiner=self._examiner,
        )
        self._executors = Executors(context=context, engine=engine, network=network, directory=self._directory)
        self._receipts = Receipts(context, self._completions, ledger)
        self._orchestrator = Orchestrator(
            context=context,
            engine=engine,
            executors=self._executors,
            cache=self._cache,
            validator=Validator(engine, world.plugins),
            publisher=self._publisher,
            completions=self._completions,
            default_visibility=config.visibility,
        )
        self._presence = Presence(
            context=context,
            peer_key=PeerKey(settled.identity.libp2p_secret),
            network=network,
            directory=self._directory,
            engine=engine,
            bootstrap=config.p2p.bootstrap,
            height=lambda: ledger.height,
        )
        self._membership = Membership(
            context=context,
            folder=world.folder,
            network=network,
            directory=self._directory,
            on_own_admission=self._admitted_ourselves,
            on_admission=self._admitted,
        )
        self._announcer = Announcer(
            network, self._directory, on_block=self._heard_block, on_card=self._presence.on_card
        )
        self._announcements, self._to_announce = trio.open_memory_channel[Header](16)
        self._serve_protocols()
        ledger.subscribe(self._decided)

    @classmethod
    async def open(cls, settled: Settled, world: World) -> Peer:
        """Open the databases and put the parts together; nothing runs yet.

        Raises:
            OwnFault: a database that cannot be opened; says what to do.
        """
        genesis, identity = settled.genesis, settled.identity
        validators = genesis.registry().validators()
        ledger = await Ledger.open(
            world.folder / "ledger.sqlite",
            genesis,
            clock=world.clock,
            offload=world.offload,
            key=identity.member if identity.address in validators else None,
            recover=True,
        )
        store = await world.offload.run(
            lambda: RecordStore.open(world.folder / "records.sqlite", world.clock, world.offload)
        )
        peer_log = await PeerLog.open(
            world.folder / "peerlog.sqlite",
            identity.member,
            genesis.network_id(),
            clock=world.clock,
            offload=world.offload,
            recover=True,
        )
        context = PeerContext(
            genesis=genesis,
            network_id=genesis.network_id(),
            registry=ledger.registry,
            validators=validators,
            key=identity.member,
            clock=world.clock,
            offload=world.offload,
            rng=world.rng,
            events=EventBus(world.clock),
        )
        completions = await Completions.open(world.folder / "completions.sqlite", world.clock, world.offload)
        return cls(settled, world, context, ledger, store, peer_log, completions)

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `started()` once the HTTP side and the network listen."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._close)
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            for service in self._world.services:
                nursery.start_soon(service)
            await stack.enter_async_context(self._world.network.run())
            if self._world.serve_api:
                await nursery.start(self._api().run)
            # Not kept going: it retries what can be retried by itself, and a lost vote must stop the peer.
            nursery.start_soon(self._agreement.run)
            parts = (
                self._presence.run,
                self._membership.run,
                self._announcer.run,
                self._announce_blocks,
                self._mesh.run,
                self._publisher.run,
                self._auditor.run,
                self._cache.announce,
                *((self._examiner.run,) if self._examiner is not None else ()),
                *((self._keeper.run,) if self._keeper is not None else ()),
                self._restocker.run,
            )
            for part in parts:
                nursery.start_soon(keep_going, type(part.__self__).__name__, part, self._context.events)
            self._context.events.emit("peer_started", peer=self._world.network.peer_id)
            task_status.started()
            await trio.sleep_forever()

    # PeerService

    def models(self) -> tuple[ModelInfo, ...]:
        """The chat model first."""
        info = self._world.engine.info()
        return (info.text, info.encoder)

    def chat(self, command: ChatCommand) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[ChatEvent]]:
        """Run one completion."""
        return self._orchestrator.chat(command)

    async def embed(self, texts: Sequence[str]) -> tuple[list[tuple[float, ...]], int]:
        """Unit vectors and token count."""
        return await self._world.engine.embed_counted(texts)

    async def receipt(self, completion_id: str) -> ReceiptStatus:
        """What is known of a completion's receipt."""
        return await self._receipts.status(completion_id)

    def readiness(self) -> Readiness:
        """Genesis loaded, engine up, quorum connected."""
        engine = self._world.engine.info().state
        validators = self._context.validators
        reachable = sum(self._reaches(address) for address in validators.members)
        problems = [
            *([] if engine == "ready" else [f"engine is {engine}"]),
            *([] if reachable >= validators.quorum else [f"{reachable} of {validators.quorum} validators connected"]),
        ]
        return Readiness(
            genesis=True,
            engine=engine == "ready",
            quorum=reachable >= validators.quorum,
            detail="; ".join(problems),
        )

    def peers(self) -> tuple[PeerRow, ...]:
        """Known peers, our own row first."""
        return peer_rows(self._world.network, self._directory, self.ledger.height)

    def events(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[PeerEvent]]:
        """Events from now on."""
        return self._context.events.subscribe()

    async def status(self) -> Status:
        """A fresh snapshot of everything."""
        context, ledger = self._context, await self.ledger.summary(ROWS)
        stats, counters = await self._store.stats(), self._cache.counters
        member = context.registry.get(context.address)
        return Status(
            version=__version__,
            name=self._config.name,
            peer_id=self._world.network.peer_id,
            address=hex0x(context.address),
            roles=member.roles if member is not None else (),
            network=context.genesis.name,
            network_id=hex0x(context.network_id),
            multiaddrs=self._world.network.addresses(),
            uptime_s=trio.current_time() - self._started_s,
            default_visibility=self._config.visibility,
            readiness=self.readiness(),
            engine=self._world.engine.info(),
            peers=self.peers(),
            cache={
                "records": stats.records,
                "bytes": stats.size_bytes,
                "shards_held": self._cache.shards_announced(),
                "hits_local": counters.hits_local,
                "hits_remote": counters.hits_remote,
                "misses": counters.misses,
                "refused": counters.refused,
            },
            consensus={**self._agreement.view(), "pending": ledger.pending},
            certificates=tuple(certificate_row(row) for row in ledger.blocks),
            policy=policy_view(context.policy),
            logs={
                "peer_log_size": self._peer_log.size,
                "peer_log_root": hex0x(self._peer_log.root),
                "network_log_size": ledger.log_size,
                "network_log_root": hex0x(ledger.log_root),
                "anchored_size": ledger.anchored_size,
            },
            anchors=tuple(anchor_row(row) for row in ledger.anchors),
            notices=self._notices(),
        )

    async def invite(self) -> str:
        """One-time invite text."""
        return await self._membership.invite()

    # wiring

    def _make_examiner(self) -> Examiner:
        info = self._world.engine.info()
        scorer = HybridScorer(
            self._world.engine,
            self._world.plugins,
            self._context.policy.rubric,
            scorer_model=(info.scorer or info.text).digest,
            encoder=info.encoder.digest,
        )
        return Examiner(
            context=self._context,
            scorer=scorer,
            ledger=self.ledger,
            share=lambda to, payload: self._mesh.send(to, "observation", payload),
            due=self._agreement.poke,
        )

    def _serve_protocols(self) -> None:
        network, directory = self._world.network, self._directory
        network.handle(SYNC, serve_sync(directory, self.ledger))
        network.handle(FETCH, serve_fetch(directory, self._look_up))
        network.handle(PUSH, serve_push(directory, self._hold))
        network.handle(GENERATE, serve_generate(directory, self._executors.execute))
        if self._context.is_validator:
            network.handle(MESH, serve_mesh(directory, self._deliver))
            network.handle(SUBMIT, serve_submit(directory, self._submitted))

    async def _deliver(self, sender: Address, kind: MeshKind, payload: bytes) -> None:
        if kind == "consensus":
            self._agreement.receive(sender, payload)
        elif self._examiner is not None:
            self._examiner.hear(sender, payload)

    async def _submitted(self, signed: SignedRecord, member: Member) -> str | None:
        if self._examiner is None:
            return f"{hex0x(member.address)} asked a peer that does not validate"
        return self._examiner.accept(signed)

    async def _look_up(self, key: Digest, member: bool) -> CertifiedRecord | None:
        return await self._cache.lookup(key, member=member)

    async def _hold(self, certified: CertifiedRecord, member: Member) -> str | None:
        try:
            await self._cache.hold(certified)
        except NsllmError as error:
            log.info("push_refused from=%s error=%s", hex0x(member.address), error)
            return error.message
        return None

    def _decided(self, decided: DecidedBlock) -> None:
        if self._examiner is not None and self._keeper is not None:
            for record in sorted({signed.observation.record for signed in decided.block.body.observations}):
                signed = self._examiner.release(record)
                if signed is not None:
                    self._keeper.keep(signed)
        self._restocker.decided(decided)
        header = decided.block.header
        if header.proposer == self._context.address:
            with contextlib.suppress(trio.WouldBlock):  # followers also hear heights in heartbeats
                self._announcements.send_nowait(header)

    async def _announce_blocks(self) -> None:
        async for header in self._to_announce:
            await self._announcer.block(header.height, header.id())

    async def _heard_block(self, origin: PeerId, height: Height, block_id: Digest) -> None:
        log.debug("block_announced by=%s height=%d id=%s", origin, height, short(block_id))
        self._agreement.announce(height)

    def _admitted_ourselves(self, admission: Admission) -> None:
        self._presence.admission = admission
        self._admitted(admission)

    def _admitted(self, admission: Admission) -> None:
        try:
            if self.ledger.add_admission(admission):
                self._agreement.poke()
        except NsllmError as error:
            log.warning("admission_refused member=%s error=%s", hex0x(admission.member.address), error)

    def _reaches(self, validator: Address) -> bool:
        peer = self._directory.peer_of(validator)
        return validator == self._context.address or (peer is not None and peer in self._world.network.connected())

    def _notices(self) -> tuple[str, ...]:
        validators = self._context.validators
        found = [self._store.notice, self.ledger.notice, self._peer_log.notice, self._completions.notice]
        if self._agreement.halted is not None:
            found.append(f"consensus halted: {self._agreement.halted}")
        if validators.size == 1:
            found.append("a network of one: certificates are self-certified")
        elif validators.faults == 0:
            found.append(f"{validators.size} validators: f = 0, one that fails stops certification")
        if self._world.engine.info().text.stand_in:
            found.append("answers come from a stand-in, not from a language model")
        return tuple(notice for notice in found if notice)

    def _api(self) -> ApiServer:
        config: PeerConfig = self._config
        settings = ApiSettings(
            host=config.api.host,
            port=config.api.port,
            api_key=config.api.key or None,
            admin_key=self._identity.admin_key,
            allowed_hosts=config.api.allowed_hosts,
        )
        return ApiServer(service=self, settings=settings, clock=self._world.clock, registry=self.metrics.registry)

    async def _close(self) -> None:
        with trio.CancelScope(shield=True):
            await self.ledger.close()
            await self._peer_log.close()
            self._agreement.close()
            await self._world.offload.run(self._store.close)
            await self._completions.close()


async def run_peer(
    settled: Settled,
    *,
    checkpoint: Callable[[str], None] | None = None,
    task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a real peer on a settled data folder until cancelled; the caller holds the folder's lock.

    Args:
        settled: the data folder.
        checkpoint: called at named moments of consensus; a test kills the process there.
        task_status: `started()` once the peer serves.

    Raises:
        NsllmError: something that the peer needs is not there; says what to do.
    """
    peer = await Peer.open(settled, real_world(settled, checkpoint))
    await peer.run(task_status=task_status)
