"""A peer's libp2p identity: an Ed25519 key and the peer id that its public half spells.

Source: libp2p specs, peer-ids/peer-ids.md: the id of a key whose protobuf form is at most 42 bytes long is the identity
multihash of that form, written in base58btc. Ed25519 keys are 36 bytes in that form.
"""

from __future__ import annotations

from typing import Final

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from nsllm.errors import SignatureError
from nsllm.ids import PeerId

SECRET_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = 32
PEER_SIGNATURE_BYTES: Final = 64

_PROTOBUF_ED25519: Final = b"\x08\x01\x12\x20"
"""Field 1 (Type) = 1 (Ed25519); field 2 (Data), 32 bytes."""
_IDENTITY_MULTIHASH: Final = b"\x00\x24"
"""Hash function 0 (identity), 36 bytes."""
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class PeerKey:
    """A peer's signing key. Its `repr` shows the peer id, never the secret."""

    __slots__ = ("_key", "peer_id", "public_key")

    def __init__(self, secret: bytes) -> None:
        """Wrap 32 secret bytes.

        Raises:
            ValueError: not 32 bytes.
        """
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"a peer key is {SECRET_BYTES} bytes; got {len(secret)}")
        self._key: Final = SigningKey(secret)
        self.public_key: Final[bytes] = bytes(self._key.verify_key)
        """Ed25519 public key, 32 bytes."""
        self.peer_id: Final[PeerId] = peer_id_of(self.public_key)

    def sign(self, message: bytes) -> bytes:
        """64-byte Ed25519 signature over `message`."""
        return bytes(self._key.sign(message).signature)

    def __repr__(self) -> str:
        return f"PeerKey({self.peer_id})"


def peer_id_of(public_key: bytes) -> PeerId:
    """The libp2p peer id of an Ed25519 public key (32 bytes).

    >>> peer_id_of(bytes(32))[:8]
    '12D3KooW'
    """
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise ValueError(f"an Ed25519 public key is {PUBLIC_KEY_BYTES} bytes; got {len(public_key)}")
    return PeerId(_base58(_IDENTITY_MULTIHASH + _PROTOBUF_ED25519 + public_key))


def verify_peer(message: bytes, signature: bytes, public_key: bytes) -> None:
    """Pass silently if `public_key` signed `message`.

    Raises:
        SignatureError: it did not, or the key is no point.
    """
    try:
        VerifyKey(public_key).verify(message, signature)
    except (BadSignatureError, ValueError, TypeError) as error:
        raise SignatureError(f"not the signature of {peer_id_of(public_key)}: {type(error).__name__}") from None


def _base58(data: bytes) -> str:
    number = int.from_bytes(data, "big")
    digits = ""
    while number:
        number, rest = divmod(number, 58)
        digits = _BASE58[rest] + digits
    zeros = len(data) - len(data.lstrip(b"\0"))
    return _BASE58[0] * zeros + digits
