"""What happened in a simulated network: a digest over all of it, and what a report draws."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from nsllm.node.views import PeerEvent
from nsllm.p2p.memory_world import TraceEvent
from nsllm.simulations.timeline import Mark, Timeline

BUCKET_S: Final = 10.0
"""Messages are counted by protocol in steps of so many virtual seconds."""


@dataclass(frozen=True, slots=True)
class Happened:
    """An event of one peer."""

    at_s: float
    peer: int
    kind: str
    fields: dict[str, str | int | bool | None]

    def __str__(self) -> str:
        said = " ".join(f"{name}={value}" for name, value in self.fields.items() if value is not None)
        return f"{self.at_s:9.3f} s  peer {self.peer:<4} {self.kind}  {said}".rstrip()


class Trace(Timeline):
    """Digest over everything that happened: messages and state changes, each with its virtual time, in order."""

    def __init__(self, *, keep_events: bool = False, progress: Callable[[float], None] | None = None) -> None:
        """Nothing happened yet.

        Args:
            keep_events: keep every event of every peer, to be read one by one.
            progress: told of every virtual second in which something is said; a task that did it would change the run.
        """
        super().__init__(BUCKET_S)
        self._progress = progress
        self._second = 0
        self._hash = hashlib.sha256()
        self._keep = keep_events
        self.messages = 0
        self.message_bytes = 0
        self.changes = 0
        self.events: list[Happened] = []

    def message(self, event: TraceEvent) -> None:
        """A message arrived or was lost."""
        at_us, kind, _, _, label, size_bytes, _ = event
        if self._progress is not None and at_us // 1_000_000 > self._second:
            self._second = at_us // 1_000_000
            self._progress(self._second)
        self.messages += 1
        self.message_bytes += size_bytes
        if kind in {"data", "gossip"}:
            name = label.split("/")[2] if kind == "data" else "gossip"
            self.count(at_us / 1e6, name)
        self._hash.update(repr(event).encode())

    def change(self, peer: int, event: PeerEvent) -> None:
        """Something happened in a peer."""
        self.changes += 1
        at_s = trio.current_time()
        self._hash.update(repr((round(at_s * 1e6), peer, event.kind, sorted(event.fields.items()))).encode())
        if event.kind == "block":
            self.heights.append((at_s, peer, int(event.fields["height"] or 0)))
        if self._keep:
            self.events.append(Happened(at_s, peer, event.kind, dict(event.fields)))

    def mark(self, what: str, peers: tuple[int, ...]) -> None:
        """The scenario does something to the network."""
        self.marks.append(Mark(trio.current_time(), what, peers))

    def timeline(self) -> list[Mark | Happened]:
        """What scenario and peers did, in order of time."""
        both: list[Mark | Happened] = [*self.marks, *self.events]
        return sorted(both, key=lambda happened: happened.at_s)

    def state(self, name: str, value: bytes) -> None:
        """A state that the network ended in."""
        self._hash.update(repr((name, value.hex())).encode())

    def hexdigest(self) -> str:
        """SHA-256 so far."""
        return self._hash.hexdigest()
