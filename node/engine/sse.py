"""Server-sent events out of a byte stream that another program writes: strict, and bounded before anything is built.

Source: WHATWG HTML, section 9.2 (server-sent events), without lone carriage returns, which nobody sends.
"""

from __future__ import annotations

from typing import Final

from nsllm.node.errors import EngineError

MAX_EVENT_BYTES: Final = 256 * 1024
"""One event, its unfinished line included; a token's event has some hundred bytes."""
FIELDS: Final = frozenset({b"data", b"event", b"id", b"retry"})


class EventReader:
    """Collects bytes, hands out the data of each event that is whole."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._event_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that `chunk` completes, in order; comments and events without data are left out.

        Raises:
            EngineError: an event or a line beyond `MAX_EVENT_BYTES`, or a line that is no field.
        """
        found: list[bytes] = []
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            line = bytes(self._line + part).removesuffix(b"\r")
            self._line.clear()
            self._bounded(len(line))
            if line:
                self._field(line)
            else:
                if self._data:
                    found.append(b"\n".join(self._data))
                self._data.clear()
                self._event_bytes = 0
        self._line += rest
        self._bounded(len(self._line))
        return found

    def _bounded(self, line_bytes: int) -> None:
        if self._event_bytes + line_bytes > MAX_EVENT_BYTES:
            raise EngineError(f"the upstream sent an event of more than {MAX_EVENT_BYTES} bytes")

    def _field(self, line: bytes) -> None:
        self._event_bytes += len(line)
        name, _, value = line.partition(b":")
        if not name:  # a comment, which keeps a connection alive
            return
        if name not in FIELDS:
            raise EngineError(f"the upstream's answer is no event stream: a line of {len(line)} bytes is no field")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
