"""Numbers and lists of request bodies: checked against their bounds, real numbers turned into millionths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from nsllm.node.api.openai_errors import bad_request, unsupported
from nsllm.node.engine.declared import MOST_BIAS
from nsllm.record import MAX_BAD_WORD_CHARS, MAX_BAD_WORDS, MAX_TEXT_CHARS, Visibility

MICRO: Final = 1_000_000
MAX_STOPS: Final = 4
MAX_STOP_CHARS: Final = 256
MAX_BIASES: Final = 1024
MAX_TOKEN: Final = 2**31 - 1
MAX_GIVEN_TOKENS: Final = MAX_TEXT_CHARS
"""As many as a request may hold; a model's context holds fewer, or its encoder."""
MAX_MODEL_CHARS: Final = 256


def model_name(name: str) -> str:
    """A model's name that may be looked for.

    Raises:
        ApiError: 400, empty or too long.
    """
    if not 1 <= len(name) <= MAX_MODEL_CHARS:
        raise bad_request(f"'model' has {len(name)} characters, 1 to {MAX_MODEL_CHARS} are allowed", param="model")
    return name


def circle(text: str | None) -> tuple[Visibility | None, str]:
    """Visibility and group that a request asks for: `private`, `public`, `group`, or `group:NAME`.

    >>> circle("group:lab"), circle("public"), circle(None)
    (('group', 'lab'), ('public', ''), (None, ''))
    """
    if text is None:
        return None, ""
    kind, _, name = text.partition(":")
    if kind == "group" and (name or ":" not in text):
        return "group", name
    if text == "private":
        return "private", ""
    if text == "public":
        return "public", ""
    raise bad_request(f"'visibility' is {text[:40]!r}, use private, public, group or group:NAME", param="visibility")


def micro(name: str, value: float | None, low: int, high: int, *, open_below: bool = False) -> int | None:
    """A real number in millionths; None stays None.

    Raises:
        ApiError: 400, outside of `low` to `high` (`low` itself too, if `open_below`).
    """
    if value is None:
        return None
    whole = round(value * MICRO) if math.isfinite(value) and abs(value) <= MICRO else high * MICRO + 1
    if not (low * MICRO <= whole <= high * MICRO) or (open_below and whole == low * MICRO):
        raise bad_request(
            f"{name!r} is {value}, it must be {'above' if open_below else 'from'} {low} and at most {high}", param=name
        )
    return whole


def integer(name: str, value: int | None, low: int, high: int) -> int | None:
    """A whole number in its bounds; None stays None.

    Raises:
        ApiError: 400, outside of `low` to `high`.
    """
    if value is not None and not low <= value <= high:
        raise bad_request(f"{name!r} is {value}, it must be from {low} to {high}", param=name)
    return value


def prompt_limit(value: int | None, most: int) -> int | None:
    """`truncate_prompt_tokens` as requests hold it: vLLM's -1, all that there is room for, is 0.

    Raises:
        ApiError: 400, 0 or out of bounds.
    """
    if value == -1:
        return 0
    if value is not None and not 1 <= value <= most:
        said = f"'truncate_prompt_tokens' is {value}, it must be -1, or from 1 to {most}"
        raise bad_request(said, param="truncate_prompt_tokens")
    return value


def stops(stop: str | list[str] | None) -> tuple[str, ...]:
    """Stop strings.

    Raises:
        ApiError: 400, too many, empty or too long.
    """
    given = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(given) > MAX_STOPS:
        raise bad_request(f"{len(given)} stop sequences, at most {MAX_STOPS} are allowed", param="stop")
    for text in given:
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            raise bad_request(
                f"a stop sequence of {len(text)} characters, 1 to {MAX_STOP_CHARS} are allowed", param="stop"
            )
    return given


