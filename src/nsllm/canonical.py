"""One canonical encoding for everything that is stored, sent, hashed or signed.

A value is a frozen `msgspec.Struct` made of integers, bytes, text, booleans, None, tuples and other such structs:
never a float. Its canonical form is MessagePack with minimal lengths and map keys in ascending order. `decode` checks
the type and every bound, then encodes again and compares, so each value has one spelling and each spelling one value.

JSON, for files that people read (genesis, receipt), has the same discipline: bytes are `0x` and lower-case hex, keys
are sorted, two spaces of indent, one newline at the end.

Source: MessagePack specification (github.com/msgpack/msgpack, 2013 "str/bin" revision).
"""

from __future__ import annotations

import hashlib
import json
from functools import cache, lru_cache
from typing import Any, Final, TypeVar, cast

import msgpack
import msgspec
from msgspec import inspect as shape

from nsllm.content import redact
from nsllm.errors import EncodingError
from nsllm.ids import Digest, NetworkId

T = TypeVar("T", bound=msgspec.Struct)

REMEMBERED_BYTES: Final = (128, 16 * 1024, 256 * 1024)
"""Messages below the first size (beats, acknowledgements) seldom come again; of those above the second (blocks) few are
remembered, and none above the third."""
MAX_DEPTH: Final = 16
"""Nesting that any value of this project stays below; deeper input is refused before it is typed."""
DOMAIN_PREFIX: Final = b"nsllm/1/"
CLOSED_TYPES: Final = (
    shape.BoolType,
    shape.BytesType,
    shape.IntType,
    shape.LiteralType,
    shape.NoneType,
    shape.StrType,
)
_SORTED: Final = msgspec.msgpack.Encoder(order="sorted")
"""Structs' fields in ascending order, everything in its shortest form."""


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """Base of everything that has a canonical encoding: frozen, unknown fields refused.

    Subclasses write `class Thing(Value, frozen=True, kw_only=True)`: type checkers do not inherit those flags. What
    holds frozen values only is in no cycle, so the garbage collector does not look at it (`gc=False`); one that
    remembers what it has computed (`dict=True`) must be looked at.
    """


def encode(value: msgspec.Struct) -> bytes:
    """Canonical bytes of `value`.

    Raises:
        TypeError: a float or another type that has no canonical form: a bug here, never a peer's doing.
    """
    if _is_closed(type(value)):
        return _SORTED.encode(value)
    return pack(msgspec.to_builtins(value, builtin_types=(bytes,), order="sorted"))


def pack(builtins: object) -> bytes:
    """Canonical MessagePack of plain values (dict with text keys, list, tuple, int, str, bytes, bool, None)."""
    return cast("bytes", msgpack.packb(_checked(builtins, 0), use_bin_type=True))


def unpack(data: bytes, *, limit_bytes: int) -> object:
    """Plain values out of MessagePack, bounded before anything is built.

    Raises:
        EncodingError: longer than `limit_bytes`, cut short, trailing bytes, too deep, or a type outside the set.
    """
    value = _unpack(data, limit_bytes)
    try:
        return _checked(value, 0)
    except (ValueError, TypeError) as error:
        raise EncodingError(f"not a value of this network: {error}, {redact(data)}") from None


def decode(data: bytes, kind: type[T], *, limit_bytes: int) -> T:
    """The value that `data` spells, refused unless `data` is its only spelling.

    Args:
        data: untrusted bytes.
        kind: the struct that is expected.
        limit_bytes: bound checked before parsing.

    Raises:
        EncodingError: names the field and what was expected there.
    """
    least, usual, most = REMEMBERED_BYTES
    if not least <= len(data) <= min(most, limit_bytes):
        return _decode(data, kind, limit_bytes)
    remembered = _remembered if len(data) <= usual else _remembered_long
    return cast("T", remembered(bytes(data), kind))


def _decode(data: bytes, kind: type[T], limit_bytes: int) -> T:
    # What a closed type takes is canonical if it is spelled the same again; no need to look at every part before.
    value = (
        _typed(data, kind, limit_bytes) if _is_closed(kind) else from_plain(unpack(data, limit_bytes=limit_bytes), kind)
    )
    if encode(value) != data:
        raise EncodingError(f"{kind.__name__}: not the canonical spelling, {redact(data)}")
    return value


@lru_cache(maxsize=512)
def _remembered(data: bytes, kind: type[msgspec.Struct]) -> msgspec.Struct:
    """`_decode`, which is pure and gives frozen values: the newest are remembered.

    Votes, blocks and records come again, from other peers and from disk. In a simulation, where many peers share a
    process, they share what they decode.
    """
    return _decode(data, kind, len(data))


