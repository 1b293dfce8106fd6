"""A peer of cardboard behind the real HTTP server, and clients for it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import httpx
import pytest
import trio

from nsllm.cache_dht.document_store import DocumentRow
from nsllm.clock import SystemClock
from nsllm.errors import NsllmError
from nsllm.ids import Digest
from nsllm.node.api.server import ApiServer
from nsllm.node.api.settings import ApiSettings
from nsllm.node.api.testing import CHROMIUM_FLAGS, Seen, find_browser
from nsllm.node.api.testing import ask_and_wait as drive_page
from nsllm.node.attachments.attend import Note
from nsllm.node.chat import ChatCommand, ChatDelta, ChatEvent, ChatFinished, ChatStarted, Citation, Listener, Source
from nsllm.node.engine.port import EngineInfo, ModelInfo, PromptToken, TokenLogprob
from nsllm.node.errors import ContextOverflowError, NotFoundError, OverloadedError, UnknownModelError
from nsllm.node.service import Brought, RecordPage, TakenIn, Vectors
from nsllm.node.views import CertificateRow, PeerEvent, PeerRow, Readiness, ReceiptStatus, Status
from nsllm.record import Sampling

MODEL = "smollm2-135m-instruct"
ENCODER = "all-minilm-l6-v2"
ADMIN_KEY = "nsllm-admin-0123456789abcdef"
GENERATOR = "0x" + "a1" * 20
SIGNERS = tuple("0x" + f"{i:02x}" * 20 for i in (0xA1, 0xB2, 0xC3))


def _model(name: str, digest: int) -> ModelInfo:
    return ModelInfo(
        name=name,
        digest=Digest(bytes([digest]) * 32),
        dtype="bfloat16",
        context_tokens=8192,
        defaults=Sampling(temperature_micro=200_000, top_p_micro=900_000),
    )


@dataclass
class FakeService:
    """Implements `PeerService` with scripted answers; tests set the attributes."""

    words: Sequence[str] = ("The ", "sky ", "scatters ", "blue ", "light.")
    pace_s: float = 0.0
    before_start_s: float = 0.0
    fail_entering: Exception | None = None
    fail_after: tuple[int, Exception] | None = None
    counts_early: bool = True
    """Tokens are counted as they come, as an upstream does not."""
    says_seed: bool = False
    """Answers are the seed's number and `end`, and as likely as its remainder by 97 is small."""
    source: Source = field(default_factory=lambda: Source(kind="engine", generator=GENERATOR))
    finish_reason: str = "stop"
    notes: tuple[Note, ...] = ()
    citations: tuple[Citation, ...] = ()
    shelf: tuple[DocumentRow, ...] = ()
    taken: list = field(default_factory=list)
    stored: dict = field(default_factory=dict)
    publication: str = "pending"
    detail: str = ""
    prompt_token_ids: tuple[int, ...] = tuple(range(7))
    commands: list[ChatCommand] = field(default_factory=list)
    most_tokens: int | None = None
    embedded: list[Sequence[str | tuple[int, ...]]] = field(default_factory=list)
    sent: int = 0
    room: int = 1000
    """Completions that run at once; more are refused."""
    at_once: int = 0
    most_at_once: int = 0
    cancelled: trio.Event = field(default_factory=trio.Event)
    finished: trio.Event = field(default_factory=trio.Event)
    receipts: dict[str, ReceiptStatus] = field(default_factory=dict)
    ladder: Sequence[tuple[float, ReceiptStatus]] = ()
    """(seconds after the answer, what its receipt is then); rising."""
    born: dict[str, float] = field(default_factory=dict)
    receipts_asked: int = 0
    ready: Readiness = field(default_factory=lambda: Readiness(True, True, True, "ready"))
    senders: list[trio.MemorySendChannel[PeerEvent]] = field(default_factory=list)
    event_readers: int = 0
    invite_error: NsllmError | None = None
    wishes: list = field(default_factory=list)
    approved: list = field(default_factory=list)
    status_error: Exception | None = None
    status_now: Status | None = None

    def models(self) -> tuple[ModelInfo, ...]:
        return (_model(MODEL, 0x11), _model(ENCODER, 0x22))

    @asynccontextmanager
    async def chat(self, command: ChatCommand) -> AsyncIterator[trio.MemoryReceiveChannel[ChatEvent]]:
        self.commands.append(command)
        if self.fail_entering is not None:
            raise self.fail_entering
        if command.model != MODEL:
            raise UnknownModelError(f"no model {command.model!r} here", param="model")
        if sum(len(m.content) for m in command.messages) > 8192:
            raise ContextOverflowError("the prompt has 9000 tokens, the context is 8192", param="messages")
        number = len(self.commands)
        completion_id = f"chatcmpl-{number:024d}"
        send, receive = trio.open_memory_channel[ChatEvent](4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._generate, command, completion_id, send)
            try:
                yield receive
            finally:
                nursery.cancel_scope.cancel()

    async def answer(self, command: ChatCommand, listener: Listener) -> None:
        if self.at_once >= self.room:
            raise OverloadedError(f"{self.at_once} answers are being written", hint="ask again")
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self._tell(command, listener)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self.at_once -= 1

    async def _tell(self, command: ChatCommand, listener: Listener) -> None:
        async with self.chat(command) as events:
            async for event in events:
                await listener.send(event)

    async def tokenize(self, command: ChatCommand, *, special: bool) -> tuple[tuple[int, ...], int | None]:
        await trio.lowlevel.checkpoint()
        self.commands.append(command)
        words = [word for message in command.messages for word in message.content.split()]
        return tuple(([1] if special else []) + [len(word) for word in words]), 8192

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        await trio.lowlevel.checkpoint()
        if model not in {MODEL, "default"}:
            raise UnknownModelError(f"no model {model!r} here", param="model")
        return " ".join("x" * token for token in token_ids)

    async def token_strs(self, model: str, token_ids: Sequence[int]) -> tuple[str, ...]:
        return tuple((await self.detokenize(model, token_ids)).split(" "))

    async def _generate(
        self, command: ChatCommand, completion_id: str, send: trio.MemorySendChannel[ChatEvent]
    ) -> None:
        try:
            with send:  # not `async with`: its checkpoint would let the reader cancel a failure away
                await trio.sleep(self.before_start_s)
                await send.send(
                    ChatStarted(
                        completion_id=completion_id,
                        model=MODEL,
                        created_s=1_700_000_000,
                        source=self.source,
                        visibility=command.visibility or "public",
                        attachments=self.notes,
                        citations=self.citations,
                        prompt_tokens=7 if self.counts_early else None,
                        prompt=command.messages[0].content or " ".join(map(str, command.prompt_token_ids)),
                    )
                )
                for token in _of_prompt(command):
                    await send.send(ChatDelta("", prompt=(token,)))
                words = (f"{command.sampling.seed} ", "end") if self.says_seed else self.words
                for index, word in enumerate(words):
                    if self.fail_after is not None and self.fail_after[0] == index:
                        raise self.fail_after[1]
                    await trio.sleep(self.pace_s)
                    logprob = -((command.sampling.seed or 0) % 97) / 97 if self.says_seed else -0.5
                    await send.send(
                        ChatDelta(
                            word,
                            _told(word, command.top_logprobs, logprob),
                            tokens=index + 1 if self.counts_early else 0,
                        )
                    )
                    self.sent += 1
                await send.send(
                    ChatFinished(
                        self.finish_reason,  # type: ignore[arg-type]
                        7,
                        len(words),
                        self.publication,  # type: ignore[arg-type]
                        self.detail,
                        self.prompt_token_ids,
                        tuple(range(len(self.words))) if self.prompt_token_ids else (),
                    )
                )
            self.born[completion_id] = trio.current_time()
            self.finished.set()
        except trio.Cancelled:
            self.cancelled.set()
            raise

    async def embed(self, texts, visibility: str | None, *, most_tokens=None) -> Vectors:
        await trio.lowlevel.checkpoint()
        self.embedded.append(tuple(texts))
        self.most_tokens = most_tokens
        vectors = tuple((float(len(text)), *([0.5] * 383)) for text in texts)
        shared = 1 if visibility == "public" else 0
        tokens = sum(len(text.split()) if isinstance(text, str) else len(text) for text in texts)
        return Vectors(vectors, tokens, visibility or "private", shared)

    def load(self) -> int:
        return self.at_once

    async def receipt(self, completion_id: str) -> ReceiptStatus:
        await trio.lowlevel.checkpoint()
        self.receipts_asked += 1
        if completion_id in self.born and self.ladder:
            age_s = trio.current_time() - self.born[completion_id]
            reached = [status for after_s, status in self.ladder if age_s >= after_s]
            return replace(reached[-1], completion_id=completion_id)
        try:
            return self.receipts[completion_id]
        except KeyError:
            raise NotFoundError(f"no completion {completion_id} here", param="id") from None

    async def receipt_at(self, completion_id: str, level, timeout_s: float) -> ReceiptStatus:
        status = await self.receipt(completion_id)
        with trio.move_on_after(timeout_s):
            while not status.is_over(level):
                await trio.sleep(0.01)
                status = await self.receipt(completion_id)
        return status

    def readiness(self) -> Readiness:
        return self.ready

    async def status(self) -> Status:
        await trio.lowlevel.checkpoint()
        if self.status_error is not None:
            raise self.status_error
        return self.status_now or make_status(self)

    def peers(self) -> tuple[PeerRow, ...]:
        own = "/ip4/127.0.0.1/tcp/9000/p2p/12D3KooWOwn"
        return (
            PeerRow("12D3KooWOwn", GENERATOR, ("contributor", "data", "validator"), (own,), True, None, 42),
            PeerRow("12D3KooWFriend", SIGNERS[1], ("validator",), ("/ip4/127.0.0.1/tcp/9001",), True, 1.25, 42),
            PeerRow("12D3KooWGone", None, (), (), False, None, None),
        )

    @asynccontextmanager
    async def events(self) -> AsyncIterator[trio.MemoryReceiveChannel[PeerEvent]]:
        send, receive = trio.open_memory_channel[PeerEvent](4096)
        self.senders.append(send)
        self.event_readers += 1
        try:
            yield receive
        finally:
            self.event_readers -= 1
            self.senders.remove(send)

    async def documents(self, *, everybodys: bool):
        await trio.lowlevel.checkpoint()
        return [row for row in self.shelf if everybodys or row.member == bytes(20)]

    async def take_in(self, document, source, pieces):
        await trio.lowlevel.checkpoint()
        self.taken.append((document, source, tuple(pieces)))
        return TakenIn(len(pieces), 0, source)

    async def remove_document(self, document):
        await trio.lowlevel.checkpoint()
        if not any(row.document == document for row in self.shelf):
            raise NotFoundError("no such document", param="id")
        return 3

    async def records(self, after, count):
        await trio.lowlevel.checkpoint()
        rows = sorted(row for row in self.stored.items() if row[0] > (after or b""))[:count]
        return RecordPage(bytes(32), len(self.stored), tuple(rows), rows[-1][0] if rows else None, len(rows) == count)

    async def bring_records(self, bodies):
        await trio.lowlevel.checkpoint()
        return [
            Brought(body[:32], "stored") if len(body) >= 32 else Brought(None, "refused", "too short")
            for body in bodies
        ]

    async def governance(self) -> dict:
        await trio.lowlevel.checkpoint()
        return {"object": "governance", "waiting": [repr(wish) for wish in self.wishes]}

    async def propose_motion(self, wish):
        self.wishes.append(wish)
        return bytes(32)

    async def approve_motion(self, digest):
        self.approved.append(digest)

    async def standing(self, record: str) -> dict:
        await trio.lowlevel.checkpoint()
        return {"object": "record", "record": record, "state": "unknown"}

    async def removals(self, record: str) -> dict:
        await trio.lowlevel.checkpoint()
        return {"object": "removals", "record": record, "complete": False, "holders": []}

    async def invite(self) -> str:
        await trio.lowlevel.checkpoint()
        if self.invite_error is not None:
            raise self.invite_error
        return "nsllm-invite-v1-abc"


