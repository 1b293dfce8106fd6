"""What an OpenAI-compatible server is asked and what it answers: the body, its chunks, its list, its refusals.

An upstream's error messages are never repeated: servers quote the request in them. What is told is the status, the
server's code word, and, where a prompt is too long, the numbers beside the word "tokens".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from nsllm.errors import NsllmError
from nsllm.node.errors import ContextOverflowError, EngineError, InvalidRequestError, OverloadedError
from nsllm.record import Message, Sampling

MICRO: Final = 1_000_000
MAX_RETRY_AFTER_S: Final = 600
PASSING: Final = frozenset({502, 503, 504})
"""Statuses of a server that is being started or replaced."""
LLAMA_CPP: Final = frozenset({"llamacpp", "me"})
"""How llama-server and llama-cpp-python's server call the owner of a model."""
OVERFLOW_CODES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_OVERFLOW = re.compile(r"context (?:length|size|window)|longer than the model", re.IGNORECASE)
_TOKENS = re.compile(r"\b(\d{1,9})(?: input)? tokens|context (?:length|size|window)(?: is| of)?:? \(?(\d{1,9})\b")
_WORD = re.compile(r"[\w.-]{1,64}")


class Delta(Struct):
    """What a chunk adds."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """A reasoning model thinks aloud; that is progress, and no part of the answer."""


class Choice(Struct):
    """One answer of a chunk; we ask for one."""

    index: int = 0
    delta: Delta | None = None
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


def request_body(model: str, messages: Sequence[Message], sampling: Sampling, owner: str | None) -> bytes:
    """Body of the POST; parameters that are unset stay out, so the upstream's own defaults hold for them.

    Args:
        model: as the upstream lists it.
        messages: the conversation.
        sampling: parameters; `max_tokens` set.
        owner: what `/v1/models` says of the model's owner: servers spell two parameters differently.
    """
    micro = {
        "temperature": sampling.temperature_micro,
        "top_p": sampling.top_p_micro,
        "min_p": sampling.min_p_micro,
        "presence_penalty": sampling.presence_penalty_micro,
        "frequency_penalty": sampling.frequency_penalty_micro,
        "repeat_penalty" if owner in LLAMA_CPP else "repetition_penalty": sampling.repetition_penalty_micro,
    }
    body: dict[str, object] = {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **{name: value / MICRO for name, value in micro.items() if value is not None},
    }
    if sampling.top_k is not None:
        # Off is 0 in our words and at a peer; llama-cpp-python refuses -1, which vLLM and SGLang want.
        body["top_k"] = -1 if sampling.top_k == 0 and owner not in {*LLAMA_CPP, "nsllm"} else sampling.top_k
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.max_tokens is not None:
        body["max_tokens"] = sampling.max_tokens
    if sampling.min_tokens is not None:
        body["min_tokens"] = sampling.min_tokens
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias / MICRO for token, bias in sampling.logit_bias}
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if owner == "nsllm":
        body["visibility"] = "private"  # who publishes an answer is decided here, never by what computes it
    return msgspec.json.encode(body)


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
