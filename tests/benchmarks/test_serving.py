"""The load generator against a server of our own, and the figures that are made of what it saw."""

from __future__ import annotations

import asyncio
import json
import tomllib
from argparse import Namespace

import pytest

from benchmarks.contestants.process import ROOT
from benchmarks.load import Load
from benchmarks.serving import plan, summary, toml

ASKED = (
    "offered_rps",
    "completed_rps",
    "duration_s",
    "prompt_tokens",
    "completion_tokens",
    "sent",
    "failed",
    "itl_p95_ms",
    "ttft_p95_ms",
)


def chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


def event(**fields) -> bytes:
    return chunk(f"data: {json.dumps(fields, separators=(',', ':'))}\n\n")


def word(text: str) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}}])


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nx-nsllm-source: engine\r\n\r\n"
USAGE = event(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 3})
DONE = chunk("data: [DONE]\n\n") + b"0\r\n\r\n"
WHOLE = (
    HEAD
    + event(choices=[{"delta": {"role": "assistant", "content": ""}}])
    + word("one")
    + word(" [DONE]")
    + word('"')
    + USAGE
    + DONE
)
SHORT = HEAD + word("one") + event(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 1}) + DONE
REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}"
BROKEN = HEAD + word("one")
FAILED = HEAD + word("one") + event(error={"message": "the worker died"}) + DONE


def attack(replies: list[list[bytes]], rps: float = 200.0) -> tuple[list[dict], int]:
    """(rows of a load of as many requests as there are replies, connections); a reply is written in pieces."""
    left = list(replies)
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-L"))
                body = json.loads(await reader.readexactly(length))
                assert body["ignore_eos"]
                pieces = left.pop(0)
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if pieces[-1] == BROKEN:
                    return
        except (asyncio.IncompleteReadError, asyncio.CancelledError):
            return
        finally:
            writer.close()

    async def run() -> list[dict]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            options = Namespace(rps=rps, duration=len(replies) / rps, seed=3, endpoint="chat")
            wanted = plan([f"http://127.0.0.1:{port}"], ["a", "b"] * 50, "private", options)
            found = await Load(wanted | {"warmup": 0}).run()
            assert found["generator_cpu_share"] >= 0
            return found["rows"]

    return asyncio.run(run()), connections


def test_answers_are_counted_in_whatever_pieces_they_come():
    bytewise = [WHOLE[i : i + 1] for i in range(len(WHOLE))]
    rows, _ = attack([[WHOLE], bytewise, [WHOLE[:150], WHOLE[150:]]])
    for row in rows:
        assert (row["fault"], row["status"], row["source"]) == ("", 200, "engine")
        assert (row["prompt_tokens"], row["completion_tokens"], len(row["texts_s"])) == (5, 3, 3)
        assert 0 <= row["texts_s"][0] <= row["ended_s"]


def test_connections_are_kept():
    _, connections = attack([[WHOLE]] * 20, rps=50.0)
    assert connections < 20


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        (REFUSED, "status 429"),
        (BROKEN, "connection lost (None)"),
        (FAILED, "error event"),
        (SHORT, "1 tokens"),
        (WHOLE, None),
    ],
)
def test_what_fails_is_counted(reply, fault):
    rows, _ = attack([[WHOLE], [reply], [WHOLE]])
    found = summary(rows, 0.5, 3)
    assert set(ASKED) <= found.keys()
    assert (found["sent"], found["completed"], found["failed"]) == (3, 3 - bool(fault), int(bool(fault)))
    assert found["failures"] == ({fault: 1} if fault else {})
    assert found["completion_tokens"] == 3


def row(due_s: float, texts_s: list[float], ended_s: float | None, fault: str = "") -> dict:
    return {
        "due_s": due_s,
        "ended_s": ended_s,
        "texts_s": texts_s,
        "completion_tokens": 3,
        "prompt_tokens": 78,
        "source": "engine",
        "status": 200,
        "fault": fault,
    }


def test_figures():
    rows = [row(100.0 + i, [0.1, 0.15, 0.25], 0.3) for i in range(10)] + [row(110, [0.2], None, "no answer in time")]
    found = summary(rows, 10.0, 3)
    assert found["offered_rps"] == 1.1
    assert found["completed_rps"] == 1.0
    assert found["failures"] == {"no answer in time": 1}
    assert found["ttft_p95_ms"] == pytest.approx(100)
    assert (found["itl_p50_ms"], found["itl_p95_ms"]) == (pytest.approx(100), pytest.approx(100))
    assert found["prompt_tokens_with_template"] == 78


def test_a_server_that_falls_behind_completes_less_than_is_offered():
    rows = [row(float(i), [float(i), 2.0 * i], 2.0 * i) for i in range(11)]
    assert summary(rows, 10.0, 3)["completed_rps"] == pytest.approx(11 / 30)


def test_nothing_completed_is_no_data():
    found = summary([row(0.0, [], 1.0, "status 429")], 10.0)
    assert (found["completed_rps"], found["itl_p95_ms"], found["ttft_p95_ms"]) == (0.0, None, None)


@pytest.mark.parametrize(("endpoint", "field"), [("chat", "messages"), ("completions", "prompt")])
def test_both_endpoints_are_asked_for_as_many_tokens(endpoint, field):
    wanted = plan(["http://a"], ["one"], "private", Namespace(rps=1, duration=1, seed=1, endpoint=endpoint))
    (body,) = wanted["bodies"]
    assert endpoint in wanted["path"]
    assert field in body
    assert (body["max_tokens"], body["ignore_eos"], body["visibility"], body["stream"]) == (48, True, "private", True)


def test_settings_become_a_settings_file():
    text = toml(["engine.threads=2", 'api.host="127.0.0.1"', "engine.max_active=64"])
    assert tomllib.loads(text) == {"engine": {"threads": 2, "max_active": 64}, "api": {"host": "127.0.0.1"}}


def test_every_figure_is_documented():
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    measured = summary([row(0.0, [0.1, 0.2], 0.3)], 1.0, 3)
    for name in (*measured, "generator_cpu_share", "worker_rss_mb", "cpus_of_peers", "cpus_of_workers", "pipeline"):
        assert f"`{name}`" in text, name
