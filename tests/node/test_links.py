"""Catching up does not depend on one peer: claims of height are free, so whoever did not help comes last."""

from __future__ import annotations

import pytest
import trio

from nsllm.node import links
from nsllm.node.links import BlockFeed
from nsllm.p2p.directory import PeerState
from nsllm.p2p.errors import DeadlineError


class Town:
    """Four members and how high each claims to be."""

    heights = {"liar": 10**9, "mute": 500, "good": 40, "slow": 39}  # noqa: RUF012 - read only

    def connected(self):
        return tuple(sorted([*self.heights, "stranger"]))

    def member_of(self, peer):
        return None if peer == "stranger" else peer

    def state_of(self, peer):
        return PeerState(height=self.heights[peer])


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    asked: list[str] = []

    async def blocks(_fetcher, peer, start, count):
        asked.append(peer)
        await trio.lowlevel.checkpoint()
        if peer == "mute":
            raise DeadlineError("silent")
        return [] if peer == "slow" else [f"{peer}'s blocks"]

    monkeypatch.setattr(links.BlockFetcher, "blocks", blocks)
    return asked


async def test_whoever_claims_most_is_asked_first_and_last_again_when_it_did_not_help(asked) -> None:
    feed = BlockFeed(Town(), Town())
    assert await feed.fetch(7, 16) == ["liar's blocks"]
    assert await feed.fetch(7, 16) == ["good's blocks"]  # asked again: what the liar gave was worth nothing
    assert asked == ["liar", "mute", "good"]
    assert await feed.fetch(8, 16) == ["liar's blocks"]  # a new height, a new chance
    assert asked == ["liar", "mute", "good", "liar"]


async def test_everybody_has_a_turn_and_then_it_begins_anew(asked) -> None:
    feed = BlockFeed(Town(), Town())
    given = [await feed.fetch(7, 16) for _ in range(3)]
    assert given == [["liar's blocks"], ["good's blocks"], ["liar's blocks"]]
    assert asked == ["liar", "mute", "good", "slow", "liar"]


async def test_a_peer_that_never_answers_is_not_asked_twice_in_a_row(asked, monkeypatch, autojump_clock) -> None:
    async def hang(_fetcher, peer, start, count):
        asked.append(peer)
        await trio.sleep_forever()

    monkeypatch.setattr(links.BlockFetcher, "blocks", hang)
    feed = BlockFeed(Town(), Town())
    for _ in range(4):
        with trio.move_on_after(10):  # as the driver gives up
            await feed.fetch(7, 16)
    assert sorted(asked) == sorted(Town.heights)


async def test_without_members_there_is_nothing(asked) -> None:
    class Alone(Town):
        def connected(self):
            return ("stranger",)

    assert await BlockFeed(Alone(), Alone()).fetch(7, 16) == ()
    assert asked == []


async def test_whoever_gave_what_is_no_chain_is_not_asked_for_a_while(asked, autojump_clock) -> None:
    feed = BlockFeed(Town(), Town())
    for start in range(7, 10):
        if await feed.fetch(start, 16) == ["liar's blocks"]:
            assert feed.refuse()
    assert asked.count("liar") == 1
    await trio.sleep(links.REFUSED_S)
    assert await feed.fetch(10, 16) == ["liar's blocks"]


async def test_when_all_were_refused_it_begins_anew(asked, autojump_clock) -> None:
    class Village(Town):
        heights = {"only": 7}  # noqa: RUF012 - read only

    feed = BlockFeed(Village(), Village())
    for _ in range(2):
        assert await feed.fetch(7, 16) == ["only's blocks"]
        assert not feed.refuse()
