"""What a whole answer must match: OpenAI's `response_format`, vLLM's `structured_outputs` and `guided_…` fields."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from nsllm.node.api.fields import json_text, refuse_unless
from nsllm.node.api.openai_errors import bad_request, unsupported
from nsllm.record import MAX_TEXT_CHARS, Guide

MAX_CHOICES: Final = 1000
Kind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]
UNSERVED: Final = {"guided_whitespace_pattern": (), "guided_decoding_backend": ("auto", "guidance")}
"""Fields that are accepted only at these values, which change nothing."""
_STRUCTURED: Final[dict[str, Kind]] = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
    "json_object": "json_object",
}


_FIELDS: Final = (
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "response_format",
)


class JsonSchema(Struct, forbid_unknown_fields=True):
    """`response_format.json_schema`."""

    schema: dict[str, Any] | bool | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    """Accepted: an answer matches its schema either way."""


class FormatFields(Struct, forbid_unknown_fields=True, kw_only=True):
    """The fields of both endpoints that guide an answer; at most one of them may be set."""

    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    # accepted only at the value that changes nothing
    guided_decoding_backend: str | None = None
    guided_whitespace_pattern: str | None = None


def guide_names(body: FormatFields) -> dict[str, str]:
    """The names that refusals of a guide carry, to the field that this body has it in."""
    sent = next((name for name in _FIELDS if getattr(body, name) is not None), None)
    return {} if sent is None else dict.fromkeys(("response_format", "structured_outputs"), sent)


def guide(body: FormatFields) -> Guide | None:
    """What the answer must match; None: nothing.

    Raises:
        ApiError: 400 that names the field.
    """
    refuse_unless(UNSERVED, body)
    given = (
        ("response_format", _response_format(body.response_format)),
        ("structured_outputs", _structured(body.structured_outputs)),
        ("guided_json", _guide("json_schema", body.guided_json, "guided_json")),
        ("guided_regex", _guide("regex", body.guided_regex, "guided_regex")),
        ("guided_choice", _guide("choice", body.guided_choice, "guided_choice")),
        ("guided_grammar", _guide("grammar", body.guided_grammar, "guided_grammar")),
    )
    found = {name: one for name, one in given if one is not None}
    if len(found) > 1:
        names = list(found)
        raise bad_request(f"{names[0]!r} and {names[1]!r} exclude each other; send one", param=names[1])
    return next(iter(found.values()), None)


def _response_format(given: dict[str, Any] | None) -> Guide | None:
    if given is None:
        return None
    kind = given.get("type")
    extra = sorted(given.keys() - {"type", "json_schema"})
    if extra:
        raise bad_request(
            f"unknown field {extra[0][:64]!r}", param=f"response_format.{extra[0][:64]}", code="unknown_field"
        )
    match kind:
        case "text":
            return None
        case "json_object":
            return Guide(kind="json_object")
        case "json_schema":
            return _json_schema(given.get("json_schema"))
        case _:
            raise unsupported("response_format.type", "use the type text, json_object or json_schema")


def _json_schema(given: object) -> Guide | None:
    at = "response_format.json_schema"
    try:
        wrapped = msgspec.convert(given, JsonSchema)
    except msgspec.ValidationError as error:
        raise bad_request(f"not a 'json_schema': {str(error)[:200]}", param=at, code="invalid_type") from None
    if wrapped.schema is None:
        raise bad_request("missing field 'schema'", param=f"{at}.schema", code="missing_field")
    return _guide("json_schema", wrapped.schema, f"{at}.schema")


def _structured(given: dict[str, Any] | None) -> Guide | None:
    set_fields = {name: value for name, value in (given or {}).items() if value is not None and value is not False}
    for name in set_fields:
        if name not in _STRUCTURED:
            at = f"structured_outputs.{name[:64]}"
            raise unsupported(at, f"{name[:64]!r} is not supported; use one of {', '.join(_STRUCTURED)}")
    if len(set_fields) > 1:
        raise bad_request("several formats exclude each other; send one", param="structured_outputs")
    for name, value in set_fields.items():
        return _guide(_STRUCTURED[name], value, f"structured_outputs.{name}")
    return None


def _guide(kind: Kind, value: object, at: str) -> Guide | None:
    """A guide of a value as sent; None stays None."""
    if value is None:
        return None
    if kind == "json_object":
        return Guide(kind=kind)
    if kind == "json_schema":
        text = json_text(_schema(value, at))
    elif kind == "choice":
        text = json_text(_choices(value, at))
    elif isinstance(value, str) and value:
        text = value
    else:
        raise bad_request("expected a string that is not empty", param=at, code="invalid_type")
    if len(text) > MAX_TEXT_CHARS:
        raise bad_request(f"{len(text)} characters, the limit is {MAX_TEXT_CHARS}", param=at)
    return Guide(kind=kind, text=text)


def _schema(value: object, at: str) -> object:
    """A schema, which vLLM's clients may send as JSON text."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError:
            raise bad_request("not valid JSON", param=at, code="invalid_json") from None
    if not isinstance(value, dict | bool):
        raise bad_request("a JSON schema is an object", param=at, code="invalid_type")
    return value


def _choices(value: object, at: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise bad_request("expected a list of strings that are not empty", param=at, code="invalid_type")
    if not 1 <= len(value) <= MAX_CHOICES:
        raise bad_request(f"{len(value)} choices, 1 to {MAX_CHOICES} are allowed", param=at)
    return value
