"""What a peer sends and hears, counted by protocol: for its metrics, and to compare a simulated peer with a real one.

Counted is what our own protocols say, as frames (`nsllm.p2p.framing`) and their bytes. What the libraries below say
among themselves (handshakes, acknowledgements, Kademlia's walks, gossip's upkeep) is not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

LENGTH_BYTES: Final = 4
"""Of the length before a frame."""


@dataclass(slots=True)
class Tally:
    """One protocol's numbers since the network object was made."""

    streams: int = 0
    """Opened by us."""
    messages: int = 0
    """Frames sent, end frames included, on streams of either side."""
    sent_bytes: int = 0
    """Lengths included."""

    def sent(self, data: bytes) -> None:
        """Whole frames, one after another, are handed to a stream."""
        size = len(data)
        self.sent_bytes += size
        at = 0
        while at < size:
            at += LENGTH_BYTES + int.from_bytes(data[at : at + LENGTH_BYTES], "big")
            self.messages += 1


@dataclass(slots=True)
class Traffic:
    """One network object's numbers."""

    protocols: dict[str, Tally] = field(default_factory=dict[str, Tally])
    """By name, such as `/nsllm/sync/1`."""
    published: int = 0
    """Announcements that we made."""
    heard: int = 0
    """Announcements of others that reached us."""

    def of(self, protocol: str) -> Tally:
        """The tally of one protocol, begun if it is new."""
        tally = self.protocols.get(protocol)
        if tally is None:
            tally = self.protocols[protocol] = Tally()
        return tally
