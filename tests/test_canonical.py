"""The canonical encoding: one spelling a value, one value a spelling; bounds before parsing; strict JSON."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.errors import EncodingError
from nsllm.ids import DigestField, PpmField
from nsllm.record import Message, Request, Sampling


class Inner(Value, frozen=True, kw_only=True):
    b: int
    a: str


class Outer(Value, frozen=True, kw_only=True):
    items: tuple[Inner, ...] = ()
    key: DigestField
    score: PpmField = 0
    maybe: bytes | None = None
    flag: bool = False


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
OUTER = st.builds(
    Outer,
    items=st.lists(st.builds(Inner, b=st.integers(-(2**63), 2**63 - 1), a=st.text(max_size=10)), max_size=3).map(tuple),
    key=st.binary(min_size=32, max_size=32),
    score=st.integers(0, 1_000_000),
    maybe=st.none() | st.binary(max_size=8),
    flag=st.booleans(),
)


@given(OUTER)
def test_round_trip_in_both_spellings(value: Outer) -> None:
    assert canonical.decode(canonical.encode(value), Outer, limit_bytes=4096) == value
    assert canonical.from_json(canonical.to_json(value), Outer, limit_bytes=16384) == value


@given(OUTER, OUTER)
def test_different_values_have_different_bytes(left: Outer, right: Outer) -> None:
    assert (canonical.encode(left) == canonical.encode(right)) == (left == right)


@given(PLAIN)
def test_plain_values_pack_the_same_whatever_the_order_of_keys(value: object) -> None:
    def reverse(item: object) -> object:
        if isinstance(item, dict):
            return {key: reverse(item[key]) for key in reversed(list(item))}
        return [reverse(part) for part in item] if isinstance(item, list) else item

    assert canonical.pack(reverse(value)) == canonical.pack(value)


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_is_canonical(data: bytes) -> None:
    try:
        value = canonical.decode(data, Outer, limit_bytes=4096)
    except EncodingError:
        return
    assert canonical.encode(value) == data


@given(OUTER, st.data())
def test_no_byte_changes_unnoticed(value: Outer, data: st.DataObject) -> None:
    encoded = bytearray(canonical.encode(value))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(EncodingError):
        assert canonical.decode(bytes(encoded), Outer, limit_bytes=4096) != value


KEY = b"\1" * 32
GOOD = canonical.encode(Outer(key=KEY, items=()))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (msgpack.packb({"key": KEY, "items": [], "score": 0, "maybe": None, "flag": False}), "not the canonical"),
        (msgpack.packb({"key": KEY, "score": 2_000_000}), "score"),
        (msgpack.packb({"key": KEY[:31]}), "key"),
        (msgpack.packb({"key": KEY, "surprise": 1}), "surprise"),
        (msgpack.packb({"key": KEY, "score": 0.5}), "float"),
        (msgpack.packb({"key": KEY, "score": True}), "score"),
        (msgpack.packb({1: 2}), "`str`, got `int` - at `key`"),
        (b"\xc1", "MessagePack"),
        (b"", "MessagePack"),
        (b"\xdd\xff\xff\xff\xff", "`array`"),
        (b"\x91" * 600, "`array`"),
        (msgpack.packb(0) + b"\0", "`int`"),
        (b"\xc7\x01\x05\x00", "`ext`"),
        (GOOD + b"\0", "MessagePack"),
        (GOOD[:-1], "MessagePack"),
        (bytes(5000), "limit is 4096"),
    ],
)
def test_bad_input_is_named(data: bytes, says: str) -> None:
    with pytest.raises(EncodingError, match=says):
        canonical.decode(data, Outer, limit_bytes=4096)


def good_json() -> str:
    return canonical.to_json(Outer(key=KEY, items=(Inner(a="x", b=1),)))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda text: text[:-1], "before or after"),
        (lambda text: text + "\n", "before or after"),
        (lambda text: json.dumps(json.loads(text)), "canonical spelling"),
        (lambda text: text.replace("0x01", "0X01", 1), "hex at \\$.key"),
        (lambda text: text.replace('"b": 1', '"b": 1.0'), "integers"),
        (lambda text: text.replace('"b": 1', '"b": NaN'), "integers"),
        (lambda text: text.replace('"b": 1', '"b": "1"'), "items"),
        (lambda text: text.replace('"flag": false', '"flag": false, "flag": false'), "twice"),
        (lambda text: text.replace('"flag": false', '"flog": false'), "flog"),
        (lambda text: text[:40], "not JSON"),
        (lambda text: "[" * 100_000, "limit"),
        (lambda text: "[" * 10_000, "not JSON"),
        (lambda text: text.replace('"x"', '"\\u0078"'), "canonical spelling"),
    ],
)
def test_bad_json_is_named(edit, says: str) -> None:
    with pytest.raises(EncodingError, match=says):
        canonical.from_json(edit(good_json()), Outer, limit_bytes=16384)


def test_a_file_that_a_person_edits_may_be_spelled_freely() -> None:
    loose = json.dumps(json.loads(good_json()))
    assert canonical.from_json(loose, Outer, limit_bytes=16384, exact=False).key == KEY


def test_floats_have_no_canonical_form() -> None:
    with pytest.raises(TypeError):
        canonical.pack({"x": 0.5})


class Loose(Value, frozen=True, kw_only=True):
    """A type that does not say what is in it."""

    words: dict[str, int]
    anything: Any = None


@given(OUTER)
def test_a_value_is_spelled_as_its_plain_parts_are(value: Outer) -> None:
    plain = msgspec.to_builtins(value, builtin_types=(bytes,))
    assert canonical.encode(value) == canonical.pack(plain)


@given(st.dictionaries(st.text(max_size=8), st.integers(0, 9), max_size=4), PLAIN)
def test_types_that_leave_something_open_are_looked_through(words: dict[str, int], anything: object) -> None:
    value = Loose(words=words, anything=anything)
    encoded = canonical.encode(value)
    assert canonical.encode(canonical.decode(encoded, Loose, limit_bytes=4096)) == encoded
    with pytest.raises(TypeError):
        canonical.encode(Loose(words={}, anything=0.5))


def test_domains_networks_and_lengths_never_meet() -> None:
    value = Inner(a="x", b=1)
    digests = {
        canonical.digest("a", b"", value),
        canonical.digest("b", b"", value),
        canonical.digest("a", b"\0" * 32, value),
        canonical.digest("a", b"\1" * 32, value),
        canonical.digest("a", b"", canonical.encode(value) + b"\0"),
    }
    assert len(digests) == 5


def test_the_encoding_of_a_request_never_changes() -> None:
    """A vector: whoever changes these bytes changes every request key of every network."""
    request = Request(
        model="m",
        model_digest=bytes(32),
        messages=(Message(role="user", content="hi"),),
        sampling=Sampling(seed=7),
    )
    assert canonical.digest("request", bytes(32), request).hex() == (
        "d82214adf5c9e0fc44ad24f66fbcaa0b8a919f57019404177a67aeef2de3ff78"
    )


class Left(Value, frozen=True, kw_only=True, tag_field="kind", tag="left"):
    name: bytes


class Right(Value, frozen=True, kw_only=True, tag_field="kind", tag="right"):
    number: int


class Either(Value, frozen=True, kw_only=True):
    one: Left | Right
    other: Left | Right | None


def test_json_of_a_union_of_tagged_values_has_its_bytes_as_hex() -> None:
    value = Either(one=Left(name=b"\x01"), other=Right(number=1))
    text = canonical.to_json(value)
    assert '"0x01"' in text
    assert canonical.from_json(text, Either, limit_bytes=1000) == value
    with pytest.raises(EncodingError, match=r"one\.name"):
        canonical.from_json(text.replace("0x01", "01"), Either, limit_bytes=1000)
    with pytest.raises(EncodingError, match="middle"):
        canonical.from_json(text.replace('"left"', '"middle"'), Either, limit_bytes=1000)


class Blob(Value, frozen=True, kw_only=True):
    data: bytes


@pytest.mark.parametrize(("size", "shared"), [(10, False), (1_000, True), (100_000, True), (1_000_000, False)], ids=str)
def test_what_comes_again_is_decoded_once_unless_it_is_tiny_or_huge(size: int, shared: bool) -> None:
    spelled = canonical.encode(Blob(data=bytes(size)))
    first, again = (canonical.decode(bytes(bytearray(spelled)), Blob, limit_bytes=2_000_000) for _ in range(2))
    assert first == again == Blob(data=bytes(size))
    assert (first is again) == shared
    with pytest.raises(EncodingError, match="the limit is"):  # remembered or not
        canonical.decode(spelled, Blob, limit_bytes=len(spelled) - 1)
