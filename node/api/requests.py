"""Request bodies: bounded, decoded into typed structs, and turned into the peer's commands.

Every field of OpenAI's chat API stands here: those served, those accepted because ignoring them changes no answer
(`user`, `metadata`, …), and those refused with a clear 400 because ignoring them would. Other fields are unknown.
Real numbers become integers in millionths at this edge and stay so.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from dataclasses import replace
from typing import Any, Final, Literal, TypeVar

import msgspec
from aiohttp import web
from msgspec import Struct

from nsllm.node.api.context import CONTEXT
from nsllm.node.api.openai_errors import ApiError, bad_request, unsupported
from nsllm.node.service import ChatCommand
from nsllm.record import MAX_TEXT_CHARS, Message, Sampling, Visibility

MAX_MESSAGES: Final = 256
MAX_CHOICES: Final = 4
MAX_STOPS: Final = 4
MAX_STOP_CHARS: Final = 256
MAX_MODEL_CHARS: Final = 256
MAX_TOKENS: Final = 1_000_000
MAX_DEPTH: Final = 64
"""Of nested lists and objects in a body; a JSON schema of a tool may have some twenty levels."""
MICRO: Final = 1_000_000

T = TypeVar("T")


class StreamOptions(Struct, forbid_unknown_fields=True):
    """`stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Accepted; this peer never obfuscates."""


class ChatMessage(Struct, forbid_unknown_fields=True):
    """One message as sent; an assistant message may be an earlier answer, dumped whole with its null fields."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    """Accepted and not used: the model's template has no names."""
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: Any = None
    function_call: Any = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None


class ChatBody(Struct, forbid_unknown_fields=True):
    """Body of `POST /v1/chat/completions`."""

    model: str
    messages: list[ChatMessage]
    # served
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    visibility: Visibility | None = None
    # accepted only at the value that changes nothing
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_p: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    web_search_options: Any = None
    store: bool | None = None
    # accepted and not used: they are about OpenAI's accounts and billing, never about the answer
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    parallel_tool_calls: bool | None = None


class EmbeddingsBody(Struct, forbid_unknown_fields=True):
    """Body of `POST /v1/embeddings`."""

    model: str
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


class SessionBody(Struct, forbid_unknown_fields=True):
    """Body of `POST /session` and `POST /admin/invite`: an empty object."""


_BRACKET = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{\]}]', re.DOTALL)
"""A whole string, or one bracket outside of strings; linear in time, also for a string that does not end."""
_PATH = re.compile(r" - at `(?:key in )?\$\.?(?P<path>[^`]*)`$")
_FIELD = re.compile(r"(?:unknown|required) field `(?P<name>[^`]*)`")


async def read_body(request: web.Request) -> bytes:
    """The whole body of a POST, bounded in size and time.

    Raises:
        ApiError: 408, 413, or 415 for a compressed body.
    """
    settings = request.app[CONTEXT].settings
    limit = settings.max_body_bytes
    too_large = ApiError(413, f"the body is larger than {limit} bytes", "body_too_large")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed bodies are not accepted", "unsupported_media_type")
    if request.content_length is not None and request.content_length > limit:
        raise too_large
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await request.read()
    except TimeoutError:
        raise ApiError(408, f"the body took longer than {settings.body_timeout_s:g} s", "body_timeout") from None
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None


def decode(data: bytes, kind: type[T]) -> T:
    """The body as `kind`.

    Raises:
        ApiError: 400 that says what is wrong and names the field.
    """
    _check_depth(data)
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        said = str(error) if isinstance(error, msgspec.DecodeError) else "it is not UTF-8"
        raise bad_request(f"the body is not valid JSON: {said}", code="invalid_json") from None


def _check_depth(data: bytes) -> None:
    """Depth is bounded before anything is parsed: parsers recurse, and the C stack has an end."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for found in _BRACKET.finditer(data):
        sign = found[0]
        depth += (sign in {b"[", b"{"}) - (sign in {b"]", b"}"})
        if depth > MAX_DEPTH:
            raise bad_request(f"the JSON body is nested deeper than {MAX_DEPTH} levels", code="invalid_json")


def _invalid(said: str) -> ApiError:
    at = _PATH.search(said)
    path = at["path"].replace("[...]", "") if at else ""
    text = said[: at.start()] if at else said
    named = _FIELD.search(text)
    if named is not None:
        param = f"{path}.{named['name']}" if path else named["name"]
        missing = "required" in text
        message = f"missing field {param!r}" if missing else f"unknown field {param!r}"
        return bad_request(message, param=param, code="missing_field" if missing else "unknown_field")
    where = f" in {path!r}" if path else ""
    return bad_request(f"{text[:1].lower()}{text[1:]}{where}", param=path or None, code="invalid_type")


def chat_commands(body: ChatBody) -> tuple[ChatCommand, ...]:
    """One command for each of the `n` choices.

    With a seed, choice 0 uses it as given and the others seeds derived from it; several choices are always generated.

    Raises:
        ApiError: 400 that names the field.
    """
    _refuse_unsupported(body)
    if body.stream_options is not None and not body.stream:
        raise bad_request("'stream_options' needs 'stream': true", param="stream_options")
    count = 1 if body.n is None else body.n
    if not 1 <= count <= MAX_CHOICES:
        raise bad_request(f"'n' is {count}, this peer makes 1 to {MAX_CHOICES} choices", param="n")
    first = ChatCommand(
        model=_model(body.model),
        messages=_messages(body.messages),
        sampling=_sampling(body),
        visibility=body.visibility,
        reuse=count == 1,
    )
    return (first, *(replace(first, sampling=_reseeded(first.sampling, i)) for i in range(1, count)))


def _model(name: str) -> str:
    if not 1 <= len(name) <= MAX_MODEL_CHARS:
        raise bad_request(f"'model' has {len(name)} characters, 1 to {MAX_MODEL_CHARS} are allowed", param="model")
    return name


def _messages(messages: list[ChatMessage]) -> tuple[Message, ...]:
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise bad_request(f"{len(messages)} messages, 1 to {MAX_MESSAGES} are allowed", param="messages")
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(messages))


def _message(message: ChatMessage, at: str) -> Message:
    if message.role in {"tool", "function"} or message.tool_calls or message.function_call or message.tool_call_id:
        raise unsupported(at, "tool messages are not supported yet")
    if message.audio:
        raise unsupported(f"{at}.audio", "audio is not supported")
    match message.role:
        case "system" | "developer":  # OpenAI's newer name of the same thing
            role: Literal["system", "user", "assistant"] = "system"
        case "user":
            role = "user"
        case "assistant":
            role = "assistant"
        case other:
            raise bad_request(
                f"unknown role {other[:32]!r}, use system, developer, user or assistant", param=f"{at}.role"
            )
    if isinstance(message.content, list):
        content = "\n".join(_part(part, f"{at}.content[{i}]") for i, part in enumerate(message.content))
    elif message.content is None:
        raise bad_request("a message needs content", param=f"{at}.content")
    else:
        content = message.content
    if len(content) > MAX_TEXT_CHARS:
        raise bad_request(f"content of {len(content)} characters, the limit is {MAX_TEXT_CHARS}", param=f"{at}.content")
    return Message(role=role, content=content)


def _part(part: dict[str, Any], at: str) -> str:
    kind = part.get("type")
    if kind in {"image_url", "input_image"}:
        raise unsupported(at, "image parts are not supported yet; send text")
    if kind != "text":
        raise unsupported(at, f"content parts of type {str(kind)[:32]!r} are not supported; send type 'text'")
    text = part.get("text")
    if not isinstance(text, str):
        raise bad_request("a text part needs a string 'text'", param=f"{at}.text", code="invalid_type")
    return text


def _sampling(body: ChatBody) -> Sampling:
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise bad_request("'max_tokens' and 'max_completion_tokens' differ; send one", param="max_completion_tokens")
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    top_k = body.top_k if body.top_k != -1 else 0  # vLLM's second spelling of "all tokens"
    return Sampling(
        temperature_micro=_micro("temperature", body.temperature, 0, 2),
        top_p_micro=_micro("top_p", body.top_p, 0, 1, open_below=True),
        top_k=_integer("top_k", top_k, 0, 1_000_000),
        repetition_penalty_micro=_micro("repetition_penalty", body.repetition_penalty, 0, 2, open_below=True),
        seed=_integer("seed", body.seed, -(2**63), 2**63 - 1),
        max_tokens=_integer(name, next(iter(limits), None), 1, MAX_TOKENS),
        stop=_stops(body.stop),
    )


def _micro(name: str, value: float | None, low: int, high: int, *, open_below: bool = False) -> int | None:
    if value is None:
        return None
    micro = round(value * MICRO) if math.isfinite(value) and abs(value) <= MICRO else -1
    if not (low * MICRO <= micro <= high * MICRO) or (open_below and micro == low * MICRO):
        raise bad_request(
            f"{name!r} is {value}, it must be {'above' if open_below else 'from'} {low} and at most {high}", param=name
        )
    return micro


def _integer(name: str, value: int | None, low: int, high: int) -> int | None:
    if value is not None and not low <= value <= high:
        raise bad_request(f"{name!r} is {value}, it must be from {low} to {high}", param=name)
    return value


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS:
        raise bad_request(f"{len(stops)} stop sequences, at most {MAX_STOPS} are allowed", param="stop")
    for text in stops:
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            raise bad_request(
                f"a stop sequence of {len(text)} characters, 1 to {MAX_STOP_CHARS} are allowed", param="stop"
            )
    return stops


def _reseeded(sampling: Sampling, index: int) -> Sampling:
    if sampling.seed is None:
        return sampling
    drawn = hashlib.sha256(f"nsllm choice {sampling.seed} {index}".encode()).digest()
    return msgspec.structs.replace(sampling, seed=int.from_bytes(drawn[:8], "big") >> 1)


def _refuse_unsupported(body: ChatBody) -> None:
    """400 for fields that would change the answer and are not served."""
    not_yet = {
        "logprobs": body.logprobs,
        "top_logprobs": body.top_logprobs,
        "tools": body.tools,
        "functions": body.functions,
        "logit_bias": body.logit_bias,
        "min_p": body.min_p,
        "audio": body.audio,
        "prediction": body.prediction,
        "reasoning_effort": body.reasoning_effort,
        "verbosity": body.verbosity,
        "web_search_options": body.web_search_options,
        "store": body.store,
    }
    for name, value in not_yet.items():
        if value:
            raise unsupported(name, f"{name!r} is not supported yet")
    for name, choice in (("tool_choice", body.tool_choice), ("function_call", body.function_call)):
        if choice not in {None, "none", "auto"} if isinstance(choice, str | None) else True:
            raise unsupported(name, f"{name!r} is not supported yet")
    for name, penalty in (("presence_penalty", body.presence_penalty), ("frequency_penalty", body.frequency_penalty)):
        if penalty:
            raise unsupported(name, f"{name!r} is {penalty}; only 0 is supported, see 'repetition_penalty'")
    if body.response_format is not None and body.response_format != {"type": "text"}:
        raise unsupported("response_format", 'only \'response_format\': {"type": "text"} is supported yet')
    if body.modalities is not None and body.modalities != ["text"]:
        raise unsupported("modalities", "only the modality 'text' is supported")
