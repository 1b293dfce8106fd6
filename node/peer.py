"""One peer: runs its parts in one nursery, and is the `PeerService` that the HTTP side talks to."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

import trio

from nsllm import __version__
from nsllm.cache_dht.document_store import DocumentRow
from nsllm.governance.ledger import Ledger
from nsllm.ids import Address, Digest, hex0x
from nsllm.node.api.server import ApiServer
from nsllm.node.api.settings import ApiSettings
from nsllm.node.chat import ChatCommand, ChatEvent, Listener
from nsllm.node.config import PeerConfig
from nsllm.node.data_folder import Settled
from nsllm.node.engine.pool import Models
from nsllm.node.engine.port import LoadedModel, ModelInfo, Readable
from nsllm.node.errors import InvalidRequestError
from nsllm.node.motions import record_named
from nsllm.node.parts import Parts
from nsllm.node.record_views import removals_view, standing_view
from nsllm.node.service import Brought, Piece, RecordPage, TakenIn, Vectors, Wish
from nsllm.node.status import anchor_row, certificate_row, offence_row, peer_rows, policy_view
from nsllm.node.stores import Stores
from nsllm.node.supervision import keep_going
from nsllm.node.views import ModelShelf, PeerEvent, PeerRow, Readiness, ReceiptLevel, ReceiptStatus, Status
from nsllm.node.world import World, real_world
from nsllm.record import Visibility

if TYPE_CHECKING:
    from trio_typing import TaskStatus

COLLECT_AFTER: Final = (50_000, 20, 50)
"""Objects, and passes of the younger generations, after which the collector looks at a generation.

