"""The directory: the newest card counts, the registry decides who is a member."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio

from nsllm.consensus.registry import Member, admit
from nsllm.ids import Height, TimeMs
from nsllm.p2p import directory as directory_module
from nsllm.p2p.card import sign_card
from nsllm.p2p.directory import PeerState
from nsllm.p2p.errors import CardError


async def test_the_highest_sequence_wins(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    first = bob.card()
    bob.sequence = 5
    assert alice.directory.accept(bob.card())
    assert not alice.directory.accept(first)
    assert not alice.directory.accept(bob.card())
    assert alice.directory.card_of(bob.peer).sequence == 5


async def test_cards_expire(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    alice.directory.accept(bob.card())
    assert [signed.card.peer_id for signed in alice.directory.member_cards()] == [bob.peer]
    await trio.sleep(3600)
    assert alice.directory.card_of(bob.peer) is None
    assert alice.directory.multiaddrs_of(bob.peer) == ()
    assert alice.directory.member_cards() == ()


async def test_members_and_strangers(town: Any, autojump_clock: Any) -> None:
    alice, bob, carol = town.citizens
    assert alice.directory.accept(carol.card())
    assert alice.directory.member_of(carol.peer) is None
    assert alice.directory.card_of(carol.peer) is not None
    assert alice.directory.member_cards() == ()
    assert alice.directory.member_of(bob.peer).address == bob.address
    assert alice.directory.peer_of(bob.address) == bob.peer
    assert alice.directory.peer_of(carol.address) is None
    assert alice.directory.has_role(bob.peer, "validator")
    assert not alice.directory.has_role(carol.peer, "validator")


async def test_an_admission_in_a_card_makes_a_member(town: Any, autojump_clock: Any) -> None:
    alice, bob, carol = town.citizens
    member = Member(address=carol.address, peer_id=carol.peer, roles=("data",))
    carol.admission = admit(bob.member_key, alice.directory.network, member)
    assert alice.directory.accept(carol.card())
    assert alice.directory.member_of(carol.peer) == member


async def test_an_admission_by_a_stranger_is_refused(town: Any, autojump_clock: Any) -> None:
    alice, _, carol = town.citizens
    member = Member(address=carol.address, peer_id=carol.peer, roles=("data",))
    carol.admission = admit(carol.member_key, alice.directory.network, member)
    with pytest.raises(CardError, match="not a genesis member"):
        alice.directory.accept(carol.card())
    assert alice.directory.card_of(carol.peer) is None


async def test_a_card_cannot_take_a_members_name(town: Any, autojump_clock: Any) -> None:
    alice, bob, carol = town.citizens
    stolen = msgspec.structs.replace(carol.card().card, address=bob.address)
    with pytest.raises(CardError, match="the registry does not"):
        alice.directory.accept(sign_card(carol.peer_key, bob.member_key, stolen))


async def test_strangers_are_bounded(
    make_town: Callable[..., Any], autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "MAX_STRANGERS", 3)
    town = make_town(members=2, strangers=5)
    alice = town.citizens[0]
    for citizen in town.citizens[1:]:
        alice.directory.accept(citizen.card())
        alice.directory.heard(citizen.peer)
    known = [citizen.peer for citizen in town.citizens if alice.directory.card_of(citizen.peer) is not None]
    assert known == [citizen.peer for citizen in (town.citizens[1], *town.citizens[4:])]


async def test_signs_of_life(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    assert alice.directory.state_of(bob.peer) == PeerState()
    alice.directory.heard(bob.peer, rtt_s=0.25)
    await trio.sleep(2)
    alice.directory.heard(bob.peer, height=Height(3))
    assert alice.directory.state_of(bob.peer) == PeerState(
        rtt_s=0.25, height=Height(3), last_seen_s=trio.current_time()
    )


async def test_a_bad_card_changes_nothing(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    bad = msgspec.structs.replace(bob.card(), peer_signature=bytes(64))
    with pytest.raises(CardError):
        alice.directory.accept(bad)
    late = msgspec.structs.replace(bob.card().card, expires_ms=TimeMs(0))
    with pytest.raises(CardError, match="expires"):
        alice.directory.accept(sign_card(bob.peer_key, bob.member_key, late))
    assert alice.directory.card_of(bob.peer) is None
