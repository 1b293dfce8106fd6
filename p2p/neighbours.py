"""Neighbours: the members that a peer keeps connections to by itself.

In a small network these are all the others. In a large one a validator keeps the other validators, because votes go
over direct streams, and everybody else a few members drawn at random: such a graph is connected, and announcements
cross it in a few hops. Whoever else is needed, such as the holder of a shard, is dialled when it is needed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from nsllm.ids import PeerId
from nsllm.p2p.directory import PeerDirectory

SMALL: Final = 32
"""Members up to which everybody keeps everybody."""
DEGREE: Final = 4
"""Members that one of a large network keeps; about as many keep it."""


class Neighbours:
    """Chooses, and chooses again when one cannot be reached. Dials nobody itself."""

    def __init__(self, directory: PeerDirectory, own: PeerId, rng: random.Random) -> None:
        """Nobody chosen yet.

        Args:
            directory: members and their cards.
            own: our identity, which is nobody's neighbour.
            rng: draws neighbours.
        """
        self._directory = directory
        self._own = own
        self._rng = rng
        self._chosen: dict[PeerId, None] = {}

    @property
    def everybody(self) -> bool:
        """Whether the network is so small that all members are neighbours."""
        return self._directory.members_count() <= SMALL

    def keeps(self, peer: PeerId) -> bool:
        """Whether the connection to `peer` is one that we keep."""
        return self.everybody or peer in self._chosen or self._both_validate(peer)

    def paired(self, peer: PeerId) -> bool:
        """Whether the two of us need each other at once: all of a small network, validators of a large one."""
        return self.everybody or self._both_validate(peer)

    def wanted(self, reachable: Callable[[PeerId], bool]) -> tuple[PeerId, ...]:
        """Members to be connected to, ascending; draws new ones while there are too few.

        Args:
            reachable: whether some address of a member is known.
        """
        if self.everybody:
            return tuple(peer for peer in self._directory.peers() if self._is_other_member(peer) and reachable(peer))
        validators: tuple[PeerId, ...] = ()
        if self._directory.has_role(self._own, "validator"):
            validators = tuple(p for p in self._directory.with_role("validator") if p != self._own and reachable(p))
        elif len(self._chosen) < DEGREE:
            pool = [
                peer
                for peer in self._directory.carded()
                if peer not in self._chosen and self._is_other_member(peer) and reachable(peer)
            ]
            for peer in self._rng.sample(pool, min(len(pool), DEGREE - len(self._chosen))):
                self._chosen[peer] = None
        return tuple(sorted({*self._chosen, *validators}))

    def enough(self, connected: tuple[PeerId, ...]) -> bool:
        """Whether so many of the neighbours are connected that bootstrap addresses may be let go."""
        return not self.everybody and sum(self.keeps(peer) for peer in connected) >= DEGREE // 2

    def release(self, peer: PeerId) -> None:
        """A peer of a large network cannot be reached: another takes its place."""
        self._chosen.pop(peer, None)

    def _is_other_member(self, peer: PeerId) -> bool:
        return peer != self._own and self._directory.member_of(peer) is not None

    def _both_validate(self, peer: PeerId) -> bool:
        return self._directory.has_role(self._own, "validator") and self._directory.has_role(peer, "validator")
