"""Holders: the members that placement gives a shard to, who stands in for those that are away, and whom to ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nsllm.cache_dht import placement
from nsllm.cache_dht.placement import Shard
from nsllm.ids import Address, PeerId
from nsllm.node.context import PeerContext
from nsllm.p2p.neighbours import SMALL
from nsllm.p2p.network import Network

IN_LINE: Final = 4
"""Members in line for a shard, for each copy: one that holds it, and those next in the order, who stand in."""


class Holders:
    """Who holds what, by the members of today; a block that changes them changes the answers."""

    def __init__(self, context: PeerContext, network: Network, peer_of: Callable[[Address], PeerId | None]) -> None:
        """Look up in the registry of `context`.

        Args:
            context: who we are, and the members after the last block.
            network: says who is connected, and asks the DHT.
            peer_of: present libp2p identity of a member.
        """
        self._context = context
        self._network = network
        self._peer_of = peer_of
        self._placement = context.genesis.placement
        self._holding: tuple[Address, ...] = ()
        self._lines: dict[Shard, tuple[Address, ...]] = {}
        """What `line` found for `_holding`."""

    def line(self, shard: Shard) -> tuple[Address, ...]:
        """Members in line for a shard: its holders, then those who stand in for holders that are away, in order."""
        holding = self._context.registry.state.holding
        if holding is not self._holding:
            self._holding = holding
            self._lines.clear()
        line = self._lines.get(shard)
        if line is None:
            count = IN_LINE * self._placement.replication
            line = self._lines[shard] = placement.holders(self._context.network_id, shard, holding, count)
        return line

    def named(self, shard: Shard) -> tuple[Address, ...]:
        """Members that placement gives the shard to."""
        return self.line(shard)[: self._placement.replication]

    def in_line(self, shard: Shard) -> bool:
        """Whether we are: records of the shard are taken from whoever has reason to give them."""
        return self._context.address in self.line(shard)

    def is_here(self, member: Address) -> bool:
        """Whether a member is connected."""
        return self._peer_of(member) in self._network.connected()

    def to_ask(self, shard: Shard) -> tuple[PeerId, ...]:
        """Whom to ask for what is in a shard: holders that are connected, stand-ins for the others, then those.

        In a large network most members are not connected, and yet not away: there stand-ins are left to the DHT.
        """
        connected = self._network.connected()
        peers = [peer for address in self.line(shard) if (peer := self._peer_of(address)) is not None]
        named = [peer for peer in peers[: self._placement.replication] if peer != self._network.peer_id]
        here = [peer for peer in named if peer in connected]
        away = [peer for peer in named if peer not in connected]
        if len(self._context.registry.members()) > SMALL:
            return (*here, *away)
        stand_ins = [peer for peer in peers[self._placement.replication :] if peer in connected]
        return (*here, *stand_ins[: len(away)], *away)

    async def announced(self, shard: Shard) -> tuple[PeerId, ...]:
        """Who says in the DHT that it has something of a shard.

        Raises:
            NetworkError: the DHT does not answer.
        """
        found = await self._network.find_providers(shard.provider_key(self._context.network_id))
        return tuple(peer for peer in found if peer != self._network.peer_id)
