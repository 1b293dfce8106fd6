"""Bodies: bounded in depth, decoded, or refused with the field's name."""

from __future__ import annotations

import json
import sys

import msgspec
import pytest

from nsllm.node.api.chat_body import ChatBody
from nsllm.node.api.openai_errors import ApiError
from nsllm.node.api.requests import MAX_DEPTH, decode

USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_field_is_named(missing):
    body = {"model": "m", "messages": [USER]}
    del body[missing]
    with pytest.raises(ApiError, match="missing field") as caught:
        decode(json.dumps(body).encode(), ChatBody)
    assert caught.value.param == missing


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b'{"model": NaN}',
        b'{"temperature": Infinity}',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"model": "m", "messages": []} trailing',
        b'{"messages": [{"role": "user", "content": [' + b'{"a":' * 100_000,
        b'{"tool_choice": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 100_000,
    ],
    ids=["empty", "cut", "words", "nan", "infinity", "bytes", "surrogate", "trailing", "deep object", "deep list",
         "deep"],
)  # fmt: skip
def test_what_is_not_json_is_refused(body):
    with pytest.raises(ApiError) as caught:
        decode(body, ChatBody)
    assert caught.value.status == 400
    assert caught.value.code == "invalid_json"


@pytest.mark.parametrize("body", [b"[]", b"null", b"3", b'"text"'])
def test_a_body_that_is_no_object_is_refused(body):
    with pytest.raises(ApiError) as caught:
        decode(body, ChatBody)
    assert caught.value.code == "invalid_type"


def test_depth_is_bounded_even_where_a_library_lifted_the_recursion_limit():
    """py-evm does so: a parser that recursed would run over the end of the C stack and end the peer."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        for opening in (b"[", b'{"a":'):
            with pytest.raises(ApiError) as caught:
                decode(b'{"model": "m", "messages": [], "tools": ' + opening * 150_000, ChatBody)
            assert caught.value.code == "invalid_json"
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.parametrize(
    "text",
    ["[[[" * 100, "]]]" * 100, '"[' * 100, '\\"[' * 100, "{" * 80],
)
def test_brackets_inside_strings_are_no_depth(text):
    body = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": text}]})
    assert decode(body, ChatBody).messages[0].content == text


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1])
def test_the_deepest_body_that_is_read(depth):
    inner = depth - 2
    body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "metadata": null, "tool_choice": ['
    body += b"[" * inner + b"]" * inner + b"]}"
    if depth <= MAX_DEPTH:
        decode(body, ChatBody)
    else:
        with pytest.raises(ApiError, match="deeper than 64"):
            decode(body, ChatBody)


def test_a_string_that_does_not_end_costs_linear_time():
    with pytest.raises(ApiError):
        decode(b'{"model": "' + b'\\"[' * 300_000, ChatBody)
