"""Withdrawals: a member takes a document back, and says so to whoever holds its chunks."""

from __future__ import annotations

from nsllm import canonical, crypto
from nsllm.canonical import Value
from nsllm.crypto import MemberKey
from nsllm.errors import EncodingError
from nsllm.ids import AddressField, Digest, DigestField, NetworkId, NetworkIdField, SignatureField, TimeMsField
from nsllm.record import Chunk


class Withdrawal(Value, frozen=True, kw_only=True):
    """Chunks of a document that its member took in up to a moment are to be forgotten."""

    network: NetworkIdField
    member: AddressField
    document: DigestField
    at_ms: TimeMsField

    def digest(self) -> Digest:
        """What the member signs."""
        return canonical.digest("withdrawal", self.network, self)

    def covers(self, chunk: Chunk) -> bool:
        """Whether it takes this chunk back; what is taken in later stays."""
        return (self.member, self.document) == (chunk.member, chunk.document) and chunk.created_ms <= self.at_ms


class SignedWithdrawal(Value, frozen=True, kw_only=True):
    """A withdrawal and its member's signature."""

    withdrawal: Withdrawal
    signature: SignatureField

    def check(self, network: NetworkId) -> None:
        """Pass silently if the document's own member signed it, for this network.

        Raises:
            EncodingError: another network's.
            SignatureError: not the member's signature.
        """
        withdrawal = self.withdrawal
        if withdrawal.network != network:
            raise EncodingError(f"withdrawal of network {withdrawal.network.hex()[:16]}, not {network.hex()[:16]}")
        crypto.verify(withdrawal.digest(), self.signature, withdrawal.member)


def sign_withdrawal(key: MemberKey, withdrawal: Withdrawal) -> SignedWithdrawal:
    """The withdrawal with its member's signature; `key` must be the key of `withdrawal.member`."""
    return SignedWithdrawal(withdrawal=withdrawal, signature=key.sign(withdrawal.digest()))
