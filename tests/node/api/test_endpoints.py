"""The rest of the endpoints, the table that the docs are made of, and the shape of every error."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import trio

from nsllm import __version__
from nsllm.errors import OwnFault, PeerFault, UsageError
from nsllm.node.api.app import make_app
from nsllm.node.api.context import Context
from nsllm.node.api.endpoints import ENDPOINTS, endpoint_table
from nsllm.node.api.settings import ApiSettings
from nsllm.node.engine.protocol import Load
from nsllm.node.engine.stats import Recorder
from nsllm.node.errors import NotReadyError
from nsllm.node.views import PeerEvent, Readiness

CHAT = "/v1/chat/completions"
HELLO = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Why?"}]}


def test_every_route_is_in_the_table_and_back():
    context = Context(bridge=None, service=None, settings=ApiSettings(), clock=None, metrics=None, sessions=None,
                      port=1, started_s=0)  # fmt: skip
    routes = {(r.method, r.resource.canonical) for r in make_app(context).router.routes()}
    assert routes == {(e.method, e.path.replace(":.+", "")) for e in ENDPOINTS}
    assert all(f"`{e.path.replace(':.+', '')}`" in endpoint_table() for e in ENDPOINTS)


async def test_models_come_chat_model_first(running):
    body = (await running.http.get("/v1/models")).json()
    assert [m["id"] for m in body["data"]] == ["smollm2-135m-instruct", "all-minilm-l6-v2"]
    assert body["data"][0]["nsllm"] == {
        "kind": "chat",
        "digest": "0x" + "11" * 32,
        "dtype": "bfloat16",
        "context_tokens": 8192,
        "stand_in": False,
        "upstream": False,
    }
    assert (await running.http.get("/v1/models/all-minilm-l6-v2")).json() == body["data"][1]


@pytest.mark.parametrize("name", ["gpt-9", "org/model", "a%2Fb"])
async def test_an_unknown_model_is_404(running, name):
    answer = await running.http.get(f"/v1/models/{name}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("ready", "status"),
    [(Readiness(True, True, True, "ready"), 200), (Readiness(True, True, False, "2 of 3 validators"), 503)],
)
async def test_readiness(running, ready, status):
    running.service.ready = ready
    answer = await running.http.get("/readyz")
    assert answer.status_code == status
    assert answer.json()["ready"] is (status == 200)
    assert answer.json()["detail"] == ready.detail


@pytest.mark.parametrize("path", ["/health", "/ping"])
@pytest.mark.parametrize("quorum", [True, False])
@pytest.mark.parametrize(("engine", "status"), [(True, 200), (False, 503)])
async def test_health_is_the_engines_alone_and_says_nothing(running, path, engine, status, quorum):
    running.service.ready = Readiness(True, engine, quorum, "")
    answer = await running.http.get(path)
    assert (answer.status_code, answer.content) == (status, b"")


async def test_what_monitors_of_vllm_ask(running):
    assert (await running.http.get("/version")).json() == {"version": __version__}
    running.service.at_once = 3
    assert (await running.http.get("/load")).json() == {"server_load": 3}


async def test_metrics_count_requests_by_route_never_by_path(running):
    await running.http.get("/v1/receipts/some-private-id")
    await running.http.get("/no/such/path")
    text = (await running.http.get("/metrics")).text
    assert 'nsllm_http_requests_total{method="GET",route="/v1/receipts/{id}",status="404"} 1.0' in text
    assert 'nsllm_http_requests_total{method="GET",route="unmatched",status="404"} 1.0' in text
    assert "some-private-id" not in text
    assert "nsllm_http_requests_active 1.0" in text


async def test_status_is_whole_and_none_stays_null(running):
    body = (await running.http.get("/status.json")).json()
    assert body["name"] == "atlas"
    assert body["engine"]["text"]["digest"] == "0x" + "11" * 32
    assert body["engine"]["text"]["defaults"]["temperature_micro"] == 200_000
    assert body["peers"][2]["rtt_ms"] is None
    assert body["readiness"]["ready"] is True
    assert body["certificates"][0]["height"] == 42


async def test_the_status_tells_what_the_engine_does_and_leaves_histograms_to_the_metrics(running):
    whole = await running.service.status()
    recorder = Recorder()
    recorder.step(Load(0.02, 33, 32, 0, 1, queried_tokens=80, found_tokens=20, used_blocks=3, blocks=12))
    running.service.status_now = replace(whole, engine=replace(whole.engine, stats=recorder.stats("fast", 2)))
    stats = (await running.http.get("/status.json")).json()["engine"]["stats"]
    assert (stats["path"], stats["threads"], stats["batch_tokens"], stats["step_s"]) == ("fast", 2, 33, 0.02)
    assert (stats["cache_usage"], stats["hit_rate"]) == (0.25, 0.25)
    assert stats["outcomes"] == {"stop": 0, "length": 0, "abort": 0, "error": 0}
    assert "histograms" not in stats


async def test_peers_come_own_row_first(running):
    rows = (await running.http.get("/peers")).json()["data"]
    assert rows[0]["peer_id"] == "12D3KooWOwn"
    assert rows[0]["multiaddrs"] == ["/ip4/127.0.0.1/tcp/9000/p2p/12D3KooWOwn"]


async def test_events_arrive_live_and_a_page_that_leaves_is_forgotten(running):
    service = running.service
    with trio.fail_after(10):
        async with running.http.stream("GET", "/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.aiter_lines()
            assert await anext(lines) == "retry: 2000"
            while not service.senders:
                await trio.sleep(0.01)
            service.senders[0].send_nowait(PeerEvent("certified", 5, {"height": 9, "score_ppm": None}))
            found = []
            while not found or not found[-1].startswith("data: "):
                found.append(await anext(lines))
            assert found[-2] == "event: peer"
            assert json.loads(found[-1][6:]) == {
                "kind": "certified",
                "at_ms": 5,
                "fields": {"height": 9, "score_ppm": None},
            }
            while await anext(lines) != ": still here":
                pass
        while service.event_readers:
            await trio.sleep(0.01)


async def test_pages_beyond_the_limit_are_told_so(start):
    running = await start(max_event_clients=1)
    async with running.http.stream("GET", "/events") as first:
        assert first.status_code == 200
        assert (await running.http.get("/events")).status_code == 429


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/static/../settings.py", 404, "not_found"),
        ("GET", "/static/..%2fsettings.py", 404, "not_found"),
        ("GET", "/static/nothing.js", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/admin/invite", 405, "method_not_allowed"),
        ("HEAD", "/events", 405, None),
    ],
)
async def test_what_is_not_there_is_told_in_openais_shape(running, method, path, status, code):
    answer = await running.http.request(method, path)
    assert answer.status_code == status
    if code is not None:
        assert answer.json()["error"]["code"] == code
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert (status != 405) or answer.headers["allow"]


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (b"{", 400, None, "invalid_json"),
        (json.dumps({**HELLO, "model": "gpt-9"}).encode(), 404, "model", "model_not_found"),
        (json.dumps({**HELLO, "messages": [{"role": "user", "content": "x" * 9000}]}).encode(), 400, "messages",
         "context_length_exceeded"),
        (json.dumps({**HELLO, "temperature": "hot"}).encode(), 400, "temperature", "invalid_type"),
    ],
)  # fmt: skip
async def test_bad_bodies_over_http(running, body, status, param, code):
    answer = await running.http.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotReadyError("starting"), 503, "not_ready"),
        (UsageError("cannot"), 400, "usage_error"),
        (OwnFault("disk full"), 503, "own_fault"),
        (PeerFault("they lied"), 502, "peer_fault"),
        (ZeroDivisionError("secret"), 500, "internal_error"),
        (ExceptionGroup("nursery", [NotReadyError("starting")]), 503, "not_ready"),
    ],
)
async def test_errors_of_the_peer_have_their_status(running, error, status, code):
    running.service.status_error = error
    answer = await running.http.get("/status.json")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "secret" not in answer.text
    assert (await running.http.get("/healthz")).status_code == 200


async def test_garbage_on_the_port_harms_nobody(running):
    for garbage in (b"\x00\xff" * 5000, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 500, b"\r\n\r\n", b"\x16\x03\x01"):
        stream = await trio.open_tcp_stream("127.0.0.1", running.port)
        await stream.send_all(garbage)
        await stream.aclose()
    assert (await running.http.get("/healthz")).status_code == 200


async def test_unchanged_page_files_cost_a_304(running):
    first = await running.http.get("/")
    assert first.headers["content-type"] == "text/html; charset=utf-8"
    again = await running.http.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
