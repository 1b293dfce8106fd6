"""Member keys: Ethereum's addresses and signatures, nothing malleable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.crypto import CURVE_ORDER, MemberKey, keccak256, recover, verify
from nsllm.errors import SignatureError
from nsllm.ids import Digest, Signature

KEY = MemberKey(bytes.fromhex("4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"))
DIGEST = keccak256(b"message")


def test_address_is_ethereums() -> None:
    # the example key of the web3 documentation
    assert KEY.address.hex() == "2c7536e3605d9c16a7a3d7b1898e529396a65c23"


def test_signatures_are_deterministic_low_s_and_recover() -> None:
    signature = KEY.sign(DIGEST)
    assert signature == KEY.sign(DIGEST)
    assert int.from_bytes(signature[32:64], "big") <= CURVE_ORDER // 2
    assert recover(DIGEST, signature) == KEY.address
    verify(DIGEST, signature, KEY.address)


def test_the_high_s_twin_is_refused() -> None:
    signature = KEY.sign(DIGEST)
    s = CURVE_ORDER - int.from_bytes(signature[32:64], "big")
    twin = Signature(signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]]))
    with pytest.raises(SignatureError, match="lower half"):
        recover(DIGEST, twin)


@pytest.mark.parametrize("bad", [b"", bytes(65), KEY.sign(DIGEST)[:64], KEY.sign(DIGEST)[:64] + b"\x00", bytes(66)])
def test_malformed_signatures_are_refused(bad: bytes) -> None:
    with pytest.raises(SignatureError):
        recover(DIGEST, Signature(bad))


@given(st.integers(0, 64), st.integers(1, 255))
def test_no_byte_of_a_signature_changes_unnoticed(position: int, mask: int) -> None:
    signature = bytearray(KEY.sign(DIGEST))
    signature[position] ^= mask
    with pytest.raises(SignatureError):
        verify(DIGEST, Signature(bytes(signature)), KEY.address)


@given(st.binary(min_size=32, max_size=32).filter(lambda d: d != DIGEST))
def test_a_signature_is_for_one_digest(other: bytes) -> None:
    with pytest.raises(SignatureError):
        verify(Digest(other), KEY.sign(DIGEST), KEY.address)


@pytest.mark.parametrize("secret", [b"", bytes(32), CURVE_ORDER.to_bytes(32, "big"), bytes(33)])
def test_impossible_secrets_are_refused(secret: bytes) -> None:
    with pytest.raises(ValueError, match="member key"):
        MemberKey(secret)


def test_the_secret_never_shows() -> None:
    assert KEY.secret().hex() not in repr(KEY)
