"""What every handler reaches: the bridge, the peer's port, settings, clock and the API's own small state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from nsllm.clock import Clock
from nsllm.node.api.bridge import Bridge
from nsllm.node.api.instruments import ApiMetrics
from nsllm.node.api.sessions import Sessions
from nsllm.node.api.settings import ApiSettings
from nsllm.node.service import PeerService


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One per server; lives in the asyncio thread. `service` is only ever called through `bridge`."""

    bridge: Bridge
    service: PeerService
    settings: ApiSettings
    clock: Clock
    metrics: ApiMetrics
    sessions: Sessions
    port: int
    """Bound port. Browsers keep cookies by host, not port: it tells the peers of one machine apart."""
    started_s: int
    """Unix time at which the server started; the models' `created`."""
    event_clients: set[object] = field(default_factory=set)
    """Pages that follow `/events` now."""


CONTEXT: Final = web.AppKey("context", Context)
