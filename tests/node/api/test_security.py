"""Who may ask: Host, Origin, fetch metadata, content type, size, keys, sessions."""

from __future__ import annotations

import httpx
import pytest
import trio

from nsllm.node.api.settings import ApiSettings
from nsllm.node.errors import ConfigError, InvalidRequestError

KEY = "a-key-of-enough-characters"
ADMIN_KEY = "nsllm-admin-0123456789abcdef"
HELLO = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Why?"}]}
CHAT = "/v1/chat/completions"


def code_of(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return answer.status_code, body["error"]["code"]


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "10.0.0.1", "evil.example:8700", "[::2]", "", "a@localhost@b", "[::1"],
)
async def test_foreign_hosts_are_refused(running, host):
    answer = await running.http.get("/status.json", headers={"Host": host})
    assert code_of(answer) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:80", "peer.lab", "localhost."])
async def test_own_and_configured_hosts_are_served(start, host):
    running = await start(allowed_hosts=("peer.LAB",))
    answer = await running.http.get("/healthz", headers={"Host": host})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "file://", "http://localhost"]
)
async def test_foreign_origins_are_refused(running, origin):
    answer = await running.http.post(CHAT, json=HELLO, headers={"Origin": origin})
    assert code_of(answer) == (403, "origin_not_allowed")
    assert not running.service.commands


async def test_the_pages_own_origin_is_served(running):
    answer = await running.http.post(CHAT, json=HELLO, headers={"Origin": running.url, "Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [
        ("cross-site", "no-cors", 403),
        ("same-site", "cors", 403),
        ("cross-site", "navigate", 200),
        ("none", "navigate", 200),
    ],
)
async def test_fetch_metadata(running, site, mode, status):
    answer = await running.http.get("/", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode})
    assert answer.status_code == status


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
                                  "application/json; charset=utf-16", None])  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings", "/session", "/admin/invite"])
