"""Records and requests."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.content import Text, redact
from nsllm.crypto import MemberKey
from nsllm.errors import EncodingError, SignatureError
from nsllm.ids import NetworkId
from nsllm.record import Message, Record, Request, Sampling, quantize_embedding, sign_record

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


def test_a_signed_record_checks() -> None:
    sign_record(KEY, record()).check(NETWORK)


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


def test_embeddings_are_rounded_and_clipped() -> None:
    quantized = quantize_embedding([2.0, -2.0, 0.5, -0.5] + [0.0] * 380)
    assert list(memoryview(quantized).cast("b")[:4]) == [127, -127, 64, -64]
    with pytest.raises(ValueError, match="383"):
        quantize_embedding([0.0] * 383)
    with pytest.raises(ValueError, match="not numbers"):
        quantize_embedding([math.nan] + [0.0] * 383)


@given(st.lists(st.floats(-1.0, 1.0), min_size=384, max_size=384))
def test_quantized_numbers_are_rounded_half_to_even(vector: list[float]) -> None:
    assert list(memoryview(quantize_embedding(vector)).cast("b")) == [round(x * 127) for x in vector]


def test_content_shows_as_length_and_digest() -> None:
    assert "secret" not in repr(Text("secret question"))
    assert redact("secret question").startswith("<15 chars sha256:")
