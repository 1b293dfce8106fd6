"""Identifiers and the bounded field types that everything on the wire is made of.

`NewType` names keep the kinds apart in signatures; the `…Field` aliases carry the bounds that `nsllm.canonical`
checks when a value is decoded, so that inside the rooms nothing is out of range.
"""

from __future__ import annotations

from typing import Annotated, Final, NewType

from msgspec import Meta

Digest = NewType("Digest", bytes)
"""SHA-256 or keccak-256, 32 bytes."""
Address = NewType("Address", bytes)
"""A member's identity: the 20-byte EVM address of its secp256k1 member key."""
NetworkId = NewType("NetworkId", bytes)
"""Digest of the genesis, 32 bytes; the salt of every signature's domain."""
PeerId = NewType("PeerId", str)
"""A libp2p peer id in its base58 text form."""
Height = NewType("Height", int)
Round = NewType("Round", int)
Epoch = NewType("Epoch", int)
Ppm = NewType("Ppm", int)
"""Parts per million, 0 to 1,000,000: every score, weight and threshold that is agreed or signed."""
TimeMs = NewType("TimeMs", int)
"""Milliseconds since the Unix epoch."""
Signature = NewType("Signature", bytes)
"""65 bytes: r (32) ‖ s (32, low) ‖ v (27 or 28)."""

DigestField = Annotated[Digest, Meta(min_length=32, max_length=32)]
AddressField = Annotated[Address, Meta(min_length=20, max_length=20)]
NetworkIdField = Annotated[NetworkId, Meta(min_length=32, max_length=32)]
PeerIdField = Annotated[PeerId, Meta(min_length=1, max_length=128)]
SignatureField = Annotated[Signature, Meta(min_length=65, max_length=65)]
HeightField = Annotated[Height, Meta(ge=0, le=2**62)]
RoundField = Annotated[Round, Meta(ge=0, le=2**31 - 1)]
EpochField = Annotated[Epoch, Meta(ge=0, le=2**62)]
PpmField = Annotated[Ppm, Meta(ge=0, le=1_000_000)]
TimeMsField = Annotated[TimeMs, Meta(ge=0, le=2**53)]
CountField = Annotated[int, Meta(ge=0, le=2**62)]
NameField = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9_.-]*\Z")]

ZERO_DIGEST: Final = Digest(bytes(32))
PPM_ONE: Final = Ppm(1_000_000)


def short(value: bytes) -> str:
    """First eight hex digits of an identifier, for logs and pages.

    >>> short(bytes.fromhex("00ff17aa33"))
    '00ff17aa'
    """
    return value[:4].hex()


def hex0x(value: bytes) -> str:
    """`0x` and lower-case hex, the one spelling of bytes in JSON.

    >>> hex0x(b"\\x00\\xff")
    '0x00ff'
    """
    return "0x" + value.hex()
