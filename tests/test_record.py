"""Records and requests."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm import canonical, crypto
from nsllm.content import Text, redact
from nsllm.crypto import MemberKey
from nsllm.errors import EncodingError, SignatureError
from nsllm.ids import Address, NetworkId, Signature
from nsllm.record import MAX_RECORD_BYTES, Message, Record, Request, Sampling, SignedRecord, sign_record

NETWORK = NetworkId(b"\x07" * 32)
KEY = MemberKey(b"\1" * 32)


def record(**changes: object) -> Record:
    request = Request(
        model="m", model_digest=bytes(32), messages=(Message(role="user", content="hi"),), sampling=Sampling()
    )
    made = Record(
        network=NETWORK,
        request=request,
        generator=KEY.address,
        visibility="public",
        sampling=Sampling(),
        prompt_token_ids=(1,),
        token_ids=(2,),
        text="x",
        finish_reason="stop",
        embedding=bytes(384),
        created_ms=1,
    )
    return msgspec.structs.replace(made, **changes)


def received(signed: SignedRecord) -> SignedRecord:
    """The same as another peer has it: nothing of it was computed yet."""
    return canonical.decode(canonical.encode(signed), SignedRecord, limit_bytes=MAX_RECORD_BYTES)


def test_a_signed_record_checks() -> None:
    signed = sign_record(KEY, record())
    signed.check(NETWORK)
    received(signed).check(NETWORK)


def test_a_signature_is_recovered_once_and_not_at_all_by_the_signer(monkeypatch: pytest.MonkeyPatch) -> None:
    signed = sign_record(KEY, record(text="seen by nobody yet"))
    theirs, seen = received(signed), list[Address]()
    monkeypatch.setattr(crypto, "verify", lambda _digest, _signature, signer: seen.append(signer))
    for _ in range(2):
        signed.check(NETWORK)
        theirs.check(NETWORK)
    assert seen == [KEY.address]


def test_a_bad_signature_is_refused_every_time() -> None:
    forged = received(msgspec.structs.replace(sign_record(KEY, record()), signature=Signature(bytes(65))))
    for _ in range(2):
        with pytest.raises(SignatureError):
            forged.check(NETWORK)


@given(st.text(max_size=300), st.lists(st.integers(0, 2**31 - 1), max_size=300))
def test_sizes_are_those_of_the_encoding(text: str, token_ids: list[int]) -> None:
    signed = sign_record(KEY, record(text=text, token_ids=tuple(token_ids)))
    assert signed.size_bytes == len(canonical.encode(signed))
    assert signed.record.size_bytes == len(canonical.encode(signed.record))


def test_an_edited_or_foreign_record_does_not() -> None:
    signed = sign_record(KEY, record())
    with pytest.raises(SignatureError):
        msgspec.structs.replace(signed, record=record(text="y")).check(NETWORK)
    with pytest.raises(EncodingError):
        signed.check(NetworkId(bytes(32)))
    with pytest.raises(SignatureError):
        sign_record(MemberKey(b"\2" * 32), record()).check(NETWORK)


def test_the_question_is_the_last_user_turn() -> None:
    turns = [("system", "s"), ("user", "first"), ("assistant", "a"), ("user", "second"), ("assistant", "b")]
    request = Request(
        model="m",
        model_digest=bytes(32),
        messages=tuple(Message(role=role, content=content) for role, content in turns),
        sampling=Sampling(),
    )
    assert request.question() == "second"


def test_content_shows_as_length_and_digest() -> None:
    assert "secret" not in repr(Text("secret question"))
    assert redact("secret question").startswith("<15 chars sha256:")