A validator under load has some 15,000 under way that live until a block settles their records: a pass while they do
finds nothing and takes 15 ms for each 10,000 of them.
"""
ROWS: Final = 10
"""Blocks and anchors that the page shows."""


class Peer:
    """One peer with all of its parts. Make it with `open`, then `run` it; `run` closes what `open` opened."""

    def __init__(self, settled: Settled, world: World, stores: Stores) -> None:
        """Use `open` instead."""
        self._config = settled.config
        self._identity = settled.identity
        self._world = world
        self.stores = stores
        self.parts = Parts(settled, world, stores)
        self._started_s = trio.current_time()

    @classmethod
    async def open(cls, settled: Settled, world: World) -> Peer:
        """Open the databases and put the parts together; nothing runs yet.

        Raises:
            OwnFault: a database that cannot be opened; says what to do.
        """
        return cls(settled, world, await Stores.open(settled, world))

    @property
    def ledger(self) -> Ledger:
        """This peer's copy of the replicated state."""
        return self.stores.ledger

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `started()` once the HTTP side and the network listen."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._close)
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            for service in self._world.services:
                nursery.start_soon(service)
            await self.parts.scopes.refresh()
            await stack.enter_async_context(self._world.network.run())
            if self._world.serve_api:
                await nursery.start(self._api().run)
            # Not kept going: it retries what can be retried by itself, and a lost vote must stop the peer.
            nursery.start_soon(self.parts.agreement.run)
            events = self.parts.context.events
            for name, task in self.parts.running():
                nursery.start_soon(keep_going, name, task, events)
            events.emit("peer_started", peer=self._world.network.peer_id)
            task_status.started()
            await trio.sleep_forever()

    # PeerService

    def models(self) -> tuple[ModelInfo, ...]:
        """The chat models, the default one first, then the encoder."""
        info = self._world.engine.info()
        return (*(row.model for row in info.texts()), info.encoder)

    def chat(self, command: ChatCommand) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[ChatEvent]]:
        """Run one completion."""
        return self.parts.orchestrator.chat(command)

    async def answer(self, command: ChatCommand, listener: Listener) -> None:
        """Run one completion in this task."""
        await self.parts.orchestrator.answer(command, listener)

    async def tokenize(self, command: ChatCommand, *, special: bool) -> tuple[tuple[int, ...], int | None]:
        """Tokens of what is asked, and how many the context holds."""
        return await self.parts.reader.tokenize(command, special=special)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """Text of tokens."""
        return await self.parts.reader.detokenize(model, token_ids)

    async def token_strs(self, model: str, token_ids: Sequence[int]) -> tuple[str, ...]:
        """Tokens as a model's vocabulary writes them."""
        return await self.parts.reader.token_strs(model, token_ids)

    async def embed(
        self, texts: Sequence[Readable], visibility: Visibility | None, *, most_tokens: int | None = None
    ) -> Vectors:
        """Unit vectors and token count."""
        return await self.parts.embeddings.texts(texts, visibility, most_tokens=most_tokens)

    async def receipt(self, completion_id: str) -> ReceiptStatus:
        """What is known of a completion's receipt."""
        return await self.parts.receipts.status(completion_id)

    async def receipt_at(self, completion_id: str, level: ReceiptLevel, timeout_s: float) -> ReceiptStatus:
        """The same as soon as it has reached a level, or time is up."""
        return await self.parts.receipts.at(completion_id, level, timeout_s)

    def readiness(self) -> Readiness:
        """Genesis loaded, engine up, quorum connected."""
        engine = self._world.engine.info().state
        lacking = self._lacks_connections()
        problems = [*([] if engine == "ready" else [f"engine is {engine}"]), *([lacking] if lacking else [])]
        return Readiness(genesis=True, engine=engine == "ready", quorum=not lacking, detail="; ".join(problems))

    def load(self) -> int:
        """Answers of all models that are under way."""
        info = self._world.engine.info()
        return info.active + info.queued

    def _lacks_connections(self) -> str:
        """Who must be connected and is not: a quorum, or for a follower of a large network some neighbours."""
        context, neighbours = self.parts.context, self.parts.neighbours
        connected = self._world.network.connected()
        if not context.is_validator and neighbours.enough(connected):
            return ""
        validators = context.validators
        reachable = sum(self._reaches(address) for address in validators.members)
        return "" if reachable >= validators.quorum else f"{reachable} of {validators.quorum} validators connected"

    def peers(self) -> tuple[PeerRow, ...]:
        """Known peers, our own row first."""
        return peer_rows(self._world.network, self.parts.directory, self.ledger.height)

    def events(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[PeerEvent]]:
        """Events from now on."""
        return self.parts.context.events.subscribe()

    async def status(self) -> Status:
        """A fresh snapshot of everything."""
        context, ledger = self.parts.context, await self.ledger.summary(ROWS)
        stats, counters = await self.stores.records.stats(), self.parts.cache.counters
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
                "shards_held": self.parts.cache.shards_announced(),
                "hits_local": counters.hits_local,
                "hits_remote": counters.hits_remote,
                "hits_semantic": counters.hits_semantic,
                "misses": counters.misses,
                "refused": counters.refused,
                **self.parts.near.view(),
            },
            consensus={
                **self.parts.agreement.view(),
                "pending": ledger.pending,
                "offences": [offence_row(row) for row in ledger.offences],
            },
            certificates=tuple(certificate_row(row) for row in ledger.blocks),
            policy=policy_view(context.policy),
            logs={
                "peer_log_size": self.stores.peer_log.size,
                "peer_log_root": hex0x(self.stores.peer_log.root),
                "network_log_size": ledger.log_size,
                "network_log_root": hex0x(ledger.log_root),
                "anchored_size": ledger.anchored_size,
                "kept_from": ledger.kept_from,
                "snapshot_height": ledger.snapshot_height,
            },
            anchors=tuple(anchor_row(row) for row in ledger.anchors),
            notices=self._notices(),
        )

    def loaded(self) -> ModelShelf:
        """The text models that are loaded, and the memory budget."""
        models = self._world.models
        return ModelShelf(self._world.engine.info().texts(), None if models is None else models.budget_mb)

    async def load_model(self, name: str, *, default: bool) -> LoadedModel:
        """Load a model of the store, perhaps as the default one."""
        row = await self._models().load(name, default=default)
        self.parts.context.events.emit("model_loaded", model=name, default=default)
        return row

    async def unload_model(self, name: str) -> None:
        """Unload a model; generations that run end first, or with an error."""
        await self._models().unload(name)
        self.parts.context.events.emit("model_unloaded", model=name)

    def _models(self) -> Models:
        if self._world.models is None:
            raise InvalidRequestError("this peer's models cannot be changed while it runs")
        return self._world.models

    async def documents(self, *, everybodys: bool) -> Sequence[DocumentRow]:
        """Documents of this peer, or all that chunks are held of."""
        return await self.parts.documents.listed(everybodys=everybodys)

    async def take_in(self, document: Digest, source: str, pieces: Sequence[Piece]) -> TakenIn:
        """Share pieces of a document."""
        return await self.parts.documents.take_in(document, source, pieces)

    async def remove_document(self, document: Digest) -> int:
        """Withdraw a document of ours."""
        return await self.parts.documents.remove(document)

    async def records(self, after: Digest | None, count: int) -> RecordPage:
        """Public records of the store, by digest."""
        return await self.parts.transfer.page(after, count)

    async def bring_records(self, bodies: Sequence[bytes]) -> Sequence[Brought]:
        """Verify and store certified records."""
        return await self.parts.transfer.bring(bodies)

    async def governance(self) -> dict[str, Any]:
        """Motions, members and the policy in force."""
        return await self.parts.motions.view()

    async def propose_motion(self, wish: Wish) -> Digest:
        """Make a motion and approve it."""
        return await self.parts.motions.propose(wish)

    async def approve_motion(self, digest: str) -> None:
        """Approve a waiting motion."""
        await self.parts.motions.approve(digest)

    async def standing(self, record: str) -> dict[str, Any]:
        """What is decided about a record."""
        return await standing_view(self.stores.ledger, record_named(record))

    async def removals(self, record: str) -> dict[str, Any]:
        """Who has proved that it removed a revoked record."""
        digest = record_named(record)
        rows = await self.parts.removals.collect(digest)
        return removals_view(digest, self.parts.context.retracted_at(digest), rows)

    async def invite(self) -> str:
        """One-time invite text."""
        return await self.parts.membership.invite()

    def _reaches(self, validator: Address) -> bool:
        peer = self.parts.directory.peer_of(validator)
        return validator == self.parts.context.address or (peer is not None and peer in self._world.network.connected())

    def _notices(self) -> tuple[str, ...]:
        validators = self.parts.context.validators
        found = list(self.stores.notices())
        if self.parts.agreement.halted is not None:
            found.append(f"consensus halted: {self.parts.agreement.halted}")
        if (reason := self.parts.examiner.lacks()) is not None:
            found.append(f"this validator abstains from every score: {reason}")
        if validators.size == 1:
            found.append("a network of one: certificates are self-certified")
        elif validators.faults == 0:
            found.append(f"{validators.size} validators: f = 0, one that fails stops certification")
        if self._world.engine.info().text.stand_in:
            found.append("answers come from a stand-in, not from a language model")
        if self.parts.membership.notice is not None:
            found.append(self.parts.membership.notice)
        return tuple(found)

    def _api(self) -> ApiServer:
        config: PeerConfig = self._config
        settings = ApiSettings(
            host=config.api.host,
            port=config.api.port,
            api_key=config.api.key or None,
            admin_key=self._identity.admin_key,
            allowed_hosts=config.api.allowed_hosts,
        )
        return ApiServer(service=self, settings=settings, clock=self._world.clock, registry=self.parts.metrics.registry)

    async def _close(self) -> None:
        with trio.CancelScope(shield=True):
            self.parts.agreement.close()
            await self.parts.scopes.close()
            await self.stores.close(self._world)


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
    calm_collector()
    await peer.run(task_status=task_status)


def calm_collector() -> None:
    """What is loaded by now lives as long as the process: the garbage collector need not look through it again.

    Its full passes took up to 0.1 s, in which no vote was heard. What messages leave behind dies young.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
