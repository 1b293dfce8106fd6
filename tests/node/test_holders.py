"""Whom to ask: holders that are here, stand-ins for those that are not, in the order that everybody agrees on."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from nsllm.cache_dht.placement import Shard
from nsllm.consensus.registry import Member, RegistryState
from nsllm.ids import Address
from nsllm.node.holders import IN_LINE, Holders
from nsllm.p2p.neighbours import SMALL

SHARD = Shard("key", 5)
MEMBERS = [
    Member(address=Address(bytes([number + 1]) * 20), peer_id=f"p{number}", roles=("contributor", "data"))
    for number in range(20)
]


@dataclass
class Registry:
    state: RegistryState
    large: bool = False

    def members(self):
        return self.state.members * (2 if self.large else 1)


@dataclass
class Context:
    genesis: object
    network_id: bytes
    registry: Registry
    address: Address


@dataclass
class Network:
    peer_id: str = "nobody"
    here: tuple[str, ...] = ()

    def connected(self):
        return self.here

    async def find_providers(self, key, limit=8):
        return ("p1", self.peer_id)


class Town:
    def __init__(self, cast) -> None:
        self.network = Network()
        self.registry = Registry(RegistryState.of(MEMBERS))
        context = Context(cast.context.genesis, cast.context.network_id, self.registry, Address(bytes(20)))
        self.names = {member.address: member.peer_id for member in MEMBERS}
        self.holders = Holders(context, self.network, self.names.get)
        self.line = [self.names[address] for address in self.holders.line(SHARD)]


@pytest.fixture
def town(cast) -> Town:
    return Town(cast)


def test_holders_stand_first_in_line(cast, town) -> None:
    copies = cast.context.genesis.placement.replication
    assert len(town.line) == IN_LINE * copies
    assert [town.names[address] for address in town.holders.named(SHARD)] == town.line[:copies]
    assert not town.holders.in_line(SHARD)


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        ((0, 1, 2, 3), (0, 1)),
        ((1, 2, 3), (1, 2, 0)),
        ((2, 5, 7), (2, 5, 0, 1)),
        ((0, 3), (0, 3, 1)),
        ((), (0, 1)),
    ],
)
def test_stand_ins_are_asked_for_holders_that_are_away(town, here, expected) -> None:
    town.network.here = tuple(sorted(town.line[place] for place in here))
    assert town.holders.to_ask(SHARD) == tuple(town.line[place] for place in expected)


def test_in_a_large_network_who_is_not_connected_is_not_away(town) -> None:
    town.registry.large = True
    town.network.here = tuple(sorted(town.line[place] for place in (1, 2, 3)))
    assert town.holders.to_ask(SHARD) == (town.line[1], town.line[0])
    assert 2 * len(MEMBERS) > SMALL


def test_we_do_not_ask_ourselves(town) -> None:
    town.network.peer_id = town.line[0]
    town.network.here = tuple(sorted(town.line[1:]))
    assert town.holders.to_ask(SHARD) == (town.line[1],)


def test_a_block_that_changes_the_members_changes_the_holders(town) -> None:
    gone = town.line[0]
    town.registry.state = RegistryState.of([member for member in MEMBERS if member.peer_id != gone])
    assert [town.names[address] for address in town.holders.line(SHARD)][:7] == town.line[1:]


async def test_the_dht_knows_others(town) -> None:
    town.network.peer_id = "p0"
    assert await town.holders.announced(SHARD) == ("p1",)
