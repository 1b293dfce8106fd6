"""Every endpoint once: what the router serves, what the middleware asks for, and what the docs list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Access = Literal["open", "key", "admin"]
"""`open`: anybody who reaches the port. `key`: the API key, if one is configured. `admin`: always the admin key."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    """As aiohttp writes it."""
    access: Access
    description: str


ENDPOINTS: Final = (
    Endpoint("POST", "/v1/chat/completions", "key", "Chat completion, plain or as server-sent events"),
    Endpoint(
        "POST", "/v1/completions", "key", "Text goes on, without the chat template; plain or as server-sent events"
    ),
    Endpoint("POST", "/v1/embeddings", "key", "Embeddings as floats or base64 of little-endian float32"),
    Endpoint("POST", "/tokenize", "key", "Tokens of a prompt or a conversation, how many, and what the context holds"),
    Endpoint("POST", "/detokenize", "key", "The text of tokens"),
    Endpoint("GET", "/v1/models", "key", "The chat models, the default one first, then the encoder"),
    Endpoint("GET", "/v1/models/{id:.+}", "key", "One model"),
    Endpoint(
        "GET",
        "/v1/receipts/{id}",
        "key",
        "Receipt of a completion: 200 with the receipt, 202 while pending, 404 if there is none; "
        "`?wait=certified|logged|anchored&timeout_s=30` waits for a level",
    ),
    Endpoint(
        "GET",
        "/v1/records/{digest}",
        "key",
        "Standing of a record (`0x…`): `certified`, `revoked` or `unknown`, with the proof of its retraction",
    ),
    Endpoint("GET", "/status.json", "key", "The whole status of the peer, a fresh snapshot"),
    Endpoint("GET", "/peers", "key", "Known peers with dialable addresses, the asked peer first"),
    Endpoint("GET", "/events", "key", "What happens on the peer, as server-sent events"),
    Endpoint("GET", "/metrics", "key", "Prometheus metrics"),
    Endpoint("GET", "/healthz", "open", "200 while the peer's loop answers"),
    Endpoint("GET", "/readyz", "open", "200 once genesis is loaded, the engine is up and a quorum is connected"),
    Endpoint("GET", "/health", "open", "As vLLM's: 200 with an empty body when the engine can answer, else 503"),
    Endpoint("GET", "/ping", "open", "The same as `/health`"),
    Endpoint("GET", "/version", "key", 'Of this program: `{"version": …}`'),
    Endpoint("GET", "/load", "key", 'Answers that are generated or wait: `{"server_load": …}`'),
    Endpoint("GET", "/", "open", "The status page; what it shows comes from the endpoints above"),
    Endpoint("GET", "/static/{name}", "open", "Style, script and mark of the status page"),
    Endpoint("GET", "/session", "open", "What the page's session may do, and its CSRF token"),
    Endpoint("POST", "/session", "open", "Log the page in: API key as bearer, admin key as `X-NSLLM-Admin-Key`"),
    Endpoint("POST", "/admin/invite", "admin", "A one-time invite for another machine"),
    Endpoint("GET", "/admin/governance", "admin", "Motions that wait or were decided, members, the policy in force"),
    Endpoint(
        "POST",
        "/admin/governance",
        "admin",
        'Moves and approves: `{"kind": "suspend", "address": "0x…"}`, or `admit`, `policy`, `revoke`, or `retract` with'
        ' `"record": "0x…"`',
    ),
    Endpoint("POST", "/admin/governance/approve", "admin", 'Approves a waiting motion: `{"motion": "0x…"}`'),
    Endpoint(
        "GET", "/admin/removals/{digest}", "admin", "Which members have signed that they removed a revoked record"
    ),
    Endpoint(
        "GET",
        "/admin/cache/records",
        "admin",
        "Public certified records of the store by digest, as base64; `?after=0x…&limit=64`",
    ),
    Endpoint(
        "POST",
        "/admin/cache/records",
        "admin",
        'Verifies and stores records: `{"records": [BASE64, …]}`, at most 64; says of each whether it was stored',
    ),
    Endpoint(
        "GET",
        "/admin/documents",
        "admin",
        "Documents that this peer shares; `?all=1`: all that it holds chunks of",
    ),
    Endpoint(
        "POST",
        "/admin/documents",
        "admin",
        "Shares chunks of a document: its SHA-256, its name, and at most 64 chunks with their spans; those that are"
        " known are passed over",
    ),
    Endpoint("DELETE", "/admin/documents/{id}", "admin", "Withdraws a document of this peer, here and at its holders"),
    Endpoint("GET", "/admin/models", "admin", "Text models that are loaded, what they take, and the memory budget"),
    Endpoint(
        "POST",
        "/admin/models",
        "admin",
        'Loads a model of the store: `{"model": NAME, "default": true}`; answers once it runs, 507 without the memory',
    ),
    Endpoint("DELETE", "/admin/models/{id}", "admin", "Unloads a model once its generations have ended, or after 30 s"),
)


def endpoint_table() -> str:
    """The table as Markdown, for the docs.

    >>> endpoint_table().splitlines()[2]
    '| POST | `/v1/chat/completions` | key | Chat completion, plain or as server-sent events |'
    """
    rows = [
        f"| {e.method} | `{e.path.replace(':.+', '')}` | {e.access} | {e.description.replace('|', chr(92) + '|')} |"
        for e in ENDPOINTS
    ]
    return "\n".join(["| method | path | access | what it does |", "|---|---|---|---|", *rows])