def _told(word: str, top: int | None, logprob: float) -> tuple[TokenLogprob, ...]:
    if top is None:
        return ()
    spelled = word.encode()
    return (TokenLogprob(spelled, logprob, ((spelled, logprob), (b"\xff", float("-inf")))[:top]),)


def _of_prompt(command: ChatCommand) -> Iterator[PromptToken]:
    """One token a character, whose id is the character's; each but the first second to `?` (63)."""
    if command.prompt_logprobs is None:
        return
    for at, char in enumerate(command.messages[-1].content):
        likely = ((63, b"?", -0.25), (ord(char), char.encode(), -1.5))[: command.prompt_logprobs]
        known = (-1.5, 2, likely) if at else (None, 0, ())
        yield PromptToken(ord(char), char.encode(), at, *known)


def make_status(service: FakeService) -> Status:
    text, encoder = service.models()
    return Status(
        version="0.1.0",
        name="atlas",
        peer_id="12D3KooWGqr7Dk4vyhDrHTh8mXc1WxpJ4fF6zUBLbXZ1o9kqYpQm",
        address=GENERATOR,
        roles=("contributor", "data", "validator"),
        network="devnet",
        network_id="0x" + "5e" * 32,
        multiaddrs=("/ip4/127.0.0.1/tcp/9000/p2p/12D3KooWGqr7Dk4vyhDrHTh8mXc1WxpJ4fF6zUBLbXZ1o9kqYpQm",),
        uptime_s=4512.0,
        default_visibility="public",
        readiness=service.ready,
        engine=EngineInfo(
            text=text, encoder=encoder, state="ready", restarts=0, active=1, queued=0, tokens_per_second=38.4
        ),
        peers=service.peers(),
        cache={
            "records": 128,
            "bytes": 1_843_200,
            "shards_held": 5,
            "hits_local": 12,
            "hits_remote": 31,
            "misses": 85,
        },
        consensus={
            "height": 42,
            "epoch": 0,
            "round": 0,
            "validators": 4,
            "quorum": 3,
            "faults": 1,
            "pending": 1,
            "halted": None,
            "offences": [],
        },
        certificates=tuple(
            CertificateRow(42 - i, 0, 1_700_000_000_000 - i * 4000, 1 + i % 3, 120 - i, 3 + i % 2, i == 1)
            for i in range(6)
        ),
        policy={
            "toxicity_max_ppm": 800_000,
            "coherence_min_ppm": 350_000,
            "reuse_min_ppm": 600_000,
            "weights": {"coherence": 400_000, "relevance": 400_000, "safety": 200_000},
        },
        logs={
            "peer_log_size": 311,
            "peer_log_root": "0x" + "c4" * 32,
            "network_log_size": 120,
            "network_log_root": "0x" + "9b" * 32,
            "kept_from": 12,
            "snapshot_height": 40,
        },
        anchors=(
            {"log_size": 119, "log_root": "0x" + "77" * 32, "tx": "0x" + "3f" * 32, "height": 41, "certified": True},
        ),
        notices=("4 validators: one may fail (f = 1)",),
    )


