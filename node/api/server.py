"""The HTTP server of one peer: a trio task that owns aiohttp's thread."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio
from aiohttp import web
from prometheus_client import CollectorRegistry

from nsllm.clock import Clock
from nsllm.node.api.app import make_app
from nsllm.node.api.bridge import Bridge, run_beside
from nsllm.node.api.context import Context
from nsllm.node.api.instruments import ApiMetrics
from nsllm.node.api.sessions import Sessions
from nsllm.node.api.settings import ApiSettings
from nsllm.node.errors import ConfigError
from nsllm.node.service import PeerService

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # where the installed stubs of trio keep it

log = logging.getLogger(__name__)

BACKLOG: Final = 128
KEEPALIVE_S: Final = 75.0
LINGER_S: Final = 2.0
"""How long the rest of a refused body is read and thrown away, so that the client sees the answer."""


class ApiServer:
    """Serves the API and the status page of one peer.

    Args:
        service: the peer; only ever called in the trio loop that runs `run`.
        settings: where to listen and what to accept.
        clock: wall time for `created`.
        registry: the peer's Prometheus registry; the API adds its own metrics to it.
    """

    def __init__(
        self, *, service: PeerService, settings: ApiSettings, clock: Clock, registry: CollectorRegistry | None = None
    ) -> None:
        self._service = service
        self._settings = settings
        self._clock = clock
        self._metrics = ApiMetrics(CollectorRegistry() if registry is None else registry)

    async def run(self, task_status: TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `started()` gives the bound port. After cancellation it ends within a second.

        Raises:
            ConfigError: the port is busy, or the address is not ours.
        """
        settings = self._settings
        with _listen(settings) as listener:
            port = int(listener.getsockname()[1])

            @asynccontextmanager
            async def site(bridge: Bridge) -> AsyncIterator[None]:
                context = Context(
                    bridge=bridge,
                    service=self._service,
                    settings=settings,
                    clock=self._clock,
                    metrics=self._metrics,
                    sessions=Sessions(),
                    port=port,
                    started_s=self._clock.now_ms() // 1000,
                )
                runner = web.AppRunner(
                    make_app(context),
                    handle_signals=False,
                    handler_cancellation=True,  # a client that leaves cancels its generation
                    access_log=None,
                    shutdown_timeout=settings.stop_timeout_s,
                    keepalive_timeout=KEEPALIVE_S,
                    lingering_time=LINGER_S,
                )
                await runner.setup()
                try:
                    await web.SockSite(runner, listener, backlog=BACKLOG).start()
                    yield
                finally:
                    await runner.cleanup()

            def announce() -> None:
                log.info(
                    "api_started host=%s port=%d key=%s admin=%s",
                    settings.host,
                    port,
                    "required" if settings.api_key else "none",
                    "yes" if settings.admin_key else "no",
                )
                task_status.started(port)

            try:
                await run_beside(site, started=announce)
            finally:
                log.info("api_stopped port=%d", port)


def _listen(settings: ApiSettings) -> socket.socket:
    host = "127.0.0.1" if settings.host == "localhost" else settings.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        match error.errno:
            case errno.EADDRINUSE:
                raise ConfigError(
                    f"port {settings.port} on {settings.host} is in use by another program",
                    hint="choose another with --port, or stop the other program",
                ) from None
            case errno.EACCES:
                raise ConfigError(f"may not listen on {where}", hint="choose a --port from 1024 up") from None
            case errno.EADDRNOTAVAIL:
                raise ConfigError(f"{settings.host} is no address of this machine", hint="use 127.0.0.1") from None
            case _:
                raise ConfigError(f"cannot listen on {where}: {error.strerror}") from None