def bad_words(given: Sequence[str] | None) -> tuple[str, ...]:
    """Words that an answer must not hold, each once.

    Raises:
        ApiError: 400, too many, without a letter, or too long.
    """
    found = tuple(dict.fromkeys(given or ()))
    if len(found) > MAX_BAD_WORDS:
        raise bad_request(f"{len(found)} bad words, at most {MAX_BAD_WORDS} are allowed", param="bad_words")
    for word in found:
        if not word.strip() or len(word) > MAX_BAD_WORD_CHARS:
            said = f"a bad word of {len(word)} characters, 1 to {MAX_BAD_WORD_CHARS} and not spaces alone are allowed"
            raise bad_request(said, param="bad_words")
    return found


def token_ids(name: str, given: Sequence[int] | None, most: int) -> tuple[int, ...]:
    """A set of tokens, by rising id.

    Raises:
        ApiError: 400, more than `most` of them, or a number that is no token id.
    """
    found = sorted(set(given or ()))
    if len(found) > most:
        raise bad_request(f"{len(found)} tokens in {name!r}, at most {most} are allowed", param=name)
    for token in found:
        if not 0 <= token <= MAX_TOKEN:
            raise bad_request(f"{name!r} has {token}, which is no token id", param=name)
    return tuple(found)


def given_tokens(given: Sequence[Any], at: str) -> tuple[int, ...]:
    """Token ids in place of a text, in their order; whether the model has them is for the model to say.

    Args:
        given: as they were sent.
        at: the field.

    Raises:
        ApiError: 400, none, too many, or something that is no token id.
    """
    if not 1 <= len(given) <= MAX_GIVEN_TOKENS:
        raise bad_request(f"{len(given)} tokens, 1 to {MAX_GIVEN_TOKENS} are allowed", param=at)
    for index, token in enumerate(given):
        if isinstance(token, bool) or not isinstance(token, int):
            said = f"expected a token id, got {type(token).__name__}"
            raise bad_request(said, param=f"{at}[{index}]", code="invalid_type")
        if not 0 <= token <= MAX_TOKEN:
            raise bad_request(f"{token} is no token id", param=f"{at}[{index}]")
    return tuple(given)


def logit_bias(biases: Mapping[str, float] | None) -> tuple[tuple[int, int], ...]:
    """(token, millionths) by rising token; biases of zero change nothing and are left out.

    Raises:
        ApiError: 400, too many, a key that is no token id, or a bias beyond -100 to 100.
    """
    if not biases:
        return ()
    if len(biases) > MAX_BIASES:
        raise bad_request(f"{len(biases)} biases, at most {MAX_BIASES} are allowed", param="logit_bias")
    found: dict[int, int] = {}
    for key, bias in biases.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10 and int(key) <= MAX_TOKEN):
            raise bad_request(f"'logit_bias' names {key[:32]!r}, which is no token id", param="logit_bias")
        if int(key) in found:
            raise bad_request(f"'logit_bias' names token {int(key)} twice", param="logit_bias")
        value = micro("logit_bias", bias, -MOST_BIAS, MOST_BIAS)
        assert value is not None
        found[int(key)] = value
    return tuple((token, bias) for token, bias in sorted(found.items()) if bias)


def json_text(value: object) -> str:
    """A JSON value as the text that requests carry: no spaces, keys in the order that they were sent in.

    The order is a part of what is asked: a guided answer writes its properties in the schema's.
    """
    return msgspec.json.encode(value).decode()


def refuse_unless(allowed: Mapping[str, tuple[Any, ...]], given: object) -> None:
    """400 for fields that would change the answer and are not served.

    Args:
        allowed: name of a field to the values that change nothing; None always is one.
        given: the body.
    """
    for name, values in allowed.items():
        value = getattr(given, name)
        if value is not None and not any(value == harmless and type(value) is type(harmless) for harmless in values):
            only = ", ".join(json_text(each) for each in values)
            raise unsupported(name, f"{name!r} is not supported" + (f"; only {only} is accepted" if only else ""))
