"""EVM transactions of the one kind that the embedded chain takes: EIP-1559, without an access list."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from nsllm import crypto
from nsllm.crypto import MemberKey, keccak256
from nsllm.errors import SignatureError
from nsllm.governance import rlp
from nsllm.governance.errors import ChainRefusal
from nsllm.ids import Address, Digest, Signature, hex0x

TYPE_BYTE: Final = b"\x02"
MAX_TRANSACTION_BYTES: Final = 65536
"""As a block's body bounds it."""
MAX_INIT_CODE_BYTES: Final = 49152
"""EIP-3860."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """What is signed. Amounts in wei, fees in wei a unit of gas."""

    chain_id: int
    nonce: int
    max_priority_fee: int
    max_fee: int
    gas: int
    to: bytes
    """20 bytes, or empty to create a contract."""
    value: int
    data: bytes

    def fields(self) -> list[rlp.Encodable]:
        """The RLP list that is signed; the access list is empty."""
        amounts: list[rlp.Encodable] = [self.chain_id, self.nonce, self.max_priority_fee, self.max_fee, self.gas]
        return [*amounts, self.to, self.value, self.data, []]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTransaction:
    """A transaction, and who signed it."""

    transaction: Transaction
    sender: Address
    hash: Digest


def sign_transaction(key: MemberKey, transaction: Transaction) -> bytes:
    """Raw signed transaction, as `eth_sendRawTransaction` takes it."""
    signature = key.sign(keccak256(TYPE_BYTE + rlp.encode(transaction.fields())))
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    return TYPE_BYTE + rlp.encode([*transaction.fields(), signature[64] - 27, r, s])


@lru_cache(maxsize=64)
def parse_transaction(raw: bytes) -> SignedTransaction:
    """The transaction that `raw` spells, with its sender. Pure, and the newest are remembered.

    Raises:
        ChainRefusal: too long, another type, not canonical RLP, an access list, a tip above the fee cap, too
            much init code, or no valid signature with low s.
    """
    if len(raw) > MAX_TRANSACTION_BYTES:
        raise ChainRefusal(f"transaction of {len(raw)} bytes, the limit is {MAX_TRANSACTION_BYTES}")
    if raw[:1] != TYPE_BYTE:
        raise ChainRefusal(f"transaction type {hex0x(raw[:1])}, expected {hex0x(TYPE_BYTE)} (EIP-1559)")
    try:
        match rlp.decode(raw[1:]):
            case [chain, nonce, priority, fee, gas, bytes() as to, value, bytes() as data, [], parity, r, s] if len(
                to
            ) in (0, 20):
                transaction = Transaction(
                    chain_id=_number(chain, 8),
                    nonce=_number(nonce, 8),
                    max_priority_fee=_number(priority),
                    max_fee=_number(fee),
                    gas=_number(gas, 8),
                    to=to,
                    value=_number(value),
                    data=data,
                )
                numbers = (_number(r), _number(s))
                v = 27 + _number(parity, 1)
            case _:
                raise ChainRefusal("not the twelve fields of an EIP-1559 transaction with an empty access list")
    except ValueError as error:
        raise ChainRefusal(f"transaction is not canonical RLP: {error}") from None
    if transaction.max_priority_fee > transaction.max_fee:
        raise ChainRefusal(f"tip of {transaction.max_priority_fee} wei above the fee cap {transaction.max_fee}")
    if not transaction.to and len(transaction.data) > MAX_INIT_CODE_BYTES:
        raise ChainRefusal(f"{len(transaction.data)} bytes of init code, the limit is {MAX_INIT_CODE_BYTES}")
    signature = Signature(b"".join(number.to_bytes(32, "big") for number in numbers) + bytes([min(v, 255)]))
    try:
        sender = crypto.recover(keccak256(TYPE_BYTE + rlp.encode(transaction.fields())), signature)
    except SignatureError as error:
        raise ChainRefusal(f"transaction: {error}") from None
    return SignedTransaction(transaction=transaction, sender=sender, hash=keccak256(raw))


def _number(item: rlp.Item, size_bytes: int = 32) -> int:
    number = rlp.integer(item)
    if number.bit_length() > 8 * size_bytes:
        raise ValueError(f"number longer than {size_bytes} bytes")
    return number
