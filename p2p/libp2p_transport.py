"""TCP for the libp2p host: refuses private addresses outside local networks, and never leaves a write half done.

Three traps of libp2p 0.8.1 end here. A write that is cancelled between encryption and sending desynchronises noise and
costs every stream of the connection: writes are queued, and a task of the network's own finishes them. A frozen peer
would block shielded clean-up inside the library: a write waits only while much is queued, and a connection that takes
nothing for a while is closed. An inbound connection holds its slot until the host stops: the slot is given back when
the connection closes.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCP
from libp2p.utils.multiaddr_utils import extract_ip_from_multiaddr

from nsllm.p2p.guard import CLEANUP_S

HIGH_WATER_BYTES: Final = 512 * 1024
"""Queued bytes beyond which writers wait."""
STALL_S: Final = 15.0
"""A connection that takes no byte for this long is closed."""
DIAL_S: Final = 8.0
"""Opening a TCP connection takes at most this long."""
_SEND_BYTES: Final = 256 * 1024
_READ_BYTES: Final = 64 * 1024


class SteadyStream:
    """A TCP connection whose queued writes always finish; stands where libp2p expects a `ReadWriteCloser`."""

    def __init__(self, inner: Any, nursery: trio.Nursery) -> None:
        """Wrap `libp2p.io.trio.TrioTCPStream`; `nursery` carries the writing."""
        self._inner = inner
        self._nursery = nursery
        self._queue = bytearray()
        self._unread = b""
        self._draining = False
        self._failed: Exception | None = None
        self._moved = trio.Event()
        self.closed = trio.Event()

    async def write(self, data: bytes) -> None:
        """Hand `data` to the kernel, or queue what it does not take; waits while much is queued already.

        Raises:
            ConnectionClosedError: the connection is gone.
        """
        if self._failed is not None or self.closed.is_set():
            raise ConnectionClosedError("TCP connection is gone", transport="tcp") from self._failed
        taken = 0 if self._draining else self._send_now(data)
        if taken == len(data):
            return
        self._queue += data[taken:]
        if not self._draining:
            self._draining = True
            self._nursery.start_soon(self._drain)
        while len(self._queue) > HIGH_WATER_BYTES and not self.closed.is_set():
            self._moved = trio.Event()
            await self._moved.wait()

    async def read(self, n: int | None = None) -> bytes:
        """Up to `n` bytes, empty at the end. The library asks for a few bytes at a time; the socket is read in one."""
        if not self._unread:
            try:
                self._unread = await self._inner.stream.receive_some(_READ_BYTES)
            except trio.BrokenResourceError as error:
                raise ConnectionClosedError(f"TCP connection reset: {error}", transport="tcp") from error
            except trio.ClosedResourceError:
                return b""  # by ourselves
        data, self._unread = (self._unread, b"") if n is None else (self._unread[:n], self._unread[n:])
        return data

    async def close(self) -> None:
        """Send what is queued if that goes quickly, then close."""
        with trio.move_on_after(CLEANUP_S) as scope:
            scope.shield = True
            while self._draining and self._failed is None and not self.closed.is_set():
                self._moved = trio.Event()
                await self._moved.wait()
        self.closed.set()
        self._moved.set()
        await self._inner.close()

    def get_remote_address(self) -> Any:
        """(host, port) of the other end, or None."""
        return self._inner.get_remote_address()

    def _send_now(self, data: bytes) -> int:
        """Bytes that the kernel takes without waiting: all of them, as a rule, at a fraction of a task's cost."""
        try:
            return os.write(self._inner.stream.socket.fileno(), data)
        except OSError:
            return 0  # it would block, or the connection is gone, which the draining task finds out

    async def _drain(self) -> None:
        try:
            while self._queue and not self.closed.is_set():
                chunk = bytes(self._queue[:_SEND_BYTES])
                del self._queue[:_SEND_BYTES]
                with trio.fail_after(STALL_S):
                    await self._inner.stream.send_all(chunk)
                self._moved.set()
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            self._failed = error
            self._draining = False
            await self.close()
        finally:
            self._draining = False
            self._moved.set()


class GuardedTcp(TCP):  # type: ignore[misc]
    """TCP that wraps every connection in a `SteadyStream` and dials private ranges only in local networks."""

    def __init__(self, *, local: bool, nursery: trio.Nursery) -> None:
        super().__init__()
        self._local = local
        self._nursery = nursery

    async def _dial_resolved(self, maddr: Any, source: tuple[str, int] | None = None) -> Any:
        """Dial an address whose name is resolved already, so that no name leads into a private range."""
        host = extract_ip_from_multiaddr(maddr)
        if host is not None and not self._local and not ipaddress.ip_address(host).is_global:
            raise OpenConnectionError(f"{maddr} is in a private range, which only local networks dial")
        try:
            with trio.fail_after(DIAL_S):
                connection = await super()._dial_resolved(maddr, source)
        except trio.TooSlowError:
            raise OpenConnectionError(f"no answer from {maddr} within {DIAL_S} s") from None
        connection.stream = SteadyStream(connection.stream, self._nursery)
        return connection

    def create_listener(self, handler_function: Callable[[Any], Awaitable[None]]) -> Any:
        """A listener whose handler ends with its connection, which gives the library's inbound slot back."""

        async def handler(inner: Any) -> None:
            steady = SteadyStream(inner, self._nursery)
            async with trio.open_nursery() as nursery:

                async def serve() -> None:
                    await handler_function(steady)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(serve)
                await steady.closed.wait()
                nursery.cancel_scope.cancel()

        return super().create_listener(handler)