@dataclass
class Running:
    """A server and its clients."""

    service: FakeService
    settings: ApiSettings
    port: int
    http: httpx.AsyncClient
    url: str
    scope: trio.CancelScope
    ended: trio.Event
    """Set once the server's task is over, its thread included."""


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
async def start(service: FakeService, nursery: trio.Nursery) -> AsyncIterator[Callable[..., object]]:
    """`await start(**settings)` runs a server with the fake service; everything ends with the test."""
    async with AsyncExitStack() as stack:
        scopes: list[tuple[trio.CancelScope, trio.Event]] = []

        async def begin(**changed: object) -> Running:
            settings = ApiSettings(**{"port": 0, "admin_key": ADMIN_KEY, "event_keepalive_s": 0.2, **changed})  # type: ignore[arg-type]
            server = ApiServer(service=service, settings=settings, clock=SystemClock())
            scope, ended = trio.CancelScope(), trio.Event()

            async def serve(task_status: trio.TaskStatus[int]) -> None:
                try:
                    with scope:
                        await server.run(task_status=task_status)
                finally:
                    ended.set()

            port = await nursery.start(serve)
            scopes.append((scope, ended))
            url = f"http://127.0.0.1:{port}"
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20))
            return Running(service, settings, port, http, url, scope, ended)

        yield begin
        for scope, ended in scopes:
            scope.cancel()
            await ended.wait()


