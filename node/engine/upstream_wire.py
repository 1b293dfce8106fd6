"""What an OpenAI-compatible server answers: chunks, its list of models, its refusals.

An upstream's error messages are never repeated: servers quote the request in them. What is told is the status, the
server's code word, and, where a prompt is too long, the numbers beside the word "tokens".
"""

from __future__ import annotations

import builtins
import re
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from nsllm.errors import NsllmError
from nsllm.node.engine.port import TokenLogprob
from nsllm.node.errors import ContextOverflowError, EngineError, InvalidRequestError, OverloadedError

MAX_RETRY_AFTER_S: Final = 600
PASSING: Final = frozenset({502, 503, 504})
"""Statuses of a server that is being started or replaced."""
OVERFLOW_CODES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_OVERFLOW = re.compile(r"context (?:length|size|window)|longer than the model", re.IGNORECASE)
_TOKENS = re.compile(r"\b(\d{1,9})(?: input)? tokens|context (?:length|size|window)(?: is| of)?:? \(?(\d{1,9})\b")
_WORD = re.compile(r"[\w.-]{1,64}")


class FunctionDelta(Struct):
    """What a chunk adds to a call."""

    name: str | None = None
    """In the first chunk of each call."""
    arguments: str | None = None


class CallDelta(Struct):
    """A piece of a tool call."""

    function: FunctionDelta | None = None


class Delta(Struct):
    """What a chunk adds."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """A reasoning model thinks aloud; that is progress, and no part of the answer."""
    tool_calls: tuple[CallDelta, ...] | None = None


class LikelyToken(Struct):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[Annotated[int, Meta(ge=0, le=255)]] | None = None

    def spelled(self) -> builtins.bytes:
        """What the token spells."""
        return self.token.encode() if self.bytes is None else builtins.bytes(self.bytes)


class WrittenToken(LikelyToken):
    """A token of the answer, and what else might have come."""

    top_logprobs: tuple[LikelyToken, ...] = ()


class Logprobs(Struct):
    """Log-probabilities of a chunk's tokens."""

    content: tuple[WrittenToken, ...] | None = None


class Choice(Struct):
    """One answer of a chunk; we ask for one."""

    index: int = 0
    delta: Delta | None = None
    text: str | None = None
    """Instead of `delta`, of a prompt without a template."""
    logprobs: Any = None
    """`Logprobs`, if they were asked for."""
    finish_reason: str | None = None


class Usage(Struct):
    """What the upstream counted."""

    prompt_tokens: int
    completion_tokens: int


class Chunk(Struct):
    """One event of a streamed completion."""

    choices: tuple[Choice, ...] | UnsetType = UNSET
    usage: Usage | None = None
    error: Any = None


class ListedModel(Struct):
    """One line of `/v1/models`, with the places where servers say how long a context may be."""

    id: str
    owned_by: str | None = None
    max_model_len: int | None = None
    """vLLM and SGLang."""
    meta: dict[str, Any] | None = None
    """llama-server: `n_ctx`, `n_ctx_train`."""
    nsllm: dict[str, Any] | None = None
    """A peer of NS-LLM: `context_tokens`."""

    def context_tokens(self) -> int | None:
        """None if the server does not say."""
        meta, peer = self.meta or {}, self.nsllm or {}
        for value in (self.max_model_len, peer.get("context_tokens"), meta.get("n_ctx"), meta.get("n_ctx_train")):
            if isinstance(value, int) and value > 1:
                return value
        return None


class Listing(Struct):
    """Body of `/v1/models`."""

    data: tuple[ListedModel, ...]


def token_logprobs(choice: Choice) -> tuple[TokenLogprob, ...]:
    """Of the tokens in a chunk.

    Raises:
        EngineError: they are in no shape of OpenAI's.
    """
    if choice.logprobs is None:
        return ()
    try:
        told = msgspec.convert(choice.logprobs, Logprobs)
    except msgspec.ValidationError:
        raise EngineError("the upstream's log-probabilities are not those of OpenAI's chat API") from None
    return tuple(
        TokenLogprob(one.spelled(), one.logprob, tuple((top.spelled(), top.logprob) for top in one.top_logprobs))
        for one in told.content or ()
    )


def parse_chunk(data: bytes) -> Chunk:
    """One event of the stream.

    Raises:
        EngineError: not a chunk.
        NsllmError: the upstream reports an error, see `refusal`.
    """
    try:
        chunk = msgspec.json.decode(data, type=Chunk)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise EngineError(f"the upstream's stream holds {len(data)} bytes that are no completion chunk") from None
    if chunk.error:
        code = chunk.error.get("code") if isinstance(chunk.error, dict) else None
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
        raise refusal(status, data, None)
    if chunk.choices is UNSET or any(choice.index != 0 for choice in chunk.choices):
        raise EngineError(f"the upstream's stream holds {len(data)} bytes that are no completion chunk of one choice")
    return chunk


def refusal(status: int, body: bytes, retry_after: str | None) -> NsllmError:  # noqa: PLR0911 - one return a kind
    """What an answer that is no completion means for the caller.

    Args:
        status: of the HTTP answer, not 200.
        body: its bounded body, in any of the shapes that servers use.
        retry_after: header of that name.
    """
    code, message = _fault(body)
    said = f"HTTP {status}" + (f", {code}" if code else "")
    if 300 <= status < 400:
        hint = "redirects are not followed: set engine.upstream_url to the final address"
        return EngineError(f"the upstream redirects ({said})", hint=hint)
    if status in {401, 403}:
        return EngineError(f"the upstream refuses this peer ({said})", hint="check engine.upstream_key")
    if status == 404:
        return EngineError(
            f"the upstream does not know the model or the path ({said})",
            hint="check engine.upstream_url and engine.upstream_model",
        )
    if status == 429:
        overloaded = OverloadedError(f"the upstream is busy ({said})", hint="try again in a moment")
        if retry_after is not None and retry_after.strip().isdecimal():
            overloaded.retry_after_s = min(max(int(retry_after), 1), MAX_RETRY_AFTER_S)
        return overloaded
    if 400 <= status < 500:
        if code in OVERFLOW_CODES or _OVERFLOW.search(message):
            numbers = list(dict.fromkeys(a or b for a, b in _TOKENS.findall(message)))[:4]
            named = f"it names {' and '.join(numbers)} tokens" if numbers else "it names no numbers"
            return ContextOverflowError(
                f"the prompt does not fit the upstream model's context: {named}",
                hint="shorten the conversation",
                param="messages",
            )
        return InvalidRequestError(f"the upstream refuses this request ({said})", hint="the upstream's log says why")
    return EngineError(f"the upstream failed ({said})", hint="ask again; the upstream's log says why")


def _fault(body: bytes) -> tuple[str, str]:
    """(code word or "", message or "") of an error body."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "", ""
    fault = value.get("error", value) if isinstance(value, dict) else value
    if not isinstance(fault, dict):
        return "", str(fault)
    words = [fault.get(name) for name in ("code", "type")]
    code = next((word for word in words if isinstance(word, str) and _WORD.fullmatch(word)), "")
    return code, str(fault.get("message") or fault.get("detail") or "")
