"""The upstream engine against servers that misbehave: refusals, silence, garbage, and callers that leave."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest
import trio

from nsllm.errors import NsllmError
from nsllm.node.engine import upstream as module
from nsllm.node.engine.port import Done, EngineRequest, Piece, TokenLogprob
from nsllm.node.engine.sse import MAX_EVENT_BYTES, EventReader
from nsllm.node.engine.tools import parse_answer
from nsllm.node.engine.upstream import Upstream, UpstreamEngine, upstream_digest
from nsllm.node.engine.upstream_wire import parse_chunk, refusal
from nsllm.node.errors import ContextOverflowError, EngineError, InvalidRequestError, OverloadedError
from nsllm.record import Guide, Message, Sampling
from nsllm.simulations.standin import StandInEngine, stand_in_digest

MODEL = "big-model"
PROMPT = "a secret question"
CHAT = (Message(role="user", content=PROMPT),)
SSE = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n"
Reply = Callable[["Server", trio.SocketStream], Awaitable[None]]


def event(value: object) -> str:
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n"


def delta(text: str | None, reason: str | None = None, **more: object) -> str:
    return event({"choices": [{"index": 0, "delta": {"content": text, **more}, "finish_reason": reason}]})


END = (
    delta(None, "stop")
    + event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}})
    + event("[DONE]")
)
GOOD = delta("", role="assistant") + delta("Hello ") + delta("wörld") + END


def says(text: str, *, then: Reply | None = None) -> Reply:
    """Send this, and whatever `then` does; the connection closes after that."""

    async def reply(server: Server, stream: trio.SocketStream) -> None:
        await stream.send_all(text.encode())
        if then is not None:
            await then(server, stream)

    return reply


def status(code: int, body: object = "", **headers: str) -> Reply:
    raw = json.dumps(body)
    lines = [f"HTTP/1.1 {code} Whatever", f"Content-Length: {len(raw)}", "Content-Type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return says("\r\n".join(lines) + f"\r\n\r\n{raw}")


async def until_left(server: Server, stream: trio.SocketStream) -> None:
    """Say nothing until the client has closed its end."""
    while await stream.receive_some(1024):
        pass
    server.left.set()


async def forever(server: Server, stream: trio.SocketStream) -> None:
    """An event that does not end."""
    try:
        while True:
            await stream.send_all(b"data: " + b"x" * 65536)
    except trio.BrokenResourceError:
        server.left.set()


@dataclass
class Server:
    """Speaks just enough HTTP."""

    replies: list[Reply] = field(default_factory=lambda: [says(SSE + GOOD)])
    """To one POST after another; the last one stays."""
    listing: Reply = field(default_factory=lambda: status(200, {"data": [{"id": MODEL, "max_model_len": 4096}]}))
    requests: list[tuple[str, str, dict]] = field(default_factory=list)
    """(request line, headers, body) of each POST."""
    left: trio.Event = field(default_factory=trio.Event)
    port: int = 0

    async def handle(self, stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some(4096)
        text, _, rest = head.partition(b"\r\n\r\n")
        line, _, headers = text.decode().partition("\r\n")
        if line.startswith("GET"):
            await self.listing(self, stream)
        else:
            length = int(headers.lower().partition("content-length: ")[2].partition("\r\n")[0])
            while len(rest) < length:
                rest += await stream.receive_some(4096)
            self.requests.append((line, headers, json.loads(rest)))
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            await reply(self, stream)
        await stream.aclose()


@pytest.fixture
async def server(nursery):
    server = Server()
    listeners = await nursery.start(lambda task_status: trio.serve_tcp(
        server.handle, 0, host="127.0.0.1", task_status=task_status))  # fmt: skip
    server.port = listeners[0].socket.getsockname()[1]
    return server


@pytest.fixture
def engine(server, nursery, monkeypatch):
    """`await engine(**changes of Upstream or of the engine)`: an engine that is looked after."""
    monkeypatch.setattr(module, "RETRY_PAUSES_S", (0.001, 0.001))
    monkeypatch.setattr(module, "CHECK_DOWN_S", 0.01)
    monkeypatch.setattr(module, "MIN_CHECK_S", 0.001)

    async def start(*, max_active=4, max_queue=4, **changed) -> UpstreamEngine:
        upstream = Upstream(url=f"http://127.0.0.1:{server.port}/v1", model=MODEL)
        made = UpstreamEngine(
            local=StandInEngine(), upstream=replace(upstream, **changed), max_active=max_active, max_queue=max_queue,
            max_tokens=77, rng=random.Random(1),
        )  # fmt: skip
        await nursery.start(made.run)
        return made

    return start


async def collect(engine: UpstreamEngine, sampling: Sampling | None = None) -> tuple[list[Piece], Done]:
    async with engine.generate(EngineRequest(CHAT, sampling or Sampling())) as events:
        *pieces, done = [item async for item in events]
    assert isinstance(done, Done)
    return pieces, done


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not holds():
            await trio.sleep(0.005)


# a server that behaves


async def test_an_answer_has_text_and_counts_but_no_token_ids(engine, server):
    pieces, done = await collect(await engine())
    assert [piece.text for piece in pieces] == ["Hello ", "wörld"]
    assert {piece.token_ids for piece in pieces} == {()}
    assert done == Done("stop", (), Sampling(max_tokens=77), (9, 2))
    assert done.usage([]) == (9, 2)


async def test_what_the_caller_left_open_is_the_servers_choice(engine, server):
    await collect(await engine(key="k-123"))
    ((line, headers, body),) = server.requests
    assert line == "POST /v1/chat/completions HTTP/1.1"
    assert "authorization: bearer k-123" in headers.lower()
    assert body == {
        "model": MODEL,
        "messages": [{"role": "user", "content": PROMPT}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 77,
    }


def called(*deltas: dict[str, object]) -> str:
    """A chunk with pieces of tool calls."""
    return delta(None, tool_calls=[{"index": 0, "type": "function", **one} for one in deltas])


TWO_CALLS = (
    delta("Let me see.")
    + called({"id": "a", "function": {"name": "now", "arguments": ""}})
    + called({"id": "b", "function": {"name": "get", "arguments": '{"city": '}})
    + called({"function": {"arguments": '"Rome"}'}})
)
WRITTEN = (
    'Let me see.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get", "arguments": {"city": "Rome"}}\n</tool_call>'
)


async def test_calls_become_text_as_our_own_models_write_them(engine, server):
    server.replies = [says(SSE + TWO_CALLS + delta(None, "tool_calls") + event("[DONE]"))]
    pieces, done = await collect(await engine())
    assert "".join(piece.text for piece in pieces) == WRITTEN
    assert done.finish_reason == "stop"
    answer = parse_answer(WRITTEN, [], random.Random(1))
    assert [(call.name, call.arguments) for call in answer.calls] == [("now", "{}"), ("get", '{"city": "Rome"}')]


async def test_a_call_that_is_cut_off_stays_open(engine, server):
    server.replies = [says(SSE + TWO_CALLS + delta(None, "length") + event("[DONE]"))]
    pieces, done = await collect(await engine())
    assert "".join(piece.text for piece in pieces) == WRITTEN.removesuffix("}\n</tool_call>")
    assert done.finish_reason == "length"


async def test_log_probabilities_come_with_the_text(engine, server):
    told = {"token": "ö", "logprob": -0.5, "bytes": [195, 182], "top_logprobs": [{"token": "o", "logprob": -0.7}]}
    chunk = {"choices": [{"index": 0, "delta": {"content": "ö"}, "logprobs": {"content": [told]}}]}
    server.replies = [says(SSE + event(chunk) + END)]
    made = await engine()
    async with made.generate(EngineRequest(CHAT, Sampling(), top_logprobs=1)) as events:
        pieces = [item async for item in events if isinstance(item, Piece)]
    assert pieces[0].logprobs == (TokenLogprob("ö".encode(), -0.5, ((b"o", -0.7),)),)
    pieces, _ = await collect(made)  # not asked for
    assert pieces[0].logprobs == ()


async def test_log_probabilities_in_another_shape_are_an_error(engine, server):
    server.replies = [says(SSE + event({"choices": [{"index": 0, "delta": {}, "logprobs": {"content": 3}}]}) + END)]
    made = await engine()
    with pytest.raises(EngineError, match="log-probabilities"):
        async with made.generate(EngineRequest(CHAT, Sampling(), top_logprobs=1)) as events:
            async for _ in events:
                pass


async def test_a_text_prompt_is_continued(engine, server):
    chunk = event({"choices": [{"index": 0, "text": " upon a time", "finish_reason": None}]})
    server.replies = [says(SSE + chunk + event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}))]
    made = await engine()
    async with made.generate(EngineRequest(CHAT, Sampling(), form="text")) as events:
        *pieces, done = [item async for item in events]
    assert [piece.text for piece in pieces] == [" upon a time"]
    assert done.finish_reason == "length"
    ((line, _, _),) = server.requests
    assert line == "POST /v1/completions HTTP/1.1"


async def test_what_the_server_has_no_word_for_is_never_sent(engine, server):
    made = await engine()
    with pytest.raises(InvalidRequestError, match="no regex"):
        async with made.generate(EngineRequest(CHAT, Sampling(), guide=Guide(kind="regex", text="a"))):
            pass
    assert server.requests == []


async def test_info_says_what_is_claimed_and_what_judges(engine, server):
    made = await engine()
    await until(lambda: made.info().state == "ready")
    info = made.info()
    assert (info.text.name, info.text.dtype, info.text.upstream, info.text.context_tokens) == (
        MODEL,
        "upstream",
        True,
        4096,
    )
    assert info.text.digest == upstream_digest(MODEL) != upstream_digest("other")
    assert info.scorer.digest == stand_in_digest("text")
    assert info.encoder.digest == stand_in_digest("encoder")
    assert len((await made.embed(["x"]))[0]) == 384
    assert (await made.embed_counted(["x y"]))[1] == 2
    assert len(await made.likelihoods([(CHAT, "x")])) == 1


async def test_a_model_that_thinks_aloud_makes_progress_without_text(engine, server):
    server.replies = [says(SSE + delta(None, reasoning_content="hm") + delta(None, reasoning="hm") + GOOD)]
    pieces, _ = await collect(await engine())
    assert [piece.text for piece in pieces] == ["", "", "Hello ", "wörld"]


async def test_without_usage_nothing_is_counted(engine, server):
    server.replies = [says(SSE + delta("x") + delta("", "length"))]
    _, done = await collect(await engine())
    assert (done.finish_reason, done.counted, done.usage([])) == ("length", None, (0, 0))


async def test_an_answer_longer_than_a_record_ends_there(engine, server, monkeypatch):
    monkeypatch.setattr("nsllm.node.engine.upstream_answer.MAX_TEXT_CHARS", 8)
    server.replies = [says(SSE + delta("12345") + delta("67890"), then=until_left)]
    pieces, done = await collect(await engine())
    assert "".join(piece.text for piece in pieces) == "12345678"
    assert done.finish_reason == "length"
    await server.left.wait()


# a server that does not


REFUSALS = [
    (status(400, {"error": {"code": "context_length_exceeded", "message": "x"}}), ContextOverflowError, "no numbers"),
    (
        status(400, {"object": "error", "message": f"This model's maximum context length is 4096 tokens. However, you"
                     f" requested 5000 tokens ({PROMPT})", "code": 400}),
        ContextOverflowError, "4096 and 5000 tokens",
    ),
    (
        status(400, {"error": {"type": "exceed_context_size_error", "message": "request (5000 tokens) exceeds the"
                     " available context size (4096 tokens), try increasing it"}}),
        ContextOverflowError, "5000 and 4096",
    ),
    (status(422, {"detail": f"cannot read {PROMPT}"}), InvalidRequestError, r"HTTP 422\)"),
    (status(413, "not even an object"), InvalidRequestError, "HTTP 413"),
    (status(401, {"error": {"code": "invalid_api_key", "message": PROMPT}}), EngineError, "401, invalid_api_key"),
    (status(404, {"error": {"message": PROMPT}}), EngineError, "engine.upstream_model"),
    (status(429, {"error": {"message": PROMPT}}, Retry_After="7"), OverloadedError, "busy"),
    (status(500, {"error": {"message": PROMPT}}), EngineError, "HTTP 500"),
    (status(307, "", Location="http://127.0.0.1:1/"), EngineError, "redirects are not followed"),
    (status(200, {}), EngineError, "event stream"),
    (says(SSE.replace("\r\n\r\n", "\r\nContent-Encoding: gzip\r\n\r\n")), EngineError, "gzip"),
    (says(SSE + "<html>no</html>\n"), EngineError, "no field"),
    (says(SSE + event("{")), EngineError, "no completion chunk"),
    (says(SSE + event({"hello": 1})), EngineError, "no completion chunk"),
    (says(SSE + event({"choices": [{"index": 1, "delta": {"content": "x"}}]})), EngineError, "one choice"),
    (says(SSE + "data: \xff\n\n"), EngineError, "no completion chunk"),
    (says(SSE, then=forever), EngineError, f"more than {MAX_EVENT_BYTES} bytes"),
    (says(SSE + event({"error": {"code": 429, "message": PROMPT}})), OverloadedError, "busy"),
    (says(SSE + event({"error": {"message": PROMPT}})), EngineError, "HTTP 500"),
    (says(SSE + event("[DONE]")), EngineError, "before its first token"),
    (says(SSE), EngineError, "before its first token"),
    (says(SSE + delta("", "content_filter")), InvalidRequestError, "withheld"),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "kind", "match"), REFUSALS)
async def test_what_goes_wrong_is_named_once_and_without_content(engine, server, reply, kind, match, caplog):
    server.replies = [reply]
    made = await engine()
    with trio.fail_after(30), pytest.raises(NsllmError) as caught:
        await collect(made)
    assert type(caught.value) is kind
    assert caught.match(match)
    assert PROMPT not in str(caught.value) + caplog.text
    assert len(server.requests) == 1
    assert made.info().active == 0


async def test_the_servers_wait_is_passed_on(engine, server):
    server.replies = [status(429, {}, Retry_After="7")]
    with pytest.raises(OverloadedError) as caught:
        await collect(await engine())
    assert caught.value.retry_after_s == 7


@pytest.mark.parametrize("failure", [status(503), status(502), says(""), says("HTTP/1.1 200 OK\r\nContent-Ty")])
async def test_what_may_pass_is_tried_again_before_the_first_token(engine, server, failure):
    server.replies = [failure, failure, says(SSE + GOOD)]
    pieces, _ = await collect(await engine())
    assert "".join(piece.text for piece in pieces) == "Hello wörld"
    assert len(server.requests) == 3


LOADING = status(503, {"error": {"message": "Loading model", "type": "unavailable_error"}})
EMPTY = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("failure", "said"), [(LOADING, "503, unavailable_error"), (says(EMPTY), "broke off before its first token")]
)
async def test_attempts_are_bounded(engine, server, failure, said):
    server.replies = [failure]
    with pytest.raises(EngineError, match=said):
        await collect(await engine())
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("more", "match"),
    [("", "without saying why"), (delta("y")[:20], "without saying why"), (event("?"), "no completion")],
)
async def test_an_answer_that_has_begun_is_not_begun_again(engine, server, more, match):
    server.replies = [says(SSE + delta("Hello") + more)]
    got = []
    with pytest.raises(EngineError, match=match):
        async with (await engine()).generate(EngineRequest(CHAT, Sampling())) as events:
            async for item in events:
                got.append(item)  # noqa: PERF401 - it breaks off
    assert [piece.text for piece in got] == ["Hello"]
    assert len(server.requests) == 1


async def test_what_came_before_an_error_is_handed_out(engine, server):
    server.replies = [says(SSE + delta("Hello ") + delta("wörld") + event({"error": {"message": PROMPT}}))]
    got = []
    with pytest.raises(EngineError, match="HTTP 500"):
        async with (await engine()).generate(EngineRequest(CHAT, Sampling())) as events:
            async for item in events:
                got.append(item)  # noqa: PERF401 - it breaks off
    assert [piece.text for piece in got] == ["Hello ", "wörld"]


async def test_a_broken_connection_in_mid_answer_is_an_error(engine, server):
    chunked = SSE.replace("Connection: close", "Transfer-Encoding: chunked")
    first = delta("Hello")
    server.replies = [says(f"{chunked}{len(first):x}\r\n{first}\r\n")]
    with pytest.raises(EngineError, match="broke off in mid-answer"):
        await collect(await engine())
    assert len(server.requests) == 1


async def test_silence_before_the_first_token_ends_the_request(engine, server):
    server.replies = [says(SSE + ": still here\n\n", then=until_left)]
    with pytest.raises(EngineError, match=r"no token within 0\.1 s"):
        await collect(await engine(first_token_s=0.1))
    await server.left.wait()
    assert len(server.requests) == 1


async def test_silence_between_tokens_ends_the_request(engine, server):
    async def chatter(server: Server, stream: trio.SocketStream) -> None:
        try:
            while True:  # neither comments nor empty chunks are progress
                await stream.send_all(b": ping\n\n" + delta("").encode())
                await trio.sleep(0.01)
        except trio.BrokenResourceError:
            server.left.set()

    server.replies = [says(SSE + delta("Hello"), then=chatter)]
    with pytest.raises(EngineError, match=r"silent for 0\.1 s"):
        await collect(await engine(between_tokens_s=0.1))
    await server.left.wait()


async def test_leaving_closes_the_request_at_the_server(engine, server):
    server.replies = [says(SSE + delta("Hello"), then=until_left)]
    made = await engine()
    async with made.generate(EngineRequest(CHAT, Sampling())) as events:
        assert (await anext(aiter(events))).text == "Hello"
        assert made.info().active == 1
    with trio.fail_after(10):
        await server.left.wait()
    assert made.info().active == 0


async def test_cancelling_while_it_waits_closes_the_request(engine, server):
    server.replies = [says(SSE, then=until_left)]
    made = await engine()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, made)
        await until(lambda: bool(server.requests))
        nursery.cancel_scope.cancel()
    with trio.fail_after(10):
        await server.left.wait()
    assert made.info().active == 0


async def test_what_does_not_fit_waits_and_then_is_refused(engine, server):
    server.replies = [says(SSE + delta("Hello"), then=until_left)]
    made = await engine(max_active=1, max_queue=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, made)
        await until(lambda: len(server.requests) == 1)
        nursery.start_soon(collect, made)
        await until(lambda: made.info().queued == 1)
        with pytest.raises(OverloadedError, match="1 answers are being written and 1 wait"):
            await collect(made)
        nursery.cancel_scope.cancel()


# its health


async def test_a_server_that_goes_away_and_comes_back_is_noticed(engine, server, monkeypatch):
    monkeypatch.setattr(module, "CHECK_READY_S", 0.01)
    made = await engine()
    good = server.listing
    await until(lambda: made.info().state == "ready")
    server.listing = status(503)
    await until(lambda: made.info().state == "restarting")
    assert made.info().restarts == 1
    server.listing = good
    await until(lambda: made.info().state == "ready")
    assert made.info().restarts == 1


async def test_a_failed_request_has_the_server_looked_at(engine, server):
    made = await engine()
    await until(lambda: made.info().state == "ready")
    server.listing, server.replies = status(503), [status(503)]
    with pytest.raises(EngineError):
        await collect(made)
    await until(lambda: made.info().state == "restarting")


@pytest.mark.parametrize(
    ("listing", "match"),
    [
        (status(200, {"data": [{"id": "small-model"}]}), "does not list model 'big-model', but 1 others"),
        (status(200, ["?"]), "no such list"),
        (status(302, "", Location="http://127.0.0.1:1/"), "HTTP 302"),
        (says(""), "not reached"),
        (says("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", then=forever), "longer than 4 MiB"),
        (says("", then=until_left), "did not list its models within"),
    ],
)
async def test_a_server_without_the_model_is_not_asked(engine, server, listing, match, monkeypatch):
    monkeypatch.setattr(module, "CHECK_LIMIT_S", 0.2)
    server.listing = listing
    made = await engine(connect_s=0.3)
    with pytest.raises(EngineError, match=match):
        await collect(made)
    assert server.requests == []
    assert made.info().state == "starting"


async def test_the_worse_state_is_shown(engine, server, monkeypatch):
    made = await engine()
    await until(lambda: made.info().state == "ready")
    local = made._local.info()
    for state in ("failed", "starting", "restarting"):
        monkeypatch.setattr(made._local, "info", lambda state=state: replace(local, state=state, restarts=3))
        assert (made.info().state, made.info().restarts) == (state, 3)


def test_a_key_is_in_no_repr():
    assert "hush" not in repr(Upstream(url="http://x/v1", model="m", key="hush"))


# pieces


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_are_the_same_however_the_bytes_are_cut(size):
    raw = b": hi\r\nid: 1\r\ndata: a\r\ndata:b\r\n\r\nevent: x\n\ndata: c\n\ndata: unfinished"
    reader = EventReader()
    found = [item for start in range(0, len(raw), size) for item in reader.feed(raw[start : start + size])]
    assert found == [b"a\nb", b"c"]


def test_an_event_of_many_lines_is_bounded_too():
    reader = EventReader()
    with pytest.raises(EngineError, match="more than"):
        for _ in range(MAX_EVENT_BYTES):
            reader.feed(b"data: xxxxxxxxxxxx\n")


def test_a_chunk_may_be_empty_of_choices_only_with_the_field():
    assert parse_chunk(b'{"choices":[]}').choices == ()
    with pytest.raises(EngineError):
        parse_chunk(b"[]")


def test_a_wait_of_hours_is_not_passed_on():
    assert refusal(429, b"", "999999").retry_after_s == 600
    assert refusal(429, b"", "Wed, 21 Oct 2026 07:28:00 GMT").retry_after_s == 1