@lru_cache(maxsize=32)
def _remembered_long(data: bytes, kind: type[msgspec.Struct]) -> msgspec.Struct:
    """The same for long messages, of which fewer are remembered."""
    return _decode(data, kind, len(data))


def recall(data: bytes, kind: type[T]) -> T:
    """The value in bytes that `encode` gave and our own disk kept. Types and bounds are checked, the spelling is not.

    Whoever relies on what it says checks its signatures, which are over the value. Several times as fast as `decode`.

    Raises:
        EncodingError: it is damaged.
    """
    if len(data) > REMEMBERED_BYTES[1]:
        return _recall(data, kind)
    return cast("T", _recalled(data, kind))


def _recall(data: bytes, kind: type[T]) -> T:
    try:
        return cast("T", _decoder(kind).decode(data))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise EncodingError(f"{kind.__name__}: {error}, {redact(data)}") from None


@lru_cache(maxsize=512)
def _recalled(data: bytes, kind: type[msgspec.Struct]) -> msgspec.Struct:
    """What is asked for again keeps the digests that it has computed."""
    return _recall(data, kind)


@cache
def _decoder(kind: type[msgspec.Struct]) -> msgspec.msgpack.Decoder[msgspec.Struct]:
    return msgspec.msgpack.Decoder(kind)


def from_plain(plain: object, kind: type[T]) -> T:
    """Typed value out of plain ones (as `unpack` gives them); bounds and unknown fields checked."""
    try:
        return msgspec.convert(plain, kind, strict=True, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise EncodingError(f"{kind.__name__}: {error}") from None


def digest(domain: str, network: NetworkId | bytes, value: msgspec.Struct | bytes) -> Digest:
    """SHA-256 of a value under a domain, so that no two kinds of thing and no two networks share a digest.

    Args:
        domain: kind of the value, such as `record` or `vote`; no NUL.
        network: network id (32 bytes), or empty for what exists before the network does (the genesis).
        value: a struct, or bytes that are canonical already.
    """
    body = value if isinstance(value, bytes) else encode(value)
    return Digest(hashlib.sha256(head(domain, network) + body).digest())


@lru_cache(maxsize=256)
def head(domain: str, network: NetworkId | bytes) -> bytes:
    """What stands before a value in its `digest`: for whoever hashes many values of one kind."""
    return DOMAIN_PREFIX + domain.encode() + b"\0" + len(network).to_bytes(1, "big") + network


def to_json(value: msgspec.Struct) -> str:
    """Canonical JSON text of `value`, for files that people read."""
    plain = _hexed(msgspec.to_builtins(value, builtin_types=(bytes,), order="sorted"))
    return json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def from_json(text: str, kind: type[T], *, limit_bytes: int, exact: bool = True) -> T:
    """The value that a JSON text spells.

    Args:
        text: untrusted JSON.
        kind: the struct that is expected.
        limit_bytes: bound on the UTF-8 length, checked before parsing.
        exact: refuse every spelling but the canonical one (white space, order of keys, letter case of hex, doubled
            keys). False only for files that a person edits by hand.

    Raises:
        EncodingError: names the field by its path, such as `$.certificate.votes[2]`.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > limit_bytes:
        raise EncodingError(f"{kind.__name__}: {size} bytes of JSON, the limit is {limit_bytes}")
    try:
        plain = json.loads(text, object_pairs_hook=_unique, parse_float=_no_float, parse_constant=_no_float)
    except (ValueError, RecursionError) as error:
        raise EncodingError(f"{kind.__name__}: not JSON: {error}") from None
    value = from_plain(_unhexed(plain, shape.type_info(kind), "$"), kind)
    if exact:
        _same_text(text, to_json(value), kind.__name__)
    return value


def _same_text(given: str, canonical: str, name: str) -> None:
    if given == canonical:
        return
    for number, (have, want) in enumerate(zip(given.split("\n"), canonical.split("\n"), strict=False), start=1):
        if have != want:
            field = want.strip().partition(":")[0][:60]
            raise EncodingError(f"{name}: line {number} is not the canonical spelling of {field or 'the document'}")
    raise EncodingError(f"{name}: text before or after the canonical document")


def _typed(data: bytes, kind: type[T], limit_bytes: int) -> T:
    """A value straight out of MessagePack; its spelling is not looked at."""
    _check_length(data, limit_bytes)
    try:
        return cast("T", _decoder(kind).decode(data))
    except msgspec.ValidationError as error:
        raise EncodingError(f"{kind.__name__}: {error}") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise EncodingError(f"not MessagePack: {type(error).__name__}, {redact(data)}") from None


def _check_length(data: bytes, limit_bytes: int) -> None:
    if len(data) > limit_bytes:
        raise EncodingError(f"message of {len(data)} bytes, the limit is {limit_bytes}")


def _unpack(data: bytes, limit_bytes: int) -> object:
    _check_length(data, limit_bytes)
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            use_list=False,
            max_bin_len=limit_bytes,
            max_str_len=limit_bytes,
            max_array_len=limit_bytes,
            max_map_len=4096,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise EncodingError(f"not MessagePack: {type(error).__name__}, {redact(data)}") from None


@cache
def _is_closed(kind: type[msgspec.Struct]) -> bool:
    """Whether a struct's fields say all: numbers, bytes, text, tuples, such structs; to a depth that is written down.

    msgspec then writes its canonical form by itself, twenty times as fast.
    """
    return _closed(shape.type_info(kind), frozenset())


def _closed(info: shape.Type, within: frozenset[type]) -> bool:
    match info:
        case shape.StructType(cls=cls, fields=fields):
            inner = within | {cls}
            return cls not in within and all(_closed(field.type, inner) for field in fields)
        case shape.VarTupleType(item_type=item):
            return _closed(item, within)
        case shape.TupleType(item_types=items) | shape.UnionType(types=items):
            return all(_closed(item, within) for item in items)
        case _:
            return isinstance(info, CLOSED_TYPES)


def _checked(value: object, depth: int) -> object:
    """`value` with every map's keys in ascending order; refuses what has no canonical form."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, bool | int | str | bytes):
        return value
    if isinstance(value, list | tuple):
        return [_checked(item, depth + 1) for item in cast("list[object]", value)]
    if isinstance(value, dict):
        items = cast("dict[object, object]", value)
        if not all(isinstance(key, str) for key in items):
            raise TypeError("a map key that is not text")
        ordered = sorted(cast("dict[str, object]", items).items())
        return {key: _checked(item, depth + 1) for key, item in ordered}
    raise TypeError(f"{type(value).__name__} has no canonical form")


def _hexed(value: Any) -> Any:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, list | tuple):
        return [_hexed(item) for item in value]
    if isinstance(value, dict):
        return {key: _hexed(item) for key, item in value.items()}
    return value


