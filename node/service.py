"""The PeerService port: what the HTTP side asks of the peer. Implemented by `nsllm.node.peer`; frozen values only.

Everything here runs in trio; `nsllm.node.api.bridge` carries calls over from aiohttp's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import trio

from nsllm.cache_dht.document_store import DocumentRow
from nsllm.ids import Address, Digest, NetworkId
from nsllm.node.attachments.attached import Attached
from nsllm.node.attachments.attend import Note
from nsllm.node.engine.port import EngineInfo, LoadedModel, ModelInfo, PromptToken, Readable, TokenLogprob
from nsllm.record import Guide, Message, Sampling, SignedChunk, Tool, Visibility


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
class ChatCommand:
    """A validated chat completion request."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    visibility: Visibility | None
    """None: the peer's default."""
    group: str = ""
    """Of a `group` request; empty: the peer's default one."""
    form: Literal["chat", "text"] = "chat"
    """`text`: the only message is the prompt as it stands."""
    prompt_token_ids: tuple[int, ...] = field(default=(), repr=False)
    """Of a text prompt that is given as tokens: the only message is empty then."""
    tools: tuple[Tool, ...] = ()
    guide: Guide | None = None
    attached: tuple[Attached, ...] = ()
    """Pictures and tables, one for each `PLACE` in the messages, in order."""
    top_logprobs: int | None = None
    """Alternatives to be told with each token; None: no log-probabilities at all."""
    prompt_logprobs: int | None = None
    """Alternatives to be told with each token of the prompt; None: nothing is told of it."""
    client: str = ""
    """Who asks: generations that wait are started in turns between clients."""
    reuse: bool = True
    """False where a cached answer may not stand in: refused, log-probabilities, several answers to one question."""
    semantic: bool = True
    """False where only an exact repeat may stand in."""
    max_wrong_ppm: int | None = None
    """Share of wrong answers among semantic hits that is accepted; None: the peer's setting."""
    return_token_ids: bool = False
    """The reply tells the tokens of prompt and answer."""
    retrieve: bool | int | None = None
    """Passages of shared documents that the model reads before the question; True: a few; None: the peer's setting."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where an answer comes from; becomes the `x-nsllm-*` headers."""

    kind: Literal["engine", "cache"]
    generator: str
    """Address (0x…) of the member that generated it."""
    score_ppm: int | None = None
    """Certified hybrid score under the present policy; None before certification."""
    height: int | None = None
    age_ms: int | None = None
    match: Literal["exact", "semantic"] | None = None
    """From the cache: an answer to the same question, or to a like one."""
    similarity_ppm: int | None = None
    """From the cache: cosine of the two questions' embeddings."""
    error_bound_ppm: int | None = None
    """From the cache: upper bound on the chance that the answer, right for its own question, is wrong for this one; 0
    for an exact match."""
    model_digest: str | None = None
    """From the cache: model (0x…) that generated it, as its generator claims."""


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage that the model read before the question."""

    chunk: Digest
    document: Digest
    """SHA-256 of the file."""
    source: str
    """The file's name."""
    start: int
    end: int
    """Characters of the document's text, the first and the one after the last."""
    member: Address
    """Who shares the document, and signed the chunk."""

    @classmethod
    def of(cls, signed: SignedChunk) -> Citation:
        """What an answer says of a chunk that it cites."""
        chunk = signed.chunk
        return cls(chunk.digest(), chunk.document, chunk.source, chunk.start, chunk.end, chunk.member)


@dataclass(frozen=True, slots=True)
class ChatStarted:
    """First event: identity of the completion and where it comes from."""

    completion_id: str
    """`chatcmpl-…`; also the receipt's id."""
    model: str
    created_s: int
    source: Source
    visibility: Visibility
    group: str = ""
    """Of a `group` request: the group's name at this peer."""
    attachments: tuple[Note, ...] = ()
    """How what was attached was used."""
    citations: tuple[Citation, ...] = ()
    """Passages that the model read, in the order of their numbers in the prompt."""
    prompt: str = field(default="", repr=False)
    """Of a text form: the prompt's text, that of its tokens if it was given as such."""
    prompt_tokens: int | None = None
    """None: they are counted at the end."""


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """Text as it comes."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens since the last delta, if they were asked for."""
    prompt: tuple[PromptToken, ...] = ()
    """Tokens of the prompt since the last delta, if they were asked for: all of them before the answer's first."""
    tokens: int = 0
    """Of the answer so far; 0 where they are counted at the end."""


