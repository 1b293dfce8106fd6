"""Peer cards: who a peer is, signed by both of its keys, so that neither identity can claim the other.

The Ed25519 key is the libp2p identity (its public half spells the peer id); the secp256k1 key is the member.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Final

from msgspec import Meta

from nsllm import canonical, crypto
from nsllm.canonical import Value
from nsllm.consensus.registry import Admission, Role
from nsllm.crypto import MemberKey
from nsllm.errors import SignatureError
from nsllm.ids import (
    AddressField,
    CountField,
    Digest,
    DigestField,
    HeightField,
    NetworkId,
    NetworkIdField,
    PeerIdField,
    SignatureField,
    TimeMs,
    TimeMsField,
)
from nsllm.p2p.errors import CardError
from nsllm.p2p.identity import PEER_SIGNATURE_BYTES, PUBLIC_KEY_BYTES, PeerKey, peer_id_of, verify_peer

MAX_CARD_BYTES: Final = 8 * 1024
MAX_TERM_MS: Final = 48 * 3600 * 1000
"""A card may not outlive two days: a lost key is forgotten by then."""

MultiaddrField = Annotated[str, Meta(min_length=1, max_length=256)]


class CardModel(Value, frozen=True, kw_only=True):
    """A model that the peer serves."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    digest: DigestField


class PeerCard(Value, frozen=True, kw_only=True):
    """What a peer says of itself; roles and admission count only as far as the member registry agrees."""

    network: NetworkIdField
    peer_id: PeerIdField
    public_key: Annotated[bytes, Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
    """Ed25519, of the libp2p identity."""
    address: AddressField
    """Of the member key."""
    roles: Annotated[tuple[Role, ...], Meta(max_length=3)]
    models: Annotated[tuple[CardModel, ...], Meta(max_length=8)] = ()
    multiaddrs: Annotated[tuple[MultiaddrField, ...], Meta(max_length=8)] = ()
    """Where the peer listens, each ending in `/p2p/<peer_id>`."""
    sequence: CountField
    """A higher one replaces a lower one; milliseconds since the epoch serve well."""
    expires_ms: TimeMsField
    height: HeightField
    """Last committed block when the card was made."""
    admission: Admission | None = None
    """For members whom the genesis does not list."""

    def digest(self) -> Digest:
        """What both keys sign."""
        return canonical.digest("card", self.network, self)


class SignedCard(Value, frozen=True, kw_only=True):
    """A card and the signatures of its two keys."""

    card: PeerCard
    peer_signature: Annotated[bytes, Meta(min_length=PEER_SIGNATURE_BYTES, max_length=PEER_SIGNATURE_BYTES)]
    member_signature: SignatureField

    def checked(self, network: NetworkId, now_ms: TimeMs) -> SignedCard:
        """The card, if it holds for `network` at `now_ms`: the remembered one if an equal one was checked before.

        Raises:
            CardError: another network, a peer id that is not the key's, expired or too long a term, a multiaddr of
                another peer, an admission of another member, or a signature that is not its key's.
        """
        card = self.card
        if card.network != network:
            raise CardError(f"card of network {card.network.hex()[:16]}, this is {network.hex()[:16]}")
        if not now_ms < card.expires_ms <= now_ms + MAX_TERM_MS:
            raise CardError(
                f"card of {card.peer_id} expires at {card.expires_ms} ms, now is {now_ms} ms",
                hint=f"terms are at most {MAX_TERM_MS} ms; check both clocks",
            )
        return _consistent(self)


@lru_cache(maxsize=1024)
def _consistent(signed: SignedCard) -> SignedCard:
    """The card, if it fits together and both keys signed it.

    Pure, and the newest results are remembered: every neighbour passes the same cards on. In a simulation, where many
    peers share a process, they share the cards too.
    """
    card = signed.card
    if card.peer_id != peer_id_of(card.public_key):
        raise CardError(f"card names {card.peer_id}, its key spells {peer_id_of(card.public_key)}")
    strangers = [text for text in card.multiaddrs if not text.endswith(f"/p2p/{card.peer_id}")]
    if strangers:
        raise CardError(f"card of {card.peer_id} lists the address {strangers[0]!r}")
    if card.admission is not None:
        member = card.admission.member
        if (member.address, member.peer_id) != (card.address, card.peer_id):
            raise CardError(f"card of {card.peer_id} carries the admission of {member.peer_id}")
    try:
        verify_peer(card.digest(), signed.peer_signature, card.public_key)
        crypto.verify(card.digest(), signed.member_signature, card.address)
    except SignatureError as error:
        raise CardError(f"card of {card.peer_id}: {error}") from None
    return signed


def sign_card(peer_key: PeerKey, member_key: MemberKey, card: PeerCard) -> SignedCard:
    """The card with both signatures; the keys must be those that it names."""
    digest = card.digest()
    return SignedCard(card=card, peer_signature=peer_key.sign(digest), member_signature=member_key.sign(digest))
