"""A stand-in for a peer's HTTP API on loopback, and the command line run in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from nsllm.cli.root import run

PIECES = ("The sky ", "is blue ", "because… ☀")
RECEIPT = '{\n  "format": "made up"\n}\n'


@dataclass
class FakePeer:
    """What the server answers, and what it was asked."""

    url: str = ""
    source: str = "engine"
    publication: str = "pending"
    final: bool = False
    """Whether the receipt comes no further than the last of `levels`."""
    levels: list[str] = field(default_factory=lambda: ["certified", "logged", "anchored"])
    """State of the receipt at each successive request; the last one stays."""
    detail: str = ""
    error_in_stream: bool = False
    attachments: list[dict[str, str]] = field(default_factory=list)
    evidence: list[dict[str, object]] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)
    """(method, path, lower-case headers, JSON body)."""

    def body(self) -> Any:
        return next(body for method, path, _, body in self.requests if path == "/v1/chat/completions")


def chunk(delta: dict[str, str], reason: str | None = None, **extra: object) -> dict[str, object]:
    return {
        "id": "chatcmpl-1",
        "model": "smol",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        **extra,
    }


def handler(peer: FakePeer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def reply(self, status: int, body: str, headers: dict[str, str] | None = None) -> None:
            raw = body.encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def note(self) -> Any:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            headers = {name.lower(): value for name, value in self.headers.items()}
            peer.requests.append((self.command, self.path, headers, body))
            return body

        def refuse(self, status: int, message: str) -> None:
            self.reply(status, json.dumps({"error": {"message": message, "type": "x", "param": None, "code": "y"}}))

        def do_GET(self) -> None:
            self.note()
            parts = urlsplit(self.path)
            match parts.path:
                case "/v1/models":
                    self.reply(200, '{"data": [{"id": "smol"}, {"id": "encoder"}]}')
                case "/peers":
                    rows = [
                        {
                            "peer_id": "A",
                            "address": "0x" + "ab" * 20,
                            "roles": ["data"],
                            "multiaddrs": ["/ip4/127.0.0.1/tcp/1/p2p/A"],
                            "connected": True,
                            "rtt_ms": None,
                            "height": 3,
                        },
                        {
                            "peer_id": "B",
                            "address": None,
                            "roles": [],
                            "multiaddrs": ["/ip4/127.0.0.1/tcp/2/p2p/B"],
                            "connected": False,
                            "rtt_ms": 1.5,
                            "height": None,
                        },
                    ]
                    self.reply(200, json.dumps({"object": "list", "data": rows}))
                case "/status.json":
                    self.reply(200, json.dumps(STATUS))
                case "/v1/receipts/chatcmpl-1":
                    self.receipt(parse_qs(parts.query))
                case "/readyz" | "/healthz":
                    self.reply(200, '{"detail": "all there"}')
                case _:
                    self.refuse(404, f"no such thing: {parts.path}")

        def receipt(self, query: dict[str, list[str]]) -> None:
            state = peer.levels.pop(0) if len(peer.levels) > 1 else peer.levels[0]
            headers = {"x-nsllm-receipt": state}
            if peer.final:
                headers["x-nsllm-receipt-final"] = "true"
            if state == "none":
                self.reply(404, '{"error": {"message": "there is no receipt: ' + peer.detail + '"}}', headers)
            elif state == "pending":
                self.reply(202, json.dumps({"state": "pending", "detail": "waits for validators"}), headers)
            else:
                headers |= {"x-nsllm-score": "0.812345", "x-nsllm-height": "7", "x-nsllm-signers": "0xaa,0xbb,0xcc"}
                if state == "anchored":
                    headers["x-nsllm-anchor"] = "0xfeed"
                self.reply(200, RECEIPT, headers)

        def do_POST(self) -> None:
            self.note()
            if self.path == "/admin/invite":
                if self.headers.get("X-NSLLM-Admin-Key", "").startswith("nsllm-admin-"):
                    self.reply(200, json.dumps({"object": "invite", "invite": peer.detail}))
                else:
                    self.refuse(403, "the admin key is wrong")
                return
            if peer.publication == "overloaded":
                self.refuse(429, "32 generations wait already")
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("x-nsllm-source", peer.source)
            self.end_headers()
            about = {
                "source": peer.source,
                "generator": "0xaa",
                "visibility": "public",
                "publication": peer.publication,
                "detail": peer.detail,
                "score_ppm": None,
                "height": None,
                "receipt": None,
                "attachments": peer.attachments,
                "evidence": peer.evidence,
            }
            chunks = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": piece}) for piece in PIECES)]
            if peer.error_in_stream:
                chunks[2:] = [{"error": {"message": "the model worker died"}}]
            else:
                chunks.append(chunk({}, "stop", nsllm=about))
            for one in chunks:
                self.wfile.write(b"data: " + json.dumps(one).encode() + b"\n\n")
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")

    return Handler


STATUS = {
    "name": "peer-0",
    "address": "0x" + "ab" * 20,
    "roles": ["data", "validator"],
    "network": "devnet",
    "network_id": "0x" + "cd" * 32,
    "readiness": {"ready": True, "detail": ""},
    "peers": [{"connected": True}, {"connected": True}, {"connected": False}],  # the asked peer first
    "engine": {
        "text": {"name": "smol", "stand_in": False},
        "state": "ready",
        "active": 0,
        "queued": 0,
        "tokens_per_second": None,
    },
    "cache": {"records": 3, "hits_local": 1, "hits_remote": 0, "misses": 2},
    "consensus": {
        "height": 7,
        "quorum": 3,
        "validators": 4,
        "pending": 0,
        "halted": None,
        "offences": [
            {"validator": "0xbad", "kind": "double_vote", "height": 5, "epoch": 0},
            {"validator": "0xbad", "kind": "double_batch", "height": None, "epoch": 1},
        ],
        "observers": [
            {"validator": "0xbad", "late": 0, "uncommitted": 2, "abstained": 1, "reason": "slow", "equivocated": True}
        ],
    },
    "logs": {"network_log_size": 5, "network_log_root": "0x" + "ef" * 32},
    "anchors": [{"log_size": 4, "tx": "0xfeed"}],
    "notices": ["[odd] notice"],
}


@pytest.fixture
def peer() -> Iterator[FakePeer]:
    fake = FakePeer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(fake))
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str

    def json(self) -> Any:
        """The one line of JSON on standard output."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


@pytest.fixture
def nsllm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Run a command line; its exit status and what it said."""
    for name in ("NSLLM_API", "NSLLM_API_KEY", "NSLLM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*args: object) -> Said:
        status = run([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return call
