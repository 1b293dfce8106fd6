"""When what happened in a network: heights, messages by protocol, and what a scenario did to it. A report draws it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that a scenario did to the network."""

    at_s: float
    what: str
    """Such as `killed`, `stopped`, `started`, `suspended`, `resumed`, `parted`, `slowed`, `healed`."""
    peers: tuple[int, ...]
    """Numbers of those whom it befell."""

    def __str__(self) -> str:
        return f"{self.at_s:9.3f} s  {self.what} {', '.join(map(str, self.peers))}".rstrip()


class Timeline:
    """Seconds count from the network's beginning, virtual or real."""

    def __init__(self, bucket_s: float) -> None:
        """Nothing happened yet; messages are counted by protocol in steps of `bucket_s`."""
        self.bucket_s = bucket_s
        self.by_protocol: Counter[str] = Counter()
        """Messages by protocol, or `gossip`."""
        self.over_time: dict[int, Counter[str]] = {}
        """The same for each step."""
        self.heights: list[tuple[float, int, int]] = []
        """(seconds, peer, height) of what a peer committed."""
        self.marks: list[Mark] = []

    def count(self, at_s: float, protocol: str, messages: int = 1) -> None:
        """So many messages of a protocol."""
        self.by_protocol[protocol] += messages
        self.over_time.setdefault(int(at_s / self.bucket_s), Counter())[protocol] += messages
