"""An embedding as it is shared: a vector under the digests of its encoder and its text, signed by whoever computed it.

The text itself is not in it. Whoever asks has the text, and can compute the vector again; nobody else can check it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Annotated, Final

from msgspec import Meta

from nsllm import canonical, crypto
from nsllm.canonical import Value
from nsllm.crypto import MemberKey
from nsllm.errors import EncodingError
from nsllm.ids import (
    AddressField,
    CountField,
    Digest,
    DigestField,
    NetworkId,
    NetworkIdField,
    SignatureField,
    TimeMsField,
)
from nsllm.record import EMBEDDING_DIMENSIONS

VECTOR_BYTES: Final = 4 * EMBEDDING_DIMENSIONS
MAX_EMBEDDED_BYTES: Final = VECTOR_BYTES + 1024
UNIT_TOLERANCE: Final = 1e-3
_FLOATS: Final = struct.Struct(f"<{EMBEDDING_DIMENSIONS}f")


class Embedded(Value, frozen=True, kw_only=True):
    """What one member computed of one text."""

    network: NetworkIdField
    member: AddressField
    encoder: DigestField
    text: DigestField
    """See `text_digest`."""
    vector: Annotated[bytes, Meta(min_length=VECTOR_BYTES, max_length=VECTOR_BYTES)]
    """384 numbers of float32, little-endian, of unit length."""
    tokens: CountField
    """That were read of the text."""
    created_ms: TimeMsField

    def key(self) -> Digest:
        """What it is looked for by."""
        return embedding_key(self.network, self.encoder, self.text)

    def digest(self) -> Digest:
        """What the member signs."""
        return canonical.digest("embedding", self.network, self)


class SignedEmbedded(Value, frozen=True, kw_only=True):
    """An embedding and its member's signature."""

    embedded: Embedded
    signature: SignatureField

    def check(self, network: NetworkId) -> None:
        """Pass silently if it belongs to `network`, is a unit vector, and its member signed it.

        Raises:
            EncodingError: another network's, or no unit vector.
            SignatureError: not the member's signature.
        """
        one = self.embedded
        if one.network != network:
            raise EncodingError(f"embedding of network {one.network.hex()[:16]}, not {network.hex()[:16]}")
        length = math.hypot(*unpacked(one.vector))
        if not abs(length - 1) <= UNIT_TOLERANCE:  # nor of infinities
            raise EncodingError(f"an embedding of length {length}, it must be 1")
        crypto.verify(one.digest(), self.signature, one.member)


def sign_embedded(key: MemberKey, embedded: Embedded) -> SignedEmbedded:
    """The embedding with its member's signature; `key` must be the key of `embedded.member`."""
    return SignedEmbedded(embedded=embedded, signature=key.sign(embedded.digest()))


def text_digest(network: NetworkId, text: str) -> Digest:
    """Stands for a text. Whoever can guess the text can recognize it: for public texts only."""
    return canonical.digest("embedded text", network, text.encode())


def embedding_key(network: NetworkId, encoder: Digest, text: Digest) -> Digest:
    """What an embedding is looked for by."""
    return canonical.digest("embedding key", network, encoder + text)


def packed(vector: Sequence[float]) -> bytes:
    """A vector's bytes."""
    return _FLOATS.pack(*vector)


def unpacked(vector: bytes) -> tuple[float, ...]:
    """A vector's numbers."""
    return _FLOATS.unpack(vector)
