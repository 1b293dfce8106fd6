"""Scope: within which circle a question is asked, and how what is said about it reaches that circle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nsllm.cache_dht.group import Group
from nsllm.ids import NetworkId, PeerId
from nsllm.node.federated_cache import FederatedCache, Shelves
from nsllm.record import Request, SignedRecord


class Submissions(Protocol):
    """Other validators' ears, over the submit protocol."""

    async def submit(self, validator: PeerId, signed: SignedRecord) -> str | None:
        """None if accepted, else the refusal's reason. Raises `NetworkError`."""
        ...


@dataclass(frozen=True, slots=True)
class Scope:
    """One circle: the whole network, or a group."""

    group: Group | None
    """None: the whole network."""
    cache: FederatedCache
    shelves: Shelves
    submissions: Submissions

    @property
    def name(self) -> str:
        """The group's; empty for the whole network."""
        return self.group.name if self.group is not None else ""

    def salt(self, network: NetworkId, request: Request) -> bytes:
        """What a record of this circle is salted with."""
        return self.group.salt(network, request) if self.group is not None else b""


ScopeOf = Callable[[SignedRecord], Scope | None]
"""The scope in which a record was made; None if it is of a group that we are not in."""
