"""Conversations of request bodies: roles, text, and the calls and results of tools."""

from __future__ import annotations

from typing import Any, Final, Literal

from msgspec import Struct

from nsllm.node.api.openai_errors import bad_request, unsupported
from nsllm.node.api.parts import PartsReader
from nsllm.record import MAX_TEXT_CHARS, Message, ToolCall

MAX_MESSAGES: Final = 256
MAX_CALLS: Final = 64
MAX_ID_CHARS: Final = 64
MAX_NAME_CHARS: Final = 64
_ROLES: Final[dict[str, Literal["system", "user", "assistant", "tool"]]] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name of the same thing
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


class SentFunction(Struct, forbid_unknown_fields=True):
    """What an earlier answer called."""

    name: str
    arguments: str


class SentCall(Struct, forbid_unknown_fields=True):
    """A tool call of an earlier answer."""

    id: str
    function: SentFunction
    type: Literal["function"] = "function"
    index: int | None = None
    """Accepted and not used: some clients leave it there when they put streamed calls together."""


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
    tool_calls: list[SentCall] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


def conversation(messages: list[ChatMessage], reader: PartsReader) -> tuple[Message, ...]:
    """The conversation of a body; `reader` keeps what is attached to it.

    Raises:
        ApiError: 400 that names the field.
    """
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise bad_request(f"{len(messages)} messages, 1 to {MAX_MESSAGES} are allowed", param="messages")
    called: set[str] = set()
    found: list[Message] = []
    for index, message in enumerate(messages):
        one = _message(message, f"messages[{index}]", reader)
        if one.role == "tool" and one.tool_call_id not in called:
            raise bad_request(
                "a tool message answers a call of an assistant message before it",
                param=f"messages[{index}].tool_call_id",
            )
        called.update(call.id for call in one.tool_calls)
        found.append(one)
    reader.check(one.content for one in found)
    return tuple(found)


def _message(message: ChatMessage, at: str, reader: PartsReader) -> Message:
    role = _ROLES.get(message.role)
    if role is None:
        if message.role == "function":
            raise unsupported(f"{at}.role", "function messages are not supported: send a tool message")
        raise bad_request(
            f"unknown role {message.role[:32]!r}, use system, developer, user, assistant or tool", param=f"{at}.role"
        )
    if message.audio:
        raise unsupported(f"{at}.audio", "audio is not supported")
    if message.function_call:
        raise unsupported(f"{at}.function_call", "function calls are not supported: send 'tool_calls'")
    calls = _calls(message.tool_calls or [], role, at)
    if (role == "tool") != bool(message.tool_call_id):
        raise bad_request(
            "a tool message needs a 'tool_call_id', and no other has one", param=f"{at}.tool_call_id"
        )  # fmt: skip
    if message.tool_call_id and len(message.tool_call_id) > MAX_ID_CHARS:
        raise bad_request(
            f"an id of {len(message.tool_call_id)} characters, the limit is {MAX_ID_CHARS}", param=f"{at}.tool_call_id"
        )
    return Message(
        role=role, content=_content(message, at, reader), tool_calls=calls, tool_call_id=message.tool_call_id or ""
    )  # fmt: skip


def _content(message: ChatMessage, at: str, reader: PartsReader) -> str:
    if isinstance(message.content, list):
        content = reader.read(message.content, f"{at}.content", text_only=message.role != "user")
    elif message.content is None and message.tool_calls:
        content = ""
    elif message.content is None:
        raise bad_request("a message needs content", param=f"{at}.content")
    else:
        content = message.content
    if len(content) > MAX_TEXT_CHARS:
        raise bad_request(f"content of {len(content)} characters, the limit is {MAX_TEXT_CHARS}", param=f"{at}.content")
    return content


def _calls(calls: list[SentCall], role: str, at: str) -> tuple[ToolCall, ...]:
    if calls and role != "assistant":
        raise bad_request("only the assistant calls tools", param=f"{at}.tool_calls")
    if len(calls) > MAX_CALLS:
        raise bad_request(f"{len(calls)} tool calls, at most {MAX_CALLS} are allowed", param=f"{at}.tool_calls")
    found: list[ToolCall] = []
    for index, call in enumerate(calls):
        here = f"{at}.tool_calls[{index}]"
        for name, text, most in (
            ("id", call.id, MAX_ID_CHARS),
            ("function.name", call.function.name, MAX_NAME_CHARS),
            ("function.arguments", call.function.arguments, MAX_TEXT_CHARS),
        ):
            if len(text) > most or (not text and name != "function.arguments"):
                raise bad_request(f"{len(text)} characters, 1 to {most} are allowed", param=f"{here}.{name}")
        found.append(ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments))
    return tuple(found)