@dataclass(frozen=True, slots=True)
class ChatFinished:
    """Last event."""

    finish_reason: Literal["stop", "length", "content_filter"]
    prompt_tokens: int
    completion_tokens: int
    publication: Literal["private", "pending", "unpublished", "certified", "withheld"]
    """`pending`: a record went to the validators; `unpublished`: it failed a quality threshold, see `detail`."""
    detail: str = ""
    prompt_token_ids: tuple[int, ...] = field(default=(), repr=False)
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    """Of the answer, its end token included. Both are empty where nobody knows them, or the answer was withheld."""


ChatEvent = ChatStarted | ChatDelta | ChatFinished


class Listener(Protocol):
    """Who hears of a completion; a trio memory channel is one."""

    def send_nowait(self, event: ChatEvent, /) -> None:
        """Take an event. Raises `trio.WouldBlock` if too much waits already."""
        ...

    async def send(self, event: ChatEvent, /) -> None:
        """Take an event, as soon as there is room for it."""
        ...


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


@dataclass(frozen=True, slots=True)
class ReceiptStatus:
    """What is known of a completion's receipt."""

    completion_id: str
    state: Literal["pending", "certified", "logged", "anchored", "none"]
    """`none`: there will be no receipt; `detail` says why (private, withheld, unpublished, expired)."""
    detail: str
    score_ppm: int | None
    height: int | None
    signers: tuple[str, ...]
    anchor_tx: str | None
    """Hash (0x…) of the anchor transaction once it is certified."""
    receipt_json: str | None
    """Canonical receipt at its present level; None before certification."""
    revoked_height: int | None = None
    """At which validators took the record back."""


@dataclass(frozen=True, slots=True)
class PeerEvent:
    """Something that happened, for the status page's event stream and `nsllm up`'s log."""

    kind: str
    """Such as `generation_finished`, `certified`, `anchored`, `peer_connected`, `cache_hit`."""
    at_ms: int
    fields: dict[str, str | int | bool | None]
    """Never prompts, answers or keys."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """Answer of `/readyz`."""

    genesis: bool
    engine: bool
    quorum: bool
    detail: str

    @property
    def ready(self) -> bool:
        """All three hold."""
        return self.genesis and self.engine and self.quorum


@dataclass(frozen=True, slots=True)
class PeerRow:
    """One peer that we know."""

    peer_id: str
    address: str | None
    """Member address (0x…), if its card was checked."""
    roles: tuple[str, ...]
    multiaddrs: tuple[str, ...]
    connected: bool
    rtt_ms: float | None
    height: int | None


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """One decided block, for the page."""

    height: int
    round: int
    time_ms: int
    records: int
    log_size: int
    signers: int
    anchor: bool


@dataclass(frozen=True, slots=True)
class Status:
    """The whole status page, frozen. None means no data, never a made-up value."""

    version: str
    name: str
    peer_id: str
    address: str
    roles: tuple[str, ...]
    network: str
    """Network name from the genesis."""
    network_id: str
    multiaddrs: tuple[str, ...]
    uptime_s: float
    default_visibility: Visibility
    readiness: Readiness
    engine: EngineInfo
    peers: tuple[PeerRow, ...]
    cache: dict[str, int | float | None]
    """records, bytes, shards_held, hits_local, hits_remote, hits_semantic, misses, refused, reuse_limit_ppm (None:
    semantic reuse is off), reuse_right, reuse_wrong, reuse_audits"""
    consensus: dict[str, Any]
    """height, epoch, round, validators, quorum, faults, pending, halted (reason or None), offences (newest first, at
    most 10: validator, kind, height and epoch of what it did, block that holds the evidence), observers (what each
    validator observed, came late with, abstained from and why, contradicted, since this peer started)"""
    certificates: tuple[CertificateRow, ...]
    """Newest first, at most 10."""
    policy: dict[str, Any]
    logs: dict[str, Any]
    """peer_log_size, peer_log_root, network_log_size, network_log_root, anchored_size, kept_from (the oldest block
    here), snapshot_height (of the newest snapshot here; None before the first)"""
    anchors: tuple[dict[str, Any], ...]
    """Newest first, at most 10: log_size, log_root, tx, height, certified"""
    notices: tuple[str, ...]
    """What an operator should know, such as "fewer than 4 validators: f = 0"."""


@dataclass(frozen=True, slots=True)
class ModelShelf:
    """Text models of a running peer."""

    models: tuple[LoadedModel, ...]
    """The default one first."""
    budget_mb: int | None
    """Memory for all of them together; None: no limit but what is free."""


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