@pytest.fixture
async def running(start: Callable[..., object]) -> Running:
    """A server with default settings."""
    return await start()  # type: ignore[misc,no-any-return]


@pytest.fixture
def whole_status(service: FakeService) -> Status:
    """A status with every field filled."""
    return make_status(service)


@pytest.fixture
def ask_and_wait() -> Callable[..., Seen]:
    """Opens a page, asks, and waits for answer, score and certificate; works against any running peer."""
    return drive_page


@pytest.fixture
def browse() -> Callable[..., object]:
    """`await browse(visit, width=1280)` runs `visit(page)` in headless Chromium, in a thread of its own.

    What the page reports as an error (scripts, policy violations, failed requests) fails the test; `page.errors`.
    """
    from playwright.sync_api import sync_playwright

    def drive(visit: Callable[..., None], width: int) -> None:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_browser(), args=list(CHROMIUM_FLAGS))
            try:
                page = browser.new_page(viewport={"width": width, "height": 900})
                page.set_default_timeout(20_000)
                page.errors = []  # type: ignore[attr-defined]
                page.on("pageerror", lambda error: page.errors.append(str(error)))  # type: ignore[attr-defined]
                page.on("console", lambda line: page.errors.append(line.text) if line.type == "error" else None)  # type: ignore[attr-defined]
                visit(page)
                assert page.errors == []  # type: ignore[attr-defined]
            finally:
                browser.close()

    async def run(visit: Callable[..., None], *, width: int = 1280) -> None:
        await trio.to_thread.run_sync(drive, visit, width)

    return run


@pytest.fixture
async def slow_client() -> AsyncIterator[Callable[..., object]]:
    """`stream = await slow_client(running)`: asks for 6 MB and reads nothing; returns once the server stands still."""
    async with AsyncExitStack() as stack:

        async def connect(running: Running) -> trio.SocketStream:
            service = running.service
            service.words = ["x" * 4000] * 1500  # more than the buffers of both sockets hold
            body = b'{"model":"%s","messages":[{"role":"user","content":"Why?"}],"stream":true}' % MODEL.encode()
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(("127.0.0.1", running.port))
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(raw))
            await stack.enter_async_context(stream)
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            await stream.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            with trio.fail_after(10):
                before = -1
                while not service.sent or service.sent != before:
                    before = service.sent
                    await trio.sleep(0.2)
            assert service.sent < len(service.words)
            return stream

        yield connect
