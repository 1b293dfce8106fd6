"""Member keys: secp256k1 with Ethereum's conventions, so that one signature serves peers and contracts.

Signatures are 65 bytes `r ‖ s ‖ v` with low s (EIP-2) and v of 27 or 28; nonces are RFC 6979, so signing is
deterministic. Messages are 32-byte digests that already carry their domain (`nsllm.canonical.digest`, or EIP-712).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import coincurve
from Crypto.Hash import keccak as _keccak

from nsllm.errors import SignatureError
from nsllm.ids import Address, Digest, Signature, hex0x

CURVE_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def keccak256(data: bytes) -> Digest:
    """Keccak-256 as Ethereum uses it (original padding, not SHA3-256).

    >>> keccak256(b"").hex()[:16]
    'c5d2460186f7233c'
    """
    return Digest(_keccak.new(digest_bits=256, data=data).digest())


class MemberKey:
    """A member's signing key. Its `repr` shows the address, never the secret."""

    __slots__ = ("_key", "address", "public_key")

    def __init__(self, secret: bytes) -> None:
        """Wrap a 32-byte secret.

        Raises:
            ValueError: zero, or not below the curve order.
        """
        if len(secret) != 32 or not 0 < int.from_bytes(secret, "big") < CURVE_ORDER:
            raise ValueError(f"a member key is 32 bytes between 1 and the curve order; got {len(secret)} bytes")
        self._key: Final = coincurve.PrivateKey(secret)
        self.public_key: Final[bytes] = self._key.public_key.format(compressed=True)
        """Compressed point, 33 bytes."""
        self.address: Final[Address] = _address(self._key.public_key)

    def secret(self) -> bytes:
        """The 32 secret bytes, for writing the key file and for the embedded chain's transactions."""
        secret: bytes = self._key.secret
        return secret

    def sign(self, digest: Digest) -> Signature:
        """65-byte recoverable signature over a 32-byte digest."""
        raw = self._key.sign_recoverable(digest, hasher=None)
        return Signature(raw[:64] + bytes([27 + raw[64]]))

    def __repr__(self) -> str:
        return f"MemberKey({hex0x(self.address)})"


@lru_cache(maxsize=4096)
def recover(digest: Digest, signature: Signature) -> Address:
    """Address whose key made `signature` over `digest`.

    Pure, and the newest results are remembered: a vote's signature comes again in certificates, a certificate in every
    block, receipt and record that it proves. In a simulation, where many peers share a process, they share them too.

    Raises:
        SignatureError: wrong length, v other than 27 or 28, high s, or no such point.
    """
    if len(signature) != 65 or signature[64] not in (27, 28):
        raise SignatureError(f"a signature is 65 bytes ending in 27 or 28; got {len(signature)} bytes")
    s = int.from_bytes(signature[32:64], "big")
    if not 0 < s <= CURVE_ORDER // 2:
        raise SignatureError("signature with s outside the lower half of the curve order (EIP-2)")
    try:
        raw = signature[:64] + bytes([signature[64] - 27])
        point = coincurve.PublicKey.from_signature_and_message(raw, digest, hasher=None)
    except Exception as error:  # noqa: BLE001 - coincurve raises bare Exception for an unrecoverable point
        raise SignatureError(f"signature recovers no key: {error}") from None
    return _address(point)


def verify(digest: Digest, signature: Signature, signer: Address) -> None:
    """Pass silently if `signer` made `signature` over `digest`.

    Raises:
        SignatureError: names both addresses.
    """
    found = recover(digest, signature)
    if found != signer:
        raise SignatureError(f"signed by {hex0x(found)}, expected {hex0x(signer)}")


def _address(point: coincurve.PublicKey) -> Address:
    return _address_of(point.format(compressed=False))


@lru_cache(maxsize=1024)
def _address_of(point: bytes) -> Address:
    """Hashed once for those who sign again and again."""
    return Address(keccak256(point[1:])[12:])
