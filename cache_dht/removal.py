"""A holder's word that it has no copy of a record any more, signed with its member key. Pure values.

Nobody can show that a file is nowhere. What can be shown is who said so, when, and whether it serves the record all the
same: a signed removal beside an answer to a look-up convicts its signer of a lie.
"""

from __future__ import annotations

from nsllm import canonical, crypto
from nsllm.cache_dht.errors import RecordRefusedError
from nsllm.canonical import Value
from nsllm.crypto import MemberKey
from nsllm.ids import (
    AddressField,
    Digest,
    DigestField,
    HeightField,
    NetworkId,
    SignatureField,
    TimeMsField,
    hex0x,
    short,
)


class Removal(Value, frozen=True, kw_only=True):
    """What a holder says about a record that validators took back."""

    record: DigestField
    holder: AddressField
    retracted: HeightField
    """Of the block that retracted it."""
    height: HeightField
    """The last block that the holder knew when it said so."""
    time_ms: TimeMsField

    def digest(self, network: NetworkId) -> Digest:
        """What the holder signs."""
        return canonical.digest("removal", network, self)


class SignedRemoval(Value, frozen=True, kw_only=True):
    """A removal and its holder's signature."""

    removal: Removal
    signature: SignatureField

    def check(self, network: NetworkId, record: Digest, retracted: int) -> None:
        """Pass silently if the holder whom it names says it of this record and this retraction.

        Raises:
            RecordRefusedError: it is about something else.
            SignatureError: not the holder's signature.
        """
        removal = self.removal
        if (removal.record, removal.retracted) != (record, retracted):
            raise RecordRefusedError(
                f"{hex0x(removal.holder)} answered about record {short(removal.record)}, revoked at height"
                f" {removal.retracted}; asked was {short(record)}, {retracted}"
            )
        crypto.verify(removal.digest(network), self.signature, removal.holder)


def sign_removal(key: MemberKey, network: NetworkId, removal: Removal) -> SignedRemoval:
    """The removal with its holder's signature; `key` must be the key of `removal.holder`."""
    return SignedRemoval(removal=removal, signature=key.sign(removal.digest(network)))