def _unhexed(value: Any, info: shape.Type, path: str) -> Any:  # noqa: PLR0911 - one return a shape
    """Hex text to bytes wherever the type says bytes; everything else is left for the type check to judge."""
    if isinstance(info, shape.BytesType) and isinstance(value, str):
        body = value[2:]
        if not value.startswith("0x") or len(body) % 2 or not set(body) <= set("0123456789abcdef"):
            raise EncodingError(f"expected 0x and lower-case hex at {path}")
        return bytes.fromhex(body)
    if isinstance(info, shape.StructType) and isinstance(value, dict):
        fields = {field.encode_name: field.type for field in info.fields}
        return {
            key: _unhexed(item, fields[key], f"{path}.{key}") if key in fields else item for key, item in value.items()
        }
    if isinstance(info, shape.TupleType) and isinstance(value, list):
        if len(value) != len(info.item_types):
            return value
        pairs = zip(value, info.item_types, strict=True)
        return [_unhexed(item, kind, f"{path}[{i}]") for i, (item, kind) in enumerate(pairs)]
    if isinstance(info, shape.VarTupleType | shape.ListType) and isinstance(value, list):
        return [_unhexed(item, info.item_type, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(info, shape.UnionType):
        kind = _kind_of(value, [kind for kind in info.types if not isinstance(kind, shape.NoneType)])
        return _unhexed(value, kind, path) if value is not None and kind is not None else value
    return value


def _kind_of(value: Any, kinds: list[shape.Type]) -> shape.Type | None:
    """Which of a union's kinds a value says that it is: by its tag, where there are several."""
    if len(kinds) == 1:
        return kinds[0]
    tagged = [kind for kind in kinds if isinstance(kind, shape.StructType)]
    if not isinstance(value, dict):
        return None
    return next((kind for kind in tagged if kind.tag_field and value.get(kind.tag_field) == kind.tag), None)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    doubled = sorted({key for key in keys if keys.count(key) > 1})
    if doubled:
        raise ValueError(f"field {doubled[0]!r} stands twice")
    return dict(pairs)


def _no_float(text: str) -> Any:
    raise ValueError(f"{text}: numbers here are integers")