async def test_only_json_is_read(running, path, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    answer = await running.http.post(path, content=b"{}", headers=headers)
    assert code_of(answer) == (415, "unsupported_media_type")


async def test_preflights_get_no_permission(running):
    answer = await running.http.options(CHAT, headers={"Origin": running.url, "Access-Control-Request-Method": "POST"})
    assert answer.status_code == 405
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
async def test_a_body_of_10_mb_is_refused_and_the_peer_lives(running, declared):
    async def pieces():
        for _ in range(160):
            yield b" " * 65_536

    content = b" " * 10_485_760 if declared else pieces()
    answer = await running.http.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    assert code_of(answer) == (413, "body_too_large")
    assert (await running.http.post(CHAT, json=HELLO)).status_code == 200


async def test_compressed_bodies_are_refused(running):
    answer = await running.http.post(CHAT, json=HELLO, headers={"Content-Encoding": "gzip"})
    assert code_of(answer)[0] in {400, 415}


async def test_a_body_that_never_ends_times_out(start):
    running = await start(body_timeout_s=0.1)
    stream = await trio.open_tcp_stream("127.0.0.1", running.port)
    await stream.send_all(
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
        + b"Content-Length: 50\r\n\r\n{"
    )
    with trio.fail_after(5):
        assert (await stream.receive_some(64)).startswith(b"HTTP/1.1 408")
    await stream.aclose()


@pytest.mark.parametrize("authorization", [None, "Bearer anything", "Basic eA==", "nonsense"])
async def test_without_a_configured_key_any_authorization_is_ignored(running, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    assert (await running.http.post(CHAT, json=HELLO, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer {KEY}", 200),
        (None, 401),
        ("Bearer wrong-key-of-enough-characters", 401),
        (f"Basic {KEY}", 401),
        (KEY, 401),
        ("Bearer", 401),
    ],
)
@pytest.mark.parametrize(
    "path", ["/v1/models", "/status.json", "/peers", "/metrics", "/v1/receipts/x", "/events", "/version", "/load"]
)
async def test_a_configured_key_is_asked_for(start, path, authorization, status):
    running = await start(api_key=KEY)
    headers = {} if authorization is None else {"Authorization": authorization}
    async with running.http.stream("GET", path, headers=headers) as answer:
        if status == 401:
            await answer.aread()
            assert code_of(answer) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"].startswith("Bearer")
        else:
            assert answer.status_code in {200, 404}


async def test_with_a_key_health_and_the_empty_page_stay_open(start):
    running = await start(api_key=KEY)
    for path in ("/healthz", "/readyz", "/health", "/ping", "/", "/session"):
        assert (await running.http.get(path)).status_code == 200, path


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4"])
def test_beyond_loopback_a_key_is_required(host):
    with pytest.raises(ConfigError, match="without an API key"):
        ApiSettings(host=host)
    assert not ApiSettings(host=host, api_key=KEY).loopback


@pytest.mark.parametrize("fields", [{"host": "peer.example"}, {"port": 70_000}, {"api_key": "short"},
                                    {"api_key": "with\nnewline in the key"}, {"max_body_bytes": 1}])  # fmt: skip
def test_settings_that_cannot_be_used_are_refused(fields):
    with pytest.raises(ConfigError):
        ApiSettings(**fields)


def test_settings_do_not_show_keys():
    assert KEY not in repr(ApiSettings(api_key=KEY, admin_key=KEY))


@pytest.mark.parametrize("header", [None, "wrong", "", "ключ", KEY])
async def test_an_invite_needs_the_admin_key(start, header):
    running = await start(api_key=KEY)
    headers = {"Authorization": f"Bearer {KEY}"}
    if header is not None:
        headers["X-NSLLM-Admin-Key"] = header.encode()
    answer = await running.http.post("/admin/invite", json={}, headers=headers)
    assert code_of(answer) == (401, "admin_key_required")


async def test_without_an_admin_key_nobody_is_let_in(start):
    running = await start(admin_key=None)
    for sent in ("", "None", ADMIN_KEY):
        answer = await running.http.post("/admin/invite", json={}, headers={"X-NSLLM-Admin-Key": sent})
        assert answer.status_code == 401


async def test_with_the_admin_key_an_invite_is_given(running):
    answer = await running.http.post("/admin/invite", json={}, headers={"X-NSLLM-Admin-Key": ADMIN_KEY})
    assert answer.json() == {"object": "invite", "invite": "nsllm-invite-v1-abc"}
    running.service.invite_error = InvalidRequestError("this peer admits nobody")
    answer = await running.http.post("/admin/invite", json={}, headers={"X-NSLLM-Admin-Key": ADMIN_KEY})
    assert code_of(answer) == (400, "invalid_request")


async def test_a_session_needs_its_cookie_and_its_token(running):
    assert code_of(await running.http.post("/session", json={})) == (401, "invalid_api_key")
    opened = await running.http.post("/session", json={}, headers={"X-NSLLM-Admin-Key": ADMIN_KEY})
    cookie = opened.headers["set-cookie"]
    assert cookie.startswith(f"nsllm_session_{running.port}=")
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    token = opened.json()["csrf"]
    assert (await running.http.get("/session")).json() == {"may_read": True, "may_administer": True, "csrf": token}
    for headers in ({}, {"X-NSLLM-CSRF": "x"}, {"X-NSLLM-CSRF": token[:-1]}):
        assert code_of(await running.http.post("/admin/invite", json={}, headers=headers)) == (403, "csrf")
    ok = await running.http.post("/admin/invite", json={}, headers={"X-NSLLM-CSRF": token})
    assert ok.status_code == 200
    running.http.cookies.clear()
    answer = await running.http.post("/admin/invite", json={}, headers={"X-NSLLM-CSRF": token})
    assert answer.status_code == 401


async def test_a_session_of_the_api_key_reads_but_does_not_administer(start):
    running = await start(api_key=KEY)
    opened = await running.http.post("/session", json={}, headers={"Authorization": f"Bearer {KEY}"})
    token = {"X-NSLLM-CSRF": opened.json()["csrf"]}
    assert (await running.http.get("/status.json")).status_code == 200
    assert (await running.http.post(CHAT, json=HELLO, headers=token)).status_code == 200
    assert code_of(await running.http.post(CHAT, json=HELLO)) == (403, "csrf")
    assert code_of(await running.http.post("/admin/invite", json={}, headers=token)) == (401, "admin_key_required")


@pytest.mark.parametrize("path", ["/", "/healthz", "/nowhere", "/v1/models"])
async def test_every_answer_carries_the_security_headers(running, path):
    headers = (await running.http.get(path)).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["server"] == "nsllm"


@pytest.mark.parametrize("path", ["/v1/models", "/nowhere", "/healthz"])
async def test_every_answer_has_an_id_the_callers_own_if_it_is_one(running, path):
    first, second = [(await running.http.get(path)).headers["x-request-id"] for _ in range(2)]
    assert first.startswith("req_")
    assert first != second
    given = await running.http.get(path, headers={"X-Request-Id": "trace-7:a/b"})
    assert given.headers["x-request-id"] == "trace-7:a/b"
    for bad in ("a b", "x" * 129, "<script>"):
        answer = await running.http.get(path, headers={"X-Request-Id": bad})
        assert answer.headers["x-request-id"].startswith("req_")
