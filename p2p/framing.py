"""Frames: canonical MessagePack values on a byte stream, each after its length in four bytes (big endian).

A frame of length zero is the end frame: libp2p shows a reset stream as an ended one, so an answer is complete only if
its end frame came. Deadlines belong to the caller (`trio.fail_after`).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec

from nsllm import canonical
from nsllm.errors import EncodingError
from nsllm.ids import PeerId
from nsllm.p2p.errors import FrameError, StreamClosedError
from nsllm.p2p.network import Stream

T = TypeVar("T", bound=msgspec.Struct)

HEADER_BYTES: Final = 4
END: Final = bytes(HEADER_BYTES)
"""The end frame."""
READ_BYTES: Final = 64 * 1024
"""Measured on yamux: 64 KB reads into an own buffer carry 260 MB/s, exact small reads a fraction of it."""


def frame_of(value: msgspec.Struct, limit_bytes: int) -> bytes:
    """A value as it travels. Raises `ValueError`: longer than the limit, our own mistake."""
    body = canonical.encode(value)
    if len(body) > limit_bytes:
        raise ValueError(f"{type(value).__name__} of {len(body)} bytes, frames here have at most {limit_bytes}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


class FramedStream:
    """Typed messages over one stream; one task may send while another receives."""

    def __init__(self, stream: Stream, limit_bytes: int) -> None:
        """Wrap a stream.

        Args:
            stream: closed by `aclose` or on leaving the `async with`; reset if that is by an exception.
            limit_bytes: largest frame in either direction.
        """
        self._stream = stream
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        return self._stream.peer

    async def send(self, value: msgspec.Struct) -> None:
        """Send one value.

        Raises:
            ValueError: longer than the limit: our own mistake.
            StreamClosedError: the other end, or the connection, is gone.
        """
        await self._stream.send_all(frame_of(value, self._limit_bytes))

    async def send_together(self, values: Sequence[msgspec.Struct]) -> None:
        """Send several values, a frame each, in one write, which costs far more than a frame. Raises as `send` does."""
        await self.send_frames([frame_of(value, self._limit_bytes) for value in values])

    async def send_frames(self, frames: Sequence[bytes]) -> None:
        """The same for what `frame_of` made. Raises `StreamClosedError`: the other end, or the connection, is gone."""
        await self._stream.send_all(b"".join(frames))

    async def send_end(self) -> None:
        """Send the end frame: nothing more comes from us, and nothing was lost."""
        await self._stream.send_all(END)

    async def wait_begin(self) -> None:
        """Return once the next frame has begun to come.

        Raises:
            StreamClosedError: the stream ended before.
        """
        await self._fill(1, "frame")

    async def receive(self, kind: type[T]) -> T:
        """The next value, where one must come.

        Raises:
            FrameError: too long (refused before it is read), cut short, not canonical, another type, or an end frame.
            StreamClosedError: the stream ended between two frames.
        """
        value = await self.receive_or_end(kind)
        if value is None:
            raise FrameError(f"end frame from {self.peer} where a {kind.__name__} was due")
        return value

    async def receive_or_end(self, kind: type[T]) -> T | None:
        """The next value, or None for the end frame. Raises as `receive` does."""
        await self._fill(HEADER_BYTES, kind.__name__)
        size = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
        if size > self._limit_bytes:
            raise FrameError(f"{self.peer} announced a frame of {size} bytes, the limit is {self._limit_bytes}")
        await self._fill(HEADER_BYTES + size, kind.__name__)
        body = bytes(self._buffer[HEADER_BYTES : HEADER_BYTES + size])
        del self._buffer[: HEADER_BYTES + size]
        if not body:
            return None
        try:
            return canonical.decode(body, kind, limit_bytes=self._limit_bytes)
        except EncodingError as error:
            raise FrameError(f"frame from {self.peer}: {error}") from None

    async def wait_end(self) -> None:
        """Return when the other end closes or resets the stream; what still comes before that is refused.

        Raises:
            FrameError: the other end sent something.
        """
        if self._buffer or await self._stream.receive_some(1):
            raise FrameError(f"{self.peer} sent a frame where none was due")

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()

    async def reset(self) -> None:
        """Abort the stream."""
        await self._stream.reset()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.aclose()
        else:
            await self.reset()

    async def _fill(self, size: int, whole: str) -> None:
        """Read until the buffer holds `size` bytes; nothing is taken out, so a cancelled receive can be repeated."""
        while len(self._buffer) < size:
            chunk = await self._stream.receive_some(READ_BYTES)
            if not chunk:
                if not self._buffer:
                    raise StreamClosedError(f"stream from {self.peer} ended where a {whole} or an end frame was due")
                raise FrameError(f"{whole} from {self.peer} cut short: {len(self._buffer)} of {size} bytes")
            self._buffer += chunk
