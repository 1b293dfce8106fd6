"""The PeerService port: what the HTTP side asks of the peer. Implemented by `nsllm.node.peer`; frozen values only.

Everything here runs in trio; `nsllm.node.api.bridge` carries calls over from aiohttp's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import trio

from nsllm.cache_dht.document_store import DocumentRow
from nsllm.ids import Digest, NetworkId
from nsllm.node.chat import ChatCommand, ChatEvent, Listener
from nsllm.node.engine.port import LoadedModel, ModelInfo, Readable
from nsllm.node.views import ModelShelf, PeerEvent, PeerRow, Readiness, ReceiptLevel, ReceiptStatus, Status
from nsllm.record import Visibility


@dataclass(frozen=True, slots=True)
class Wish:
    """What an operator asks for, as text."""

    kind: str
    """`admit`, `policy`, `retract`, `revoke` or `suspend`."""
    address: str | None = None
    """0x and 40 hex digits: whom it is about."""
    peer_id: str | None = None
    """For `admit` of somebody who is no member yet."""
    roles: tuple[str, ...] = ()
    """For `admit`: all that the member shall have; none: those that it has."""
    policy: str | None = None
    """For `policy`: its JSON."""
    record: str | None = None
    """For `retract`: 0x and 64 hex digits."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """Embeddings of some texts."""

    vectors: tuple[tuple[float, ...], ...]
    """Unit vectors, in the order of the texts."""
    tokens: int
    visibility: Literal["private", "public"]
    """`public`: they are shared with the network."""
    shared: int
    """How many different ones were there already, from this peer or another."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk of a document before it is embedded and signed."""

    number: int
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class TakenIn:
    """What became of pieces of a document."""

    added: int
    known: int
    source: str
    """The name that the document has here: that of the first time."""


@dataclass(frozen=True, slots=True)
class RecordPage:
    """Some of the store's public records, by ascending digest."""

    network: NetworkId
    records: int
    """In the whole store."""
    rows: tuple[tuple[Digest, bytes], ...]
    """Digest and canonical certified record."""
    last: Digest | None
    """Of the last that was looked at: where the next page begins."""
    more: bool


@dataclass(frozen=True, slots=True)
class Brought:
    """What became of a record that was brought."""

    record: Digest | None
    """None if it cannot even be read."""
    outcome: Literal["stored", "known", "refused"]
    reason: str = ""


class PeerService(Protocol):
    """One running peer."""

    def models(self) -> tuple[ModelInfo, ...]:
        """The chat models, the default one first, then the encoder."""
        ...

    def chat(self, command: ChatCommand) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[ChatEvent]]:
        """Run one completion; leaving the context cancels it.

        Raises `ServiceError` (or `EngineError`) on leaving when the channel ended without `ChatFinished`.
        """
        ...

    async def answer(self, command: ChatCommand, listener: Listener) -> None:
        """Run one completion in this task and tell `listener` of it; returns after `ChatFinished`.

        Raises:
            ServiceError, EngineError: what ended it.
        """
        ...

    async def tokenize(self, command: ChatCommand, *, special: bool) -> tuple[tuple[int, ...], int | None]:
        """Tokens of what is asked, and how many the model's context holds (None: an upstream that does not say).

        Args:
            command: model, messages, form, tools and attachments count.
            special: of a text, with the tokens that the tokenizer puts before one.

        Raises:
            ServiceError, EngineError: see `Engine.tokenize`.
        """
        ...

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """Text that tokens of a model spell. Raises `ServiceError`, `EngineError`."""
        ...

    async def token_strs(self, model: str, token_ids: Sequence[int]) -> tuple[str, ...]:
        """Each token as a model's vocabulary writes it. Raises `ServiceError`, `EngineError`."""
        ...

    async def embed(
        self, texts: Sequence[Readable], visibility: Visibility | None, *, most_tokens: int | None = None
    ) -> Vectors:
        """Unit vectors and token count, see `Engine.embed_counted`."""
        ...

    async def receipt(self, completion_id: str) -> ReceiptStatus:
        """Raises `NotFoundError` for an id that this peer never gave out."""
        ...

    async def receipt_at(self, completion_id: str, level: ReceiptLevel, timeout_s: float) -> ReceiptStatus:
        """The receipt as soon as it has reached `level`, can no longer reach it, or time is up: whatever it is then.

        Raises:
            NotFoundError: this peer never gave out that id.
        """
        ...

    def readiness(self) -> Readiness:
        """Cheap; for `/readyz`."""
        ...

    def load(self) -> int:
        """Answers of this peer's models that are generated now or wait for it; for `/load`."""
        ...

    async def status(self) -> Status:
        """A fresh snapshot."""
        ...

    def peers(self) -> tuple[PeerRow, ...]:
        """Known peers, our own row first."""
        ...

    def events(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[PeerEvent]]:
        """Events from now on; a slow reader loses the oldest."""
        ...

    def loaded(self) -> ModelShelf:
        """The text models that are loaded, and the memory budget."""
        ...

    async def load_model(self, name: str, *, default: bool) -> LoadedModel:
        """Load a model of the store, perhaps as the default one; needs the admin key at the HTTP side.

        Raises `ServiceError`, `UsageError` or `EngineError` if there is none, no memory for it, or it does not start.
        """
        ...

    async def unload_model(self, name: str) -> None:
        """Unload a model; generations that run end first, or with an error. Raises `ServiceError`."""
        ...

    async def documents(self, *, everybodys: bool) -> Sequence[DocumentRow]:
        """Documents of this peer, or all that chunks are held of; needs the admin key at the HTTP side."""
        ...

    async def take_in(self, document: Digest, source: str, pieces: Sequence[Piece]) -> TakenIn:
        """Share pieces of a document; needs the admin key at the HTTP side. Raises `ServiceError`, `OwnFault`."""
        ...

    async def remove_document(self, document: Digest) -> int:
        """Withdraw a document of ours; needs the admin key at the HTTP side. Raises `NotFoundError`."""
        ...

    async def records(self, after: Digest | None, count: int) -> RecordPage:
        """Public records of the store, by digest; needs the admin key at the HTTP side. Raises `OwnFault`."""
        ...

    async def bring_records(self, bodies: Sequence[bytes]) -> Sequence[Brought]:
        """Verify and store certified records; needs the admin key at the HTTP side. Raises `OwnFault`."""
        ...

    async def governance(self) -> dict[str, Any]:
        """Motions, members and the policy in force; needs the admin key at the HTTP side."""
        ...

    async def propose_motion(self, wish: Wish) -> Digest:
        """Make a motion and approve it; needs the admin key at the HTTP side. Raises `ServiceError` if we cannot."""
        ...

    async def approve_motion(self, digest: str) -> None:
        """Approve a waiting motion; needs the admin key at the HTTP side. Raises `ServiceError` if we cannot."""
        ...

    async def standing(self, record: str) -> dict[str, Any]:
        """What is decided about a record: certified or not, revoked or not, with the proof. Raises `ServiceError`."""
        ...

    async def removals(self, record: str) -> dict[str, Any]:
        """Who has proved that it removed a revoked record; needs the admin key at the HTTP side: others are asked.

        Raises `ServiceError`.
        """
        ...

    async def invite(self) -> str:
        """One-time invite text; needs the admin key at the HTTP side. Raises `ServiceError` if we cannot admit."""
        ...
