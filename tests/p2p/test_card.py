"""Cards: both keys vouch for every field; the peer id is the key's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.peer.id import ID

from nsllm.consensus.registry import Admission, admit
from nsllm.crypto import MemberKey
from nsllm.errors import SignatureError
from nsllm.ids import Address, Height, NetworkId, PeerId, Signature, TimeMs
from nsllm.p2p.card import MAX_TERM_MS, CardModel, SignedCard, sign_card
from nsllm.p2p.errors import CardError
from nsllm.p2p.identity import PeerKey, peer_id_of, verify_peer

OTHER_PEER = PeerKey(bytes([9]) * 32)
OTHER_MEMBER = MemberKey(bytes([9]) * 32)
NOW = TimeMs(1_700_000_000_000)


@pytest.mark.parametrize("secret", [bytes([n]) * 32 for n in (1, 77, 255)])
def test_peer_ids_are_libp2ps(secret: bytes) -> None:
    public_key = Ed25519PrivateKey.from_bytes(secret).get_public_key()
    assert PeerKey(secret).public_key == public_key.to_bytes()
    assert PeerKey(secret).peer_id == str(ID.from_pubkey(public_key))


def test_a_peer_key_hides_its_secret() -> None:
    assert repr(OTHER_PEER) == f"PeerKey({OTHER_PEER.peer_id})"
    with pytest.raises(ValueError, match="32"):
        PeerKey(b"short")
    with pytest.raises(ValueError, match="32"):
        peer_id_of(b"short")


def test_peer_signatures() -> None:
    signature = OTHER_PEER.sign(b"message")
    verify_peer(b"message", signature, OTHER_PEER.public_key)
    for message, signed, key in (
        (b"other", signature, OTHER_PEER.public_key),
        (b"message", bytes(64), OTHER_PEER.public_key),
        (b"message", signature, PeerKey(bytes([8]) * 32).public_key),
        (b"message", signature[:-1], OTHER_PEER.public_key),
    ):
        with pytest.raises(SignatureError):
            verify_peer(message, signed, key)


async def test_a_fresh_card_holds(make_card: Callable[[], SignedCard], autojump_clock: Any) -> None:
    signed = make_card()
    now_ms = TimeMs(signed.card.expires_ms - 1000)
    signed.checked(signed.card.network, now_ms)


CHANGES: dict[str, Any] = {
    "network": NetworkId(bytes(32)),
    "peer_id": OTHER_PEER.peer_id,
    "public_key": OTHER_PEER.public_key,
    "address": OTHER_MEMBER.address,
    "roles": ("data",),
    "models": (CardModel(name="m", digest=bytes(32)),),
    "multiaddrs": (f"/memory/9/p2p/{PeerKey(bytes([1]) * 32).peer_id}",),
    "sequence": 2,
    "expires_ms": TimeMs(NOW + 60_000),
    "height": Height(8),
    "admission": None,
}


@pytest.mark.parametrize("field", CHANGES)
async def test_no_field_can_be_changed(make_card: Callable[[], SignedCard], field: str, autojump_clock: Any) -> None:
    signed = make_card()
    if field == "admission":
        member = admit(MemberKey(bytes([1]) * 32), signed.card.network, _member(signed))
        changed = msgspec.structs.replace(signed.card, admission=member)
    else:
        assert getattr(signed.card, field) != CHANGES[field]
        changed = msgspec.structs.replace(signed.card, **{field: CHANGES[field]})
    with pytest.raises(CardError):
        msgspec.structs.replace(signed, card=changed).checked(signed.card.network, NOW)


def test_every_field_is_tried() -> None:
    from nsllm.p2p.card import PeerCard

    assert set(CHANGES) == set(PeerCard.__struct_fields__)


async def test_either_signature_alone_is_not_enough(make_card: Callable[[], SignedCard], autojump_clock: Any) -> None:
    signed = make_card()
    forged_peer = msgspec.structs.replace(signed, peer_signature=OTHER_PEER.sign(signed.card.digest()))
    forged_member = msgspec.structs.replace(signed, member_signature=OTHER_MEMBER.sign(signed.card.digest()))
    broken = msgspec.structs.replace(signed, member_signature=Signature(bytes(65)))
    for card in (forged_peer, forged_member, broken):
        with pytest.raises(CardError):
            card.checked(signed.card.network, NOW)


async def test_terms(make_card: Callable[[], SignedCard], autojump_clock: Any) -> None:
    signed = make_card()
    for now_ms in (signed.card.expires_ms, signed.card.expires_ms - MAX_TERM_MS - 1):
        with pytest.raises(CardError, match="expires"):
            signed.checked(signed.card.network, TimeMs(now_ms))


async def test_addresses_and_admissions_are_the_cards_own(
    make_card: Callable[[], SignedCard], autojump_clock: Any
) -> None:
    signed = make_card()
    peer_key, member_key = PeerKey(bytes([1]) * 32), MemberKey(bytes([1]) * 32)
    foreign = msgspec.structs.replace(signed.card, multiaddrs=("/memory/1/p2p/somebody",))
    with pytest.raises(CardError, match="lists the address"):
        sign_card(peer_key, member_key, foreign).checked(signed.card.network, NOW)
    member = msgspec.structs.replace(_member(signed), peer_id=PeerId("somebody"), address=Address(bytes(20)))
    admission = Admission(member=member, by=member_key.address, signature=Signature(bytes(65)))
    borrowed = msgspec.structs.replace(signed.card, admission=admission)
    with pytest.raises(CardError, match="admission"):
        sign_card(peer_key, member_key, borrowed).checked(signed.card.network, NOW)


def _member(signed: SignedCard) -> Any:
    from nsllm.consensus.registry import Member

    return Member(address=signed.card.address, peer_id=signed.card.peer_id, roles=("data",))
