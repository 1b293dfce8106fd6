"""Whom a peer keeps connections to: everybody in a small network, a few in a large one."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from nsllm.p2p.neighbours import DEGREE, SMALL, Neighbours


@dataclass
class Town:
    """A directory of so many members, of whom the first few validate; everybody's card is known."""

    members: int
    validators: int = 4

    def peers(self):
        return tuple(f"{number:04}" for number in range(self.members))

    carded = peers

    def members_count(self):
        return self.members

    def member_of(self, peer):
        return peer

    def has_role(self, peer, role):
        return role == "validator" and int(peer) < self.validators

    def with_role(self, role):
        return self.peers()[: self.validators]


def everywhere(_peer: str) -> bool:
    return True


def test_in_a_small_network_everybody_keeps_everybody() -> None:
    neighbours = Neighbours(Town(SMALL), "0007", random.Random(1))
    assert len(neighbours.wanted(everywhere)) == SMALL - 1
    assert neighbours.keeps("0030")
    assert neighbours.paired("0030")
    assert not neighbours.enough(("0001",) * 9)


@pytest.mark.parametrize("members", [SMALL + 1, 1000])
def test_in_a_large_network_a_few_are_kept_and_stay(members: int) -> None:
    neighbours = Neighbours(Town(members), "0020", random.Random(1))
    chosen = neighbours.wanted(everywhere)
    assert len(chosen) == DEGREE
    assert "0020" not in chosen
    assert neighbours.wanted(everywhere) == chosen
    assert all(neighbours.keeps(peer) and not neighbours.paired(peer) for peer in chosen)
    assert neighbours.enough(chosen)
    assert not neighbours.enough(())
    neighbours.release(chosen[0])
    again = neighbours.wanted(lambda peer: peer != chosen[0])
    assert len(again) == DEGREE
    assert chosen[0] not in again


def test_validators_of_a_large_network_keep_each_other_only() -> None:
    neighbours = Neighbours(Town(1000), "0002", random.Random(1))
    assert neighbours.wanted(everywhere) == ("0000", "0001", "0003")
    assert neighbours.paired("0003")
    assert not neighbours.keeps("0500")


def test_the_neighbours_of_all_make_one_network() -> None:
    town = Town(300)
    links: dict[str, set[str]] = {peer: set() for peer in town.peers()}
    for peer in town.peers():
        for other in Neighbours(town, peer, random.Random(peer)).wanted(everywhere):
            links[peer].add(other)
            links[other].add(peer)
    reached = {"0000"}
    queue = ["0000"]
    for peer in queue:
        new = links[peer] - reached
        reached |= new
        queue.extend(sorted(new))
    assert len(reached) == 300
