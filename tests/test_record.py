"""Records and requests."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from records import small_record

from nsllm import canonical, crypto
from nsllm.content import Text, redact
from nsllm.crypto import MemberKey
from nsllm.errors import EncodingError, SignatureError
from nsllm.ids import Address, NetworkId, Signature
from nsllm.record import (
    MAX_RECORD_BYTES,
    TEMPLATE_WORDS,
    Message,
    Record,
    Rendering,
    Request,
    Sampling,
    SignedRecord,
    ToolCall,
    option_text,
    request_key,
    sign_record,
)

NETWORK = NetworkId(b"\x07" * 32)
KEY = MemberKey(b"\1" * 32)


def record(**changes: object) -> Record:
    return small_record(KEY, network=NETWORK, **changes)


SAID = (Message(role="user", content="hi"), Message(role="assistant", content="Well, "))
CALLING = Message(role="assistant", content="x", tool_calls=(ToolCall(id="a", name="now", arguments=""),))


@pytest.mark.parametrize(
    ("options", "continues"),
    [
        ((), False),
        ((("b", "1"), ("a", "1")), False),
        ((("a", "1"), ("a", "2")), False),
        ((("messages", "1"),), True),
        *[
            ((("a", text),), True)
            for text in ("", " 1", "1 ", "01", "-0", "1.0", "1e2", "null", "[]", "tru", "'x'", '"x')
        ],
        *[((("a", text),), True) for text in ('"\\u0041"', '"a" ', '"a\nb"', '"\\ud800"')],
    ],
)
def test_a_rendering_has_one_spelling(options: tuple[tuple[str, str]], continues: bool) -> None:
    with pytest.raises(ValueError):
        Rendering(options=options, continues=continues)


@pytest.mark.parametrize("name", ["", "1a", "a b", "ä", "a" * 65, "a\n"])
def test_an_options_name_is_a_variables(name: str) -> None:
    rendering = Rendering(options=((name, "1"),))
    with pytest.raises(EncodingError, match="options"):
        canonical.decode(canonical.encode(rendering), Rendering, limit_bytes=1_000)


@pytest.mark.parametrize("text", ["1" * 20, "[" * 4_000, "true\n", '"' + "x" * 4_095 + '"'])
def test_an_options_value_is_bounded_before_it_is_read(text: str) -> None:
    data = canonical.pack({"continues": False, "options": [["a", text]]})
    with pytest.raises(EncodingError, match="options"):
        canonical.decode(data, Rendering, limit_bytes=10_000)


OPTION = st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=99)


@given(st.dictionaries(st.from_regex("[a-z_]{1,20}", fullmatch=True), OPTION, min_size=1, max_size=9))
def test_options_come_back_as_they_were(values: dict[str, bool | int | str]) -> None:
    values = {name: value for name, value in values.items() if name not in TEMPLATE_WORDS} or {"a": 1}
    rendering = Rendering(options=tuple((name, option_text(value)) for name, value in sorted(values.items())))
    again = canonical.decode(canonical.encode(rendering), Rendering, limit_bytes=10_000)
    assert again == rendering
    assert repr(again.values()) == repr(dict(sorted(values.items())))


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": SAID[:1]},
        {"messages": (*SAID[:1], CALLING)},
        {"messages": (*SAID[:1], Message(role="assistant", content=" \n"))},
        {"messages": SAID[:1], "form": "text"},
    ],
)
def test_only_the_assistants_text_is_gone_on_with(changes: dict[str, object]) -> None:
    fields = {"model": "m", "model_digest": bytes(32), "messages": SAID, "sampling": Sampling()}
    Request(**fields, rendering=Rendering(continues=True))
    with pytest.raises(ValueError, match=r"continues a message|chat template"):
        Request(**{**fields, **changes}, rendering=Rendering(continues=True))


def test_a_rendering_makes_another_request_and_is_judged_as_a_whole() -> None:
    plain = replace(record().request, messages=SAID)
    renderings = [None, Rendering(continues=True)]
    renderings += [Rendering(options=(("a", option_text(value)),)) for value in (True, 1, "1")]
    keys = {request_key(NETWORK, replace(plain, rendering=each)) for each in renderings}
    assert len(keys) == len(renderings)
    assert replace(plain, rendering=renderings[1]).judged("fine.") == (SAID[:1], "Well, fine.")
    for other in (plain, replace(plain, rendering=renderings[2])):
        assert other.judged("fine.") == (SAID, "fine.")


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
