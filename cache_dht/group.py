"""A group: a name of one's own choosing, and a key of 32 bytes that its members share. Pure.

From the key follow, apart from each other by HMAC-SHA-256: the salt of each request, so that request keys, shards and
record digests of the group can be neither guessed nor compared with others'; and the key and nonces of the envelopes.

Envelopes are XChaCha20-Poly1305 (libsodium). The nonce is a MAC of the plaintext (as in SIV modes), so no two texts
ever share one, and whoever has the key seals the same record to the same bytes. What is sealed is padded to Padmé
lengths (Nikitin et al. 2019): the length of an envelope tells that of the record to within an eighth.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_aead_xchacha20poly1305_ietf_NPUBBYTES,
)
from nacl.exceptions import CryptoError

from nsllm import canonical
from nsllm.cache_dht.errors import RecordRefusedError
from nsllm.cache_dht.sealed import Sealed
from nsllm.ids import Address, NetworkId, short
from nsllm.record import MAX_RECORD_BYTES, Request, SignedRecord, request_key

KEY_BYTES: Final = 32
NONCE_BYTES: Final = crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
_LENGTH_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Group:
    """One group as a member knows it."""

    name: str
    """As this member calls it; other members may call it otherwise."""
    key: bytes = field(repr=False)
    """32 random bytes."""
    pad_ms: int = 0
    """Strangers' look-ups are answered at multiples of this time; 0: as soon as they can be."""

    def salt(self, network: NetworkId, request: Request) -> bytes:
        """What makes this request's key the group's; the same for equal requests, unknown to others."""
        return self._mac(b"salt", request_key(network, request))

    def owns(self, signed: SignedRecord) -> bool:
        """Whether a record was made within this group."""
        record = signed.record
        return record.visibility == "group" and hmac.compare_digest(
            record.salt, self.salt(record.network, record.request)
        )

    def seal(self, network: NetworkId, signed: SignedRecord, sealer: Address) -> Sealed:
        """The record in an envelope; always the same for the same record."""
        record = signed.record
        plain = _padded(canonical.encode(signed))
        nonce = self._mac(b"nonce", plain)[:NONCE_BYTES]
        digest, key = record.digest(), record.key()
        cipher = crypto_aead_xchacha20poly1305_ietf_encrypt(plain, network + digest + key, nonce, self._mac(b"seal"))
        return Sealed(record=digest, request_key=key, sealer=sealer, body=nonce + cipher)

    def open(self, network: NetworkId, sealed: Sealed) -> SignedRecord | None:
        """The record inside; None if it was not sealed under this key.

        Raises:
            RecordRefusedError: what is inside is no record of this group, or another than the envelope says.
            EncodingError: it is malformed.
        """
        nonce, cipher = sealed.body[:NONCE_BYTES], sealed.body[NONCE_BYTES:]
        if len(nonce) < NONCE_BYTES:
            return None
        about = network + sealed.record + sealed.request_key
        try:
            plain = crypto_aead_xchacha20poly1305_ietf_decrypt(cipher, about, nonce, self._mac(b"seal"))
        except CryptoError:
            return None
        signed = canonical.decode(_unpadded(plain), SignedRecord, limit_bytes=MAX_RECORD_BYTES)
        record = signed.record
        if (record.digest(), record.key()) != (sealed.record, sealed.request_key) or not self.owns(signed):
            raise RecordRefusedError(f"the envelope of record {short(sealed.record)} holds something else")
        return signed

    def _mac(self, purpose: bytes, about: bytes = b"") -> bytes:
        return hmac.new(self.key, b"nsllm/group/" + purpose + b"/" + about, hashlib.sha256).digest()


def padded_length(length: int) -> int:
    """Padmé: the least length, at least `length`, whose binary form ends in enough zeros.

    >>> padded_length(9), padded_length(1000), padded_length(100_000)
    (10, 1024, 100352)
    """
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    mask = (1 << max(0, exponent - exponent.bit_length())) - 1
    return (length + mask) & ~mask


def _padded(data: bytes) -> bytes:
    whole = len(data).to_bytes(_LENGTH_BYTES, "big") + data
    return whole.ljust(padded_length(len(whole)), b"\0")


def _unpadded(plain: bytes) -> bytes:
    length = int.from_bytes(plain[:_LENGTH_BYTES], "big")
    data = plain[_LENGTH_BYTES : _LENGTH_BYTES + length]
    if len(data) != length or _padded(data) != plain:
        raise RecordRefusedError(f"an envelope of {len(plain)} bytes that is not padded as it should be")
    return data
