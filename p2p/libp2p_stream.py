"""libp2p's streams behind our Stream port: one error, one end, and no wait on a frozen peer when closing."""

from __future__ import annotations

import logging
from typing import Any, Final

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.peerstore import PeerStoreError
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamReset

from nsllm.ids import PeerId
from nsllm.p2p.errors import StreamClosedError
from nsllm.p2p.traffic import Tally

log = logging.getLogger(__name__)

LINGER_S: Final = 10.0
"""A stream that we closed and the other end did not is reset after this; half-closed streams leak in the library."""

STREAM_ERRORS: Final = (
    BaseLibp2pError,
    PeerStoreError,
    OSError,
    ValueError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)
"""What libp2p lets out of an operation when the stream, its connection or the peer's addresses are gone."""


class Libp2pStream:
    """One stream; implements `nsllm.p2p.network.Stream`."""

    def __init__(self, inner: Any, nursery: trio.Nursery, tally: Tally | None = None) -> None:
        """Wrap a libp2p `NetStream`; `nursery` carries the closing, `tally` counts what is sent."""
        self._inner = inner
        self._nursery = nursery
        self._tally = tally
        self._peer = PeerId(str(inner.muxed_conn.peer_id))
        self._finished = False

    @property
    def peer(self) -> PeerId:
        """Who is at the other end, proved by the noise handshake."""
        return self._peer

    async def send_all(self, data: bytes) -> None:
        """See `Stream.send_all`. Yamux gives up on a receiver that reads nothing for five seconds."""
        try:
            await self._inner.muxed_stream.write(data)
        except STREAM_ERRORS as error:
            raise StreamClosedError(f"stream to {self._peer}: {type(error).__name__}: {error}") from None
        if self._tally is not None:
            self._tally.sent(data)

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """See `Stream.receive_some`."""
        try:
            data: bytes = await self._inner.muxed_stream.read(max_bytes)
        except (MuxedStreamEOF, MuxedStreamReset):
            return b""
        except STREAM_ERRORS as error:
            raise StreamClosedError(f"stream from {self._peer}: {type(error).__name__}: {error}") from None
        return data

    async def aclose(self) -> None:
        """Close; what was sent still arrives."""
        if not self._finished:
            self._finished = True
            self._nursery.start_soon(self._close)
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """Abort."""
        if not self._finished:
            self._finished = True
            self._nursery.start_soon(self._reset)
        await trio.lowlevel.checkpoint()

    async def _close(self) -> None:
        with trio.move_on_after(LINGER_S):
            try:
                await self._inner.close()
            except STREAM_ERRORS:
                return
            pause_s = 0.05
            while not self._inner.muxed_stream.recv_closed and not self._inner.muxed_conn.is_closed:
                await trio.sleep(pause_s)
                pause_s = min(1.0, pause_s * 2)
            return
        await self._reset()

    async def _reset(self) -> None:
        with trio.move_on_after(LINGER_S):
            try:
                await self._inner.reset()
            except STREAM_ERRORS as error:
                log.debug("reset_failed peer=%s error=%s", self._peer, error)
